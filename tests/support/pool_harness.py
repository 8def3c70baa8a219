"""A pool of workers on a cluster that a test changes at will: events go in by hand, commands are kept and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from persona_atlas.jobs.errors import AtlasError, InputError, JobError, TransientError
from persona_atlas.jobs.plan import Plan
from persona_atlas.jobs.scheduling.ledger import Failure
from persona_atlas.jobs.scheduling.pool import WorkerPool
from persona_atlas.jobs.scheduling.pool_commands import ClusterNodes, Command, Deliver, GiveUp, Kill, Launch
from persona_atlas.jobs.scheduling.worker_load import WorkRequest
from persona_atlas.jobs.work.units import UnitAttempt

LOAD_TIMEOUT_S = 1800.0

NO_MEMORY = InputError("there is no room for the model.", code="not_enough_memory", field="placement")
NOT_LOADED = JobError("the model cannot be loaded.", code="model_not_loaded")
STORE_AWAY = TransientError("the store has a bad moment.", code="store_failed")


@dataclass(frozen=True, slots=True)
class Done:
    """A unit that succeeded."""

    unit_id: str


def attempt_at(plan: Plan, number: int, *, is_suspect: bool = False) -> UnitAttempt:
    """The first attempt at a plan's n-th unit."""
    unit = plan.units[number]
    return UnitAttempt(unit, plan.requests(unit), 1, number, is_suspect)


class Harness:
    """A pool, its cluster and the time.

    Attributes:
        now: Seconds; a test puts it forward.
        places: By node, for how many workers, or parts of them, it has room.
        per_worker: Nodes of one worker.
        gone: Nodes that are known to be dead.
        launched: Launches so far, in their order.
        alive: Workers that were launched and not killed.
    """

    def __init__(self, places: dict[str, int], replicas: int | None = None, *, per_worker: int = 1) -> None:
        self.pool: WorkerPool[Done] = WorkerPool(replicas, LOAD_TIMEOUT_S)
        self.now = 1000.0
        self.places = places
        self.per_worker = per_worker
        self.gone: set[str] = set()
        self.launched: list[Launch] = []
        self.alive: list[str] = []

    @property
    def nodes(self) -> ClusterNodes:
        return ClusterNodes(dict(self.places), frozenset(self.gone), self.per_worker)

    def carry_out(self, commands: Sequence[Command[Done]]) -> list[Deliver[Done]]:
        """Keep account of commands; raises what the pool gives up with, and gives what it delivers."""
        for command in commands:
            if isinstance(command, Launch):
                assert command.worker not in {launch.worker for launch in self.launched}, "a name is used once"
                self.launched.append(command)
                self.alive.append(command.worker)
            elif isinstance(command, Kill):
                self.alive.remove(command.worker)
            elif isinstance(command, GiveUp):
                raise command.error
        assert list(self.pool.workers.by_name) == self.alive
        return [command for command in commands if isinstance(command, Deliver)]

    def follow(self, after_s: float = 0.0) -> list[str]:
        """Let time pass and the pool follow the cluster; gives the workers it launched."""
        self.now += after_s
        before = len(self.launched)
        assert self.carry_out(self.pool.follow(self.nodes, self.now)) == []
        return [launch.worker for launch in self.launched[before:]]

    def place(self, worker: str, node: str) -> None:
        assert self.carry_out(self.pool.placed(worker, node, self.now)) == []

    def load(self, worker: str, node: str) -> None:
        """Place a worker and have it load its model."""
        self.place(worker, node)
        assert self.carry_out(self.pool.loaded(worker, self.now)) == []

    def assign(self, worker: str, *attempts: UnitAttempt) -> None:
        self.pool.assigned(worker, attempts, self.now)

    def refuse(self, worker: str, error: AtlasError = NO_MEMORY, *, node_id: str = "") -> None:
        assert self.carry_out(self.pool.refused(worker, error, self.nodes, self.now, node_id=node_id)) == []

    def die(self, worker: str, *, is_unreachable: bool = False, node_id: str = "") -> list[Deliver[Done]]:
        died = self.pool.died(worker, "killed", self.nodes, self.now, is_unreachable=is_unreachable, node_id=node_id)
        return self.carry_out(died)

    def report(self, worker: str, *results: Done | Failure, request: WorkRequest | None = None) -> list[Deliver[Done]]:
        return self.carry_out(self.pool.reported(worker, results, request, self.now))

    def check_silence(self, after_s: float = 0.0) -> list[Deliver[Done]]:
        self.now += after_s
        return self.carry_out(self.pool.check_silence(self.now))


def failures_of(delivered: Sequence[Deliver[Done]]) -> list[Failure]:
    """The failures among what was delivered."""
    return [result for one in delivered for result in one.results if isinstance(result, Failure)]


def as_suspect(attempt: UnitAttempt) -> UnitAttempt:
    """The second attempt at a unit that may be to blame for the failure of the first."""
    return replace(attempt, number=2, is_suspect=True)
