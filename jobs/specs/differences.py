"""In what two specs differ, and whether a run of the one may grow into the other. Pure: compares fields, not texts."""

from __future__ import annotations

from typing import Any

from .spec import JobSpec

Difference = tuple[str, object, object]
"""Dotted path of a field, its value in the first spec and in the second."""

_MAY_GROW = ("names", "prompts", "questions", "samples")
"""Fields of a selection that say how many rollouts there are; whether they are more is told by the units."""

_REASONS = {
    "model": "All vectors of a run are of one model.",
    "capture": "All rows of a run have the same layers, hook points and poolings.",
    "interventions": "All rollouts of a run are made under the same edits.",
    "store": "All rows of a run are stored with the same precision.",
    "sampling": "All responses of a run are sampled alike.",
    "generation": "All responses of a run are generated in the same way.",
    "seed": "The seeds of all rollouts of a run follow from it.",
    "conversations": "A run has either given conversations or personas, and all of it is of one sort.",
    "prompts": "A run has either prompts of a file or personas, and all of it is of one sort.",
    "drift": "All conversations of a run are of the same length at most, and with the same user.",
    "harm": "A run has either roles that are asked for harm or personas, and all of it is of one sort.",
    "personas": "The questions of what is planned already would be others.",
}
"""Why a field cannot change in a run that grows, by its first part."""


def first_difference(begun: JobSpec, asked: JobSpec) -> Difference | None:
    """Return the first field in which the identities of two specs differ; None where they are the same.

    Args:
        begun: The spec of a run.
        asked: Another spec.
    """
    return _first(_by_field(begun), _by_field(asked))


def first_obstacle(begun: JobSpec, asked: JobSpec) -> Difference | None:
    """Return the first field by which a run cannot grow into another spec; None where only numbers of rollouts differ.

    Args:
        begun: The spec of the run.
        asked: The spec that it is to grow into.

    Example:
        >>> from persona_atlas.jobs.specs.spec import load_spec
        >>> begun = load_spec("examples/demo.yaml")
        >>> first_obstacle(begun, load_spec("examples/demo.yaml", ["personas.roles.samples=2"])) is None
        True
        >>> first_obstacle(begun, load_spec("examples/demo.yaml", ["seed=9"]))
        ('seed', 0, 9)
    """
    fields, others = _by_field(begun), _by_field(asked)
    for spec in (fields, others):
        for kind, selection in spec.get("personas", {}).items():
            for name in _MAY_GROW:
                selection.pop(name, None)
            if kind != "default" and not getattr(begun.personas, kind).names:
                # Nobody of this kind was asked anything so far.
                selection.pop("questions_from")
    return _first(fields, others)


def reason_against(field: str) -> str:
    """Return why a run that grows keeps a field, as a sentence.

    Args:
        field: Dotted path of a field that ``first_obstacle`` returned.
    """
    return _REASONS[field.partition(".")[0]]


def _by_field(spec: JobSpec) -> dict[str, Any]:
    fields = spec.identity()
    # The identity has the number of bits under a name of its own, from before there was a section for it.
    return fields | {"store": {"mantissa_bits": fields.pop("mantissa_bits")}}


def _first(a: object, b: object, path: str = "") -> Difference | None:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted({*a, *b}):
            found = _first(a.get(key), b.get(key), f"{path}.{key}" if path else str(key))
            if found:
                return found
        return None
    return None if a == b else (path, a, b)
