"""Which engine a job gets where some machines have vLLM, and what people are told."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from persona_atlas.cluster.pool.placement import Placement
from persona_atlas.cluster.pool.vllm_nodes import VllmNodes, vllm_problem
from persona_atlas.cluster.run.engine_choice import engine_for, require_engine
from persona_atlas.cluster.run.progress import Progress
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.plan import Plan
from persona_atlas.workers.vllm import versions
from rich.console import Console

from fakes import small_plan, small_spec

ON_CPU, ON_GPU = Placement(1, "cpu", 2, 0), Placement(1, "cuda", 4, 1)
LACKS = InputError("is vllm, and vLLM is not installed here.", code="no_vllm", field="placement.engine", hint="Get it.")
ALL, NONE, SOME = ({"a": None, "b": None}, {"a": LACKS, "b": LACKS}, {"a": None, "b": LACKS})


def plan_of(**placement: Any) -> Plan:
    plan = small_plan(small_spec("unused", placement=placement))
    return replace(plan, facts=replace(plan.facts, architectures=("LlamaForCausalLM",)))


def chosen(placement: Placement, nodes: Mapping[str, InputError | None], **asked: Any) -> tuple[str, str]:
    said = io.StringIO()
    engine = engine_for(plan_of(**asked), placement, lambda: VllmNodes(nodes), Progress(Console(file=said, width=400)))
    return engine, said.getvalue()


@pytest.mark.parametrize(
    ("asked", "placement", "nodes", "engine"),
    [
        ({}, ON_GPU, ALL, "vllm"),
        ({}, ON_GPU, NONE, "builtin"),
        # Replicas of one start have one engine, and the built-in one runs on all of these nodes.
        ({}, ON_GPU, SOME, "builtin"),
        ({}, ON_CPU, ALL, "builtin"),
        ({"engine": "vllm"}, ON_CPU, ALL, "vllm"),
        ({"engine": "vllm"}, ON_GPU, SOME, "vllm"),
        ({"engine": "builtin"}, ON_GPU, ALL, "builtin"),
        # Several GPUs a replica take vLLM, so it runs on the nodes that have it.
        ({"tensor_parallel": 2}, replace(ON_GPU, num_gpus=2), SOME, "vllm"),
        # No node has joined yet: it is not known, and each worker looks for itself.
        ({"engine": "vllm"}, ON_GPU, {}, "vllm"),
        ({}, ON_GPU, {}, "builtin"),
    ],
)
def test_the_engine_by_what_is_asked_for_and_what_the_nodes_have(
    asked: dict[str, Any], placement: Placement, nodes: Mapping[str, InputError | None], engine: str
):
    assert chosen(placement, nodes, **asked)[0] == engine


def test_the_nodes_are_not_asked_where_it_does_not_matter():
    def ask() -> VllmNodes:
        raise AssertionError("asked")

    for asked, placement in (({}, ON_CPU), ({"engine": "builtin"}, ON_GPU)):
        assert engine_for(plan_of(**asked), placement, ask, Progress(Console(file=io.StringIO()))) == "builtin"


def test_nodes_that_lack_vllm_are_named():
    assert "1 node of 2 cannot run vLLM, no replica runs there. b: is vllm" in chosen(ON_GPU, SOME, engine="vllm")[1]
    assert "so all replicas use the built-in engine" in chosen(ON_GPU, SOME)[1]
    assert "cannot run vLLM" not in chosen(ON_GPU, ALL)[1]


def test_a_choice_of_vllm_by_auto_is_told_with_the_way_to_the_built_in_engine():
    assert "built-in engine does with --set placement.engine=builtin." in chosen(ON_GPU, ALL)[1]
    assert not chosen(ON_GPU, ALL, engine="vllm")[1]
    assert not chosen(ON_GPU, NONE)[1].count("vLLM runs")
    # The built-in engine has one GPU a replica.
    assert not chosen(replace(ON_GPU, num_gpus=2), ALL, tensor_parallel=2)[1]


def test_where_no_node_has_it_the_job_is_refused_with_every_node_and_the_fix():
    with pytest.raises(InputError) as caught:
        chosen(ON_GPU, NONE, engine="vllm")
    assert (caught.value.code, caught.value.field, caught.value.hint) == ("no_vllm", "placement.engine", "Get it.")
    assert "a: " in caught.value.message
    assert "b: " in caught.value.message


def test_an_unknown_version_is_told_as_such(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(versions, "installed_version", lambda: "0.1.0")
    problem = vllm_problem("cpu")
    assert problem is not None
    with pytest.raises(InputError) as caught:
        chosen(ON_CPU, {"this machine": problem}, engine="vllm")
    assert caught.value.code == "unknown_vllm"
    assert versions.KNOWN_VERSIONS[0] in str(caught.value.hint)


def test_what_no_engine_runs_is_refused_wherever_it_would_run():
    require_engine(plan_of(tensor_parallel=2))
    plan = plan_of(tensor_parallel=2)
    with pytest.raises(InputError, match="one device a replica"):
        require_engine(replace(plan, facts=replace(plan.facts, architectures=("GPT2LMHeadModel",))))
