"""Read texts that exist already and pool what their spans show: packed passes, nothing generated.

No LM head, no decoder layer above the highest captured one, no cache, no padding. As many texts go to a pass as its
token budget holds, those that begin alike next to each other: a prefix that they share, a system prompt for instance,
is read once, with the first of them (``prefixes``).

Every response of every text is a slot of the pools of its pass: prompt, user's message and response of each are
stretches of the line, and a span that begins in a shared prefix is two, one in the leader's part and one in the text's
own. Sums come back from the device once a pass and are put together on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...jobs.errors import UnitError
from ..engine import CapturedText, EngineSettings, TokenisedText
from ..interventions import AppliedIntervention, Interventions
from ..observation import Wanted
from ..pooling import Shape
from ..pools import PassStretches, Pools
from .capture import Capture, require_finite
from .loaded_model import LoadedModel
from .packed import PackedPass, Segment
from .prefixes import Reading, in_passes, length_of

_PASS_TOKENS = 4096
"""Tokens of one pass at most, a single longer text aside: more make no pass quicker and take memory."""


class TextReader:
    """Reads texts with one model.

    Args:
        loaded: The model.
        capture: Its hook points.
        settings: What is asked of it.
        interventions: Of the model.
    """

    def __init__(
        self, loaded: LoadedModel, capture: Capture, settings: EngineSettings, interventions: Interventions
    ) -> None:
        self._loaded = loaded
        self._capture = capture
        self._settings = settings
        self._interventions = interventions
        self._shape = Shape(len(settings.layers), tuple(settings.token_positions), loaded.d_model, "cpu")

    def read(self, texts: Sequence[TokenisedText]) -> list[CapturedText]:
        """Read and capture; see ``Reader.capture``."""
        for text in texts:
            self._check(text)
        interventions = [self._ready(text) for text in texts]
        captured: dict[int, CapturedText] = {}
        with torch.inference_mode():
            for readings in in_passes(texts, interventions, min(self._settings.batch_tokens, _PASS_TOKENS)):
                captured |= zip((reading.index for reading in readings), self._pass(readings), strict=True)
        return [captured[index] for index in range(len(texts))]

    def _check(self, text: TokenisedText) -> None:
        last = 0
        for start, stop in text.responses:
            if not last <= start <= stop <= len(text.token_ids) or start == 0:
                raise UnitError(
                    f"{text.name}: a response span [{start}, {stop}) does not lie after a prompt in "
                    f"{len(text.token_ids)} tokens, in ascending order.",
                    code="bad_span",
                )
            last = stop
        if self._settings.capture.needs_user_spans:
            self._check_users(text)
        if length_of(text) > self._loaded.max_context:
            raise UnitError(
                f"{text.name}: {length_of(text)} tokens exceed the model's context of {self._loaded.max_context}.",
                code="too_long",
            )

    @staticmethod
    def _check_users(text: TokenisedText) -> None:
        if len(text.user_spans) != len(text.responses):
            raise UnitError(
                f"{text.name}: a pooling is over the user's message; {len(text.user_spans)} such spans are given for "
                f"{len(text.responses)} responses.",
                code="bad_span",
            )
        for (first, _), (start, stop) in zip(text.responses, text.user_spans, strict=True):
            if not 0 <= start < stop <= first:
                raise UnitError(
                    f"{text.name}: the user's message [{start}, {stop}) is empty or not before the response that "
                    f"begins at {first}.",
                    code="bad_span",
                )

    def _ready(self, text: TokenisedText) -> AppliedIntervention | None:
        try:
            return self._interventions.ready(text.intervention)
        except UnitError as error:
            raise UnitError(f"{text.name}: {error.message}", code=error.code) from None

    def _pass(self, readings: Sequence[Reading]) -> list[CapturedText]:
        """Read the texts of one pass."""
        pools = Pools(self._settings.capture, self._shape)
        line = _Line(readings, pools)
        if not line.token_ids:
            return [CapturedText((), ()) for _ in readings]
        layout = PackedPass(self._settings.device, line.segments)
        with self._interventions.applied(line.interventions):
            _, observed = self._capture.observe(
                lambda: layout.run(self._loaded.model, line.token_ids, None),
                line.stretches.wanted,
                num_tokens=len(line.token_ids),
                device=self._settings.device,
                stop_at_top=True,
            )
        whose = f"{readings[0].text.name} or a text beside it"
        for point, shown in observed.items():
            require_finite(shown.tokens_LED, self._settings.layers, f"{point} of a token of {whose}")
            require_finite(shown.sums_LPD, self._settings.layers, f"{point} of a span of {whose}")
            require_finite(shown.every_KWD, self._settings.token_layers, f"{point} of a token of {whose}")
        pools.start(slice(0, line.num_slots))
        line.stretches.add({point: shown.cpu() for point, shown in observed.items()})
        captured: list[CapturedText] = []
        slot = 0
        for reading in readings:
            pooled = [pools.finish(slot + i, spans) for i, spans in enumerate(reading.text.spans)]
            captured.append(
                CapturedText(tuple(vectors for vectors, _ in pooled), tuple(tokens for _, tokens in pooled))
            )
            slot += len(pooled)
        return captured


class _Line:
    """The line of one pass: of each text what it does not share with a text before it.

    Args:
        readings: The texts.
        pools: What is pooled of them; slots are the responses, text after text.

    Attributes:
        token_ids: The line.
        segments: The texts' own parts.
        interventions: Stretches of the line in which the model is changed.
        stretches: What is pooled.
        num_slots: Responses of all texts.
    """

    def __init__(self, readings: Sequence[Reading], pools: Pools) -> None:
        self.token_ids: list[int] = []
        self.segments: list[Segment] = []
        self.interventions: list[tuple[AppliedIntervention | None, int, int]] = []
        self.stretches = PassStretches(pools, Wanted())
        self.num_slots = 0
        begins: list[int] = []
        for reading in readings:
            begin = len(self.token_ids)
            begins.append(begin)
            leader_begin = begins[reading.leader]
            if reading.num_tokens:
                self.segments.append(Segment(reading.shared, reading.num_tokens, prefix_at=leader_begin))
                self.token_ids += reading.text.token_ids[reading.shared : reading.shared + reading.num_tokens]
                self.interventions.append((reading.intervention, begin, len(self.token_ids)))
            for spans in reading.text.spans:
                for span in pools.spans:
                    for start, stop in reading.in_line(begin, leader_begin, spans.of(span)):
                        self.stretches.claim(self.num_slots, span, start, stop)
                self.num_slots += 1
