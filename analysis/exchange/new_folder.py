"""A folder that appears with all of its files or not at all, and replaces nothing."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...jobs.errors import InputError
from ...jobs.machine_faults import refuse_machine_fault
from ...storage.format import layout
from ...storage.format.records import layout_version_of


@contextmanager
def new_folder(target: Path, field: str) -> Iterator[Path]:
    """Give a temporary folder to write to, which gets its name when everything is written, and is removed otherwise.

    Args:
        target: The folder to make; one that exists must be empty.
        field: Option or argument that named it, for errors.

    Yields:
        The temporary folder, beside the target.

    Raises:
        InputError: The target is not empty or no folder, or in a store, its parent does not exist, or it cannot be
            written.
    """
    _refuse_taken(target, field)
    _refuse_in_a_store(target, field)
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
    try:
        part.mkdir()
        yield part
        # Renaming onto a folder works where that is empty; what came into it meanwhile is not replaced.
        part.replace(target)
    except OSError as error:
        refuse_machine_fault(error)
        raise InputError(
            f"{target} cannot be written: {error.strerror or error}.",
            code="not_writable",
            field=field,
            hint="Choose a new folder where you may write.",
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _refuse_in_a_store(target: Path, field: str) -> None:
    """Refuse a folder within a store: it would be uploaded, checked and deleted with it."""
    for folder in target.resolve().parents:
        records = [folder / name for name in (layout.RUN_RECORD, layout.VECTORS_RECORD)]
        # A file of that name may be somebody else's.
        if any(record.is_file() and layout_version_of(record.read_bytes()) is not None for record in records):
            raise InputError(
                f"{target} is inside the store {folder}, which holds nothing but its own objects.",
                code="inside_a_store",
                field=field,
                hint="Choose a new folder outside of it, as beside it.",
            )


def _refuse_taken(target: Path, field: str) -> None:
    if not target.parent.is_dir():
        raise InputError(
            f"there is no folder {str(target.parent)!r}.", code="no_folder", field=field, hint="Create it first."
        )
    if target.is_dir() and not any(target.iterdir()):
        return
    # A link that leads nowhere does not exist, and is nevertheless a name that is taken.
    if target.exists() or target.is_symlink():
        raise InputError(
            f"{target} exists and is not an empty folder; nothing is overwritten.",
            code="not_empty",
            field=field,
            hint="Choose a new folder.",
        )
