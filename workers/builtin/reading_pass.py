"""One pass over given texts: its sequence of tokens, what is observed and edited of it, and who runs it.

A runner takes passes that are planned and returns them with the values that were observed. The one here runs a model
whose weights are all on its device, pass by pass; that of ``streaming`` runs many passes layer by layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch

from ...jobs.poolings import TokenRange
from ...jobs.specs.spec_parts import HookPoint
from ..accumulator_set import AccumulatorSet, PassStretches
from ..editing.edited_pass import EditedPass, EditedStretch
from ..editing.interventions import Interventions
from ..observation import Observed, Wanted
from .batching.prefixes import TextInPass, length_of
from .loaded_model import LoadedModel
from .passes.capture import Capture
from .passes.packed import PackedPass, Segment


class ReadingPass:
    """A pass that is to run: one packed sequence of texts, each without the prefix that it shares with an earlier one.

    Args:
        readings: The texts of the pass.
        accumulators: Accumulators of the pass; a slot per response, text after text.
        is_alone: Whether its only text must not share a pass, and runs in the model's own attention.

    Attributes:
        readings: The texts of the pass.
        accumulators: Accumulators of the pass.
        is_alone: Whether its text runs in the model's own attention.
        token_ids: Token ids of the whole sequence.
        segments: One segment per text, without its shared prefix.
        edits: Ranges of the sequence that are edited, with their edits.
        conversations: For each response, where the conversation up to its end is in the sequence.
        stretches: Ranges of the sequence that are pooled.
        num_slots: Number of responses of all texts.
    """

    def __init__(self, readings: Sequence[TextInPass], accumulators: AccumulatorSet, *, is_alone: bool = False) -> None:
        self.readings = readings
        self.accumulators = accumulators
        self.is_alone = is_alone
        self.token_ids: list[int] = []
        self.segments: list[Segment] = []
        self.edits: list[EditedStretch] = []
        self.conversations: list[list[TokenRange]] = []
        self.stretches = PassStretches(accumulators, Wanted())
        self.num_slots = 0
        begins: list[int] = []
        for reading in readings:
            begin = len(self.token_ids)
            begins.append(begin)
            leader_begin = begins[reading.leader]
            if reading.num_tokens:
                self.segments.append(Segment(reading.shared, reading.num_tokens, prefix_at=leader_begin))
                self.token_ids += reading.text.token_ids[reading.shared : reading.shared + reading.num_tokens]
                self._edit(reading, begin)
            for spans in reading.text.spans:
                for span in accumulators.spans:
                    for start, stop in reading.in_line(begin, leader_begin, spans.of(span)):
                        self.stretches.claim(self.num_slots, span, start, stop)
                self.conversations.append(list(reading.in_line(begin, leader_begin, (0, spans.response[1]))))
                self.num_slots += 1

    @property
    def subject(self) -> str:
        """What an error of the pass is about."""
        return self.readings[0].text.name + ("" if self.is_alone else " or another text of its pass")

    def _edit(self, reading: TextInPass, begin: int) -> None:
        """Claim the edits of a text's own tokens, from the index ``begin`` on."""
        text = reading.text
        if reading.intervention is not None and text.responses:
            # Where edits differ between prompt and response, the text has one response.
            self.edits += reading.intervention.stretches(begin, reading.shared, length_of(text), text.responses[0][0])


@dataclass(frozen=True, slots=True)
class RanPass:
    """A pass that was run, or started on a GPU, which may still be computing it.

    Attributes:
        ran: The pass.
        observed: What was observed at each hook point; empty for a pass without a token.
        edits: What was edited.
    """

    ran: ReadingPass
    observed: Mapping[HookPoint, Observed]
    edits: EditedPass


class PassRunner(Protocol):
    """Runs passes over texts with one model."""

    def run(self, passes: Iterable[ReadingPass]) -> Iterator[RanPass]:
        """Run passes, all of them shared or all of them alone.

        Args:
            passes: The passes. Those that are alone run while the model is in its own attention.

        Yields:
            Each pass with what was observed, in the same order.
        """
        ...

    def shrink(self) -> bool:
        """Hold fewer passes at a time from now on, because the memory was exhausted in the last run.

        Returns:
            Whether that makes a difference; False where a single pass exhausted the memory.
        """
        ...


class ResidentRunner:
    """Runs one pass after another with a model whose weights are on its device.

    Args:
        loaded: The model.
        capture: Hooks at its captured layers.
        interventions: Applies interventions to it.
        top_layer: The highest captured layer.
    """

    def __init__(self, loaded: LoadedModel, capture: Capture, interventions: Interventions, top_layer: int) -> None:
        self._loaded = loaded
        self._capture = capture
        self._interventions = interventions
        self._top_layer = top_layer

    def run(self, passes: Iterable[ReadingPass]) -> Iterator[RanPass]:
        """Start each pass when the one before it is taken; see ``PassRunner.run``."""
        for one in passes:
            yield self._start(one)

    def shrink(self) -> bool:
        """Do nothing: only one pass is held, whose size is the reader's."""
        return False

    def _start(self, one: ReadingPass) -> RanPass:
        device = self._loaded.device
        if not one.token_ids:
            return RanPass(one, {}, self._interventions.planned(()))
        if one.is_alone:
            run = partial(self._logits_alone, one.token_ids)
        else:
            run = partial(PackedPass(device, one.segments).run, self._loaded.model, one.token_ids, None)
        with self._interventions.applied(one.edits) as edits:
            _, observed = self._capture.observe(
                run,
                one.stretches.wanted,
                num_tokens=len(one.token_ids),
                device=device,
                stop_at_top=True,
                top=self._interventions.top(edits, self._top_layer),
            )
        return RanPass(one, observed, edits)

    def _logits_alone(self, token_ids: Sequence[int]) -> torch.Tensor:
        return self._loaded.run_alone(token_ids).logits[0]
