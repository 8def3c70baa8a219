"""Which personas have which vectors, by their numbers of rollouts alone. Pure; nothing is read for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ...jobs.errors import InputError
from ...jobs.judging.outcomes import JUDGED_KINDS
from ...jobs.personas import DEFAULT_PERSONA
from ...jobs.wording import count_of
from ..classes import ALL, FULLY, PASSING_PAIRS, SOMEWHAT, TRAIT_SCORES, UNSCORED, at_least
from .rollouts import KINDS, Persona
from .settings import Settings

_MIN_ROLES_SHOWN = 3

_SCORED_FIRST = "Score them with persona-atlas judge or scores import, or use"
_LOWER = "Choose a lower --min-score,"


@dataclass(frozen=True, eq=False)
class Cast:
    """The personas of a reduction.

    Attributes:
        settings: What the reduction was asked for.
        everybody: Every persona and polarity with a rollout that has a vector, in address order.
    """

    settings: Settings
    everybody: tuple[Persona, ...]

    @cached_property
    def personas(self) -> tuple[Persona, ...]:
        """Those of which means are taken, in address order; not given conversations of no persona."""
        return tuple(persona for persona in self.everybody if persona.kind in KINDS)

    @property
    def counted(self) -> frozenset[str]:
        """Classes of a role's rollouts that count."""
        return ALL if self.settings.judge is None else at_least(self.settings.min_score)

    @cached_property
    def default(self) -> Persona | None:
        """The default Assistant."""
        return self._find("default", DEFAULT_PERSONA, "pos")

    @cached_property
    def all_roles(self) -> tuple[Persona, ...]:
        """Every role with a rollout, by name."""
        return tuple(sorted((p for p in self.personas if p.kind == "role"), key=lambda persona: persona.name))

    @cached_property
    def roles(self) -> tuple[Persona, ...]:
        """Roles with a vector: enough of their rollouts count."""
        least = self.settings.min_count
        return tuple(role for role in self.all_roles if role.count_in(self.counted) >= least)

    @cached_property
    def roles_left_out(self) -> dict[str, int]:
        """Roles without a vector, each with the number of its rollouts that count."""
        return {role.name: role.count_in(self.counted) for role in self.all_roles if role not in self.roles}

    @cached_property
    def by_category(self) -> dict[str, tuple[Persona, ...]]:
        """Roles with enough rollouts that play the role ``fully``, and ``somewhat``; empty without a judge."""
        if self.settings.judge is None:
            return {}
        least, classes = self.settings.min_count, {"fully": FULLY, "somewhat": SOMEWHAT}
        return {
            name: tuple(role for role in self.all_roles if role.count_in(c) >= least) for name, c in classes.items()
        }

    @cached_property
    def all_traits(self) -> tuple[str, ...]:
        """Names of every trait with a rollout of it shown, sorted."""
        return tuple(sorted({p.name for p in self.personas if p.kind == "trait" and p.polarity == "pos"}))

    def trait(self, name: str) -> tuple[Persona | None, Persona | None]:
        """Return a trait shown, and its opposite; None for one without a rollout."""
        return self._find("trait", name, "pos"), self._find("trait", name, "neg")

    @cached_property
    def trait_kind(self) -> str:
        """Kind of the trait vectors: ``pos_neg_50`` if a judge has scored a trait, else ``pos_neg``."""
        scored = any(p.count_in(TRAIT_SCORES) for p in self.personas if p.kind == "trait")
        return "pos_neg_50" if scored else "pos_neg"

    @cached_property
    def traits(self) -> tuple[str, ...]:
        """Names of the traits with a vector of that kind."""
        found: list[str] = []
        for name in self.all_traits:
            pos, neg = self.trait(name)
            if pos is None or neg is None:
                continue
            if self.trait_kind == "pos_neg" or pos.count_in(PASSING_PAIRS) >= self.settings.min_count:
                found.append(name)
        return tuple(found)

    @cached_property
    def traits_left_out(self) -> dict[str, int]:
        """Traits with an opposite of whose pairs too few pass, each with the number of these; empty without scores."""
        if self.trait_kind == "pos_neg":
            return {}
        pairs = {name: self.trait(name) for name in self.all_traits if name not in self.traits}
        return {
            name: pos.count_in(PASSING_PAIRS)
            for name, (pos, neg) in pairs.items()
            if pos is not None and neg is not None
        }

    @cached_property
    def scored(self) -> dict[str, list[int]]:
        """By kind that is judged, how many rollouts are scored, and how many there are; empty without a judge."""
        if self.settings.judge is None:
            return {}
        judged = {kind: [p for p in self.personas if p.kind == kind] for kind in JUDGED_KINDS}
        return {
            kind: [sum(p.count - p.count_in({UNSCORED}) for p in of_kind), sum(p.count for p in of_kind)]
            for kind, of_kind in judged.items()
            if of_kind
        }

    @cached_property
    def _by_address(self) -> dict[tuple[str, str, str], Persona]:
        return {persona.address: persona for persona in self.personas}

    def _find(self, kind: str, name: str, polarity: str) -> Persona | None:
        return self._by_address.get((kind, name, polarity))


def require_roles(cast: Cast) -> None:
    """Refuse a reduction in which not a single role has enough rollouts that count.

    Raises:
        InputError: The message says how many roles would have a vector with which ``min_count``, and how much the judge
            has scored where that is not all.
    """
    if cast.roles or not cast.all_roles:
        return
    settings = cast.settings
    counts = sorted(cast.roles_left_out.values(), reverse=True)
    scored, total = cast.scored.get("role", (0, 0))
    # Scores that are not there yet are a cause of their own, which no lower bound cures.
    partly = f", which has scored {scored:,} of {count_of(total, 'rollout')} of roles" if scored < total else ""
    counted = f"{settings.role_filter} by {settings.judge}{partly}"
    if not counts[0]:
        raise InputError(
            f"no rollout of a role is {counted}.",
            code="too_few_rollouts",
            field="min_score",
            hint=f"{_SCORED_FIRST if not scored else _LOWER} another --judge, or --judge none, which ignores scores.",
        )
    raise InputError(
        f"no role has {settings.min_count} rollouts{f' that are {counted}' if settings.judge else ''}; the most that "
        f"one has is {counts[0]}.",
        code="too_few_rollouts",
        field="min_count",
        hint=_alternatives(counts, settings.min_count)
        + (" Or use --judge none, which ignores scores." if settings.judge else ""),
    )


def left_out_note(cast: Cast) -> str:
    """Say which roles have no vector because too few of their rollouts count; empty if none is left out."""
    if not cast.roles_left_out:
        return ""
    settings = cast.settings
    counts = sorted((role.count_in(cast.counted) for role in cast.all_roles), reverse=True)
    counted = f" {settings.role_filter} by {settings.judge}" if settings.judge is not None else ""
    missing = f"{len(cast.roles_left_out)} of {count_of(len(cast.all_roles), 'role')} without a vector"
    needed = f"each needs {count_of(settings.min_count, 'rollout')}{counted}"
    return f"Warning: {missing}; {needed}. {_alternatives(counts, settings.min_count)}".rstrip()


def _alternatives(counts: Sequence[int], least: int) -> str:
    """Say how many roles would have a vector with which lower ``min_count``; empty where none gives more of them.

    Args:
        counts: How many rollouts of each role count, in decreasing order.
        least: The ``min_count`` that was asked for.
    """
    # The count that keeps three quarters of the roles that have any, and the one that keeps enough for PCA.
    present = [count for count in counts if count]
    places = {max(len(present) * 3 // 4, 1), min(len(present), _MIN_ROLES_SHOWN)}
    # One that is as high as what was asked for, or higher, gives no role more.
    lower = [count for count in present if count < least]
    offered = {present[place - 1] for place in places} & set(lower) or set(lower[:1])
    told = [
        f"--min-count {offer} gives {sum(count >= offer for count in present)} of {count_of(len(counts), 'role')}"
        for offer in sorted(offered)
    ]
    return f"{', '.join(told)}." if told else ""
