"""Every error this project raises on purpose.

    AtlasError
    ├── InputError      the input is wrong: correct it and try again         exit status 2
    ├── StoreError      what is stored is damaged or cannot be understood    exit status 1
    ├── TransientError  the network or the object store had a bad moment     exit status 1, retryable
    ├── UnitError       one work unit could not be done on this attempt      exit status 1
    └── JobError        the job ended and not everything it promised is there exit status 1

One class per what a caller would do; ``code`` is a stable word for the cause; what is ``retryable`` may succeed when
the same call is made again in a moment. Knows nothing of the rest.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, ClassVar


class AtlasError(Exception):
    """Base of the tree.

    Args:
        message: The rule that was broken and the values involved, in one sentence or two.
        code: A stable lower-case word for the cause, for programs.
        field: The dotted name of the offending field, when there is one.
        file: The file or URL that holds it, when there is one.
        hint: What to do about it.

    Attributes:
        exit_status: What the command line exits with.
        retryable: Whether the same call may succeed in a moment.

    Example:
        >>> from persona_atlas import AtlasError, open_run
        >>> try:
        ...     open_run("runs/nowhere")
        ... except AtlasError as error:
        ...     print(error.code, error.field)
        no_run store.url
    """

    exit_status: ClassVar[int] = 1
    retryable: ClassVar[bool] = False

    def __init__(
        self, message: str, *, code: str, field: str | None = None, file: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.field = field
        self.file = file
        self.hint = hint

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions rebuild from positional arguments alone; ours travel between processes with all they know.
        return _rebuild, (type(self), self.message, self.as_dict())

    def __str__(self) -> str:
        place = self.field or self.file
        text = f"{place}: {self.message}" if place else self.message
        return f"{text} {self.hint}" if self.hint else text

    def as_dict(self) -> dict[str, str]:
        """Give the object that ``--json`` prints: error, code and, where known, field, file and hint."""
        facts = {"error": self.message, "code": self.code, "field": self.field, "file": self.file, "hint": self.hint}
        return {key: value for key, value in facts.items() if value is not None}


def _rebuild(cls: type[AtlasError], message: str, facts: dict[str, str]) -> AtlasError:
    return cls(message, code=facts["code"], field=facts.get("field"), file=facts.get("file"), hint=facts.get("hint"))


class InputError(AtlasError):
    """The caller's input is wrong; nothing was spent and nothing stored was touched.

    Example:
        >>> from persona_atlas import InputError, load_spec
        >>> try:
        ...     load_spec("job.yaml", ["sampling.temprature=0"])
        ... except InputError as error:
        ...     print(error.field)
        sampling.temprature
    """

    exit_status = 2


class StoreError(AtlasError):
    """What a store holds is damaged, incomplete or of a layout this version does not read.

    Example:
        >>> from persona_atlas import StoreError
        >>> StoreError.exit_status, StoreError.retryable
        (1, False)
    """


class TransientError(AtlasError):
    """The network or the object store failed in a way that may pass.

    Example:
        >>> from persona_atlas import TransientError
        >>> TransientError.retryable
        True
    """

    retryable = True


class UnitError(AtlasError):
    """One work unit failed in a worker; another attempt, elsewhere, may succeed.

    A job records it and tries the unit again; it reaches a caller as a line of ``JobResult.failures``.

    Example:
        >>> from persona_atlas import UnitError
        >>> str(UnitError("a number is not finite.", code="not_finite"))
        'a number is not finite.'
    """


class JobError(AtlasError):
    """A job ended and some of what it promised is missing; what was committed stays.

    Example:
        >>> from persona_atlas import JobError
        >>> JobError("no worker is left.", code="no_worker", hint="Run it again.").as_dict()
        {'error': 'no worker is left.', 'code': 'no_worker', 'hint': 'Run it again.'}
    """


def closest(name: str, known: Iterable[str]) -> str:
    """Suggest the nearest known name, as the end of an error message (empty when nothing is near).

    Example:
        >>> closest("pirat", ["pirate", "poet"])
        "Did you mean 'pirate'?"
    """
    near = get_close_matches(name, list(known), n=1)
    return f"Did you mean {near[0]!r}?" if near else ""
