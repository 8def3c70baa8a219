"""Decoding steps in static shapes, replayed as CUDA graphs.

A decoding step of a small or medium model is bound by the host: transformers launches some thousand kernels a pass, and
each takes the host longer than the GPU. A step in which no prompt joins always does the same work, so its kernels are
recorded once as a CUDA graph and replayed with one call. A graph has fixed addresses and shapes: tokens, positions and
random numbers are copied into tensors of its own, the batch is padded to one of a few sizes, and attention covers the
cache up to one of a few lengths. The padding decodes in slots that no rollout uses. The first step of a shape runs
without a graph, which also warms it up; the second is recorded.

Axes: A slots that decode, padding included; L captured layers, V vocabulary, D d_model.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ...jobs.specs.spec_parts import HookPoint, SamplingSpec
from ..observation import Observed
from .capture import Capture
from .kv_cache import KVCache
from .loaded_model import LoadedModel
from .packed import PackedPass
from .sampling import draw, settle, weights_of

DEVICES = frozenset({"cuda"})
"""Devices on which steps have static shapes. On a CPU a launch costs nothing, and padding does."""

_KEYS = 128
"""Attention covers the cache up to a multiple of this many positions."""

_FEWEST_ROWS = 8

_log = logging.getLogger(__name__)


class _StepShape(NamedTuple):
    rows: int
    num_keys: int


@dataclass
class _RecordedStep:
    layout: PackedPass
    graph: torch.cuda.CUDAGraph | None = None


class DecodingSteps:
    """Runs the passes of a batch in which every slot decodes one token.

    Args:
        loaded: The model.
        capture: Hooks at the captured layers of that model.
        num_captured: L.
        cache: The KV cache of the batch.
        sampling: How tokens are sampled.
    """

    def __init__(
        self, loaded: LoadedModel, capture: Capture, num_captured: int, cache: KVCache, sampling: SamplingSpec
    ) -> None:
        self._loaded = loaded
        self._capture = capture
        self._num_captured = num_captured
        self._cache = cache
        self._sampling = sampling
        self._steps: dict[_StepShape, _RecordedStep] = {}
        self._buffers: _Buffers | None = None
        self._version = -1
        self._records = loaded.device == "cuda"
        # Graphs of all shapes share the memory of their intermediate results: they are never replayed at once.
        self._pool = torch.cuda.graph_pool_handle() if self._records else None

    def run(
        self, token_ids: Sequence[int], positions: Sequence[int], uniforms: Sequence[float]
    ) -> tuple[DrawnTokens, dict[HookPoint, Observed]]:
        """Decode one token in each slot in use, slots 0, 1, ... of the cache.

        Args:
            token_ids: The last token of each slot.
            positions: Its position in its conversation.
            uniforms: The random number by which the next token is picked.

        Returns:
            The sampled tokens, and the observed values, whose tokens are those of the slots. Both are valid until the
            next step.
        """
        count = len(token_ids)
        shape = self._shape(count, max(positions) + 1)
        buffers = self._prepared(count)
        buffers.fill(token_ids, positions, uniforms, shape.rows)
        step = self._steps.get(shape)
        if step is None:
            layout = PackedPass(self._loaded.device, [], buffers.positions_A[: shape.rows], self._cache, shape.num_keys)
            step = self._steps[shape] = _RecordedStep(layout)
            self._step(step.layout, shape)
        elif step.graph is None:
            self._record(step, shape)
        else:
            step.graph.replay()
        weights_AV = buffers.weights_AV
        drawn = DrawnTokens(buffers.first_3A[:, :count], weights_AV[:count], buffers.uniform_A, self._sampling.top_p)
        return drawn, {
            point: Observed(
                tokens_LAD[:, :count],
                tokens_LAD.new_empty(self._num_captured, 0, 0),
                torch.empty(0, 0, tokens_LAD.shape[2]),
            )
            for point, tokens_LAD in buffers.tokens_LAD.items()
        }

    def _shape(self, count: int, longest: int) -> _StepShape:
        rows = min(padded_rows(count), self._cache.num_slots)
        return _StepShape(rows, min(-(-longest // _KEYS) * _KEYS, self._cache.num_positions))

    def _prepared(self, count: int) -> _Buffers:
        """Return the tensors of the steps; new ones, and no recorded step, where the cache has other tensors."""
        if self._buffers is None or self._version != self._cache.version:
            self._steps.clear()
            self._buffers = None
            self._buffers = _Buffers.of(self._loaded, self._capture.hook_points, self._num_captured, self._cache)
            self._version = self._cache.version
        assert count <= len(self._buffers.ids_A)
        return self._buffers

    def _record(self, step: _RecordedStep, shape: _StepShape) -> None:
        if not self._records:
            self._step(step.layout, shape)
            return
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads of this process may use the device meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                self._step(step.layout, shape)
        except RuntimeError as error:
            # Some layers read results of the device while they run (a mixture of experts that counts its tokens, say).
            # Such a step cannot be recorded.
            torch.cuda.synchronize()
            self._records = False
            reason = str(error).strip().splitlines()[0]
            _log.warning("decoding steps of this model run without CUDA graphs, which is slower (%s)", reason)
            self._step(step.layout, shape)
            return
        step.graph = graph
        graph.replay()

    def _step(self, layout: PackedPass, shape: _StepShape) -> None:
        """Run one step on the buffers; this is what a graph records."""
        assert self._buffers is not None
        buffers, rows, sampling = self._buffers, shape.rows, self._sampling
        # A recorded step must build its masks itself, from the positions of each replay.
        layout.forget_masks()
        logits_AV = self._capture.observe_all(
            lambda: layout.run_decoded(self._loaded.model, buffers.ids_A[:rows]),
            {point: tokens_LAD[:, :rows] for point, tokens_LAD in buffers.tokens_LAD.items()},
        )
        weights_AV = buffers.weights_for(logits_AV.shape[-1])[:rows]
        weights_AV.copy_(weights_of(logits_AV, sampling.temperature))
        buffers.first_3A[:, :rows] = draw(
            weights_AV, buffers.uniform_A[:rows], sampling.top_p, greedy=sampling.temperature == 0
        )


@dataclass
class DrawnTokens:
    """Tokens that a step has sampled, on the device.

    Attributes:
        first_3A: What ``sampling.draw`` returned.
        weights_AV: Its weights.
        uniform_A: Its random numbers.
        top_p: Probability mass of the nucleus.
    """

    first_3A: torch.Tensor
    weights_AV: torch.Tensor
    uniform_A: torch.Tensor
    top_p: float

    def of(self, rows: Sequence[int]) -> list[int]:
        """Wait for the tokens of some rows.

        Args:
            rows: The rows.

        Raises:
            UnitError: The logits of one of them are not finite.
        """
        tokens_A = settle(self.first_3A, self.weights_AV, self.uniform_A, self.top_p, rows)
        return tokens_A[list(rows)].tolist()


@dataclass
class _Buffers:
    """The tensors that all steps of a batch read and write."""

    ids_A: torch.Tensor
    positions_A: torch.Tensor
    uniform_A: torch.Tensor
    weights_AV: torch.Tensor
    first_3A: torch.Tensor
    tokens_LAD: Mapping[HookPoint, torch.Tensor]

    @classmethod
    def of(cls, loaded: LoadedModel, points: Sequence[HookPoint], num_captured: int, cache: KVCache) -> _Buffers:
        device, rows = loaded.device, cache.num_slots
        return cls(
            torch.zeros(rows, dtype=torch.long, device=device),
            torch.zeros(rows, dtype=torch.long, device=device),
            torch.zeros(rows, device=device),
            torch.zeros(rows, 0, device=device),
            torch.zeros(3, rows, dtype=torch.long, device=device),
            {point: torch.zeros(num_captured, rows, loaded.d_model, device=device) for point in points},
        )

    def weights_for(self, vocabulary: int) -> torch.Tensor:
        """Return ``weights_AV`` with room for a vocabulary, whose size the first step shows."""
        if self.weights_AV.shape[1] != vocabulary:
            self.weights_AV = self.weights_AV.new_zeros(len(self.weights_AV), vocabulary)
        return self.weights_AV

    def fill(
        self, token_ids: Sequence[int], positions: Sequence[int], uniforms: Sequence[float], num_rows: int
    ) -> None:
        """Copy the input of a step to the device; the padding has token 0 at position 0."""
        padding = [0] * (num_rows - len(token_ids))
        pin = self.ids_A.is_cuda
        numbers_2A = torch.tensor([[*token_ids, *padding], [*positions, *padding]], pin_memory=pin)
        self.ids_A[:num_rows].copy_(numbers_2A[0], non_blocking=True)
        self.positions_A[:num_rows].copy_(numbers_2A[1], non_blocking=True)
        self.uniform_A[: len(uniforms)].copy_(torch.tensor(list(uniforms), pin_memory=pin), non_blocking=True)


def padded_rows(count: int) -> int:
    """Round a number of rows up to one of few: 8, 12, 16, 24, 32, 48 and so on.

    Args:
        count: Number of rows, at least 1.

    Example:
        >>> [padded_rows(count) for count in (1, 9, 13, 100, 129)]
        [8, 12, 16, 128, 192]
    """
    rows = _FEWEST_ROWS
    while rows < count:
        if rows * 3 // 2 >= count:
            return rows * 3 // 2
        rows *= 2
    return rows
