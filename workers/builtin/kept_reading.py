"""Read conversations that grow, and compute only what is new: their keys and values are kept between calls.

A conversation is recognised by its token ids. Where these begin with those of a kept one, only the rest is fed to the
model, in one pass; the vectors of spans that were read before are kept too. A conversation whose earlier turns were
changed is none that is kept, so it is read from its start. Of several conversations, those read last are kept.

A model whose texts must not share a pass (``sharing``) is not read in packed passes, and so nothing of it can be kept:
each of its conversations is read as a whole every time. Axes: L captured layers, D d_model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from ...jobs.poolings import TokenRange, TokenSpans
from ...jobs.work.rollouts import ArrayName
from ..accumulator_set import AccumulatorSet, PassStretches
from ..chat.offsets import common_length
from ..engine import EngineSettings, TokenisedText
from ..observation import Wanted
from ..pooling import Shape
from .loaded_model import LoadedModel
from .passes.capture import Capture, require_finite
from .passes.kv_cache import KVCache
from .passes.packed import PackedPass, Segment
from .reading import TextReader

Float32 = npt.NDArray[np.float32]

MOST_KEPT = 8
"""Conversations of which keys and values are kept."""

_UNLIMITED_TOKENS = 2**62


@dataclass(eq=False)
class _Kept:
    """A conversation that was read: its ids, their keys and values, and the vectors of its spans."""

    cache: KVCache
    token_ids: tuple[int, ...] = ()
    vectors: dict[TokenRange, Float32] = field(default_factory=dict)

    def can_become(self, token_ids: Sequence[int]) -> bool:
        """Whether a conversation goes on where this one ended; a template may write its last tokens otherwise then."""
        read = max((stop for _, stop in self.vectors), default=0)
        return 0 < read <= common_length(self.token_ids, token_ids)


class KeptReader:
    """Reads conversations with one model, and keeps what it computed. ``BuiltinEngine.kept_reader`` makes one.

    Args:
        loaded: The model.
        capture: Hooks at the captured layers of that model.
        settings: Captured layers and poolings; the first pooling and the first hook point are read.
        whole: Reads what cannot be kept.

    Attributes:
        tokens_fed: Tokens that the model has computed so far.
    """

    def __init__(self, loaded: LoadedModel, capture: Capture, settings: EngineSettings, whole: TextReader) -> None:
        self._loaded = loaded
        self._capture = capture
        self._settings = settings
        self._whole = whole
        self._array: ArrayName = (settings.capture.hook_points[0], settings.capture.poolings[0])
        self._shape = Shape(len(settings.layers), tuple(settings.token_positions), loaded.d_model, "cpu")
        self._kept: list[_Kept] = []
        self.tokens_fed = 0

    def read(self, name: str, token_ids: Sequence[int], spans: Sequence[TokenRange]) -> list[Float32]:
        """Return the pooled activations of spans of a conversation.

        Args:
            name: Name of the conversation in error messages.
            token_ids: The conversation up to now.
            spans: Ranges of tokens, none of them empty and none at the start, ascending.

        Returns:
            ``(L, D)`` for each span.

        Raises:
            UnitError: The conversation is longer than the context, or a value is not finite.
        """
        ids = tuple(token_ids[: max((stop for _, stop in spans), default=0)])
        if len(ids) > min(self._loaded.max_context, self._loaded.sharing.up_to):
            # Refuses what is too long.
            (found,) = self._whole.read([TokenisedText(name, ids, tuple(spans))])
            self.tokens_fed += len(ids)
            return [vectors[self._array] for vectors in found.vectors_LD]
        kept = next((one for one in self._kept if one.can_become(ids)), None)
        if kept is None:
            kept = _Kept(KVCache(self._loaded.num_layers, _UNLIMITED_TOKENS))
        new = [span for span in spans if span not in kept.vectors]
        # A span that begins before what is new is computed as a whole, from the keys and values before it.
        start = min([common_length(kept.token_ids, ids), *(start for start, _ in new)])
        if new:
            vectors = self._pass(name, kept.cache, ids, start, new)
            kept.vectors = {span: value for span, value in kept.vectors.items() if span[1] <= start} | vectors
            kept.token_ids = ids
        self._kept = [kept, *(one for one in self._kept if one is not kept)][:MOST_KEPT]
        return [kept.vectors[span] for span in spans]

    def _pass(
        self, name: str, cache: KVCache, ids: tuple[int, ...], start: int, spans: Sequence[TokenRange]
    ) -> dict[TokenRange, Float32]:
        accumulators = AccumulatorSet(self._settings.capture, self._shape)
        stretches = PassStretches(accumulators, Wanted())
        for slot, (first, stop) in enumerate(spans):
            stretches.claim(slot, "response", first - start, stop - start)
        device = self._settings.device
        with torch.inference_mode():
            cache.reserve(1 if start else 0, 1, len(ids))
            layout = PackedPass(device, [Segment(start, len(ids) - start, slot=0)], cache=cache)
            _, observed = self._capture.observe(
                lambda: layout.run(self._loaded.model, ids[start:], None),
                stretches.wanted,
                num_tokens=len(ids) - start,
                device=device,
                stop_at_top=True,
            )
            self.tokens_fed += len(ids) - start
            for point, shown in observed.items():
                require_finite(shown.tokens_LED, self._settings.layers, f"{point} of a token of {name}")
                require_finite(shown.sums_LPD, self._settings.layers, f"{point} of a span of {name}")
            accumulators.start(slice(0, len(spans)))
            stretches.add({point: shown.cpu() for point, shown in observed.items()})
        found = [accumulators.finish(slot, TokenSpans(span))[0][self._array] for slot, span in enumerate(spans)]
        return dict(zip(spans, found, strict=True))
