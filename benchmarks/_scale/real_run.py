"""A job on a real Ray of this machine, with the real driver and workers whose time is known."""

from __future__ import annotations

import io
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from persona_atlas.cluster.pool.worker_settings import WorkerSettings
from persona_atlas.cluster.run.backend import Backend
from persona_atlas.cluster.run.job import work_job
from persona_atlas.cluster.run.prepare import Job
from persona_atlas.cluster.run.progress import Progress
from persona_atlas.cluster.run.status_reporter import StatusReporter
from persona_atlas.jobs.catalog import load_catalog
from persona_atlas.jobs.plan import Plan, make_plan
from persona_atlas.jobs.scheduling.ledger import Ledger
from persona_atlas.jobs.sizing.estimate import estimate
from persona_atlas.jobs.sizing.known_models import known_models
from persona_atlas.jobs.sources.persona_source import PersonaSource
from persona_atlas.jobs.specs.spec import load_spec
from persona_atlas.storage.format.records import Manifest
from persona_atlas.storage.locations.location import open_location
from persona_atlas.workers.engine import EngineSettings
from rich.console import Console

from _scale.simulation import SPEC
from _scale.timed_workers import TimedEngine, TimedExecutor

_QUESTIONS, _LAYERS, _PROMPTS = 24, 24, 5
"""A unit of 24 x 24 x 8192: 38 MB of activations for a second of work, as a 70B replica makes them."""

UNIT_S = 0.5


@dataclass(frozen=True, slots=True)
class Worked:
    """A finished job.

    Attributes:
        workers: Number of actors.
        units: Number of committed units.
        wall_s: Seconds from the first assignment until the last commit.
        model_s: Seconds that the engines took, all together.
        driver_s: Processor time of the driver's process meanwhile, seconds.
    """

    workers: int
    units: int
    wall_s: float
    model_s: float
    driver_s: float

    @property
    def overhead(self) -> float:
        """Share of the workers' time in which no engine was busy."""
        return 1 - self.model_s / (self.workers * self.wall_s)


def plan_of(roles: int) -> Plan:
    """Plan five units for each of some roles."""
    catalog = load_catalog()
    overrides = [
        f"personas.roles.names=[{', '.join(catalog.names('role')[:roles])}]",
        f"personas.roles.questions={_QUESTIONS}",
        "personas.traits.names=[]",
        "personas.default.prompts=0",
        "placement.batch_tokens=61440",
    ]
    spec = load_spec(SPEC, overrides)
    facts = replace(known_models()[spec.model.source], n_layers=_LAYERS, fingerprint="0" * 64)
    return make_plan(spec, PersonaSource(spec, catalog), facts)


def work(workers: int, units_each: int) -> Worked:
    """Run a job on some workers; Ray has been started."""
    plan = plan_of(workers * units_each // _PROMPTS)
    figures, d_model, rollout_s = estimate(plan), plan.facts.d_model, UNIT_S / _QUESTIONS
    with tempfile.TemporaryDirectory() as folder:
        location = open_location(folder)
        engine = EngineSettings(
            Path("none"), "bfloat16", "cpu", 1, 61440, plan.layers, plan.spec.sampling, plan.spec.capture
        )
        settings = WorkerSettings(engine, 0, folder, None, plan.rows_per_block, plan.spec.store.mantissa_bits)
        executor = TimedExecutor(
            settings,
            workers,
            lambda asked, _: TimedEngine(asked.engine.layers, d_model, rollout_s),
        )
        job = Job(plan, figures, Path("none"), location, None, frozenset())
        watch = _Watch()
        with StatusReporter() as reporter:
            backend = nullcontext(Backend({}, lambda _: executor))
            outcome = work_job(job, watch, reporter, open_backend=lambda *_: backend)
    assert outcome.is_complete, outcome
    return Worked(workers, len(plan.units), watch.wall_s, watch.model_s, watch.driver_s)


class _Watch(Progress):
    def __init__(self) -> None:
        super().__init__(Console(file=io.StringIO()))
        self._began = self._processor = 0.0
        self.wall_s = self.model_s = self.driver_s = 0.0

    def units(self, ledger: Ledger, manifest: Manifest | None) -> None:
        """Record the time that the model took."""
        if manifest is None:
            self._began, self._processor = time.perf_counter(), time.process_time()
            return
        self.model_s += manifest.seconds
        self.wall_s = time.perf_counter() - self._began
        self.driver_s = time.process_time() - self._processor
