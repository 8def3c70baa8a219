"""Store, verify and query by the table of poolings: which rows have numbers where a response is empty."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from persona_atlas.jobs.poolings import POOLINGS
from persona_atlas.jobs.work.units import RolloutRequest
from persona_atlas.storage.locations.location import Location
from persona_atlas.storage.query.run import open_run
from persona_atlas.storage.run.commits import read_commit
from persona_atlas.storage.verification.verify import verify_run
from persona_atlas.workers.engine import CapturedRollout

from fakes import FakeEngine, small_plan, small_spec, vector_of
from stored_runs import store_run

UNIT, OTHER = "role.pirate.pos.p0.b0", "role.poet.pos.p1.b0"
NAMES = ["response_mean", "assistant_start", "user_mean"]


class PromptsHaveNumbers(FakeEngine):
    """An engine that gives an empty response numbers in the poolings that need none of it."""

    def _answer(self, request: RolloutRequest) -> CapturedRollout:
        row = super()._answer(request)
        for array, vector_LD in row.vectors_LD.items():
            if POOLINGS[array[1]].defined_without_response:
                vector_LD[:] = vector_of(request.address, array, len(self.layers), self.d_model)
        return row


def damage(location: Location) -> list[tuple[str, str]]:
    return [(problem.code, problem.path) for problem in verify_run(location).problems if problem.kind == "damage"]


def test_poolings_over_prompt_and_user_are_there_for_empty_responses_and_are_missed_when_gone(tmp_path: Path):
    plan = small_plan(small_spec(capture={"poolings": NAMES}))
    arrays = tuple(("resid_post", name) for name in NAMES)
    empty = frozenset(plan.by_id[UNIT].addresses())
    url = str(tmp_path / "run")
    location = store_run(url, plan, engine=PromptsHaveNumbers(arrays=arrays, empty=empty))
    assert damage(location) == []
    shards = read_commit(location, UNIT).manifest.blocks
    # Of nothing but empty responses the response pooling has no object at all.
    assert [shard.pooling for shard in shards] == ["assistant_start", "user_mean"]
    found = open_run(url).activations(pooling="user_mean", layer=[0, 3], persona="poet", prompt=1)
    for values_LD, address in zip(found.values, plan.by_id[OTHER].addresses(), strict=True):
        np.testing.assert_allclose(values_LD, vector_of(address, arrays[2], 4, 16)[[0, 3]], rtol=2**-10)
    location.delete([shards[1].path])
    assert damage(location) == [("missing_object", shards[1].path)]
