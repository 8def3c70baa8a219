"""Measure reading a run, in comparison with plain ranged requests to the same server.

    python benchmarks/query.py [--quick] [--json]

The server is moto's, which is started here, or that of ``ATLAS_TEST_S3``, as under ``tests/with_radosgw.sh``.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import zarr
from persona_atlas.storage.arrays.codec import decode_chunk
from persona_atlas.storage.format import layout
from persona_atlas.storage.format.records import CommitRecord
from persona_atlas.storage.locations.location import Location, open_location
from persona_atlas.storage.query.reader import PARALLEL_REQUESTS
from persona_atlas.storage.query.run import open_run
from persona_atlas.storage.run.lease import acquire
from persona_atlas.storage.run.recent import write_recent

from _large_run import (
    ARRAY,
    Shape,
    commits_of,
    random_shards,
    write_commits,
    write_record,
    write_run,
    write_tables,
)
from _report import Report, Timed, interleaved, median_ratio
from _server import Wire, s3_server, server_name


@dataclass(frozen=True, slots=True)
class Ranges:
    """Byte ranges of one layer of a run.

    Attributes:
        url: Store of the run.
        shape: Size of the run.
        layer: Position of the layer in the shards.
        paths: Path of each unit's shard.
        starts: First byte of the layer in each shard.
        lengths: Bytes of the layer in each shard.
    """

    url: str
    shape: Shape
    layer: int
    paths: list[str]
    starts: list[int]
    lengths: list[int]

    @classmethod
    def of(cls, url: str, shape: Shape, layer: int, commits: Sequence[CommitRecord]) -> Ranges:
        """Compute the ranges from commit records."""
        shards = [commit.manifest.blocks[0] for commit in commits]
        return cls(
            url,
            shape,
            layer,
            [shard.path for shard in shards],
            [sum(shard.chunk_bytes[:layer]) for shard in shards],
            [shard.chunk_bytes[layer] for shard in shards],
        )

    @property
    def num_bytes(self) -> int:
        """Compressed bytes of the layer."""
        return sum(self.lengths)


def one_role_one_layer(report: Report, url: str, shape: Shape, commits: Sequence[CommitRecord]) -> None:
    """Compare the bytes that a query of one role and layer fetches with those it needs."""
    layer = shape.layers // 2
    mine = [commit for commit in commits if commit.manifest.unit.persona == "role00001"]
    needed = Ranges.of(url, shape, layer, mine).num_bytes
    with Wire() as opening:
        run = open_run(url)
        query = run.query(persona="role00001", layer=layer)
    with Wire() as reading:
        query.read()
    with_opening = reading.received_bytes + opening.received_bytes
    name = f"bytes for one role of {len(mine)} units, one layer, of those needed"
    report.most(name, reading.received_bytes / needed, "ratio", 1.3)
    report.most(f"{name}, opening the run counted in", with_opening / needed, "ratio")
    report.most("requests for it", reading.requests, "requests")


def opening(report: Report, url: str, units: int, repeats: int) -> None:
    """Open a run of many units: complete, incomplete (missing commits are listed), and with a stale index."""
    shape = Shape(units, 48, 30, 576)
    location = open_location(url)
    record = write_record(location, shape)
    shards = random_shards(replace(shape, rollouts=2), 1)
    began = time.perf_counter()
    commits = commits_of(shape, shards)
    write_commits(location, commits)
    write_tables(location, record, commits)
    report.say(f"Wrote {units} commit records and the index in {time.perf_counter() - began:.0f} s.")
    name = f"opening {units} units"
    _opened(report, f"{name}, complete", url, repeats, limits=(5, 2.0))
    record = write_record(location, shape, planned=units + 100)
    _opened(report, f"{name}, partial", url, repeats, limits=(25, 2.0))
    # As while a driver works: every hundredth unit is late, all over the plan.
    late = commits[::100]
    write_tables(location, record, [commit for place, commit in enumerate(commits) if place % 100])
    with acquire(location, 1) as lease:
        write_recent(location, record, lease.generation, late)
        _opened(report, f"{name}, index {len(late)} units behind", url, min(repeats, 3), limits=(25, 2.0))
    # Units that are not made yet lie all over the plan: with a driver at work, and after it, when all is listed.
    location.delete([layout.commit_path(commit.manifest.unit_id) for commit in late])
    with acquire(location, 1) as lease:
        write_recent(location, record, lease.generation, [])
        _opened(report, f"{name}, {len(late)} not made yet", url, min(repeats, 3), limits=(25, 2.0))
    _opened(report, f"{name}, {len(late)} never made", url, min(repeats, 3))
    write_commits(location, late)
    # As after it: those that ended last.
    late = commits[-len(late) :]
    write_tables(location, record, commits[: -len(late)])
    with acquire(location, 1) as lease:
        write_recent(location, record, lease.generation, late)
        _opened(report, f"{name}, its last {len(late)} units behind", url, min(repeats, 3), limits=(25, 2.0))


def _opened(
    report: Report, name: str, url: str, repeats: int, limits: tuple[float | None, float | None] = (None, None)
) -> None:
    timed = Timed()
    requests = 0
    for _ in range(repeats):
        with Wire() as wire:
            timed.add(lambda: (run := open_run(url)).completeness.done == run.index.num_rows)
        requests = wire.requests
    report.most(f"{name}: requests", requests, "requests", limits[0])
    report.most(f"{name}: time", statistics.median(timed.seconds), "s", limits[1])
    report.most(f"{name}: processor time of the reader", statistics.median(timed.processor_s), "s")


def one_layer(report: Report, url: str, shape: Shape, commits: Sequence[CommitRecord], repeats: int) -> None:
    """Read one layer of a whole run with every reader, and report their throughput."""
    ranges = Ranges.of(url, shape, shape.layers // 2, commits)
    run = open_run(url)
    assert run.completeness.is_complete
    warm = run.query(layer=ranges.layer)
    location = open_location(url)
    readers: dict[str, Callable[[], object]] = {
        "raw ranged GETs, s3fs": raw_reader(ranges),
        "raw ranged GETs, boto3": raw_reader_boto3(ranges),
        "Query.read, open run": lambda: warm.read(),
        "Query.read, run just opened": partial(_open_and_read, url, ranges.layer),
        "zarr oindex": partial(zarr_reader, location, ranges),
        "whole objects": partial(whole_reader, location, ranges),
    }
    _require_equal(warm.read().values, zarr_reader(location, ranges))
    timed = interleaved(readers, repeats)
    raw = timed["raw ranged GETs, s3fs"]
    rows = [_reader_row(reader, rounds, raw, ranges.num_bytes) for reader, rounds in timed.items()]
    title = f"One layer of {shape}, {ranges.num_bytes / 1e6:.0f} MB compressed, {server_name()}"
    report.table(title, ("reader", "s", "MB/s", "of raw", "processor s"), rows)
    name = f"one layer of {shape}: throughput of"
    for reader, floor in (("Query.read, open run", 0.7), ("zarr oindex", None), ("whole objects", None)):
        ratio = median_ratio(raw.seconds, timed[reader].seconds)
        report.least(f"{name} {reader}, of raw ranged GETs", ratio, "ratio", floor)


def _reader_row(reader: str, rounds: Timed, raw: Timed, num_bytes: int) -> tuple[str, ...]:
    median_s = statistics.median(rounds.seconds)
    return (
        reader,
        f"{median_s:.3f}",
        f"{num_bytes / 1e6 / median_s:.0f}",
        f"{median_ratio(raw.seconds, rounds.seconds):.2f}",
        f"{statistics.median(rounds.processor_s):.3f}",
    )


def _require_equal(ours: np.ndarray, theirs: np.ndarray) -> None:
    if not np.array_equal(ours, theirs):
        raise RuntimeError("two readers disagree")


def _open_and_read(url: str, layer: int) -> None:
    open_run(url).query(layer=layer).read()


def raw_reader(ranges: Ranges) -> Callable[[], None]:
    """Make a function that fetches the ranges with s3fs, as the store does, and discards the bytes."""
    import s3fs

    fs: Any = s3fs.S3FileSystem(
        endpoint_url=os.environ["AWS_ENDPOINT_URL"], use_listings_cache=False, skip_instance_cache=True
    )
    root = ranges.url.removeprefix("s3://")

    def fetch(path: str, start: int, length: int) -> None:
        assert len(fs.cat_file(f"{root}/{path}", start=start, end=start + length)) == length

    return partial(_in_threads, fetch, ranges)


def raw_reader_boto3(ranges: Ranges) -> Callable[[], None]:
    """Make a function that fetches the ranges with boto3, one connection per thread, and discards the bytes."""
    import boto3
    from botocore.config import Config

    client: Any = boto3.client(
        "s3",
        endpoint_url=os.environ["AWS_ENDPOINT_URL"],
        region_name="us-east-1",
        config=Config(max_pool_connections=PARALLEL_REQUESTS),
    )
    bucket, _, prefix = ranges.url.removeprefix("s3://").partition("/")

    def fetch(path: str, start: int, length: int) -> None:
        part = f"bytes={start}-{start + length - 1}"
        response = client.get_object(Bucket=bucket, Key=f"{prefix}/{path}", Range=part)
        assert len(response["Body"].read()) == length

    return partial(_in_threads, fetch, ranges)


def _in_threads(fetch: Callable[[str, int, int], None], ranges: Ranges) -> None:
    with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
        for _ in pool.map(fetch, ranges.paths, ranges.starts, ranges.lengths):
            pass


def zarr_reader(location: Location, ranges: Ranges) -> np.ndarray:
    """Read the layer through Zarr alone, with as many requests in flight."""
    shape = ranges.shape
    with zarr.config.set({"async.concurrency": PARALLEL_REQUESTS}):
        array: Any = zarr.open_array(location.zarr(read_only=True), path=layout.array_path(*ARRAY), mode="r")
        return np.asarray(array.oindex[np.arange(shape.units * shape.rollouts), ranges.layer, :])


def whole_reader(location: Location, ranges: Ranges) -> np.ndarray:
    """Read the layer by fetching whole shards, in as many threads."""
    shape = ranges.shape
    values_UBD = np.empty((shape.units, shape.rollouts, shape.d_model), np.float32)

    def fetch(number: int, path: str, start: int, length: int) -> None:
        data = location.read(path)
        assert data is not None
        values_UBD[number] = decode_chunk(data[start : start + length], shape.rollouts, shape.d_model)

    with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
        for _ in pool.map(fetch, range(shape.units), ranges.paths, ranges.starts, ranges.lengths):
            pass
    return values_UBD


def main() -> int:
    """Measure everything.

    Returns:
        The exit status: 1 if a figure does not meet its floor.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    parser.add_argument("--quick", action="store_true", help="smaller runs, fewer repeats")
    options = parser.parse_args()
    report = Report(options.json)
    # s3fs does not close the connections of its filesystems, and asyncio logs that when they are collected.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    repeats = 3 if options.quick else 7
    small = Shape(40 if options.quick else 120, 240, 30, 576)
    wide = Shape(16 if options.quick else 48, 48, 4, 8192)
    with s3_server() as bucket:
        for name, shape in (("small", small), ("wide", wide)):
            shards = random_shards(shape)
            values = shape.rollouts * shape.layers * shape.d_model
            report.say(f"{shape}: {len(shards[0].data) / values:.2f} bytes per value.")
            _, commits = write_run(f"{bucket}/{name}", shape, shards)
            if name == "small":
                one_role_one_layer(report, f"{bucket}/{name}", shape, commits)
            one_layer(report, f"{bucket}/{name}", shape, commits, repeats)
        opening(report, f"{bucket}/many", 2_000 if options.quick else 20_000, repeats)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
