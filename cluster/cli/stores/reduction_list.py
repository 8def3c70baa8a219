"""``persona-atlas show --reductions``: the reductions of a store, and what each was made of."""

from __future__ import annotations

from typing import Any

from ....jobs.errors import StoreError
from ....storage.derived.reductions import current_reduction_id, read_reduction, reduction_ids
from ....storage.locations.location import Location
from .. import output

_FACTS = ("judge", "role_filter", "min_score", "min_count", "trait_kind", "hook_point", "pooling", "units", "asked")


def show_reductions(location: Location, as_json: bool) -> None:
    """Print the reductions of a store, by id; one that cannot be read with the reason.

    Args:
        location: The store.
        as_json: Whether to print JSON.
    """
    try:
        current = current_reduction_id(location)
    except StoreError:
        # Then none is marked; ``verify`` names the damage.
        current = None
    found = [_described(location, reduction_id, current) for reduction_id in reduction_ids(location)]
    if as_json:
        output.document({"url": location.url, "reductions": found})
    elif found:
        columns = ["reduction", "", "array", "rollouts of roles that count", "n at least", "units"]
        output.table(f"Reductions of {location.url}", columns, [_line(one) for one in found], keep_first=True)
    else:
        output.text("There is no reduction yet. Run persona-atlas reduce.")


def _described(location: Location, reduction_id: str, current: str | None) -> dict[str, Any]:
    found: dict[str, Any] = {"reduction": reduction_id, "current": reduction_id == current}
    try:
        reduction = read_reduction(location, reduction_id)
    except StoreError as error:
        return found | {"error": str(error)}
    facts = {} if reduction is None else reduction.facts
    return found | {name: facts.get(name) for name in _FACTS}


def _line(found: dict[str, Any]) -> list[str]:
    begin = [found["reduction"], "current" if found["current"] else ""]
    if "error" in found:
        return [*begin, "", found["error"], "", ""]
    array = " ".join(found[name] for name in ("hook_point", "pooling") if found[name])
    counted = (found["role_filter"] or "not known") + (f" by {found['judge']}" if found["judge"] else "")
    return [*begin, array, counted, *("" if found[n] is None else f"{found[n]:,}" for n in ("min_count", "units"))]
