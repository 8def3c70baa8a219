"""Tell faults of the machine from wrong input: both come from the libraries that read files as ``OSError`` and others.

A file that is missing or may not be read is the user's to mend. A disk that is full or fails, memory that is exhausted
and a current directory that was removed are not, whatever was being read at the time.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from .errors import TransientError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FAULTS = (
    *_FULL,
    errno.EIO,
    errno.ENOMEM,
    errno.EMFILE,
    errno.ENFILE,
    errno.ESTALE,
    errno.ENODEV,
    errno.ENXIO,
)


def machine_fault(error: BaseException) -> TransientError | None:
    """Return what failed if a fault of the machine caused an error, directly or through other errors; else None.

    Args:
        error: The error.

    Example:
        >>> machine_fault(OSError(5, "Input/output error")).code
        'machine_fault'
        >>> machine_fault(FileNotFoundError(2, "No such file or directory", "job.yaml"))
    """
    for cause in _chain(error):
        if found := _fault(cause):
            reason, hint = found
            return TransientError(f"this machine failed: {reason}.", code="machine_fault", hint=hint)
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether exhausted memory, of this machine or of a GPU, caused an error.

    Args:
        error: The error.

    Example:
        >>> is_out_of_memory(MemoryError()), is_out_of_memory(OSError(5, "Input/output error"))
        (True, False)
    """
    return any(_is_exhaustion(cause) for cause in _chain(error))


def refuse_machine_fault(error: BaseException) -> None:
    """Raise if a fault of the machine caused an error; for handlers that would blame the input.

    Args:
        error: The error that is handled.

    Raises:
        TransientError: It did.
    """
    fault = machine_fault(error)
    if fault is not None:
        raise fault from error


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _is_exhaustion(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    # Torch, on a CPU.
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _fault(error: BaseException) -> tuple[str, str] | None:
    if _is_exhaustion(error):
        return "its memory is exhausted", "Try again when less is running on it."
    if not isinstance(error, OSError) or error.errno is None:
        return None
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in _FULL:
        return f"a disk is full{where}", "Free some space and start again."
    if error.errno in _FAULTS:
        return f"{os.strerror(error.errno)}{where}", "Try again; look at the machine's disks if it comes back."
    if isinstance(error, FileNotFoundError) and error.filename is None:
        # Only the current directory has no name.
        return "the directory that the process was started in is gone", "Start it in a directory that exists."
    return None
