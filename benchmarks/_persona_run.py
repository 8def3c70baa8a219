"""Runs of roles, traits and the default, each with a mean of its own, written without a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from persona_atlas.jobs.personas import DEFAULT_PERSONA, Kind, Polarity
from persona_atlas.jobs.work.units import WorkUnit
from persona_atlas.storage.arrays.codec import EncodedShard, encode_shard
from persona_atlas.storage.derived.scores import write_scores
from persona_atlas.storage.format import layout
from persona_atlas.storage.format.records import CommitRecord, Manifest, RunRecord, StoredObject, StoredShard
from persona_atlas.storage.format.rollout_tables import ADDRESS_ORDER, index_table
from persona_atlas.storage.locations.location import Location, open_location
from persona_atlas.storage.run.chunk_index import chunk_table, write_chunks
from persona_atlas.storage.run.index import write_index
from persona_atlas.storage.run.run_store import reserve_rows

from _made_record import made_record

ARRAY = ("resid_post", "response_mean")
_QUESTIONS = 240
"""Questions of a prompt: those of the built-in catalog. Units divide them without rest."""
_SCORES = {
    ("role", "pos"): [3, 3, 2, 3, 1, 0, 3, 2],
    ("trait", "pos"): [95, 80, 65, 90, 40, 85, 75, 60],
    ("trait", "neg"): [5, 30, 10, 50, 20, 10, 0, 40],
}
Address = tuple[Kind, str, Polarity]


@dataclass(frozen=True, slots=True)
class PersonaShape:
    """Size of a run.

    Attributes:
        roles: Number of roles.
        traits: Number of traits, each of two polarities.
        units: Number of units of each persona and polarity.
        rollouts: Number of rollouts of each unit.
        layers: Number of captured layers.
        d_model: Width of the residual stream.
    """

    roles: int
    traits: int
    units: int
    rollouts: int
    layers: int
    d_model: int

    def __str__(self) -> str:
        return (
            f"{len(self.personas)} personas of {self.units} units of {self.rollouts} x {self.layers} x {self.d_model}"
        )

    @property
    def personas(self) -> list[Address]:
        """Kind, name and polarity of every persona."""
        found: list[Address] = [("default", DEFAULT_PERSONA, "pos")]
        for number in range(self.roles):
            found.append(("role", f"role{number:03d}", "pos"))
        for number in range(self.traits):
            found.append(("trait", f"trait{number:03d}", "neg"))
            found.append(("trait", f"trait{number:03d}", "pos"))
        return found

    @property
    def num_values(self) -> int:
        """Values of the whole run."""
        return len(self.personas) * self.units * self.rollouts * self.layers * self.d_model


class PersonaRun:
    """A run that is written unit by unit.

    Args:
        url: Empty directory.
        shape: Size of the run.
        spare: Units of each persona that are planned and not written at first.

    Attributes:
        location: The store.
        shape: Size of the run.
    """

    def __init__(self, url: str, shape: PersonaShape, spare: int = 2) -> None:
        self.location: Location = open_location(url)
        self.shape = shape
        self._per_persona = shape.units + spare
        self._record = _record(shape, self._per_persona)
        self._manifests: list[Manifest] = []
        self._last: tuple[Path, bytes] | None = None
        self.location.write(layout.RUN_RECORD, self._record.to_bytes())
        reserve_rows(self.location, self._record, self._per_persona * len(shape.personas))
        for number in range(len(shape.personas)):
            self._write_units(number, range(shape.units))
        self._write_tables()

    def shard(self, persona: int) -> EncodedShard:
        """Encode the shard that all units of a persona have."""
        encoded = encode_shard(self.values(persona), self.shape.rollouts, 10)
        assert encoded is not None
        return encoded

    def values(self, persona: int) -> npt.NDArray[np.float32]:
        """Draw the values of one unit; every coordinate has its own mean and width, and every persona its own mean."""
        shape, common, own = self.shape, np.random.default_rng(1), np.random.default_rng(100 + persona)
        widths_D = np.exp(common.standard_normal(shape.d_model))
        means_D = 2 * widths_D * common.standard_normal(shape.d_model)
        shift_LD = 0.3 * widths_D * own.standard_normal((shape.layers, shape.d_model))
        noise_BLD = own.standard_normal((shape.rollouts, shape.layers, shape.d_model), dtype=np.float32)
        return (noise_BLD * widths_D + means_D + shift_LD).astype(np.float32)

    def add(self, persona: int, units: range) -> None:
        """Write and commit units of one persona, and bring the index up to date.

        Args:
            persona: Number of the persona.
            units: Numbers of the units, below those that are planned.
        """
        self._write_units(persona, units)
        self._write_tables()

    def _write_units(self, persona: int, units: range) -> None:
        kind, name, side = self.shape.personas[persona]
        encoded = self.shard(persona)
        size = self.shape.rollouts
        for number in units:
            row_block = persona * self._per_persona + number
            # As in a real run, each prompt of a persona is asked the same questions.
            prompt, begin = divmod(number * size, _QUESTIONS)
            questions = tuple(range(begin, begin + size))
            unit_id = f"{kind}.{name}.{side}.p{prompt}.b{begin // size}"
            unit = WorkUnit.of_questions(unit_id, kind, name, side, prompt, questions, 1)
            path = layout.shard_path(*ARRAY, row_block)
            self._write_shard(path, encoded.data)
            shard = StoredShard(
                path=path,
                num_bytes=len(encoded.data),
                sha256=f"{row_block:064x}",
                hook_point=ARRAY[0],
                pooling=ARRAY[1],
                chunk_bytes=encoded.chunk_bytes,
            )
            texts = StoredObject(path=layout.rollouts_path(unit_id, row_block), num_bytes=1, sha256=f"{row_block:064x}")
            manifest = Manifest(
                unit=unit,
                attempt=1,
                row_block=row_block,
                texts=texts,
                blocks=(shard,),
                prompt_tokens=(60,) * size,
                content_tokens=(200,) * size,
                finish_reasons=("stop",) * size,
                worker="benchmark",
                seconds=1.0,
            )
            self._manifests.append(manifest)
            record = CommitRecord.of(manifest, generation=1, committed_at="2026-01-01T00:00:00+00:00")
            self.location.write(layout.commit_path(unit_id), record.to_bytes())

    def judge(self, judge: str, turn: int = 0, only: str = "") -> int:
        """Score rollouts so that every class of scores has some.

        Args:
            judge: Name of the judge.
            turn: Shifts the scores from one rollout to the next, so that another turn has other ones.
            only: Name of the role or trait to score; empty: all but the default.

        Returns:
            The number of rollouts that were scored.
        """
        scored = 0
        for manifest in self._manifests:
            unit = manifest.unit
            if unit.kind == "default" or (only and unit.persona != only):
                continue
            begin = manifest.row_block * self._record.rows_per_block
            scores = np.roll(_SCORES[unit.kind, unit.polarity], turn)
            rows = range(begin, begin + self.shape.rollouts)
            write_scores(self.location, judge, unit.unit_id, rows, np.resize(scores, len(rows)).tolist())
            scored += len(rows)
        return scored

    def _write_shard(self, path: str, data: bytes) -> None:
        """Write a shard, or link it to the last one that has the same bytes: a large run then takes little space."""
        if self._last is not None and self._last[1] == data:
            target = Path(self.location.url) / path
            target.parent.mkdir(parents=True)
            target.hardlink_to(self._last[0])
            return
        self.location.write(path, data)
        self._last = Path(self.location.url) / path, data

    def _write_tables(self) -> None:
        write_chunks(self.location, chunk_table(self._manifests))
        table = index_table(self._manifests, self._record.rows_per_block).sort_by(ADDRESS_ORDER)
        write_index(self.location, self._record, table)


def _record(shape: PersonaShape, per_persona: int) -> RunRecord:
    return made_record(
        layers=shape.layers,
        d_model=shape.d_model,
        units=per_persona * len(shape.personas),
        rollouts=shape.rollouts,
    )
