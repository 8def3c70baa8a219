"""Dialogues before they are a run: which turn may be cut off by the context, and which is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from persona_atlas.jobs.errors import UnitError
from persona_atlas.jobs.messages import ChatMessage
from persona_atlas.jobs.sources.dialogue_source import Dialogue, DialogueRequests
from persona_atlas.jobs.work.units import WorkUnit
from persona_atlas.workers.builtin.builtin_engine import BuiltinEngine
from persona_atlas.workers.responders.dialogues import ChatRoom, DialogueResponder, RowShape

from requests_of import engine_settings


def test_a_first_turn_that_is_too_long_is_refused_whatever_was_said_before_it(tiny_model_directory: Path):
    settings = engine_settings(tiny_model_directory, layers=(1,), max_new_tokens=8, poolings=("response_mean",))
    engine = BuiltinEngine(settings)
    room = ChatRoom(engine.renderer, engine.loaded.max_context, 8)
    responder = DialogueResponder(engine, RowShape(settings, 32), room)
    history = (ChatMessage("user", "Hi"), ChatMessage("assistant", "x" * 2 * room.max_context))
    talk = Dialogue("conversation", "sea", 0, 0, 0, "", ("So?", "Why?"), history)
    unit = WorkUnit("c", "conversation", "sea", "pos", 0, (0, 0), (0, 0), (3, 5), (0, 0))
    requests = list(DialogueRequests((talk,), 0).first(unit))
    with pytest.raises(UnitError, match=f"exceed the model's context of {room.max_context}"):
        list(responder.generate(lambda: requests.pop() if requests else None))
