"""Fields of a job spec that follow from others, filled in before validation unless the spec sets them."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter, ValidationError

from ..poolings import DEFAULT_PROMPT_POOLING
from .spec_parts import COMPLETION_TEMPLATE, PLAIN_TEMPLATE


def with_derived_fields(data: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a spec with those fields that follow from others; what is invalid is left for validation.

    Texts that are given or that a server generates are captured in a prefill pass. Texts of a run become tokens as they
    are stored, unless there is a chat template. Where no template is used, one of this project is named, because an
    engine loads no model without.

    Args:
        data: The values, as they were read.

    Example:
        >>> with_derived_fields({"conversations": {"source": "talks.jsonl"}})["capture"]
        {'mode': 'prefill_pass'}
    """
    if data.get("prefills"):
        data = _with_template(data, COMPLETION_TEMPLATE)
    capture = data.get("capture") or {}
    if not (data.get("conversations") or data.get("generation")) or not isinstance(capture, dict):
        return data
    derived: dict[str, Any] = {"mode": "prefill_pass"}
    if _reads_prompts_only(data.get("conversations")):
        derived["poolings"] = [DEFAULT_PROMPT_POOLING]
    return _with_rendering(data) | {"capture": derived | capture}


def _with_rendering(data: dict[str, Any]) -> dict[str, Any]:
    """Say how the texts of a run become tokens."""
    conversations, model = data.get("conversations"), data.get("model")
    if not isinstance(conversations, dict) or not conversations.get("texts_of") or not isinstance(model, dict):
        return data
    has_template = model.get("chat_template") is not None
    rendering = conversations.get("rendering") or ("template" if has_template else "tokens")
    if rendering != "template":
        data = _with_template(data, PLAIN_TEMPLATE)
    return data | {"conversations": conversations | {"rendering": rendering}}


def _with_template(data: dict[str, Any], template: str) -> dict[str, Any]:
    """Name a chat template where the model has none of the spec."""
    model = data.get("model")
    if not isinstance(model, dict) or model.get("chat_template") is not None:
        return data
    return data | {"model": model | {"chat_template": template}}


def _reads_prompts_only(conversations: Any) -> bool:
    """Whether a section that is not validated yet asks for prompts only; False for what validation will refuse."""
    if not isinstance(conversations, dict):
        return False
    try:
        return TypeAdapter(bool).validate_python(conversations.get("prompts_only", False))
    except ValidationError:
        return False
