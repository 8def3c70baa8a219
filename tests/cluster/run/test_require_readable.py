"""What is refused before a job spends anything: texts that the model's template does not render, or hides words of."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from persona_atlas.cluster.run.prepare import plan_job
from persona_atlas.cluster.run.progress import Progress
from persona_atlas.cluster.run.rendering import require_readable
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.plan import Plan, make_plan
from persona_atlas.workers.chat.spans import load_renderer
from rich.console import Console

from conversations import conversation, given_plan
from fakes import FACTS, small_plan, small_spec
from stored_runs import record_of
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


@pytest.mark.parametrize("spare", [0, -1])
def test_prompts_that_leave_too_little_room_for_a_response_are_refused(tmp_path: Path, spare: int):
    save_tokenizer(tmp_path, CHAT_TEMPLATE)
    renderer = load_renderer(tmp_path).renderer
    spec = small_spec(sampling={"max_new_tokens": 100})
    plan = small_plan(spec)
    requests = [request for unit in plan.units for request in plan.requests(unit).first(unit)]
    longest = max(len(renderer.render(request.messages)) for request in requests)
    plan = small_plan(spec, facts=replace(FACTS, max_context=longest + 100 + spare))
    if spare == 0:
        assert "against the model's context" in check(plan, tmp_path, CHAT_TEMPLATE)
        return
    with pytest.raises(InputError, match="Set it to at most 99") as caught:
        check(plan, tmp_path, CHAT_TEMPLATE)
    assert (caught.value.code, caught.value.field) == ("beyond_context", "sampling.max_new_tokens")


def test_a_run_of_many_mantissa_bits_that_an_earlier_version_started_keeps_its_units(
    tiny_model_directory: Path, monkeypatch: pytest.MonkeyPatch
):
    # So that the questions of a small model are divided at all.
    monkeypatch.setattr("persona_atlas.jobs.work.unit_size.BLOCK_BYTES_LIMIT", 4000)
    personas = {"roles": {"names": ["pirate"], "questions": 20}, "default": {"prompts": 0}}
    spec = small_spec(
        model={"source": str(tiny_model_directory)}, personas=personas, store={"url": "s", "mantissa_bits": 23}
    )
    progress = Progress(Console(file=io.StringIO()))
    new, _ = plan_job(spec, progress)
    earlier = make_plan(spec, new.source, new.facts, sizes_bits=False)
    assert earlier.rows_per_block == 20
    assert new.rows_per_block < 20
    assert plan_job(spec, progress, record=record_of(earlier))[0].units == earlier.units
    assert plan_job(spec, progress, record=record_of(new))[0].units == new.units
