"""Plan a job: from a spec and a source of requests to the list of work units. Pure: reads no store, loads no model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .errors import InputError
from .model_facts import ModelFacts
from .personas import Kind
from .sources.source import RequestSource
from .specs.spec import JobSpec, digest_of
from .work.run_edits import RunEdits
from .work.unit_size import RowSizes, whole_chunks
from .work.units import UnitRequests, WorkUnit


@dataclass(frozen=True)
class Plan:
    """All units of a job, in a fixed order, and the shapes of its arrays in the store.

    Attributes:
        spec: The spec that was planned.
        source: Source of the units and their texts.
        facts: Sizes and identity of the model.
        layers: The captured decoder layers, 0-based, ascending.
        token_layers: Those at which every token is kept, ascending; empty unless ``tokens`` is among the poolings.
        units: The units, in the order of the source.
        rows_per_block: Rows of a row block: the number of rollouts of the largest unit. Smaller units leave rows empty.
        tokens_per_block: Rows of a row block in ``tokens`` arrays: the most content tokens that the responses of a unit
            may have, in whole chunks; 0 when no tokens are kept.
        edits: Edits of the residual stream under which every rollout is made; None for none.

    Example:
        >>> from persona_atlas import plan
        >>> plan("job.yaml").units[0].unit_id
        'default.assistant_default.pos.p0.b0'
    """

    spec: JobSpec
    source: RequestSource
    facts: ModelFacts
    layers: tuple[int, ...]
    token_layers: tuple[int, ...]
    units: tuple[WorkUnit, ...]
    rows_per_block: int
    tokens_per_block: int
    edits: RunEdits | None = None

    @cached_property
    def by_id(self) -> dict[str, WorkUnit]:
        """Units by unit_id."""
        return {unit.unit_id: unit for unit in self.units}

    @property
    def num_rollouts(self) -> int:
        """Number of rollouts of all units."""
        return sum(unit.num_rollouts for unit in self.units)

    def rollouts_by_kind(self) -> dict[Kind, int]:
        """Count the rollouts of each kind that has any."""
        counts: dict[Kind, int] = {}
        for unit in self.units:
            counts[unit.kind] = counts.get(unit.kind, 0) + unit.num_rollouts
        return counts

    def requests(self, unit: WorkUnit) -> UnitRequests:
        """Return the texts of a unit, from which its requests are made."""
        return self.source.requests(unit)

    def identity(self) -> list[Any]:
        """Return what, besides the texts, determines the meaning and the location of the run's values."""
        sizes = [self.rows_per_block, *([self.tokens_per_block] if self.tokens_per_block else [])]
        template = self.facts.chat_template_sha256
        edits = [] if self.edits is None else [{"interventions": self.edits.digest}]
        return [self.spec.identity(), self.facts.fingerprint, *sizes, *([template] if template else []), *edits]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the identity of the spec, the model and every prompt or given text.

        Raises:
            InputError: The model's files were not read, so its fingerprint is unknown.
        """
        if not self.facts.fingerprint:
            raise InputError(
                f"the files of {self.spec.model.source!r} were not read, so this plan has no digest.",
                code="no_fingerprint",
                field="model.source",
                hint="Plan it where the model's files are; a run needs them.",
            )
        digest = hashlib.sha256(digest_of(self.identity()).encode())
        for unit in self.units:
            digest.update(self.source.identity(unit))
        return digest.hexdigest()


def make_plan(
    spec: JobSpec,
    source: RequestSource,
    facts: ModelFacts,
    *,
    sizes_bits: bool = True,
    edits: RunEdits | None = None,
) -> Plan:
    """Divide a job into units.

    Args:
        spec: The job.
        source: Source of its texts; ``load_source`` opens the one that a spec names.
        facts: Sizes and identity of the model that the spec names.
        sizes_bits: Whether more than 10 mantissa bits make units smaller; False for runs from before they did.
        edits: What the spec's ``interventions`` were resolved to; None where it has none.

    Raises:
        InputError: The model lacks a layer, the source lacks a persona, prompt or question, one question or
            conversation has more activations than a unit holds, or prompts and ``max_new_tokens`` are longer than the
            model's context; names the field.
    """
    layers, token_layers = captured_layers(spec, facts)
    sizes = RowSizes.of(spec, facts.d_model, len(layers), len(token_layers), sizes_bits=sizes_bits)
    units = tuple(source.units(sizes, facts.max_context))
    if source.generates:
        # Each word is a token or more; with the model's tokenizer at hand, ``prepare`` counts them.
        refuse_beyond_context(spec, facts, source.longest_prompt(units, lambda text: len(text.split())))
    tokens = max((source.most_tokens(unit, facts.max_context) for unit in units), default=0) if token_layers else 0
    return Plan(
        spec=spec,
        source=source,
        facts=facts,
        layers=layers,
        token_layers=token_layers,
        units=units,
        rows_per_block=max((unit.num_rollouts for unit in units), default=0),
        # Generous, because rows that a unit leaves empty take no space in the store.
        tokens_per_block=whole_chunks(tokens),
        edits=edits,
    )


def refuse_beyond_context(spec: JobSpec, facts: ModelFacts, prompt_tokens: int) -> None:
    """Refuse responses for which the model's context has no room.

    Args:
        spec: The job.
        facts: Sizes of its model.
        prompt_tokens: Tokens of the longest prompt, or a number that they are not below.

    Raises:
        InputError: The longest prompt and ``sampling.max_new_tokens`` are more than the context.
    """
    asked = spec.sampling.max_new_tokens
    room = facts.max_context - prompt_tokens
    if asked > room:
        raise InputError(
            f"is {asked:,}, but the model's context is {facts.max_context:,} tokens, and the longest prompt takes at "
            f"least {prompt_tokens:,} of them.",
            code="beyond_context",
            field="sampling.max_new_tokens",
            hint=f"Set it to at most {room:,}."
            if room > 0
            else "Shorten the prompts, or use a model with more context.",
        )


def captured_layers(spec: JobSpec, facts: ModelFacts) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Resolve the captured layers of a spec, and those of them at which every token is kept; both ascending.

    If ``tokens`` is the only pooling, only the token layers are captured.

    Args:
        spec: The job.
        facts: Sizes of its model.

    Raises:
        InputError: The model lacks a layer, or tokens are to be kept at a layer that is not captured.
    """
    layers = _layers(spec.capture.layers, range(facts.n_layers), facts, "capture.layers")
    if spec.capture.token_layers is None:
        return layers, ()
    token_layers = _layers(spec.capture.token_layers, layers, facts, "capture.token_layers")
    left_out = [layer for layer in token_layers if layer not in layers]
    if left_out:
        raise InputError(
            f"asks for the tokens of layer {left_out[0]}, which capture.layers leaves out.",
            code="no_such_layer",
            field="capture.token_layers",
            hint=f"Capture layer {left_out[0]} too, or choose among {', '.join(map(str, layers))}.",
        )
    return (layers if spec.capture.pooled else token_layers), token_layers


def _layers(asked: Any, every: Sequence[int], facts: ModelFacts, field: str) -> tuple[int, ...]:
    """Resolve ``all``, ``middle`` or a list to layers of the model, ascending."""
    if asked == "all":
        return tuple(every)
    if asked == "middle":
        return (facts.n_layers // 2,)
    beyond = [layer for layer in asked if layer >= facts.n_layers]
    if beyond:
        raise InputError(
            f"asks for layer {beyond[0]}, but the model has {facts.n_layers}.",
            code="no_such_layer",
            field=field,
            hint=f"Layers are counted from 0 to {facts.n_layers - 1}.",
        )
    return tuple(sorted(asked))
