"""Decoding steps in static shapes, replayed as CUDA graphs.

A decoding step of a small or medium model is bound by the host: transformers launches some thousand kernels a pass, and
each takes the host longer than the GPU. A step in which no prompt joins always does the same work, so its kernels are
recorded once as a CUDA graph and replayed with one call. A graph has fixed addresses and shapes: tokens, positions and
random numbers are copied into tensors of its own, the batch is padded to one of a few sizes, and attention covers the
cache up to one of a few lengths. The padding decodes in slots that no rollout uses. The first step of a shape runs
without a graph, which also warms it up; the second is recorded. Edits of the residual stream are part of a recording,
where all rollouts of the batch have the same.

Axes: A slots that decode, padding included; L captured layers, V vocabulary, D d_model.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ....jobs.specs.spec_parts import HookPoint, SamplingSpec
from ...editing.edited_pass import EditedPass, EditedStretch, PreparedEdits
from ...editing.interventions import Interventions
from ...observation import Observed
from ..loaded_model import LoadedModel
from ..sampling.sampling import draw, settle, weights_of
from .capture import Capture
from .kv_cache import KVCache
from .packed import PackedPass

DEVICES = frozenset({"cuda"})
"""Devices on which steps have static shapes. On a CPU a launch costs nothing, and padding does."""

_KEYS = 128
"""Attention covers the cache up to a multiple of this many positions."""

_FEWEST_ROWS = 8

_MOST_STEPS = 64
"""Steps that are kept: those used last. Every set of edits has steps of its own."""

_log = logging.getLogger(__name__)


class StepShape(NamedTuple):
    """The shape of a step.

    Attributes:
        rows: Slots that decode, padding included.
        num_keys: Positions of the cache that attention covers.
        edits: What the tokens of every slot get; None for no edits.
    """

    rows: int
    num_keys: int
    edits: PreparedEdits | None = None


@dataclass
class _RecordedStep:
    layout: PackedPass
    edited: EditedPass
    graph: torch.cuda.CUDAGraph | None = None


class DecodingSteps:
    """Runs the passes of a batch in which every slot decodes one token.

    Args:
        loaded: The model.
        capture: Hooks at the captured layers of that model.
        num_captured: L.
        cache: The KV cache of the batch.
        sampling: How tokens are sampled.
        interventions: Applies edits to the model.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        capture: Capture,
        num_captured: int,
        cache: KVCache,
        sampling: SamplingSpec,
        interventions: Interventions,
    ) -> None:
        self._interventions = interventions
        self._loaded = loaded
        self._capture = capture
        self._num_captured = num_captured
        self._cache = cache
        self._sampling = sampling
        self._steps: OrderedDict[StepShape, _RecordedStep] = OrderedDict()
        self._buffers: _Buffers | None = None
        self._version = -1
        self._records = loaded.device == "cuda"
        self._pool: Any = None

    def run(
        self,
        token_ids: Sequence[int],
        positions: Sequence[int],
        uniforms: Sequence[float],
        edits: PreparedEdits | None = None,
    ) -> tuple[DrawnTokens, dict[HookPoint, Observed], EditedPass]:
        """Decode one token in each slot in use, slots 0, 1, ... of the cache.

        Args:
            token_ids: The last token of each slot.
            positions: Its position in its conversation.
            uniforms: The random number by which the next token is picked.
            edits: What the tokens of every slot get; None for no edits.

        Returns:
            The sampled tokens, the observed values, whose tokens are those of the slots, and what the edits did. All
            are valid until the next step.
        """
        count = len(token_ids)
        shape = self._shape(count, max(positions) + 1, edits)
        buffers = self._prepared(count)
        buffers.fill(token_ids, positions, uniforms, shape.rows)
        step = self._steps.get(shape)
        if step is None:
            layout = PackedPass(self._loaded.device, [], buffers.positions_A[: shape.rows], self._cache, shape.num_keys)
            step = self._steps[shape] = _RecordedStep(layout, self.step(layout, shape))
            if len(self._steps) > _MOST_STEPS:
                self._steps.popitem(last=False)
        elif step.graph is None:
            self._record(step, shape)
        else:
            step.graph.replay()
        weights_AV = buffers.weights_AV
        drawn = DrawnTokens(buffers.first_3A[:, :count], weights_AV[:count], buffers.uniform_A, self._sampling.top_p)
        self._steps.move_to_end(shape)
        observed: dict[HookPoint, Observed] = {
            point: Observed(
                tokens_LAD[:, :count],
                tokens_LAD.new_empty(self._num_captured, 0, 0),
                torch.empty(0, 0, tokens_LAD.shape[2]),
            )
            for point, tokens_LAD in buffers.tokens_LAD.items()
        }
        return drawn, observed, step.edited

    def step(self, layout: PackedPass, shape: StepShape) -> EditedPass:
        """Run one step on the buffers of this batch, which is what a graph records.

        Args:
            layout: Slots, positions and the part of the cache that is attended to.
            shape: Rows of the step, padding included, positions of the cache, and edits.

        Returns:
            The edits, which know how far each token was moved.
        """
        assert self._buffers is not None
        buffers, rows, sampling = self._buffers, shape.rows, self._sampling
        # A recorded step must build its masks itself, from the positions of each replay.
        layout.forget_masks()
        stretches = [] if shape.edits is None else [EditedStretch(shape.edits, 0, rows)]
        with self._interventions.applied(stretches) as edited:
            logits_AV = self._capture.observe_all(
                lambda: layout.run_decoded(self._loaded.model, buffers.ids_A[:rows]),
                {point: tokens_LAD[:, :rows] for point, tokens_LAD in buffers.tokens_LAD.items()},
            )
        weights_AV = buffers.weights_for(logits_AV.shape[-1])[:rows]
        weights_AV.copy_(weights_of(logits_AV, sampling.temperature))
        buffers.first_3A[:, :rows] = draw(
            weights_AV, buffers.uniform_A[:rows], sampling.top_p, greedy=sampling.temperature == 0
        )
        return edited

    def _shape(self, count: int, longest: int, edits: PreparedEdits | None) -> StepShape:
        rows = min(padded_rows(count), self._cache.num_slots)
        return StepShape(rows, min(-(-longest // _KEYS) * _KEYS, self._cache.num_positions), edits)

    def _prepared(self, count: int) -> _Buffers:
        """Return the tensors of the steps; new ones, and no recorded step, where the cache has other tensors."""
        if self._buffers is None or self._version != self._cache.version:
            self._steps.clear()
            self._buffers = None
            # Graphs of all shapes share the memory of their intermediate results, because they are never replayed at
            # once. A handle is of no more use once the graphs that had it are gone.
            self._pool = torch.cuda.graph_pool_handle() if self._records else None
            self._buffers = _Buffers.of(self._loaded, self._capture.hook_points, self._num_captured, self._cache)
            self._version = self._cache.version
        assert count <= len(self._buffers.ids_A)
        return self._buffers

    def _record(self, step: _RecordedStep, shape: StepShape) -> None:
        if not self._records:
            step.edited = self.step(step.layout, shape)
            return
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads of this process may use the device meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                step.edited = self.step(step.layout, shape)
        except RuntimeError as error:
            # Some layers read results of the device while they run (a mixture of experts that counts its tokens, say).
            # Such a step cannot be recorded.
            torch.cuda.synchronize()
            self._records = False
            reason = str(error).strip().splitlines()[0]
            _log.warning("decoding steps of this model run without CUDA graphs, which is slower (%s)", reason)
            step.edited = self.step(step.layout, shape)
            return
        step.graph = graph
        graph.replay()


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
