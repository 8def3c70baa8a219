"""Workers as Ray actors, one a replica: a pool that follows the cluster.

An actor that dies is replaced by a new one, elsewhere if its node is to blame; its assignments fail and are handed out
anew by the ledger, never by Ray: arrays and half-written units do not travel, only orders in and manifests out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayError

from ...jobs.errors import AtlasError, InputError, JobError
from ...jobs.scheduling.ledger import Failure
from ...jobs.scheduling.node_health import NodeHealth
from ...jobs.scheduling.worker_health import FailureStreaks, is_hung
from ...jobs.units import UnitAttempt
from ...storage.format.records import Manifest
from .executor import Answer, WorkerView
from .ray_worker import RayWorker, UnitActor
from .session import Placement, count_places
from .worker_task import WorkerReport, WorkerSettings

_LOOK_EVERY_S = 3.0
"""How often the pool is held against what the cluster has."""

_PLACEMENT_TIMEOUT_S = 60.0
"""A worker that has waited so long for a place while the cluster has none for it is given up."""

_LOADING_DEATHS = 3
"""Times the workers: so many deaths in a row before any model was loaded, and the job ends."""

_REFUSALS = 3
"""So many workers that cannot begin, while none loads or works, and the job is refused: no further nodes are tried, nor
asked of an autoscaler."""

_LATE_REFUSALS = 20
_REFUSED_PAUSE_S = 30.0
"""Once some could, a last node that cannot just now (its memory is taken, say) is asked again for ten minutes."""

_LONGEST_PAUSE_S = 60.0
"""Between workers that die before they can say where they are: nobody knows which node is to blame."""

_CALLS = 6
"""Of a worker, at a time: it lives, it says, it takes; with some to spare for those that end."""

_NODE_LABEL = "ray.io/node-id"


@dataclass(frozen=True, eq=False, slots=True)
class _Call:
    """A call of a worker that has not returned; ``orders`` are those that a ``take`` brought."""

    kind: str
    worker: RayWorker
    attempts: tuple[UnitAttempt, ...] = ()


class RayExecutor:
    """Actors on the Ray that this process is connected to.

    Args:
        settings: What each worker is told.
        placement: What each takes.
        replicas: How many; those without a place wait for one. None: as many as the cluster has room for, more when
            nodes join and fewer when they leave.
        load_timeout_s: How long a worker may take to load its model, and the cluster to have a place for one.
        actor_class: What each worker is.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        placement: Placement,
        *,
        replicas: int | None = None,
        load_timeout_s: float = 1800.0,
        actor_class: type[UnitActor] = UnitActor,
    ) -> None:
        self._settings = settings
        self._placement = placement
        self._replicas = replicas
        self._load_timeout_s = load_timeout_s
        self._actor_class: Any = ray.remote(actor_class)
        self._workers: dict[str, RayWorker] = {}
        self._calls: dict[Any, _Call] = {}
        self._health = NodeHealth()
        self._streaks = FailureStreaks()
        self._longest_s = 0.0
        self._deaths_nowhere = 0
        self._refusals = 0
        self._num_made = 0
        self._wanted = 1
        self._any_was_ready = False
        self._loading_deaths = 0
        self._next_look = 0.0

    def start(self, tick: Callable[[], None] = lambda: None) -> None:
        """Load the models; returns when the first worker is ready, the others join as they are."""
        had_places_at = time.monotonic()
        while not self.idle:
            tick()
            self.wait(1.0)
            # A place that another job has comes free some day; one that is nowhere does not.
            if self._any_has_place or count_places(self._placement):
                had_places_at = time.monotonic()
            elif time.monotonic() - had_places_at > self._load_timeout_s:
                raise JobError(
                    f"no node had room for a worker in {self._load_timeout_s:.0f} s.",
                    code="no_worker",
                    field="placement",
                    hint="Does the cluster have the CPUs and GPUs that the spec asks for?",
                )

    @property
    def ready(self) -> list[str]:
        """Workers whose model is loaded, busy or not."""
        return [worker.name for worker in self._workers.values() if worker.is_ready]

    @property
    def idle(self) -> list[str]:
        """Those that have nothing to do."""
        return [worker.name for worker in self._workers.values() if worker.is_idle]

    @property
    def requesting(self) -> list[str]:
        """Those at work that ask for more, the emptiest first."""
        takers = [worker for worker in self._workers.values() if worker.load.takes_more]
        return [worker.name for worker in sorted(takers, key=lambda worker: worker.load.rollouts)]

    @property
    def num_workers(self) -> int:
        """How many work, or load their model and soon will."""
        return sum(bool(worker.node) for worker in self._workers.values())

    @property
    def views(self) -> list[WorkerView]:
        """What each worker is doing."""
        return [
            WorkerView(
                worker.name,
                worker.node,
                worker.doing,
                tuple(attempt.unit.unit_id for attempt in worker.load.attempts),
                worker.since,
            )
            for worker in self._workers.values()
        ]

    @property
    def nodes_left_out(self) -> dict[str, str]:
        """Nodes that get no more work, with the reason."""
        return dict(self._health.left_out)

    def assign(self, worker: str, attempts: Sequence[UnitAttempt]) -> None:
        """Give an assignment to one of ``idle`` or ``hungry``."""
        taker = self._workers[worker]
        self._calls[taker.assign(attempts)] = _Call("take", taker, tuple(attempts))

    def wait(self, timeout_s: float) -> list[Answer]:
        """Give the answers that have come; a worker that died, or is of no use, answers with failures."""
        self._follow_the_cluster()
        waiting = list(self._calls)
        if not waiting:
            time.sleep(timeout_s)
            return []
        come, _ = ray.wait(waiting, num_returns=1, timeout=timeout_s)
        if come:
            # Whatever else has come by now is taken along; answers before deaths, which would make them void.
            come, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0)
            come.sort(key=lambda reference: self._calls[reference].kind != "said")
        answers = [answer for reference in come for answer in self._take(reference)]
        # Last, for an answer may have waited here as long.
        return answers + self._end_the_hung(time.monotonic())

    def close(self) -> None:
        """Kill the actors."""
        for worker in list(self._workers.values()):
            self._drop(worker)

    @property
    def _any_has_place(self) -> bool:
        """Whether a worker loads or works, whatever has become of the others."""
        return any(worker.node for worker in self._workers.values())

    def _take(self, reference: Any) -> list[Answer]:
        call = self._calls.pop(reference, None)
        if call is None:
            return []
        worker = call.worker
        try:
            answer: Any = ray.get(reference)
        except RayActorError as error:
            # Ray tells of a node's death only after a while; that it cannot be reached is known at once.
            return self._died(worker, str(error), is_unreachable=isinstance(error, ActorUnavailableError))
        except RayError as error:
            if call.kind != "take":
                return self._died(worker, str(error))
            worker.load.refused(call.attempts)
            return self._answered(worker, call.attempts, _failures(call.attempts, "the worker failed", str(error)))
        if call.kind == "said":
            return self._heard(worker, answer)
        if call.kind == "where":
            self._placed(worker, answer)
        elif call.kind == "prepare":
            self._prepared(worker, answer)
        return []

    def _heard(self, worker: RayWorker, said: WorkerReport) -> list[Answer]:
        self._call(worker, "said")
        if said.requesting is not None:
            worker.load.note_request(said.requesting)
        pairs = [(worker.load.answered(result.unit_id), result) for result in said.results]
        held = [(attempt, result) for attempt, result in pairs if attempt is not None]
        if not held:
            return []
        return self._answered(worker, [attempt for attempt, _ in held], tuple(result for _, result in held))

    def _call(self, worker: RayWorker, kind: str) -> None:
        self._calls[getattr(worker.actor, kind).remote()] = _Call(kind, worker)

    def _add(self) -> None:
        name = f"worker-{self._num_made}"
        self._num_made += 1
        options: dict[str, Any] = {
            "num_cpus": self._placement.threads,
            "num_gpus": self._placement.num_gpus,
            "max_restarts": 0,
            "max_task_retries": 0,
            "max_concurrency": _CALLS,
        }
        if self._health.left_out:
            options["label_selector"] = {_NODE_LABEL: f"!in({','.join(sorted(self._health.left_out))})"}
        actor = self._actor_class.options(**options).remote(self._settings, name)
        worker = self._workers[name] = RayWorker(name, actor)
        for kind in ("live", "where", "prepare"):
            self._call(worker, kind)

    def _drop(self, worker: RayWorker) -> None:
        self._workers.pop(worker.name, None)
        self._calls = {call: of for call, of in self._calls.items() if of.worker is not worker}
        ray.kill(worker.actor, no_restart=True)

    def _placed(self, worker: RayWorker, node: str) -> None:
        if node in self._health.left_out:
            # Asked for before the node was left out; another takes its place.
            self._drop(worker)
            return
        self._deaths_nowhere = 0
        worker.node, worker.since, worker.heard_at = node, time.time(), time.monotonic()

    def _prepared(self, worker: RayWorker, refused: AtlasError | None) -> None:
        worker.since = time.time()
        if refused is None:
            self._loading_deaths = self._refusals = 0
            worker.is_ready = self._any_was_ready = True
            self._call(worker, "said")
            return
        self._drop(worker)
        self._refusals += 1
        limit = _LATE_REFUSALS if self._any_was_ready or refused.retryable else _REFUSALS
        others = count_places(self._placement, {*self._health.left_out, worker.node})
        is_asked_again = bool(others) or self._any_was_ready or refused.retryable
        if not self._any_has_place and (self._refusals >= limit or not is_asked_again):
            raise refused if isinstance(refused, InputError) else _no_worker(f"{worker.name}: {refused}")
        if refused.retryable:
            self._next_look = time.monotonic() + _REFUSED_PAUSE_S
            return
        # What another may load and this one cannot is that machine's trouble, not the job's.
        self._leave_out(worker.node, str(refused))
        self._next_look = 0.0 if others else time.monotonic() + _REFUSED_PAUSE_S

    def _answered(
        self, worker: RayWorker, attempts: Sequence[UnitAttempt], results: tuple[Manifest | Failure, ...]
    ) -> list[Answer]:
        self._longest_s = max(self._longest_s, worker.heard())
        answers = [Answer(worker.name, results)]
        # All are counted, whatever the first of them say; a suspect's failure says nothing of who worked it.
        verdicts = [
            self._streaks.is_broken(
                worker.name, f"{attempt.unit.kind}.{attempt.unit.persona}", isinstance(result, Failure)
            )
            for attempt, result in zip(attempts, results, strict=True)
            if not (attempt.is_suspect and isinstance(result, Failure))
        ]
        if verdicts and verdicts[-1]:
            failure = next(result for result in reversed(results) if isinstance(result, Failure))
            what = "the worker failed unit after unit and was replaced"
            answers += self._lost(worker, what, failure.message, is_innocent=True)
        return answers

    def _end_the_hung(self, now: float) -> list[Answer]:
        answers: list[Answer] = []
        for worker in list(self._workers.values()):
            silent_s = now - worker.heard_at
            if not worker.load.is_empty and is_hung(silent_s, self._longest_s):
                reason = f"silent for {silent_s:.0f} s; the longest before was {self._longest_s:.0f} s"
                answers += self._lost(worker, "the worker hung and was replaced", reason)
            elif worker.node and not worker.is_ready and silent_s > self._load_timeout_s:
                self._drop(worker)
                self._leave_out(worker.node, f"the model was not loaded in {self._load_timeout_s:.0f} s")
        return answers

    def _died(self, worker: RayWorker, reason: str, *, is_unreachable: bool = False) -> list[Answer]:
        is_nodes_loss = is_unreachable or _is_gone(worker.node)
        if not worker.is_ready and not is_nodes_loss:
            self._loading_deaths += 1
            if self._loading_deaths >= _LOADING_DEATHS * self._wanted and not self.ready:
                self._drop(worker)
                raise _no_worker(f"{worker.name}: {reason}")
        if is_nodes_loss:
            return self._lost(worker, "the worker's node is gone", reason, is_innocent=True, charges_node=False)
        answers = self._lost(worker, "the worker died", reason)
        if not worker.node:
            self._deaths_nowhere += 1
            pause_s = min(2.0 ** min(self._deaths_nowhere, 10), _LONGEST_PAUSE_S)
            self._next_look = time.monotonic() + pause_s
        return answers

    def _lost(
        self, worker: RayWorker, what: str, reason: str, *, is_innocent: bool = False, charges_node: bool = True
    ) -> list[Answer]:
        """Let a worker go; its units failed, through no fault of theirs where ``is_innocent``."""
        attempts, works_suspect = worker.load.attempts, worker.load.works_suspect
        self._drop(worker)
        self._next_look = 0.0
        is_charged = charges_node and bool(worker.node)
        if is_charged and self._health.died(worker.node, time.monotonic(), reason, is_unit_suspect=works_suspect):
            self._leave_out(worker.node, self._health.left_out[worker.node])
        if not attempts:
            return []
        return [Answer(worker.name, _failures(attempts, what, reason, is_innocent=is_innocent))]

    def _leave_out(self, node: str, reason: str) -> None:
        if not node:
            return
        self._health.refused(node, reason)
        if not count_places(self._placement, self._health.left_out):
            # The last one: better a bad node than none, as long as anything is done on it.
            del self._health.left_out[node]
            if not self._any_was_ready and not self._any_has_place:
                raise _no_worker(reason)

    def _follow_the_cluster(self) -> None:
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + _LOOK_EVERY_S
        wanted = self._wanted = self._replicas or max(1, count_places(self._placement, self._health.left_out))
        for _ in range(wanted - len(self._workers)):
            self._add()
        placeless = [w for w in self._workers.values() if not w.node and now - w.asked_at > _PLACEMENT_TIMEOUT_S]
        for worker in placeless[: max(0, len(self._workers) - wanted)]:
            self._drop(worker)


def _failures(
    attempts: Sequence[UnitAttempt], message: str, detail: str, *, is_innocent: bool = False
) -> tuple[Failure, ...]:
    return tuple(Failure(attempt.unit.unit_id, attempt.number, message, detail, is_innocent) for attempt in attempts)


def _is_gone(node: str) -> bool:
    return any(known["NodeID"] == node and not known["Alive"] for known in ray.nodes())


def _no_worker(reason: str) -> JobError:
    return JobError(
        f"no worker is left; the last was {reason}",
        code="no_worker",
        hint="Is there enough memory? What was committed stays; the same command resumes.",
    )
