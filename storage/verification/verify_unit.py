"""Check one committed unit: its record against the plan, its objects against the record, their content against both.

What is wrong is *damage* (a number, text or record that cannot be trusted) or *lag* (the index does not know a commit
yet, which costs readers requests and no truth). Axes: C chunks of a layer, R rows of a chunk, D d_model.
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
from ...jobs.units import WorkUnit
from ..arrays.codec import decode_chunk, decode_chunk_lengths
from ..arrays.geometry import geometry_of
from ..format import layout
from ..format.records import CommitRecord, Manifest, RunRecord, StoredObject, StoredShard
from ..format.rollout_tables import from_parquet, index_table, rollout_schema
from ..locations.location import Location
from ..run.commits import read_commit

_WORST_CANARY = 5e-2
"""Relative error that no engine lets pass, whatever its type; another rollout's or layer's vector is off by 1e-1."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not as it must be.

    Attributes:
        kind: ``damage`` or ``lag``.
        code: A stable word for it.
        path: The object, in the store.
        what: One sentence.
        unit_id: Whose it is, where it is a unit's.
    """

    kind: Literal["damage", "lag"]
    code: str
    path: str
    what: str
    unit_id: str | None = None


@dataclass
class Checked:
    """What was found of one unit; no commit when its record cannot be read."""

    commit: CommitRecord | None = None
    problems: list[Problem] = field(default_factory=list)
    bytes_read: int = 0


class UnitCheck:
    """Checks one committed unit at a time, in whichever thread."""

    def __init__(
        self, location: Location, record: RunRecord, planned: dict[str, WorkUnit] | None, *, quick: bool
    ) -> None:
        self._location = location
        self._record = record
        self._planned = planned
        self._quick = quick

    def run(self, unit_id: str) -> Checked:
        """Check a unit's record, texts and activations."""
        checked = Checked()
        try:
            commit = read_commit(self._location, unit_id)
        except StoreError as error:
            path = layout.commit_path(unit_id)
            checked.problems.append(Problem("damage", error.code, path, error.message, unit_id))
            return checked
        checked.commit = commit
        checked.problems += self._record_problems(unit_id, commit.manifest)
        checked.problems += self._object(checked, commit.manifest.texts, self._texts_problems, commit.manifest)
        for block in commit.manifest.blocks:
            checked.problems += self._object(checked, block, self._block_problems, commit.manifest)
        return checked

    def _record_problems(self, unit_id: str, manifest: Manifest) -> Iterator[Problem]:
        path = layout.commit_path(unit_id)
        if self._planned is not None and self._planned.get(unit_id) != manifest.unit:
            known = unit_id in self._planned
            what = "is not the planned unit of that name" if known else "is of a unit that was never planned"
            yield Problem("damage", "wrong_unit", path, f"the commit record {what}.", unit_id)
        row_block = manifest.row_block
        has_content = any(manifest.content_tokens)
        expected = {
            layout.shard_path(*array, row_block)
            for array in self._record.arrays
            # Zarr keeps no object for a block without a number: every response was empty.
            if has_content or POOLINGS[array[1]].defined_without_response
        }
        named = {block.path for block in manifest.blocks}
        if named != expected or manifest.texts.path != layout.rollouts_path(unit_id, row_block):
            yield Problem(
                "damage", "wrong_objects", path, "the commit record names other objects than its own.", unit_id
            )
        canary = manifest.canary
        if canary is None and has_content:
            yield Problem("damage", "no_canary", path, "nothing of it was held against a plain forward pass.", unit_id)
        elif canary is not None and len(canary.relative_error_L) != len(self._record.layers):
            yield Problem("damage", "bad_canary", path, "its canary is not of the run's layers.", unit_id)
        elif canary is not None and not max(canary.relative_error_L) <= _WORST_CANARY:
            what = f"it differs from a plain forward pass by {max(canary.relative_error_L):.1e} of its norm."
            yield Problem("damage", "bad_canary", path, what, unit_id)

    def _object(
        self,
        checked: Checked,
        stored: StoredObject,
        problems: Callable[[bytes, Any, Manifest], Iterator[str]],
        manifest: Manifest,
    ) -> Iterator[Problem]:
        """Check that an object has the committed bytes, then what they say."""

        def damage(code: str, what: str) -> Problem:
            return Problem("damage", code, stored.path, what, manifest.unit_id)

        data = None if self._quick else self._location.read(stored.path)
        size = self._location.size(stored.path) if self._quick else len(data) if data is not None else None
        if size is None:
            yield damage("missing_object", "it is missing.")
        elif size != stored.num_bytes:
            state = "empty" if not size else f"{size} bytes long"
            yield damage("bad_object", f"it is {state}; {stored.num_bytes} bytes were committed.")
        elif data is not None:
            checked.bytes_read += len(data)
            if sha256(data).hexdigest() != stored.sha256:
                yield damage("bad_object", "its bytes are not those that were committed.")
            else:
                for what in problems(data, stored, manifest):
                    yield damage("wrong_content", what)

    def _texts_problems(self, data: bytes, _stored: StoredObject, manifest: Manifest) -> Iterator[str]:
        try:
            table = from_parquet(data)
        except (pa.ArrowException, OSError) as error:
            yield f"it is no Parquet file: {error}."
            return
        of_conversations = self._record.of_conversations
        columns = rollout_schema(of_conversations=of_conversations).names
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
            yield "a prompt's token ids are not as many as its count."
        # At most the end-of-turn token follows the content.
        if any(not spoken <= ids <= spoken + 1 for spoken, ids in zip(content, responses, strict=True)):
            yield "a response's span does not fit its token ids."

    def _block_problems(self, data: bytes, stored: StoredShard, manifest: Manifest) -> Iterator[str]:
        if stored.pooling not in POOLINGS:
            yield f"its pooling, {stored.pooling}, is not one that is known."
            return
        cut = geometry_of(self._record, stored.pooling)
        filled = _filled_rows(stored.pooling, manifest)
        num_chunks = -(-len(filled) // cut.rows_per_chunk)
        has_numbers_CR = np.zeros((num_chunks, cut.rows_per_chunk), dtype=bool)
        has_numbers_CR.flat[: len(filled)] = filled
        try:
            lengths = decode_chunk_lengths(data, len(cut.layers), cut.chunks_per_block)
            if lengths != stored.chunk_bytes or len(lengths) != len(cut.layers) * num_chunks:
                yield "its layers do not lie where the commit record says."
                return
            end = 0
            for place, num_bytes in enumerate(lengths):
                layer, has_numbers_R = cut.layers[place // num_chunks], has_numbers_CR[place % num_chunks]
                begin, end = end, end + num_bytes
                chunk_RD = decode_chunk(data[begin:end], cut.rows_per_chunk, cut.d_model)
                if not np.isfinite(chunk_RD[has_numbers_R]).all():
                    yield f"a row of layer {layer} has numbers that are missing or not finite."
                if not np.isnan(chunk_RD[~has_numbers_R]).all():
                    yield f"a row of layer {layer} has numbers where there was nothing to pool."
        except ValueError as error:
            yield f"it cannot be decoded: {error}."


def _filled_rows(pooling: str, manifest: Manifest) -> list[bool]:
    """Say which of a block's first rows have numbers: a row is a rollout, of ``tokens`` a token."""
    if POOLINGS[pooling].keeps_tokens:
        return [True] * manifest.num_response_tokens
    return [POOLINGS[pooling].has_value(tokens) for tokens in manifest.content_tokens]
