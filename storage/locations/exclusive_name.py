"""Give a complete file its name, unless the name is taken: the conditional write of directories.

A hard link does so in one step. File systems without links (exFAT, many FUSE and SMB mounts) get it in three: a claim
file, created with ``O_EXCL``, keeps others out while it is checked that the name is free and the file is renamed. A
reader sees the whole file or none in both. What is weaker without links: a process that is stopped within these steps
for longer than ``STALE_CLAIM_S`` may afterwards replace a file that another created meanwhile.
"""

from __future__ import annotations

import errno
import os
import time
import uuid
from contextlib import suppress
from pathlib import Path

STALE_CLAIM_S = 30.0
"""Age at which a claim is taken for that of a process that died; the steps that it covers take milliseconds."""

_POLL_S = 0.01

_NO_LINKS = {
    errno.EPERM,
    errno.EACCES,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.ENOSYS,
    errno.EMLINK,
    errno.EXDEV,
}
"""What file systems answer that have no hard links. The file was just written beside its name, so rights are not it."""


def give_name(temporary: Path, target: Path) -> bool:
    """Rename a complete file to a name that is free, and return whether it was; the file is gone afterwards.

    Args:
        temporary: The file, in the target's directory.
        target: The name it gets.

    Raises:
        OSError: The file system failed.
    """
    try:
        # Not ``rename``, which would replace an existing file: two drivers that create one lease at the same time would
        # both succeed. ``link`` gives the complete file its name, or fails if the name is taken.
        os.link(temporary, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return _name_under_claim(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def has_hard_links(folder: Path) -> bool:
    """Whether files of an existing, writable directory can have hard links."""
    file, link = (folder / f".probe.{uuid.uuid4().hex}.part" for _ in range(2))
    try:
        file.touch()
        os.link(file, link)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return False
    finally:
        file.unlink(missing_ok=True)
        link.unlink(missing_ok=True)
    return True


def _name_under_claim(temporary: Path, target: Path) -> bool:
    # Named like a temporary file, so that one left by a crash is found by ``gc`` and makes no directory a used one.
    claim = target.with_name(f".{target.name}.{'0' * 32}.part")
    while not _claimed(claim):
        if target.exists():
            return False
        time.sleep(_POLL_S)
        _discard_if_stale(claim)
    try:
        if target.exists():
            return False
        temporary.replace(target)
        return True
    finally:
        claim.unlink(missing_ok=True)


def _claimed(claim: Path) -> bool:
    try:
        os.close(os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    return True


def _discard_if_stale(claim: Path) -> None:
    with suppress(FileNotFoundError):
        # Both times are the file system's own: its clock may not be this machine's.
        age_s = _now_of(claim.parent) - claim.stat().st_mtime
        if age_s > STALE_CLAIM_S:
            # Of several that find it stale, one can rename it; the others must not delete the claim that follows.
            dead = claim.with_name(f"{claim.name.removesuffix('.part')[:-32]}{uuid.uuid4().hex}.part")
            claim.rename(dead)
            dead.unlink()


def _now_of(folder: Path) -> float:
    """Return the time that a directory's file system gives to a new file."""
    file = folder / f".clock.{uuid.uuid4().hex}.part"
    file.touch()
    try:
        return file.stat().st_mtime
    finally:
        file.unlink()
