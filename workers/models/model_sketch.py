"""Read a model's ``ModelFacts`` for planning without downloading weights, which may be 140 GB.

Sources, in this order: the model's files, if they are on this machine; its configuration and the headers or index of
its weight files, which the hub serves without the weights; the table of known models. Only the files give a
fingerprint, so the other two are enough to plan a job but not to run it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from ...jobs.errors import InputError
from ...jobs.model_facts import ModelFacts
from ...jobs.sizing.known_models import known_models
from ...jobs.specs.spec_parts import ModelSpec
from .checkpoints.checkpoint import facts_of, facts_of_index
from .checkpoints.hub import HubListing
from .model_files import Sources, find_sources, read_facts

FactsFrom = Literal["files", "configuration", "table"]
"""Source of a model's facts: all its files, its configuration and weight index, or the table of known models."""


def sketch_model(model: ModelSpec, say: Callable[[str], None]) -> tuple[ModelFacts, FactsFrom]:
    """Read what planning needs to know about a model; no weights are downloaded.

    Args:
        model: Source and revision of the model, and its adapter.
        say: Called with a line of text before something that takes long.

    Returns:
        The facts and their source; the fingerprint is empty unless the source is ``files``.

    Raises:
        InputError: There is no such model, it cannot be run, or no source is available on this machine.
    """
    try:
        sources = find_sources(model, say, cached_first=True)
    except InputError as error:
        known = known_models().get(model.source)
        if known is None:
            raise _with_known_models(error) from error
        say(f"{error.message} Planning with what is known of {model.source}.")
        return replace(known, has_adapter=model.adapter is not None), "table"
    facts, facts_from = _facts_of(sources)
    return replace(facts, has_adapter=sources.adapter is not None), facts_from


def _facts_of(sources: Sources) -> tuple[ModelFacts, FactsFrom]:
    checkpoint = sources.check()
    if isinstance(sources.model, HubListing):
        return facts_of(checkpoint, fingerprint=""), "configuration"
    weights = checkpoint.weights
    if weights.entry not in weights.names and all(sources.model.size(name) is None for name in weights.names):
        return facts_of_index(checkpoint), "configuration"
    return read_facts(sources.directory(checkpoint)), "files"


def _with_known_models(error: InputError) -> InputError:
    """Add to an error of the hub which models can be planned without it."""
    if error.code != "no_model" or not error.message.endswith(".") or "hub" not in error.message:
        return error
    hint = f"{error.hint} Models that can be planned without it: {', '.join(known_models())}."
    return InputError(error.message, code=error.code, field=error.field, hint=hint)
