"""The catalog: personas and questions, from the package's own data or from a directory of the user's.

Two layouts are supported: the native one, with ``roles/<name>.yaml``, ``traits/<name>.yaml``, ``default.yaml``,
``questions.yaml`` and ``rubrics.yaml``, and that of the released Assistant Axis data, see ``released.py``. A persona's
file is read when it is first needed: a job of four personas does not parse five hundred. Knows nothing of specs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import InputError, closest
from ..files.names import equal_names, name_problem, names_matching
from ..files.user_paths import is_directory, local_path
from ..personas import DEFAULT_PERSONA, KINDS, Kind, Persona, Question
from . import native, released

BUILTIN = "builtin"


@dataclass(frozen=True)
class Catalog:
    """Personas by kind and name, and the questions that every persona is asked.

    Attributes:
        source: ``builtin`` or a directory.
        files: File of each persona, by (kind, name).
        questions: Shared extraction questions, by question_index.
    """

    source: str
    files: Mapping[tuple[Kind, str], Path]
    questions: tuple[Question, ...]
    _read: Callable[[Kind, str, Path], Persona]
    _loaded: dict[tuple[Kind, str], Persona] = field(default_factory=dict, repr=False, compare=False)

    def names(self, kind: Kind) -> tuple[str, ...]:
        """List the names of one kind, sorted."""
        return tuple(sorted(name for k, name in self.files if k == kind))

    def persona(self, kind: Kind, name: str) -> Persona:
        """Read one persona; its file is read once.

        Raises:
            InputError: The catalog has no such persona, or its name or file is invalid.
        """
        key = (kind, name)
        # Planning asks for the same personas hundreds of thousands of times.
        if key in self._loaded:
            return self._loaded[key]
        if key not in self.files:
            raise self._unknown(kind, name, field_name=None)
        problem = name_problem(name)
        if problem is not None:
            raise InputError(
                f"the name {name[:60]!r} {problem}, and it is part of the names of what is stored.",
                code="bad_name",
                file=str(self.files[key]),
                hint="Rename the file.",
            )
        found = self._loaded[key] = self._read(kind, name, self.files[key])
        return found

    def select(self, kind: Kind, patterns: Iterable[str], field_name: str) -> tuple[str, ...]:
        """Expand names and globs to the names they match.

        Args:
            kind: Kind of the personas.
            patterns: Names, or globs such as ``*`` and ``a*``; an exact name selects itself alone.
            field_name: Field of the spec or option that holds the patterns, for errors.

        Returns:
            The names, sorted, each once.

        Raises:
            InputError: A pattern matches nothing; suggests the most similar name. Or two names differ only in what a
                file system may not tell apart.

        Example:
            >>> load_catalog().select("role", ["pirate", "poe*"], "personas.roles.names")
            ('pirate', 'poet')
        """
        known = self.names(kind)
        chosen: set[str] = set()
        for pattern in patterns:
            matched = names_matching(known, pattern)
            if not matched:
                raise self._unknown(kind, pattern, field_name=field_name)
            chosen.update(matched)
        names = tuple(sorted(chosen))
        equal = equal_names(names)
        if equal is not None:
            raise InputError(
                f"{kind}s {equal[0]!r} and {equal[1]!r} differ in case or in composed letters only, and a file system "
                "may not tell them apart.",
                code="equal_names",
                field=field_name,
                file=self.source,
                hint="Rename one of them, or select one.",
            )
        return names

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


def load_catalog(source: str = BUILTIN, field: str = "personas.catalog") -> Catalog:
    """Open a catalog: list its personas and read its questions.

    Args:
        source: ``builtin``, or a directory in the native layout or the released one.
        field: Field of the spec, or option, that names it, for errors.

    Raises:
        InputError: The directory is missing or in neither layout, or its list of questions is invalid.

    Example:
        >>> "pirate" in load_catalog().names("role")
        True
    """
    root = Path(__file__).parent if source == BUILTIN else local_path(source, field)
    if not is_directory(root, field):
        raise InputError(
            f"there is no directory {source!r}.",
            code="no_catalog",
            field=field,
            file=source,
            hint="Give a directory or 'builtin'.",
        )
    layout = native if (root / native.QUESTIONS_FILE).is_file() else released
    files = layout.persona_files(root)
    if not files:
        raise InputError(
            f"{source!r} holds neither {native.QUESTIONS_FILE} with roles/*.yaml nor roles/instructions/*.json.",
            code="no_catalog",
            field=field,
            file=source,
            hint="See docs/catalog.md for the two layouts.",
        )
    return Catalog(source, files, layout.read_questions(root), layout.persona_reader(root))


__all__ = ["BUILTIN", "DEFAULT_PERSONA", "KINDS", "Catalog", "load_catalog"]
