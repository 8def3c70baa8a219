"""An engine that holds one loaded Hugging Face model: what is loaded, and which part of this folder does which work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from ...jobs.rollouts import Canary
from ...jobs.spec import HookPoint
from ...jobs.units import RolloutRequest
from ..canary import LIMITS, compare
from ..chat.offsets import offsets_encoder
from ..chat.user_span import UserSpans
from ..engine import CapturedRollout, CapturedText, EngineSettings, TokenisedText
from ..interventions import Interventions
from ..models.hook_points import Tap, find_taps
from .capture import Capture
from .generation import Generation
from .loaded_model import LoadedModel, load_model
from .packed import ATTENTION, PackedPass, Segment, plain_attention
from .plain_pass import PlainPass
from .reading import TextReader

_PASSES_PER_CAPTURE = 4
"""Batches' worth of tokens that one call should bring, so that texts which begin alike meet in one pass."""

_PASS_TOKENS_HELD = 1024
"""Instead of a batch's, where every token is kept: what one call captures is held in memory until it returns."""


class BuiltinEngine:
    """An engine that holds one loaded model.

    Args:
        settings: What to load and how to run it.
        load: Gives the model, on its device, and the tokenizer.

    Raises:
        InputError: The model cannot be loaded, its tokenizer has no chat template or does not tell where its tokens lie
            although a pooling needs that, or its decoder layers have no such hook point as asked for.

    Attributes:
        loaded: The model and what goes with it.
        model: The model itself.
        renderer: Its chat template.
        layers: The captured layers.
        canary_limit: See ``Reader``.
        tokens_per_capture: See ``Reader``.
        prefetch: No unit: it asks for a request whenever a slot of its batch comes free.
    """

    def __init__(
        self, settings: EngineSettings, load: Callable[[EngineSettings], tuple[Any, Any]] = load_model
    ) -> None:
        torch.set_num_threads(settings.threads)
        self._settings = settings
        self.layers = settings.layers
        self.canary_limit = LIMITS[settings.dtype]
        self.prefetch = 0
        self.tokens_per_capture = _PASSES_PER_CAPTURE * (
            min(settings.batch_tokens, _PASS_TOKENS_HELD) if settings.token_layers else settings.batch_tokens
        )
        model, tokenizer = load(settings)
        loaded = self.loaded = LoadedModel.of(model, tokenizer, settings.device)
        self.model = model
        self.renderer = loaded.renderer
        model.set_attn_implementation(ATTENTION)
        self._taps: dict[HookPoint, list[Tap]] = find_taps(
            loaded.decoder_layers, settings.layers, settings.capture.hook_points, self._probe
        )
        top = loaded.decoder_layers[max(settings.layers)]
        self._capture = Capture(self._taps, settings.layers, top, settings.token_positions)
        self._interventions = Interventions(loaded.decoder_layers, loaded.d_model, settings.device)
        wants_users = settings.capture.needs_user_spans
        self._user_spans = UserSpans(offsets_encoder(tokenizer), loaded.renderer) if wants_users else None
        self._text_reader = TextReader(loaded, self._capture, settings, self._interventions)
        self._plain = PlainPass(model, self._taps, settings.layers, settings.token_positions, self._interventions)

    @property
    def reader(self) -> BuiltinEngine:
        """Itself: one model generates and captures."""
        return self

    def generate(self, next_request: Callable[[], RolloutRequest | None]) -> Iterator[CapturedRollout]:
        """Generate and capture; see ``Responder.generate``."""
        return self.generation(self._settings).run(next_request)

    def generation(
        self, settings: EngineSettings, capture: Capture | None = None, loaded: LoadedModel | None = None
    ) -> Generation:
        """Begin a stream of rollouts; for benchmarks with other settings, hooks or ends than the engine's own.

        Args:
            settings: What is asked of it.
            capture: Its hooks; None takes the engine's.
            loaded: The model; None takes the engine's.
        """
        loaded = loaded or self.loaded
        return Generation(loaded, capture or self._capture, settings, self._interventions, self._user_spans)

    def capture(self, texts: Sequence[TokenisedText]) -> list[CapturedText]:
        """Read and capture; see ``Reader.capture``."""
        return self._text_reader.read(texts)

    def canary(self, captured: CapturedRollout) -> Canary | None:
        """Recompute a rollout; see ``Reader.canary``."""
        if not captured.rollout.has_vector:
            return None
        arrays = captured.vectors_LD | captured.tokens_KTD
        with plain_attention(self.model, self.loaded.own_attention):
            plain = self._plain.vectors(captured, list(arrays))
        return compare(arrays, plain, self._settings.token_positions)

    def _probe(self) -> None:
        """Run a few tokens through the model, for hook points that are found by what adds up."""
        ids = list(range(3, 9))
        with torch.inference_mode():
            PackedPass(self._settings.device, [Segment(0, len(ids))]).run(self.model, ids, None)
