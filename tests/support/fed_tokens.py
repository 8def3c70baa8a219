"""Count the tokens that an engine's model is fed."""

from __future__ import annotations

from typing import Any

import pytest
from persona_atlas.workers.builtin.builtin_engine import BuiltinEngine


def count_tokens(engine: BuiltinEngine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have a list grow by the tokens of each pass."""
    seen: list[int] = []
    forward = engine.model.forward

    def counting(*args: Any, **options: Any) -> Any:
        seen.append(options["input_ids"].numel())
        return forward(*args, **options)

    monkeypatch.setattr(engine.model, "forward", counting)
    return seen
