"""The end of S3 connections: with the location they serve, at the latest with the process.

s3fs gives those of its synchronous filesystems a tenth of a second to close when the process ends, and forgets those of
asynchronous ones, which Zarr needs; what stays open is complained of on the user's stderr. Knows s3fs and event loops,
nothing of stores.
"""

from __future__ import annotations

import asyncio
import atexit
import weakref
from concurrent.futures import Future, wait
from functools import cache
from typing import Any

_PATIENCE_S = 5.0
"""Closing takes milliseconds, more on a machine that is busy; a process must end all the same."""

_open: dict[int, tuple[Any, asyncio.AbstractEventLoop]] = {}
_closing: set[Future[None]] = set()


def close_with(owner: object, filesystem: Any, loop: asyncio.AbstractEventLoop) -> None:
    """Close a filesystem's connections when its owner is collected, or else when the process ends.

    Args:
        owner: Whom it serves; must not be referred to by the filesystem.
        filesystem: Of s3fs.
        loop: The running event loop that its requests are made in.
    """
    finalizer = weakref.finalize(owner, _begin_to_close, id(filesystem))
    # At exit they are closed together, before s3fs's own finalizers and before Zarr stops its loop.
    finalizer.atexit = False
    _close_all_at_exit()
    _open[id(filesystem)] = (filesystem, loop)


@cache
def _close_all_at_exit() -> None:
    # What is registered last is called first; the finalizers' own hook was registered by the first of them.
    atexit.register(_close_all)


def _close_all() -> None:
    for key in list(_open):
        _begin_to_close(key)
    wait(list(_closing), _PATIENCE_S)


def _begin_to_close(key: int) -> None:
    """Not waited for where a location is collected: that may be in the loop's own thread."""
    # Closed already, where the process ends before its owner does.
    filesystem, loop = _open.pop(key, (None, None))
    if loop is not None and loop.is_running():
        closing = asyncio.run_coroutine_threadsafe(_close(filesystem), loop)
        _closing.add(closing)
        closing.add_done_callback(_closing.discard)


async def _close(filesystem: Any) -> None:
    # Made with the first request; there is no public way to ask for it without making it.
    client = filesystem._s3
    if client is not None:
        await client.close()
