"""The Python interface to stores: reduce, compare, verify, export and import without a command line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ...analysis.comparison.compare import compare as compare_sides
from ...analysis.comparison.results import Comparison
from ...analysis.comparison.sides import refuse_same, side_of
from ...analysis.exchange.export import Exported, ExportFormat, export_vectors
from ...analysis.exchange.read_directory import import_directory
from ...analysis.reduce import reduce_run
from ...storage.derived.reductions import Reduction
from ...storage.locations.location import open_location
from ...storage.query.run import Run, open_run
from ...storage.query.vectors import Vectors, VectorSet, open_vectors
from ...storage.verification.verify import Verification
from ..run.recompute import verify_and_recompute
from .progress import shown_progress


def reduce(
    run: Run | str | os.PathLike[str],
    *,
    hook_point: str | None = None,
    pooling: str | None = None,
    judge: str | None = None,
    min_score: float | None = None,
    min_count: int | None = None,
    percentiles: Sequence[float] | None = None,
    progress: bool = True,
) -> Reduction:
    """Compute a run's role and trait vectors, Assistant Axis, PCA and thresholds, and store them in the run.

    What was read before is not read again: new units and new scores cost what is new.

    Args:
        run: An open run, or the path or URL of its store.
        hook_point: Hook point to reduce; None: ``resid_post``, or the first that was captured.
        pooling: Pooling to reduce; None: ``response_mean``, or the first that was captured.
        judge: Judge whose scores decide which rollouts of roles count, and which pairs of traits; ``"none"``: all
            count; None: the only judge that has scored the run, if there is one.
        min_score: Least score of a role's rollout that counts, 0, 1, 2 or 3; None: 3. Scores are rounded before
            they are compared, a half to the even number. Refused without a judge.
        min_count: Least number of rollouts behind a role vector, and of pairs behind a trait vector; None: 10 with a
            judge, 1 without.
        percentiles: Percentiles of the thresholds, 0 to 100; None: 1, 25, 50 and 75.
        progress: Whether to print progress to stderr.

    Returns:
        The reduction of the committed units. If the same one is stored already, it is opened instead of computed.

    Raises:
        InputError: There is no run, or nothing in it to reduce; there is no such judge, several have scored the run and
            none is named, or no role has enough rollouts that count.
        StoreError: A committed value is missing or damaged.

    Example:
        >>> from persona_atlas import reduce
        >>> found = reduce("runs/demo", progress=False)
        >>> found.axis[found.position(15)].shape
        (576,)
    """
    opened = run if isinstance(run, Run) else open_run(run)
    return reduce_run(
        opened,
        hook_point=hook_point,
        pooling=pooling,
        judge=judge,
        min_score=min_score,
        min_count=min_count,
        percentiles=percentiles,
        say=shown_progress(progress).say,
    )


def compare(
    a: Run | str | os.PathLike[str],
    b: Run | str | os.PathLike[str],
    *,
    layer: int | None = None,
    reduction_a: str | None = None,
    reduction_b: str | None = None,
) -> Comparison:
    """Compare two reductions: two models, two judges, two checkpoints, or a base model and its fine-tune.

    Args:
        a: An open run, or the path or URL of its store.
        b: Another, or the same with another reduction.
        layer: Layer of ``a`` to compare in detail; None: the middle one of those that have a partner.
        reduction_a: Id of a stored reduction of ``a``; None: the current one.
        reduction_b: Id of a stored reduction of ``b``; None: the current one.

    Returns:
        Correlations of how both order their common roles, cosines of their axes where they are equally wide, and the
        roles that moved, by layers at the same depth.

    Raises:
        InputError: A run has no such reduction, both are the same, fewer than three roles are common, or no layer is.
        StoreError: A reduction is damaged.

    Example:
        >>> from persona_atlas import compare, reduce
        >>> made = [reduce(store, progress=False) for store in ("runs/demo", "runs/tokens")]
        >>> found = compare("runs/demo", "runs/tokens", layer=15)
        >>> found.roles, round(found.at.axis_cosine, 3)
        (('pirate', 'poet', 'teacher'), 1.0)
    """
    run_a, run_b = (run if isinstance(run, Run) else open_run(run) for run in (a, b))
    side_a, side_b = side_of(run_a, reduction_a, "reduction_a"), side_of(run_b, reduction_b, "reduction_b")
    refuse_same(side_a, side_b, "Name another with reduction_a or reduction_b.")
    return compare_sides(side_a, side_b, layer)


def verify(
    run: Run | str | os.PathLike[str],
    *,
    quick: bool = False,
    recompute: int = 0,
    seed: int = 0,
    model: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Verification:
    """Read a run again and check every checksum, row, span and value against its commit records.

    Args:
        run: An open run, or the path or URL of its store.
        quick: Whether to compare lengths only, and read no object.
        recompute: Number of rollouts, chosen at random, to compare with plain forward passes of the run's model.
        seed: Seed of that choice.
        model: Where the model is now, if it is not where the run's record says.
        progress: Whether to print progress to stderr.

    Returns:
        The result: ``is_sound`` when nothing is damaged and no recomputed rollout differs, ``is_complete`` when no unit
        is missing.

    Raises:
        InputError: There is no run; or the model to recompute with is not the run's, or cannot be loaded.
        StoreError: ``run.json`` cannot be read.
        TransientError: The store failed.

    Example:
        >>> from persona_atlas import verify
        >>> verify("runs/demo").is_sound
        True
    """
    location = run.location if isinstance(run, Run) else open_location(run)
    return verify_and_recompute(
        location,
        shown_progress(progress),
        quick=quick,
        count=recompute,
        seed=seed,
        model=os.fspath(model) if isinstance(model, os.PathLike) else model,
    )


def export(
    store: Vectors | str | os.PathLike[str],
    directory: str | os.PathLike[str],
    format: ExportFormat,  # noqa: A002 - the name of the command's option
    *,
    vectors: Sequence[str] = (),
    progress: bool = True,
) -> Exported:
    """Write the vectors of a store to a new folder, in a form that people share.

    Args:
        store: An open run or imported vectors, or the path or URL of their store.
        directory: The folder; it may exist if it is empty.
        format: ``assistant-axis`` (the released files), ``safetensors`` or ``gguf`` (control vectors).
        vectors: Which control vectors to write: ``axis``, ``role:NAME``, ``trait:NAME``; empty: the axis.
        progress: Whether to print progress to stderr.

    Returns:
        The files that were written, and what the format left out.

    Raises:
        InputError: There is no such format or vector, the format cannot hold what there is, or the folder is not empty.

    Example:
        >>> from persona_atlas import export, reduce
        >>> reduction = reduce("runs/demo", progress=False)
        >>> export("runs/demo", "shared", "gguf", progress=False).files[0].name
        'axis.gguf'
    """
    opened = open_vectors(store) if isinstance(store, str | os.PathLike) else store
    return export_vectors(opened, Path(directory), format, wanted=vectors, say=shown_progress(progress).say)


def import_vectors(
    directory: str | os.PathLike[str],
    store: str | os.PathLike[str],
    *,
    model: str | None = None,
    progress: bool = True,
) -> VectorSet:
    """Read vectors that others share into a new store.

    Args:
        directory: A released directory, our safetensors export or GGUF control vectors.
        store: Path or URL of the new store.
        model: Name of the model, where the files do not have it.
        progress: Whether to print progress to stderr.

    Returns:
        The imported vectors, open for reading.

    Raises:
        InputError: A file is missing or not as it must be, the model is not named, the files name another, or the store
            is not empty.

    Example:
        >>> from persona_atlas import export, import_vectors, reduce
        >>> reduction = reduce("runs/demo", progress=False)
        >>> folder = export("runs/demo", "released", "assistant-axis", progress=False).folder
        >>> import_vectors(folder, "runs/imported", model="some/model", progress=False).reduction.axis.shape
        (30, 576)
    """
    location = open_location(store)
    record = import_directory(Path(directory), location, model, shown_progress(progress).say)
    return VectorSet(location, record)
