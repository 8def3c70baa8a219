"""Reduce a run to means, axis, PCA, projections and thresholds at every captured layer, and store the result.

Reads the committed activations twice: once for the means, from which axis and PCA follow, and once for the projections.
Each pass handles a group of layers at a time, so that memory stays bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..jobs.errors import InputError
from ..jobs.personas import DEFAULT_PERSONA
from ..jobs.poolings import DEFAULT_POOLING, TOKENS, keeps_tokens
from ..jobs.specs.spec import digest_of
from ..jobs.specs.spec_parts import CaptureSpec
from ..storage.derived.reductions import Reduction, make_current, read_current_reduction, write_reduction
from ..storage.query.run import Run
from .axis import assistant_axis, cosine, is_distinct, project
from .moments import GroupedMeans
from .pca import fit_pca
from .thresholds import thresholds

_SUMS_BYTES = 512 * 2**20
"""Memory for the sums of one group of layers."""

_METHOD = 2
"""Part of a reduction's id; raised whenever the same activations would give other results."""

Group = tuple[str, str, str]
Say = Callable[[str], None]


def reduce_run(
    run: Run, *, hook_point: str | None = None, pooling: str | None = None, say: Say | None = None
) -> Reduction:
    """Reduce the committed units of a run and make the result the run's current reduction.

    A reduction of the same attempts that is stored already is made current without being computed again.

    Args:
        run: The run; units committed after it was opened do not count.
        hook_point: Hook point to reduce; None: ``resid_post`` if it was captured, else the first captured one.
        pooling: Pooling to reduce; None: ``response_mean`` if it was captured, else the first captured one.
        say: Called with a line of text for every group of layers.

    Raises:
        InputError: Nothing is committed, the pooling was not captured or is ``tokens``, or the run has no personas.
        StoreError: A committed value is missing or damaged.
    """
    capture = run.record.spec.capture
    _refuse_tokens(capture, pooling)
    hook_point = hook_point or _preferred("resid_post", capture.hook_points)
    pooling = pooling or _preferred(DEFAULT_POOLING, capture.pooled)
    if not run.committed:
        raise InputError(
            f"nothing is committed at {run.url} yet.", code="empty_run", field="store.url", hint="Run the job first."
        )
    reduction_id = digest_of([_METHOD, run.record.plan_digest, _attempts(run), hook_point, pooling])[:16]
    if make_current(run.location, reduction_id):
        stored = read_current_reduction(run.location)
        if stored is not None:
            return stored
    groups = set(_groups(run.with_vector(run.index)))
    if {kind for kind, _, _ in groups} == {"conversation"}:
        raise InputError(
            "the run holds only given conversations that belong to no persona, so there are no means to take.",
            code="nothing_to_reduce",
            file=run.url,
            hint="Use query; or extract a directory with the responses of roles and the default.",
        )
    roles = tuple(sorted({name for kind, name, _ in groups if kind == "role"}))
    traits = tuple(
        sorted(name for kind, name, pol in groups if kind == "trait" and pol == "pos" and (kind, name, "neg") in groups)
    )
    parts: list[dict[str, npt.NDArray[Any]]] = []
    for layers in _layer_groups(run, len(groups)):
        if say:
            say(f"Reducing {_range_of(layers)}; the last is {run.layers[-1]}.")
        parts.append(_reduce_layers(run, layers, hook_point, pooling, roles, traits))
    reduction = _join(parts, run, reduction_id, roles, traits, hook_point, pooling)
    write_reduction(run.location, reduction)
    return reduction


def _attempts(run: Run) -> list[tuple[str, int]]:
    """List each committed unit with its row block, which differs when a unit was deleted and done again."""
    row_blocks_U, first_U = np.unique(run.index["row"].to_numpy() // run.record.rows_per_block, return_index=True)
    return sorted(zip(run.index["unit_id"].take(first_U).to_pylist(), row_blocks_U.tolist(), strict=True))


def _preferred(usual: str, captured: Sequence[str]) -> str:
    return usual if usual in captured else captured[0]


def _refuse_tokens(capture: CaptureSpec, pooling: str | None) -> None:
    """Refuse a pooling that keeps many vectors per rollout, and runs that captured nothing else."""
    if (pooling is not None and keeps_tokens(pooling)) or not capture.pooled:
        raise InputError(
            f"a reduction takes one vector per rollout, but {TOKENS} keeps one per token.",
            code="nothing_to_reduce",
            field="pooling",
            hint=f"Reduce {' or '.join(capture.pooled) or f'a run that captures {DEFAULT_POOLING}'}.",
        )


def _range_of(layers: tuple[int, ...]) -> str:
    return f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers[0]} to {layers[-1]}"


def _groups(index: Any) -> list[Group]:
    columns = (index[name].to_pylist() for name in ("kind", "persona", "polarity"))
    return list(zip(*columns, strict=True))


def _layer_groups(run: Run, num_groups: int) -> Iterator[tuple[int, ...]]:
    per_layer = max(1, num_groups) * run.record.model.d_model * 8
    step = max(1, _SUMS_BYTES // per_layer)
    for start in range(0, len(run.layers), step):
        yield run.layers[start : start + step]


def _reduce_layers(
    run: Run, layers: tuple[int, ...], hook_point: str, pooling: str, roles: tuple[str, ...], traits: tuple[str, ...]
) -> dict[str, npt.NDArray[Any]]:
    sums = GroupedMeans()
    for index, values_NLD in run.query(layer=list(layers), hook_point=hook_point, pooling=pooling).blocks():
        sums.add(_groups(index), values_NLD)
    means = sums.finish()
    default = means.get(("default", DEFAULT_PERSONA, "pos"))
    found: dict[str, npt.NDArray[Any]] = {}
    if default is not None:
        found["default_vector"] = default
    if traits:
        found["trait_vectors"] = np.stack([means["trait", t, "pos"] - means["trait", t, "neg"] for t in traits])
    if roles:
        role_vectors = np.stack([means["role", role, "pos"] for role in roles])
        found["role_vectors"] = role_vectors
        found["role_counts"] = np.array([sums.counts["role", role, "pos"] for role in roles], dtype=np.int64)
        axis = None
        if default is not None:
            axis = assistant_axis(default, role_vectors)
            # NaN and not a zero vector, whose projections would look like numbers.
            axis[~is_distinct(axis, default)] = np.nan
            found["axis"] = axis
            found |= _projections(run, layers, hook_point, pooling, axis)
        if len(roles) >= 3:
            pca = fit_pca(role_vectors, axis)
            found["pca_mean"], found["pca_components"] = pca.mean_LD, pca.components_LKD
            found["pca_variance_ratio"] = pca.variance_ratio_LM
            if axis is not None:
                both_L = pca.defined_L & np.isfinite(axis).all(axis=1)
                cosine_L = np.full(len(layers), np.nan)
                cosine_L[both_L] = cosine(pca.components_LKD[both_L, 0], axis[both_L])
                found["pc1_axis_cosine"] = cosine_L
    return found


def _projections(
    run: Run, layers: tuple[int, ...], hook_point: str, pooling: str, axis_LD: npt.NDArray[np.float64]
) -> dict[str, npt.NDArray[Any]]:
    rows: list[npt.NDArray[np.int64]] = []
    projected: list[npt.NDArray[np.float64]] = []
    defined_L = np.isfinite(axis_LD).all(axis=1)
    for index, values_NLD in run.query(layer=list(layers), hook_point=hook_point, pooling=pooling).blocks():
        rows.append(index["row"].to_numpy())
        projections_NL = np.full(values_NLD.shape[:2], np.nan)
        projections_NL[:, defined_L] = project(values_NLD[:, defined_L], axis_LD[defined_L])
        projected.append(projections_NL)
    projections_NL = np.concatenate(projected)
    found = thresholds(projections_NL[:, defined_L])
    cap_QL = np.full((len(found.labels), len(layers)), np.nan)
    cap_QL[:, defined_L] = found.cap_on_minus_axis_QL
    return {
        "projections": projections_NL,
        "projection_rows": np.concatenate(rows),
        "cap_on_minus_axis": cap_QL,
        "floor_on_axis": -cap_QL,
        "threshold_labels": np.array(found.labels),
    }


def _undefined(arrays: dict[str, npt.NDArray[Any]], layers: tuple[int, ...]) -> dict[str, dict[str, str]]:
    """Name the layers at which there is no axis, or are no components, with the reason; layers as JSON's keys."""
    reasons = {
        "axis": ("axis", "the default Assistant and the mean of the roles have the same vector"),
        "pca": ("pca_variance_ratio", "the role vectors are all the same"),
    }
    found: dict[str, dict[str, str]] = {}
    for what, (array, reason) in reasons.items():
        if array in arrays:
            missing_L = np.asarray(~np.isfinite(arrays[array]).all(axis=1))
            at = {str(layer): reason for layer, is_missing in zip(layers, missing_L, strict=True) if is_missing}
            found |= {what: at} if at else {}
    return found


def _without_vector(run: Run) -> dict[str, list[str]]:
    """Name by kind the personas with committed rollouts of which every response is empty, in one polarity at least."""
    filled = set(_groups(run.with_vector(run.index)))
    found: dict[str, set[str]] = {}
    for kind, name, _ in set(_groups(run.index)) - filled:
        found.setdefault(kind, set()).add(name)
    return {kind: sorted(names) for kind, names in sorted(found.items())}


_LAYER_AXIS = {"role_vectors": 1, "trait_vectors": 1, "projections": 1, "cap_on_minus_axis": 1, "floor_on_axis": 1}
"""Position of the axis L in the arrays of a reduction where it is not the first."""

_WITHOUT_LAYERS = ("role_counts", "projection_rows", "threshold_labels")


def _join(
    parts: list[dict[str, npt.NDArray[Any]]],
    run: Run,
    reduction_id: str,
    roles: tuple[str, ...],
    traits: tuple[str, ...],
    hook_point: str,
    pooling: str,
) -> Reduction:
    joined: dict[str, Any] = {}
    for name in parts[0]:
        if name in _WITHOUT_LAYERS:
            joined[name] = parts[0][name]
        else:
            whole = np.concatenate([part[name] for part in parts], axis=_LAYER_AXIS.get(name, 0))
            joined[name] = whole.astype(np.float32)
            # A chunk of NaN is not stored and reads as the fill value: its bits have to be those, sign included.
            joined[name][np.isnan(joined[name])] = np.nan
    labels = joined.pop("threshold_labels", ())
    provenance = {
        "hook_point": hook_point,
        "pooling": pooling,
        "rollout_filter": "all",
        "units": len(run.committed),
        "units_planned": run.record.num_units,
        "rollouts": run.index.num_rows,
    }
    undefined = _undefined(joined, run.layers)
    without_vector = _without_vector(run)
    provenance |= {"undefined": undefined} if undefined else {}
    provenance |= {"without_vector": without_vector} if without_vector else {}
    return Reduction(
        reduction_id=reduction_id,
        layers=run.layers,
        role_names=roles,
        trait_names=traits,
        facts=provenance,
        threshold_labels=tuple(str(label) for label in labels),
        **joined,
    )
