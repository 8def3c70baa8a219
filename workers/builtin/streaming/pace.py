"""Measure how fast a model's layers are loaded and computed, and choose how many tokens to walk at a time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ....jobs.poolings import pooling_named
from ....jobs.sizing.walks import walk_tokens
from ...engine import EngineSettings
from ...models.memory import free_bytes
from ..loaded_model import LoadedModel
from ..passes.packed import PackedPass, Segment
from .layer_stream import LayerStream
from .recording import record
from .walking import Walked, Walker

_PROBED = {"cpu": 1024, "cuda": 16_384}
"""Tokens of the pass that is timed."""

_ALONE = 1024
"""Tokens of that pass where its text has to be alone."""

_SEGMENT = 256
"""Tokens of each text of that pass."""

_USED_PART = 0.5
"""Part of the free memory that the tokens of a walk may take; the rest is for computing a pass and for results."""

_RESULT_COPIES = 3
"""Copies of a result that are in main memory at a time: as observed, side by side with other layers, and pooled."""

_RECOMPUTED_COPIES = 4
"""Copies of what is recomputed of a rollout, in float32: two in float64."""

_LEAST_HELD = 1024
"""Tokens whose results are held at least."""

_RESPONSE_TOKENS = 64
"""Assumed tokens of a conversation for each of its responses, which has a vector in every pooling."""


@dataclass(frozen=True, slots=True)
class Pace:
    """What was measured.

    Attributes:
        layer_bytes: Bytes of the layer.
        load_s: Seconds in which it was loaded.
        token_s: Seconds in which it is computed for one token.
        token_bytes: Bytes that a token of a walk holds: its stream, its part of masks and rotary embeddings.
        tokens: Tokens to walk at a time.
    """

    layer_bytes: int
    load_s: float
    token_s: float
    token_bytes: float
    tokens: int

    def __str__(self) -> str:
        return (
            f"weights are loaded layer by layer: a layer of {self.layer_bytes / 1e6:,.0f} MB takes {self.load_s:.3f} s "
            f"to load ({self.layer_bytes / self.load_s / 1e9:.1f} GB/s) and {self.token_s * 1e6:.2f} microseconds a "
            f"token to compute, so {self.tokens:,} tokens are read at a time"
        )


def result_bytes(settings: EngineSettings, d_model: int, one_in: int) -> float:
    """Return the bytes of main memory that what is captured of a token takes.

    Args:
        settings: Captured layers, hook points and poolings.
        d_model: Width of the stream.
        one_in: One rollout in so many is recomputed while it is read; 0: none.
    """
    poolings = [pooling_named(name) for name in settings.capture.poolings]
    num_kept = sum(pooling.keeps_tokens for pooling in poolings)
    kept = num_kept * len(settings.token_layers)
    vectors = (len(poolings) - num_kept) * len(settings.layers) / _RESPONSE_TOKENS
    copies = _RESULT_COPIES + (_RECOMPUTED_COPIES / one_in if one_in else 0)
    return copies * len(settings.capture.hook_points) * (kept + vectors) * d_model * 4


def held_tokens(token_results: float) -> int:
    """Compute for how many tokens the main memory has room for what is captured of them.

    Args:
        token_results: Bytes of what is captured of a token.

    Returns:
        Tokens, at least 1024.
    """
    return max(_LEAST_HELD, int(_USED_PART * free_bytes("cpu") / token_results))


def measure_walk_tokens(walker: Walker, stream: LayerStream, loaded: LoadedModel, token_results: float) -> Pace:
    """Time the first layer, and compute how many tokens should be walked at a time.

    Args:
        walker: Walks passes through the model, which is in the attention in which it reads.
        stream: Loads its layers.
        loaded: The model.
        token_results: Bytes of main memory that what is captured of a token takes.
    """
    device: Any = loaded.device
    tokens = min(_PROBED[device], loaded.max_context) // _SEGMENT * _SEGMENT or min(_SEGMENT, loaded.max_context)
    size = int(loaded.model.get_input_embeddings().weight.shape[0])
    if not loaded.sharing.up_to:
        # One text, whose attention should not be all of its time.
        tokens = min(tokens, _ALONE)
    ids = [(17 + 31 * place) % size for place in range(tokens)]
    if loaded.sharing.up_to:
        lengths = [_SEGMENT] * (tokens // _SEGMENT) or [tokens]
        layout = PackedPass(device, [Segment(0, length) for length in lengths])
        recorded = record(loaded, stream, partial(layout.run, loaded.model, ids, None), 0)
        walked = Walked(recorded, layout.running)
    else:
        walked = Walked(record(loaded, stream, partial(loaded.run_alone, ids), 0))
    resid, token_bytes = walked.recorded.resid, _held_bytes(walked) / tokens
    seconds = min(_timed(walker, walked, resid, device) for _ in range(3))
    last = stream.num_used - 1
    first_s, again_s = stream.time_load(last), stream.time_load(last)
    # Where the page cache has room for all layers, only the first walk reads from the disk.
    load_s = again_s if stream.all_bytes <= free_bytes("cpu") else first_s
    layer_bytes = stream.all_bytes // stream.num_used
    if device == "cpu":
        most = _USED_PART * free_bytes(device) / (token_bytes + token_results)
    else:
        # Sums of finished layers are in main memory.
        most = min(_USED_PART * free_bytes(device) / token_bytes, held_tokens(token_results))
    chosen = walk_tokens(load_s, seconds / tokens, device, most)
    return Pace(layer_bytes, load_s, seconds / tokens, token_bytes, chosen)


def _timed(walker: Walker, walked: Walked, resid: torch.Tensor, device: str) -> float:
    walked.recorded.resid = resid
    _finish(device)
    began = time.perf_counter()
    walker.through([0], [walked])
    _finish(device)
    return time.perf_counter() - began


def _finish(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _held_bytes(walked: Walked) -> int:
    """Return the bytes of the stream, twice because a layer makes another, and of what layers are called with."""
    held: dict[int, int] = {}

    def count(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            held[id(value)] = value.nbytes
        elif isinstance(value, tuple | list):
            for one in value:
                count(one)
        elif isinstance(value, dict):
            count(list(value.values()))

    for call in walked.recorded.calls:
        count([call.args, dict(call.named)])
    return sum(held.values()) + 2 * walked.recorded.resid.nbytes
