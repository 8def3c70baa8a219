"""The Assistant Axis of a model for those who use it: direction, sizes, projections of its run, and thresholds.

It comes from a run with a reduction, from imported vectors, or from files of published vectors, and is the same to
those who watch a model, steer it or cap it. Every number is in axis sign: higher is nearer the Assistant. A label such
as ``p0.25`` names a percentile of the projection on -axis, as the released configurations do; ``floor`` returns it in
axis sign. Knows no engine. Axes: L layers, D d_model, N rollouts, G personas.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..jobs.errors import InputError
from ..jobs.files.hub_url import is_hub
from ..jobs.files.store_url import is_s3
from ..jobs.files.user_paths import expand_home
from ..jobs.specs.store_spec import S3Access
from ..jobs.wording import count_of
from ..storage.derived.reductions import Reduction, read_reduction
from ..storage.format import layout
from ..storage.query.query import nearest_layer
from ..storage.query.run import Run
from ..storage.query.selection import Layers, layer_positions
from ..storage.query.vectors import Vectors, VectorSet, open_vectors, require_reduction
from .axes.axis_model import AxisModel, require_same, require_shape
from .axes.norms import root_mean_square
from .axis import unit
from .exchange.imported import Imported
from .exchange.read_directory import read_vectors
from .watching.distribution import UNKNOWN, Distribution

Float64 = npt.NDArray[np.float64]

_FIELD = "AXIS"


@dataclass(frozen=True, eq=False)
class AxisSource:
    """An axis, and what is known of the projections on it. Make one with ``open_axis``.

    What is large is read from the store when it is first used, and only at the layers that are asked for.

    Attributes:
        name: Path or URL that it was opened from, for messages.
        model: The model that it belongs to.
        reduction: The vectors that it is part of.
        layers: The layers at which there is an axis, ascending; the axis L of all arrays.
        middle: The layer that is looked at unless another is asked for: n_layers // 2, or the nearest of ``layers``.
        axis_LD: The axis at these layers, not normalised; it points toward the Assistant.
        notes: Sentences about what the files do not have or do not agree on.

    Example:
        >>> from persona_atlas import open_axis
        >>> axis = open_axis("models/tiny-axis")
        >>> axis.layers, axis.middle, axis.axis_LD.shape, axis.distribution(1).of
        ((0, 1, 2), 1, (3, 32), 'role vectors')
    """

    name: str
    model: AxisModel
    reduction: Reduction = field(repr=False)
    layers: tuple[int, ...]
    middle: int
    axis_LD: Float64 = field(repr=False)
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, reduction: Reduction, model: AxisModel, name: str, notes: tuple[str, ...] = ()) -> AxisSource:
        """Take the axis of a reduction.

        Args:
            reduction: The reduction.
            model: The model that it belongs to.
            name: Where it is from, for messages.
            notes: Sentences about what its source does not have.

        Raises:
            InputError: It has no axis at any layer.
        """
        axis_LD = reduction.axis
        undefined = reduction.undefined("axis")
        defined = [layer for layer in reduction.layers if layer not in undefined]
        if axis_LD is None or not defined:
            raise InputError(
                "has no axis: it needs rollouts of the default Assistant and of a role."
                if axis_LD is None
                else f"has no axis at any layer: {undefined[reduction.layers[0]]}.",
                code="no_axis",
                file=name,
                hint="Name a store or files with an axis, such as assistant_axis.pt of published vectors.",
            )
        layers = tuple(sorted(defined))
        values_LD = np.stack([axis_LD[reduction.position(layer)] for layer in layers]).astype(np.float64)
        return cls(name, model, reduction, layers, nearest_layer(layers, model.n_layers // 2), values_LD, notes)

    @property
    def hook_point(self) -> str:
        """Where in a layer the axis was captured; interventions act at ``resid_post``."""
        return str(self.reduction.facts.get("hook_point", "resid_post"))

    @property
    def pooling(self) -> str:
        """How the tokens of a response were combined to the vectors behind the axis."""
        return str(self.reduction.facts.get("pooling", "response_mean"))

    @property
    def labels(self) -> tuple[str, ...]:
        """The thresholds that there are, as percentiles of the projection on -axis: ``p0.25`` and so on."""
        return self.reduction.threshold_labels

    def position(self, layer: int) -> int:
        """Return a layer's index along the L axis.

        Args:
            layer: 0-based layer.

        Raises:
            InputError: There is no axis at this layer.
        """
        if layer in self.layers:
            return self.layers.index(layer)
        reason = self.reduction.undefined("axis").get(layer)
        raise InputError(
            f"layer {layer} has no axis in {self.name}{f': {reason}' if reason else ''}.",
            code="no_such_layer",
            field="layer",
            hint=f"It has one at {_span(self.layers)}; the model has {count_of(self.model.n_layers, 'layer')}, counted "
            "from 0.",
        )

    def chosen(self, asked: Layers) -> list[int]:
        """Return the layers that a user asks for.

        Args:
            asked: A 0-based layer, several, ``"middle"``, ``"all"``, or a text such as ``"3,5"`` or ``"46:54"`` (end
                exclusive).

        Raises:
            InputError: A layer has no axis, or the text does not name layers.
        """
        if isinstance(asked, str) and asked == "middle":
            return [self.middle]
        if isinstance(asked, str) and asked == "all":
            return list(self.layers)
        n_layers = max(self.model.n_layers, self.layers[-1] + 1)
        try:
            wanted = layer_positions(asked, range(n_layers), n_layers)
        except InputError as error:
            if error.code != "no_such_layer":
                raise
            raise InputError(
                f"{asked!r} names a layer outside of the model, or none.",
                code=error.code,
                field="layer",
                hint=f"The model has {count_of(n_layers, 'layer')}, 0 to {n_layers - 1}; the axis is at "
                f"{_span(self.layers)}.",
            ) from None
        return [self.layers[self.position(layer)] for layer in dict.fromkeys(wanted)]

    def unit_D(self, layer: int) -> Float64:  # noqa: N802 - tensors wear their axes
        """Return the axis at one layer, scaled to length one.

        Args:
            layer: 0-based layer.

        Raises:
            InputError: There is no axis at this layer.
        """
        return unit(self.axis_LD[self.position(layer)])

    def floor(self, layer: int, label: str) -> float:
        """Return a threshold in axis sign: a floor for the projection on the axis.

        Args:
            layer: 0-based layer.
            label: Percentile of the projection on -axis, as a fraction: ``p0.25`` is the 75th percentile in axis sign.

        Raises:
            InputError: There is no axis or no such threshold at this layer.

        Example:
            >>> from persona_atlas import reduce
            >>> reduction = reduce("runs/demo", progress=False)
            >>> axis = open_axis("runs/demo")
            >>> bool(np.isclose(axis.floor(15, "p0.25"), np.percentile(reduction.read("projections", [15]), 75)))
            True
        """
        position = self.reduction.position(self.layers[self.position(layer)])
        floor_QL = self.reduction.floor_on_axis
        if label not in self.labels or floor_QL is None:
            raise InputError(
                f"the percentile {label!r} was not computed for {self.name}.",
                code="no_such_percentile",
                field="percentile",
                hint=f"It has {', '.join(self.labels)}. A run gets others by reduce --percentiles."
                if self.labels
                else "It has no thresholds.",
            )
        floor_L = floor_QL[self.labels.index(label)]
        if not np.isfinite(floor_L[position]):
            held = tuple(layer for layer in self.layers if np.isfinite(floor_L[self.reduction.position(layer)]))
            raise InputError(
                f"{self.name} has no threshold {label} at layer {layer}.",
                code="no_such_percentile",
                field="layer",
                hint=f"It has one at {_span(held)}." if held else "It has none at any layer.",
            )
        return float(floor_L[position])

    def distribution(self, layer: int) -> Distribution:
        """Return the projections on the axis that a value is compared with, at one layer.

        They are those of the run's rollouts: roles, traits and default, no matter how they were scored. Vectors without
        rollouts have the projections of their role vectors instead; without these either, nothing is known.

        Args:
            layer: 0-based layer.

        Raises:
            InputError: There is no axis at this layer.
        """
        self.position(layer)
        of_rollouts = self.reduction.read("projections", [layer])
        if of_rollouts is not None and np.isfinite(of_rollouts).any():
            return Distribution.of_values("rollouts", of_rollouts[:, 0])
        of_roles = self.reduction.read("role_projection", [layer])
        if of_roles is not None and np.isfinite(of_roles).any():
            return Distribution.of_values("role vectors", of_roles[:, 0])
        return UNKNOWN

    def norm(self, layer: int) -> float:
        """Return the root mean square length of the activations of the run's rollouts at one layer.

        Args:
            layer: 0-based layer.

        Returns:
            The length, in units of the residual stream; NaN where there are no moments.

        Raises:
            InputError: There is no axis at this layer.
        """
        self.position(layer)
        mean_G1D, variance_G1D = (self.reduction.read(name, [layer]) for name in ("mean", "variance"))
        count_G = self.reduction.count
        if mean_G1D is None or variance_G1D is None or count_G is None:
            return float("nan")
        return root_mean_square(mean_G1D[:, 0], variance_G1D[:, 0], count_G)

    @cached_property
    def norm_L(self) -> Float64:  # noqa: N802 - tensors wear their axes
        """``norm`` at every layer; reads the moments of the whole reduction, a layer at a time."""
        return np.array([self.norm(layer) for layer in self.layers])

    @cached_property
    def projection_mean_L(self) -> Float64:  # noqa: N802 - tensors wear their axes
        """Mean of ``distribution`` at every layer; NaN where nothing is known."""
        return np.array([self.distribution(layer).mean for layer in self.layers])

    @cached_property
    def projection_std_L(self) -> Float64:  # noqa: N802 - tensors wear their axes
        """Standard deviation of ``distribution`` at every layer; NaN where nothing is known."""
        return np.array([self.distribution(layer).std for layer in self.layers])

    def require_shape(self, *, n_layers: int, d_model: int, source: str, field: str = "--model") -> None:
        """Refuse a model that is not as wide and as deep as the axis's; see ``axes.axis_model``."""
        # Of other programs' control vectors the number of layers is at least that of the last one with a direction.
        require_shape(
            self.model,
            self.name,
            n_layers=n_layers,
            d_model=d_model,
            source=source,
            field=field,
            may_be_deeper=self.reduction.facts.get("imported") == "gguf",
        )

    def require_model(
        self,
        *,
        n_layers: int,
        d_model: int,
        source: str,
        fingerprint: str = "",
        transfer: bool = False,
        field: str = "--model",
    ) -> str | None:
        """Refuse a model that is not the axis's, unless the axis is meant to be transferred to it.

        Models are the same if their fingerprints are; where the axis has none, if their names end alike.

        Args:
            n_layers: Decoder layers of the model.
            d_model: Width of its residual stream.
            source: Where it is from, as the user names it.
            fingerprint: Its fingerprint; empty if it is not known.
            transfer: Whether another model is meant; it must still be as wide and as deep.
            field: Option or field that names the model, for errors.

        Returns:
            None for the axis's own model; else a sentence for every output that shows numbers of both.

        Raises:
            InputError: It is another model, or not of the axis's width and depth.
        """
        self.require_shape(n_layers=n_layers, d_model=d_model, source=source, field=field)
        return require_same(
            self.model, self.name, source=source, fingerprint=fingerprint, transfer=transfer, field=field
        )


def open_axis(
    target: str | os.PathLike[str] | Vectors,
    *,
    reduction: str | None = None,
    endpoint_url: str | None = None,
    access: S3Access | None = None,
) -> AxisSource:
    """Open an axis to watch, steer or cap a model with.

    Args:
        target: A run with a reduction or imported vectors, open or as directory, ``s3://`` or ``hf://`` URL; or a
            directory of published vectors, a safetensors export, or a GGUF control vector.
        reduction: Id of a stored reduction of the run; None: the current one.
        endpoint_url: URL of an S3-compatible server; None as for ``open_run``.
        access: How requests to a bucket are made; None: signed, and with nothing special.

    Raises:
        InputError: There is nothing of these, the run was not reduced or has no such reduction, there is no axis, or a
            file is not as it must be.
        StoreError: The store is damaged.

    Example:
        >>> from persona_atlas import reduce
        >>> made = reduce("runs/demo", progress=False)
        >>> axis = open_axis("runs/demo")
        >>> axis.middle, axis.unit_D(axis.middle).shape, axis.labels
        (15, (576,), ('p0.01', 'p0.25', 'p0.5', 'p0.75'))
    """
    if isinstance(target, Run | VectorSet):
        return _of_store(target, reduction)
    text = os.fspath(target)
    if is_s3(text) or is_hub(text) or "://" in text:
        return _of_store(open_vectors(text, endpoint_url, access), reduction)
    path = Path(expand_home(text, _FIELD))
    if not path.exists():
        raise InputError(
            "there is no such file or directory.",
            code="no_vectors",
            file=text,
            hint="Name a store that was reduced, or a folder of published vectors.",
        )
    if path.is_dir() and any((path / record).exists() for record in (layout.RUN_RECORD, layout.VECTORS_RECORD)):
        return _of_store(open_vectors(text, endpoint_url, access), reduction)
    if reduction is not None:
        raise InputError(
            "only a run has several reductions.", code="no_such_reduction", field="--reduction", hint="Leave it out."
        )
    return _of_files(read_vectors(path, _say_nothing), text)


def _say_nothing(line: str) -> None:
    """Drop a line of progress: files of vectors are read in seconds."""


def _of_store(vectors: Vectors, reduction_id: str | None) -> AxisSource:
    found = require_reduction(vectors)
    if reduction_id is not None and reduction_id != found.reduction_id:
        other = read_reduction(vectors.location, reduction_id) if reduction_id.isalnum() else None
        if other is None:
            raise InputError(
                f"{vectors.url} has no reduction {reduction_id!r}.",
                code="no_such_reduction",
                field="--reduction",
                hint=f"The current one is {found.reduction_id}.",
            )
        found = other
    if isinstance(vectors, VectorSet):
        model = AxisModel(vectors.model_name, vectors.n_layers, vectors.d_model)
        return AxisSource.of(found, model, vectors.url, vectors.record.notes)
    spec, facts = vectors.record.spec.model, vectors.record.model
    template = vectors.record.rendering.get("chat_template")
    model = AxisModel(spec.source, facts.n_layers, facts.d_model, spec.revision, facts.fingerprint, spec, template)
    return AxisSource.of(found, model, vectors.url)


def _of_files(found: Imported, name: str) -> AxisSource:
    model = AxisModel(found.model or None, found.n_layers, found.d_model)
    return AxisSource.of(found.reduction, model, name, found.notes)


def _span(layers: tuple[int, ...]) -> str:
    if len(layers) == 1:
        return f"layer {layers[0]}"
    is_whole = layers == tuple(range(layers[0], layers[-1] + 1))
    return f"layers {layers[0]} to {layers[-1]}" if is_whole else f"layers {', '.join(map(str, layers))}"
