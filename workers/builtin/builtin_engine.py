"""An engine that holds one loaded Hugging Face model: what is loaded, and which part of this folder does which work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from ...jobs.errors import InputError
from ...jobs.rollouts import Canary
from ...jobs.spec import HookPoint
from ...jobs.units import RolloutRequest
from ..canary import LIMITS, compare
from ..chat.renderer import ChatRenderer, stop_token_ids
from ..engine import CapturedRollout, CapturedText, EngineSettings, TokenisedText
from ..models.hook_points import Tap, find_decoder_layers, find_taps
from .capture import Capture
from .generation import Generation, LoadedModel
from .packed import ATTENTION, PackedPass, Segment, plain_attention
from .plain_pass import plain_vectors
from .reading import capture_texts

_PASSES_PER_CAPTURE = 4
"""Batches' worth of tokens that one call should bring, so that texts which begin alike meet in one pass."""

_PASS_TOKENS_HELD = 1024
"""Instead of a batch's, where every token is kept: what one call captures is held in memory until it returns."""

_ATTENTION_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}


def _refuse_other_attention(config: Any) -> None:
    """Layers that keep a running state instead of keys and values would mix the rows of a pass."""
    other = set(getattr(config, "layer_types", None) or ()) - _ATTENTION_LAYERS
    if other:
        raise InputError(
            f"the model has layers of type {', '.join(sorted(other))}, which cannot be batched here yet.",
            code="unknown_model",
            field="model.source",
            hint="Choose a model of attention layers throughout.",
        )


def load_model(settings: EngineSettings) -> tuple[Any, Any]:
    """Load a model and its tokenizer.

    Raises:
        InputError: They cannot be loaded.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(settings.directory)
        model: Any = AutoModelForCausalLM.from_pretrained(
            settings.directory, dtype=getattr(torch, settings.dtype), use_safetensors=True
        )
        model.to(settings.device).eval()
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        raise InputError(
            f"the model in {settings.directory} cannot be loaded: {str(error).strip().splitlines()[0]}",
            code="model_not_loaded",
            field="model.source",
            hint="Check its files, or choose another model.",
        ) from error
    return model, tokenizer


class BuiltinEngine:
    """An engine that holds one loaded model.

    Args:
        settings: What to load and how to run it.
        load: Gives the model, on its device, and the tokenizer.

    Raises:
        InputError: The model cannot be loaded, its tokenizer has no chat template, or its blocks have no such hook
            point as asked for.

    Attributes:
        loaded: The model and what goes with it.
        own_attention: The attention that transformers would give the model.
        prefetch: None: it asks for a request whenever a place in its batch comes free.
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
        self.model, tokenizer = load(settings)
        self.renderer = ChatRenderer(tokenizer)
        config: Any = self.model.config.get_text_config()
        _refuse_other_attention(config)
        blocks = find_decoder_layers(self.model, int(config.num_hidden_layers))
        self.own_attention = str(self.model.config._attn_implementation)
        self.model.set_attn_implementation(ATTENTION)
        self._taps: dict[HookPoint, list[Tap]] = find_taps(
            blocks, settings.layers, settings.capture.hook_points, self._probe
        )
        self.loaded = LoadedModel(
            model=self.model,
            tokenizer=tokenizer,
            renderer=self.renderer,
            capture=Capture(self._taps, settings.layers, blocks[max(settings.layers)], settings.token_positions),
            stop_ids=stop_token_ids(tokenizer, self.model.config, self.model.generation_config),
            num_layers=len(blocks),
            max_context=int(getattr(config, "max_position_embeddings", None) or 2**31),
            d_model=int(config.hidden_size),
        )

    @property
    def reader(self) -> BuiltinEngine:
        """Itself: one model generates and captures."""
        return self

    def generate(self, next_request: Callable[[], RolloutRequest | None]) -> Iterator[CapturedRollout]:
        """Generate and capture; see ``Responder.generate``."""
        return Generation(self.loaded, self._settings).run(next_request)

    def capture(self, texts: Sequence[TokenisedText]) -> list[CapturedText]:
        """Read and capture; see ``Reader.capture``."""
        return capture_texts(self.loaded, self._settings, texts)

    def canary(self, captured: CapturedRollout) -> Canary | None:
        """Recompute a rollout; see ``Reader.canary``."""
        if not captured.rollout.has_vector:
            return None
        arrays = captured.vectors_LD | captured.tokens_KTD
        with plain_attention(self.model, self.own_attention):
            positions = self._settings.token_positions
            plain = plain_vectors(self.model, self._taps, self.layers, list(arrays), captured.rollout, positions)
        return compare(arrays, plain, positions)

    def _probe(self) -> None:
        """Run a few tokens through the model."""
        ids = list(range(3, 9))
        with torch.inference_mode():
            PackedPass(self._settings.device, [Segment(0, len(ids))]).run(self.model, ids, None)
