"""Filters on rollouts and selections of layers, applied to the index table. Pure."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, SupportsIndex, TypedDict, cast, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...jobs.errors import InputError, closest
from ...jobs.files.names import names_matching
from ...jobs.judging.outcomes import JUDGED_KINDS
from ...jobs.personas import Kind, Polarity
from ...jobs.wording import count_of

Names = str | Sequence[str] | None
Indices = SupportsIndex | Iterable[SupportsIndex] | None
Layers = SupportsIndex | str | Iterable[SupportsIndex]


class Filters(TypedDict, total=False):
    """Filters on rollouts, as keyword arguments. A rollout must match all that are given; None is no filter.

    Attributes:
        kind: ``role``, ``trait``, ``default`` or ``conversation``; one, several, or a glob.
        persona: Names or globs such as ``p*``; one or several. An exact name selects itself alone.
        polarity: ``pos`` or ``neg``; one or several.
        prompt: Prompt indices, 0-based; one or several.
        question: Question indices, 0-based; one or several.
        conversation: Conversation indices, 0-based, in a run of given conversations.
        turn: Turn indices in a run of given conversations: user 0, assistant 1, and so on.
        min_tokens: Minimum number of content tokens of the response, inclusive.
        max_tokens: Maximum number of content tokens, inclusive.
        min_score: Minimum of the judge's score, inclusive and without rounding. Roles and traits without a score do not
            match; rollouts of the default, which are not judged by design, always do.
        max_score: Maximum of the judge's score, inclusive; likewise.
        judge: Name of the judge; may be omitted when only one has scored the run.
    """

    kind: Names
    persona: Names
    polarity: Names
    prompt: Indices
    question: Indices
    conversation: Indices
    turn: Indices
    min_tokens: int | None
    max_tokens: int | None
    min_score: float | None
    max_score: float | None
    judge: str | None


_HIGHEST_SCORE = 100

SCORE_FILTERS = ("judge", "min_score", "max_score")
"""The filters that need a judge's scores."""

_FIXED_VALUES: dict[str, tuple[str, ...]] = {"kind": get_args(Kind), "polarity": get_args(Polarity)}
"""What there can be, of columns that have the same few values in every run."""


def wants_scores(filters: Filters) -> bool:
    """Whether applying the filters needs a judge's scores."""
    return any(filters.get(name) is not None for name in SCORE_FILTERS)


def select(index: pa.Table, filters: Filters) -> pa.Table:
    """Return the matching lines of an index table, in its order.

    Args:
        index: A table of ``index_schema``; with a column ``score`` (null without a score) when a filter needs one.
        filters: The filters.

    Raises:
        InputError: A filter is unknown, or not available in this run; or there is no such kind or polarity.
    """
    for name in filters:
        if name not in Filters.__annotations__:
            raise InputError(
                f"{name!r} is not a filter. {closest(name, Filters.__annotations__)}".strip(),
                code="unknown_filter",
                field=name,
                hint=f"Use {', '.join(Filters.__annotations__)}.",
            )
    for column in ("kind", "persona", "polarity"):
        names: Names = filters.get(column)
        if names is not None:
            known = index[column].unique().to_pylist()
            asked = _listed(names, column)
            _refuse_impossible(asked, column, known)
            matched = sorted({name for pattern in asked for name in names_matching(known, pattern)})
            index = index.filter(pc.field(column).isin(pa.array(matched, pa.string())))
    for name in ("prompt", "question", "conversation", "turn"):
        numbers: Indices = filters.get(name)
        column = f"{name}_index"
        if numbers is not None:
            if column not in index.column_names:
                raise InputError(
                    f"the run has no {name}s: its texts were generated.",
                    code="unknown_filter",
                    field=name,
                    hint="Only runs of given conversations have conversations and turns.",
                )
            wanted = _numbers(numbers, name)
            # A number that the column cannot hold matches nothing, and Arrow could not compare it.
            held = [number for number in wanted if 0 <= number < 2**63]
            index = index.filter(pc.field(column).isin(pa.array(held, pa.int64())))
    for column, bounds in (("num_content_tokens", ("min_tokens", "max_tokens")), ("score", ("min_score", "max_score"))):
        least, most = filters.get(bounds[0]), filters.get(bounds[1])
        _refuse_what_is_no_number({bounds[0]: least, bounds[1]: most})
        if least is not None and most is not None and least > most:
            raise InputError(
                f"is {_shown(least)}, and the maximum is {_shown(most)}: nothing can match.",
                code="bounds_in_wrong_order",
                field=bounds[0],
                hint="Swap the two bounds.",
            )
        # Arrow compares null to null, and a filter drops null: a rollout without a score is in no range of scores. Of
        # the default every rollout counts, whatever an imported file says of it.
        spared = pc.field("kind") == "default" if column == "score" else pc.scalar(False)
        if least is not None:
            index = index.filter(spared | (pc.field(column) >= _bound(least, column, bounds[0])))
        if most is not None:
            index = index.filter(spared | (pc.field(column) <= _bound(most, column, bounds[1])))
    return index


def _refuse_impossible(asked: Sequence[str], column: str, known: Sequence[str]) -> None:
    """Refuse a kind or polarity that no run has: it is misspelt, and would select nothing without a word."""
    values = _FIXED_VALUES.get(column, ())
    for name in asked:
        if values and not names_matching([*values, *known], name):
            raise InputError(
                f"{name!r} is not a {column}. {closest(name, values)}".strip(),
                code=f"unknown_{column}",
                field=column,
                hint=f"Give one or several of {', '.join(values)}, or a glob.",
            )


def _refuse_what_is_no_number(bounds: Mapping[str, Any]) -> None:
    """Refuse a text or a bool, whatever the types of the filters say: from Python anything may come."""
    for field, bound in bounds.items():
        if bound is None or (isinstance(bound, int | float | np.number) and not isinstance(bound, bool)):
            continue
        raise InputError(
            f"a bound must be a number, but is {bound!r}.",
            code="not_a_number",
            field=field,
            hint="Leave it out, or give a number.",
        )


def _shown(bound: float) -> str:
    """Write every digit, because two bounds may differ in the last."""
    return f"{int(bound) if isinstance(bound, float) and bound.is_integer() else bound:,}"


def _bound(value: float, column: str, field: str) -> Any:
    """Return a bound that Arrow can compare with a column: integers within 64 bits, and a number at all."""
    if value != value:
        raise InputError(
            "a bound must be a number, but is NaN, which compares with nothing.",
            code="not_a_number",
            field=field,
            hint="Leave it out, or give a number.",
        )
    if column == "score":
        if not 0 <= value <= _HIGHEST_SCORE:
            raise InputError(
                f"is {_shown(value)}, and scores are from 0 to 3 for roles and from 0 to {_HIGHEST_SCORE} for traits.",
                code="out_of_range",
                field=field,
                hint=f"Choose one from 0 to {_HIGHEST_SCORE}.",
            )
        # As scores are stored: 2.6 is not the same number in float32 and in float64, and both ends are included.
        return pa.scalar(value, pa.float32())
    return max(-(2**63), min(value, 2**63 - 1)) if isinstance(value, int) else value


def without_a_score_in_range(index: pa.Table, filters: Filters, matching: pa.Table) -> str:
    """Say that bounds of scores leave out every role and trait; empty where they do not, or none was asked for.

    Args:
        index: All lines of the index.
        filters: The filters.
        matching: The lines that match them. Those of the default match any bounds.
    """
    if filters.get("min_score") is None and filters.get("max_score") is None:
        return ""
    if matching.filter(pc.field("kind") != "default").num_rows:
        return ""
    unbounded = filters.copy()
    unbounded["min_score"] = unbounded["max_score"] = None
    scorable = select(index, unbounded).filter(pc.field("kind").isin(JUDGED_KINDS)).num_rows
    if not scorable:
        return ""
    rollouts = count_of(scorable, "rollout")
    among = f"Of {rollouts} of roles and traits that match otherwise, none has a score in the range"
    return f"{among}; rollouts of the default match any." if matching.num_rows else f"{among}."


def unknown_personas(index: pa.Table, personas: Names) -> str:
    """Name the requested personas that no line has, each with the most similar existing name; empty when all exist."""
    known = index["persona"].unique().to_pylist()
    unknown = [name for name in _listed(personas, "persona") if not names_matching(known, name)]
    return " ".join(f"There is no persona {name!r}. {closest(name, known)}".strip() for name in unknown)


def _listed(names: Names, field: str) -> list[str]:
    # From Python anything may come, whatever the type says.
    given: Any = names
    try:
        listed: list[Any] = [] if given is None else [given] if isinstance(given, str) else list(given)
    except TypeError:
        listed = [given]
    if not all(isinstance(name, str) for name in listed):
        raise InputError(
            f"{names!r} is not a name, nor a sequence of names.", code="not_a_name", field=field, hint="Give texts."
        )
    return listed


def _numbers(asked: SupportsIndex | Iterable[SupportsIndex], field: str) -> list[int]:
    # numpy arrays have ``__index__``, too, so it does not distinguish one number from several.
    several = [asked] if isinstance(asked, int | np.integer) else cast(Iterable[SupportsIndex], asked)
    try:
        return [operator.index(number) for number in several]
    except TypeError as error:
        raise InputError(
            f"{asked!r} is not an integer, nor a sequence of them.",
            code="not_a_number",
            field=field,
            hint="Give 3 or [3, 5].",
        ) from error


def layer_positions(asked: Layers, captured: Sequence[int], n_layers: int) -> list[int]:
    """Return the positions of requested layers along an array's layer axis.

    Args:
        asked: A 0-based layer, several, ``"middle"`` (layer n_layers // 2), ``"all"``, or a string such as ``"3"``,
            ``"3,5"`` or ``"10:20"`` (end exclusive).
        captured: Layers of the array, in its order.
        n_layers: Number of decoder layers of the model.

    Raises:
        InputError: A layer was not captured, or a string does not name layers.

    Example:
        >>> layer_positions("2:4", captured=[0, 1, 2, 3], n_layers=4)
        [2, 3]
    """
    layers = _parse_layers(asked, captured, n_layers) if isinstance(asked, str) else asked
    wanted = _numbers(layers, "layer")
    missing = [layer for layer in wanted if layer not in captured]
    if missing or not wanted:
        span = f"{captured[0]} to {captured[-1]}" if len(captured) > 1 else str(captured[0])
        raise InputError(
            f"layer {missing[0]} was not captured." if missing else f"{asked!r} names no layer.",
            code="no_such_layer",
            field="layer",
            hint=f"The run holds {count_of(len(captured), 'layer')}: {span}.",
        )
    return [list(captured).index(layer) for layer in wanted]


def is_single_layer(asked: Layers) -> bool:
    """Whether exactly one layer is requested, by a single number or name, so that results have no layer axis."""
    return isinstance(asked, int | np.integer) or (isinstance(asked, str) and (asked == "middle" or asked.isdecimal()))


def _parse_layers(text: str, captured: Sequence[int], n_layers: int) -> int | list[int]:
    if text == "all":
        return list(captured)
    if text == "middle":
        return n_layers // 2
    try:
        if ":" in text:
            first, end = text.split(":")
            start, stop = int(first or 0), int(end or n_layers)
            # One layer that does not exist is enough to refuse the range; a list of all of them could fill the memory.
            return list(range(start, min(stop, start + 1 if start < 0 else max(start, n_layers) + 1)))
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            f"{text!r} is not a layer.",
            code="bad_layer",
            field="layer",
            hint="Give a number, 'middle', 'all', a list such as 3,5 or a range such as 10:20.",
        ) from None
    return numbers[0] if len(numbers) == 1 else numbers
