"""Where the turns of conversations lie on an axis: values, scores and what they are compared with. Knows no engine.

Every number is in axis sign: higher is nearer the Assistant. Axes: L layers, D d_model, T tokens of a turn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..axis_source import AxisSource
from ..capping import RECOMMENDED_LABEL
from .distribution import Distribution

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Score:
    """One activation on the axis at one layer.

    Attributes:
        layer: 0-based layer.
        projection: Dot product with the unit axis, not centred: its zero means nothing.
        centred: The projection less the mean of the distribution that it is compared with.
        z_score: ``centred`` in standard deviations of that distribution.
        percentile: Share of that distribution below it, 0 to 100.
        is_below: Whether it is below the threshold; None where there is no threshold.
    """

    layer: int
    projection: float
    centred: float
    z_score: float
    percentile: float
    is_below: bool | None

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON values; null where one is not known."""
        return {
            "layer": self.layer,
            "projection": number(self.projection),
            "centred": number(self.centred),
            "z_score": number(self.z_score),
            "percentile": number(self.percentile),
            "below_threshold": self.is_below,
        }


def number(value: float) -> float | None:
    """Return a number as JSON has it: None for NaN."""
    return value if math.isfinite(value) else None


@dataclass(frozen=True, eq=False)
class Scale:
    """The axis at one layer, and what projections on it are compared with.

    Attributes:
        layer: 0-based layer.
        unit_D: The axis, of length one.
        distribution: The projections that others are compared with.
        floor: The threshold, in axis sign; None for none.
    """

    layer: int
    unit_D: Float64 = field(repr=False)
    distribution: Distribution
    floor: float | None

    def score(self, value_D: npt.NDArray[np.floating]) -> Score:
        """Project an activation and compare it.

        Args:
            value_D: The activation; NaN where there is none.
        """
        projection = float(np.asarray(value_D, np.float64) @ self.unit_D)
        return Score(
            self.layer,
            projection,
            projection - self.distribution.mean,
            self.distribution.z_score(projection),
            self.distribution.percentile(projection),
            None if self.floor is None or math.isnan(projection) else projection < self.floor,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return what projections at this layer are compared with, as JSON values."""
        found = self.distribution
        return {
            "layer": self.layer,
            "floor_on_axis": self.floor,
            "compared_with": found.of,
            "count": len(found.sorted_N),
            "mean": number(found.mean),
            "std": number(found.std),
        }


@dataclass(frozen=True, eq=False)
class Ruler:
    """The layers at which conversations are scored, and the threshold beside them. Make one with ``ruler_of``.

    Attributes:
        axis: The axis.
        scales: The axis at each layer, in the order in which the layers were asked for.
        label: Percentile of the threshold on -axis, as a fraction: ``p0.25``; None for no threshold.
        notes: Sentences about what is not there.
    """

    axis: AxisSource
    scales: tuple[Scale, ...]
    label: str | None
    notes: tuple[str, ...] = ()

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers, 0-based."""
        return tuple(scale.layer for scale in self.scales)

    def scores(self, values_LD: npt.NDArray[np.floating] | None, captured: Sequence[int]) -> tuple[Score, ...]:
        """Score an activation at every layer of the ruler.

        Args:
            values_LD: The activation at the captured layers; None where there is none, which gives NaN.
            captured: The captured layers.
        """
        places = {layer: place for place, layer in enumerate(captured)}
        nothing_D = np.full(self.axis.model.d_model, np.nan)
        return tuple(
            scale.score(nothing_D if values_LD is None else values_LD[places[scale.layer]]) for scale in self.scales
        )

    def projections(self, values_LTD: npt.NDArray[np.floating], captured: Sequence[int]) -> Float64:
        """Project every token at every layer of the ruler.

        Args:
            values_LTD: The activations at the captured layers.
            captured: The captured layers.

        Returns:
            ``(L, T)``, L being the layers of the ruler.
        """
        places = {layer: place for place, layer in enumerate(captured)}
        return np.stack([np.asarray(values_LTD[places[s.layer]], np.float64) @ s.unit_D for s in self.scales])


def ruler_of(axis: AxisSource, layers: Sequence[int], label: str | None = None) -> Ruler:
    """Prepare an axis to score with.

    Args:
        axis: The axis.
        layers: 0-based layers.
        label: Threshold to show: a percentile of the projection on -axis, as a fraction; None: the recommended one,
            ``p0.25``, or none where the axis does not have it.

    Raises:
        InputError: There is no axis at a layer, or no such threshold.

    Example:
        >>> from persona_atlas import reduce
        >>> from persona_atlas.analysis.axis_source import open_axis
        >>> reduction = reduce("runs/demo", progress=False)
        >>> ruler = ruler_of(open_axis("runs/demo"), [15])
        >>> scored, = ruler.scores(reduction.default_vector[[15]], captured=[15])
        >>> round(scored.projection / float(reduction.default_projection[15]), 4), ruler.label
        (1.0, 'p0.25')
    """
    notes: list[str] = []
    chosen = label
    if label is None:
        # NaN at a layer: an imported capping file may have thresholds for a window only.
        has = RECOMMENDED_LABEL in axis.labels and axis.reduction.floor_on_axis is not None
        chosen = RECOMMENDED_LABEL if has and all(_has_floor(axis, layer) for layer in layers) else None
        if chosen is None:
            others = f"; it has {', '.join(axis.labels)}" if axis.labels else ""
            notes.append(f"The axis has no threshold {RECOMMENDED_LABEL} at every layer{others}.")
    scales = tuple(
        Scale(
            layer, axis.unit_D(layer), axis.distribution(layer), None if chosen is None else axis.floor(layer, chosen)
        )
        for layer in layers
    )
    of = {scale.distribution.of for scale in scales}
    if "role vectors" in of:
        notes.append(
            "Compared with role vectors, since the axis comes without the rollouts behind it. These are means and "
            "scatter less than single turns do, so z-scores and percentiles are more extreme than among rollouts."
        )
    elif "nothing" in of:
        notes.append("The axis comes without projections to compare with, so there are no z-scores and percentiles.")
    return Ruler(axis, scales, chosen, tuple(notes))


def _has_floor(axis: AxisSource, layer: int) -> bool:
    floors_QL = axis.reduction.floor_on_axis
    assert floors_QL is not None
    at = axis.reduction.position(layer)
    return bool(np.isfinite(floors_QL[axis.labels.index(RECOMMENDED_LABEL), at]))


@dataclass(frozen=True, slots=True)
class TokenProjections:
    """The tokens of a turn, each on the axis.

    Attributes:
        texts: Text of each token; empty where its characters are those of the next.
        projections_LT: Projection at each layer of the ruler.
    """

    texts: tuple[str, ...]
    projections_LT: Float64

    def as_dict(self, place: int) -> list[dict[str, Any]]:
        """Return the tokens as JSON values.

        Args:
            place: Index of the layer along L.
        """
        return [
            {"text": text, "projection": number(float(value))}
            for text, value in zip(self.texts, self.projections_LT[place], strict=True)
        ]


@dataclass(frozen=True, eq=False, slots=True)
class ScoredTurn:
    """One turn of a conversation.

    Attributes:
        turn_index: Its place among the turns: user 0, assistant 1 and so on; system messages are not counted.
        role: ``assistant`` or ``user``.
        text: What was read of it.
        num_tokens: Number of tokens that were read; 0 where there is nothing, and then all scores are NaN.
        scores: Its score at each layer of the ruler.
        deltas: Change of the projection since the turn of the same role before it, at each layer; NaN for the first.
        tokens: Every token; None where they were not asked for.
    """

    turn_index: int
    role: str
    text: str
    num_tokens: int
    scores: tuple[Score, ...]
    deltas: tuple[float, ...]
    tokens: TokenProjections | None = None

    @property
    def score(self) -> Score:
        """The score at the first layer of the ruler."""
        return self.scores[0]

    def as_dict(self) -> dict[str, Any]:
        """Return the turn as JSON values: the first layer's score, and with several layers all of them."""
        each = [
            score.as_dict()
            | {"delta": number(delta)}
            | ({} if self.tokens is None else {"tokens": self.tokens.as_dict(place)})
            for place, (score, delta) in enumerate(zip(self.scores, self.deltas, strict=True))
        ]
        first = {name: value for name, value in each[0].items() if name != "layer"}
        return {
            "turn_index": self.turn_index,
            "role": self.role,
            "num_tokens": self.num_tokens,
            **first,
            **({"at_layers": each} if len(each) > 1 else {}),
        }


@dataclass(frozen=True, eq=False, slots=True)
class ScoredConversation:
    """One conversation.

    Attributes:
        conversation_index: Its place in the input.
        name: Its name for people: file and place in it, or its own title.
        turns: Its turns.
    """

    conversation_index: int
    name: str
    turns: tuple[ScoredTurn, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the conversation as JSON values."""
        return {
            "conversation_index": self.conversation_index,
            "name": self.name,
            "turns": [turn.as_dict() for turn in self.turns],
        }


@dataclass(frozen=True, eq=False)
class Watched:
    """Conversations on an axis: what ``project`` prints and draws.

    Attributes:
        ruler: The layers, what is compared with, and the threshold.
        model: The model that read the conversations.
        part: What of the assistant's messages was read: ``content``, ``reasoning`` or ``all``.
        conversations: The conversations.
        transfer: A sentence where the model is another than the axis's; None where it is its own.
        notes: Other sentences that belong beside the numbers.
    """

    ruler: Ruler
    model: str
    part: str
    conversations: tuple[ScoredConversation, ...]
    transfer: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """All sentences that belong beside the numbers, the transfer first."""
        return (*((self.transfer,) if self.transfer else ()), *self.ruler.notes, *self.notes)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON values, in the shape that ``project --json`` prints."""
        layers, axis = self.ruler.layers, self.ruler.axis
        return {
            "layer": layers[0],
            "layers": list(layers),
            "axis": axis.name,
            "axis_model": axis.model.source,
            "model": self.model,
            "transfer": self.transfer,
            "hook_point": axis.hook_point,
            "pooling": axis.pooling,
            "span": self.part,
            "sign": "higher is nearer the Assistant",
            "threshold": self.ruler.label,
            "scales": [scale.as_dict() for scale in self.ruler.scales],
            "notes": [*self.ruler.notes, *self.notes],
            "conversations": [conversation.as_dict() for conversation in self.conversations],
        }


@dataclass(frozen=True, eq=False, slots=True)
class ReadTurn:
    """A turn as it was read, before it is scored.

    Attributes:
        turn_index: See ``ScoredTurn``, as for the next three.
        role: Who wrote it.
        text: What was read of it.
        num_tokens: Number of tokens.
        values_LD: Its pooled activation at the captured layers; None where there is none.
        tokens: Text and activations ``(L, T, D)`` of its tokens; None where they were not asked for.
    """

    turn_index: int
    role: str
    text: str
    num_tokens: int
    values_LD: npt.NDArray[np.floating] | None
    tokens: tuple[tuple[str, ...], npt.NDArray[np.floating]] | None = None


def score_turns(ruler: Ruler, captured: Sequence[int], turns: Sequence[ReadTurn]) -> tuple[ScoredTurn, ...]:
    """Score the turns of one conversation.

    Args:
        ruler: The layers and what is compared with.
        captured: The layers along L of the turns' activations.
        turns: The turns, in order.
    """
    before: dict[str, tuple[Score, ...]] = {}
    scored: list[ScoredTurn] = []
    for turn in turns:
        scores = ruler.scores(turn.values_LD, captured)
        earlier = before.get(turn.role)
        deltas = tuple(
            math.nan if earlier is None else score.projection - earlier[place].projection
            for place, score in enumerate(scores)
        )
        tokens = None
        if turn.tokens is not None:
            tokens = TokenProjections(turn.tokens[0], ruler.projections(turn.tokens[1], captured))
        scored.append(ScoredTurn(turn.turn_index, turn.role, turn.text, turn.num_tokens, scores, deltas, tokens))
        if turn.values_LD is not None:
            before[turn.role] = scores
    return tuple(scored)
