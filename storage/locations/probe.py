"""Try what an object store really does, before a job stands on it. Writes under a name of its own and cleans up.

Stores differ in what they do with a conditional write, and some SDKs and proxies between change it again; a lease
and a commit record stand on it. So it is tried, by processes that race, and not looked up.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from zarr.abc.store import SuffixByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from ...jobs.errors import AtlasError, InputError
from .location import Location, open_location, open_with_wrong_secret

RACERS = 8
ROUNDS = 5
_RACE_BEGINS_IN_S = 0.3
_BLOCK = bytes(range(256)) * 4096


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was tried.

    Attributes:
        name: A stable word for it.
        holds: Whether the store does it; None where it cannot be seen.
        is_needed: Whether a run cannot be kept without it.
        what: What was seen.
        consequence: What follows when it does not hold; empty when it does.
    """

    name: str
    holds: bool | None
    is_needed: bool
    what: str
    consequence: str = ""


def probe_store(url: str, endpoint_url: str | None = None) -> list[Finding]:
    """Try a store.

    Args:
        url: A directory or ``s3://`` URL; may hold a run, which is left alone.
        endpoint_url: Of an S3-compatible server.

    Returns:
        What was found, the needed things first.

    Raises:
        InputError: There is no such place, or it may not be written.
        TransientError: It does not answer.
    """
    folder = f"probe-{uuid.uuid4().hex[:12]}"
    location = open_location(f"{url.rstrip('/')}/{folder}", endpoint_url)
    try:
        return [
            _write_and_read(location),
            _list_after_write(location),
            _ranges(location),
            _delete(location),
            _create_is_refused(location),
            _race(location),
            _wrong_secret(location),
            _pace(location),
        ]
    finally:
        # What is left here is the probe's own.
        location.delete(location.sizes(""))
        location.remove_empty_folder()


def _write_and_read(location: Location) -> Finding:
    location.write("written", b"first")
    location.write("written", _BLOCK)
    holds = location.read("written") == _BLOCK and location.size("written") == len(_BLOCK)
    return _needed("write", holds, "what was written over an object is read back at once")


def _list_after_write(location: Location) -> Finding:
    seen = 0
    for number in range(20):
        location.write(f"listed/{number:02}", b"x")
        seen += len(location.names("listed")) == number + 1
    return _needed("list_after_write", seen == 20, f"a new object was listed at once {seen} times of 20")


def _ranges(location: Location) -> Finding:
    holds = location.read_range("written", 1000, 300) == _BLOCK[1000:1300]
    with location.errors():
        suffix = sync(
            location.zarr(read_only=True).get("written", default_buffer_prototype(), SuffixByteRequest(suffix=100))
        )
    holds = holds and suffix is not None and suffix.to_bytes() == _BLOCK[-100:]
    return _needed("ranges", holds, "parts of an object, and its end, are read alone")


def _delete(location: Location) -> Finding:
    location.delete(["written"])
    holds = location.read("written") is None and "written" not in location.names("")
    return Finding(
        "delete",
        holds,
        False,
        "a deleted object is gone at once",
        "" if holds else "gc may report space as freed before it is.",
    )


def _create_is_refused(location: Location) -> Finding:
    first = location.create("created", b"mine")
    second = location.create("created", b"yours")
    holds = first and not second and location.read("created") == b"mine"
    return _exclusive("conditional_create", holds, "an object that is there is not created again")


def _race(location: Location) -> Finding:
    # Processes, not threads: what races in earnest shares no connection.
    context = multiprocessing.get_context("spawn")
    fair = 0
    with ProcessPoolExecutor(RACERS, mp_context=context) as pool:
        # The first round starts the processes and is not counted.
        for number in range(ROUNDS + 1):
            start_at = time.time() + (_RACE_BEGINS_IN_S if number else 0.0)
            path = f"raced/{number}"
            racers = [
                pool.submit(_try_to_create, location.url, location.endpoint_url, path, str(racer), start_at)
                for racer in range(RACERS)
            ]
            winners = [str(racer) for racer, future in enumerate(racers) if future.result()]
            kept = location.read(path) or b""
            fair += bool(number) and len(winners) == 1 and kept.decode() == winners[0]
    what = f"of {RACERS} processes that created one object at once, exactly one did: {fair} times of {ROUNDS}"
    return _exclusive("conditional_create_race", fair == ROUNDS, what)


def _try_to_create(url: str, endpoint_url: str | None, path: str, name: str, start_at: float) -> bool:
    location = open_location(url, endpoint_url)
    # Opens the connection before the start.
    location.read(path)
    time.sleep(max(0.0, start_at - time.time()))
    # Refused by our own object when the first answer was lost.
    return location.create(path, name.encode()) or location.read(path) == name.encode()


def _wrong_secret(location: Location) -> Finding:
    stranger = open_with_wrong_secret(location)
    if stranger is None:
        return Finding("wrong_secret", None, False, "there is no secret to get wrong")
    try:
        stranger.read("created")
    except InputError:
        return Finding("wrong_secret", True, False, "a wrong secret is refused")
    except AtlasError as error:
        return Finding("wrong_secret", None, False, f"a wrong secret ended in another error: {error.message}")
    return Finding(
        "wrong_secret",
        False,
        False,
        "a wrong secret is let in",
        "Whoever reaches the server reads and writes the run: let nobody reach it but those who should.",
    )


def _pace(location: Location) -> Finding:
    small = statistics.median(_seconds(lambda: location.write("small", b"x")) for _ in range(9))
    written = _seconds(lambda: location.write("large", _BLOCK * 8))
    read = _seconds(lambda: location.read("large"))
    size = len(_BLOCK) * 8 / 1e6
    speeds = f"{size:.0f} MB at {size / written:.0f} MB/s out, {size / read:.0f} in"
    what = f"a small write takes {1000 * small:.1f} ms; {speeds}"
    return Finding("pace", True, False, what)


def _seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def _needed(name: str, holds: bool, what: str) -> Finding:
    return Finding(name, holds, True, what, "" if holds else "No run can be kept here.")


def _exclusive(name: str, holds: bool, what: str) -> Finding:
    consequence = (
        "A lease does not hold here: nothing keeps a second driver out, and a unit that two drivers work may be "
        "committed twice, the later over the earlier. Start one driver at a time."
    )
    return Finding(name, holds, False, what, "" if holds else consequence)
