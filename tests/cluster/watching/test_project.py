"""``project`` and ``Monitor`` on a real run of a tiny model, against plain forward passes; every refusal by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from persona_atlas import Monitor, open_axis
from persona_atlas.analysis.watching.scores import ScoredTurn
from persona_atlas.cluster.cli import main
from persona_atlas.jobs.errors import InputError
from persona_atlas.storage.query.run import Run

from command_line import Answered, Refused
from stored_runs import small_run
from tiny_axes import save_tiny_axis, tiny_run
from tiny_models import save_tiny_llama

TALK = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "An assistant."},
    {"role": "user", "content": "And at night?"},
    {"role": "assistant", "content": "The tide, the tide."},
    {"role": "user", "content": "Good."},
    {"role": "assistant", "content": "Yes."},
]
OTHER = [{"role": "user", "content": "One and one?"}, {"role": "assistant", "content": "Two, I think."}]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return tiny_run(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same architecture with other weights, as a fine-tune has."""
    directory = save_tiny_llama(tmp_path_factory.mktemp("other") / "fine-tune")
    from safetensors.torch import load_file, save_file

    weights = load_file(directory / "model.safetensors")
    save_file(
        {name: 1.1 * values for name, values in weights.items()}, directory / "model.safetensors", {"format": "pt"}
    )
    return directory


@pytest.fixture
def talks(tmp_path: Path) -> Path:
    path = tmp_path / "talks.jsonl"
    lines = [{"title": "tide", "messages": TALK}, {"messages": OTHER}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def plain(run: Run, layer: int, role: str = "assistant") -> list[np.ndarray]:
    """The activations of every token of each turn of TALK, from a pass of transformers with a hook of its own."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = run.model_name
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    seen: list[torch.Tensor] = []
    model.model.layers[layer].register_forward_hook(lambda _module, _args, output: seen.append(output.detach()))
    text, spans = "", []
    for message in TALK:
        text += f"<|start|>{message['role']}\n"
        start = len(tokenizer(text)["input_ids"])
        text += message["content"]
        if message["role"] == role:
            spans.append((start, len(tokenizer(text)["input_ids"])))
        text += "<|end|>\n"
    with torch.no_grad():
        model(input_ids=torch.tensor([tokenizer(text)["input_ids"]]))
    states_TD = seen[0].reshape(-1, seen[0].shape[-1]).numpy().astype(np.float64)
    return [states_TD[start:stop] for start, stop in spans]


def test_turns_are_where_plain_passes_put_them(answered: Answered, run: Run, talks: Path):
    found = answered("project", run.url, "--conversations", talks, "--layer", "2,1", "--tokens")
    assert (found["layer"], found["layers"], found["transfer"], found["threshold"]) == (2, [2, 1], None, "p0.25")
    assert [one["name"] for one in found["conversations"]] == ["tide", "talks.jsonl, line 2"]
    turns = found["conversations"][0]["turns"]
    assert [(turn["turn_index"], turn["role"]) for turn in turns] == [(n, "assistant") for n in (1, 3, 5)]
    reduction = run.reduction
    assert reduction is not None
    assert reduction.projections is not None
    assert reduction.floor_on_axis is not None
    for place, layer in enumerate((2, 1)):
        axis_D = reduction.axis_at(layer).astype(np.float64)
        axis_D /= np.linalg.norm(axis_D)
        own_N = reduction.projections[:, layer].astype(np.float64)
        floor = float(reduction.floor_on_axis[reduction.threshold_labels.index("p0.25"), layer])
        expected = [(tokens_TD @ axis_D, (tokens_TD @ axis_D).mean()) for tokens_TD in plain(run, layer)]
        for turn, (tokens_T, projection) in zip(turns, expected, strict=True):
            at = turn["at_layers"][place]
            assert at["projection"] == pytest.approx(projection, rel=1e-4)
            assert at["centred"] == pytest.approx(projection - own_N.mean(), rel=1e-3)
            assert at["z_score"] == pytest.approx((projection - own_N.mean()) / own_N.std(ddof=1), rel=1e-3)
            assert at["percentile"] == pytest.approx(100 * (own_N < projection).mean())
            assert at["below_threshold"] == (projection < floor)
            assert [one["projection"] for one in at["tokens"]] == pytest.approx(tokens_T.tolist(), rel=1e-3, abs=1e-4)
            assert turn["num_tokens"] == len(tokens_T)
        deltas = [turn["at_layers"][place]["delta"] for turn in turns]
        assert deltas[0] is None
        assert deltas[1:] == pytest.approx(np.diff([value for _, value in expected]).tolist(), rel=1e-3, abs=1e-5)
    assert "".join(token["text"] for token in turns[1]["tokens"]) == "The tide, the tide."


def test_turns_of_users_are_projected_on_request(answered: Answered, run: Run, talks: Path):
    found = answered("project", run.url, "--conversations", talks, "--role", "user", "--role", "assistant")
    turns = found["conversations"][0]["turns"]
    assert [turn["turn_index"] for turn in turns] == [0, 1, 2, 3, 4, 5]
    axis_D = open_axis(run).unit_D(1)
    users = [turn["projection"] for turn in turns if turn["role"] == "user"]
    assert users == pytest.approx([(tokens_TD @ axis_D).mean() for tokens_TD in plain(run, 1, "user")], rel=1e-4)
    assert turns[2]["delta"] == pytest.approx(users[1] - users[0]), "from one turn of the user to the next"


def test_a_message_without_content_is_a_row_without_numbers(answered: Answered, run: Run, tmp_path: Path):
    path = tmp_path / "talk.json"
    messages = [*OTHER, {"role": "user", "content": "?"}, {"role": "assistant", "content": ""}]
    path.write_text(json.dumps({"title": "half a \ud83d", "messages": messages}))
    # A title that JSON can express and no file can hold.
    page = tmp_path / "page.html"
    (talk,) = answered("project", run.url, "--conversations", path, "--html", page)["conversations"]
    assert talk["name"] == "half a ?"
    assert talk["name"] in page.read_text(encoding="utf-8")
    turns = talk["turns"]
    assert [(turn["turn_index"], turn["num_tokens"], turn["projection"]) for turn in turns[1:]] == [(3, 0, None)]
    assert turns[0]["projection"] is not None


def test_an_agents_transcript_goes_through_the_templates_own_branches(
    answered: Answered, refused: Refused, run: Run, tmp_path: Path
):
    template = tmp_path / "agent.jinja"
    template.write_text(
        "{% if tools %}<|start|>tools\n{{ tools | tojson }}<|end|>\n{% endif %}{% for m in messages %}<|start|>"
        "{{ 'result' if m.role == 'tool' else m.role }}\n"
        "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
        "{{ m.content or '' }}"
        "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }}</call>{% endfor %}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
    )
    call = {"id": "c1", "type": "function", "function": {"name": "tide", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "When is high tide?"},
        {"role": "assistant", "content": None, "reasoning_content": "I look it up.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "at six"},
        {"role": "system", "content": "Be brief."},
        {"role": "assistant", "content": "Six."},
    ]
    path = tmp_path / "agent.json"
    path.write_text(json.dumps({"messages": messages, "tools": [{"type": "function", "function": {"name": "tide"}}]}))
    asked = ("project", run.url, "--conversations", path, "--tokens", "--span")
    # The template of the model has no branch for tools.
    assert refused(*asked, "content")["code"] == "not_rendered"
    said: dict[str, list[str]] = {}
    for span in ("content", "reasoning", "all"):
        found = answered(*asked, span, "--chat-template", template)
        turns = found["conversations"][0]["turns"]
        assert [turn["turn_index"] for turn in turns] == [1, 3]
        said[span] = ["".join(token["text"] for token in turn.get("tokens", [])) for turn in turns]
        assert [turn["projection"] is None for turn in turns] == [not text for text in said[span]]
        assert found["notes"] == [f"Rendered with the chat template {template}."]
    assert said == {
        "content": ["", "Six."],
        "reasoning": ["I look it up.", ""],
        "all": ["I look it up.</think><call>tide</call>", "Six."],
    }


def test_another_model_is_refused_and_a_transfer_is_said_on_every_output(
    answered: Answered, refused: Refused, run: Run, other_model: Path, talks: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    asked = ("project", run.url, "--conversations", talks, "--model", other_model)
    error = refused(*asked)
    assert (error["code"], error["field"]) == ("other_model", "--model")
    drawn, page = tmp_path / "talks.svg", tmp_path / "talks.html"
    found = answered(*asked, "--transfer", "--png", drawn, "--html", page)
    said = f"Transferred: the axis is of {run.model_name}, and the projections are of {other_model}."
    assert found["transfer"] == said
    with pytest.raises(SystemExit) as ended:
        main([*map(str, asked), "--transfer"])
    assert ended.value.code == 0
    for output in (capsys.readouterr().out, drawn.read_text(), page.read_text()):
        assert said.split(",")[0] in output
    # Where the axis's own model has moved to is no transfer.
    assert answered(*asked[:4], "--model", run.model_name)["transfer"] is None


def test_what_is_printed_has_a_sparkline_and_the_texts(
    run: Run, talks: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    # A narrow terminal has no room for texts.
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit):
        main(["project", run.url, "--conversations", str(talks), "--layer", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "tide, layer 1 (higher is nearer the Assistant)"
    assert len(set(lines[1].split()[0]) & set("▁▂▃▄▅▆▇█")) >= 2
    assert "floor p0.25" in lines[1]
    assert lines[2].split()[:4] == ["turn", "tokens", "projection", "change"]
    assert [line.split()[0] for line in lines[3:6]] == ["1", "3", "5"]
    assert lines[4].rstrip("…").split()[-1] in "The tide, the tide."


def test_bad_input_is_named(refused: Refused, run: Run, talks: Path, tmp_path: Path):
    asked = ("project", run.url, "--conversations", talks)
    for option in ("--layer", "--layers"):
        error = refused(*asked, option, "1:9")
        assert (error["code"], error["field"]) == ("no_such_layer", option)
    assert refused(*asked, "--layers=1:9")["field"] == "--layers"
    error = refused(*asked, "--threshold", "p0.9")
    assert (error["code"], "p0.01, p0.25, p0.5, p0.75" in error["hint"]) == ("no_such_percentile", True)
    assert refused("project", tmp_path / "away", "--conversations", talks)["code"] == "no_vectors"
    bare = small_run(str(tmp_path / "not-reduced"))
    assert refused("project", bare.url, "--conversations", talks)["code"] == "not_reduced"
    lonely = tmp_path / "lonely.json"
    lonely.write_text(json.dumps([TALK[1]]))
    error = refused(*asked[:3], lonely)
    assert "has no message of the assistant" in error["error"]
    long = tmp_path / "long.json"
    long.write_text(json.dumps([TALK[1], {"role": "assistant", "content": "tide " * 500}]))
    assert refused(*asked[:3], long)["code"] == "too_long"
    assert refused(*asked, "--span", "reasoning")["code"] == "nothing_to_read"
    assert refused(*asked, "--png", tmp_path / "away" / "x.png")["field"] == "--png"
    assert refused(*asked, "--png", tmp_path / "x.doc")["code"] == "bad_format"
    narrow = save_tiny_llama(tmp_path / "narrow")
    config = json.loads((narrow / "config.json").read_text())
    (narrow / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    assert refused(*asked, "--model", narrow, "--transfer")["code"] == "other_width"
    published = save_tiny_axis(tmp_path / "published")
    assert refused("project", published, "--conversations", talks)["code"] == "no_model_name"


def test_published_vectors_are_compared_with_roles(answered: Answered, run: Run, talks: Path, tmp_path: Path):
    published = save_tiny_axis(tmp_path / "published")
    found = answered("project", published, "--model", run.model_name, "--conversations", talks)
    assert (found["scales"][0]["compared_with"], found["scales"][0]["count"]) == ("role vectors", 2)
    assert any("Compared with role vectors" in note for note in found["notes"])
    assert (found["threshold"], found["conversations"][0]["turns"][0]["below_threshold"]) == (None, None)


def same(got: tuple[ScoredTurn, ...], expected: list[dict[str, Any]]) -> None:
    for turn, other in zip(got, expected, strict=True):
        made = turn.as_dict()
        assert made.keys() == other.keys()
        for name, value in other.items():
            close = pytest.approx(value, rel=1e-4, abs=1e-5) if isinstance(value, float) else value
            assert made[name] == close, name


def test_a_monitor_says_what_project_prints_at_the_cost_of_the_new_tokens(answered: Answered, run: Run, talks: Path):
    printed = [one["turns"] for one in answered("project", run.url, "--conversations", talks)["conversations"]]
    monitor = Monitor(run.url, progress=False)
    lengths = {
        end: sum(len(f"{one['role']}\n{one['content']}\n") + 2 for one in TALK[:end]) - len("\n") - 1
        for end in (3, 5, 7)
    }
    fed = 0
    for number, end in enumerate((3, 5, 7), start=1):
        if end == 5:
            # Another conversation in between changes nothing.
            same(monitor.score(OTHER), printed[1])
            other = monitor.tokens_fed - fed
            fed += other
        same(monitor.score(TALK[:end]), printed[0][:number])
        # A call costs the tokens up to the end of the newest turn that were not there before.
        assert monitor.tokens_fed - fed == lengths[end] - lengths.get(end - 2, 0)
        fed = monitor.tokens_fed
    same(monitor.score(TALK, turns="last"), printed[0][-1:])
    assert monitor.tokens_fed == fed
    changed = [*TALK[:2], {"role": "assistant", "content": "A pirate."}, *TALK[3:]]
    monitor.score(changed)
    assert monitor.tokens_fed - fed == lengths[7] + len("A pirate.") - len("An assistant.")
    with pytest.raises(InputError, match="no message of the assistant"):
        monitor.score(TALK[:2])
    with pytest.raises(InputError, match="holds 2 conversations"):
        monitor.score([{"messages": OTHER}, {"messages": OTHER}])


def test_a_monitor_of_another_model_says_so(run: Run, other_model: Path):
    with pytest.raises(InputError, match="is not the model of the axis"):
        Monitor(run.url, other_model, progress=False)
    assert Monitor(run.url, other_model, transfer=True, progress=False).notes[0].startswith("Transferred")
