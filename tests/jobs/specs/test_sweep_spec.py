"""The spec of a sweep: every way to write a setting, what is filled in, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.specs.spec import load_spec, make_spec
from persona_atlas.jobs.specs.sweep_spec import load_sweep, make_sweep

JOB: dict[str, Any] = {
    "model": {"source": "models/tiny"},
    "personas": {"roles": {"names": ["pirate"]}},
    "store": {"url": "runs/sweep"},
}


def sweep(*settings: Any, **shared: Any) -> Any:
    return make_sweep(JOB | {"sweep": {"axis": "runs/axis", **shared, "settings": list(settings)}})


def test_every_way_to_write_a_setting():
    both = [{"cap": "p0.25", "layers": "1:3"}, {"ablate": "axis", "axis": "runs/other"}]
    named = {"name": "Held still", "interventions": both}
    release = {"experiment": "layers_46:54-p0.25", "axis": "capping_config.pt"}
    absolute = {"steer": {"absolute": 2}}
    found = sweep(-0.3, 0, "p0.5", {"cap": 2, "positions": "all"}, both, named, release, absolute, layers="middle")
    assert [(setting.name, setting.folder, setting.strength) for setting in found.settings] == [
        ("steer -0.3", "steer--0.3", -0.3),
        ("plain", "plain", 0.0),
        ("cap p0.5", "cap-p0.5", None),
        ("cap 2 positions all", "cap-2-positions-all", None),
        ("cap p0.25 layers 1:3 and ablate axis", "cap-p0.25-layers-1-3-and-ablate-axis", None),
        ("Held still", "Held-still", None),
        ("experiment layers_46:54-p0.25", "experiment-layers_46-54-p0.25", None),
        ("steer 2 absolute", "steer-2-absolute", None),
    ]
    asked = [[entry.asked for entry in setting.interventions] for setting in found.settings]
    assert asked[0] == [{"steer": -0.3, "axis": "runs/axis", "layers": "middle"}]
    assert asked[1] == []
    # What an entry says itself stays; a released setting names its own layers.
    assert asked[4] == asked[5]
    assert asked[5] == [
        {"cap": "p0.25", "axis": "runs/axis", "layers": "1:3"},
        {"ablate": "axis", "axis": "runs/other", "layers": "middle"},
    ]
    assert asked[6] == [{"axis": "capping_config.pt", "experiment": "layers_46:54-p0.25"}]
    assert sweep("plain").settings == sweep(None).settings == sweep({"steer": 0}).settings == sweep([]).settings


def test_the_job_of_a_setting_is_the_job_that_the_same_spec_without_a_sweep_would_be():
    found = sweep(0, -0.3)
    plain, steered = (found.job_of(setting) for setting in found.settings)
    store = {"url": "runs/sweep/settings/plain"}
    assert plain == make_spec(JOB | {"store": store})
    assert plain.digest == make_spec(JOB).digest
    entry = {"steer": -0.3, "axis": "runs/axis"}
    store = {"url": "runs/sweep/settings/steer--0.3"}
    assert steered == make_spec(JOB | {"interventions": [entry], "store": store})


@pytest.mark.parametrize(
    ("section", "field"),
    [
        ({"settings": []}, "sweep.settings"),
        ({}, "sweep.settings"),
        ({"settings": [True]}, "sweep.settings.0"),
        ({"settings": [0, "weak"]}, "sweep.settings.1.interventions.0.cap"),
        ({"settings": [0.1]}, "sweep.settings.0.interventions.0.axis"),
        ({"settings": [{"steer": 0.1, "cap": 2}], "axis": "a"}, "sweep.settings.0.interventions.0"),
        ({"settings": [0.1, 0.1], "axis": "a"}, "sweep.settings.1"),
        ({"settings": [0, "plain"]}, "sweep.settings.1"),
        (
            {"settings": [{"name": "A b", "interventions": []}, {"name": "a/B", "interventions": []}]},
            "sweep.settings.1",
        ),
        ({"settings": [0], "strengths": [1]}, "sweep.strengths"),
        ({"settings": [float("nan")], "axis": "a"}, "sweep.settings.0.interventions.0.steer"),
    ],
)
def test_what_is_no_sweep_is_refused_by_field(section: dict[str, Any], field: str):
    with pytest.raises(InputError) as caught:
        make_sweep(JOB | {"sweep": section})
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("interventions", [{"steer": 0.1, "axis": "a"}]),
        ("generation", {"endpoint": "http://host:8000/v1"}),
        ("conversations", {"source": "talks.jsonl"}),
    ],
)
def test_what_no_setting_would_change_is_refused(field: str, value: Any):
    job = {name: section for name, section in JOB.items() if field != "conversations" or name != "personas"}
    with pytest.raises(InputError, match="cannot stand beside sweep") as caught:
        make_sweep(job | {field: value, "sweep": {"settings": [0]}})
    assert caught.value.field == field


def test_a_file_its_lines_and_overrides(tmp_path: Path):
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "model: {source: m}\npersonas: {roles: {names: [pirate]}}\nstore: {url: runs/s}\n"
        "sweep:\n  axis: runs/a\n  settings: [0, -0.3]\n"
    )
    assert len(load_sweep(path).settings) == 2
    changed = load_sweep(path, ["sweep.settings=[0.1]", "store.url=runs/t"])
    assert changed.job_of(changed.settings[0]).store.url == "runs/t/settings/steer-+0.1"
    with pytest.raises(InputError, match="line 4") as caught:
        load_sweep(path, ["sweep.seed=1"])
    assert caught.value.field == "sweep.seed"
    with pytest.raises(InputError, match="persona-atlas sweep") as caught:
        load_spec(path)
    assert caught.value.field == "sweep"
