"""Reductions of given conversations: personas have the names of files, and some belong to no persona."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from persona_atlas.analysis.reduce import reduce_run
from persona_atlas.jobs.conversation import Conversation, Message
from persona_atlas.jobs.personas import Kind
from persona_atlas.jobs.sources.conversation_source import ConversationSource
from persona_atlas.jobs.specs.spec import JobSpec
from persona_atlas.storage.query.run import open_run

from plain_driver import work_here

LONG = "海" * 80
PERSONAS: list[tuple[Kind, str]] = [
    ("default", "assistant_default"),
    ("role", LONG),
    ("role", f"{LONG[:-1]}山"),
    ("role", "a poet/2"),
    ("conversation", "talks"),
]


def test_any_file_name_may_be_a_persona_and_other_conversations_set_no_threshold(tmp_path: Path):
    talks = [
        Conversation(
            kind, name, "pos", 0, question, 0, 3 * place + question, "",
            (Message("user", "Who?"), Message("assistant", f"{name} {question}")), "{}", f"{name}, {question}",
        )
        for place, (kind, name) in enumerate(PERSONAS)
        for question in range(3)
    ]  # fmt: skip
    data = {"model": {"source": "none"}, "conversations": {"source": "talks"}, "store": {"url": str(tmp_path)}}
    work_here(JobSpec.model_validate(data), source=ConversationSource(tuple(talks)))
    run = open_run(tmp_path)
    found = reduce_run(run, percentiles=[50])
    assert found.role_names == tuple(sorted(name for kind, name in PERSONAS if kind == "role"))
    assert found.role_vectors is not None
    assert found.projections is not None
    assert found.floor_on_axis is not None
    for name, vector_LD in zip(found.role_names, found.role_vectors, strict=True):
        mean_LD = run.activations(persona=name, layer="all").values.mean(axis=0)
        np.testing.assert_allclose(vector_LD, mean_LD, rtol=1e-5, atol=1e-5)
    is_persona = np.array([kind != "conversation" for kind in run.index["kind"].to_pylist()])
    assert (len(found.projections), is_persona.sum()) == (15, 12)
    np.testing.assert_allclose(found.floor_on_axis[0], np.median(found.projections[is_persona], axis=0), rtol=1e-5)
