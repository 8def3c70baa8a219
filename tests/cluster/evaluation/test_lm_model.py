"""The model for lm-evaluation-harness: without edits the harness's own, with edits what ``intervene`` computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from persona_atlas import intervene, open_axis
from persona_atlas.cluster.cli import main
from persona_atlas.cluster.evaluation.lm_model import lm_class
from persona_atlas.cluster.evaluation.made_with import model_info
from persona_atlas.jobs.errors import InputError
from persona_atlas.storage.query.run import Run
from persona_atlas.workers.models.model_files import read_facts

from tiny_axes import tiny_run

pytest.importorskip("lm_eval")
pytestmark = [
    pytest.mark.lm_eval,
    # Of the harness and of the libraries that it loads; none is about what is tested.
    pytest.mark.filterwarnings("ignore"),
]

TASKS = Path(__file__).parents[3] / "examples" / "tasks"
PAIRS = [("Who are you?", " A pirate"), ("Who are you?", " I am a poet, and"), ("The sea", " is wide."), ("Go", "!")]
CAP: dict[str, Any] = {"cap": "p0.25", "layers": "0:2"}


@pytest.fixture(scope="module")
def axis(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return tiny_run(tmp_path_factory.mktemp("axis"))


def model(axis: Run, **arguments: Any) -> Any:
    return lm_class()(store=axis.url, **arguments)


def asked(kind: str, *arguments: tuple[Any, ...]) -> list[Any]:
    from lm_eval.api.instance import Instance  # pyright: ignore[reportMissingImports]

    return [Instance(kind, {}, given, number) for number, given in enumerate(arguments)]


def answers(lm: Any) -> tuple[list[Any], list[Any], list[Any]]:
    settings = {"until": ["\n\n"], "do_sample": False, "max_gen_toks": 6}
    return (
        lm.generate_until(asked("generate_until", *[(context, settings) for context, _ in PAIRS]), disable_tqdm=True),
        lm.loglikelihood(asked("loglikelihood", *PAIRS), disable_tqdm=True),
        lm.loglikelihood_rolling(asked("loglikelihood_rolling", *[(end,) for _, end in PAIRS]), disable_tqdm=True),
    )


def test_without_edits_it_is_the_model_of_the_harness(axis: Run):
    from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]

    ours = answers(model(axis, batch_size=3))
    theirs = answers(HFLM(pretrained=axis.model_name, device="cpu", batch_size=3))
    assert ours[0] == theirs[0]
    for found, expected in zip([*ours[1], ours[2]], [*theirs[1], theirs[2]], strict=True):
        assert found == pytest.approx(expected, rel=1e-5)
    assert answers(model(axis, batch_size=3, **CAP))[0] != ours[0]


def scored_alone(lm: Any, context: str, continuation: str, prompt_length: int | None) -> float:
    """Sum the log probabilities of a continuation from one plain pass of the whole text."""
    before, after = lm.tok_encode(context), lm.tok_encode(context + continuation)
    ids = torch.tensor([after])
    with torch.no_grad(), intervene(lm.model, lm.edits, prompt_length=prompt_length):
        log_probabilities_TV = torch.log_softmax(lm.model(ids).logits[0, :-1].double(), dim=-1)
    chosen_T = log_probabilities_TV.gather(1, ids[0, 1:, None])[:, 0]
    return float(chosen_T[len(before) - 1 :].sum())


@pytest.mark.parametrize("positions", ["all", "response"])
def test_log_likelihoods_are_those_of_plain_passes_under_the_edits(axis: Run, positions: str):
    lm = model(axis, batch_size=4, positions=positions, **CAP)
    found = lm.loglikelihood(asked("loglikelihood", *PAIRS), disable_tqdm=True)
    plain = model(axis).loglikelihood(asked("loglikelihood", *PAIRS), disable_tqdm=True)
    for (context, continuation), (total, _) in zip(PAIRS, found, strict=True):
        start = None if positions == "all" else len(lm.tok_encode(context))
        assert total == pytest.approx(scored_alone(lm, context, continuation, start), rel=1e-4)
    # The first token of a response comes from the prompt, which is not edited: only longer ones can differ.
    longer = [number for number, (_, continuation) in enumerate(PAIRS) if len(lm.tok_encode(continuation)) > 1]
    assert all(abs(found[number][0] - plain[number][0]) > 1e-4 for number in longer)
    if positions == "response":
        assert found[3][0] == pytest.approx(plain[3][0], rel=1e-5)


@pytest.mark.parametrize("positions", ["all", "response"])
def test_what_is_generated_is_that_of_generate_under_the_edits(axis: Run, positions: str):
    lm = model(axis, batch_size=4, positions=positions, **CAP)
    found = answers(lm)[0]
    for (context, _), reply in zip(PAIRS, found, strict=True):
        inputs = lm.tokenizer(context, return_tensors="pt")
        length = inputs["input_ids"].shape[1]
        with intervene(lm.model, lm.edits, prompt_length=length):
            ids = lm.model.generate(**inputs, max_new_tokens=6, do_sample=False)
        assert lm.tok_decode(ids[0, length:].tolist()).split("\n\n")[0] == reply


def test_the_floors_are_those_of_the_axis(axis: Run):
    lm = model(axis, **CAP)
    source = open_axis(axis.url)
    assert [(edit.layer, edit.floor) for edit in lm.edits.edits] == [
        (layer, source.floor(layer, "p0.25")) for layer in (0, 1)
    ]
    assert model(axis, steer=-0.3, layers=1).edits.edits[0].layer == 1
    assert lm.apply_chat_template([{"role": "user", "content": "Hi"}]).startswith("<|start|>user\nHi")
    assert lm.tokenizer_name


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"layer": "0:2"}, "layer"),
        ({"caps": "p0.25"}, "caps"),
        ({"pretrained": "gpt2"}, "pretrained"),
        ({"layers": "0:2"}, "layers"),
        ({"cap": "p0.33"}, "cap"),
        ({"dtype": "float13"}, "dtype"),
        ({"max_length": "x"}, "max_length"),
        ({"batch_size": 0}, "batch_size"),
        ({"truncation": "yes"}, "truncation"),
        ({"softmax_dtype": "float13"}, "softmax_dtype"),
    ],
)
def test_an_argument_that_would_leave_the_model_as_it_is_is_refused(axis: Run, arguments: dict[str, Any], field: str):
    with pytest.raises(InputError) as refused:
        model(axis, **arguments)
    assert refused.value.field == field
    with pytest.raises(InputError, match="names the axis"):
        lm_class()(cap="p0.25")


def test_the_command_evaluates_tasks_of_every_form(axis: Run, tmp_path: Path):
    names = ["arithmetic", "choices", "letters", "instructions", "feelings", "perplexity"]
    options = {
        "--model_args": f"store={axis.url},cap=p0.25,layers=0:2,batch_size=2,device=cpu",
        "--tasks": ",".join(f"tiny_{name}" for name in names),
        "--include_path": str(TASKS),
        "--limit": "2",
        "--output_path": str(tmp_path),
    }
    given = [part for option in options.items() for part in option]
    with pytest.raises(SystemExit) as ended:
        main(["lm-eval", *given, "--apply_chat_template", "--log_samples"])
    assert ended.value.code == 0
    (file,) = tmp_path.rglob("results_*.json")
    results = json.loads(file.read_text())
    assert set(results["results"]) == {f"tiny_{name}" for name in names}
    made = model_info(read_facts(Path(axis.model_name)).fingerprint, model(axis, **CAP).edits)
    assert results["config"].items() >= made.items()
    assert results["config"]["model_args"]["cap"] == "p0.25"
    assert len(list(tmp_path.rglob("samples_*.jsonl"))) == 6


def evaluate(axis: Run, arguments: str, *options: str, tasks: str = "tiny_choices") -> object:
    """Run the command on a question; return its exit status."""
    given = ["--model_args", f"store={axis.url}{arguments}", "--tasks", tasks, "--include_path", str(TASKS)]
    with pytest.raises(SystemExit) as ended:
        main(["lm-eval", *given, "--limit", "1", *options])
    return ended.value.code


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ("", ["--tasks", "tiny_nothing"], "no such tasks: tiny_nothing"),
        (",max_length=x", [], "max_length: is 'x', which is not a whole number"),
        (",batch_size=2", ["--batch_size", "4"], "batch_size: is 2 in --model_args and 4 in --batch_size"),
        ("", ["--log_samples"], "output_path"),
        ("", ["--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_arguments_that_are_wrong_are_said_to_be(
    axis: Run, capsys: pytest.CaptureFixture[str], arguments: str, options: list[str], message: str
):
    assert evaluate(axis, arguments, *options) == 2
    assert message in capsys.readouterr().err


def test_a_cache_of_answers_is_of_one_model_under_one_setting(axis: Run, tmp_path: Path):
    from lm_eval.api.model import CachingLM  # pyright: ignore[reportMissingImports]

    asking = ([("Who are you?", {"until": ["\n"], "do_sample": False, "max_gen_toks": 4})],)
    cache = str(tmp_path / "answers.db")
    for _ in range(2):
        CachingLM(model(axis), cache).generate_until(asked("generate_until", *asking[0]))
    with pytest.raises(InputError, match="under other edits") as refused:
        CachingLM(model(axis, **CAP), cache)
    assert refused.value.field == "use_cache"
