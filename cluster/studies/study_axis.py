"""The axis of a study, compared with the plan of its job before anything is run."""

from __future__ import annotations

from ...analysis.axis_source import AxisSource, open_axis
from ...jobs.errors import InputError
from ...jobs.files.store_url import is_s3
from ...jobs.plan import Plan
from ...storage.query.query import nearest_layer


def open_study_axis(
    axis: str, plan: Plan, layer: int | None = None, *, reduction: str | None = None, transfer: bool = False
) -> tuple[AxisSource, int]:
    """Open the axis on which the replies of a job will be projected.

    Args:
        axis: A run that was reduced, imported vectors, or a folder of published ones. On S3 it is reached like the
            job's store, if that is there too.
        plan: The plan of the job.
        layer: Layer of the projections; None: the axis's middle layer, or the captured one nearest to it.
        reduction: Id of a stored reduction; None: the current one.
        transfer: Whether another model than the axis's is meant.

    Returns:
        The axis and the layer.

    Raises:
        InputError: There is no axis, it is another model's, or the job does not capture what it was made of.
        StoreError: The reduction is damaged.
    """
    store = plan.spec.store
    both_on_s3 = is_s3(axis) and is_s3(store.url)
    opened = open_axis(
        axis,
        reduction=reduction,
        endpoint_url=store.endpoint_url if both_on_s3 else None,
        access=store.access if both_on_s3 else None,
    )
    opened.require_model(
        n_layers=plan.facts.n_layers,
        d_model=plan.facts.d_model,
        source=plan.spec.model.source,
        fingerprint=plan.facts.fingerprint,
        transfer=transfer,
        field="--axis",
    )
    capture = plan.spec.capture
    if opened.hook_point not in capture.hook_points or opened.pooling not in capture.poolings:
        raise InputError(
            f"the axis was made of {opened.pooling} at {opened.hook_point}, which the job does not capture.",
            code="not_captured",
            field="capture",
            hint=f"Add {opened.hook_point} to capture.hook_points and {opened.pooling} to capture.poolings.",
        )
    if layer is not None:
        opened.position(layer)
    shared = sorted(set(plan.layers) & set(opened.layers))
    if not shared or (layer is not None and layer not in shared):
        raise InputError(
            f"{'no layer of the axis' if layer is None else f'layer {layer}'} is captured.",
            code="no_such_layer",
            field="--layer" if layer is not None else "capture.layers",
            hint=f"The job captures {', '.join(map(str, plan.layers))}.",
        )
    return opened, layer if layer is not None else nearest_layer(shared, opened.middle)
