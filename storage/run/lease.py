"""Who may commit to a run: a lease per driver, numbered by generation, the highest holds.

A lease is created with a conditional write, so of two drivers that reach for one generation one gets it. It carries
the row blocks its driver may hand out, which begin where the generation before ended: no two attempts of any two
drivers ever share one. That holds for a driver that takes over from an earlier one of its own job, too, alive or not:
should the earlier one work on, it has other row blocks, and of two commit records of a unit the first counts. And it
holds when somebody deletes leases by hand: the arrays, lengthened before a block is handed out, tell how many were.
The clock and the process table are asked here and nowhere else in the store.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil

from ...jobs.errors import AtlasError, InputError, StoreError
from ..format import layout
from ..format.records import Lease, parse_record
from ..locations.location import Location
from .run_store import reserved_row_blocks

LEASE_SECONDS = 120.0
"""A driver that has not renewed for this long is taken for dead."""

RENEW_SECONDS = 20.0


class HeldLease:
    """The lease this process holds; renews itself until released. Use as a context manager.

    Attributes:
        is_exclusive: False when the object store ignores the condition of a conditional write, so that another
            driver could not be kept out.
    """

    def __init__(self, location: Location, lease: Lease, *, is_exclusive: bool) -> None:
        self._location = location
        self._lease = lease
        self.is_exclusive = is_exclusive
        self._done = threading.Event()
        self._lost: str | None = None
        self._renewing = threading.Lock()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    @property
    def generation(self) -> int:
        """This driver's number; goes into each commit record."""
        return self._lease.generation

    @property
    def row_blocks(self) -> range:
        """Row blocks this driver may hand out."""
        return range(self._lease.first_row_block, self._lease.end_row_block)

    def check(self) -> None:
        """Make sure the lease still holds; one that ran out while the store was away is renewed if nobody took it.

        Raises:
            StoreError: Another driver has taken the run.
            TransientError: The lease ran out, and the store cannot say whether it was taken.
        """
        if self._lost is None and time.time() > self._lease.expires_at:
            self._renew_now()
        if self._lost is not None:
            raise StoreError(
                f"this driver's lease on the run {self._lost}.",
                code="lease_lost",
                file=self._location.url,
                hint="What was committed stays; start the same command again when no other driver runs.",
            )

    def __enter__(self) -> HeldLease:
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        if self._lost is None:
            released = self._lease.model_copy(update={"released": True})
            # One that cannot be given back runs out by itself, and must not hide how the run ended.
            with suppress(AtlasError):
                # Deleted by hand, its number may be another's by now.
                if self._is_still_there():
                    self._location.write(layout.driver_path(self.generation), released.to_bytes())

    def _renew(self) -> None:
        while not self._done.wait(RENEW_SECONDS) and self._lost is None:
            try:
                self._renew_now()
            except Exception:  # noqa: BLE001 - a bad moment of the store; check() asks again when the lease runs out
                continue

    def _renew_now(self) -> None:
        with self._renewing:
            newest = _newest_generation(self._location)
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
        """Whether the lease of this number is ours; another's when ours was deleted and the number given again."""
        stored = newest_lease(self._location)
        return stored is not None and stored.model_copy(update={"expires_at": self._lease.expires_at}) == self._lease


def acquire(location: Location, num_row_blocks: int, holder: str = "") -> HeldLease:
    """Take a run for this process.

    Args:
        location: The run's store.
        num_row_blocks: How many row blocks may be handed out under the lease.
        holder: Id of the job this is a driver of; a lease of the same job is taken over at once. Empty for a driver
            that nobody starts again.

    Raises:
        InputError: A live driver holds the run; names its host and process.
        StoreError: The run's record or the newest lease is damaged.
        TransientError: The store failed.
    """
    held = newest_lease(location)
    if held is not None and is_live(held) and not _is_of(held, holder):
        raise _taken(location, held)
    first = max(held.end_row_block if held else 0, reserved_row_blocks(location))
    me = psutil.Process()
    lease = Lease(
        generation=held.generation + 1 if held else 1,
        host=socket.gethostname(),
        boot_id=_boot_id(),
        pid=me.pid,
        process_started=me.create_time(),
        expires_at=time.time() + LEASE_SECONDS,
        released=False,
        first_row_block=first,
        end_row_block=first + num_row_blocks,
        holder=holder,
    )
    path = layout.driver_path(lease.generation)
    # Refused by our own object when the store took the first try and its answer was lost.
    if not location.create(path, lease.to_bytes()) and location.read(path) != lease.to_bytes():
        raise _taken(location, None)
    is_exclusive = not location.create(path, lease.to_bytes())
    return HeldLease(location, lease, is_exclusive=is_exclusive)


def refuse_if_driven(location: Location, holder: str = "") -> None:
    """Look, without taking anything, whether a run could be taken.

    Args:
        location: The run's store.
        holder: As for ``acquire``.

    Raises:
        InputError: A live driver holds it.
    """
    lease = live_driver(location)
    if lease is not None and not _is_of(lease, holder):
        raise _taken(location, lease)


def live_driver(location: Location) -> Lease | None:
    """Give the lease of the driver that works on a run now, if one does."""
    lease = newest_lease(location)
    return lease if lease is not None and is_live(lease) else None


def newest_lease(location: Location) -> Lease | None:
    """Give the lease of the last driver that a run had, alive or not.

    Raises:
        StoreError: It is damaged or vanished.
    """
    newest = _newest_generation(location)
    if not newest:
        return None
    path = layout.driver_path(newest)
    data = location.read(path)
    if data is None:
        raise StoreError("a lease vanished.", code="bad_record", file=f"{location.url}/{path}", hint="Try again.")
    return parse_record(Lease, data, f"{location.url}/{path}")


def _newest_generation(location: Location) -> int:
    stems = (Path(name).stem for name in location.names(layout.DRIVERS))
    numbers = [int(stem) for stem in stems if stem.isdecimal()]
    return max(numbers, default=0)


def is_live(lease: Lease) -> bool:
    """Whether the driver of a lease may be at work: it has neither given it up nor let it run out, nor is it gone."""
    if lease.released or time.time() > lease.expires_at:
        return False
    if lease.host != socket.gethostname() or lease.boot_id != _boot_id():
        return True
    try:
        # A second's slack: the process table rounds.
        process = psutil.Process(lease.pid)
        is_same = abs(process.create_time() - lease.process_started) < 1.0
        # Killed and not yet reaped by its parent, as in a container without an init: it works no more.
        return is_same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _is_of(lease: Lease, holder: str) -> bool:
    return bool(holder) and lease.holder == holder


def _taken(location: Location, held: Lease | None) -> InputError:
    if held is None:
        who = "by another driver that was quicker"
    else:
        who = f"by {f'job {held.holder}, ' if held.holder else ''}process {held.pid} on {held.host}"
    return InputError(
        f"the run at {location.url} is being worked {who}.",
        code="run_has_driver",
        field="store.url",
        hint=f"Wait for it, stop it, or, if it is dead, try again in {LEASE_SECONDS:.0f} s.",
    )


def _boot_id() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else f"{psutil.boot_time():.0f}-{os.name}"
