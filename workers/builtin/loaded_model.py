"""A loaded Hugging Face model with its tokenizer, chat template, decoder layers and limits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...jobs.errors import InputError
from ..chat.renderer import ChatRenderer, stop_token_ids
from ..engine import EngineSettings
from ..models.adapters import merge_adapter
from ..models.architecture import auto_model_class
from ..models.checkpoint import ADAPTER_FOLDER, facts_of, open_checkpoint
from ..models.hook_points import find_decoder_layers
from ..models.memory import require_memory
from ..models.quantization import loading_options
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
    def of(cls, model: Any, tokenizer: Any, device: str) -> LoadedModel:
        """Describe a model that transformers has loaded.

        Args:
            model: A causal language model, on its device.
            tokenizer: Its tokenizer.
            device: ``cpu`` or ``cuda``.

        Raises:
            InputError: The tokenizer has no chat template, or the model has layers other than attention layers or no
                list of decoder layers.
        """
        renderer = ChatRenderer(tokenizer)
        config: Any = model.config.get_text_config()
        _refuse_other_attention(config)
        return cls(
            model=model,
            tokenizer=tokenizer,
            renderer=renderer,
            decoder_layers=tuple(find_decoder_layers(model, int(config.num_hidden_layers))),
            stop_ids=stop_token_ids(tokenizer, model.config, model.generation_config),
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
    """Load a model and its tokenizer; an adapter is merged into it.

    Args:
        settings: Directory, parameter type and device; other settings are ignored.

    Raises:
        InputError: The files are missing or invalid, or transformers does not support the model.
    """
    from safetensors import SafetensorError
    from transformers import AutoTokenizer

    directory = settings.directory
    checkpoint = open_checkpoint(directory)
    adapter = directory / ADAPTER_FOLDER
    if adapter.is_dir():
        require_memory(4 * facts_of(checkpoint, fingerprint="").num_parameters, 1, "cpu")
    dtype: torch.dtype = getattr(torch, settings.dtype)
    restoring = loading_options(checkpoint.raw)
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
        loaded: Any = auto_model_class(checkpoint.config).from_pretrained(
            directory,
            # Merged in float32, an adapter's sums are rounded once.
            dtype=torch.float32 if adapter.is_dir() else dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **restoring,
        )
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        refuse_own_code(directory, error)
        raise InputError(
            f"the model in {directory} cannot be loaded: {str(error).strip().splitlines()[0]}",
            code="model_not_loaded",
            field="model.source",
            hint="Check its files, or choose another model.",
        ) from error
    model, found = loaded
    _refuse_missing(directory, found)
    if adapter.is_dir():
        model = merge_adapter(model, adapter)
    if adapter.is_dir() or restoring:
        cast_parameters(model, dtype)
    model.to(settings.device).eval()
    return model, tokenizer


def cast_parameters(model: Any, dtype: torch.dtype) -> None:
    """Convert a model's parameters as if it had been loaded in a type; buffers, such as rotary frequencies, stay.

    Args:
        model: A model whose parameters transformers did not leave in that type.
        dtype: Type of its parameters.
    """
    kept = set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    if dtype == torch.float16:
        kept |= set(getattr(model, "_keep_in_fp32_modules", None) or ())
    for name, parameter in model.named_parameters():
        if not any(part in name.split(".") for part in kept):
            parameter.data = parameter.data.to(dtype)
    for config in (model.config, model.config.get_text_config()):
        config.dtype = dtype


def _refuse_missing(directory: Path, found: Any) -> None:
    """Refuse weights that lack tensors of the model, to which transformers gives random values."""
    missing = sorted(found["missing_keys"])
    if missing:
        raise InputError(
            f"the weights in {directory} lack {missing[0]}"
            f"{f' and {len(missing) - 1} more tensors' if len(missing) > 1 else ''} that config.json asks for.",
            code="model_not_loaded",
            field="model.source",
            hint="Fetch configuration and weights again, from the same place.",
        )
