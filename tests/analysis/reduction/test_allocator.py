"""Threads that allocate and free share two arenas of glibc, so that freed memory is used again by others."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

COUNT_ARENAS = """
import ctypes, sys, threading
from persona_atlas.analysis.reduction.allocator import share_arenas

share_arenas()
together = threading.Barrier(20)

def allocate():
    together.wait()
    blocks = [bytearray(50_000) for _ in range(20)]
    together.wait()

threads = [threading.Thread(target=allocate) for _ in range(20)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(libc.fopen(sys.argv[1].encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have no arenas")
@pytest.mark.parametrize(("given", "most"), [(None, 2), ("4", 4)])
def test_many_threads_share_two_arenas_or_as_many_as_the_environment_says(tmp_path: Path, given: str | None, most: int):
    env = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
    if given is not None:
        env["MALLOC_ARENA_MAX"] = given
    subprocess.run([sys.executable, "-c", COUNT_ARENAS, str(tmp_path / "info.xml")], env=env, check=True)
    assert (tmp_path / "info.xml").read_text().count("<heap nr=") == most
