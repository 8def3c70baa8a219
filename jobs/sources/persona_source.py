"""Personas of a catalog, asked questions: the spec's selection becomes units whose responses are to be generated. Pure.

Units come in the order default, roles, traits; by name, polarity, prompt and question batch.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from ..catalog import Catalog
from ..conversation import Conversation
from ..errors import InputError
from ..messages import ChatMessage
from ..personas import DEFAULT_PERSONA, POLARITIES, Kind, Persona, Question
from ..rollouts import Rollout
from ..spec import DefaultSelection, JobSpec, Selection
from ..text_tokens import prompt_tokens
from ..unit_size import BLOCK_BYTES_LIMIT, RowSizes
from ..units import RolloutRequest, WorkUnit
from .source import TokenCounts

_RETOKENISED = 2
"""Room, in times ``max_new_tokens``, for the text of a server whose tokens are counted anew here."""


@dataclass(frozen=True, slots=True)
class PersonaRequests:
    """The texts of a unit of single questions: one system prompt, and the questions asked under it.

    Attributes:
        system_prompt: Begins every chat of the unit; ``""`` for none.
        questions: The unit's questions, each once, in the order of its rows.
        job_seed: The spec's, from which each rollout's own seed is derived.
    """

    system_prompt: str
    questions: tuple[str, ...]
    job_seed: int

    def first(self, unit: WorkUnit) -> Iterator[RolloutRequest]:
        """Make every request of the unit; see ``UnitRequests.first``."""
        system = (ChatMessage("system", self.system_prompt),) if self.system_prompt else ()
        chats = {
            index: (*system, ChatMessage("user", question))
            for index, question in zip(_distinct(unit), self.questions, strict=True)
        }
        for address in unit.addresses():
            yield RolloutRequest(address, chats[address.question_index], address.seed(self.job_seed))

    def following(self, request: RolloutRequest, rollout: Rollout) -> RolloutRequest | None:
        """Make no request: a question has one response; see ``UnitRequests.following``."""
        return None


@dataclass(frozen=True)
class PersonaSource:
    """The personas that a spec selects, each asked the questions that it selects.

    Attributes:
        spec: The selection, the sampling and the seed.
        catalog: The personas' prompts and questions.
    """

    spec: JobSpec
    catalog: Catalog

    @property
    def generates(self) -> bool:
        """True: every response is generated, here or by a server."""
        return True

    @property
    def conversations(self) -> tuple[Conversation, ...]:
        """None exist."""
        return ()

    def units(self, sizes: RowSizes, max_context: int) -> Iterator[WorkUnit]:
        """Cut the selection into units; see ``RequestSource.units``.

        Raises:
            InputError: The catalog lacks a persona or has fewer prompts or questions than the spec asks for, or no unit
                holds the samples of one question; names the field.
        """
        for kind, selection, names in self._selected():
            for name in names:
                yield from self._units_of(self.catalog.persona(kind, name), selection, sizes)

    def requests(self, unit: WorkUnit) -> PersonaRequests:
        """Return a unit's system prompt and questions."""
        return PersonaRequests(self._system_prompt(unit), self._questions(unit), self.spec.seed)

    def identity(self, unit: WorkUnit) -> bytes:
        """Return a unit's system prompt and questions as JSON; see ``RequestSource.identity``."""
        return json.dumps([unit.unit_id, self._system_prompt(unit), self._questions(unit)]).encode()

    def most_tokens(self, unit: WorkUnit, max_context: int) -> int:
        """Return the tokens of a unit's responses when each is as long as it may become."""
        return unit.num_rollouts * self._longest_response

    def token_counts(self, units: Sequence[WorkUnit]) -> TokenCounts:
        """Count every prompt, and every response as long as it may become; the row is the longest of them."""
        # A job asks the same few hundred questions hundreds of thousands of times.
        words = cache(lambda text: len(text.split()))
        total = longest = 0
        for unit in units:
            system_words = words(self._system_prompt(unit))
            of_questions = [prompt_tokens(system_words + words(question)) for question in self._questions(unit)]
            samples = unit.num_rollouts // len(of_questions)
            total += samples * sum(of_questions)
            longest = max(longest, *of_questions)
        new = self.spec.sampling.max_new_tokens
        return TokenCounts(total, sum(unit.num_rollouts for unit in units) * new, longest + new)

    def _selected(self) -> Iterator[tuple[Kind, Selection | DefaultSelection, tuple[str, ...]]]:
        personas, catalog = self.spec.personas, self.catalog
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

    def _units_of(
        self, persona: Persona, selection: Selection | DefaultSelection, sizes: RowSizes
    ) -> Iterator[WorkUnit]:
        kind, name = persona.kind, persona.name
        field, whose = _field(kind), f"{kind} {name!r}"
        prompts = _limit(len(persona.prompts), selection.prompts, f"{field}.prompts", whose)
        questions = _limit(len(self._asked(persona)), selection.questions, f"{field}.questions", whose)
        at_once = self._questions_per_unit(selection.samples, sizes, f"{field}.samples")
        batches = list(_question_batches(questions, at_once))
        for polarity in POLARITIES[kind]:
            for prompt_index in range(prompts):
                for number, batch in enumerate(batches):
                    unit_id = f"{kind}.{name}.{polarity}.p{prompt_index}.b{number}"
                    yield WorkUnit.of_questions(unit_id, kind, name, polarity, prompt_index, batch, selection.samples)

    def _system_prompt(self, unit: WorkUnit) -> str:
        persona = self.catalog.persona(unit.kind, unit.persona)
        return persona.system_prompt(unit.polarity, unit.prompt_index, self.spec.model.display_name)

    def _questions(self, unit: WorkUnit) -> tuple[str, ...]:
        asked = self._asked(self.catalog.persona(unit.kind, unit.persona))
        return tuple(asked[index].text for index in _distinct(unit))

    def _asked(self, persona: Persona) -> tuple[Question, ...]:
        """Return all the questions that a persona may be asked: the shared ones, or its own."""
        selection = {"role": self.spec.personas.roles, "trait": self.spec.personas.traits}.get(persona.kind)
        is_own = selection is not None and selection.questions_from == "own"
        return persona.questions if is_own else self.catalog.questions

    @property
    def _longest_response(self) -> int:
        """The most tokens of a response; what a server wrote may be more of them when it is read here."""
        return self.spec.sampling.max_new_tokens * (_RETOKENISED if self.spec.generation else 1)

    def _questions_per_unit(self, samples: int, sizes: RowSizes, field: str) -> int:
        """Say how many questions' rollouts stay under the size limit, every response at its longest."""
        longest = self._longest_response
        if samples > sizes.most_rollouts:
            raise InputError(
                f"{samples} samples of one question come to {samples * sizes.rollout_bytes / 2**20:.0f} MiB; a unit "
                f"holds {BLOCK_BYTES_LIMIT // 2**20}.",
                code="too_many",
                field=field,
                hint=f"Ask for at most {sizes.most_rollouts}, or capture fewer layers.",
            )
        if samples * longest > sizes.most_tokens:
            most = sizes.most_tokens // samples
            fits = sizes.most_tokens >= longest
            fewer = f" or ask for at most {sizes.most_tokens // longest} samples" if fits else ""
            ways = f"set sampling.max_new_tokens to at most {most}{fewer}" if most else "ask for fewer samples"
            whose = f"{samples} responses" if samples > 1 else "one response"
            raise sizes.refuse_tokens(samples * longest, f"{whose} of up to {longest} tokens", ways)
        return min(sizes.most_rollouts // samples, sizes.most_tokens // (samples * longest))


def _distinct(unit: WorkUnit) -> tuple[int, ...]:
    """Return a unit's question indices, each once, in the order of its rows."""
    return tuple(dict.fromkeys(unit.question_indices))


def _field(kind: Kind) -> str:
    return {"role": "personas.roles", "trait": "personas.traits", "default": "personas.default"}[kind]


def _limit(available: int, asked: int | None, field: str, whose: str) -> int:
    """Say how many prompts or questions are taken: all of them, or as many as are asked for."""
    wanted = available if asked is None else asked
    if wanted > available or wanted == 0:
        raise InputError(
            f"asks for {wanted} of {whose}, which has {available}.",
            code="too_many",
            field=field,
            hint=f"Ask for at most {available}." if available else "Choose other questions or another catalog.",
        )
    return wanted


def _question_batches(num_questions: int, most: int) -> Iterator[tuple[int, ...]]:
    """Cut 0..num_questions into the fewest batches of near-equal length, none longer than ``most``."""
    num_batches = math.ceil(num_questions / most)
    edges = [round(i * num_questions / num_batches) for i in range(num_batches + 1)]
    for start, stop in itertools.pairwise(edges):
        yield tuple(range(start, stop))
