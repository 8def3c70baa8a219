"""Ray actors whose engine takes a known time: everything about a worker is real, but for the model.

The arrays are as large for the time they take as those of a 70B replica, and are encoded and written like any.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
from persona_atlas.cluster.pool.placement import Placement
from persona_atlas.cluster.pool.ray_executor import RayExecutor
from persona_atlas.cluster.pool.ray_worker import UnitActor
from persona_atlas.cluster.pool.worker_loop import WorkerLoop
from persona_atlas.cluster.pool.worker_settings import WorkerSettings
from persona_atlas.jobs.work.rollouts import Canary, Rollout
from persona_atlas.jobs.work.units import RolloutRequest
from persona_atlas.workers.engine import CapturedRollout, CapturedText, TokenisedText

ARRAY = ("resid_post", "response_mean")

_SLOTS = 48
"""Of a batch; two units fill it."""


@cache
def _drawn(layers: int, d_model: int) -> npt.NDArray[np.float32]:
    """Give a float32 ``(L, D)``, the same for every rollout."""
    return np.random.default_rng(0).standard_normal((layers, d_model), dtype=np.float32)


class TimedEngine:
    """A full batch, seen from outside: after a fixed time a rollout ends, and its slot is free for the next.

    Args:
        layers: Captured layers.
        d_model: Width of the model.
        rollout_s: Seconds that one rollout takes.
    """

    def __init__(self, layers: tuple[int, ...], d_model: int, rollout_s: float) -> None:
        self.layers = layers
        self.canary_limit = 1.0
        self.passes = ""
        self.tokens_per_capture = 0
        self.prefetch = 0
        self._d_model = d_model
        self._rollout_s = rollout_s

    @property
    def reader(self) -> TimedEngine:
        """Itself."""
        return self

    def close(self) -> None:
        """Do nothing."""

    def generate(self, next_request: Callable[[], RolloutRequest | None]) -> Iterator[CapturedRollout]:
        """Take the time, then answer."""
        held: deque[RolloutRequest] = deque()
        while True:
            while len(held) < _SLOTS and (asked := next_request()) is not None:
                held.append(asked)
            if not held:
                return
            request = held.popleft()
            time.sleep(self._rollout_s)
            rollout = Rollout(
                address=request.address,
                system_prompt=request.system_prompt,
                question=request.question,
                response="What a model would say here is of no length to speak of.",
                prompt_token_ids=tuple(range(74)),
                response_token_ids=tuple(range(360)),
                num_content_tokens=360,
                finish_reason="stop",
                seed=request.seed,
            )
            yield CapturedRollout(rollout, {ARRAY: _drawn(len(self.layers), self._d_model)})

    def capture(self, texts: Sequence[TokenisedText]) -> list[CapturedText]:
        """Not used here."""
        raise NotImplementedError

    def canary(self, captured: CapturedRollout, others: Sequence[CapturedRollout] = ()) -> Canary | None:
        """Find nothing wrong."""
        del captured
        return Canary(1, (0.0,) * len(self.layers), (1.0,) * len(self.layers))


class TimedExecutor(RayExecutor):
    """Ray's executor, with actors that have such an engine; starts when all of them are ready.

    Args:
        settings: What each worker is told.
        replicas: Number of workers, of one core each.
        load: Makes the engine.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        replicas: int,
        load: Callable[[WorkerSettings, Callable[[str], None]], TimedEngine],
    ) -> None:
        class TimedActor(UnitActor):
            def __init__(self, settings: WorkerSettings, name: str) -> None:
                self._loop = WorkerLoop(settings, name, load)

        super().__init__(settings, Placement(replicas, "cpu", 1, 0), replicas=replicas, actor_class=TimedActor)
        self._replicas = replicas

    def start(self, tick: Callable[[], None] = lambda: None) -> None:
        """Wait until the models of all workers are loaded.

        Args:
            tick: Called about once a second meanwhile.
        """
        super().start(tick)
        while len(self.ready) < self._replicas:
            self.wait(0.1)
