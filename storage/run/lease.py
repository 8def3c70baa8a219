"""Leases: which driver may commit to a run. Each driver has one, numbered by generation; the highest number is valid.

A lease is created with a conditional write: of two drivers that try to take the same generation, one succeeds. It ends
when the driver releases it, stops renewing it for ``LEASE_SECONDS``, or is seen to have exited.

Expiry alone cannot keep two drivers apart. A driver may stall (a suspended machine, a long garbage collection) past its
expiry and continue before it has noticed; clocks of two hosts differ. So nothing stored depends on there being one
driver:

- Each lease carries a range of row blocks, which starts where the range of the generation before ends. A driver assigns
  row blocks from its own range only, so two attempts never write the same object, whichever drivers they belong to.
- Commit records are created conditionally, so of two commits of one unit the first counts.

A lease therefore saves work, and the two rules above keep the data right. The ranges stay disjoint even when somebody
deletes leases by hand: a driver lengthens the arrays to the end of its range before it assigns a row block, and
``acquire`` starts behind the end of the arrays.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path

from ...jobs.errors import AtlasError, InputError, StoreError
from ..format import layout
from ..format.lease_record import Lease
from ..format.records import parse_record
from ..locations.location import Location
from .driver_process import has_exited, this_process
from .run_store import reserved_row_blocks

LEASE_SECONDS = 120.0
"""How long a lease is valid after each renewal; a driver that has not renewed for this long may be replaced."""

RENEW_SECONDS = 20.0
"""Interval of renewals: five may fail in a row before the lease expires."""


class HeldLease:
    """The lease of this process, renewed by a thread until the ``with`` block ends, which releases it.

    Args:
        location: The run's store.
        lease: The lease as ``acquire`` stored it.
        is_exclusive: Whether the store refused to create the same lease again.

    Attributes:
        is_exclusive: False when the object store ignores the condition of a conditional write, so that a second driver
            is not kept out.
    """

    def __init__(self, location: Location, lease: Lease, *, is_exclusive: bool) -> None:
        self._location = location
        self._lease = lease
        self.is_exclusive = is_exclusive
        self._done = threading.Event()
        self._lost: str | None = None
        self._renewing = threading.Lock()
        self._thread = threading.Thread(target=self._renew_loop, name="lease", daemon=True)
        self._thread.start()

    @property
    def generation(self) -> int:
        """Number of this lease, from 1; each commit record names it."""
        return self._lease.generation

    @property
    def row_blocks(self) -> range:
        """Row blocks that this driver may assign to attempts."""
        return range(self._lease.first_row_block, self._lease.end_row_block)

    def check(self) -> None:
        """Raise unless this driver still holds the run; renew the lease first when it has expired.

        Raises:
            StoreError: Another driver has taken the run, or the lease was deleted.
            TransientError: The lease has expired, and the store cannot be reached to see whether it was taken.
        """
        # An expired lease that nobody took is still ours: the store may have been unreachable for some minutes.
        if self._lost is None and time.time() > self._lease.expires_at:
            self._renew_now()
        if self._lost is not None:
            raise StoreError(
                f"this driver's lease on the run {self._lost}.",
                code="lease_lost",
                file=self._location.url,
                hint="Committed units stay. Run the same command again when no other driver is running.",
            )

    def __enter__(self) -> HeldLease:
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        if self._lost is None:
            released = self._lease.model_copy(update={"released": True})
            # A lease that cannot be released expires by itself. Raising here would hide the error that ended the run.
            with suppress(AtlasError):
                # If somebody deleted the lease, another driver may have been given its number since.
                if self._is_still_there():
                    self._location.write(layout.driver_path(self.generation), released.to_bytes())

    def _renew_loop(self) -> None:
        while not self._done.wait(RENEW_SECONDS) and self._lost is None:
            try:
                self._renew_now()
            except Exception:  # noqa: BLE001 - the store is unreachable for now; check() renews an expired lease itself
                continue

    def _renew_now(self) -> None:
        # Called by the renewing thread and by ``check``; the lock keeps the later expiry from being overwritten.
        with self._renewing:
            # Check before writing. The write below cannot be made conditional on what is stored, for not every S3
            # server honours ``If-Match``; without the check, a driver whose lease was deleted by hand would write it
            # back. A takeover between check and write does no harm: the successor's lease is another object with a
            # higher generation.
            newest = newest_generation(self._location)
            if newest < self.generation:
                self._lost = "was deleted from the store"
            elif newest > self.generation or not self._is_still_there():
                self._lost = "was taken over by another driver"
            if self._lost is not None:
                return
            renewed = self._lease.model_copy(update={"expires_at": time.time() + LEASE_SECONDS})
            self._location.write(layout.driver_path(self.generation), renewed.to_bytes())
            self._lease = renewed

    def _is_still_there(self) -> bool:
        """Whether the newest stored lease is ours; a deleted lease's number may have been assigned again."""
        stored = newest_lease(self._location)
        return stored is not None and stored.model_copy(update={"expires_at": self._lease.expires_at}) == self._lease


def acquire(location: Location, num_row_blocks: int, holder: str = "") -> HeldLease:
    """Take the lease on a run for this process.

    Args:
        location: The run's store.
        num_row_blocks: Number of row blocks that the lease reserves.
        holder: Id of the cluster job that this process drives. A lease of the same job is taken over at once: the
            cluster starts a driver again when it has lost the earlier one, and should that one still run, disjoint row
            blocks make it harmless. Empty for a driver started by hand.

    Raises:
        InputError: A live driver holds the run; the message names its host and process.
        StoreError: The run's record or the newest lease is damaged.
        TransientError: The store cannot be reached.
    """
    held = newest_lease(location)
    if held is not None and is_live(held) and not _is_same_job(held, holder):
        raise _run_is_held(location, held)
    # Behind the previous lease's range and behind all that the arrays cover: see the module's docstring.
    first = max(held.end_row_block if held else 0, reserved_row_blocks(location))
    lease = Lease(
        generation=held.generation + 1 if held else 1,
        **this_process(),
        expires_at=time.time() + LEASE_SECONDS,
        released=False,
        first_row_block=first,
        end_row_block=first + num_row_blocks,
        holder=holder,
    )
    path = layout.driver_path(lease.generation)
    # When the answer to a successful PUT is lost, the client sends it again and is refused by its own object. So a
    # refusal counts only if the stored lease is not byte for byte this one.
    if not location.create(path, lease.to_bytes()) and location.read(path) != lease.to_bytes():
        raise _run_is_held(location, None)
    # A store that honours conditional writes must refuse to create the same lease a second time.
    is_exclusive = not location.create(path, lease.to_bytes())
    return HeldLease(location, lease, is_exclusive=is_exclusive)


def refuse_if_driven(location: Location, holder: str = "") -> None:
    """Raise if ``acquire`` would be refused, without taking a lease.

    Args:
        location: The run's store.
        holder: Job id, as for ``acquire``.

    Raises:
        InputError: A live driver holds the run.
    """
    lease = live_driver(location)
    if lease is not None and not _is_same_job(lease, holder):
        raise _run_is_held(location, lease)


def live_driver(location: Location) -> Lease | None:
    """Return the newest lease if its driver may still be working; else None."""
    lease = newest_lease(location)
    return lease if lease is not None and is_live(lease) else None


def newest_lease(location: Location) -> Lease | None:
    """Return the lease of the highest generation, live or not; None when the run never had a driver.

    Raises:
        StoreError: The lease is damaged, or was deleted between listing and reading.
    """
    newest = newest_generation(location)
    if not newest:
        return None
    path = layout.driver_path(newest)
    data = location.read(path)
    if data is None:
        raise StoreError(
            "the newest lease was deleted while it was read.",
            code="bad_record",
            file=f"{location.url}/{path}",
            hint="Try again.",
        )
    return parse_record(Lease, data, f"{location.url}/{path}")


def newest_generation(location: Location) -> int:
    """Return the number of the newest lease; 0 when the run never had a driver."""
    stems = (Path(name).stem for name in location.names(layout.DRIVERS))
    numbers = [int(stem) for stem in stems if stem.isdecimal()]
    return max(numbers, default=0)


def is_live(lease: Lease) -> bool:
    """Whether a lease's driver may still be working: not released, not expired, and its process not seen to be gone."""
    return not lease.released and time.time() <= lease.expires_at and not has_exited(lease)


def _is_same_job(lease: Lease, holder: str) -> bool:
    return bool(holder) and lease.holder == holder


def _run_is_held(location: Location, held: Lease | None) -> InputError:
    if held is None:
        who = "by another driver, which took the lease first"
    else:
        who = f"by {f'job {held.holder}, ' if held.holder else ''}process {held.pid} on {held.host}"
    return InputError(
        f"the run at {location.url} is being worked on {who}.",
        code="run_has_driver",
        field="store.url",
        hint=f"Wait for it or stop it. If it has crashed, try again in {LEASE_SECONDS:.0f} s.",
    )
