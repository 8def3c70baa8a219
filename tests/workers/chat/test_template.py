"""The pinned clock answers every format with one moment, as strftime would, and chance is refused."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from persona_atlas.jobs.errors import InputError
from persona_atlas.workers.chat.renderer import ChatRenderer
from persona_atlas.workers.chat.template import PINNED_DATE, TemplateSource, pinned_moment

from tiny_models import CHAT_TEMPLATE, save_tokenizer

MOMENT = datetime(2026, 1, 1, tzinfo=UTC)
FORMATS = [
    "%d %b %Y", "%Y-%m-%d", "%d %B %Y", "%A, %B %d, %Y", "%c", "%x %X", "%D %T", "%F %R", "%I:%M:%S %p", "%j", "%U %W",
    "%V %u %w", "%y %C", "%e", "%H:%M", "%%d", "%%", "100%% on %d", "%h", "%r", "%s", "%z %Z", "no directive", "",
    "%-d %B %Y", "%-m/%-d/%y", "%-I %p", "%G-W%V", "%f",
]  # fmt: skip


@pytest.fixture
def tokenizer_with(tmp_path: Path):
    def make(template: str) -> Any:
        from transformers import AutoTokenizer

        save_tokenizer(tmp_path, template)
        return AutoTokenizer.from_pretrained(tmp_path)

    return make


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_is_honoured(tokenizer_with, form: str):
    assert pinned_moment(form) == MOMENT.strftime(form)
    asks = "{{ strftime_now('" + form + "') }}|" + CHAT_TEMPLATE
    renderer = ChatRenderer(tokenizer_with(asks))
    text = renderer.text([{"role": "user", "content": "Hi"}], generate=True)
    assert text.partition("|")[0] == MOMENT.strftime(form)


def test_the_format_of_the_pinned_date_writes_the_words_that_it_always_did():
    assert pinned_moment("%d %b %Y") == PINNED_DATE == "01 Jan 2026"


def test_the_clock_can_be_asked_in_a_macro_and_computed_with(tokenizer_with):
    asks = (
        "{% macro today() %}{{ strftime_now('%Y')|int + 1 }}{% endmacro %}{% set d = strftime_now('%d') %}"
        "{{ today() }}-{{ d }}|" + CHAT_TEMPLATE
    )
    text = ChatRenderer(tokenizer_with(asks)).text([{"role": "user", "content": "Hi"}], generate=True)
    assert text.startswith("2027-01|")


@pytest.mark.parametrize("chance", ["{{ ['a', 'b']|random }}", "{{ lipsum() }}"])
def test_a_template_that_writes_another_text_each_time_is_refused(tokenizer_with, chance: str):
    with pytest.raises(InputError, match="another text each time") as caught:
        ChatRenderer(tokenizer_with(chance + CHAT_TEMPLATE))
    assert caught.value.code == "bad_chat_template"


def test_roles_are_named_by_literals_and_not_by_text():
    source = TemplateSource(
        "tool {% generation %}{% if m.role in ['user', \"ipython\"] %}{% endif %}{% endgeneration %}"
    )
    assert (source.names("user"), source.names("ipython"), source.names("tool")) == (True, True, False)
    assert not TemplateSource("{% for m in %}").names("user")
