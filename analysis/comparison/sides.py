"""Find the reductions to compare in the stores of their runs."""

from __future__ import annotations

from ...jobs.errors import InputError
from ...storage.derived.reductions import read_current_reduction, read_reduction, reduction_ids
from ...storage.query.run import Run
from .one_layer import Side


def side_of(run: Run, reduction_id: str | None = None, field: str = "reduction") -> Side:
    """Open a reduction of a run, to be compared with another.

    Args:
        run: The run.
        reduction_id: Id of a stored reduction; None: the current one.
        field: Name of the option or argument that gave the id, for errors.

    Raises:
        InputError: The run has no reduction, or none of that id.
        StoreError: The reduction is damaged.

    Example:
        >>> from persona_atlas import open_run, reduce
        >>> made = reduce("runs/demo", progress=False)
        >>> side_of(open_run("runs/demo")).reduction.reduction_id == made.reduction_id
        True
    """
    if reduction_id is None:
        reduction = read_current_reduction(run.location)
        if reduction is None:
            raise InputError(
                "the run has no reduction to compare.",
                code="no_reduction",
                file=run.url,
                hint=f"Run persona-atlas reduce {run.url} first.",
            )
    else:
        known = reduction_ids(run.location)
        reduction = read_reduction(run.location, reduction_id) if reduction_id in known else None
        if reduction is None:
            raise InputError(
                f"{run.url} has no reduction {reduction_id!r}.",
                code="no_such_reduction",
                field=field,
                hint=f"It has {', '.join(known)}." if known else f"Run persona-atlas reduce {run.url} first.",
            )
    return Side(reduction, run.record.model.n_layers, run.record.spec.model.source, run.url)


def refuse_same(a: Side, b: Side, hint: str) -> None:
    """Refuse to compare a reduction with itself.

    Two runs of one job have reductions of one id, a hash of what they were asked for and of what was committed, and
    still other numbers where they ran on other machines or engines.

    Args:
        a: The first.
        b: The second.
        hint: How to name another reduction.

    Raises:
        InputError: Both are the same reduction.
    """
    if (a.store, a.reduction.reduction_id) == (b.store, b.reduction.reduction_id):
        raise InputError(
            f"both are reduction {a.reduction.reduction_id}, so nothing differs.",
            code="same_reduction",
            file=b.store,
            hint=hint,
        )
