"""What Ray prints and raises, as people are shown it."""

from __future__ import annotations

import io

import pytest
from persona_atlas.cluster.ray_text import PlainStream, one_line, plain

FIRST = "The node with node id: 3f9a and address: 10.0.0.7 has been marked dead."
DUMP = (
    f"\x1b[33m(raylet)\x1b[0m {FIRST}\n\t(1) raylet crashes unexpectedly (OOM, etc.)\n"
    "\t(2) raylet has lagging heartbeats.\nPID\tMEM\tCOMMAND\n1\t2\tinit\n"
)
DIED = """The actor died unexpectedly before finishing this task.
	class_name: UnitActor
	actor_id: 7d1e
	pid: 4117
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR
"""
FAILED_TO_BEGIN = (
    "The actor died because of an error raised in its creation task, \x1b[36mray::UnitActor.__init__()\x1b[39m\n"
    '  File "ray_worker.py", line 31, in __init__\n'
    "ImportError: there is no module of that name\n"
)


def test_the_text_of_a_lost_worker_is_one_line_without_ids():
    assert one_line(DIED) == (
        "The actor died unexpectedly before finishing this task. The actor is dead because its worker process has "
        "died. Worker exit type: SYSTEM_ERROR"
    )


@pytest.mark.parametrize("begin", ["", "\x1b[36mray::UnitActor.prepare()\x1b[39m (pid=7)\n"])
def test_of_a_traceback_the_error_is_kept(begin: str):
    text = f'{begin}Traceback (most recent call last):\n  File "x.py", line 3, in f\nImportError: no module x\n'
    assert one_line(text) == "ImportError: no module x"


def test_of_a_worker_that_could_not_begin_the_error_is_kept():
    assert one_line(FAILED_TO_BEGIN) == (
        "The actor died because of an error raised in its creation task, ImportError: there is no module of that name"
    )


def test_a_long_text_is_cut():
    assert len(one_line("word " * 1000)) == 500
    assert one_line("") == ""


def test_a_dump_is_passed_on_as_its_first_line_and_other_text_whole():
    passed = io.StringIO()
    stream = PlainStream(passed)
    print(DUMP, file=stream)
    print("\x1b[1mbold\x1b[0m\nand more", file=stream)
    stream.flush()
    assert passed.getvalue().splitlines() == [
        f"(raylet) {FIRST}",
        "",
        "bold",
        "and more",
    ]
    assert "\x1b" not in plain(DUMP)
