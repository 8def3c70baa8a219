"""``persona-atlas chat``: talk to a capped or steered model on the terminal, each reply with its projection."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from importlib import import_module
from typing import Any

import click

from ....jobs.errors import InputError
from ....jobs.specs.spec_parts import SamplingSpec
from ...serving.conversation import Conversation, Said, Turn
from ...serving.engine_loop import EngineLoop
from .. import output
from ..options import json_option
from .axis_options import AxisOptions, axis_options


@click.command()
@axis_options
@click.option("--compare", is_flag=True, help="Show what the model says without the cap or the steering, too.")
@click.option("--system", "system_prompt", default="", help="System prompt.")
@click.option("--temperature", type=click.FloatRange(0, 10), default=0.7, show_default=True, help="0 is greedy.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=512, show_default=True, help="Most of a reply.")
@click.option("--seed", type=int, default=None, help="Repeats the replies to the same messages.")
@json_option
def chat(
    asked: AxisOptions,
    compare: bool,
    system_prompt: str,
    temperature: float,
    max_tokens: int,
    seed: int | None,
    as_json: bool,
) -> None:
    """Talk to the model of AXIS. Ctrl-C ends a reply, Ctrl-D the conversation.

    AXIS is a store with a reduction, imported vectors, or a directory of published vectors. Each reply is followed by
    its mean projection on the axis, in axis sign: higher is nearer the Assistant. Where stdin is no terminal, each of
    its lines is a message.
    """
    if compare and not asked.edits:
        raise InputError(
            "has no effect: there is nothing to compare with.",
            code="no_effect",
            field="--compare",
            hint="Give --cap or --steer too.",
        )
    sampling = SamplingSpec(temperature=temperature, max_new_tokens=max_tokens)
    turns: list[dict[str, Any]] = []
    with closing(asked.load(output.progress())) as model, closing(EngineLoop(model.responder)) as loop:
        talk = Conversation(model, loop, asked.edits, sampling, system_prompt=system_prompt, compare=compare, seed=seed)
        for message in _messages():
            said = _show(talk.turn(message), quiet=as_json, compare=compare)
            talk.answered(message, said[0])
            turns.append(_as_dict(message, said))
    if as_json:
        note = {} if model.note is None else {"note": model.note}
        edits = [setting.asked for setting in asked.edits]
        output.document({"model": model.name, "interventions": edits, "turns": turns} | note)


def _messages() -> Iterator[str]:
    """Read messages until the end of the input; blank ones are left out."""
    if not sys.stdin.isatty():
        yield from filter(None, map(str.strip, sys.stdin))
        return
    # Once it is loaded, lines can be edited and have a history.
    with suppress(ModuleNotFoundError):
        import_module("readline")
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            output.text("")
            return
        if line:
            yield line


def _show(turn: Turn, *, quiet: bool, compare: bool) -> list[Said]:
    """Print replies as they come; return them, first the one under the edits."""
    said: list[Said] = []
    names = ["edited", "plain"] if compare else [""]
    with _on_ctrl_c(turn):
        at_start = True
        for event in turn.replies():
            if isinstance(event, Said):
                said.append(event)
            if quiet:
                continue
            if at_start and names[0]:
                _write(f"{names.pop(0)}: ")
            at_start = isinstance(event, Said)
            _write(_ending(event) if isinstance(event, Said) else event)
    return said


def _ending(said: Said) -> str:
    what = "stopped" if said.is_stopped else str(said.place)
    return f"\n  [{what}]\n"


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


@contextmanager
def _on_ctrl_c(turn: Turn) -> Iterator[None]:
    """Let Ctrl-C end a reply while the block lasts; other signals end the command as ever."""
    before = signal.signal(signal.SIGINT, lambda *_: turn.stop())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _as_dict(message: str, said: list[Said]) -> dict[str, Any]:
    plain = {"plain": said[1].as_dict()} if len(said) > 1 else {}
    return {"message": message} | said[0].as_dict() | plain
