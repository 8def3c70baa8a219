"""Watch a running conversation: score its turns as they come, at the cost of the new tokens."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ...analysis.axis_source import AxisSource, Layers, open_axis
from ...analysis.watching.scores import ReadTurn, ScoredTurn, score_turns
from ...jobs.errors import InputError
from ...jobs.sources.reading.read_conversations import parse_conversations
from ...workers.chat.turn_spans import TurnPart, TurnRole
from ..api.progress import shown_progress
from .watcher import Watcher, WatchSettings


class Monitor:
    """Scores the turns of conversations on an axis, with a model that is loaded once into this process.

    Keys and values of a conversation are kept between calls, so that a call costs one pass over the tokens that are
    new. The eight conversations that were scored last are kept, and may take turns. A conversation whose earlier
    messages were changed, or whose template writes earlier turns otherwise as it goes on (without their reasoning, for
    instance), is read from its start.

    Args:
        axis: The axis, or what ``open_axis`` takes: a run with a reduction, imported or published vectors.
        model: A Hugging Face id, a local directory, or ``package://module/file.gguf``; None: as the axis names it.
        layers: A 0-based layer, several, ``"middle"``, ``"all"``, or a text such as ``"10:20"``.
        span: What of the assistant's messages is read: ``content``, ``reasoning`` or ``all``.
        roles: Whose turns are scored: ``assistant``, ``user`` or both.
        threshold: Threshold to compare with: a percentile of the projection on -axis, such as ``p0.25``; None: that
            one, if the axis has it.
        chat_template: File with a chat template to use instead of the model's; None: that of the axis's run.
        transfer: Whether another model than the axis's is meant.
        progress: Whether to print progress to stderr.

    Raises:
        InputError: There is no axis at a layer, no such threshold, or no such model, or it is another than the axis's.

    Attributes:
        layers: The layers of every score, 0-based.
        notes: Sentences that belong beside the numbers; the first says it if the model is another than the axis's.

    Example:
        >>> from persona_atlas import Monitor
        >>> monitor = Monitor("models/tiny-axis", "models/tiny", progress=False)
        >>> talk = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Ahoy!"}]
        >>> first, = monitor.score(talk)
        >>> first.turn_index, first.num_tokens, first.score.layer
        (1, 5, 1)
        >>> talk += [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I."}]
        >>> [turn.turn_index for turn in monitor.score(talk, turns="last")]
        [3]
    """

    def __init__(
        self,
        axis: AxisSource | str | os.PathLike[str],
        model: str | os.PathLike[str] | None = None,
        *,
        layers: Layers = "middle",
        span: TurnPart = "content",
        roles: Sequence[TurnRole] = ("assistant",),
        threshold: str | None = None,
        chat_template: str | os.PathLike[str] | None = None,
        transfer: bool = False,
        progress: bool = True,
    ) -> None:
        settings = WatchSettings(
            model=None if model is None else os.fspath(model),
            layers=layers,
            part=span,
            roles=tuple(roles),
            threshold=threshold,
            chat_template=None if chat_template is None else os.fspath(chat_template),
            transfer=transfer,
        )
        opened = axis if isinstance(axis, AxisSource) else open_axis(axis)
        self._watcher = Watcher(opened, settings, shown_progress(progress))
        self._engine = self._watcher.load()
        self._reader = self._engine.kept_reader()
        found, ruler = self._watcher.found, self._watcher.ruler
        self.layers: tuple[int, ...] = ruler.layers
        self.notes: tuple[str, ...] = (*((found.transfer,) if found.transfer else ()), *ruler.notes)

    @property
    def tokens_fed(self) -> int:
        """Tokens that the model has computed so far, in all conversations."""
        return self._reader.tokens_fed

    def score(
        self, messages: Sequence[Mapping[str, Any]] | Mapping[str, Any], *, turns: Literal["all", "last"] = "all"
    ) -> tuple[ScoredTurn, ...]:
        """Score the turns of a conversation.

        Args:
            messages: The messages so far, at least one of the assistant; or an object with ``messages`` and, beside
                them, ``tools``.
            turns: ``all``, or ``last`` for the last one only.

        Returns:
            The turns with their scores at each of ``layers``; ``as_dict`` of one is what ``project --json`` prints.

        Raises:
            InputError: The messages are no conversation, have no message of the assistant, cannot be rendered, or are
                longer than the model's context.
            UnitError: A value is not finite.
        """
        conversations = parse_conversations(messages, "messages").conversations
        if len(conversations) != 1:
            raise InputError(
                f"holds {len(conversations)} conversations, and one is scored at a time.",
                code="several_conversations",
                field="messages",
                hint="Call score for each of them.",
            )
        located = self._watcher.locate(conversations[0])
        spans = [turn.span for turn in located.turns if turn.span[0] < turn.span[1]]
        values = iter(self._reader.read("messages", located.token_ids, spans))
        read = [
            ReadTurn(turn.turn_index, turn.role, turn.text, stop - start, next(values) if start < stop else None)
            for turn in located.turns
            for start, stop in (turn.span,)
        ]
        scored = score_turns(self._watcher.ruler, self._engine.layers, read)
        return scored if turns == "all" else scored[-1:]
