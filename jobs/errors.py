"""Every error that this project raises on purpose.

    AtlasError
    ├── InputError      the input is wrong; fix it and run again             exit status 2
    ├── StoreError      the store is damaged or of an unknown layout         exit status 1
    ├── TransientError  the network or the object store failed for a moment  exit status 1, retryable
    ├── UnitError       one attempt of a work unit failed                    exit status 1
    ├── EngineDied      a replica's engine ended; its units go to another    exit status 1
    └── JobError        the job ended without doing all of its units         exit status 1

There is one class for each way that a caller may react. ``code`` is a stable word for the cause. A ``retryable`` error
may not occur again when the same call is repeated after a moment.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, ClassVar

from .redaction import without_secrets


class AtlasError(Exception):
    """Base class of all errors. Passwords, tokens and signatures in its texts are replaced by ``***``.

    Args:
        message: The rule that was broken and the values involved, in a sentence or two. Where there is a ``field`` or
            ``file``, it may begin with the verb: the place is printed before it.
        code: A stable lower-case word for the cause, for programs.
        field: Dotted name of the spec field, or name of the option, that is wrong; None if there is none.
        file: File or URL that holds the cause; None if there is none.
        hint: What the user can do about it; None if nothing is known.

    Attributes:
        exit_status: Exit status of the command line for this error.
        retryable: Whether the same call may succeed after a moment.

    Example:
        >>> print(InputError("must be at least 1, but is 0.", code="bad_value", field="--gpus", hint="Give 1."))
        --gpus: must be at least 1, but is 0. Give 1.
    """

    exit_status: ClassVar[int] = 1
    retryable: ClassVar[bool] = False

    def __init__(
        self, message: str, *, code: str, field: str | None = None, file: str | None = None, hint: str | None = None
    ) -> None:
        # Errors are printed, logged and stored, and a foreign message in one may repeat a URL with a password.
        message = without_secrets(message)
        super().__init__(message)
        self.message = message
        self.code = code
        self.field = field
        self.file = file and without_secrets(file)
        self.hint = hint and without_secrets(hint)

    def __reduce__(self) -> tuple[Any, ...]:
        # By default an exception is unpickled from its positional arguments alone, which loses code, field, file, hint.
        return _rebuild, (type(self), self.message, self.as_dict())

    def __str__(self) -> str:
        place = self.field or self.file
        text = f"{place}: {self.message}" if place else self.message
        return f"{text} {self.hint}" if self.hint else text

    def as_dict(self) -> dict[str, str]:
        """Build the object that ``--json`` prints: ``error``, ``code`` and, if known, ``field``, ``file``, ``hint``."""
        fields = {"error": self.message, "code": self.code, "field": self.field, "file": self.file, "hint": self.hint}
        return {key: value for key, value in fields.items() if value is not None}


def _rebuild(cls: type[AtlasError], message: str, fields: dict[str, str]) -> AtlasError:
    optional = {name: fields.get(name) for name in ("field", "file", "hint")}
    return cls(message, code=fields["code"], **optional)


class InputError(AtlasError):
    """The caller's input is wrong. Nothing was run and nothing in a store was changed.

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
    """The contents of a store are damaged, incomplete, or of a layout that this version does not read.

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


_PERMANENT_CODES = frozenset(
    {
        "bad_intervention",
        "bad_span",
        "hook_not_fired",
        "no_choices",
        "no_intervention",
        "no_user_span",
        "not_finite",
        "not_rendered",
        "overflow",
        "too_long",
        "too_many_directions",
        "too_many_tokens",
    }
)
"""Codes of unit errors that follow from the unit, the model and the spec alone."""


class UnitError(AtlasError):
    """One attempt of a work unit failed; another one may succeed, unless it is permanent.

    A job records it and tries the unit again, except after a permanent one; it reaches a caller as a line of
    ``JobResult.failures``.

    Example:
        >>> from persona_atlas import UnitError
        >>> str(UnitError("a number is not finite.", code="not_finite"))
        'a number is not finite.'
    """

    @property
    def is_permanent(self) -> bool:
        """Whether every attempt would fail in the same way, because the same requests go to the same model.

        Example:
            >>> UnitError("is longer than the context.", code="too_long").is_permanent
            True
            >>> UnitError("the server is away.", code="endpoint_failed").is_permanent
            False
        """
        return self.code in _PERMANENT_CODES


class EngineDied(AtlasError):  # noqa: N818 - it says what happened, and to what
    """The engine of a replica has ended, such as when a process of its tensor-parallel group died.

    Unlike a ``UnitError`` it says nothing about the units in flight: they are as good as new, but only for another
    engine, because this one answers no further call.

    Example:
        >>> EngineDied("a process of the model ended.", code="engine_died").exit_status
        1
    """


class JobError(AtlasError):
    """A job ended with units missing; committed units are kept.

    Example:
        >>> from persona_atlas import JobError
        >>> JobError("no worker is left.", code="no_worker", hint="Run it again.").as_dict()
        {'error': 'no worker is left.', 'code': 'no_worker', 'hint': 'Run it again.'}
    """


def error_lines(fields: Mapping[str, str]) -> list[str]:
    """Return an error as lines for people, as every command prints it.

    Args:
        fields: The error in the shape of ``AtlasError.as_dict``.

    Example:
        >>> error_lines({"error": "is wrong.", "code": "c", "field": "seed", "hint": "Give 1."})
        ['Error: seed: is wrong.', '  Give 1.']
    """
    place = fields.get("field") or fields.get("file")
    message = f"{place}: {fields['error']}" if place else fields["error"]
    return [f"Error: {message}", *([f"  {fields['hint']}"] if "hint" in fields else [])]


def closest(name: str, known: Iterable[str]) -> str:
    """Suggest the known name that is most similar to a misspelt one, as a hint for an error.

    Args:
        name: The misspelt name.
        known: The valid names.

    Returns:
        A question; empty if no name is similar.

    Example:
        >>> closest("pirat", ["pirate", "poet"])
        "Did you mean 'pirate'?"
    """
    similar = get_close_matches(name, list(known), n=1)
    return f"Did you mean {similar[0]!r}?" if similar else ""
