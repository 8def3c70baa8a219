"""Read a YAML file into a pydantic model; every complaint names the file, the line and the field.

Knows nothing of what the files mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from pydantic import BaseModel, ValidationError

from .errors import InputError, closest

_Loader = cast("type[yaml.SafeLoader]", getattr(yaml, "CSafeLoader", yaml.SafeLoader))

M = TypeVar("M", bound=BaseModel)


def parse_yaml(text: str, file: str) -> Any:
    """Parse YAML text.

    Args:
        text: The YAML.
        file: What to call it in an error.

    Raises:
        InputError: The text is not YAML; names the line.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        _refuse_repeated_keys(node, file)
        return loader.construct_document(node) if node is not None else None
    except yaml.YAMLError as error:
        line, problem = _place_of(error, text)
        raise InputError(
            f"line {line} is not valid YAML: {problem}.",
            code="not_yaml",
            file=file,
            hint="Mend that line; a text with a colon needs quotes or a >- block.",
        ) from None


def _refuse_repeated_keys(node: yaml.Node | None, file: str) -> None:
    """YAML forbids a key that stands twice, and the parser lets the last one win; a person meant one of them."""
    if isinstance(node, yaml.SequenceNode):
        for entry in node.value:
            _refuse_repeated_keys(entry, file)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        name = str(key.value)
        if name in seen:
            raise InputError(
                f"stands twice, on lines {seen[name]} and {line} of {file}.",
                code="repeated_key",
                field=name,
                file=file,
                hint="Keep one of them.",
            )
        seen[name] = line
        _refuse_repeated_keys(value, file)


def _place_of(error: yaml.YAMLError, text: str) -> tuple[int, str | None]:
    """1-based line and reason of a parser's complaint; a forbidden character has a position and no mark."""
    if isinstance(error, yaml.reader.ReaderError):
        return text.count("\n", 0, error.position) + 1, str(error.reason)
    mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
    return (mark.line + 1 if mark else 1), getattr(error, "problem", None) or str(error)


def read_text(path: Path, what: str) -> str:
    """Read a UTF-8 text file.

    Args:
        path: The file.
        what: What it was meant to be, for the error ("a spec", "a persona").

    Raises:
        InputError: It is missing, a directory, unreadable or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"cannot be read as {what}: {getattr(error, 'strerror', None) or error}.",
            code="unreadable_file",
            file=str(path),
            hint="Check the path and its permissions.",
        ) from None


def validate(model: type[M], data: Any, *, text: str, file: str) -> M:
    """Build a model from parsed data, turning the first complaint into one that names the file, line and field.

    Args:
        model: The pydantic model.
        data: What the YAML held.
        text: The YAML itself, to find lines in.
        file: What to call it.

    Raises:
        InputError: The data does not fit the model.
    """
    if not isinstance(data, dict):
        raise InputError(
            f"holds {type(data).__name__}, not a mapping of fields.",
            code="not_a_mapping",
            file=file,
            hint=f"It needs the fields {', '.join(model.model_fields)}.",
        )
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise _explain(error, model, text=text, file=file) from None


def _explain(error: ValidationError, model: type[BaseModel], *, text: str, file: str) -> InputError:
    problems = error.errors(include_url=False)
    # A key that is misspelt is also missing; the hint is about the spelling.
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    # Where a field may be of two types, pydantic adds the type it tried, such as "list[int]"; no user knows that.
    path = tuple(part for part in problem["loc"] if not (isinstance(part, str) and "[" in part))
    field = ".".join(str(part) for part in path)
    line = _line_of(text, path)
    where = f" ({file}, line {line})" if line else f" ({file})" if field else ""
    if problem["type"] == "extra_forbidden":
        siblings = _fields_at(model, path[:-1])
        hint = closest(str(path[-1]), siblings) or f"Known here: {', '.join(sorted(siblings))}."
        return InputError(f"is not a known key{where}.", code="unknown_key", field=field, file=file, hint=hint)
    if problem["type"] == "missing":
        return InputError(
            f"is required and missing{where}.", code="missing_key", field=field, file=file, hint=f"Add {path[-1]!r}."
        )
    given = problem.get("input")
    # A URL that is refused for the credentials in it must not print them.
    is_secret = isinstance(given, str) and "@" in given
    shown = f", not {given!r}" if isinstance(given, str | int | float | bool) and not is_secret else ""
    reason = problem["msg"].removeprefix("Value error, ")
    return InputError(f"{reason}{shown}{where}.", code="bad_value", field=field or None, file=file)


def _fields_at(model: type[BaseModel], path: Sequence[int | str]) -> list[str]:
    """Field names of the nested model at a path, as far as it can be followed."""
    current: Any = model
    for part in path:
        info = current.model_fields.get(part) if isinstance(part, str) else None
        if info is None:
            break
        candidates = [info.annotation, *getattr(info.annotation, "__args__", ())]
        nested = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not nested:
            break
        current = nested[0]
    return list(current.model_fields)


def _line_of(text: str, path: Sequence[int | str]) -> int | None:
    """1-based line of the deepest part of ``path`` that the YAML has."""
    node = yaml.compose(text, Loader=_Loader)
    line = None
    for part in path:
        found = None
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(part):
                    found, line = value, key.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            found = node.value[part]
            line = found.start_mark.line + 1
        if found is None:
            break
        node = found
    return line


def set_by_path(data: Mapping[str, Any], assignment: str) -> dict[str, Any]:
    """Apply one ``key.path=value`` to a nested mapping and give the changed copy; the value is read as YAML.

    Raises:
        InputError: The assignment has no ``=`` or walks through something that is not a mapping.

    Example:
        >>> set_by_path({"store": {"url": "a"}}, "store.url=b")
        {'store': {'url': 'b'}}
    """
    path, equals, value = assignment.partition("=")
    if not equals or not path:
        raise InputError(
            f"{assignment!r} is not key.path=value.",
            code="bad_assignment",
            field="--set",
            hint="For example --set sampling.temperature=0.",
        )
    head, _, rest = path.partition(".")
    changed = dict(data)
    if not rest:
        changed[head] = parse_yaml(value, f"--set {path}")
        return changed
    inner = changed.get(head) or {}
    if not isinstance(inner, Mapping):
        raise InputError(f"{head!r} holds a value, not fields.", code="bad_assignment", field=f"--set {path}")
    changed[head] = set_by_path(inner, f"{rest}={value}")
    return changed
