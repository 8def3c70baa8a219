"""What results of lm-evaluation-harness say of the model that gave them."""

from __future__ import annotations

from typing import Any

import pytest
from persona_atlas.cluster.evaluation.made_with import SettingMade, model_info
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.interventions import Cap, Direction, Intervention
from persona_atlas.jobs.specs.pareto_spec import CapSetting

CAP = CapSetting("0:2", "p0.25")
EDITS = Intervention((Cap(0, Direction.of([1.0, 0.0]), floor=1.0), Cap(1, Direction.of([1.0, 0.0]), floor=2.0)))
OTHER = Intervention((Cap(0, Direction.of([1.0, 0.0]), floor=1.0), Cap(1, Direction.of([1.0, 0.0]), floor=3.0)))
PLAIN = SettingMade("plain", "models/tiny", model_info("a", None), None)
CAPPED = SettingMade(CAP.name, "models/tiny", model_info("a", EDITS), CAP)


@pytest.mark.parametrize(
    ("made", "config", "is_known"),
    [
        (CAPPED, {"model": "persona_atlas", **model_info("a", EDITS)}, True),
        (PLAIN, model_info("a", None), True),
        (CAPPED, {"model_edits": 2}, False),
        (PLAIN, {"model_edits": 0}, True),
        (PLAIN, {"model": "hf", "model_args": "pretrained=models/tiny"}, True),
        (CAPPED, {"model": "local-completions", "gen_kwargs": {"cap": "p0.25", "layers": "0:2"}}, True),
        (CAPPED, {"model": "local-completions", "gen_kwargs": "cap=p0.25"}, False),
        (CAPPED, {"model": "local-completions", "gen_kwargs": {"temperature": 0}}, False),
        (PLAIN, {}, False),
        (PLAIN, {"model": "hf", "model_args": "pretrained=elsewhere/tiny"}, False),
        (PLAIN, {"model": "hf", "model_args": "pretrained=models/tiny,peft=adapter"}, False),
        (PLAIN, {"model": "local-completions", "gen_kwargs": {"cap": None}}, True),
        (PLAIN, {"model": "local-completions", "gen_kwargs": "cap=null"}, True),
        (CAPPED, {"model": "local-completions", "gen_kwargs": "cap=p0.25,layers=0:2,positions=all"}, True),
    ],
)
def test_what_fits_is_taken_and_what_is_not_known_is_told(made: SettingMade, config: dict[str, Any], is_known: bool):
    assert made.check(config, "results.json") is is_known


@pytest.mark.parametrize(
    ("made", "config", "message"),
    [
        (CAPPED, model_info("a", None) | {"model_args": {"store": "runs/a"}}, r"other edits \(store=runs/a\)"),
        (CAPPED, model_info("a", OTHER), "other edits"),
        (CAPPED, model_info("b", EDITS), "another model than models/tiny"),
        (PLAIN, model_info("a", EDITS), "other edits"),
        (CAPPED, {"model_edits": 0}, "other edits"),
        (CAPPED, {"model": "hf"}, "by hf, which is not capped"),
        (CAPPED, {"model": "local-completions", "gen_kwargs": {"cap": "p0.5"}}, "of a server with other edits"),
        (CAPPED, {"model": "local-completions", "gen_kwargs": {"cap": "p0.25", "steer": 0.1}}, "other edits"),
        (PLAIN, {"model": "local-completions", "gen_kwargs": "cap=p0.25"}, "of a server with other edits"),
        (CAPPED, {"model": "x", "gen_kwargs": "cap=p0.25,layers=0:2,positions=prompt"}, "at other positions than all"),
        (CAPPED, {"model": "x", "gen_kwargs": "cap=null"}, "of a server with other edits"),
    ],
)
def test_results_of_another_model_or_setting_are_refused(made: SettingMade, config: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message) as refused:
        made.check(config, "results.json")
    assert (refused.value.code, refused.value.file) == ("other_results", "results.json")
    assert made.name in refused.value.message
