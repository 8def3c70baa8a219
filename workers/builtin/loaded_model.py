"""A loaded Hugging Face model with its tokenizer, chat template, decoder layers and limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...jobs.errors import InputError
from ..chat.checks import stop_token_ids
from ..chat.renderer import ChatRenderer
from ..engine import EngineSettings
from ..models.hook_points import find_decoder_layers
from ..own_code import refuse_own_code

_ATTENTION_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}

_UNLIMITED_CONTEXT = 2**31
"""Context length of a model whose configuration has no ``max_position_embeddings``."""


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A loaded model with what the engine needs to know about it.

    Attributes:
        model: A causal language model, on its device.
        tokenizer: Its tokenizer.
        renderer: Renders prompts by its chat template.
        decoder_layers: All decoder layers, in order.
        stop_ids: Token ids that end a response.
        max_context: Longest conversation, in tokens.
        d_model: Width of the residual stream.
        own_attention: Name of the attention implementation that transformers selected for the model, such as ``sdpa``.
        device: ``cpu`` or ``cuda``.
    """

    model: Any
    tokenizer: Any
    renderer: ChatRenderer
    decoder_layers: tuple[nn.Module, ...]
    stop_ids: frozenset[int]
    max_context: int
    d_model: int
    own_attention: str
    device: str

    @property
    def num_layers(self) -> int:
        """Number of decoder layers."""
        return len(self.decoder_layers)

    @classmethod
    def of(cls, model: Any, tokenizer: Any, device: str, chat_template: str | None = None) -> LoadedModel:
        """Describe a model that transformers has loaded.

        Args:
            model: A causal language model, on its device.
            tokenizer: Its tokenizer.
            device: ``cpu`` or ``cuda``.
            chat_template: Text of the chat template to use instead of the tokenizer's; None: the tokenizer's.

        Raises:
            InputError: The tokenizer has no chat template, or the model has layers other than attention layers or no
                list of decoder layers.
        """
        renderer = ChatRenderer(tokenizer, chat_template)
        config: Any = model.config.get_text_config()
        _refuse_other_attention(config)
        return cls(
            model=model,
            tokenizer=tokenizer,
            renderer=renderer,
            decoder_layers=tuple(find_decoder_layers(model, int(config.num_hidden_layers))),
            stop_ids=stop_token_ids(renderer, tokenizer, model.config, config, model.generation_config),
            max_context=int(getattr(config, "max_position_embeddings", None) or _UNLIMITED_CONTEXT),
            d_model=int(config.hidden_size),
            own_attention=str(model.config._attn_implementation),
            device=device,
        )


def _refuse_other_attention(config: Any) -> None:
    """Refuse recurrent layers (a running state instead of keys and values): a packed pass would mix its requests."""
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

    Args:
        settings: Directory, parameter type and device; other settings are ignored.

    Raises:
        InputError: The files are missing or invalid, or transformers does not support the model.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(settings.directory, trust_remote_code=False)
        model: Any = AutoModelForCausalLM.from_pretrained(
            settings.directory,
            dtype=getattr(torch, settings.dtype),
            use_safetensors=True,
            trust_remote_code=False,
        )
        model.to(settings.device).eval()
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        refuse_own_code(settings.directory, error)
        raise InputError(
            f"the model in {settings.directory} cannot be loaded: {str(error).strip().splitlines()[0]}",
            code="model_not_loaded",
            field="model.source",
            hint="Check its files, or choose another model.",
        ) from error
    return model, tokenizer
