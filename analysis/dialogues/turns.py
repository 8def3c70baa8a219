"""The replies of a run of conversations, each with its texts and its projection on an axis, as columns.

A run of given conversations (``extract``) and one of generated dialogues have the same columns, so both are read alike.
Every projection is in axis sign: higher is nearer the Assistant. Knows no statistics. Axes: N replies, L layers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ...jobs.errors import InputError, StoreError
from ...storage.format import layout
from ...storage.query.query import nearest_layer
from ...storage.query.run import Run
from ...storage.query.selection import Layers
from ...storage.run.commits import PARALLEL_READS, read_commits, read_rollouts
from ..axis_source import AxisSource

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Texts = npt.NDArray[np.object_]

NOT_REACHED = "not_reached"
"""Finish reason of a planned reply that a dialogue ended before."""

_NUMBERS = ("conversation_index", "turn_index", "prompt_index", "question_index", "sample_index", "row")
_PART_BYTES = 64 * 2**20
"""Size of the activations that are in memory at a time."""


@dataclass(frozen=True, eq=False)
class Turns:
    """Replies of conversations, in address order: those of one conversation follow one another, by turn.

    Attributes:
        layers: The layers of ``projections_NL``, 0-based, in the order in which they were asked for.
        conversation_index: int64 ``(N,)``, the conversation, over the whole run.
        turn_index: int64 ``(N,)``, the reply's place among the conversation's turns: user 0, assistant 1 and so on.
        reply_number: int64 ``(N,)``, which reply of its conversation each is, from 1: the exchange, in a dialogue of
            two. Empty replies are counted.
        group: Name of the persona of each reply: the domain of a dialogue, the role, or the file of a given
            conversation.
        prompt_index: int64 ``(N,)``; in dialogues with a simulated user, which user persona it is.
        question_index: int64 ``(N,)``; in dialogues with a simulated user, which topic of the user persona it is.
        sample_index: int64 ``(N,)``, counts conversations with the same prompt and question.
        row: int64 ``(N,)``, the reply's row in the store.
        user: The user's message before each reply; ``""`` for none.
        response: Text of each reply.
        extra: Additional keys of each reply's conversation, a JSON object as text.
        projections_NL: Projection of each reply at each layer; NaN where the response is empty and has no activation.
        notes: Sentences that belong beside all numbers made of them.
    """

    layers: tuple[int, ...]
    conversation_index: Int64
    turn_index: Int64
    reply_number: Int64
    group: Texts
    prompt_index: Int64
    question_index: Int64
    sample_index: Int64
    row: Int64
    user: Texts = field(repr=False)
    response: Texts = field(repr=False)
    extra: Texts = field(repr=False)
    projections_NL: Float64 = field(repr=False)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.row)

    @property
    def projection(self) -> Float64:
        """The projections at the first layer, ``(N,)``; NaN where there is no activation."""
        return self.projections_NL[:, 0]

    @property
    def num_conversations(self) -> int:
        """Number of conversations with a reply."""
        return len(np.unique(self.conversation_index))

    def by_conversation(self) -> dict[int, npt.NDArray[np.intp]]:
        """Return the places of each conversation's replies, by turn; conversations in the order of their first one."""
        return _by_conversation(self.conversation_index, self.turn_index)

    def at_layer(self, layer: int) -> Float64:
        """Return the projections at one of the layers, ``(N,)``.

        Args:
            layer: One of ``layers``.
        """
        return self.projections_NL[:, self.layers.index(layer)]

    def take(self, chosen: npt.NDArray[np.bool_] | npt.NDArray[np.integer]) -> Turns:
        """Return some of the replies.

        Args:
            chosen: A mask with an entry for each reply, or places.
        """
        columns = {f.name: getattr(self, f.name)[chosen] for f in fields(self) if f.name not in ("layers", "notes")}
        return replace(self, **columns)

    def measured(self) -> Turns:
        """Return the replies that have a projection at every layer: all but empty ones."""
        return self.take(np.flatnonzero(np.isfinite(self.projections_NL).all(axis=1)))

    def labels(self, key: str) -> Texts | None:
        """Return the value of one of the additional keys for each reply, as text; None where not all have it.

        Args:
            key: A key of ``extra``, such as ``topic``.
        """
        parsed: dict[str, Any] = {text: json.loads(text) if text else {} for text in set(self.extra.tolist())}
        if not len(self) or not all(key in parsed[text] for text in parsed):
            return None
        return np.array([_text(parsed[text][key]) for text in self.extra.tolist()], dtype=object)

    def grouped_by(self, key: str) -> Turns:
        """Return the same replies, grouped by one of the additional keys of their conversations.

        Args:
            key: A key of ``extra``, such as ``user_persona``.

        Raises:
            InputError: Not all replies have it.
        """
        labels = self.labels(key)
        if labels is None:
            known = sorted({name for text in set(self.extra.tolist()) if text for name in json.loads(text)})
            raise InputError(
                f"not every conversation has {key!r}.",
                code="no_such_key",
                field="--by",
                hint=f"Keys are {', '.join(known)}." if known else "The conversations have no additional keys.",
            )
        return replace(self, group=labels)


def reply_numbers(conversation_index: npt.ArrayLike, turn_index: npt.ArrayLike) -> Int64:
    """Count the replies of each conversation, from 1.

    Args:
        conversation_index: The conversation of each reply.
        turn_index: Its place among the turns of the conversation.

    Example:
        >>> reply_numbers([0, 0, 7, 7], [1, 3, 4, 2]).tolist()
        [1, 2, 2, 1]
    """
    conversation_N, turn_N = np.asarray(conversation_index, np.int64), np.asarray(turn_index, np.int64)
    number_N = np.zeros(len(turn_N), np.int64)
    for places in _by_conversation(conversation_N, turn_N).values():
        number_N[places] = np.arange(1, len(places) + 1)
    return number_N


def read_turns(run: Run, axis: AxisSource, layer: Layers | None = None, *, transfer: bool = False) -> Turns:
    """Read the replies of a run of conversations and project them on an axis.

    A reply that its dialogue never reached is left out; one that is empty stays, without a projection. Activations are
    read and projected a part at a time.

    Args:
        run: A run with conversations: of given ones, or of dialogues that were generated.
        axis: The axis, usually that of another run of the same model.
        layer: The layer or layers, as ``AxisSource.chosen`` takes them; None: the axis's middle layer, or the captured
            one nearest to it.
        transfer: Whether another model than the axis's is meant.

    Raises:
        InputError: The run has no conversations, or is of another model; the layer has no axis or was not captured; or
            the run did not capture what the axis was made of.
        StoreError: Something stored is damaged.

    Example:
        >>> from persona_atlas import open_axis, open_run, reduce
        >>> made = reduce("runs/demo", progress=False)
        >>> turns = read_turns(open_run("runs/talks"), open_axis("runs/demo"))
        >>> turns.layers, turns.turn_index.tolist(), turns.user.tolist(), turns.projection.shape
        ((15,), [1, 3], ['Hi', 'So?'], (2,))
    """
    _require_conversations(run)
    model = run.record.model
    said = axis.require_model(
        n_layers=model.n_layers,
        d_model=model.d_model,
        source=run.model_name,
        fingerprint=model.fingerprint,
        transfer=transfer,
        field="AXIS",
    )
    layers = _layers(run, axis, layer)
    lines = run.index.filter(pc.field("finish_reason") != NOT_REACHED)
    projections_NL = _projections(run, axis, layers, lines["row"].to_numpy())
    texts = _texts(run, lines)
    notes = [said] if said else []
    if not run.completeness.is_complete:
        notes.append(f"The run has {run.completeness} so far; the others are not counted.")
    num_empty = int(np.isnan(projections_NL).any(axis=1).sum())
    if num_empty:
        notes.append(f"Replies without text, which have no projection: {num_empty}.")
    numbers = {name: lines[name].to_numpy().astype(np.int64) for name in _NUMBERS}
    return Turns(
        layers=layers,
        reply_number=reply_numbers(numbers["conversation_index"], numbers["turn_index"]),
        group=_objects(lines["persona"]),
        user=_objects(texts["question"]),
        response=_objects(texts["response"]),
        extra=_objects(texts["extra"]),
        projections_NL=projections_NL,
        notes=tuple(notes),
        **numbers,
    )


def _by_conversation(conversation_N: Int64, turn_N: Int64) -> dict[int, npt.NDArray[np.intp]]:
    indices, first, inverse = np.unique(conversation_N, return_index=True, return_inverse=True)
    parts = np.split(np.lexsort((turn_N, inverse)), np.cumsum(np.bincount(inverse, minlength=len(indices)))[:-1])
    return {int(indices[place]): parts[place] for place in np.argsort(first)}


def _require_conversations(run: Run) -> None:
    if "conversation_index" not in run.index.column_names or run.record.of_prompts:
        raise InputError(
            "has no replies in conversations: its rollouts are single questions or prompts.",
            code="no_conversations",
            file=run.url,
            hint="Name a store that extract made of conversations, or one of generated dialogues.",
        )


def _layers(run: Run, axis: AxisSource, asked: Layers | None) -> tuple[int, ...]:
    if asked is None:
        both = sorted(set(run.layers) & set(axis.layers))
        if not both:
            raise InputError(
                f"no layer that {run.url} captured has an axis in {axis.name}.",
                code="no_such_layer",
                field="layer",
                hint=f"The run has {', '.join(map(str, run.layers))}; the axis {', '.join(map(str, axis.layers))}.",
            )
        return (nearest_layer(both, axis.middle),)
    return tuple(axis.chosen(asked))


def _projections(run: Run, axis: AxisSource, layers: Sequence[int], rows_N: npt.NDArray[np.int64]) -> Float64:
    """Project the rows of a run, NaN where one has no activation, ``(N, L)``."""
    units_LD = np.stack([axis.unit_D(layer) for layer in layers])
    query = run.query(layer=list(layers), hook_point=axis.hook_point, pooling=axis.pooling)
    place_of = {row: place for place, row in enumerate(rows_N.tolist())}
    projections_NL = np.full((len(rows_N), len(layers)), np.nan)
    for lines, values_BLD in query.blocks(_PART_BYTES):
        at_B = [place_of[row] for row in lines["row"].to_pylist()]
        projections_NL[at_B] = np.einsum("bld,ld->bl", values_BLD, units_LD, dtype=np.float64)
    return projections_NL


def _texts(run: Run, lines: pa.Table) -> pa.Table:
    """Read the texts of lines of the index, in their order; no token ids, which are most of a unit's table."""
    columns = ["row", "question", "response", "extra"]
    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        commits = read_commits(run.location, lines["unit_id"].unique().to_pylist())
        tables = list(pool.map(lambda commit: read_rollouts(run.location, commit, columns), commits))
    texts = pa.concat_tables(tables) if tables else pa.table({name: [] for name in columns})
    place_of = {row: place for place, row in enumerate(texts["row"].to_pylist())}
    rows = lines["row"].to_pylist()
    if not place_of.keys() >= set(rows):
        raise StoreError(
            "the index lists rows that no commit record has.",
            code="wrong_index",
            file=f"{run.url}/{layout.INDEX}",
            hint="persona-atlas gc --yes rewrites it from the commit records.",
        )
    return texts.take(pa.array([place_of[row] for row in rows], pa.int64()))


def _objects(column: Any) -> Texts:
    return np.array([value or "" for value in column.to_pylist()], dtype=object)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
