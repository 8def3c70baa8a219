"""Reduce a run to means, axis, PCA, projections and thresholds at every captured layer, and store the result.

1. Sums of each persona, by score and half of the questions (``reduction/partial_sums.py``). They are kept in the store:
   only units that are new are read.
2. From the sums, a group of layers at a time: vectors, axis and PCA (``reduction/by_layer.py``).
3. Projections of each persona's rollouts on the axis (``reduction/projections.py``), kept likewise: if the axis is the
   same as before, only units that are new are read.
4. From the projections, a group of layers at a time: thresholds and intervals.

Each step holds a part of the layers or of the personas, so that memory stays bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any

import numpy as np
import pyarrow as pa

from ..jobs.errors import InputError, StoreError
from ..jobs.specs.spec import digest_of
from ..jobs.wording import count_of
from ..storage.derived.reductions import (
    Reduction,
    ReductionWriter,
    make_current,
    read_current_reduction,
    read_reduction,
    sums_in_use,
)
from ..storage.derived.scores import NO_JUDGE, with_scores
from ..storage.query.run import Run
from ..workers.models.limits import usable_cores
from .reduction.allocator import share_arenas
from .reduction.budget import layers_of_projections, layers_of_vectors
from .reduction.by_layer import LayerVectors, counts_of
from .reduction.cast import Cast, left_out_note, require_roles
from .reduction.from_projections import ProjectionResults
from .reduction.mapping import Mapper, map_in_threads
from .reduction.partial_sums import StoredSums
from .reduction.projections import StoredProjections, axis_digest
from .reduction.rollouts import has_halves, personas_of
from .reduction.settings import Settings, asked_again, make_settings, plain_numbers, refuse_unused_min_score
from .reduction.unit_work import ArrayOfRun, UnitLengths
from .thresholds import label_of

_ALL_ROLLOUTS = {"judge": NO_JUDGE, "min_score": None, "min_count": None}

_METHOD, _METHOD_BY_SCORES = 4, 5
"""Part of a reduction's id, without and with a judge; raised whenever the same activations would give other results by
more than rounding, or a result that was not there."""

Say = Callable[[str], None]


def reduce_run(
    run: Run,
    *,
    hook_point: str | None = None,
    pooling: str | None = None,
    judge: str | None = None,
    min_score: float | None = None,
    min_count: int | None = None,
    percentiles: Sequence[float] | None = None,
    say: Say | None = None,
    mapper: Mapper = map_in_threads,
) -> Reduction:
    """Reduce the committed units of a run and make the result the run's current reduction.

    A reduction of the same attempts and scores that is stored already is made current without being computed again.

    Args:
        run: The run; units committed after it was opened do not count.
        hook_point: Hook point to reduce; None: ``resid_post`` if it was captured, else the first captured one.
        pooling: Pooling to reduce; None: ``response_mean`` if it was captured, else the first captured one.
        judge: Judge whose scores decide which rollouts of roles count, and which pairs of traits; ``none``: all count;
            None: the only judge that has scored the run, if there is one.
        min_score: Least score of a role's rollout that counts, 0, 1, 2 or 3; None: 3. Refused without a judge.
        min_count: Least number of rollouts behind a role vector, and of pairs behind a trait vector; None: 10 with a
            judge, 1 without.
        percentiles: Percentiles of the thresholds, 0 to 100; None: 1, 25, 50 and 75.
        say: Called with a line of progress, and of warning.
        mapper: Spreads the work on personas.

    Raises:
        InputError: Nothing is committed, the pooling was not captured or is ``tokens``, the run has no personas, there
            is no such judge, several have scored the run and none is named, ``min_score`` is given without a judge or
            is not a whole number, a number is none, or no role has enough rollouts that count.
        StoreError: A committed value is missing or damaged.
    """
    min_score, min_count, percentiles = plain_numbers(min_score, min_count, percentiles)
    refuse_unused_min_score(run, judge, min_score)
    asked = {
        "hook_point": hook_point,
        "pooling": pooling,
        "judge": judge,
        "min_score": min_score,
        "min_count": min_count,
        "percentiles": percentiles,
    }
    return _reduce(run, asked, asked, say, mapper)


def reduce_again(
    run: Run, *, ignore_scores: bool = False, say: Say | None = None, mapper: Mapper = map_in_threads
) -> Reduction:
    """Bring a run's reduction up to its committed units and scores, with what the current one was asked for.

    Args:
        run: The run; units committed after it was opened do not count.
        ignore_scores: Whether every rollout counts this time, from one on, whatever was asked for. That stays what was
            asked for: the next reduction again takes scores.
        say: Called with a line of progress, and of warning.
        mapper: Spreads the work on personas.

    Returns:
        The reduction: the current one if nothing is new; of a run without one, that of ``reduce_run``.

    Raises:
        InputError: See ``reduce_run``.
        StoreError: A committed value is missing or damaged.
    """
    try:
        current = read_current_reduction(run.location)
    except StoreError:
        # It is made anew below; ``verify`` names the damage.
        current = None
    asked = asked_again(run, current.facts if current is not None else {})
    taken = asked | _ALL_ROLLOUTS if ignore_scores else asked
    return _reduce(run, asked, taken, say, mapper)


def without_scores_if_too_few(run: Run, error: InputError, *, say: Say, mapper: Mapper = map_in_threads) -> Reduction:
    """Reduce without scores, and warn, after an error which says that they leave no role enough rollouts.

    Args:
        run: The run.
        error: What a reduction raised; any other error is raised again.
        say: Called with the warning and lines of progress.
        mapper: Spreads the work on personas.
    """
    if error.code != "too_few_rollouts":
        raise error
    say(f"Warning: scores are ignored, because {error.message} Run reduce with other options. {error.hint}")
    return reduce_again(run, ignore_scores=True, say=say, mapper=mapper)


def _reduce(run: Run, asked: dict[str, Any], taken: dict[str, Any], say: Say | None, mapper: Mapper) -> Reduction:
    """Reduce by what is taken, and note what was asked for."""
    # Before anything starts threads, each of which may make an arena.
    share_arenas()
    settings = make_settings(run, **taken)
    if not run.committed:
        raise InputError(
            f"nothing is committed at {run.url} yet.", code="empty_run", field="store.url", hint="Run the job first."
        )
    lines = run.with_vector(run.index)
    if settings.judge is not None:
        lines = with_scores(run.location, lines, settings.judge)
    given = {name: value for name, value in asked.items() if value is not None}
    reduction_id = _id_of(run, settings, lines, given)
    if make_current(run.location, reduction_id):
        stored = read_current_reduction(run.location)
        if stored is not None:
            return stored
    return _Reducing(run, settings, given, lines, reduction_id, say or _silent, mapper).reduce()


def _silent(_line: str) -> None:
    """Say nothing."""


def _id_of(run: Run, settings: Settings, lines: pa.Table, given: dict[str, Any]) -> str:
    taken = [settings.judge, settings.min_score, settings.min_count, list(settings.percentiles)]
    scores = None
    if settings.judge is not None:
        scored = np.stack([lines["row"].to_numpy(), lines["score"].to_numpy(zero_copy_only=False)])
        scores = sha256(scored.astype(np.float64).tobytes()).hexdigest()
    method = _METHOD if settings.judge is None else _METHOD_BY_SCORES
    identity = [method, run.record.plan_digest, _attempts(run), settings.hook_point, settings.pooling, taken, scores]
    # What was asked for besides what is taken: it may change nothing yet, and is asked again when scores arrive.
    return digest_of([*identity, given])[:16]


def _attempts(run: Run) -> list[tuple[str, int]]:
    """List each committed unit with its row block, which differs when a unit was deleted and done again."""
    row_blocks_U, first_U = np.unique(run.index["row"].to_numpy() // run.record.rows_per_block, return_index=True)
    return sorted(zip(run.index["unit_id"].take(first_U).to_pylist(), row_blocks_U.tolist(), strict=True))


class _Reducing:
    """One reduction, step by step.

    Args:
        run: The run.
        settings: What was asked for, with what was not given filled in.
        asked: What was given.
        lines: Lines of the index with a vector, with scores where there is a judge.
        reduction_id: Id of the reduction.
        say: Called with a line of progress.
        mapper: Spreads the work on personas.
    """

    def __init__(
        self,
        run: Run,
        settings: Settings,
        asked: dict[str, Any],
        lines: pa.Table,
        reduction_id: str,
        say: Say,
        mapper: Mapper,
    ) -> None:
        self._run = run
        self._settings = settings
        self._asked = asked
        self._lines = lines
        self._id = reduction_id
        self._say = say
        self._mapper = mapper
        self._array = ArrayOfRun(run.record, settings.hook_point, settings.pooling)
        self._lengths = UnitLengths(run, self._array)
        self._in_use = _in_use(run)
        self._undefined: dict[str, dict[str, str]] = {}
        self._massive: list[list[int]] = []
        self._rollout_variance: list[np.ndarray] = []

    def reduce(self) -> Reduction:
        """Compute and store everything."""
        # Raises where the array was not captured, before anything is written.
        self._run.lengths(self._settings.hook_point, self._settings.pooling)
        cast = Cast(self._settings, personas_of(self._lines, self._run.record.rows_per_block))
        self._require_personas(cast)
        require_roles(cast)
        if note := left_out_note(cast):
            self._say(note)
        sums = StoredSums(self._run.location, self._array, self._lengths, self._mapper, usable_cores())
        sums.prepare(cast.personas, self._in_use, self._say)
        writer = ReductionWriter(self._run.location, self._id, self._array.num_layers)
        has_axis = self._write_vectors(cast, sums, writer)
        writer.write(counts_of(cast))
        paths = sums.paths
        if has_axis:
            paths += self._write_projections(cast, writer)
        writer.finish(
            paths,
            layers=self._run.layers,
            role_names=tuple(role.name for role in cast.roles),
            trait_names=cast.traits,
            facts=self._facts(cast),
            threshold_labels=tuple(label_of(p) for p in self._settings.percentiles) if has_axis else (),
            personas=tuple(persona.address for persona in cast.personas),
        )
        stored = read_reduction(self._run.location, self._id)
        assert stored is not None
        return stored

    def _require_personas(self, cast: Cast) -> None:
        if cast.everybody and not cast.personas:
            raise InputError(
                "the run holds only given conversations that belong to no persona, so there are no means to take.",
                code="nothing_to_reduce",
                file=self._run.url,
                hint="Use query; or extract a directory with the responses of roles and the default.",
            )

    def _write_vectors(self, cast: Cast, sums: StoredSums, writer: ReductionWriter) -> bool:
        """Write what follows from the sums, a group of layers at a time; return whether there is an axis."""
        num_layers, d_model = self._array.num_layers, self._array.d_model
        groups = max((len(persona.groups) for persona in cast.personas), default=1)
        step = layers_of_vectors(num_layers, d_model, len(cast.all_roles), len(cast.all_traits), groups)
        for start, stop in self._groups_of_layers(step, "Computing vectors, axis and PCA"):
            # No name for the arrays, so that those of one group are gone before the next group's are made.
            writer.write(self._vectors_of(cast, sums, start, stop), start)
        return cast.default is not None and bool(cast.roles)

    def _vectors_of(self, cast: Cast, sums: StoredSums, start: int, stop: int) -> dict[str, np.ndarray]:
        """Compute the vectors of a group of layers; what they are computed from is gone when they are written."""
        vectors = LayerVectors(cast, stop - start, self._array.d_model)
        vectors.collect(lambda persona: sums.read(persona, start, stop))
        arrays, massive = vectors.finish()
        self._massive += massive
        self._rollout_variance.append(vectors.rollout_variance)
        self._note_undefined(vectors.undefined, start)
        return arrays

    def _write_projections(self, cast: Cast, writer: ReductionWriter) -> list[str]:
        """Project every rollout, write what follows from that, and return the paths of the partial results."""
        projections = StoredProjections(
            self._run.location,
            self._array,
            self._lengths,
            self._mapper,
            usable_cores(),
            axis_digest(cast),
            writer.path,
        )
        projections.prepare(cast.everybody, self._in_use, self._say)
        results = ProjectionResults(cast, self._lines, np.concatenate(self._rollout_variance))
        step = layers_of_projections(self._array.num_layers, self._lines.num_rows)
        for start, stop in self._groups_of_layers(step, "Computing thresholds and intervals"):
            arrays, undefined = results.at(start, *projections.read(cast.everybody, start, stop))
            writer.write(arrays, start)
            self._note_undefined({"projections": undefined} if undefined else {}, start)
        writer.write({"projection_rows": self._lines["row"].to_numpy()})
        return projections.paths

    def _groups_of_layers(self, step: int, what: str) -> list[tuple[int, int]]:
        layers = self._run.layers
        groups = [(start, min(len(layers), start + step)) for start in range(0, len(layers), step)]
        self._say(f"{what} at {count_of(len(layers), 'layer')}" + (f", {step} at a time." if len(groups) > 1 else "."))
        return groups

    def _note_undefined(self, found: dict[str, dict[int, str]], start: int) -> None:
        for what, reasons in found.items():
            at = {str(self._run.layers[start + position]): reason for position, reason in reasons.items()}
            self._undefined.setdefault(what, {}).update(at)

    def _facts(self, cast: Cast) -> dict[str, Any]:
        settings = self._settings
        facts: dict[str, Any] = {
            "hook_point": settings.hook_point,
            "pooling": settings.pooling,
            "role_filter": settings.role_filter,
            "rollout_filter": settings.role_filter,
            "judge": settings.judge,
            "min_score": settings.min_score if settings.judge is not None else None,
            "min_count": settings.min_count,
            "trait_kind": cast.trait_kind,
            "all_traits": list(cast.all_traits),
            "percentiles": list(settings.percentiles),
            "massive": self._massive,
            "halves": _HALVES if has_halves(self._lines) else _NO_HALVES,
            "units": len(self._run.committed),
            "units_planned": self._run.record.num_units,
            "rollouts": self._run.index.num_rows,
        }
        optional = {
            "undefined": self._undefined,
            "asked": self._asked,
            "without_vector": _without_vector(self._run),
            "roles_left_out": cast.roles_left_out,
            "category_roles": {name: [role.name for role in roles] for name, roles in cast.by_category.items()},
            "traits_left_out": cast.traits_left_out,
            "scored": cast.scored,
        }
        return facts | {name: value for name, value in optional.items() if value}


_HALVES = "questions with even and with odd index"
_NO_HALVES = "none: rollouts of given conversations have no question"


def _in_use(run: Run) -> set[str]:
    try:
        return sums_in_use(run.location)
    except StoreError:
        # Only which partial results are looked at first depends on it.
        return set()


def _without_vector(run: Run) -> dict[str, list[str]]:
    """Name by kind the personas with committed rollouts of which every response is empty, in one polarity at least."""
    filled = _addresses(run.with_vector(run.index))
    found: dict[str, set[str]] = {}
    for kind, name, _ in _addresses(run.index) - filled:
        found.setdefault(kind, set()).add(name)
    return {kind: sorted(names) for kind, names in sorted(found.items())}


def _addresses(index: pa.Table) -> set[tuple[str, str, str]]:
    names = ["kind", "persona", "polarity"]
    found = index.group_by(names).aggregate([])
    return set(zip(*(found[name].to_pylist() for name in names), strict=True))
