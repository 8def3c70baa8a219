"""Read conversations with the model of an axis, and score their turns. The model runs in this process."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import PurePath
from typing import TYPE_CHECKING

from ...analysis.axis_source import AxisSource, Layers
from ...analysis.watching.scores import ReadTurn, Ruler, ScoredConversation, Watched, ruler_of, score_turns
from ...jobs.conversation import Conversation
from ...jobs.errors import InputError
from ...jobs.poolings import TOKENS
from ...jobs.wording import count_of
from ...workers.chat.spans import load_renderer, require_within_context
from ...workers.chat.survey import TextSurvey
from ...workers.chat.turn_spans import LocatedTurn, LocatedTurns, TurnLocator, TurnPart, TurnRole, left_out_notes
from ...workers.engine import TokenisedText
from ..run.progress import Progress
from .axis_model import AxisReader, find_axis_model

if TYPE_CHECKING:
    from ...workers.builtin.builtin_engine import BuiltinEngine
    from ...workers.engine import CapturedText


_ASKED_AS = {"layer": "layers", "percentile": "threshold"}
"""Names of settings, by those of the axis's errors."""


@dataclass(frozen=True)
class WatchSettings:
    """What of conversations is scored, and how.

    Attributes:
        model: A Hugging Face id, a local directory, or ``package://module/file.gguf``; None: as the axis names it.
        layers: Layers, as ``AxisSource.chosen`` takes them.
        part: What of the assistant's messages is read.
        roles: Whose turns.
        threshold: Threshold to show, such as ``p0.25``; None: that one, if there is one.
        tokens: Whether every token is projected, too.
        chat_template: File with a chat template to use instead of the model's; None: that of the axis's run.
        transfer: Whether another model than the axis's is meant.
    """

    model: str | None = None
    layers: Layers = "middle"
    part: TurnPart = "content"
    roles: tuple[TurnRole, ...] = ("assistant",)
    threshold: str | None = None
    tokens: bool = False
    chat_template: str | None = None
    transfer: bool = False


class Watcher:
    """An axis with a model that was found and not loaded; everything that can be refused without weights is.

    Args:
        axis: The axis.
        settings: What is scored, and how.
        progress: Prints a line before something that takes long.

    Raises:
        InputError: There is no axis at a layer, no such threshold, or no such model, or it is another than the axis's.

    Attributes:
        ruler: The layers and what is compared with.
        found: The model.
        locator: Renders conversations and locates their turns.
    """

    def __init__(self, axis: AxisSource, settings: WatchSettings, progress: Progress) -> None:
        self._settings = settings
        self._progress = progress
        try:
            self.ruler: Ruler = ruler_of(axis, axis.chosen(settings.layers), settings.threshold)
        except InputError as error:
            # Named as whoever asked named it.
            field = _ASKED_AS.get(error.field or "", error.field)
            raise InputError(error.message, code=error.code, field=field, hint=error.hint) from None
        self.found: AxisReader = find_axis_model(
            axis, settings.model, progress, chat_template=settings.chat_template, transfer=settings.transfer
        )
        self._renderer = load_renderer(self.found.directory, self.found.chat_template)
        self.locator = TurnLocator(self._renderer)

    def locate(self, given: Conversation) -> LocatedTurns:
        """Render a conversation and locate the turns that are scored.

        Raises:
            InputError: It cannot be rendered, or is longer than the model's context; names where it was read.
        """
        located = self.locator.locate(given, self._settings.part, self._settings.roles)
        require_within_context(located.rendered.text, self.found.facts.max_context)
        return located

    def load(self) -> BuiltinEngine:
        """Load the model; see ``AxisReader.load``."""
        return self.found.load(self.ruler.layers, self._progress, tokens=self._settings.tokens)

    def watch(self, conversations: Sequence[Conversation]) -> Watched:
        """Score the turns of conversations, each read in one pass.

        Args:
            conversations: The conversations, at least one.

        Raises:
            InputError: One cannot be rendered or is too long, nothing of any turn was found, or the model cannot be
                loaded.
            UnitError: A value is not finite.
        """
        located = [self.locate(given) for given in conversations]
        notes = self._notes(conversations, located)
        if not any(_spans(one) for one in located):
            raise InputError(
                f"no turn has anything to read: --span {self._settings.part} of {' and '.join(self._settings.roles)}.",
                code="nothing_to_read",
                field="--span",
                hint=" ".join(left_out_notes(_sum_of(located))) or "--span content reads what was said.",
            )
        engine = self.load()
        self._progress.say(f"Reading {count_of(len(located), 'conversation')}.")
        scored: list[ScoredConversation] = []
        with self._progress.checking("Reading") as show:
            for given, one, captured in _captured(engine, conversations, located):
                turns = self._read(engine, one, captured)
                scored.append(
                    ScoredConversation(
                        given.conversation_index, _name_of(given), score_turns(self.ruler, engine.layers, turns)
                    )
                )
                show(len(scored), len(located))
        found = self.found
        return Watched(self.ruler, found.model.source, self._settings.part, tuple(scored), found.transfer, notes)

    def _read(self, engine: BuiltinEngine, located: LocatedTurns, captured: CapturedText) -> list[ReadTurn]:
        """Pair the turns with what was captured of those that have tokens."""
        axis = self.ruler.axis
        values = iter(zip(captured.vectors_LD, captured.tokens_KTD, strict=True))
        text_of = partial(engine.loaded.tokenizer.decode, clean_up_tokenization_spaces=False)
        turns: list[ReadTurn] = []
        for turn in located.turns:
            start, stop = turn.span
            if start == stop:
                turns.append(ReadTurn(turn.turn_index, turn.role, turn.text, 0, None))
                continue
            vectors, tokens = next(values)
            of_tokens = None
            if self._settings.tokens:
                of_tokens = located.token_texts(turn, text_of), tokens[axis.hook_point, TOKENS]
            vector_LD = vectors[axis.hook_point, axis.pooling]
            turns.append(ReadTurn(turn.turn_index, turn.role, turn.text, stop - start, vector_LD, of_tokens))
        return turns

    def _notes(self, conversations: Sequence[Conversation], located: Sequence[LocatedTurns]) -> tuple[str, ...]:
        survey = TextSurvey(self._renderer.renderer)
        for given, one in zip(conversations, located, strict=True):
            survey.add_conversation(given, one.rendered)
        left_out = left_out_notes(_sum_of(located))
        # Said once: by the messages where reasoning is read, by the rows where it is not.
        said = [
            line
            for name, line in zip(survey.counts, survey.lines(), strict=True)
            if not (left_out and name == "reasoning_left_out")
        ]
        template = self._settings.chat_template
        return (*left_out, *said, *([f"Rendered with the chat template {template}."] if template else []))


def _name_of(given: Conversation) -> str:
    """Return a title of the conversation's own, or where it was read."""
    found = json.loads(given.extra or "{}")
    title = next((found[key] for key in ("title", "name", "id") if isinstance(found.get(key), str)), "")
    # JSON can express half of a surrogate pair, which no file and no terminal takes.
    return title.strip().encode(errors="replace").decode() or PurePath(given.place).name


def _spans(located: LocatedTurns) -> list[LocatedTurn]:
    return [turn for turn in located.turns if turn.span[0] < turn.span[1]]


def _sum_of(located: Sequence[LocatedTurns]) -> Counter[str]:
    return sum((one.left_out for one in located), Counter())


def _captured(
    engine: BuiltinEngine, conversations: Sequence[Conversation], located: Sequence[LocatedTurns]
) -> Iterator[tuple[Conversation, LocatedTurns, CapturedText]]:
    """Yield every conversation with what was captured of it; as many are read at once as fit."""
    held: list[tuple[Conversation, LocatedTurns]] = []
    tokens = 0
    for number, (given, one) in enumerate(zip(conversations, located, strict=True), start=1):
        held.append((given, one))
        tokens += len(one.token_ids)
        if tokens < engine.tokens_per_capture and number < len(conversations):
            continue
        texts = [
            TokenisedText(given.place, one.token_ids, tuple(turn.span for turn in _spans(one))) for given, one in held
        ]
        for (talk, turns), captured in zip(held, engine.capture(texts), strict=True):
            yield talk, turns, captured
        held, tokens = [], 0
