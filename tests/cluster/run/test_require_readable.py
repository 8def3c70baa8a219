"""What is refused before a job spends anything: texts that the model's template does not render, or hides words of."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from persona_atlas.cluster.run.progress import Progress
from persona_atlas.cluster.run.rendering import require_readable
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.plan import Plan
from rich.console import Console

from conversations import conversation, given_plan
from fakes import small_plan, small_spec
from tiny_models import CHAT_TEMPLATE, save_tokenizer

REPEATS = CHAT_TEMPLATE + "{{ messages[-1]['content'] }}"
PLANS = {
    "prompts": lambda **changes: small_plan(small_spec(**changes)),
    "conversations": lambda **changes: given_plan(conversation("Hi", "Hello", "So?"), **changes),
}


def check(plan: Plan, directory: Path, template: str) -> str:
    """Check a plan against a template; what is shown meanwhile."""
    shown = io.StringIO()
    save_tokenizer(directory, template)
    require_readable(plan, directory, Progress(Console(file=shown)))
    return shown.getvalue()


@pytest.mark.parametrize("texts", list(PLANS))
def test_a_template_that_shows_the_users_words_is_fine(tmp_path: Path, texts: str):
    plan = PLANS[texts](capture={"poolings": ["user_mean"]})
    assert "against the chat template" in check(plan, tmp_path, CHAT_TEMPLATE)


def test_prompts_whose_words_the_template_hides_are_refused_where_a_pooling_is_over_them(tmp_path: Path):
    with pytest.raises(InputError, match="repeats it") as caught:
        check(PLANS["prompts"](capture={"poolings": ["user_mean"]}), tmp_path, REPEATS)
    assert (caught.value.code, caught.value.field) == ("no_user_span", "capture.poolings")
    assert check(PLANS["prompts"](), tmp_path, REPEATS) == "", "no pooling needs them"


def test_a_turn_that_answers_nobody_is_refused_where_a_pooling_is_over_the_users_words(tmp_path: Path):
    talk = conversation("Hello", "Hi", "Hello", begins=1)
    check(given_plan(talk), tmp_path, CHAT_TEMPLATE)
    with pytest.raises(InputError, match="answers no message of the user") as caught:
        check(given_plan(talk, capture={"poolings": ["user_mean"]}), tmp_path, CHAT_TEMPLATE)
    assert caught.value.code == "no_user_span"
