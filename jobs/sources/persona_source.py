"""The source for personas of a catalog: system prompts and questions, whose responses are generated. Pure.

Units are in the order default, roles, traits; then by name, polarity, prompt and question batch.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from ..catalog import Catalog
from ..conversation import Conversation
from ..errors import InputError
from ..messages import ChatMessage
from ..personas import DEFAULT_PERSONA, POLARITIES, Kind, Persona, Question
from ..specs.spec import JobSpec
from ..specs.spec_parts import DefaultSelection, Selection
from ..text_tokens import prompt_tokens
from ..work.rollouts import Rollout
from ..work.unit_size import BLOCK_BYTES_LIMIT, RowSizes
from ..work.units import RolloutRequest, WorkUnit
from .reading.problems import Problem
from .source import TokenCounts

_RETOKENISED = 2
"""Bound of a server's response in multiples of ``max_new_tokens``: its text is tokenised again here, which may give
more tokens than the server sampled."""


@dataclass(frozen=True, slots=True)
class PersonaRequests:
    """The texts of a unit of single questions: one system prompt and a batch of questions.

    Attributes:
        system_prompt: System prompt of every chat of the unit; ``""`` for none.
        questions: The unit's questions, each once, in the order of its rows.
        job_seed: Seed of the spec, from which the seed of each rollout is derived.
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
        """Return None: a question has a single response; see ``UnitRequests.following``."""
        return None


@dataclass(frozen=True)
class PersonaSource:
    """A source of the personas and questions that a spec selects from a catalog.

    Attributes:
        spec: Selection, sampling and seed.
        catalog: Prompts and questions of the personas.
    """

    spec: JobSpec
    catalog: Catalog

    @property
    def generates(self) -> bool:
        """True: every response is generated, by the workers or by a server."""
        return True

    @property
    def conversations(self) -> tuple[Conversation, ...]:
        """Always empty."""
        return ()

    @property
    def skipped(self) -> tuple[Problem, ...]:
        """Always empty: a persona that cannot be read is refused."""
        return ()

    @property
    def notes(self) -> tuple[str, ...]:
        """Always empty."""
        return ()

    def units(self, sizes: RowSizes, max_context: int) -> Iterator[WorkUnit]:
        """Divide the selection into units; see ``RequestSource.units``.

        Raises:
            InputError: The catalog lacks a persona, or has fewer prompts or questions than the spec selects, or the
                samples of one question exceed the limits of a unit; names the field.
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
        """Return the content tokens of a unit's responses if each has the maximum length."""
        return unit.num_rollouts * self._longest_response

    def longest_prompt(self, units: Sequence[WorkUnit], size: Callable[[str], int]) -> int:
        """Return the size of the longest system prompt and question; see ``RequestSource.longest_prompt``."""
        # Cached, by the questions of a unit too, because thousands of units have the same ones.
        sizes = cache(size)
        longest = cache(lambda questions: max(sizes(question) for question in questions))
        return max((sizes(self._system_prompt(u)) + longest(self._questions(u)) for u in units), default=0)

    def token_counts(self, units: Sequence[WorkUnit]) -> TokenCounts:
        """Count prompts, and responses at their maximum length; ``row_tokens`` is that of the longest rollout."""
        # Cached, because a job repeats the same few hundred questions hundreds of thousands of times, and asks
        # thousands of units the same ones.
        words = cache(lambda text: len(text.split()))

        @cache
        def sum_and_longest(system_words: int, questions: tuple[str, ...]) -> tuple[int, int]:
            counts = [prompt_tokens(system_words + words(question)) for question in questions]
            return sum(counts), max(counts)

        total = longest = 0
        for unit in units:
            questions = self._questions(unit)
            in_all, most = sum_and_longest(words(self._system_prompt(unit)), questions)
            total += unit.num_rollouts // len(questions) * in_all
            longest = max(longest, most)
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
        field, owner = _field(kind), f"{kind} {name!r}"
        prompts = _limit(len(persona.prompts), selection.prompts, f"{field}.prompts", owner)
        questions = _limit(len(self._asked(persona)), selection.questions, f"{field}.questions", owner)
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
        """Return the questions to select from: the shared ones, or the persona's own."""
        selection = {"role": self.spec.personas.roles, "trait": self.spec.personas.traits}.get(persona.kind)
        is_own = selection is not None and selection.questions_from == "own"
        return persona.questions if is_own else self.catalog.questions

    @property
    def _longest_response(self) -> int:
        """Most tokens of a response; more for a server's, whose text is tokenised again."""
        return self.spec.sampling.max_new_tokens * (_RETOKENISED if self.spec.generation else 1)

    def _questions_per_unit(self, samples: int, sizes: RowSizes, field: str) -> int:
        """Return the number of questions whose rollouts are within the limits of a unit at maximum response length."""
        longest = self._longest_response
        if samples > sizes.most_rollouts:
            raise InputError(
                f"{samples} samples of one question come to {samples * sizes.rollout_bytes / 2**20:.0f} MiB; a unit "
                f"holds {BLOCK_BYTES_LIMIT // 2**20} MiB.",
                code="too_many",
                field=field,
                hint=f"Ask for at most {sizes.most_rollouts}, or capture fewer layers.",
            )
        if samples * longest > sizes.most_tokens:
            most = sizes.most_tokens // samples
            fits = sizes.most_tokens >= longest
            fewer = f" or ask for at most {sizes.most_tokens // longest} samples" if fits else ""
            ways = f"set sampling.max_new_tokens to at most {most}{fewer}" if most else "ask for fewer samples"
            responses = f"{samples} responses" if samples > 1 else "one response"
            raise sizes.refuse_tokens(samples * longest, f"{responses} of up to {longest} tokens", ways)
        return min(sizes.most_rollouts // samples, sizes.most_tokens // (samples * longest))


def _distinct(unit: WorkUnit) -> tuple[int, ...]:
    """Return a unit's question indices, each once, in the order of its rows."""
    return tuple(dict.fromkeys(unit.question_indices))


def _field(kind: Kind) -> str:
    return {"role": "personas.roles", "trait": "personas.traits", "default": "personas.default"}[kind]


def _limit(available: int, requested: int | None, field: str, owner: str) -> int:
    """Return the number of prompts or questions to take: the requested number, or all; refuse more than there are."""
    wanted = available if requested is None else requested
    if wanted > available or wanted == 0:
        raise InputError(
            f"asks for {wanted} of {owner}, which has {available}.",
            code="too_many",
            field=field,
            hint=f"Ask for at most {available}." if available else "Choose other questions or another catalog.",
        )
    return wanted


def _question_batches(num_questions: int, most: int) -> Iterator[tuple[int, ...]]:
    """Divide question indices into the fewest batches of nearly equal length, none longer than ``most``."""
    num_batches = math.ceil(num_questions / most)
    edges = [round(i * num_questions / num_batches) for i in range(num_batches + 1)]
    for start, stop in itertools.pairwise(edges):
        yield tuple(range(start, stop))
