"""From a spec to the list of work units, before anything is spent. Pure: reads no store, loads no model."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .catalog import Catalog
from .errors import InputError
from .personas import DEFAULT_PERSONA, POLARITIES, Kind, Persona, Question
from .spec import DefaultSelection, JobSpec, Selection, digest_of
from .unit_size import BLOCK_BYTES_LIMIT, RowSizes, whole_chunks
from .units import AskedTexts, RolloutRequest, UnitTexts, WorkUnit

_RETOKENISED = 2
"""Room, in times ``max_new_tokens``, for the text of a server whose tokens are counted anew here."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What is known of a model without loading it.

    Attributes:
        n_layers: Blocks.
        d_model: Width of the residual stream.
        num_parameters: Parameters in all.
        kv_values_per_token: Values that one token adds to the KV cache, all layers together.
        dtype: The checkpoint's own parameter type.
        family: ``model_type`` of its configuration.
        max_context: Longest sequence it takes, in tokens.
        fingerprint: SHA-256 over its configuration, tokenizer and weight files' headers; empty where the files were not
            read, and then nothing can be run, only planned.
    """

    n_layers: int
    d_model: int
    num_parameters: int
    kv_values_per_token: int
    dtype: str
    family: str
    max_context: int
    fingerprint: str


@dataclass(frozen=True)
class Plan:
    """Every unit of a job, in a fixed order, and what the store needs to know to hold them.

    Attributes:
        spec: The spec it was made from.
        catalog: Where its texts come from.
        facts: Of the model.
        layers: The captured blocks, 0-based, ascending.
        token_layers: Those of which every token is kept, ascending; none unless ``tokens`` is among the poolings.
        units: In order: default, roles, traits; by name, polarity, prompt, question block.
        rows_per_block: Rows of a unit's block; a shorter unit leaves the rest empty.
        tokens_per_block: Content tokens that a unit's responses may come to in all; 0 when none are kept.

    Example:
        >>> from persona_atlas import plan
        >>> plan("job.yaml").units[0].unit_id
        'default.assistant_default.pos.p0.b0'
    """

    spec: JobSpec
    catalog: Catalog
    facts: ModelFacts
    layers: tuple[int, ...]
    token_layers: tuple[int, ...]
    units: tuple[WorkUnit, ...]
    rows_per_block: int
    tokens_per_block: int

    @cached_property
    def by_id(self) -> dict[str, WorkUnit]:
        """Units by unit_id."""
        return {unit.unit_id: unit for unit in self.units}

    @property
    def num_rollouts(self) -> int:
        """Rollouts of all units."""
        return sum(unit.num_rollouts for unit in self.units)

    def rollouts_by_kind(self) -> dict[Kind, int]:
        """Rollouts of each kind that has any."""
        counts: dict[Kind, int] = {}
        for unit in self.units:
            counts[unit.kind] = counts.get(unit.kind, 0) + unit.num_rollouts
        return counts

    def system_prompt(self, unit: WorkUnit) -> str:
        """Give the system prompt of a unit (``""``: none)."""
        persona = self.catalog.persona(unit.kind, unit.persona)
        return persona.system_prompt(unit.polarity, unit.prompt_index, self.spec.model.display_name)

    def questions(self, unit: WorkUnit) -> tuple[str, ...]:
        """Give the texts of a unit's questions, in order."""
        asked = _questions_of(self.spec, self.catalog, self.catalog.persona(unit.kind, unit.persona))
        return tuple(asked[index].text for index in unit.question_indices)

    def texts(self, unit: WorkUnit) -> UnitTexts:
        """Give the words of a unit."""
        return AskedTexts(self.system_prompt(unit), self.questions(unit), self.spec.seed)

    def requests(self, unit: WorkUnit) -> tuple[RolloutRequest, ...]:
        """Give a unit's rollouts with their words and seeds, in row order."""
        return tuple(self.texts(unit).requests(unit))

    def identity(self) -> list[Any]:
        """Give what decides what the run's numbers mean and where they lie, but for the texts."""
        sizes = [self.rows_per_block, *([self.tokens_per_block] if self.tokens_per_block else [])]
        return [self.spec.identity(), self.facts.fingerprint, *sizes]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the identity of the spec, the model and every text that will be sent.

        Raises:
            InputError: The model's files were not read, so that nobody knows which model this is.
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
            digest.update(json.dumps([unit.unit_id, self.system_prompt(unit), self.questions(unit)]).encode())
        return digest.hexdigest()


def make_plan(spec: JobSpec, catalog: Catalog, facts: ModelFacts) -> Plan:
    """Cut a job into units.

    Args:
        spec: What to run.
        catalog: The personas it names.
        facts: Of the model it names.

    Raises:
        InputError: A persona, a layer, or more prompts or questions than there are, or more activations of one
            question than a unit holds; names the field.
    """
    layers, token_layers = captured_layers(spec, facts)
    sizes = RowSizes.of(spec, facts.d_model, len(layers), len(token_layers))
    units: list[WorkUnit] = []
    widest = 0
    for kind, selection, names in _selected(spec, catalog):
        for name in names:
            persona = catalog.persona(kind, name)
            prompts = _limit(len(persona.prompts), selection.prompts, f"{_field(kind)}.prompts", f"{kind} {name!r}")
            questions = _limit(
                len(_questions_of(spec, catalog, persona)),
                selection.questions,
                f"{_field(kind)}.questions",
                f"{kind} {name!r}",
            )
            at_once = _questions_per_block(spec, selection.samples, sizes, f"{_field(kind)}.samples")
            blocks = list(_question_blocks(questions, at_once))
            for polarity in POLARITIES[kind]:
                for prompt_index in range(prompts):
                    for block_index, block in enumerate(blocks):
                        unit_id = f"{kind}.{name}.{polarity}.p{prompt_index}.b{block_index}"
                        unit = WorkUnit(unit_id, kind, name, polarity, prompt_index, block, selection.samples)
                        widest = max(widest, unit.num_rollouts)
                        units.append(unit)
    tokens_per_block = whole_chunks(widest * _longest_response(spec)) if token_layers else 0
    return Plan(spec, catalog, facts, layers, token_layers, tuple(units), widest, tokens_per_block)


def _field(kind: Kind) -> str:
    return {"role": "personas.roles", "trait": "personas.traits", "default": "personas.default"}[kind]


def _selected(spec: JobSpec, catalog: Catalog) -> Iterator[tuple[Kind, Selection | DefaultSelection, tuple[str, ...]]]:
    personas = spec.personas
    if personas.default.prompts != 0:
        if DEFAULT_PERSONA not in catalog.names("default"):
            raise InputError(
                f"the catalog {catalog.source!r} has no default Assistant.",
                code="no_default",
                field="personas.default",
                hint="Set personas.default.prompts to 0, or add its file to the catalog.",
            )
        yield "default", personas.default, (DEFAULT_PERSONA,)
    yield "role", personas.roles, catalog.select("role", personas.roles.names, "personas.roles.names")
    yield "trait", personas.traits, catalog.select("trait", personas.traits.names, "personas.traits.names")


def _questions_of(spec: JobSpec, catalog: Catalog, persona: Persona) -> tuple[Question, ...]:
    own = {"role": spec.personas.roles, "trait": spec.personas.traits}.get(persona.kind)
    return persona.questions if own is not None and own.questions_from == "own" else catalog.questions


def _limit(available: int, asked: int | None, field: str, what: str) -> int:
    wanted = available if asked is None else asked
    if wanted > available or wanted == 0:
        raise InputError(
            f"asks for {wanted} of {what}, which has {available}.",
            code="too_many",
            field=field,
            hint=f"Ask for at most {available}." if available else "Choose other questions or another catalog.",
        )
    return wanted


def _longest_response(spec: JobSpec) -> int:
    """Give the most tokens of a response; what a server wrote may be more of them when it is read here."""
    return spec.sampling.max_new_tokens * (_RETOKENISED if spec.generation else 1)


def _questions_per_block(spec: JobSpec, samples: int, sizes: RowSizes, field: str) -> int:
    """Say how many questions' rollouts stay under the size limit, every response at its longest."""
    longest = _longest_response(spec)
    if samples > sizes.most_rollouts:
        raise InputError(
            f"{samples} samples of one question come to {samples * sizes.rollout_bytes / 2**20:.0f} MiB; a unit holds "
            f"{BLOCK_BYTES_LIMIT // 2**20}.",
            code="too_many",
            field=field,
            hint=f"Ask for at most {sizes.most_rollouts}, or capture fewer layers.",
        )
    if samples * longest > sizes.most_tokens:
        most = sizes.most_tokens // samples
        fewer = f" or ask for at most {sizes.most_tokens // longest} samples" if sizes.most_tokens >= longest else ""
        ways = f"set sampling.max_new_tokens to at most {most}{fewer}" if most else "ask for fewer samples"
        whose = f"{samples} responses" if samples > 1 else "one response"
        raise sizes.refuse_tokens(samples * longest, f"{whose} of up to {longest} tokens", ways)
    return min(sizes.most_rollouts // samples, sizes.most_tokens // (samples * longest))


def _question_blocks(num_questions: int, questions_per_block: int) -> Iterator[tuple[int, ...]]:
    """Cut 0..num_questions into the fewest blocks of near-equal length."""
    num_blocks = math.ceil(num_questions / questions_per_block)
    edges = [round(i * num_questions / num_blocks) for i in range(num_blocks + 1)]
    for start, stop in itertools.pairwise(edges):
        yield tuple(range(start, stop))


def captured_layers(spec: JobSpec, facts: ModelFacts) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Say which blocks a spec captures, and of which of these it keeps every token, both ascending.

    Where tokens are all that is kept, no other layer is captured.

    Raises:
        InputError: The model has no such block, or tokens are asked of one that is not captured.
    """
    layers = _blocks(spec.capture.layers, range(facts.n_layers), facts, "capture.layers")
    if spec.capture.token_layers is None:
        return layers, ()
    token_layers = _blocks(spec.capture.token_layers, layers, facts, "capture.token_layers")
    left_out = [layer for layer in token_layers if layer not in layers]
    if left_out:
        raise InputError(
            f"asks for the tokens of layer {left_out[0]}, which capture.layers leaves out.",
            code="no_such_layer",
            field="capture.token_layers",
            hint=f"Capture layer {left_out[0]} too, or choose among {', '.join(map(str, layers))}.",
        )
    return (layers if spec.capture.pooled else token_layers), token_layers


def _blocks(asked: Any, every: Sequence[int], facts: ModelFacts, field: str) -> tuple[int, ...]:
    """Turn ``all``, ``middle`` or a list into blocks that the model has, ascending."""
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
