"""Recompute rollouts in plain forward passes that walk beside the passes in which they are captured.

A canary of its own loads all weights for one rollout. Which rollouts are compared is known before they are read, so
their plain passes go along: each conversation alone, in the model's own attention, without packing, prefixes or sums.
What they share with the captured passes is that their layers are called one by one.

Axes: T tokens of a conversation, D d_model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch

from ....jobs.interventions import Intervention
from ....jobs.poolings import TokenSpans, pooling_named
from ....jobs.specs.spec_parts import HookPoint
from ....jobs.work.rollouts import ArrayName
from ...editing.edited_pass import EditedPass
from ...editing.interventions import Interventions
from ...engine import CapturedRollout, EngineSettings, TokenisedText
from ...models.hook_points import Tap
from ..loaded_model import LoadedModel
from ..passes.plain_pass import pooled
from ..passes.registration import plain_attention
from .layer_stream import LayerStream
from .recording import Recorded, record

_MOST_BYTES = 2**30
"""Bytes of recomputed rollouts beyond which those of earlier calls are dropped; of a unit that fails, nobody asks."""

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PlainText:
    """A conversation up to the end of a response, as it is recomputed.

    Attributes:
        token_ids: Its tokens.
        response: Position of the first token of the response.
        intervention: What is applied to it; None for nothing.
    """

    token_ids: tuple[int, ...]
    response: int
    intervention: Intervention | None

    @classmethod
    def of(cls, captured: CapturedRollout) -> PlainText:
        """Make the text of a rollout.

        Args:
            captured: The rollout.
        """
        rollout = captured.rollout
        content = rollout.response_token_ids[: rollout.num_content_tokens]
        return cls((*rollout.prompt_token_ids, *content), len(rollout.prompt_token_ids), captured.intervention)


@dataclass(eq=False, slots=True)
class _Kept:
    """What was found of a text.

    Attributes:
        values: Its arrays.
        times: How often it is going to be asked for: several rollouts may have the same text.
        call: Number of the call that it was read in.
    """

    values: dict[ArrayName, Float64]
    times: int
    call: int

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        return sum(value.nbytes for value in self.values.values())


@dataclass(eq=False, slots=True)
class _Walking:
    """A text on its way through the layers, and the pooled layers of each array so far."""

    text: PlainText
    spans: TokenSpans
    edits: EditedPass | None
    recorded: Recorded
    found: dict[ArrayName, list[torch.Tensor]] = field(default_factory=dict)


class PlainTexts:
    """Recomputes texts beside walks, and keeps what was found until it is asked for.

    Args:
        loaded: The model.
        stream: Gives its layers their weights.
        taps: For every hook point, one tap per captured layer.
        settings: Captured layers and poolings.
        interventions: Applies interventions to the model.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        stream: LayerStream,
        taps: Mapping[HookPoint, Sequence[Tap]],
        settings: EngineSettings,
        interventions: Interventions,
    ) -> None:
        self._loaded = loaded
        self._stream = stream
        self._taps = taps
        self._layers = list(settings.layers)
        self._token_positions = set(settings.token_positions)
        self._poolings = [pooling_named(name) for name in settings.capture.poolings]
        self._before_edits = settings.capture.before_intervention
        self._interventions = interventions
        self._waiting: dict[PlainText, TokenSpans] = {}
        self._times: Counter[PlainText] = Counter()
        self._call = 0
        self._walking: list[_Walking] = []
        self._found: dict[PlainText, _Kept] = {}

    def expect(self, texts: Sequence[TokenisedText], one_in: int) -> None:
        """Note which responses are going to be compared; the next walk recomputes them.

        Args:
            texts: The texts that are read next.
            one_in: One rollout in so many is compared; see ``due_rows``.
        """
        due = [
            (PlainText(text.token_ids[: spans.response[1]], spans.response[0], text.intervention), spans)
            for text in texts
            for draw, spans in zip(text.draws, text.spans, strict=False)
            if draw * one_in < 1
        ]
        self._waiting, self._times = dict(due), Counter(text for text, _ in due)
        self._call += 1

    def take(self, captured: CapturedRollout, arrays: Sequence[ArrayName]) -> dict[ArrayName, Float64] | None:
        """Return the recomputed values of a rollout, once for each rollout of its text; None where there are none.

        Args:
            captured: The rollout, of which only tokens, spans and intervention are read.
            arrays: The arrays that are asked for.
        """
        text = PlainText.of(captured)
        found = self._found.get(text)
        if found is None:
            return None
        found.times -= 1
        if not found.times:
            del self._found[text]
        return {array: found.values[array] for array in arrays}

    def begin(self, top: int, walks_left: int) -> None:
        """Bring this walk's share of the expected texts before the first layer.

        Args:
            top: The last layer of the walk.
            walks_left: Number of walks that there are still, this one included.
        """
        self._walking = []
        share = -(-len(self._waiting) // walks_left)
        with plain_attention(self._loaded.model, self._loaded.own_attention):
            for text, spans in islice(self._waiting.items(), share):
                applied = self._interventions.ready(text.intervention)
                stretches = [] if applied is None else applied.stretches(0, 0, len(text.token_ids), text.response)
                edits = self._interventions.planned(stretches) if stretches else None
                recorded = record(self._loaded, self._stream, partial(self._loaded.run_alone, text.token_ids), top)
                self._walking.append(_Walking(text, spans, edits, recorded))

    def step(self, number: int) -> None:
        """Compute a layer.

        Args:
            number: 0-based decoder layer, which has its weights.
        """
        if not self._walking or number > max(self._layers):
            return
        with plain_attention(self._loaded.model, self._loaded.own_attention):
            for walking in self._walking:
                self._compute(number, walking)

    def end(self) -> None:
        """Keep what was found in a walk."""
        for walking in self._walking:
            text = walking.text
            del self._waiting[text]
            values = {array: torch.stack(layers).numpy() for array, layers in walking.found.items()}
            earlier = self._found.pop(text, None)
            times = self._times[text] + (0 if earlier is None else earlier.times)
            self._found[text] = _Kept(values, times, self._call)
        over = sum(kept.nbytes for kept in self._found.values()) - _MOST_BYTES
        # Those of this call stay, however many: each that is missing takes loading all weights.
        for text in [text for text, kept in self._found.items() if kept.call < self._call]:
            if over <= 0:
                break
            over -= self._found.pop(text).nbytes

    def leave(self) -> None:
        """Let go of the texts on their way, whether or not they have arrived."""
        self._walking = []

    def _compute(self, number: int, walking: _Walking) -> None:
        seen: dict[HookPoint, torch.Tensor] = {}
        position = self._layers.index(number) if number in self._layers else None
        with ExitStack() as attached:
            if walking.edits is not None:
                attached.enter_context(self._interventions.attached(walking.edits, number))
            if position is not None:
                for point, taps in self._taps.items():
                    handle = taps[position].attach(partial(seen.__setitem__, point), first=self._before_edits)
                    attached.callback(handle.remove)
            walking.recorded.step(number, self._loaded.decoder_layers[number])
        if position is None:
            return
        for point, states in seen.items():
            for pooling in self._poolings:
                start, stop = walking.spans.of(pooling.span)
                is_kept = position in self._token_positions or not pooling.keeps_tokens
                if is_kept and (stop > start or pooling.keeps_tokens):
                    value = pooled(states[0], walking.spans, pooling).cpu()
                    walking.found.setdefault((point, pooling.name), []).append(value)
