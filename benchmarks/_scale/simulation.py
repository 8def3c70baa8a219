"""A whole job with the real driver and simulated workers, in a process of its own so that its memory can be measured.

The driver is the one that `persona-atlas run` has: lease, ledger, pool, run loop, commits, index and status, on a real
directory whose every request takes a given time.
"""

from __future__ import annotations

import io
import multiprocessing
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from persona_atlas.cluster.run.backend import Backend
from persona_atlas.cluster.run.job import work_job
from persona_atlas.cluster.run.prepare import Job
from persona_atlas.cluster.run.progress import Progress
from persona_atlas.cluster.run.status_reporter import StatusReporter
from persona_atlas.jobs.plan import Plan, make_plan
from persona_atlas.jobs.scheduling.ledger import Ledger
from persona_atlas.jobs.sizing.devices import load_devices
from persona_atlas.jobs.sizing.estimate import estimate
from persona_atlas.jobs.sizing.known_models import known_models
from persona_atlas.jobs.sizing.pricing import price
from persona_atlas.jobs.sources.load import load_source
from persona_atlas.jobs.specs.spec import load_spec
from persona_atlas.storage.format import layout
from persona_atlas.storage.format.records import Manifest
from persona_atlas.storage.locations.location import Location, open_location
from persona_atlas.storage.run.commits import committed_units, read_commits
from rich.console import Console

from _scale.node_losses import SimulatedCluster, draw_losses
from _scale.simulated_clock import Clock
from _scale.simulated_workers import SimulatedExecutor
from _scale.workers_side import CUT, WorkersSide, response_share

SPEC = Path(__file__).parents[2] / "examples" / "llama-3.3-70b.yaml"
_REQUESTS = ("size", "read", "read_range", "write", "create", "names", "sizes")

Seconds = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A job, and what is lost while it runs.

    Attributes:
        name: What is lost, for people.
        workers: Number of replicas.
        slower: Factor by which workers are slower than the table of devices says.
        questions: Questions of each persona; None takes all.
        failures_per_node_hour: Failures of single nodes, for each node and hour.
        bulk_at: Shares of the job's length after which a fifth of the nodes is lost at once.
        away_s: Seconds until a lost node is replaced.
        request_s: Seconds that each request to the store takes in addition; they pass on the wall clock.
        device: Name in the table of devices.
    """

    name: str
    workers: int
    slower: float = 1.0
    questions: int | None = None
    failures_per_node_hour: float = 0.01
    bulk_at: tuple[float, ...] = ()
    away_s: float = 0.0
    request_s: float = 0.0
    device: str = "H100"

    def __str__(self) -> str:
        return f"{self.workers:,} workers, {self.name}"


@dataclass(frozen=True, eq=False)
class Simulated:
    """The outcome of a simulation. Times are simulated seconds since the first worker was ready.

    Attributes:
        units: Number of planned units.
        rows: Rollouts that a batch holds.
        nodes: Number of nodes of the cluster.
        rollout_s: Seconds that the longest response takes.
        length_s: When the last unit was committed.
        assigned_s: When the last unit was assigned that had not been attempted before.
        ready_at: When each replica that ever was became ready.
        gone_at: When each was lost; ``length_s`` for those that were there at the end.
        began: For each replica, when its rollouts began.
        ended: For each replica, when they ended; cut where the replica was lost.
        unit_seconds: For each unit in the plan's order, seconds that each of its rollouts takes.
        units_lost: Units that were in flight on lost nodes.
        nodes_lost: When nodes were lost, and how many at once.
        committed_at: When the run loop settled each commit.
        skipped_s: Part of the length that was skipped.
        stopped_s: Wall-clock time that does not count: the simulation's own work.
        driver_s: Processor time of the driver's process, all threads.
        peak_bytes: Largest memory of the driver's process.
        index_s: Seconds from the last commit until the index was written.
        once: Whether every planned unit has one commit record, each with a row block of its own.
    """

    units: int
    rows: int
    nodes: int
    rollout_s: float
    length_s: float
    assigned_s: float
    ready_at: Seconds
    gone_at: Seconds
    began: list[Seconds]
    ended: list[Seconds]
    committed_at: Seconds
    unit_seconds: list[Seconds]
    units_lost: int
    nodes_lost: list[tuple[float, int]]
    skipped_s: float
    stopped_s: float
    driver_s: float
    peak_bytes: int
    index_s: float
    once: bool


def plan_of(scenario: Scenario) -> Plan:
    """Plan the example's job with the facts of the table of known models."""
    kinds = ("roles", "traits", "default") if scenario.questions is not None else ()
    spec = load_spec(SPEC, [f"personas.{kind}.questions={scenario.questions}" for kind in kinds])
    facts = known_models()[spec.model.source]
    return make_plan(spec, load_source(spec), replace(facts, fingerprint="0" * 64))


def cluster_of(scenario: Scenario, plan: Plan) -> tuple[SimulatedCluster, float]:
    """Lay out the cluster.

    Args:
        scenario: How many replicas, and what is lost.
        plan: The job.

    Returns:
        The cluster, and how many seconds the job would take if nothing were ever lost.
    """
    figures = estimate(plan)
    parallel = plan.spec.placement.tensor_parallel
    device = load_devices().devices[scenario.device]
    priced = price(plan, figures, scenario.device, device, tensor_parallel=parallel)
    reading = 1 + priced.prefill_hours / priced.decode_hours
    rollout_s = priced.step_s * plan.spec.sampling.max_new_tokens * reading * scenario.slower
    mean_share = CUT + (1 - CUT) * 9 / 16
    ideal_s = plan.num_rollouts * rollout_s * mean_share / (scenario.workers * figures.rows_per_batch)
    per_node = device.per_node // parallel
    nodes = -(-scenario.workers // per_node)
    losses = draw_losses(
        nodes,
        2 * ideal_s,
        per_node_hour=scenario.failures_per_node_hour,
        away_s=scenario.away_s,
        bulk_at_s=[share * ideal_s for share in scenario.bulk_at],
        share=0.2,
    )
    # Weights are read with 2 GB/s. Ray's health checks take about 20 s to declare a node dead.
    load_s = figures.weight_bytes / 2e9
    return SimulatedCluster(
        scenario.workers, per_node, figures.rows_per_batch, rollout_s, load_s, 20.0, losses
    ), ideal_s


def simulate(scenario: Scenario) -> Simulated:
    """Run a scenario in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(_simulate, scenario).result()


def _simulate(scenario: Scenario) -> Simulated:
    # A real driver has this module loaded, and its memory counts.
    import_module("persona_atlas.cluster.pool.ray_executor")
    plan = plan_of(scenario)
    cluster, _ = cluster_of(scenario, plan)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder, WorkersSide(Path(folder), len(plan.layers)) as side:
        executor = SimulatedExecutor(cluster, side, clock)
        watch = _Watch(clock)
        location = cast(Location, _Distant(open_location(folder), scenario.request_s, executor.committed))
        job = Job(plan, estimate(plan), Path("none"), location, None, frozenset())
        with StatusReporter() as reporter:
            backend = nullcontext(Backend({}, lambda _: executor))
            work_job(job, watch, reporter, open_backend=lambda *_: backend)
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        length_s = watch.committed_at[-1]
        return Simulated(
            units=len(plan.units),
            rows=cluster.rows,
            nodes=-(-cluster.workers // cluster.per_node),
            rollout_s=cluster.rollout_s,
            length_s=length_s,
            assigned_s=max(at for at, fresh in executor.handed_out if fresh),
            ready_at=np.array([replica.ready_at for replica in executor.replicas]),
            gone_at=np.minimum([replica.gone_at for replica in executor.replicas], length_s),
            began=[np.array(replica.began) for replica in executor.replicas],
            ended=[np.minimum(replica.ended, replica.gone_at) for replica in executor.replicas],
            committed_at=np.array(watch.committed_at),
            unit_seconds=[cluster.rollout_s * share for share in _shares(plan)],
            units_lost=executor.units_lost,
            nodes_lost=[(loss.at_s, len(loss.nodes)) for loss in cluster.losses if loss.at_s < length_s],
            skipped_s=clock.skipped_s,
            stopped_s=clock.stopped_s,
            driver_s=watch.processor_s,
            peak_bytes=peak_bytes,
            index_s=watch.index_s(),
            once=_is_committed_once(folder, plan),
        )


def _shares(plan: Plan) -> list[Seconds]:
    """Give the length of each rollout of each unit, as a share of the longest response."""
    seed = plan.spec.seed
    return [np.array([response_share(address.seed(seed)) for address in unit.addresses()]) for unit in plan.units]


class _Watch(Progress):
    """Records when the run loop settles each commit, and prints nothing."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(Console(file=io.StringIO()))
        self._clock = clock
        self._began_s = 0.0
        self._last = 0.0
        self.processor_s = 0.0
        self.committed_at: list[float] = []

    def units(self, ledger: Ledger, manifest: Manifest | None) -> None:
        """Record a commit."""
        super().units(ledger, manifest)
        if manifest is None:
            self._began_s = time.process_time()
            return
        self.committed_at.append(self._clock.now)
        if ledger.num_done == len(ledger.plan.units):
            self._last = time.perf_counter()
            self.processor_s = time.process_time() - self._began_s

    def index_s(self) -> float:
        """Seconds since the last commit; asked when the index is written."""
        return time.perf_counter() - self._last


class _Distant:
    """A directory whose requests take time; calls back when a commit record is written."""

    def __init__(self, near: Location, seconds: float, committed: Callable[[], None]) -> None:
        self._near = near
        self._seconds = seconds
        self._committed = committed

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._near, name)
        if name not in _REQUESTS:
            return found

        def ask(*args: Any) -> Any:
            time.sleep(self._seconds)
            answer = found(*args)
            if name == "create" and args[0].startswith(layout.COMMITS):
                self._committed()
            return answer

        return ask


def _is_committed_once(url: str, plan: Plan) -> bool:
    location = open_location(url)
    commits = read_commits(location, sorted(committed_units(location)))
    blocks = Counter(commit.manifest.row_block for commit in commits)
    return {commit.manifest.unit_id for commit in commits} == set(plan.by_id) and max(blocks.values()) == 1
