"""Close the connections of s3fs filesystems: when the location that uses them is collected, at the latest at exit.

At exit s3fs waits 0.1 s for a synchronous filesystem to close, and never closes an asynchronous one, which Zarr needs.
aiohttp then prints "Unclosed client session" to the user's stderr. So this module closes both kinds itself.
"""

from __future__ import annotations

import asyncio
import atexit
import weakref
from concurrent.futures import Future, wait
from functools import cache
from typing import Any

_CLOSE_TIMEOUT_S = 5.0
"""Closing takes milliseconds, and more on a busy machine; the process must end even if a server does not answer."""

_open: dict[int, tuple[Any, asyncio.AbstractEventLoop]] = {}
_closing: set[Future[None]] = set()


def close_with(owner: object, filesystem: Any, loop: asyncio.AbstractEventLoop) -> None:
    """Close a filesystem's connections when its owner is garbage-collected, or else when the process ends.

    Args:
        owner: The object that uses the filesystem. The filesystem must not refer to it, or it is never collected.
        filesystem: An ``s3fs.S3FileSystem``.
        loop: The running event loop in which the filesystem makes its requests.
    """
    finalizer = weakref.finalize(owner, _start_closing, id(filesystem))
    # At exit ``_close_all`` closes them together and waits for them: before s3fs's finalizers give up after 0.1 s, and
    # before Zarr stops the event loop in which they close.
    finalizer.atexit = False
    _close_all_at_exit()
    _open[id(filesystem)] = (filesystem, loop)


@cache
def _close_all_at_exit() -> None:
    # atexit calls its functions in reverse order of registration. ``weakref`` registered its own hook, which runs the
    # finalizers of s3fs, when the first finalizer was made. Registered after that, ``_close_all`` runs before it.
    atexit.register(_close_all)


def _close_all() -> None:
    for key in list(_open):
        _start_closing(key)
    wait(list(_closing), _CLOSE_TIMEOUT_S)


def _start_closing(key: int) -> None:
    """Schedule the closing in the filesystem's loop, without waiting: this may run in the loop's own thread."""
    # Not in the table when ``_close_all`` closed it before its owner was collected.
    filesystem, loop = _open.pop(key, (None, None))
    if loop is not None and loop.is_running():
        closing = asyncio.run_coroutine_threadsafe(_close(filesystem), loop)
        _closing.add(closing)
        closing.add_done_callback(_closing.discard)


async def _close(filesystem: Any) -> None:
    # s3fs makes its client with the first request. Its public accessor would make one now; hence the private attribute.
    client = filesystem._s3
    if client is not None:
        await client.close()
