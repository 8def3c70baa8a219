"""The section ``interventions`` of a spec: what is taken, what is refused by which field, and its part in a digest."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.specs.interventions_spec import AbsoluteStrength, layers_of
from persona_atlas.jobs.specs.spec import JobSpec, load_spec, make_spec

BASE: dict[str, Any] = {
    "model": {"source": "m"},
    "store": {"url": "runs/a"},
    "personas": {"roles": {"names": ["x"]}},
}


def spec(*entries: Any, **changes: Any) -> JobSpec:
    return make_spec(BASE | {"interventions": list(entries)} | changes)


def test_what_was_asked_is_kept_in_one_form():
    made = spec(
        {"cap": "p0.250", "axis": "runs/demo", "layers": " 46 : 54"},
        {"steer": {"absolute": 12}, "axis": "runs/demo", "layers": [9, 3], "positions": "response"},
        {"steer": -1, "axis": "runs/demo", "layers": "middle"},
        {"ablate": "axis", "axis": "runs/demo", "transfer": True},
        {"axis": "capping_config.pt", "experiment": "layers_46:54-p0.25"},
    )
    assert made.interventions is not None
    assert [entry.kind for entry in made.interventions] == ["cap", "steer", "steer", "ablate", "experiment"]
    assert [entry.asked for entry in made.interventions] == [
        {"cap": "p0.25", "axis": "runs/demo", "layers": "46:54"},
        {"steer": {"absolute": 12.0}, "axis": "runs/demo", "layers": [3, 9], "positions": "response"},
        {"steer": -1.0, "axis": "runs/demo", "layers": "middle"},
        {"ablate": "axis", "axis": "runs/demo", "transfer": True},
        {"axis": "capping_config.pt", "experiment": "layers_46:54-p0.25"},
    ]
    assert made.interventions[1].steer == AbsoluteStrength(absolute=12.0)
    again = make_spec(made.model_dump(mode="json"))
    assert again == made


def test_layers_are_listed_within_the_model_and_one_beyond_it():
    assert layers_of("46:54", 64, 32) == tuple(range(46, 54))
    assert layers_of("all", 3, 1) == (0, 1, 2)
    assert layers_of("2:999999999", 4, 2) == (2, 3, 4), "a mistyped end fills no memory, and is still beyond the model"


@pytest.mark.parametrize(
    ("entry", "field", "reason"),
    [
        ({"cap": "p0.25"}, ".axis", "required"),
        ({"axis": "a"}, "", "has none of them"),
        ({"axis": "a", "cap": 1, "steer": 1}, "", "has cap and steer"),
        ({"axis": "a", "cap": "p1.5"}, ".cap", "label of a percentile"),
        ({"axis": "a", "cap": True}, ".cap", "label of a percentile"),
        ({"axis": "a", "cap": float("nan")}, ".cap", "label of a percentile"),
        ({"axis": "a", "steer": "far"}, ".steer", "fraction of the layer's norm"),
        ({"axis": "a", "steer": float("inf")}, ".steer", "fraction of the layer's norm"),
        ({"axis": "a", "steer": {"absolut": 2}}, ".steer", "{absolute: NUMBER}"),
        ({"axis": "a", "ablate": "everything"}, ".ablate", "'axis'"),
        ({"axis": "a", "cap": 1, "layers": 2814}, ".layers", "without quotes"),
        ({"axis": "a", "cap": 1, "layers": "54:46"}, ".layers", "not included"),
        ({"axis": "a", "cap": 1, "layers": [1, 1]}, ".layers", "twice"),
        ({"axis": "a", "cap": 1, "layers": [-1]}, ".layers", "range in quotes"),
        ({"axis": "a", "cap": 1, "layers": []}, ".layers", "range in quotes"),
        ({"axis": "a", "cap": 1, "positions": "prompt"}, ".positions", "'response'"),
        ({"axis": "a", "cap": 1, "layer": 3}, ".layer", "Did you mean 'layers'?"),
        ({"axis": "a", "experiment": "e", "cap": 1, "layers": "1:2"}, "", "leave out cap and layers"),
        ("p0.25", "", "mapping of fields"),
    ],
)
def test_what_is_wrong_is_refused_by_its_field(entry: Any, field: str, reason: str):
    with pytest.raises(InputError) as caught:
        spec(entry)
    assert caught.value.field == f"interventions.0{field}"
    assert reason in str(caught.value)


def test_a_range_without_quotes_is_a_number_to_yaml_and_the_line_is_named(tmp_path: Path):
    path = tmp_path / "job.yaml"
    lines = ["model: {source: m}", "store: {url: runs/a}", "personas: {roles: {names: [x]}}", "interventions:"]
    path.write_text("\n".join([*lines, "  - cap: p0.25", "    axis: runs/demo", "    layers: 46:54"]))
    with pytest.raises(InputError) as caught:
        load_spec(path)
    assert (caught.value.field, "line 7" in str(caught.value)) == ("interventions.0.layers", True)


def test_a_server_that_generates_is_refused_and_given_texts_are_not():
    entry = {"cap": 1, "axis": "a"}
    with pytest.raises(InputError, match="without them") as caught:
        spec(entry, generation={"endpoint": "http://host:8000/v1"})
    assert caught.value.field == "interventions"
    given = make_spec(BASE | {"personas": {}, "conversations": {"source": "talks.jsonl"}, "interventions": [entry]})
    assert given.capture.mode == "prefill_pass"


def test_a_spec_without_interventions_has_the_digest_and_the_bytes_that_it_had():
    plain = make_spec(BASE)
    assert plain.digest == "5b5654a01c0c0502a3515d0d487877ebab90e62846a17e3ce831fdd069bce3f3"
    stored = hashlib.sha256(plain.model_dump_json().encode()).hexdigest()
    assert stored == "1b99272ce8587888ee6ccdb1c8b682a1aa873096c0ef50d9612fe94acfe5b79f"
    assert spec({"cap": 1, "axis": "a"}).digest != plain.digest
