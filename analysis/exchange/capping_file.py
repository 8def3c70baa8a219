"""Read one setting of a released capping file, as it is: the vectors and caps that its code applies.

The format is described in ``released_files``. The released code scales each vector u to length one and does
h <- h - u * max(<h, u> - cap, 0) at every token after the vector's layer; nothing here depends on whether the vectors
lie along an axis. Axes: D d_model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...jobs.errors import InputError, closest
from ...jobs.files.hub_url import is_hub
from ...jobs.files.store_url import is_s3
from ...jobs.files.user_paths import expand_home
from ...storage.format.layout import CAPPING_CONFIG
from ...storage.locations.location import open_location
from .torch_file import CAPPING_SETTINGS, load_plain

Float32 = npt.NDArray[np.float32]

_FORM = 'It is {"vectors": {name: {"vector", "layer"}}, "experiments": [{"id", "interventions"}]}.'


@dataclass(frozen=True, eq=False)
class ReleasedCap:
    """What a released setting does at one layer.

    Attributes:
        layer: 0-based decoder layer.
        vector_D: The direction, of any length; in the released files minus the axis.
        cap: Ceiling for the projection on the direction of length one.
    """

    layer: int
    vector_D: Float32
    cap: float


def read_experiment(target: str, experiment: str, *, endpoint_url: str | None = None) -> tuple[ReleasedCap, ...]:
    """Read a setting of a released capping file.

    Args:
        target: The file; or a directory or a store that holds it as ``capping_config.pt``.
        experiment: Name of the setting, such as ``layers_46:54-p0.25``.
        endpoint_url: URL of an S3-compatible server; None: that of the environment.

    Returns:
        Its caps, in the order of the file.

    Raises:
        InputError: There is no such file or setting, or it is not as it must be.
    """
    data, file = _read(target, endpoint_url)
    return experiment_of(load_plain(data, file, CAPPING_SETTINGS), experiment, file)


def experiment_of(config: Any, experiment: str, file: str) -> tuple[ReleasedCap, ...]:
    """Take a setting out of the content of a capping file.

    Args:
        config: What the file holds.
        experiment: Name of the setting.
        file: Path or URL of the file, for errors.

    Raises:
        InputError: There is no such setting, or the content is not as it must be.
    """
    try:
        by_id = {str(entry["id"]): entry for entry in config["experiments"]}
        if experiment not in by_id:
            raise _no_experiment(experiment, list(by_id), file)
        return tuple(_cap(config["vectors"], entry, file) for entry in by_id[experiment]["interventions"])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise InputError(
            f"is not a capping configuration: {type(error).__name__} {error}.",
            code="bad_capping_config",
            file=file,
            hint=_FORM,
        ) from error


def _cap(vectors: Any, entry: Any, file: str) -> ReleasedCap:
    name = entry["vector"]
    vector_D: Float32 = vectors[name]["vector"].detach().float().numpy()
    layer, cap = int(vectors[name]["layer"]), float(entry["cap"])
    if vector_D.ndim != 1 or not np.isfinite(vector_D).all() or not vector_D.any() or not math.isfinite(cap):
        raise InputError(
            f"the vector {name!r} is not one row of finite numbers with a direction, or its cap is not finite.",
            code="not_finite",
            file=file,
            hint=_FORM,
        )
    return ReleasedCap(layer, vector_D, cap)


def _read(target: str, endpoint_url: str | None) -> tuple[bytes, str]:
    """Read the bytes of the file, and return its path or URL beside them."""
    if is_s3(target) or is_hub(target) or "://" in target:
        location = open_location(target, endpoint_url)
        data, file = location.read(CAPPING_CONFIG), f"{location.url}/{CAPPING_CONFIG}"
    else:
        path = Path(expand_home(target, "axis"))
        path = path / CAPPING_CONFIG if path.is_dir() else path
        data, file = path.read_bytes() if path.is_file() else None, str(path)
    if data is None:
        raise InputError(
            "there is no such file.",
            code="missing_file",
            file=file,
            hint=f"Name a released capping file, or the directory or store that holds it as {CAPPING_CONFIG}.",
        )
    return data, file


def _no_experiment(asked: str, known: list[str], file: str) -> InputError:
    shown = ", ".join(known[:8]) + (f" and {len(known) - 8} more" if len(known) > 8 else "")
    return InputError(
        f"has no setting {asked!r}. {closest(asked, known) or ''}".strip(),
        code="no_such_experiment",
        file=file,
        hint=f"It has {shown}." if known else "It has none.",
    )
