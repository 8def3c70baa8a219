"""Test whether an object store behaves as a run needs. Writes under a folder of its own and deletes it afterwards.

Leases and commit records need conditional writes. S3-compatible servers differ in whether they honour the condition,
and a proxy in front of one may drop the header. Documentation does not settle that, so processes race to create one
object, and exactly one may succeed.
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
from ...jobs.files.store_url import normal_store_url
from ...jobs.specs.store_spec import S3Access
from .location import Location, has_hard_links, open_location, open_with_wrong_secret

RACERS = 8
ROUNDS = 5
_RACE_STARTS_IN_S = 0.3
_PAYLOAD = bytes(range(256)) * 4096


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """The result of one test of an object store.

    Attributes:
        name: Stable name of the test, such as ``conditional_create``.
        holds: Whether the store passed; None where the test does not apply.
        is_needed: Whether no run can be stored without it.
        message: What was observed, in one line.
        consequence: What a failure means for a run; empty when the test passed.
    """

    name: str
    holds: bool | None
    is_needed: bool
    message: str
    consequence: str = ""


def probe_store(url: str, endpoint_url: str | None = None, access: S3Access | None = None) -> list[ProbeResult]:
    """Test an object store by writing to it, and delete what was written.

    Args:
        url: A directory or ``s3://`` URL. A run that is stored there is not touched.
        endpoint_url: URL of an S3-compatible server.
        access: How requests to a bucket are made.

    Returns:
        One result per test, those that a run needs first.

    Raises:
        InputError: The bucket does not exist, or writing is not allowed.
        TransientError: The server does not answer.
    """
    folder = f"probe-{uuid.uuid4().hex[:12]}"
    # Of the URL in its normal form: with a folder appended, one that names no bucket would name the folder.
    location = open_location(f"{normal_store_url(url).rstrip('/')}/{folder}", endpoint_url, access)
    try:
        return [
            _write_and_read(location),
            _list_after_write(location),
            _ranges(location),
            _delete(location),
            _create_is_refused(location),
            _race(location, access),
            _hard_links(location),
            _wrong_secret(location),
            _pace(location),
        ]
    finally:
        # ``location`` is the probe's own folder, so everything in it is the probe's.
        location.delete(location.sizes(""))
        location.remove_empty_folder()


def _write_and_read(location: Location) -> ProbeResult:
    location.write("written", b"first")
    location.write("written", _PAYLOAD)
    holds = location.read("written") == _PAYLOAD and location.size("written") == len(_PAYLOAD)
    return _needed("write", holds, "an overwritten object is read back at once")


def _list_after_write(location: Location) -> ProbeResult:
    seen = 0
    for number in range(20):
        location.write(f"listed/{number:02}", b"x")
        seen += len(location.names("listed")) == number + 1
    return _needed("list_after_write", seen == 20, f"a new object was listed at once {seen} times of 20")


def _ranges(location: Location) -> ProbeResult:
    holds = location.read_range("written", 1000, 300) == _PAYLOAD[1000:1300]
    with location.errors():
        suffix = sync(
            location.zarr(read_only=True).get("written", default_buffer_prototype(), SuffixByteRequest(suffix=100))
        )
    holds = holds and suffix is not None and suffix.to_bytes() == _PAYLOAD[-100:]
    return _needed("ranges", holds, "ranges of an object, and its last bytes, can be read by themselves")


def _delete(location: Location) -> ProbeResult:
    location.delete(["written"])
    holds = location.read("written") is None and "written" not in location.names("")
    return ProbeResult(
        "delete",
        holds,
        False,
        "a deleted object is gone at once",
        "" if holds else "gc may report space as freed before it is.",
    )


def _create_is_refused(location: Location) -> ProbeResult:
    first = location.create("created", b"mine")
    second = location.create("created", b"yours")
    holds = first and not second and location.read("created") == b"mine"
    return _exclusive("conditional_create", holds, "a second conditional write of an object is refused")


def _race(location: Location, access: S3Access | None) -> ProbeResult:
    # Processes, not threads: drivers do not share a connection either, and one connection could serialise the race.
    context = multiprocessing.get_context("spawn")
    fair = 0
    with ProcessPoolExecutor(RACERS, mp_context=context) as pool:
        # Round 0 only starts the processes: they import for seconds, and would not start together.
        for number in range(ROUNDS + 1):
            start_at = time.time() + (_RACE_STARTS_IN_S if number else 0.0)
            path = f"raced/{number}"
            racers = [
                pool.submit(_try_to_create, location.url, location.endpoint_url, access, path, str(racer), start_at)
                for racer in range(RACERS)
            ]
            winners = [str(racer) for racer, future in enumerate(racers) if future.result()]
            kept = location.read(path) or b""
            fair += bool(number) and len(winners) == 1 and kept.decode() == winners[0]
    message = (
        f"of {RACERS} processes that create one object at the same time, exactly one succeeds: {fair} of {ROUNDS} times"
    )
    return _exclusive("conditional_create_race", fair == ROUNDS, message)


def _try_to_create(
    url: str, endpoint_url: str | None, access: S3Access | None, path: str, name: str, start_at: float
) -> bool:
    location = open_location(url, endpoint_url, access)
    # Opens the connection before the race starts.
    location.read(path)
    time.sleep(max(0.0, start_at - time.time()))
    # When the answer to a successful PUT is lost, the client sends it again and is refused by its own object.
    return location.create(path, name.encode()) or location.read(path) == name.encode()


def _hard_links(location: Location) -> ProbeResult:
    holds = has_hard_links(location)
    if holds is None:
        return ProbeResult("hard_links", None, False, "there are no files, so no links")
    consequence = (
        "Objects are created under claim files instead. That keeps drivers apart on one machine; mounts of one share "
        "on several machines do so only if their server creates files exclusively: start one driver at a time there."
    )
    message = "files can have hard links, which create objects in one step"
    return ProbeResult("hard_links", holds, False, message, "" if holds else consequence)


def _wrong_secret(location: Location) -> ProbeResult:
    with_wrong_secret = open_with_wrong_secret(location)
    if with_wrong_secret is None:
        return ProbeResult("wrong_secret", None, False, "there is no secret key to test with")
    try:
        with_wrong_secret.read("created")
    except InputError:
        return ProbeResult("wrong_secret", True, False, "a wrong secret key is refused")
    except AtlasError as error:
        return ProbeResult("wrong_secret", None, False, f"a wrong secret key leads to another error: {error.message}")
    return ProbeResult(
        "wrong_secret",
        False,
        False,
        "a wrong secret key is accepted",
        "Anybody who can reach the server can read and change the run: restrict access to it by network.",
    )


def _pace(location: Location) -> ProbeResult:
    small = statistics.median(_seconds(lambda: location.write("small", b"x")) for _ in range(9))
    written = _seconds(lambda: location.write("large", _PAYLOAD * 8))
    read = _seconds(lambda: location.read("large"))
    size = len(_PAYLOAD) * 8 / 1e6
    speeds = f"{size:.0f} MB at {size / written:.0f} MB/s written, {size / read:.0f} MB/s read"
    message = f"a small write takes {1000 * small:.1f} ms; {speeds}"
    return ProbeResult("pace", True, False, message)


def _seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def _needed(name: str, holds: bool, message: str) -> ProbeResult:
    return ProbeResult(name, holds, True, message, "" if holds else "No run can be kept here.")


def _exclusive(name: str, holds: bool, message: str) -> ProbeResult:
    consequence = (
        "A lease is not exclusive here: a second driver is not kept out, and if two drivers work on a unit, the later "
        "commit replaces the earlier. Start one driver at a time."
    )
    return ProbeResult(name, holds, False, message, "" if holds else consequence)
