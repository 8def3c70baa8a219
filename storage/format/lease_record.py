"""The record of a lease: a driver's permission to commit to a run."""

from __future__ import annotations

from .sealed import Record


class Lease(Record):
    """One driver's permission to commit to a run, until it releases the lease, exits or stops renewing it.

    Attributes:
        generation: Number of the lease, from 1; the highest is valid.
        host: Host name of the driver's machine.
        boot_id: Id of that machine's boot. After a reboot the process id means nothing.
        pid: Process id of the driver.
        process_started: When that process started, in seconds since the epoch. Process ids are reused.
        expires_at: When the lease ends unless it is renewed, in seconds since the epoch.
        released: Whether the driver has ended and released the lease.
        first_row_block: First row block that the driver may assign.
        end_row_block: End of that range, exclusive.
        holder: Id of the cluster job, whose restarted driver may take the lease over at once; empty for a driver that
            was started by hand.
        pid_namespace: PID namespace in which ``pid`` is the driver's, as Linux names it; empty on other platforms; None
            when it is not known, as in leases of earlier versions.
        started_after_boot_s: When that process started, in seconds since the boot, which setting the clock does not
            change; None when it is not known.
    """

    generation: int
    host: str
    boot_id: str
    pid: int
    process_started: float
    expires_at: float
    released: bool
    first_row_block: int
    end_row_block: int
    holder: str = ""
    pid_namespace: str | None = None
    started_after_boot_s: float | None = None
