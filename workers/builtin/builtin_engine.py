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
from ..models.loaded_model import LoadedModel, load_model
from .capture import Capture
from .generation import Generation
from .packed import ATTENTION, PackedPass, Segment, plain_attention
from .plain_pass import PlainPass
from .reading import TextReader


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
        canary_limit: See ``Engine``.
    """

    def __init__(
        self, settings: EngineSettings, load: Callable[[EngineSettings], tuple[Any, Any]] = load_model
    ) -> None:
        torch.set_num_threads(settings.threads)
        self._settings = settings
        self.layers = settings.layers
        self.canary_limit = LIMITS[settings.dtype]
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
        self._reader = TextReader(loaded, self._capture, settings, self._interventions)
        self._plain = PlainPass(model, self._taps, settings.layers, settings.token_positions, self._interventions)

    def generate(self, next_request: Callable[[], RolloutRequest | None]) -> Iterator[CapturedRollout]:
        """Generate and capture; see ``Engine.generate``."""
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
        """Read and capture; see ``Engine.capture``."""
        return self._reader.read(texts)

    def canary(self, captured: CapturedRollout) -> Canary | None:
        """Recompute a rollout; see ``Engine.canary``."""
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
