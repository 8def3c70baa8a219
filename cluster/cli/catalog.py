"""``persona-atlas catalog``: list personas, show one in full, and validate a directory of the user's own."""

from __future__ import annotations

from typing import Any, cast

import click

from ...jobs.catalog import BUILTIN, KINDS, Catalog, load_catalog
from ...jobs.files.names import names_matching
from ...jobs.personas import Kind, Persona
from ...jobs.wording import count_of
from . import output
from .options import json_option


@click.command()
@click.argument("patterns", metavar="[NAME]...", nargs=-1)
@click.option("--kind", type=click.Choice(KINDS), default=None, help="Only this kind.")
@click.option("--from", "source", default=BUILTIN, show_default=True, help="The built-in catalog or a directory.")
@click.option("--questions", is_flag=True, help="List the shared extraction questions instead.")
@click.option("--validate", "check_only", is_flag=True, help="Read every file and count the valid ones.")
@json_option
def catalog(
    patterns: tuple[str, ...], kind: str | None, source: str, questions: bool, check_only: bool, as_json: bool
) -> None:
    """List the personas that match NAME (names or globs; without one, all). A single match is shown in full."""
    opened = load_catalog(source, "--from")
    if questions:
        _print_questions(opened, as_json=as_json)
        return
    kinds: list[Kind] = [cast("Kind", kind)] if kind else list(KINDS)
    known = [name for k in kinds for name in opened.names(k)]
    wanted = {name for pattern in patterns for name in names_matching(known, pattern)}
    if check_only:
        for k in kinds:
            opened.select(k, opened.names(k), "--validate")
    chosen = [opened.persona(k, name) for k in kinds for name in opened.names(k) if not patterns or name in wanted]
    if not chosen and patterns:
        # Raises, with the nearest name as a hint.
        opened.select(kinds[0] if kind else "role", patterns, "NAME")
    if as_json:
        output.document({"personas": [as_dict(persona) for persona in chosen]})
    elif check_only:
        counts = {k: sum(persona.kind == k for persona in chosen) for k in kinds}
        shown = ", ".join(count_of(count, k) for k, count in counts.items())
        output.text(f"{source} is valid: {shown}; {count_of(len(opened.questions), 'shared question')}")
    elif len(chosen) == 1 and patterns:
        _print_one(chosen[0])
    else:
        output.table(
            f"{count_of(len(chosen), 'persona')} of {source}",
            ["kind", "name", "description"],
            [[persona.kind, persona.name, persona.description] for persona in chosen],
        )


def as_dict(persona: Persona) -> dict[str, Any]:
    """Build the object that ``--json`` prints for a persona."""
    fields: dict[str, Any] = {"kind": persona.kind, "name": persona.name, "description": persona.description}
    if persona.kind == "trait":
        pairs = zip(persona.prompts, persona.counter_prompts, strict=True)
        fields["pairs"] = [{"pos": pos, "neg": neg} for pos, neg in pairs]
    else:
        fields["system_prompts"] = list(persona.prompts)
    fields["questions"] = [question.text for question in persona.questions]
    fields["judge_prompt"] = persona.judge_prompt
    return fields


def _print_one(persona: Persona) -> None:
    output.text(f"{persona.kind} {persona.name}: {persona.description}")
    for index, prompt in enumerate(persona.prompts):
        label = f"pos {index}" if persona.counter_prompts else f"prompt {index}"
        output.text(f"\n{label}: {prompt or '(no system prompt)'}")
        if persona.counter_prompts:
            output.text(f"neg {index}: {persona.counter_prompts[index]}")
    for question in persona.questions:
        output.text(f"\nquestion {question.id}: {question.text}")
    if persona.judge_prompt:
        output.text(f"\njudge: {persona.judge_prompt}")


def _print_questions(opened: Catalog, *, as_json: bool) -> None:
    if as_json:
        output.document({"questions": [{"id": q.id, "question": q.text} for q in opened.questions]})
        return
    output.table(
        f"{len(opened.questions)} extraction questions",
        ["index", "id", "question"],
        [[str(index), q.id, q.text] for index, q in enumerate(opened.questions)],
    )
