"""Tell the process that starts vLLM why one of its ranks could not be started.

vLLM only says that some process failed, and prints the reason on that process's standard error. So a rank writes its
error to a file, whose folder it finds in its environment. Knows no vLLM.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FOLDER = "PERSONA_ATLAS_RANK_FAILURES"
"""Variable with the folder, which is inherited by the ranks."""


@contextmanager
def told() -> Iterator[None]:
    """Write an error of this rank down, and raise it again; does nothing where nobody collects them."""
    try:
        yield
    except Exception as error:
        folder = os.environ.get(_FOLDER)
        if folder is not None:
            text = f"{type(error).__name__}: {error}"
            (Path(folder) / str(os.getpid())).write_text(text, encoding="utf-8", errors="replace")
        raise


class RankFailures:
    """Collects the errors of ranks that are started while it is open. A context manager."""

    def __enter__(self) -> RankFailures:
        self._folder = tempfile.TemporaryDirectory(prefix="persona-atlas-ranks-")
        os.environ[_FOLDER] = self._folder.name
        return self

    def __exit__(self, *_: object) -> None:
        del os.environ[_FOLDER]
        self._folder.cleanup()

    @property
    def first(self) -> str | None:
        """The error that was written first: the others may only follow from it. None without one."""
        found = sorted(Path(self._folder.name).iterdir(), key=lambda path: path.stat().st_mtime_ns)
        return found[0].read_text(encoding="utf-8") if found else None
