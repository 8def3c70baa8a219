"""A reduction whose work is done by tasks of a real Ray equals that of threads; an error of a task is the reader's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from persona_atlas.analysis.reduce import reduce_run
from persona_atlas.analysis.reduction.mapping import map_in_threads
from persona_atlas.cluster.pool.ray_map import map_in_ray_tasks, mapper_here
from persona_atlas.jobs.errors import StoreError
from persona_atlas.storage.derived.reduction import ARRAYS
from persona_atlas.storage.query.run import open_run

from stored_runs import small_run

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.mark.usefixtures("shared_ray")
def test_tasks_of_a_cluster_give_what_threads_do(tmp_path: Path):
    expected = reduce_run(small_run(str(tmp_path / "here")))
    run = small_run(str(tmp_path / "there"))
    found = reduce_run(run, mapper=map_in_ray_tasks)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    # One node: its threads use the same cores.
    assert mapper_here() is map_in_threads
    for shard in (tmp_path / "there" / "activations").rglob("c/1/0/0"):
        shard.write_bytes(shard.read_bytes()[:100])
    for folder in ("sums", "projections", "analysis"):
        run.location.delete(run.location.sizes(folder))
    with pytest.raises(StoreError, match="this shard cannot be read"):
        reduce_run(open_run(run.url), mapper=map_in_ray_tasks)
