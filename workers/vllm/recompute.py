"""The canary of the vLLM engine: recompute a rollout in another way than it was captured.

Where the model is small, that is a plain Hugging Face pass on the CPU, by the built-in engine. A large model has no
second copy beside vLLM; there vLLM reads the finished text as a prompt, without its cache and among other requests than
it was generated with. That finds rows, spans and batches that were mixed up, and not an error of vLLM's own model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...jobs.poolings import pooling_named
from ...jobs.work.rollouts import Canary
from ..canary import compare
from ..engine import CapturedRollout, EngineSettings, TokenisedText
from ..mixed_up import others_of
from ..models.checkpoints.checkpoint import facts_of, open_checkpoint
from ..models.checkpoints.quantization import method_of, quantization_of
from ..models.limits import free_memory_bytes
from .loading import beside_vllm
from .reading import VllmReader

MOST_PLAIN_PARAMETERS = 2_000_000_000
"""Most parameters of a model that is recomputed on the CPU; a pass of a larger one would take longer than the rollout
that it checks."""

_ROOM = 1.2
"""Memory that a plain pass needs, as a multiple of the weights."""


class Recompute:
    """Recomputes rollouts of one model.

    Args:
        settings: The engine's settings.
        vllm: Its vLLM.
        reader: Reads texts with it.

    Attributes:
        is_plain: Whether a plain Hugging Face pass recomputes them.
        summary: One sentence that says what canaries are compared with, for people and for the run's record.
    """

    def __init__(self, settings: EngineSettings, vllm: Any, reader: VllmReader) -> None:
        self._settings = settings
        self._vllm = vllm
        self._reader = reader
        self._plain: Callable[[CapturedRollout, Sequence[CapturedRollout]], Canary | None] | None = None
        against = _against_plain(settings)
        self.is_plain = against is None
        self.summary = (
            "Canaries are compared with plain Hugging Face passes on the CPU."
            if against is None
            else f"Canaries are compared with vLLM's own prefill of the finished text, because {against}."
        )

    def canary(self, captured: CapturedRollout, others: Sequence[CapturedRollout] = ()) -> Canary | None:
        """Recompute a rollout; see ``Reader.canary``."""
        content = captured.rollout.num_content_tokens
        values = captured.vectors_LD | captured.tokens_KTD
        arrays = {array: value for array, value in values.items() if pooling_named(array[1]).has_value(content)}
        if not arrays:
            return None
        if self.is_plain:
            return self._plain_canary(captured, others)
        text = TokenisedText.of(captured.rollout, captured.user_span, captured.intervention)
        (again,) = self._reader.read([text], is_cached=False)
        read = again.vectors_LD[0] | again.tokens_KTD[0]
        expected = {array: read[array].astype(np.float64) for array in arrays}
        return compare(arrays, expected, self._settings.token_positions, others_of(captured, others))

    def forget_vllm(self) -> None:
        """Let go of vLLM's engine."""
        self._vllm = None

    def _plain_canary(self, captured: CapturedRollout, others: Sequence[CapturedRollout]) -> Canary | None:
        if self._plain is None:
            # Loaded for the first canary: an engine that only generates for a benchmark needs no second model.
            from ..builtin.builtin_engine import BuiltinEngine

            settings = replace(self._settings, device="cpu", tensor_parallel=1, pipeline_parallel=1)
            with beside_vllm(self._vllm):
                self._plain = BuiltinEngine(settings).canary
        return self._plain(captured, others)


def _against_plain(settings: EngineSettings) -> str | None:
    """Say why a model is not recomputed by a plain pass; None if it is."""
    checkpoint = open_checkpoint(settings.directory)
    quantization = quantization_of(checkpoint.raw)
    if quantization is not None:
        # A model with the restored weights would not round its activations as vLLM's kernels do.
        return f"its weights are quantised with {method_of(quantization)}"
    facts = facts_of(checkpoint, fingerprint="")
    if facts.num_parameters > MOST_PLAIN_PARAMETERS:
        return f"a plain pass of {facts.num_parameters / 1e9:.0f} billion parameters on the CPU would take too long"
    needed = facts.num_parameters * (4 if settings.dtype == "float32" else 2) * _ROOM
    free = free_memory_bytes()
    if needed > free:
        return f"a second copy of the model needs {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB is free"
    return None
