"""The built-in engine: one loaded Hugging Face model that generates, captures and recomputes canaries.

Delegates to the modules of this folder: ``generation`` (responder), ``reading`` (reader), ``capture`` (hooks) and
``plain_pass`` (canary).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ...jobs.poolings import pooling_named
from ...jobs.specs.spec_parts import HookPoint
from ...jobs.work.rollouts import Canary
from ...jobs.work.units import RolloutRequest
from ..canary import LIMITS, compare
from ..chat.offsets import offsets_encoder
from ..chat.user_span import UserSpans
from ..editing.interventions import Interventions
from ..engine import CapturedRollout, CapturedText, EngineSettings, StreamedRequest, TokenisedText
from ..mixed_up import others_of
from ..models.hook_points import Tap, find_taps
from .batching.batch_size import sized
from .batching.exhaustion import stream_in_memory
from .batching.kept_turns import KeptTurns
from .generation import Generation
from .kept_reading import KeptReader
from .loaded_model import LoadedModel, load_model
from .passes.capture import Capture
from .passes.plain_pass import PlainPass
from .passes.registration import ATTENTION, plain_attention
from .reading import PASS_TOKENS, TextReader
from .sharing import find_sharing

_PASSES_PER_CAPTURE = 4
"""Tokens that one call of ``capture`` should bring, in batches: the more texts, the more of them share a prefix."""

_PASS_TOKENS_HELD = 1024
"""Limit of the batch size in that rule where every token is kept, because a call holds all that it captures."""


class BuiltinEngine:
    """An engine that holds one loaded model.

    Args:
        settings: What to load and how to run it.
        load: Loads the model, on its device, and the tokenizer.

    Raises:
        InputError: The model cannot be loaded, its tokenizer has no chat template or no character offsets although a
            pooling needs them, or its decoder layers lack a requested hook point.

    Attributes:
        loaded: The model with its tokenizer, chat template and limits.
        model: The model itself.
        renderer: Renders prompts by its chat template.
        layers: The captured layers, 0-based, ascending.
        canary_limit: Largest relative error of a canary; see ``Reader``.
        tokens_per_capture: Tokens that one call of ``capture`` should bring; see ``Reader``.
        passes: Which texts have a forward pass of their own, and why; see ``Reader``.
        prefetch: 0, because it pulls a request whenever a slot of its batch is freed.
    """

    def __init__(
        self, settings: EngineSettings, load: Callable[[EngineSettings], tuple[Any, Any]] = load_model
    ) -> None:
        torch.set_num_threads(settings.threads)
        self.layers = settings.layers
        self.canary_limit = LIMITS[settings.dtype]
        self.prefetch = 0
        model, tokenizer = load(settings)
        loaded = LoadedModel.of(model, tokenizer, settings.device, settings.chat_template)
        self._taps: dict[HookPoint, list[Tap]] = find_taps(
            loaded.decoder_layers, settings.layers, settings.capture.hook_points, partial(_run_probe, loaded)
        )
        places = [tap for taps in self._taps.values() for tap in taps]
        loaded = self.loaded = replace(loaded, sharing=find_sharing(loaded, places, self.canary_limit))
        self.passes = loaded.sharing.summary
        settings = self._settings = sized(settings, loaded)
        self._kept_turns = KeptTurns(_kept_tokens(settings)) if settings.kept_turns else None
        most = _PASS_TOKENS_HELD if settings.token_layers else PASS_TOKENS[settings.device] * _PASSES_PER_CAPTURE
        self.tokens_per_capture = _PASSES_PER_CAPTURE * min(settings.batch_size, most)
        if loaded.sharing.up_to:
            model.set_attn_implementation(ATTENTION)
        self.model = model
        self.renderer = loaded.renderer
        top = loaded.decoder_layers[max(settings.layers)]
        before_edits = settings.capture.before_intervention
        self._capture = Capture(self._taps, settings.layers, top, settings.token_positions, before_edits=before_edits)
        self._interventions = Interventions(loaded.decoder_layers, loaded.d_model, settings.device)
        wants_users = settings.capture.needs_user_spans
        self._user_spans = UserSpans(offsets_encoder(tokenizer), loaded.renderer) if wants_users else None
        self._text_reader = TextReader(loaded, self._capture, settings, self._interventions)
        self._plain = PlainPass(
            model,
            self._taps,
            settings.layers,
            settings.token_positions,
            self._interventions,
            loaded.decoder_layers[0],
            before_edits=before_edits,
        )

    @property
    def reader(self) -> BuiltinEngine:
        """This engine: the same model generates and captures."""
        return self

    @property
    def batch_tokens(self) -> int:
        """Tokens of a batch; where the settings did not say, what the GPU's memory has room for."""
        return self._settings.batch_size

    def generate(self, next_request: Callable[[], RolloutRequest | None]) -> Iterator[CapturedRollout]:
        """Generate and capture; see ``Responder.generate``."""
        sampling = self._settings.sampling

        def next_streamed() -> StreamedRequest | None:
            request = next_request()
            return None if request is None else StreamedRequest(request, sampling)

        return self.stream(next_streamed)

    def stream(self, next_request: Callable[[], StreamedRequest | None]) -> Iterator[CapturedRollout]:
        """Generate and capture, each request in its own way; see ``StreamingResponder.stream``."""
        return stream_in_memory(
            lambda tokens: self._generation(replace(self._settings, batch_tokens=tokens)),
            self.batch_tokens,
            next_request,
            self._shrink,
            self._kept_turns.clear if self._kept_turns else lambda: False,
        )

    def _shrink(self, batch_tokens: int) -> None:
        self._settings = replace(self._settings, batch_tokens=batch_tokens)
        if self._kept_turns is not None:
            self._kept_turns.budget_tokens = _kept_tokens(self._settings)

    def _generation(self, settings: EngineSettings) -> Generation:
        return Generation(self.loaded, self._capture, settings, self._interventions, self._user_spans, self._kept_turns)

    def generation(
        self, settings: EngineSettings, capture: Capture | None = None, loaded: LoadedModel | None = None
    ) -> Generation:
        """Start a stream of rollouts; benchmarks pass other settings, hooks or stop tokens than the engine's own.

        Args:
            settings: Sampling, batch size, captured layers and poolings.
            capture: The hooks; None: those of the engine.
            loaded: The model; None: that of the engine.
        """
        loaded = loaded or self.loaded
        return Generation(loaded, capture or self._capture, settings, self._interventions, self._user_spans)

    def capture(self, texts: Sequence[TokenisedText]) -> list[CapturedText]:
        """Capture existing texts; see ``Reader.capture``."""
        return self._text_reader.read(texts)

    def kept_reader(self) -> KeptReader:
        """Make a reader of conversations that grow, which keeps their keys and values between calls."""
        return KeptReader(self.loaded, self._capture, self._settings, self._text_reader)

    def close(self) -> None:
        """Do nothing: the model has no processes, and its memory is free when nobody holds it any more."""

    def canary(self, captured: CapturedRollout, others: Sequence[CapturedRollout] = ()) -> Canary | None:
        """Recompute a rollout; see ``Reader.canary``."""
        content = captured.rollout.num_content_tokens
        captured_values = captured.vectors_LD | captured.tokens_KTD
        # Of an empty response only the poolings over its prompt have values.
        arrays = {
            array: values for array, values in captured_values.items() if pooling_named(array[1]).has_value(content)
        }
        if not arrays:
            return None
        with plain_attention(self.model, self.loaded.own_attention):
            plain = self._plain.vectors(captured, list(arrays))
        return compare(arrays, plain, self._settings.token_positions, others_of(captured, others))


def _kept_tokens(settings: EngineSettings) -> int:
    return int(settings.kept_turns * settings.batch_size)


def _run_probe(loaded: LoadedModel) -> None:
    """Run a few tokens through a model while ``find_taps`` observes it."""
    with torch.inference_mode():
        loaded.run_alone(range(3, 9))
