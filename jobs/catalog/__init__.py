"""The catalog: personas and questions, from the package's own data or from a directory of the user's.

Two layouts are read. Ours: ``roles/<name>.yaml``, ``traits/<name>.yaml``, ``default.yaml``, ``questions.yaml``,
``rubrics.yaml``. And the released Assistant Axis layout, see ``released.py``. Files are read when asked for, so that
a job of four personas does not parse five hundred. Knows nothing of specs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from ..errors import InputError, closest
from ..personas import DEFAULT_PERSONA, KINDS, Kind, Persona, Question
from . import native, released

BUILTIN = "builtin"


@dataclass(frozen=True)
class Catalog:
    """Personas by kind and name, and the questions every persona is asked.

    Attributes:
        source: Where it came from: ``builtin`` or a directory.
        files: The file of each (kind, name).
        questions: The shared extraction questions, in order.
    """

    source: str
    files: Mapping[tuple[Kind, str], Path]
    questions: tuple[Question, ...]
    _read: Callable[[Kind, str, Path], Persona]
    _read_already: dict[tuple[Kind, str], Persona] = field(default_factory=dict, repr=False, compare=False)

    def names(self, kind: Kind) -> tuple[str, ...]:
        """List the names of one kind, sorted."""
        return tuple(sorted(name for k, name in self.files if k == kind))

    def persona(self, kind: Kind, name: str) -> Persona:
        """Read one persona.

        Raises:
            InputError: There is none of that kind and name, or its file breaks the format.
        """
        key = (kind, name)
        if key not in self.files:
            raise self._unknown(kind, name, field_name=None)
        if key not in self._read_already:
            self._read_already[key] = self._read(kind, name, self.files[key])
        return self._read_already[key]

    def select(self, kind: Kind, patterns: Iterable[str], field_name: str) -> tuple[str, ...]:
        """Turn names and globs into the sorted names they match.

        Args:
            kind: Which kind to look among.
            patterns: Exact names or globs such as ``*`` and ``a*``.
            field_name: The spec field they came from, for the error.

        Raises:
            InputError: A pattern matches nothing; suggests the nearest name.
        """
        known = self.names(kind)
        chosen: set[str] = set()
        for pattern in patterns:
            matched = [name for name in known if fnmatchcase(name, pattern)]
            if not matched:
                raise self._unknown(kind, pattern, field_name=field_name)
            chosen.update(matched)
        return tuple(sorted(chosen))

    def _unknown(self, kind: Kind, name: str, *, field_name: str | None) -> InputError:
        known = self.names(kind)
        hint = closest(name, known) or f"It has {len(known)}: {', '.join(known[:8])}{' ...' if len(known) > 8 else ''}."
        return InputError(
            f"the catalog {self.source!r} has no {kind} {name!r}.",
            code="unknown_persona",
            field=field_name,
            file=None if self.source == BUILTIN else self.source,
            hint=hint,
        )


def load_catalog(source: str = BUILTIN) -> Catalog:
    """Open a catalog.

    Args:
        source: ``builtin``, or a directory in our layout or the released one.

    Raises:
        InputError: The directory is missing or in neither layout, or its list of questions breaks the format.

    Example:
        >>> "pirate" in load_catalog().names("role")
        True
    """
    root = Path(__file__).parent if source == BUILTIN else Path(source)
    if not root.is_dir():
        raise InputError(
            "there is no such directory.", code="no_catalog", file=source, hint="Name a directory or 'builtin'."
        )
    layout = native if (root / native.QUESTIONS_FILE).is_file() else released
    files = layout.persona_files(root)
    if not files:
        raise InputError(
            f"holds neither {native.QUESTIONS_FILE} with roles/*.yaml nor roles/instructions/*.json.",
            code="no_catalog",
            file=source,
            hint="See docs/catalog.md for the two layouts.",
        )
    return Catalog(source, files, layout.read_questions(root), layout.persona_reader(root))


__all__ = ["BUILTIN", "DEFAULT_PERSONA", "KINDS", "Catalog", "load_catalog"]
