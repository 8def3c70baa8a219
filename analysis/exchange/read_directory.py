"""Import shared vectors: find out which form a directory has, read it, and write a store of vectors."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from ...jobs.errors import InputError
from ...storage.derived.vector_sets import require_empty, write_vector_set
from ...storage.format.vectors_record import VectorsRecord
from ...storage.locations.location import Location
from ..axes.axis_model import ends_alike
from .control_vectors import read_control_vectors
from .imported import Imported
from .read_released import read_released
from .released_files import AXIS_FILE, DEFAULT_FILE, ROLES_FOLDER, Say
from .tensors_file import FILE_NAME, read_tensors


def import_directory(source: Path, location: Location, model: str | None, say: Say) -> VectorsRecord:
    """Read shared vectors and write them to a new store.

    Args:
        source: A released directory, a directory with our safetensors export or with GGUF control vectors, or one such
            file.
        location: The new store.
        model: Name of the model; None: as the files have it. Where they have one, both must end alike, as those of a
            model on the hub and of a local copy do.
        say: Called with a line of text now and then.

    Raises:
        InputError: The files are not as they must be, the store is not empty, or the files do not name the model, or
            another than ``model``. Nothing is written.
    """
    require_empty(location)
    found = read_vectors(source, say)
    if model and found.model and not ends_alike(model, found.model):
        raise InputError(
            f"is {model}, and the files say that the vectors belong to {found.model}.",
            code="other_model",
            field="--model",
            hint="Leave --model out, and the name in the files is taken.",
        )
    name = model or found.model
    if not name:
        raise InputError(
            "the files do not name the model that the vectors belong to.",
            code="no_model_name",
            field="--model",
            hint="Give its Hugging Face id, such as --model Qwen/Qwen3-32B.",
        )
    record = VectorsRecord.of(
        model=name,
        n_layers=found.n_layers,
        d_model=found.d_model,
        source=found.source,
        files=found.files,
        notes=found.notes,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    write_vector_set(location, record, found.reduction, found.capping_config)
    return record


def read_vectors(source: Path, say: Say) -> Imported:
    """Read shared vectors of any form that is known.

    Args:
        source: A directory or a file, as for ``import_directory``.
        say: Called with a line of text now and then.

    Raises:
        InputError: There is none of these forms, or its files are not as they must be.
    """
    if source.suffix == ".safetensors" and source.is_file():
        return read_tensors(source)
    if source.suffix == ".gguf" and source.is_file():
        return read_control_vectors([source])
    if not source.is_dir():
        is_there = source.exists()
        raise InputError(
            "is a file, and of files only .safetensors and .gguf are read alone."
            if is_there
            else "there is no such directory.",
            code="no_vectors",
            file=str(source),
            hint=f"Name the folder of the vectors{', as that of a .pt file' if is_there else ''}.",
        )
    if any((source / name).exists() for name in (AXIS_FILE, DEFAULT_FILE, ROLES_FOLDER)):
        return read_released(source, say)
    if (source / FILE_NAME).exists():
        return read_tensors(source / FILE_NAME)
    control_vectors = sorted(source.glob("*.gguf"))
    if control_vectors:
        return read_control_vectors(control_vectors)
    raise InputError(
        f"holds neither {AXIS_FILE}, nor {FILE_NAME}, nor control vectors (*.gguf).",
        code="no_vectors",
        file=str(source),
        hint="Name the folder of one model, such as qwen-3-32b of the published vectors.",
    )
