"""What a judge has to score: the responses of roles and traits that it has not judged yet, in their rubrics.

Rollouts of the default and empty responses are not judged. Texts are read unit by unit, when they are needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc

from ...jobs.catalog import Catalog, load_catalog
from ...jobs.errors import InputError
from ...jobs.judging.forms import SCORE_FORMS
from ...jobs.judging.outcomes import JUDGED_KINDS
from ...jobs.judging.queue import UnitToJudge
from ...jobs.judging.requests import Judged, filled_in
from ...jobs.personas import Kind, Persona, Polarity
from ...jobs.text_tokens import TEMPLATE_TOKENS, prompt_tokens, word_tokens
from ...storage.derived.scores import read_outcomes, scored_units
from ...storage.query.run import Run
from ...storage.query.selection import Filters, select, unknown_personas
from ...storage.run.commits import read_commit, read_rollouts

_SHORTEST_QUESTION = 5
"""Tokens that a question has at least, where it is estimated by what is left of a prompt."""

_TEXTS = ["row", "question", "response"]


@dataclass(frozen=True, eq=False)
class ToJudge:
    """The rollouts of a run that a judge has no outcome of.

    Attributes:
        run: The run.
        lines: Lines of the index of all rollouts that the judge should have an outcome of, judged or not.
        rows_done: Rows of those of them that have one.
        personas: The personas of these lines, by kind and name, each with a rubric.
    """

    run: Run
    lines: pa.Table
    rows_done: frozenset[int]
    personas: Mapping[tuple[Kind, str], Persona]

    @property
    def num_left(self) -> int:
        """Number of rollouts to judge."""
        return self.lines.num_rows - len(self.rows_done)

    @property
    def rubrics(self) -> dict[str, str]:
        """Digest of each persona's judge prompt, by ``kind/name``."""
        return {
            f"{kind}/{name}": sha256(persona.judge_prompt.encode()).hexdigest()[:16]
            for (kind, name), persona in sorted(self.personas.items())
        }

    @property
    def prompt_tokens(self) -> int:
        """Estimated tokens of the requests about all rollouts that are left."""
        return sum(tokens for row, tokens in self._tokens.items() if row not in self.rows_done)

    @cached_property
    def unit_rows(self) -> dict[str, frozenset[int]]:
        """Rows of all rollouts of each unit, those that are not judged included."""
        concerned = self.run.index.filter(pc.field("unit_id").isin(self.lines["unit_id"].unique()))
        rows: dict[str, set[int]] = {}
        for unit_id, row in zip(concerned["unit_id"].to_pylist(), concerned["row"].to_pylist(), strict=True):
            rows.setdefault(unit_id, set()).add(row)
        return {unit_id: frozenset(of_unit) for unit_id, of_unit in rows.items()}

    def units(self) -> Iterator[UnitToJudge]:
        """Read the units with rollouts that are left, one after another, in address order.

        Raises:
            StoreError: The texts of a unit are missing or damaged.
        """
        left: dict[str, list[int]] = {}
        for unit_id, row in zip(self.lines["unit_id"].to_pylist(), self.lines["row"].to_pylist(), strict=True):
            if row not in self.rows_done:
                left.setdefault(unit_id, []).append(row)
        persona_of = {
            line["unit_id"]: self.personas[line["kind"], line["persona"]]
            for line in self.lines.select(["unit_id", "kind", "persona"]).to_pylist()
        }
        for unit_id, rows in left.items():
            texts = read_rollouts(self.run.location, read_commit(self.run.location, unit_id), _TEXTS)
            text_of = {text["row"]: text for text in texts.to_pylist()}
            # A unit that was repaired meanwhile has other rows, which the next call judges.
            there = [text_of[row] for row in rows if row in text_of]
            if there:
                yield UnitToJudge(unit_id, tuple(self._judged(unit_id, persona_of[unit_id], text) for text in there))

    def _judged(self, unit_id: str, persona: Persona, text: Mapping[str, Any]) -> Judged:
        prompt = filled_in(persona.judge_prompt, text["question"], text["response"])
        return Judged(text["row"], unit_id, SCORE_FORMS[persona.kind], prompt, self._tokens[text["row"]])

    @cached_property
    def _tokens(self) -> dict[int, int]:
        """Estimated tokens of the request about each rollout, by its row."""
        rubric = {key: prompt_tokens(len(persona.judge_prompt.split())) for key, persona in self.personas.items()}
        return {
            line["row"]: rubric[line["kind"], line["persona"]] + self._question(line) + line["num_content_tokens"]
            for line in self.lines.to_pylist()
        }

    def _question(self, line: Mapping[str, Any]) -> int:
        """Estimate the tokens of a question: what the prompt has beside the system prompt and the template."""
        persona = self.personas[line["kind"], line["persona"]]
        system = 0
        prompts = persona.prompts if line["polarity"] == "pos" else persona.counter_prompts
        if not self.run.record.of_conversations and line["prompt_index"] < len(prompts):
            text = persona.system_prompt(cast("Polarity", line["polarity"]), line["prompt_index"], "")
            system = word_tokens(len(text.split()))
        return max(_SHORTEST_QUESTION, line["num_prompt_tokens"] - system - TEMPLATE_TOKENS)


def find_what_to_judge(
    run: Run, judge: str, kinds: tuple[str, ...], personas: tuple[str, ...], catalog_directory: str | None
) -> ToJudge:
    """Find the rollouts that a judge should score, and their rubrics; no text of the run is read.

    Args:
        run: The run.
        judge: Name of the judge.
        kinds: ``role`` and ``trait``, or one of them; empty for both.
        personas: Names or globs of personas; empty for all.
        catalog_directory: The catalog on this machine, if it is not where the run's spec says; None: where it says.

    Raises:
        InputError: Nothing matches, the run has nothing to judge, or a persona has no rubric.
        StoreError: A file of scores is damaged.
    """
    filters: Filters = {"kind": kinds or JUDGED_KINDS}
    if personas:
        filters["persona"] = personas
    found = select(run.index, filters)
    # Without a response there is nothing to judge: an empty one has no vector, whatever it would be scored.
    lines = found.filter(found["has_vector"])
    if not lines.num_rows:
        unknown = unknown_personas(run.index, personas or None)
        raise InputError(
            f"no response of a role or trait is there to be judged. {unknown}".strip(),
            code="nothing_to_judge",
            field="--persona" if personas else "--kind" if kinds else "store.url",
            hint=f"The run has {run.completeness}; rollouts of the default and empty responses are not judged.",
        )
    if catalog_directory is not None:
        catalog = load_catalog(catalog_directory, "--catalog")
    else:
        catalog = load_catalog(run.record.spec.personas.catalog)
    keys = sorted(set(zip(lines["kind"].to_pylist(), lines["persona"].to_pylist(), strict=True)))
    rubric_of = {key: _with_rubric(catalog, *key) for key in keys}
    units = set(lines["unit_id"].unique().to_pylist()) & scored_units(run.location).get(judge, set())
    judged = set(read_outcomes(run.location, judge, sorted(units))["row"].to_pylist())
    return ToJudge(run, lines, frozenset(judged & set(lines["row"].to_pylist())), rubric_of)


def _with_rubric(catalog: Catalog, kind: Kind, name: str) -> Persona:
    persona = catalog.persona(kind, name)
    if "{question}" not in persona.judge_prompt or "{answer}" not in persona.judge_prompt:
        missing = "no judge prompt" if not persona.judge_prompt else "a judge prompt without {question} and {answer}"
        raise InputError(
            f"the {kind} {name!r} has {missing}.",
            code="no_rubric",
            file=str(catalog.files[kind, name]),
            hint="Add one (docs/catalog.md), or judge others: --persona and --kind choose them.",
        )
    return persona
