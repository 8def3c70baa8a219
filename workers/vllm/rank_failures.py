"""Tell the process that starts vLLM why one of its ranks could not be started.

vLLM only says that some process failed, and prints the reason on that process's standard error. So a rank writes its
error to a file, whose folder it finds in its environment; and after every step of its start the shared memory that it
has mapped, which nobody can find any more once it is dead. Knows no vLLM.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ...jobs.errors import InputError
from .ranks import shared_memory_of

_MEMORY = ".memory"
"""How names of files with the shared memory of a rank end."""

_FOLDER = "PERSONA_ATLAS_RANK_FAILURES"
"""Variable with the folder, which is inherited by the ranks."""


@contextmanager
def told() -> Iterator[None]:
    """Write an error of this rank down, and raise it again; in any case write down what shared memory it has mapped.

    Does nothing where nobody collects them.
    """
    try:
        yield
    except Exception as error:
        folder = os.environ.get(_FOLDER)
        if folder is not None:
            own = error.as_dict() if isinstance(error, InputError) else None
            data = json.dumps({"text": f"{type(error).__name__}: {error}", "own": own})
            (Path(folder) / str(os.getpid())).write_text(data, encoding="utf-8")
        raise
    finally:
        folder = os.environ.get(_FOLDER)
        if folder is not None:
            names = "\n".join(str(path) for path in shared_memory_of([os.getpid()]))
            # The parent may have given up and removed the folder.
            with suppress(FileNotFoundError):
                (Path(folder) / f"{os.getpid()}{_MEMORY}").write_text(names, encoding="utf-8")


@dataclass(frozen=True)
class RankFailure:
    """Why a rank could not be started.

    Attributes:
        text: Its error, with the name of the class.
        refusal: Its error, where this project raised it; else None.
    """

    text: str
    refusal: InputError | None

    @classmethod
    def read(cls, data: str) -> RankFailure:
        """Read what ``told`` has written."""
        fields = json.loads(data)
        own = fields["own"]
        refusal = own and InputError(own.pop("error"), **own)
        return cls(fields["text"], refusal)


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
    def first(self) -> RankFailure | None:
        """The error that was written first: the others may only follow from it. None without one."""
        errors = (path for path in Path(self._folder.name).iterdir() if path.suffix != _MEMORY)
        found = sorted(errors, key=lambda path: path.stat().st_mtime_ns)
        return RankFailure.read(found[0].read_text(encoding="utf-8")) if found else None

    @property
    def shared_memory(self) -> frozenset[Path]:
        """The shared memory that ranks had mapped after the last step of their start, dead ones included."""
        files = Path(self._folder.name).glob(f"*{_MEMORY}")
        return frozenset(Path(line) for file in files for line in file.read_text(encoding="utf-8").splitlines())
