"""Personas of a reduction that have no vector, and why. Pure; nothing is read but what the reduction says of itself."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from typing import Any, Literal

from ..jobs.personas import DEFAULT_PERSONA
from ..jobs.wording import count_of
from ..storage.derived.reductions import Reduction
from ..storage.derived.scores import NO_JUDGE
from .classes import PAIR_DIFFERENCE
from .reduction.settings import MIN_SCORE

_OTHERS = {"default": "The default Assistant has", "conversation": "Given conversations have"}
"""Kinds of which no reduction has several vectors, each as the beginning of a sentence."""

_EMPTY = "every response is empty"
_NO_OPPOSITE = "no rollout of the opposite has a vector"
_NOT_SHOWN = "no rollout that shows it has a vector"


def left_out(reduction: Reduction, kind: Literal["role", "trait"]) -> dict[str, str]:
    """Return the personas of a kind that have rollouts and no vector, each with the reason, as part of a sentence.

    Of traits, the vectors meant are those of ``facts["trait_kind"]``.

    Args:
        reduction: The reduction. One of imported vectors does not say what was left out.
        kind: The kind.

    Example:
        >>> facts = {"all_traits": ["humble", "shy"], "trait_kind": "pos_neg_50", "min_count": 10}
        >>> left_out(Reduction("id", (4,), (), ("humble",), facts), "trait")
        {'shy': 'fewer than 10 pairs have scores that differ by more than 50'}
    """
    facts = reduction.facts
    if kind == "role":
        names = set(facts.get("roles_left_out", {}))
        which = facts.get("role_filter", "all")
        # Without a judge every rollout counts that has a vector.
        one, more = ("has a vector", "have a vector") if which == "all" else (f"is {which}", f"are {which}")
        reason = _too_few(facts.get("min_count"), "rollout", one, more)
        found = dict.fromkeys(names, reason)
    else:
        names = set(facts.get("all_traits", ())) - set(reduction.trait_names)
        found = {name: _why_no_trait(reduction, name) for name in names}
    found |= {name: _why_empty(reduction, kind, name) for name in reduction.without_vector.get(kind, [])}
    return dict(sorted(found.items()))


def _why_no_trait(reduction: Reduction, name: str) -> str:
    # Reductions of earlier versions do not hold the personas.
    has_opposite = not reduction.personas or ("trait", name, "neg") in reduction.personas
    if reduction.facts.get("trait_kind") != "pos_neg_50" or not has_opposite:
        return _NO_OPPOSITE
    differ = f"scores that differ by more than {PAIR_DIFFERENCE:g}"
    return _too_few(reduction.facts.get("min_count"), "pair", f"has {differ}", f"have {differ}")


def _why_empty(reduction: Reduction, kind: str, name: str) -> str:
    """Return the reason of a persona with empty responses: those of a trait may be those of one polarity only."""
    if (kind, name, "pos") in reduction.personas:
        return _NO_OPPOSITE
    return _NOT_SHOWN if (kind, name, "neg") in reduction.personas else _EMPTY


def _too_few(least: int | None, noun: str, one: str, more: str) -> str:
    return f"no {noun} {one}" if least == 1 else f"fewer than {least} {noun}s {more}"


def left_out_sentences(reduction: Reduction) -> list[str]:
    """Say in a sentence for each kind and reason which personas have no vector, and what else is missing for it.

    Args:
        reduction: The reduction.

    Example:
        >>> facts = {"roles_left_out": {"poet": 0}, "role_filter": "scored 3", "min_count": 2}
        >>> left_out_sentences(Reduction("id", (4,), (), (), facts))
        ['1 role has no vector, because fewer than 2 rollouts are scored 3: poet.']
    """
    found: list[str] = []
    for kind in ("role", "trait"):
        by_reason: dict[str, list[str]] = {}
        for name, reason in left_out(reduction, kind).items():
            by_reason.setdefault(reason, []).append(name)
        for reason, names in by_reason.items():
            has = "has" if len(names) == 1 else "have"
            found.append(f"{count_of(len(names), kind)} {has} no vector, because {reason}: {', '.join(names)}.")
    for kind, has in _OTHERS.items():
        names = reduction.without_vector.get(kind, [])
        if names:
            found.append(f"{has} no vector, because {_EMPTY}: {', '.join(names)}.")
        if kind == "default" and DEFAULT_PERSONA in names:
            found.append("Without the default Assistant there is no axis.")
    return found


def why_left_out(reduction: Reduction, kind: Literal["role", "trait"], name: str, store: str) -> tuple[str, str] | None:
    """Say of one persona why it has no vector, with how many rollouts or pairs it has, and what gives it one.

    Args:
        reduction: The reduction.
        kind: The kind.
        name: Name of the persona.
        store: Directory or URL of the run that was reduced; empty for imported vectors, of which there is none.

    Returns:
        The reason, as part of a sentence, and the commands that give it a vector, empty where none does; None where
        the reduction knows no such persona, or none that was left out.

    Example:
        >>> facts = {"roles_left_out": {"poet": 1}, "role_filter": "all", "min_count": 2}
        >>> why_left_out(Reduction("id", (4,), (), (), facts), "role", "poet", "runs/demo")
        ('fewer than 2 rollouts have a vector; it has 1', 'persona-atlas reduce runs/demo --min-count 1 gives it one.')
    """
    reason = left_out(reduction, kind).get(name)
    if reason is None:
        return None
    if reason in (_EMPTY, _NO_OPPOSITE, _NOT_SHOWN):
        return reason, ""
    facts = reduction.facts
    # Reductions of earlier versions do not hold the number of a trait's pairs, so that no count is known to be enough.
    count = facts.get(f"{kind}s_left_out", {}).get(name)
    known = f"; it has {count or 'none'}" if count is not None and facts["min_count"] > 1 else ""
    return f"{reason}{known}", _cure(facts, count, store) if store else ""


def _cure(facts: Mapping[str, Any], count: int | None, store: str) -> str:
    """Name the commands that give a vector to a persona of which some rollouts or pairs count."""
    cures = [f"{_command(facts, store, count)} gives it one."] if count else []
    if facts.get("judge") is not None:
        unscored = f"{_command(facts, store, None)}, which ignores scores"
        cures.append(f"So does {unscored}." if cures else f"{unscored}, gives it one.")
    return " ".join(cures)


def _command(facts: Mapping[str, Any], store: str, min_count: int | None) -> str:
    """Build the command that asks again for a reduction, with another least count; None: without scores."""
    asked, judge, least = facts.get("asked", {}), facts.get("judge"), facts.get("min_score")
    words = ["persona-atlas", "reduce", store]
    if min_count is None:
        words += ["--judge", NO_JUDGE]
    else:
        # Always by name: another judge may have scored the run since, and then the name must be given.
        named = judge or (NO_JUDGE if asked.get("judge") == NO_JUDGE else None)
        words += ["--judge", named] if named else []
        # Earlier versions took any least score and counted as if it were the next whole number.
        words += ["--min-score", f"{math.ceil(least)}"] if judge and least not in (None, MIN_SCORE) else []
        words += ["--min-count", f"{min_count}"]
    for option in ("hook_point", "pooling"):
        words += [f"--{option.replace('_', '-')}", asked[option]] if asked.get(option) else []
    if asked.get("percentiles"):
        words += ["--percentiles", ",".join(f"{percentile:.15g}" for percentile in asked["percentiles"])]
    return shlex.join(words)
