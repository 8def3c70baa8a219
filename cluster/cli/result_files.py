"""Files that a command writes besides what it prints: pictures and pages."""

from __future__ import annotations

from pathlib import Path

from ...analysis.plotting import require_format
from ...jobs.errors import InputError
from ...jobs.files.user_paths import local_path
from ...jobs.machine_faults import refuse_machine_fault


def file_to_write(text: str | None, option: str) -> Path | None:
    """Return the path of a file that is written at the end, and refuse it before any work is done.

    Args:
        text: The value of the option; None where it was not given.
        option: Name of the option.

    Raises:
        InputError: Its folder is not there.
    """
    if text is None:
        return None
    path = local_path(text, option)
    if not path.parent.is_dir():
        raise InputError(
            f"the folder {path.parent} is not there.", code="not_writable", field=option, hint="Make it first."
        )
    return path


def picture_to_write(text: str | None) -> Path | None:
    """Return the path of the picture of ``--png``; see ``file_to_write``.

    Args:
        text: The value of the option; None where it was not given.

    Raises:
        InputError: Its folder is not there, or matplotlib is not, or does not write files of that name.
    """
    path = file_to_write(text, "--png")
    if path is not None:
        require_format(path)
    return path


def write_page(path: Path, page: str, option: str) -> None:
    """Write a page.

    Args:
        path: The file.
        page: Its text.
        option: Name of the option that names the file.

    Raises:
        InputError: It cannot be written.
    """
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        refuse_machine_fault(error)
        raise InputError(
            f"{path} cannot be written: {error.strerror or error}.",
            code="not_writable",
            field=option,
            hint="Choose a file in an existing, writable folder.",
        ) from error
