"""Find the files that hold conversations, and name their personas. Opens no file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ...errors import InputError
from ...files.names import folded
from ...files.user_paths import is_directory
from ...machine_faults import refuse_machine_fault
from ...personas import DEFAULT_PERSONA

_FIELD = "conversations.source"
_SUFFIXES = (".jsonl", ".json")
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")
"""Files with these are listed too: gzip is read, and the others are refused instead of being left out silently."""

_SYSTEM_FOLDERS = ("__MACOSX",)
_DEFAULT_NAMES = ("default", DEFAULT_PERSONA)


def conversation_files(source: Path) -> list[Path]:
    """List the files of a source, sorted; of a directory those in its folders too.

    Hidden files and folders, whose names begin with a dot, are left out: editors and archivers leave them behind.

    Args:
        source: A file, or a directory.

    Returns:
        The file, or the directory's ``.jsonl`` and ``.json`` files, compressed or not.

    Raises:
        InputError: The directory has no such file or cannot be listed, or two of its files have the same name.
    """
    if not is_directory(source, _FIELD):
        _refuse_undecodable(source)
        return [source]
    files = sorted(path for path in _walk(source) if is_conversation_file(path))
    if not files:
        raise InputError(
            "is a directory without any .jsonl or .json file.",
            code="no_conversations",
            file=str(source),
            hint="Name a file, or a directory with one JSONL file for each role.",
        )
    for path in files:
        _refuse_undecodable(path)
    _refuse_equal_names(files)
    return files


def is_conversation_file(path: Path) -> bool:
    """Whether a file of a directory is read, by its name in upper or lower case.

    Example:
        >>> [is_conversation_file(Path(name)) for name in ("a.JSONL", "a.jsonl.gz", "a.txt")]
        [True, True, False]
    """
    return _without_compression(path.name).lower().endswith(_SUFFIXES)


def is_json_document(path: Path) -> bool:
    """Whether a file's name ends in ``.json``, compressed or not."""
    return _without_compression(path.name).lower().endswith(".json")


def persona_name(path: Path) -> str:
    """Return the persona of a file's conversations: its name without the suffix, and without that of compression.

    Example:
        >>> persona_name(Path("talks.jsonl.gz")), persona_name(Path("chat.v2.jsonl"))
        ('talks', 'chat.v2')
    """
    return Path(_without_compression(path.name)).stem


def names_the_default(name: str) -> bool:
    """Whether a file of the released pipeline with this name holds the default Assistant."""
    return name in _DEFAULT_NAMES


def _without_compression(name: str) -> str:
    root, suffix = os.path.splitext(name)  # noqa: PTH122 - of a bare name
    return root if suffix.lower() in _COMPRESSED else name


def _walk(root: Path) -> Iterator[Path]:
    """Yield the files under a directory, through links too; a directory that links lead to twice is read once."""

    def refuse(error: OSError) -> None:
        refuse_machine_fault(error)
        raise InputError(
            f"cannot be listed: {error.strerror or error}.",
            code="unreadable_file",
            file=str(error.filename or root),
            hint="Check the path and its permissions.",
        ) from None

    seen: set[str] = set()
    for folder, folders, names in os.walk(root, onerror=refuse, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in _SYSTEM_FOLDERS)
        yield from (Path(folder) / name for name in names if not name.startswith("."))


def _refuse_undecodable(path: Path) -> None:
    try:
        path.name.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path.name).decode(errors="replace")
        raise InputError(
            f"the name of {shown!r} is not UTF-8, and it would be the persona of its rows.",
            code="bad_name",
            field=_FIELD,
            hint="Rename the file.",
        ) from None


def _refuse_equal_names(files: Sequence[Path]) -> None:
    """Refuse two files that name the same persona: their rows would have the same addresses.

    Names that differ only in case or in how Unicode composes their letters count as equal, since a directory or a
    reader may not tell them apart.
    """
    seen: dict[str, Path] = {}
    for path in files:
        name = persona_name(path)
        name = "default" if names_the_default(name) else name
        other = seen.setdefault(folded(name), path)
        if other is not path:
            raise InputError(
                f"{other} and {path} have the same name, which is the persona of their rows.",
                code="equal_names",
                field=_FIELD,
                hint="Rename one of them, or join the two in one file.",
            )
