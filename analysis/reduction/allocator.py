"""How the C library's allocator treats memory that threads free."""

from __future__ import annotations

import ctypes
import os

_M_ARENA_MAX = -8
"""Parameter of glibc's ``mallopt``: the most arenas."""

_ARENAS = 2


def share_arenas() -> None:
    """Have glibc's allocator serve all threads from two arenas; with any other allocator, do nothing.

    By default it has up to eight for each core, and each keeps what its threads have freed: a reduction of the whole
    catalog at 80 x 8192 then has its peak at 1.2 GiB and not at 0.7. This holds for the whole process and for arenas
    that are not there yet. The environment variable ``MALLOC_ARENA_MAX`` takes its place.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None and "MALLOC_ARENA_MAX" not in os.environ:
        mallopt(_M_ARENA_MAX, _ARENAS)
