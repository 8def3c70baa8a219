"""The engine inside vLLM: vLLM generates in its own batch, and its workers pool the activations while it does.

Delegates to the modules of this folder: ``loading`` (start and failures), ``generation`` (responder), ``reading``
(reader), ``recompute`` (canary) and, inside of vLLM's workers, ``inside``.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Any

from ...jobs.engines import refuse_before_intervention, refuse_hook_points, refuse_temperature
from ...jobs.errors import InputError
from ...jobs.work.rollouts import Canary
from ...jobs.work.units import RolloutRequest
from ..canary import LIMITS
from ..chat.offsets import offsets_encoder
from ..chat.user_span import UserSpans
from ..engine import CapturedRollout, CapturedText, EngineSettings, StreamedRequest, TokenisedText
from .arguments import VllmOptions, edit_plan, num_sequences, worker_plan
from .edits.rows import EditRows
from .flights import Flights
from .generation import VllmGeneration
from .limits import require_room
from .loading import start_vllm
from .model import read_model
from .over_nodes.node_group import NodePlace
from .reading import VllmReader
from .recompute import Recompute
from .versions import require_known_version

_TOKENS_PER_CAPTURE = 65536
"""Tokens that one call of ``capture`` should bring: enough to fill vLLM's batch while others end."""

_TOKENS_HELD = 4096
"""The same where every token is kept, because a call holds all that it captures."""


class VllmEngine:
    """An engine that holds one model in one vLLM, over one or several devices.

    Args:
        settings: What to load and how to run it.
        options: What else may be set; None: nothing.
        generates: Whether it is to generate, besides reading texts; how to sample matters only then.
        place: The place of this process, which leads, in a replica over several nodes; None: there is one node.

    Raises:
        InputError: vLLM is missing, of an unknown version, or cannot load the model; the model, a hook point or a way
            to divide it is not one that it captures; it would sample at another temperature, or has no room for a
            response of the most tokens; or the tokenizer lacks what the job needs.

    Attributes:
        layers: The captured layers, 0-based, ascending.
        canary_limit: Largest relative error of a canary; see ``Reader``.
        tokens_per_capture: Tokens that one call of ``capture`` should bring; see ``Reader``.
        passes: What canaries are compared with, and whether sampling is reproducible; see ``Reader``.
        prefetch: 0, because it pulls a request whenever there is room in its batch.
        model: The model's tokenizer, template and limits.
        vllm: vLLM's own engine; None once this one is closed.
        ranks: The processes of a model that is divided over several devices, those of this node.
    """

    def __init__(
        self,
        settings: EngineSettings,
        options: VllmOptions | None = None,
        *,
        generates: bool = True,
        place: NodePlace | None = None,
    ) -> None:
        options = options or VllmOptions()
        version = require_known_version()
        refuse_hook_points(settings.capture)
        refuse_before_intervention(settings.capture)
        if generates:
            refuse_temperature(settings.sampling)
        self._settings = settings
        self.layers = settings.layers
        self.canary_limit = LIMITS[settings.dtype]
        self.prefetch = 0
        self.tokens_per_capture = _TOKENS_HELD if settings.token_layers else _TOKENS_PER_CAPTURE
        self.model = read_model(settings)
        wants_users = settings.capture.needs_user_spans
        user_spans = UserSpans(offsets_encoder(self.model.tokenizer), self.model.renderer) if wants_users else None
        plan = worker_plan(settings, self.model, options)
        edits = edit_plan(settings, self.model, options)
        vllm, self.ranks = start_vllm(settings, self.model, plan, edits, options, place)
        self.vllm: Any = vllm
        rows = EditRows(edits, self.model.num_layers, self.model.d_model)
        self._flights = Flights(self.vllm, plan, self.model.d_model, rows, captures=options.captures)
        if generates:
            try:
                require_room(settings, self.model.max_context, self._flights.max_conversation)
            except InputError:
                self._end_vllm()
                raise
        self._reader = VllmReader(self._flights, self.model, settings, plan)
        self._recompute = Recompute(settings, self.vllm, self._reader)
        is_seeded = settings.device != "cpu"
        self._generation = VllmGeneration(
            self._flights,
            self.model,
            settings,
            self._reader,
            most=num_sequences(settings, options),
            user_spans=user_spans,
            reads_prefixes=not any(span != "response" and combine != "last" for combine, span in plan.sums),
            is_seeded=is_seeded,
            captures=options.captures,
        )
        self.passes = " ".join(
            [
                f"vLLM {version} runs the model.",
                *([] if is_seeded else ["Its sampling is not reproducible: on a CPU it takes no seeds."]),
                self._recompute.summary,
            ]
        )

    @property
    def reader(self) -> VllmEngine:
        """This engine: the same model generates and captures."""
        return self

    @property
    def num_free_slots(self) -> int:
        """Number of slots that no request has."""
        return self._flights.num_free_slots

    @property
    def max_conversation(self) -> int:
        """Most tokens of a conversation that the model and vLLM's KV cache have room for."""
        return min(self.model.max_context, self._flights.max_conversation)

    def generate(self, next_request: Callable[[], RolloutRequest | None]) -> Iterator[CapturedRollout]:
        """Generate and capture; see ``Responder.generate``."""
        return self._generation.run(next_request)

    def stream(self, next_request: Callable[[], StreamedRequest | None]) -> Iterator[CapturedRollout]:
        """Generate and capture, each request in its own way; see ``StreamingResponder.stream``."""
        return self._generation.stream(next_request)

    def capture(self, texts: Sequence[TokenisedText]) -> list[CapturedText]:
        """Capture existing texts; see ``Reader.capture``."""
        return self._reader.read(texts)

    def canary(self, captured: CapturedRollout, others: Sequence[CapturedRollout] = ()) -> Canary | None:
        """Recompute a rollout; see ``Reader.canary``."""
        return self._recompute.canary(captured, others)

    def close(self) -> None:
        """End vLLM and its processes; every later call raises ``EngineDied``. May be called twice."""
        self._flights.end()
        if self.vllm is None:
            return
        self._recompute.forget_vllm()
        self._end_vllm()

    def _end_vllm(self) -> None:
        vllm, self.vllm = self.vllm, None
        vllm.engine_core.shutdown()
        del vllm
        self.ranks.kill()
        self._flights.forget_vllm()
        gc.collect()
        distributed: Any = import_module("vllm.distributed")
        distributed.cleanup_dist_env_and_memory()
        self.ranks.unlink_shared_memory()
