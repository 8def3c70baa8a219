"""Open the text files that users bring: refuse what is no file or no UTF-8, and go past a byte order mark."""

from __future__ import annotations

import stat
from pathlib import Path

from ..errors import InputError
from ..machine_faults import refuse_machine_fault

UTF8_BOM = b"\xef\xbb\xbf"

# UTF-32 before UTF-16, because its mark begins with the same bytes.
_OTHER_ENCODINGS = (
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)


def refuse_other_encoding(head: bytes, file: str) -> None:
    """Refuse a text by its first bytes if it is UTF-16 or UTF-32, with or without a byte order mark.

    Args:
        head: At least the first four bytes.
        file: Name of the file, for errors.

    Raises:
        InputError: It is in one of these encodings; names it, and the command that converts the file.
    """
    encoding = next((name for mark, name in _OTHER_ENCODINGS if head.startswith(mark)), None)
    if encoding is None and 0 in head[:4]:
        # Without a mark, an ASCII character shows by the zeros around it.
        encoding = {3: "UTF-32", 2: "UTF-16"}.get(head[:4].count(0))
    if encoding is not None:
        raise InputError(
            f"is {encoding} text, and must be UTF-8.",
            code="not_utf8",
            file=file,
            hint=f"iconv -f {encoding} -t UTF-8 FILE > NEW converts it.",
        )


def refuse_special_file(path: Path, *, pipes_pass: bool = False) -> None:
    """Refuse what is no regular file: a device may never end, and a pipe that nobody writes to never begins.

    Args:
        path: The file; a missing one is left to whoever opens it.
        pipes_pass: Whether a pipe of the shell, as of ``<(command)`` or ``/dev/stdin``, may pass, because the file is
            read once and as a whole. A named pipe never may.

    Raises:
        InputError: It is a pipe, a socket or a device.
    """
    try:
        mode = path.stat().st_mode
        # A pipe of the shell resolves to a name like pipe:[123], of which there is no file.
        may_pass = pipes_pass and stat.S_ISFIFO(mode) and not path.resolve().exists()
    except (OSError, ValueError):
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode) and not may_pass:
        raise InputError(
            "is a pipe, a socket or a device, not a file.",
            code="unreadable_file",
            file=str(path),
            hint="Write its content to a file, and name that.",
        )


def read_text(path: Path, what: str) -> str:
    """Read a UTF-8 text file, with or without a byte order mark.

    Args:
        path: The file.
        what: Kind of file, for errors, such as "a job spec".

    Raises:
        InputError: The file is missing, a directory, a device, not readable or not UTF-8.
    """
    refuse_special_file(path, pipes_pass=True)
    try:
        data = path.read_bytes()
        refuse_other_encoding(data[:4], str(path))
        # As text files are read: all line ends become \n.
        return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"cannot be read as {what}: line {line} is not UTF-8 (byte 0x{error.object[error.start]:02x}).",
            code="unreadable_file",
            file=str(path),
            hint="iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW converts it, if that is its encoding.",
        ) from None
    except OSError as error:
        refuse_machine_fault(error)
        raise InputError(
            f"cannot be read as {what}: {error.strerror or error}.",
            code="unreadable_file",
            file=str(path),
            hint="Check the path and its permissions.",
        ) from None
