"""Runs of a realistic shape, written with the store's own functions but without a model.

Random values are drawn so that they compress like real activations. A few shards are encoded and written many times
under different names, which makes no difference to a server. Axes: B rollouts of a unit, L layers, D d_model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import numpy.typing as npt
from persona_atlas.jobs.work.units import WorkUnit
from persona_atlas.storage.arrays.codec import EncodedShard, encode_shard
from persona_atlas.storage.format import layout
from persona_atlas.storage.format.planned_units import encode_units
from persona_atlas.storage.format.records import CommitRecord, Manifest, RunRecord, StoredObject, StoredShard
from persona_atlas.storage.format.rollout_tables import ADDRESS_ORDER, index_table
from persona_atlas.storage.locations.location import Location, open_location
from persona_atlas.storage.run.chunk_index import chunk_table, write_chunks
from persona_atlas.storage.run.index import write_index
from persona_atlas.storage.run.run_store import reserve_rows

from _made_record import made_record

ARRAY = ("resid_post", "response_mean")
_PARALLEL_WRITES = 16
_PROMPTS = 5
"""Prompts, and so units, of one role."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Size of a run.

    Attributes:
        units: Number of committed units.
        rollouts: Number of rollouts of each unit.
        layers: Number of captured layers.
        d_model: Width of the residual stream.
    """

    units: int
    rollouts: int
    layers: int
    d_model: int

    def __str__(self) -> str:
        return f"{self.units} units of {self.rollouts} x {self.layers} x {self.d_model}"


def record_of(shape: Shape, planned: int | None = None) -> RunRecord:
    """Make the record of a run.

    Args:
        shape: Size of the run.
        planned: Number of planned units; None: as many as are committed.
    """
    units = planned or shape.units
    planned_units = encode_units(unit_of(shape, number) for number in range(units))
    return made_record(
        layers=shape.layers,
        d_model=shape.d_model,
        units=units,
        rollouts=shape.rollouts,
        units_sha256=sha256(planned_units).hexdigest(),
    )


def unit_of(shape: Shape, number: int) -> WorkUnit:
    """Make a planned unit; five units are of one role."""
    role, prompt = f"role{number // _PROMPTS:05d}", number % _PROMPTS
    unit_id = f"role.{role}.pos.p{prompt}.b0"
    return WorkUnit.of_questions(unit_id, "role", role, "pos", prompt, tuple(range(shape.rollouts)), 1)


def write_record(location: Location, shape: Shape, planned: int | None = None) -> RunRecord:
    """Write the record of a run and its list of planned units.

    Args:
        location: The store.
        shape: Size of the run.
        planned: Number of planned units; None: as many as are committed.
    """
    record = record_of(shape, planned)
    units = encode_units(unit_of(shape, number) for number in range(record.num_units))
    location.write(layout.units_path(record.units_sha256), units)
    location.write(layout.RUN_RECORD, record.to_bytes())
    return record


def commits_of(shape: Shape, shards: list[EncodedShard]) -> list[CommitRecord]:
    """Make the commit records of a run, with five units per role and random token counts.

    Args:
        shape: Size of the run.
        shards: Encoded shards, used in turn by the units.
    """
    random = np.random.default_rng(0)
    records: list[CommitRecord] = []
    for number in range(shape.units):
        unit = unit_of(shape, number)
        unit_id = unit.unit_id
        encoded = shards[number % len(shards)]
        shard = StoredShard(
            path=layout.shard_path(*ARRAY, number),
            num_bytes=len(encoded.data),
            sha256=f"{number:064x}",
            hook_point=ARRAY[0],
            pooling=ARRAY[1],
            chunk_bytes=encoded.chunk_bytes,
        )
        manifest = Manifest(
            unit=unit,
            attempt=1,
            row_block=number,
            texts=StoredObject(path=layout.rollouts_path(unit_id, number), num_bytes=1, sha256=f"{number:064x}"),
            blocks=(shard,),
            prompt_tokens=tuple(random.integers(40, 90, shape.rollouts).tolist()),
            content_tokens=tuple(random.integers(20, 512, shape.rollouts).tolist()),
            finish_reasons=("stop",) * shape.rollouts,
            worker="benchmark",
            seconds=1.0,
        )
        records.append(CommitRecord.of(manifest, generation=1, committed_at="2026-01-01T00:00:00+00:00"))
    return records


def random_shards(shape: Shape, distinct: int = 4) -> list[EncodedShard]:
    """Encode shards of random values; every coordinate has its own mean and width, as in a residual stream.

    Args:
        shape: Size of the run.
        distinct: Number of different shards.
    """
    random = np.random.default_rng(1)
    widths_D = np.exp(random.standard_normal(shape.d_model))
    means_D = 2 * widths_D * random.standard_normal(shape.d_model)
    shards: list[EncodedShard] = []
    for _ in range(distinct):
        noise_BLD = random.standard_normal((shape.rollouts, shape.layers, shape.d_model), dtype=np.float32)
        values_BLD: npt.NDArray[np.float32] = (noise_BLD * widths_D + means_D).astype(np.float32)
        encoded = encode_shard(values_BLD, shape.rollouts, 10)
        assert encoded is not None
        shards.append(encoded)
    return shards


def write_run(url: str, shape: Shape, shards: list[EncodedShard]) -> tuple[Location, list[CommitRecord]]:
    """Write a complete run with its index: record, arrays, shards, commit records, but no texts.

    Args:
        url: Empty store.
        shape: Size of the run.
        shards: Encoded shards, used in turn by the units.

    Returns:
        The store, and the commit records.
    """
    location = open_location(url)
    record = write_record(location, shape)
    commits = commits_of(shape, shards)
    reserve_rows(location, record, shape.units)
    in_parallel(
        lambda c: location.write(c.manifest.blocks[0].path, shards[c.manifest.row_block % len(shards)].data), commits
    )
    write_commits(location, commits)
    write_tables(location, record, commits)
    return location, commits


def write_commits(location: Location, commits: Iterable[CommitRecord]) -> None:
    """Write commit records, many at a time."""
    in_parallel(lambda c: location.write(layout.commit_path(c.manifest.unit_id), c.to_bytes()), commits)


def write_tables(location: Location, record: RunRecord, commits: list[CommitRecord]) -> None:
    """Write both index files: rollouts and chunk lengths."""
    manifests = [commit.manifest for commit in commits]
    write_chunks(location, chunk_table(manifests))
    write_index(location, record, index_table(manifests, record.rows_per_block).sort_by(ADDRESS_ORDER))


def in_parallel(task: Callable[[CommitRecord], None], commits: Iterable[CommitRecord]) -> None:
    """Call a task for each commit record, many at a time."""
    with ThreadPoolExecutor(_PARALLEL_WRITES) as pool:
        for _ in pool.map(task, commits):
            pass
