"""Read YAML files into pydantic models, with errors that name the file, the line and the field.

Knows nothing of the meaning of the files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any, TypeVar, cast, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ValidationError

from ..errors import InputError, closest
from .yaml_limits import MAX_DEPTH, refuse_unbounded

_Loader = cast("type[yaml.SafeLoader]", getattr(yaml, "CSafeLoader", yaml.SafeLoader))

M = TypeVar("M", bound=BaseModel)


def _refuse_boolean(value: Any) -> Any:
    """Refuse true and false where a number is meant: pydantic would take them for 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


NO_BOOLEAN = BeforeValidator(_refuse_boolean)
"""Part of the type of every number in a file: true and false are not numbers."""


def parse_yaml(text: str, file: str) -> Any:
    """Parse YAML text.

    Args:
        text: The YAML.
        file: Name of the file, for errors.

    Returns:
        The parsed value; None for an empty text.

    Raises:
        InputError: The text is not valid YAML, a mapping has the same key twice, or the text has no bounded size;
            names the line.

    Example:
        >>> parse_yaml("seed: 7", "job.yaml")
        {'seed': 7}
    """
    try:
        refuse_unbounded(text, file, _Loader)
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
            hint="Fix that line; a text that contains a colon needs quotes or a >- scalar.",
        ) from None
    except (ValueError, ArithmeticError, LookupError, AttributeError) as error:
        # PyYAML converts values without checking them: 2026-13-01 is a date to it, and "!!int x" a number.
        raise InputError(
            f"holds a value that is not of the type that it looks like: {error}.",
            code="not_yaml",
            file=file,
            hint="A text that looks like a date or a number needs quotes.",
        ) from None


def _refuse_repeated_keys(node: yaml.Node | None, file: str) -> None:
    """Refuse a mapping with the same key twice: YAML forbids it, but the parser would silently keep the last."""
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
                f"must be given once, but is on lines {seen[name]} and {line} of {file}.",
                code="repeated_key",
                field=name,
                file=file,
                hint="Delete one of them.",
            )
        seen[name] = line
        _refuse_repeated_keys(value, file)


def _place_of(error: yaml.YAMLError, text: str) -> tuple[int, str | None]:
    """Find the 1-based line and the reason of a parser's error.

    For a forbidden character the parser gives a position in the text instead of a line.
    """
    if isinstance(error, yaml.reader.ReaderError):
        return text.count("\n", 0, error.position) + 1, str(error.reason)
    mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
    return (mark.line + 1 if mark else 1), getattr(error, "problem", None) or str(error)


def validate(model: type[M], data: Any, *, text: str, file: str) -> M:
    """Build a model from parsed YAML.

    Args:
        model: Class of the model.
        data: The parsed YAML.
        text: The YAML itself, in which lines are looked up; empty if there is no file.
        file: Name of the file, for errors; empty if there is none.

    Raises:
        InputError: The data does not fit the model; names file, line and field of the first problem.
    """
    if not isinstance(data, dict):
        raise InputError(
            f"must be a mapping of fields, but is {'empty' if data is None else f'a {type(data).__name__}'}.",
            code="not_a_mapping",
            file=file,
            hint=f"Its fields are {', '.join(model.model_fields)}.",
        )
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise _explain(error, model, text=text, file=file) from None


_NOT_A_MAPPING = ("model_type", "model_attributes_type", "dict_type")
"""Pydantic's names of the problem that a value is no mapping."""


def _explain(error: ValidationError, model: type[BaseModel], *, text: str, file: str) -> InputError:
    problems = error.errors(include_url=False)
    # A misspelt key causes two problems, an unknown key and a missing one. The unknown one shows the spelling.
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    # For a field of several types pydantic adds the one that it tried, such as "list[int]", to the path.
    path = tuple(part for part in problem["loc"] if not (isinstance(part, str) and "[" in part))
    field = ".".join(str(part) for part in path)
    line = _line_of(text, path)
    where = f" ({file}, line {line})" if line else f" ({file})" if field and file else ""
    if problem["type"] == "extra_forbidden":
        siblings = _fields_at(model, path[:-1])
        hint = closest(str(path[-1]), siblings) or f"The keys here are {', '.join(sorted(siblings))}."
        return InputError(f"is not a known key{where}.", code="unknown_key", field=field, file=file, hint=hint)
    if problem["type"] == "missing":
        return InputError(
            f"is required and missing{where}.", code="missing_key", field=field, file=file, hint=f"Add {path[-1]!r}."
        )
    given = problem.get("input")
    if text and problem["type"] == "string_type" and (given is None or isinstance(given, bool | int | float | date)):
        return _not_a_text(given, path, is_key="[key]" in problem["loc"], where=where, file=file)
    if problem["type"] in _NOT_A_MAPPING:
        keys = _fields_at(model, path)
        return InputError(
            f"must be a mapping of fields, but is {_kind_of(given)}{where}.",
            code="bad_value",
            field=field or None,
            file=file,
            hint=f"Its fields are {', '.join(keys)}." if keys else "Write it as {key: value}.",
        )
    # A URL may be refused because it holds credentials, which an error must not repeat.
    is_secret = isinstance(given, str) and "@" in given
    # Python refuses to write out integers of thousands of digits.
    is_huge = isinstance(given, int) and given.bit_length() > 1024
    is_shown = isinstance(given, str | int | float | bool) and not is_secret and not is_huge
    shown = f", not {given!r}" if is_shown else ""
    reason = problem["msg"].removeprefix("Value error, ")
    return InputError(f"{reason}{shown}{where}.", code="bad_value", field=field or None, file=file)


def _kind_of(given: Any) -> str:
    kinds: dict[type, str] = {list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number"}
    return "empty" if given is None else kinds.get(type(given), f"a {type(given).__name__}")


def _not_a_text(given: Any, path: Sequence[int | str], *, is_key: bool, where: str, file: str) -> InputError:
    """Explain a text that has no quotes and that YAML reads as something else, such as a name that is called no."""
    if given is None or isinstance(given, bool):
        read_as = "null" if given is None else str(given).lower()
    else:
        read_as = f"the {'date' if isinstance(given, date) else 'number'} {_shown(given)}"
    spelled = {"true": " (as yes and on are)", "false": " (as no and off are)", "null": " (as ~ and nothing are)"}
    field = ".".join(str(part) for part in (path[:-1] if is_key else path))
    what = "has a key that must be a text, but" if is_key else "must be a text, but"
    return InputError(
        f"{what} YAML reads it as {read_as}{spelled.get(read_as, '')}{where}.",
        code="not_a_text",
        field=field or None,
        file=file,
        hint='Put it in quotes, as in "no".',
    )


def _shown(given: Any) -> str:
    try:
        return str(given)[:40]
    except ValueError:  # Python refuses to write out integers of thousands of digits.
        return "of thousands of digits"


def _fields_at(model: type[BaseModel], path: Sequence[int | str]) -> list[str]:
    """List the fields of the nested model at a path, or of the last model that the path reaches."""
    current: Any = model
    for part in path:
        if isinstance(part, int):
            # An entry of a list; the field before has led to the model of its entries.
            continue
        info = current.model_fields.get(part)
        nested = None if info is None else _model_in(info.annotation)
        if nested is None:
            break
        current = nested
    return list(current.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Find the model in a type such as ``Model``, ``Model | None`` or ``list[Model] | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_model_in(part) for part in get_args(annotation))
    return next((model for model in found if model is not None), None)


def _line_of(text: str, path: Sequence[int | str]) -> int | None:
    """Find the 1-based line of the deepest part of ``path`` that exists in the YAML."""
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
    """Apply one assignment to a nested mapping.

    Args:
        data: The mapping; it is not changed.
        assignment: ``key.path=value``; the value is parsed as YAML.

    Returns:
        A changed copy.

    Raises:
        InputError: The assignment has no ``=``, or its path leads through a value that is not a mapping.

    Example:
        >>> set_by_path({"store": {"url": "a"}}, "store.url=b")
        {'store': {'url': 'b'}}
    """
    path, equals, value = assignment.partition("=")
    if not equals or not path:
        raise InputError(
            f"must be key.path=value, but is {assignment!r}.",
            code="bad_assignment",
            field="--set",
            hint="For example --set sampling.temperature=0.",
        )
    if path.count(".") >= MAX_DEPTH:
        raise InputError(
            f"names a field more than {MAX_DEPTH} levels deep.",
            code="bad_assignment",
            field="--set",
            hint="See docs/spec.md for the fields of a spec.",
        )
    head, _, rest = path.partition(".")
    changed = dict(data)
    if not rest:
        changed[head] = parse_yaml(value, f"--set {path}")
        return changed
    inner = changed.get(head) or {}
    if not isinstance(inner, Mapping):
        raise InputError(
            f"cannot be set, because {head!r} holds a value and not fields.",
            code="bad_assignment",
            field=f"--set {path}",
            hint="See docs/spec.md for the fields of a spec.",
        )
    changed[head] = set_by_path(inner, f"{rest}={value}")
    return changed
