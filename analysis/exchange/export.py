"""Export the vectors of a run, or imported ones, to a folder in one of the forms that people share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ...jobs.errors import InputError, closest
from ...storage.derived.reductions import Reduction
from ...storage.format.layout import CAPPING_CONFIG
from ...storage.query.vectors import Vectors, VectorSet, require_reduction
from .control_vectors import direction_of, file_name, write_control_vector
from .new_folder import new_folder
from .released_files import Say, capping_bytes, write_released
from .tensors_file import write_tensors

ExportFormat = Literal["assistant-axis", "safetensors", "gguf"]
_FORMATS: tuple[ExportFormat, ...] = get_args(ExportFormat)

_FIELD = "DIR"


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote.

    Attributes:
        folder: The new folder.
        files: Its files, sorted.
        num_bytes: Their size in bytes.
        notes: Sentences about what was left out.
    """

    folder: Path
    files: tuple[Path, ...]
    num_bytes: int
    notes: tuple[str, ...]


def export_vectors(
    vectors: Vectors,
    folder: Path,
    format: ExportFormat,  # noqa: A002 - the name of the option
    *,
    wanted: Sequence[str] = (),
    say: Say = lambda _: None,
) -> Exported:
    """Write the current vectors of a store to a new folder.

    Args:
        vectors: A run with a reduction, or imported vectors.
        folder: Folder to make; it may exist if it is empty.
        format: ``assistant-axis``: the released files. ``safetensors``: one file with everything. ``gguf``: control
            vectors of llama.cpp and repeng, one file each.
        wanted: Which control vectors to write: ``axis``, ``role:NAME``, ``trait:NAME``; empty: the axis.
        say: Called with a line of text now and then.

    Raises:
        InputError: There is no such format, what is asked for was not computed, the format cannot hold it, or the
            folder is not empty. Nothing is written.
    """
    if format not in _FORMATS:
        raise InputError(
            f"{format!r} is not a format of an export. {closest(str(format), _FORMATS)}".strip(),
            code="unknown_format",
            field="format",
            hint=f"Give one of {', '.join(_FORMATS)}.",
        )
    if wanted and format != "gguf":
        raise InputError(
            f"chooses control vectors, and {format} holds all vectors.",
            code="not_with_format",
            field="--vector",
            hint="Give --format gguf, or leave --vector out.",
        )
    reduction = require_reduction(vectors)
    _require_residuals(reduction, format)
    if format == "assistant-axis":
        _require_axis(reduction)
    names = tuple(dict.fromkeys(wanted)) or ("axis",)
    if format == "gguf":
        for name in names:
            # Imported vectors have no run that could be reduced otherwise.
            direction_of(reduction, name, "" if isinstance(vectors, VectorSet) else vectors.url)
    with new_folder(folder, _FIELD) as part:
        if format == "assistant-axis":
            capping_config, notes = _capping(vectors, reduction)
            write_released(part, reduction, vectors.n_layers, capping_config, say)
        elif format == "safetensors":
            write_tensors(
                part,
                reduction,
                model=vectors.model_name,
                family=vectors.model_family,
                n_layers=vectors.n_layers,
                d_model=vectors.d_model,
                say=say,
            )
            notes = ["Projections of single rollouts stay in the store."] if reduction.projections is not None else []
        else:
            notes = []
            for name in names:
                say(f"Writing {name}.")
                notes += write_control_vector(
                    part / file_name(name),
                    reduction,
                    name,
                    model=vectors.model_name,
                    family=vectors.model_family,
                    n_layers=vectors.n_layers,
                )
    files = tuple(sorted(path for path in folder.rglob("*") if path.is_file()))
    return Exported(folder, files, sum(path.stat().st_size for path in files), tuple(notes))


def _require_axis(reduction: Reduction) -> None:
    if reduction.axis is None or reduction.default_vector is None:
        raise InputError(
            "there is no axis: it needs rollouts of the default Assistant and of a role."
            if reduction.axis is None
            else "there is no default vector.",
            code="not_computed",
            field="--format",
            hint="--format safetensors holds what there is.",
        )


def _require_residuals(reduction: Reduction, format: ExportFormat) -> None:  # noqa: A002
    """Refuse vectors of another place in the layer, where a format has room for one place only."""
    hook_point = reduction.facts.get("hook_point", "resid_post")
    if format != "safetensors" and hook_point != "resid_post":
        raise InputError(
            f"{format} holds vectors of the residual stream after a layer (resid_post), and these are of {hook_point}.",
            code="other_hook_point",
            field="--format",
            hint="--format safetensors holds any.",
        )


def _capping(vectors: Vectors, reduction: Reduction) -> tuple[bytes | None, list[str]]:
    """Return the content of ``capping_config.pt``, and sentences about it."""
    if isinstance(vectors, VectorSet) and vectors.capping_config is not None:
        return vectors.capping_config, []
    made = capping_bytes(reduction, vectors.n_layers)
    if made is None:
        return None, [f"There are no thresholds, so {CAPPING_CONFIG} was left out."]
    return made[0], [made[1]] if made[1] else []
