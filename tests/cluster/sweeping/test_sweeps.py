"""A sweep of the tiny model: a run for each setting, resumed, equal to the same request alone; judged and counted."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import persona_atlas
import pytest
import yaml
from click.testing import CliRunner
from persona_atlas.analysis.axis_source import open_axis
from persona_atlas.analysis.sweeping.intervals import wilson_interval
from persona_atlas.cluster.cli import cli
from persona_atlas.cluster.run.local import open_local_backend
from persona_atlas.cluster.run.progress import Progress
from persona_atlas.cluster.sweeping.prepare import PreparedSweep, prepare_sweep
from persona_atlas.cluster.sweeping.run import SweepOutcome, run_sweep
from persona_atlas.jobs.scheduling.ledger import Ledger
from persona_atlas.jobs.specs.sweep_spec import make_sweep
from persona_atlas.storage.derived.verdicts import read_sweep_record
from persona_atlas.storage.format.records import Manifest
from persona_atlas.storage.query.run import Run, open_run
from rich.console import Console

from chat_server import Body, ChatServer, serving
from command_line import Answered, Refused
from tiny_axes import tiny_run

LABELS = ("assistant", "human", "nonhuman", "mystical")
NAMES = ("steer -2", "plain", "cap p0.25")


class StoppedAt(Progress):
    """Progress that is interrupted, as by Ctrl-C, when so many units of all settings are committed."""

    def __init__(self, num_units: int | None = None) -> None:
        super().__init__(Console(quiet=True))
        self._left = num_units

    def units(self, ledger: Ledger, manifest: Manifest | None) -> None:
        if manifest is not None and self._left is not None:
            self._left -= 1
            if self._left == 0:
                raise KeyboardInterrupt


@dataclass(frozen=True)
class World:
    """A tiny model with an axis, and a complete sweep of it."""

    axis: Run
    spec: dict[str, Any]
    file: Path

    def replies(self, name: str) -> list[dict[str, Any]]:
        return setting_run(self.spec, name).rollouts().to_pylist()


def setting_run(spec: dict[str, Any], name: str) -> Run:
    (folder,) = [one.folder for one in make_sweep(spec).settings if one.name == name]
    return open_run(f"{spec['store']['url']}/settings/{folder}")


def spec_of(axis: Run, store: Path) -> dict[str, Any]:
    return {
        "model": {"source": axis.model_name},
        "personas": {
            "roles": {"names": ["pirate", "poet"], "prompts": 1, "questions": 3},
            "default": {"prompts": 0},
        },
        "sampling": {"max_new_tokens": 8},
        "placement": {"device": "cpu"},
        "sweep": {"axis": axis.url, "layers": [1], "settings": [-2, 0, "p0.25"]},
        "store": {"url": str(store), "mantissa_bits": 23},
    }


def work(spec: dict[str, Any], progress: Progress) -> tuple[PreparedSweep, SweepOutcome]:
    prepared = prepare_sweep(make_sweep(spec), progress)
    return prepared, run_sweep(prepared, progress, open_local_backend, nullcontext)


def commits(store: Path) -> dict[str, bytes]:
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("commits/*.json")}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("sweep")
    axis = tiny_run(folder / "axis")
    spec = spec_of(axis, folder / "sweep")
    (folder / "sweep.yaml").write_text(yaml.safe_dump(spec))
    # Stopped in the middle of the second setting; then it goes on.
    with pytest.raises(KeyboardInterrupt):
        work(spec, StoppedAt(3))
    begun = commits(folder / "sweep")
    prepared, outcome = work(spec, StoppedAt())
    done = commits(folder / "sweep")
    assert prepared.num_units == outcome.planned == outcome.done == len(done) == 6
    assert len(begun) >= 3
    assert outcome.worked == 6 - len(begun), "nothing is made twice"
    assert begun.items() <= done.items(), "what was committed before is as it was"
    again, rest = work(spec, StoppedAt())
    assert (again.num_missing, again.is_recorded, rest.worked, rest.is_complete) == (0, True, 0, True)
    return World(axis, spec, folder / "sweep.yaml")


def test_every_setting_has_the_same_requests_and_its_own_edits(world: World):
    steered, plain, capped = (setting_run(world.spec, name) for name in NAMES)
    assert (steered.record.is_edited, plain.record.is_edited, capped.record.is_edited) == (True, False, True)
    columns = ["kind", "persona", "prompt_index", "question_index", "system_prompt", "question", "seed"]
    assert steered.rollouts().select(columns) == plain.rollouts().select(columns) == capped.rollouts().select(columns)
    assert steered.rollouts()["response"] != plain.rollouts()["response"]
    axis = open_axis(world.axis.url)
    unit_D = axis.unit_D(1)
    means = [float((run.activations(layer=1).values @ unit_D).mean()) for run in (steered, plain, capped)]
    assert means[0] < means[1] < means[2]
    record = read_sweep_record(prepare_sweep(make_sweep(world.spec), StoppedAt()).location)
    assert record is not None
    assert [(one.name, bool(one.edits)) for one in record.settings] == [*zip(NAMES, (True, False, True), strict=True)]
    for run in (steered, plain, capped):
        assert persona_atlas.verify(run.url, progress=False).is_sound


def test_a_reply_is_that_of_the_same_request_under_the_same_edits_alone(world: World, tmp_path: Path):
    alone = {name: section for name, section in world.spec.items() if name != "sweep"} | {
        "personas": {
            "roles": {"names": ["poet"], "prompts": 1, "questions": 1},
            "default": {"prompts": 0},
        },
        "interventions": [{"steer": -2, "axis": world.axis.url, "layers": [1]}],
        "store": {"url": str(tmp_path / "alone"), "mantissa_bits": 23},
    }
    found = persona_atlas.run(alone, progress=False).run
    swept = setting_run(world.spec, "steer -2")
    one, same = found.rollouts(), swept.rollouts(persona="poet", question=[0])
    assert one["response_token_ids"] == same["response_token_ids"]
    np.testing.assert_allclose(
        found.activations(layer="all").values,
        swept.activations(layer="all", persona="poet", question=[0]).values,
        rtol=1e-4,
        atol=1e-4,
    )


def answer_to(response: str) -> str:
    """Label a reply by its text, as a judge at temperature 0 does; one in five answers names no label."""
    return (*LABELS, "hard to say")[int(hashlib.sha256(response.encode()).hexdigest(), 16) % 5]


def by_text(body: Body) -> str:
    asked = body["messages"][-1]["content"]
    reply = asked.split("Reply: ", 1)[-1].split("\n\nJudge the reply alone", 1)[0]
    return f"Label: {answer_to(reply).title()}."


def label_of(response: str) -> str | None:
    answer = answer_to(response)
    return answer if answer in LABELS else None


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with serving(ChatServer(answer=by_text)) as running:
        yield running


@pytest.fixture
def copied(world: World, tmp_path: Path) -> Path:
    """The file of the sweep, whose store is a copy."""
    spec = world.spec | {"store": world.spec["store"] | {"url": str(tmp_path / "sweep")}}
    shutil.copytree(world.spec["store"]["url"], tmp_path / "sweep")
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(spec))
    return tmp_path / "sweep.yaml"


def test_labels_are_counted_kept_and_drawn(
    world: World, copied: Path, server: ChatServer, answered: Answered, tmp_path: Path
):
    judge = ("--endpoint", server.url, "--model", server.model)
    done = answered("sweep", copied, *judge, "--by", "persona", "--png", tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert (done["units_worked"], done["units_done"], done["judging"]["left"]) == (0, 6, 0)
    points = {(point["setting"], point["group"]): point for point in done["points"]}
    assert list(points) == [(name, group) for name in NAMES for group in ("all", "role pirate", "role poet")]
    for name in NAMES:
        replies = [reply for reply in world.replies(name) if reply["has_vector"]]
        labels = [label_of(reply["response"]) for reply in replies]
        point, counts = points[name, "all"], Counter(labels)
        assert {label: point["rates"][label]["count"] for label in LABELS} == {one: counts[one] for one in LABELS}
        assert (point["labelled"], point["unlabelled"]) == (len(labels) - counts[None], counts[None])
        assert point["waiting"] == 0
        low, high = wilson_interval(counts["human"], point["labelled"])
        assert (point["rates"]["human"]["low"], point["rates"]["human"]["high"]) == (low, high)
        values = setting_run(world.spec, name).activations(layer=1).values @ open_axis(world.axis.url).unit_D(1)
        assert point["projection"] == pytest.approx(float(values.mean()), rel=1e-5)
    assert done["layer"] == 1
    # Nothing is asked again, and the labels are found without naming the judge.
    asked = len(server.bodies)
    again = answered("sweep", copied, *judge)
    assert again["judging"]["judged_before"] == done["judging"]["rollouts"]
    assert sum("Reply: " in body["messages"][-1]["content"] for body in server.bodies[asked:]) == 0
    assert answered("sweep", copied)["points"] == again["points"]
    shown = CliRunner().invoke(cli, ["sweep", str(copied)], env={"COLUMNS": "220"})
    assert "Labels of role_adoption, judge tiny" in shown.output
    assert "Projection: mean at layer 1" in shown.output


def test_a_stopped_judging_goes_on_where_it_was(copied: Path, answered: Answered):
    with serving(ChatServer(answer=by_text)) as server:
        judge = ("--endpoint", server.url, "--model", server.model, "--concurrency", "1", "--judge", "one")
        price = ("--price-in", "1000", "--price-out", "0", "--max-spend", "1.5")
        part = answered("sweep", copied, *judge, *price, status=1)["judging"]
        assert part["stopped"] == "spend_limit"
        assert 0 < part["scored"] + sum(part["unscored"].values()) < part["rollouts"]
        rest = answered("sweep", copied, *judge)["judging"]
    assert rest["judged_before"] == part["scored"] + sum(part["unscored"].values())
    assert rest["left"] == 0


def test_a_judge_by_another_text_of_the_rubric_is_refused(
    copied: Path, server: ChatServer, answered: Answered, refused: Refused, tmp_path: Path
):
    own = tmp_path / "mood.yaml"
    own.write_text("labels: {glad: it is glad, sad: it is sad}\nprompt: '{labels} Reply: {answer}'\n")
    server.answer = lambda _body: "glad"
    judge = ("--endpoint", server.url, "--model", server.model)
    done = answered("sweep", copied, *judge, "--rubric", own)
    assert (done["rubric"], done["points"][0]["rates"]["glad"]["rate"]) == ("mood", 1.0)
    own.write_text("labels: {glad: it is glad, sad: it is low}\nprompt: '{labels} Reply: {answer}'\n")
    error = refused("sweep", copied, *judge, "--rubric", own)
    assert (error["code"], error["field"]) == ("other_rubric", "--judge")


@pytest.mark.parametrize(
    ("settings", "code", "field"),
    [
        ("[]", "bad_value", "sweep.settings"),
        ("[0, 11]", "beyond_norm", "sweep.settings.1.interventions.0.steer"),
        (
            "[0.5, {name: again, interventions: [{steer: 0.5}]}]",
            "equal_settings",
            "sweep.settings.1",
        ),
        ("[p0.33]", "no_such_percentile", "sweep.settings.0.interventions.0.cap"),
        ("[{steer: 0.1, layers: [7]}]", "no_such_layer", "sweep.settings.0.interventions.0.layers"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_written(
    world: World, tmp_path: Path, refused: Refused, settings: str, code: str, field: str
):
    store = tmp_path / "new"
    error = refused("sweep", world.file, "--set", f"store.url={store}", "--set", f"sweep.settings={settings}")
    assert (error["code"], error["field"]) == (code, field)
    assert not store.exists()


def test_a_picture_of_no_known_format_is_refused_before_anything_is_written(
    world: World, tmp_path: Path, refused: Refused
):
    store = tmp_path / "new"
    error = refused("sweep", world.file, "--set", f"store.url={store}", "--png", tmp_path / "rates.doc")
    assert (error["code"], error["field"]) == ("bad_format", "--png")
    assert not store.exists()


def test_a_folder_or_a_setting_of_something_else_is_refused(world: World, copied: Path, refused: Refused):
    error = refused("sweep", world.file, "--set", f"store.url={world.axis.url}")
    assert (error["code"], error["field"]) == ("other_store", "store.url")
    other = "[{name: plain, interventions: [{steer: 0.5}]}]"
    error = refused("sweep", copied, "--set", f"sweep.settings={other}")
    assert (error["code"], error["field"]) == ("other_run", "sweep.settings.0.interventions")
    error = refused("sweep", copied, "--judge", "nobody")
    assert (error["code"], error["field"]) == ("no_such_judge", "--judge")
    assert refused("sweep", copied, "--rubric", "harms")["code"] == "no_such_rubric"
    assert refused("sweep", copied, "--layer", "9")["field"] == "--layer"
    new = ("--set", f"store.url={copied.parent / 'new'}")
    assert refused("sweep", copied, *new, "--layer", "9")["field"] == "--layer"
    assert refused("sweep", copied, *new, "--judge", "nobody")["code"] == "no_such_judge"
    assert not (copied.parent / "new").exists(), "what matters at the end is refused at the beginning"
    assert refused("run", copied)["code"] == "is_a_sweep"


def test_a_dry_run_says_what_each_setting_does_and_writes_nothing(world: World, tmp_path: Path, answered: Answered):
    planned = answered("sweep", world.file, "--set", f"store.url={tmp_path / 'new'}", "--dry-run")["settings"]
    assert [(one["name"], one["replies"], one["units_missing"]) for one in planned] == [(name, 6, 2) for name in NAMES]
    assert planned[1]["edits"] == []
    (line,) = planned[0]["edits"]
    assert line.startswith(f"steer by -2.0 of the norm along the axis of {world.axis.url}, layer 1, all tokens")
    assert not (tmp_path / "new").exists()


def test_a_setting_that_is_added_leaves_the_others_alone(copied: Path):
    spec = yaml.safe_load(copied.read_text())
    before = commits(copied.parent)
    spec["sweep"]["settings"] = [1, -2]
    prepared, outcome = work(spec, StoppedAt())
    assert (prepared.num_units, outcome.worked, outcome.planned) == (4, 2, 4)
    after = commits(copied.parent)
    assert before.items() <= after.items()
    record = json.loads((copied.parent / "sweep" / "sweep.json").read_text())
    assert [one["name"] for one in record["settings"]] == ["steer +1", "steer -2", "plain", "cap p0.25"]
