"""A loaded Hugging Face model with its tokenizer, chat template, decoder layers and limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...jobs.errors import InputError
from ...jobs.machine_faults import refuse_machine_fault
from ..chat.checks import stop_token_ids
from ..chat.completion import renderer_of
from ..chat.renderer import ChatRenderer
from ..engine import EngineSettings
from ..models.adapters import merge_adapter
from ..models.checkpoints.architecture import auto_model_class
from ..models.checkpoints.checkpoint import ADAPTER_FOLDER, facts_of, open_checkpoint
from ..models.checkpoints.quantization import loading_options
from ..models.hook_points import find_decoder_layers
from ..models.memory import require_memory
from ..models.quiet_loading import without_progress_bar
from ..own_code import refuse_own_code

_UNLIMITED_CONTEXT = 2**31
"""Context length of a model whose configuration has no ``max_position_embeddings``."""


@dataclass(frozen=True, slots=True)
class Sharing:
    """Which texts of a model may share a pass; a text that may not has a pass of its own.

    Attributes:
        up_to: Longest text that may share a pass, in tokens; 0: none may.
        reason: Why longer ones may not; ``""`` where there are none.
        has_cache: Whether a text that is alone may be generated with transformers' own cache. If not, every token is
            sampled from a new pass over the whole text.
    """

    up_to: int = _UNLIMITED_CONTEXT
    reason: str = ""
    has_cache: bool = False

    @property
    def summary(self) -> str:
        """One sentence for people; ``""`` where all texts share passes."""
        if not self.reason:
            return ""
        texts = (
            f"Texts of more than {self.up_to} tokens have forward passes"
            if self.up_to
            else "All texts have forward passes"
        )
        how = "" if self.has_cache else ", one for every generated token"
        return f"{texts} of their own{how}, which is slower than shared passes, because {self.reason}."


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
        sharing: Which texts may share a pass.
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
    sharing: Sharing = Sharing()

    @property
    def num_layers(self) -> int:
        """Number of decoder layers."""
        return len(self.decoder_layers)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Decode tokens, special tokens included, as the text of a response.

        Args:
            token_ids: The tokens.
        """
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=False))

    def run_alone(
        self, token_ids: Sequence[int], *, num_logits: int = 1, use_cache: bool = False, past: Any = None
    ) -> Any:
        """Run transformers' own forward pass over one text.

        Args:
            token_ids: The text; where there is a cache, the tokens after those in it.
            num_logits: Number of last tokens whose logits are computed.
            use_cache: Whether to return a cache.
            past: The cache that an earlier call returned as ``past_key_values``; None for none.

        Returns:
            The model's output; its ``logits`` are ``(1, num_logits, V)``.
        """
        more = {} if past is None else {"past_key_values": past}
        return self.model(
            input_ids=torch.tensor([list(token_ids)], device=self.device),
            use_cache=use_cache,
            logits_to_keep=num_logits,
            **more,
        )

    def cache_bytes_per_token(self) -> float:
        """Return the bytes of keys and values of one token, by asking the model for those of a short text.

        0 for a model that has no such cache.
        """
        num_tokens = 8
        with torch.inference_mode():
            past = self.run_alone(range(3, 3 + num_tokens), use_cache=True).get("past_key_values")
        layers = getattr(past, "layers", None) or ()
        kept = [getattr(layer, name, None) for layer in layers for name in ("keys", "values")]
        return sum(one.nbytes for one in kept if isinstance(one, torch.Tensor)) / num_tokens

    @classmethod
    def of(cls, model: Any, tokenizer: Any, device: str, chat_template: str | None = None) -> LoadedModel:
        """Describe a model that transformers has loaded.

        Args:
            model: A causal language model, on its device.
            tokenizer: Its tokenizer.
            device: ``cpu`` or ``cuda``.
            chat_template: Text of the chat template to use instead of the tokenizer's; None: the tokenizer's.

        Raises:
            InputError: The tokenizer has no chat template, or the model has no list of decoder layers.
        """
        renderer = renderer_of(tokenizer, chat_template)
        config: Any = model.config.get_text_config()
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
    restoring = loading_options(checkpoint.raw, str(directory))
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
        with without_progress_bar():
            loaded: Any = auto_model_class(checkpoint.config).from_pretrained(
                directory,
                # Merged in float32, an adapter's sums are rounded once.
                dtype=torch.float32 if adapter.is_dir() else dtype,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                **attention_options(checkpoint.config),
                **restoring,
            )
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        refuse_machine_fault(error)
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


def attention_options(config: Any) -> dict[str, str]:
    """Choose the attention of a model where transformers' own choice would compute something else than the model.

    Some versions choose ``sdpa`` for Gemma 2, which has no soft cap of the scores and leaves it out without an error.

    Args:
        config: The model's configuration.

    Returns:
        Arguments for loading it; empty where transformers' own choice is right.
    """
    softcap = getattr(config.get_text_config(), "attn_logit_softcapping", None)
    return {} if softcap is None else {"attn_implementation": "eager"}


def cast_parameters(model: Any, dtype: torch.dtype) -> None:
    """Convert a model's parameters as if it had been loaded in a type; buffers, such as rotary frequencies, stay.

    Args:
        model: A model whose parameters transformers did not leave in that type.
        dtype: Type of its parameters.
    """
    for name, parameter in model.named_parameters():
        if not stays_float32(model, name, dtype):
            parameter.data = parameter.data.to(dtype)
    for config in (model.config, model.config.get_text_config()):
        config.dtype = dtype


def stays_float32(model: Any, name: str, dtype: torch.dtype) -> bool:
    """Whether transformers keeps a parameter in float32 although the model is loaded in another type.

    Args:
        model: The model, whose class names such modules.
        name: Name of the parameter.
        dtype: Type of the model's parameters.
    """
    if dtype == torch.float32:
        return False
    kept = set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    if dtype == torch.float16:
        kept |= set(getattr(model, "_keep_in_fp32_modules", None) or ())
    return any(part in name.split(".") for part in kept)


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
