"""Check one committed unit: its record against the plan, its objects against the record, their content against both.

Axes: C inner chunks of a layer, R rows of an inner chunk, D d_model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from ...jobs.errors import StoreError
from ...jobs.poolings import POOLINGS
from ...jobs.specs.spec_parts import CanarySpec
from ...jobs.work.canary_rows import MOST_ROUNDING, can_be_compared, canary_draw, due_rows
from ...jobs.work.rollouts import Canary
from ...jobs.work.units import WorkUnit
from ..arrays.codec import decode_chunk, decode_chunk_lengths
from ..arrays.geometry import geometry_of
from ..format import layout
from ..format.parquet import from_parquet
from ..format.records import CommitRecord, Manifest, RunRecord, StoredObject, StoredShard
from ..format.rollout_tables import index_table, rollout_schema
from ..locations.location import Location
from ..run.commits import read_commit

_WORST_CANARY = 5e-2
"""Largest relative error of a canary, unless the job allowed another or kept it with a warning. Engines allow no more
at any dtype."""


def _is_warned_of(canary: Canary, rule: CanarySpec | None) -> bool:
    return canary.num_above > 0 and rule is not None and rule.action == "warn"


@dataclass(frozen=True, slots=True)
class Problem:
    """An inconsistency that ``verify_run`` found.

    Attributes:
        kind: ``damage`` when a value, text or record is missing or wrong; ``lag`` when a cache of the commit records,
            or an array's length, is behind them, which changes no result.
        code: Stable name of the cause, such as ``bad_object``.
        path: Path of the object in the store.
        message: One sentence.
        unit_id: Id of the unit that the object belongs to; None where it belongs to none.
    """

    kind: Literal["damage", "lag"]
    code: str
    path: str
    message: str
    unit_id: str | None = None


@dataclass
class UnitReport:
    """The result of checking one unit.

    Attributes:
        commit: The unit's commit record; None when it cannot be read.
        problems: Damage of the record and its objects.
        bytes_read: Bytes of the unit's objects that were read.
    """

    commit: CommitRecord | None = None
    problems: list[Problem] = field(default_factory=list)
    bytes_read: int = 0


class UnitCheck:
    """Checks committed units of a run; its methods may be called from several threads.

    Args:
        location: The run's store.
        record: The run's record.
        planned: Planned units by id; None when the list of them cannot be read.
        quick: Whether to check lengths instead of reading objects.
    """

    def __init__(
        self, location: Location, record: RunRecord, planned: dict[str, WorkUnit] | None, *, quick: bool
    ) -> None:
        self._location = location
        self._record = record
        self._planned = planned
        self._quick = quick

    def run(self, unit_id: str) -> UnitReport:
        """Check a unit's commit record, table of rollouts and shards."""
        report = UnitReport()
        try:
            commit = read_commit(self._location, unit_id)
        except StoreError as error:
            path = layout.commit_path(unit_id)
            report.problems.append(Problem("damage", error.code, path, error.message, unit_id))
            return report
        report.commit = commit
        report.problems += self._record_problems(unit_id, commit.manifest)
        report.problems += self._object(report, commit.manifest.texts, self._texts_problems, commit.manifest)
        for shard in commit.manifest.blocks:
            report.problems += self._object(report, shard, self._shard_problems, commit.manifest)
        return report

    def _record_problems(self, unit_id: str, manifest: Manifest) -> Iterator[Problem]:
        path = layout.commit_path(unit_id)
        if self._planned is not None and self._planned.get(unit_id) != manifest.unit:
            known = unit_id in self._planned
            reason = "differs from the planned unit of that id" if known else "is of a unit that was never planned"
            yield Problem("damage", "wrong_unit", path, f"the commit record {reason}.", unit_id)
        row_block = manifest.row_block
        expected = {
            layout.shard_path(*array, row_block)
            for array in self._record.arrays
            # A shard without any value is not stored: that of a unit whose responses are all empty.
            if any(_have_values(array[1], manifest))
        }
        named = {shard.path for shard in manifest.blocks}
        if named != expected or manifest.texts.path != layout.rollouts_path(unit_id, row_block):
            yield Problem(
                "damage", "wrong_objects", path, "the commit record names objects that are not its own.", unit_id
            )
        yield from self._canary_problems(path, manifest)

    def _canary_problems(self, path: str, manifest: Manifest) -> Iterator[Problem]:
        canary, rule, unit_id = manifest.canary, manifest.canary_rule, manifest.unit_id
        if rule is None:
            # From before there was a choice: one rollout of every unit with content was compared.
            is_due = canary is None and any(manifest.content_tokens)
        else:
            is_due = not set(self._due_rows(rule, manifest)) <= set(canary.rows if canary else ())
        if is_due:
            message = "a rollout that was to be compared with a plain forward pass was not."
            yield Problem("damage", "no_canary", path, message, unit_id)
        if canary is None:
            return
        limit = (rule.tolerance if rule else None) or _WORST_CANARY
        if len(canary.relative_error_L) != len(self._record.layers):
            yield Problem("damage", "bad_canary", path, "its canary is not of the run's layers.", unit_id)
        elif not canary.worst_relative_error <= (MOST_ROUNDING if _is_warned_of(canary, rule) else limit):
            message = f"it differs from a plain forward pass by {canary.worst_relative_error:.1e} of its norm."
            yield Problem("damage", "bad_canary", path, message, unit_id)

    def _due_rows(self, rule: CanarySpec, manifest: Manifest) -> tuple[int, ...]:
        """The rows that the rule of a unit's commit record chooses, whichever worker ran it."""
        spec = self._record.spec
        seeds = (0 if self._record.of_given_texts else address.seed(spec.seed) for address in manifest.unit.addresses())
        draws = [canary_draw(address, seed) for address, seed in zip(manifest.unit.addresses(), seeds, strict=True)]
        ends = zip(manifest.content_tokens, manifest.finish_reasons, strict=True)
        comparable = [can_be_compared(spec.capture.poolings, tokens, reason) for tokens, reason in ends]
        return due_rows(rule, draws, comparable)

    def _object(
        self,
        report: UnitReport,
        stored: StoredObject,
        problems: Callable[[bytes, Any, Manifest], Iterator[str]],
        manifest: Manifest,
    ) -> Iterator[Problem]:
        """Check an object's length and SHA-256; if they match, check its content with ``problems``."""

        def damage(code: str, message: str) -> Problem:
            return Problem("damage", code, stored.path, message, manifest.unit_id)

        data = None if self._quick else self._location.read(stored.path)
        size = self._location.size(stored.path) if self._quick else len(data) if data is not None else None
        if size is None:
            yield damage("missing_object", "it is missing.")
        elif size != stored.num_bytes:
            state = "empty" if not size else f"{size} bytes long"
            yield damage("bad_object", f"it is {state}; {stored.num_bytes} bytes were committed.")
        elif data is not None:
            report.bytes_read += len(data)
            if sha256(data).hexdigest() != stored.sha256:
                yield damage("bad_object", "its bytes are not those that were committed.")
            else:
                for message in problems(data, stored, manifest):
                    yield damage("wrong_content", message)

    def _texts_problems(self, data: bytes, _stored: StoredObject, manifest: Manifest) -> Iterator[str]:
        try:
            table = from_parquet(data)
        except (pa.ArrowException, OSError) as error:
            yield f"it is no Parquet file: {error}."
            return
        of_conversations = self._record.of_conversations
        columns = rollout_schema(of_conversations=of_conversations, is_edited=self._record.is_edited).names
        if table.schema.names != columns or table.num_rows != manifest.num_rows:
            yield "it is not the table of this unit's rollouts."
            return
        expected = index_table([manifest], self._record.rows_per_block, of_conversations=of_conversations)
        if not table.select(expected.schema.names).cast(expected.schema).equals(expected):
            yield "its addresses, rows or token counts differ from the commit record's."
        prompts = [len(ids) for ids in table["prompt_token_ids"].to_pylist()]
        responses = [len(ids) for ids in table["response_token_ids"].to_pylist()]
        content = table["num_content_tokens"].to_pylist()
        if prompts != table["num_prompt_tokens"].to_pylist():
            yield "the number of a prompt's token ids differs from its token count."
        # A response's token ids are its content tokens, and the end-of-turn token unless it was cut off.
        if any(not tokens <= ids <= tokens + 1 for tokens, ids in zip(content, responses, strict=True)):
            yield "a response's span does not fit its token ids."

    def _shard_problems(self, data: bytes, stored: StoredShard, manifest: Manifest) -> Iterator[str]:
        if stored.pooling not in POOLINGS:
            yield f"its pooling {stored.pooling} is unknown to this version."
            return
        geometry = geometry_of(self._record, stored.pooling)
        filled = _filled_rows(stored.pooling, manifest)
        num_chunks = -(-len(filled) // geometry.rows_per_chunk)
        has_numbers_CR = np.zeros((num_chunks, geometry.rows_per_chunk), dtype=bool)
        has_numbers_CR.flat[: len(filled)] = filled
        try:
            lengths = decode_chunk_lengths(data, len(geometry.layers), geometry.chunks_per_block)
            if lengths != stored.chunk_bytes or len(lengths) != len(geometry.layers) * num_chunks:
                yield "its inner chunks have other lengths than the commit record says."
                return
            end = 0
            for place, num_bytes in enumerate(lengths):
                layer, has_numbers_R = geometry.layers[place // num_chunks], has_numbers_CR[place % num_chunks]
                begin, end = end, end + num_bytes
                chunk_RD = decode_chunk(data[begin:end], geometry.rows_per_chunk, geometry.d_model)
                if not np.isfinite(chunk_RD[has_numbers_R]).all():
                    yield f"a row of layer {layer} has numbers that are missing or not finite."
                if not np.isnan(chunk_RD[~has_numbers_R]).all():
                    yield f"a row of layer {layer} has numbers where there was nothing to pool."
        except ValueError as error:
            yield f"it cannot be decoded: {error}."


def _filled_rows(pooling: str, manifest: Manifest) -> list[bool]:
    """For each of a shard's first rows (rollouts, or tokens of a ``tokens`` array), whether it must have values."""
    if POOLINGS[pooling].keeps_tokens:
        return [True] * manifest.num_response_tokens
    return _have_values(pooling, manifest)


def _have_values(pooling: str, manifest: Manifest) -> list[bool]:
    """For each rollout of a unit, whether it has a value in a pooling."""
    ends = zip(manifest.content_tokens, manifest.finish_reasons, strict=True)
    return [POOLINGS[pooling].has_value(tokens, is_reached=reason != "not_reached") for tokens, reason in ends]
