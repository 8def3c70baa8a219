"""What the source of a chat template tells: the roles it names, whether it asks the clock, what it leaves to chance.

A template must give the same text on every day and every machine. So the function ``strftime_now`` is shadowed by a
macro that answers every format with one fixed moment, and a template that draws random numbers is refused. Knows no
tokenizer.
"""

from __future__ import annotations

import hashlib
import json
import re
from functools import cached_property
from pathlib import Path

from jinja2 import Environment, TemplateSyntaxError, nodes

from ...jobs.errors import InputError
from ...jobs.files.text_files import read_text
from ...jobs.files.user_paths import expand_home
from ...jobs.specs.spec_parts import ModelSpec
from .builtin_templates import builtin_template

CHAT_TEMPLATE_FIELD = "model.chat_template"

PINNED_DATE = "01 Jan 2026"
"""The date that templates write instead of today's, so that a run does not depend on the day it is started."""

# Thursday, 1 January 2026, 00:00:00. Written out, as strftime's words depend on the locale of the machine.
_DIRECTIVES = {
    "%D": "%m/%d/%y", "%F": "%Y-%m-%d", "%T": "%H:%M:%S", "%R": "%H:%M", "%x": "%m/%d/%y", "%X": "%H:%M:%S",
    "%c": "%a %b %e %H:%M:%S %Y", "%r": "%I:%M:%S %p", "%h": "%b",
    "%A": "Thursday", "%a": "Thu", "%B": "January", "%b": "Jan", "%p": "AM", "%P": "am",
    "%Y": "2026", "%G": "2026", "%y": "26", "%g": "26", "%C": "20", "%m": "01", "%d": "01", "%e": " 1", "%j": "001",
    "%H": "00", "%k": " 0", "%I": "12", "%l": "12", "%M": "00", "%S": "00", "%f": "000000", "%s": "1767225600",
    "%U": "00", "%W": "00", "%V": "01", "%u": "4", "%w": "4", "%z": "+0000", "%Z": "UTC", "%n": "\n", "%t": "\t",
    "%-m": "1", "%-d": "1", "%-e": "1", "%-j": "1", "%-H": "0", "%-k": "0", "%-I": "12", "%-l": "12", "%-M": "0",
    "%-S": "0", "%-y": "26", "%-U": "0", "%-W": "0", "%-V": "1",
}  # fmt: skip

_GENERATION_TAG = re.compile(r"\{%([-+]?)\s*(?:end)?generation\s*([-+]?)%\}")


def _pinned_clock() -> str:
    """Write the answer to every format of ``strftime_now`` in Jinja."""
    # Composite directives come first in the table, because what they become is replaced by those after them.
    replaced = "".join(f"|replace({json.dumps(name)},{json.dumps(text)})" for name, text in _DIRECTIVES.items())
    # Not %%d, which is the letter d after a percent sign.
    return '{{ format|replace("%%","\\u0000")' + replaced + '|replace("\\u0000","%") }}'


_PINNED_CLOCK = _pinned_clock()


class TemplateSource:
    """The source of a chat template.

    Args:
        source: The template, in Jinja.
        field: Field of the spec that it comes from, for errors.

    Raises:
        InputError: It draws random numbers.

    Attributes:
        source: As it was given.
        field: As it was given.
        pinned: The template with a clock that stands still; this is what is rendered.
        asks_clock: Whether it names the function ``strftime_now``.
    """

    def __init__(self, source: str, field: str = "model.source") -> None:
        self.source = source
        self.field = field
        self.asks_clock = "strftime_now" in source
        self.pinned = self.with_clock(_PINNED_CLOCK) if self.asks_clock else source
        self._refuse_chance()

    @property
    def clock_was_other(self) -> bool:
        """Whether it asks the clock in another format than that of the pinned date, which once answered every one."""
        if not self.asks_clock or self._tree is None:
            return self.asks_clock
        calls = [call for call in self._tree.find_all(nodes.Call) if _named(call.node) == "strftime_now"]
        formats = {call.args[0].value if call.args and isinstance(call.args[0], nodes.Const) else "" for call in calls}
        return any(pinned_moment(str(form)) != PINNED_DATE for form in formats)

    def with_clock(self, answer: str) -> str:
        """Return the template with a macro that shadows ``strftime_now``.

        Args:
            answer: What the macro writes, in Jinja; it may use ``format``.
        """
        return "{%- macro strftime_now(format) -%}" + answer + "{%- endmacro -%}" + self.source

    def names(self, word: str) -> bool:
        """Whether a word is among the template's string literals, as a role is that it has a branch for."""
        return word in self._literals

    @cached_property
    def _literals(self) -> frozenset[str]:
        constants = [] if self._tree is None else self._tree.find_all(nodes.Const)
        return frozenset(found.value for found in constants if isinstance(found.value, str))

    @cached_property
    def _tree(self) -> nodes.Template | None:
        """The parsed template; None if it cannot be parsed, which rendering reports."""
        try:
            return _parsed(self.source)
        except TemplateSyntaxError:
            return None

    def _refuse_chance(self) -> None:
        if self._tree is None:
            return
        chances = [found.name for found in self._tree.find_all(nodes.Filter) if found.name == "random"]
        chances += [found.name for found in self._tree.find_all(nodes.Name) if found.name == "lipsum"]
        if chances:
            raise InputError(
                f"the chat template uses {chances[0]}, so that it writes another text each time.",
                code="bad_chat_template",
                field=self.field,
                hint="Give a template without it in model.chat_template.",
            )


def read_chat_template(model: ModelSpec) -> str | None:
    """Read the chat template that a spec gives.

    Args:
        model: The model's section of the spec.

    Returns:
        Its text; None if the model's own is used.

    Raises:
        InputError: The file cannot be read, is empty, or is not a Jinja template; or no built-in one has the name.
    """
    if model.chat_template is None:
        return None
    if (builtin := builtin_template(model.chat_template, CHAT_TEMPLATE_FIELD)) is not None:
        return builtin
    path = expand_home(model.chat_template, CHAT_TEMPLATE_FIELD)
    text = read_text(Path(path), f"a chat template ({CHAT_TEMPLATE_FIELD})")
    reason = None if text.strip() else "it is empty"
    try:
        _parsed(text)
    except TemplateSyntaxError as error:
        reason = f"line {error.lineno}: {error.message}"
    if reason is not None:
        raise InputError(
            f"{path} is not a Jinja template: {(reason or '').rstrip('.')}.",
            code="bad_chat_template",
            field=CHAT_TEMPLATE_FIELD,
            file=path,
            hint="It is what a tokenizer has in chat_template.jinja, or in its configuration as chat_template.",
        )
    return text


def template_sha256(text: str | None) -> str:
    """Return the SHA-256 of a chat template in hexadecimal; ``""`` for None."""
    return "" if text is None else hashlib.sha256(text.encode()).hexdigest()


def _named(node: nodes.Node) -> str:
    return node.name if isinstance(node, nodes.Name) else ""


def _parsed(source: str) -> nodes.Template:
    # The tags mark the assistant's tokens for training and write nothing; plain Jinja does not know them.
    return Environment(extensions=["jinja2.ext.loopcontrols"]).parse(_GENERATION_TAG.sub("", source))


def pinned_moment(form: str) -> str:
    """Format the pinned moment as templates do, in Python.

    Args:
        form: A format of ``strftime``.

    Example:
        >>> pinned_moment("%A, %-d %B %Y")
        'Thursday, 1 January 2026'
    """
    text = form.replace("%%", "\0")
    for name, value in _DIRECTIVES.items():
        text = text.replace(name, value)
    return text.replace("\0", "%")
