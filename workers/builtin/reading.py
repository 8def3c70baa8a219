"""The reader: capture existing texts in packed prefill passes, without generating.

A pass has no LM head, runs no decoder layer above the highest captured one, and keeps no KV cache. It takes as many
texts as fit its token budget. Texts with a common prefix, such as a system prompt, are adjacent, and the prefix is
computed once, as part of the first of them (``prefixes``). A text that must not share a pass has one of its own.

Every response of every text has a slot. Its prompt, user message and response are stretches of the packed sequence
(see ``pooling``); a span that starts in a shared prefix is two stretches, one in the leader's segment and one in the
text's own. Sums are copied from the device once per pass and combined on the CPU.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain

import torch

from ...jobs.errors import UnitError
from ...jobs.machine_faults import is_out_of_memory
from ...jobs.specs.spec_parts import CaptureSpec, HookPoint
from ...jobs.work.rollouts import EditRecord
from ..accumulator_set import AccumulatorSet
from ..editing.edit_totals import record_of
from ..editing.edited_pass import EditedPass
from ..editing.interventions import AppliedIntervention, Interventions
from ..engine import CapturedText, EngineSettings, TokenisedText
from ..observation import Observed
from ..pooling import Shape
from .batching.exhaustion import LEAST_TOKENS, free_memory
from .batching.prefixes import TextInPass, in_passes, length_of
from .loaded_model import LoadedModel
from .passes.capture import Capture, require_finite
from .passes.registration import plain_attention
from .reading_pass import PassRunner, RanPass, ReadingPass, ResidentRunner

PASS_TOKENS = {"cpu": 4096, "cuda": 16_384}
"""Most tokens of one pass, unless a single text is longer. On a CPU larger passes are not faster; on a GPU they are, as
starting the kernels of a pass takes the host as long for few tokens as for many."""


_log = logging.getLogger(__name__)


class TextReader:
    """Captures texts with one model.

    Args:
        loaded: The model.
        capture: Hooks at the captured layers of that model.
        settings: Captured layers, poolings and batch size.
        interventions: Applies interventions to the model.
        runner: Runs the passes; None: one after another, with weights that are all on the device.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        capture: Capture,
        settings: EngineSettings,
        interventions: Interventions,
        runner: PassRunner | None = None,
    ) -> None:
        self._loaded = loaded
        top = max(settings.layers)
        self._runner: PassRunner = runner or ResidentRunner(loaded, capture, interventions, top)
        self._settings = settings
        self._interventions = interventions
        self._pass_tokens = min(settings.batch_size, PASS_TOKENS[settings.device])
        self._shape = Shape(len(settings.layers), tuple(settings.token_positions), loaded.d_model, "cpu")

    def read(self, texts: Sequence[TokenisedText]) -> list[CapturedText]:
        """Capture texts; see ``Reader.capture``."""
        for text in texts:
            require_readable(text, self._settings.capture, self._loaded.max_context)
        apart = [_apart(text) for text in texts]
        halves = [self._halves(part) for parts in apart for part in parts]
        with torch.inference_mode():
            shared = self._read_in_memory([shared for shared, _ in halves], self._read_together, divides=True)
            alone = self._read_in_memory([text for _, text in halves], self._read_alone, divides=False)
        captured = iter([_joined(pair) for pair in zip(shared, alone, strict=True)])
        return [_joined([next(captured) for _ in parts]) for parts in apart]

    def _halves(self, text: TokenisedText) -> tuple[TokenisedText, TokenisedText]:
        """Split a text's responses into those that may share a pass and those that may not.

        A response belongs to the conversation up to its end, so where the rest of the text would make a pass too long
        to be shared, the first part of the text is read without it.
        """
        num_shared = sum(stop <= self._loaded.sharing.up_to for _, stop in text.responses)
        first, rest = slice(0, num_shared), slice(num_shared, None)
        return (
            replace(text, responses=text.responses[first], user_spans=text.user_spans[first]),
            replace(text, responses=text.responses[rest], user_spans=text.user_spans[rest]),
        )

    def _read_in_memory(
        self,
        texts: Sequence[TokenisedText],
        read_all: Callable[[Sequence[TokenisedText]], list[CapturedText]],
        *,
        divides: bool,
    ) -> list[CapturedText]:
        """Read texts, with fewer or smaller passes at a time once the memory was exhausted.

        Args:
            texts: The texts.
            read_all: Reads them.
            divides: Whether it puts them into passes of at most so many tokens, which may be smaller.
        """
        while True:
            try:
                return read_all(texts)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if self._runner.shrink():
                    smaller = "fewer passes at a time"
                elif divides and self._shrink_passes(texts):
                    smaller = f"passes of at most {self._pass_tokens} tokens"
                else:
                    raise
            # Not before the handler has ended, because until then the error holds the tensors of the pass.
            free_memory()
            _log.warning("the memory was exhausted: going on with %s", smaller)

    def _shrink_passes(self, texts: Sequence[TokenisedText]) -> bool:
        """Halve the passes; False where a text would not fit into one, or there is no sense in smaller ones."""
        smaller = min(self._pass_tokens, sum(map(length_of, texts))) // 2
        if smaller < max(LEAST_TOKENS, *map(length_of, texts)):
            return False
        self._pass_tokens = smaller
        return True

    def _read_together(self, texts: Sequence[TokenisedText]) -> list[CapturedText]:
        interventions = [self._ready(text) for text in texts]
        passes = (
            ReadingPass(readings, self._accumulators())
            for readings in in_passes(texts, interventions, self._pass_tokens)
        )
        captured: dict[int, CapturedText] = {}
        before: RanPass | None = None
        for ran in self._runner.run(passes):
            # A GPU computes a pass while the results of the one before are fetched.
            captured |= self._finished(before)
            before = ran
        captured |= self._finished(before)
        return [captured[index] for index in range(len(texts))]

    def _read_alone(self, texts: Sequence[TokenisedText]) -> list[CapturedText]:
        captured = {index: CapturedText((), ()) for index in range(len(texts))}
        passes = (
            ReadingPass([TextInPass(index, text, self._ready(text))], self._accumulators(), is_alone=True)
            for index, text in enumerate(texts)
            if text.responses
        )
        if any(text.responses for text in texts):
            with plain_attention(self._loaded.model, self._loaded.own_attention):
                for ran in self._runner.run(passes):
                    captured |= self._finished(ran)
        return [captured[index] for index in range(len(texts))]

    def _accumulators(self) -> AccumulatorSet:
        return AccumulatorSet(self._settings.capture, self._shape)

    def _ready(self, text: TokenisedText) -> AppliedIntervention | None:
        try:
            return self._interventions.ready(text.intervention)
        except UnitError as error:
            raise UnitError(f"{text.name}: {error.message}", code=error.code, hint=error.hint) from None

    def _finished(self, started: RanPass | None) -> dict[int, CapturedText]:
        """Pool each response of a pass that was started, and return the texts by their index."""
        if started is None:
            return {}
        line = started.ran
        readings, accumulators, subject = line.readings, line.accumulators, line.subject
        if not line.token_ids:
            return {reading.index: CapturedText((), ()) for reading in readings}
        observed: dict[HookPoint, Observed] = {point: shown.cpu() for point, shown in started.observed.items()}
        for point, shown in observed.items():
            require_finite(shown.tokens_LED, self._settings.layers, f"{point} of a token of {subject}")
            require_finite(shown.sums_LPD, self._settings.layers, f"{point} of a span of {subject}")
            require_finite(shown.every_KWD, self._settings.token_layers, f"{point} of a token of {subject}")
        accumulators.start(slice(0, line.num_slots))
        line.stretches.add(observed)
        records = self._records(readings, line, started.edits)
        captured: dict[int, CapturedText] = {}
        slot = 0
        for reading in readings:
            pooled = [accumulators.finish(slot + i, spans) for i, spans in enumerate(reading.text.spans)]
            vectors, tokens = (tuple(one[which] for one in pooled) for which in (0, 1))
            captured[reading.index] = CapturedText(vectors, tokens, tuple(records[slot : slot + len(pooled)]))
            slot += len(pooled)
        return captured

    def _records(
        self, readings: Sequence[TextInPass], line: ReadingPass, edits: EditedPass
    ) -> list[tuple[EditRecord, ...] | None]:
        """Record what the pass did to each response's rollout; None where it has no intervention."""
        changes_EN = edits.changes_EN(len(line.token_ids)).cpu() if edits.layers else torch.zeros(0, 0)
        changes = (edits.layers, changes_EN)
        responses = [(reading.intervention, span) for reading in readings for span in reading.text.responses]
        return [
            None if applied is None else record_of(applied.intervention, changes, places, span)
            for (applied, span), places in zip(responses, line.conversations, strict=True)
        ]


def _apart(text: TokenisedText) -> list[TokenisedText]:
    """Split a text so that in each part the tokens of a response have the same edits as where it was generated.

    Edits of the response act on the rollout's own response; for the turns after it, it is part of the prompt.
    """
    intervention = text.intervention
    if len(text.responses) < 2 or intervention is None or intervention.of_prompt() == intervention:
        return [text]
    return [
        replace(text, responses=(text.responses[i],), user_spans=text.user_spans[i : i + 1])
        for i in range(len(text.responses))
    ]


def _joined(parts: Sequence[CapturedText]) -> CapturedText:
    """Join what was captured of the responses of one text."""
    vectors, tokens, edits = zip(*((one.vectors_LD, one.tokens_KTD, one.edits) for one in parts), strict=True)
    return CapturedText(tuple(chain(*vectors)), tuple(chain(*tokens)), tuple(chain(*edits)))


def require_readable(text: TokenisedText, capture: CaptureSpec, max_context: int) -> None:
    """Check the spans and the length of a text.

    Args:
        text: The text.
        capture: What is captured of it.
        max_context: Longest text that the model takes, in tokens.

    Raises:
        UnitError: A response does not lie after a prompt, or they are not in ascending order; a pooling is over the
            user's message, and one is not known, empty or not before its response; or the text is too long.
    """
    last = 0
    for start, stop in text.responses:
        if not last <= start <= stop <= len(text.token_ids) or start == 0:
            raise UnitError(
                f"{text.name}: a response span [{start}, {stop}) does not lie after a prompt in "
                f"{len(text.token_ids)} tokens, in ascending order.",
                code="bad_span",
            )
        last = stop
    if capture.needs_user_spans:
        _check_users(text)
    if length_of(text) > max_context:
        raise UnitError(
            f"{text.name}: {length_of(text)} tokens exceed the model's context of {max_context}.",
            code="too_long",
            hint=f"Shorten it to at most {max_context} tokens, or leave it out.",
        )


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
                f"{text.name}: the user's message [{start}, {stop}) is empty or not before the response that begins at "
                f"{first}.",
                code="bad_span",
            )
