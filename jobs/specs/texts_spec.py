"""The sections of a job spec that say where texts come from, other than a catalog: existing ones, and openings."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from ..catalog import BUILTIN
from ..files.yaml_file import NO_BOOLEAN
from .spec_parts import MAX_COUNT, SpecSection

TextsRendering = Literal["tokens", "template", "plain"]

_Count = Annotated[int, Field(ge=1, le=MAX_COUNT), NO_BOOLEAN]


class ConversationsSpec(SpecSection):
    """Existing conversations, whose activations are captured instead of generating responses.

    Attributes:
        source: A ``.jsonl`` or ``.json`` file, or a directory of such files; None with ``texts_of``.
        skip_invalid: Whether entries that cannot be read are left out and listed in the store; otherwise all are
            refused.
        prompts_only: Whether they are prompts without an answer, each of which is one row: only poolings that are
            defined without a response can be captured, by default ``prompt_last``.
        texts_of: Store of a run whose responses are read again, by another model as a rule: a directory, ``s3://`` or
            ``hf://``. None with ``source``.
        rendering: How those texts become tokens. ``tokens``: as the token ids that the run stored, for a model with the
            same vocabulary. ``template``: by the model's chat template, or by ``model.chat_template``. ``plain``:
            without a template's control tokens, as lines that name the speaker. By default ``template`` where the spec
            gives a template, else ``tokens``; None with ``source``.
    """

    source: Annotated[str, Field(min_length=1)] | None = None
    skip_invalid: bool = False
    prompts_only: bool = False
    texts_of: Annotated[str, Field(min_length=1)] | None = None
    rendering: TextsRendering | None = None

    @model_validator(mode="after")
    def _names_one_source(self) -> ConversationsSpec:
        if (self.source is None) == (self.texts_of is None):
            raise ValueError("name either source, the file of the texts, or texts_of, the store of a run")
        if self.texts_of is None:
            if self.rendering is not None:
                raise ValueError("rendering is for texts_of; texts of files are rendered by the chat template")
            return self
        for name in ("skip_invalid", "prompts_only"):
            if getattr(self, name):
                raise ValueError(f"{name} is for files, and texts_of names a run")
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_unused(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # The section has the bytes that it had before there were texts of runs.
        return {name: value for name, value in write(self).items() if value is not None}


class PrefillsSpec(SpecSection):
    """Openings of text that the model completes, without a chat template.

    Attributes:
        source: ``builtin``, or a YAML file with ``groups``, a mapping from the name of a group to its openings.
        samples: Completions of each opening.
    """

    source: Annotated[str, Field(min_length=1)] = BUILTIN
    samples: _Count = 1
