"""A model as this side of vLLM needs it: tokenizer, chat template, limits and sizes, without its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...jobs.engines import VLLM_ARCHITECTURES
from ...jobs.errors import InputError
from ..chat.checks import stop_token_ids
from ..chat.completion import renderer_of
from ..chat.renderer import ChatRenderer
from ..engine import EngineSettings
from ..models.checkpoints.checkpoint import ADAPTER_FOLDER, open_checkpoint

_UNLIMITED_CONTEXT = 2**20
"""Context length of a model whose configuration has none."""


@dataclass(frozen=True, eq=False)
class ServedModel:
    """What is known of a model that vLLM runs.

    Attributes:
        tokenizer: Its tokenizer.
        renderer: Renders prompts by its chat template.
        stop_ids: Token ids that end a response.
        max_context: Longest conversation, in tokens.
        d_model: Width of the residual stream.
        num_layers: Number of decoder layers.
        kv_values_per_token: Values that a token adds to the KV cache, over all layers.
        implementation: ``model_impl`` of vLLM: ``vllm`` for its own class, ``transformers`` for its backend.
    """

    tokenizer: Any
    renderer: ChatRenderer
    stop_ids: frozenset[int]
    max_context: int
    d_model: int
    num_layers: int
    kv_values_per_token: int
    implementation: str

    def decode(self, token_ids: Sequence[int]) -> str:
        """Decode tokens, special tokens included, as the text of a response.

        Args:
            token_ids: The tokens.
        """
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=False))


def read_model(settings: EngineSettings) -> ServedModel:
    """Read a model's small files.

    Args:
        settings: Its directory and chat template.

    Raises:
        InputError: It is not one that the engine captures, has an adapter or captured layers that it has not, or its
            tokenizer has no chat template.
    """
    from transformers import AutoTokenizer, GenerationConfig

    directory = settings.directory
    if (directory / ADAPTER_FOLDER).is_dir():
        raise InputError(
            "has an adapter, which the vLLM engine does not apply.",
            code="no_adapter",
            field="model.adapter",
            hint="Merge it into the weights, or set placement.engine to builtin.",
        )
    checkpoint = open_checkpoint(directory)
    config = checkpoint.config
    text_config: Any = config.get_text_config()
    tokenizer: Any = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    try:
        generation: Any = GenerationConfig.from_pretrained(directory, trust_remote_code=False)
    except OSError:
        generation = GenerationConfig.from_model_config(config)
    renderer = renderer_of(tokenizer, settings.chat_template)
    num_layers = int(text_config.num_hidden_layers)
    heads = int(text_config.num_attention_heads)
    head_dim = int(getattr(text_config, "head_dim", None) or text_config.hidden_size // heads)
    kv_heads = int(getattr(text_config, "num_key_value_heads", None) or heads)
    return ServedModel(
        tokenizer=tokenizer,
        renderer=renderer,
        stop_ids=stop_token_ids(renderer, tokenizer, config, text_config, generation),
        max_context=int(getattr(text_config, "max_position_embeddings", None) or _UNLIMITED_CONTEXT),
        d_model=int(text_config.hidden_size),
        num_layers=num_layers,
        kv_values_per_token=2 * num_layers * kv_heads * head_dim,
        implementation=_implementation(list(config.architectures or [])),
    )


def _implementation(architectures: Sequence[str]) -> str:
    found = [VLLM_ARCHITECTURES[name].implementation for name in architectures if name in VLLM_ARCHITECTURES]
    if not found:
        raise InputError(
            f"the vLLM engine does not capture {', '.join(architectures) or 'a model that names no architecture'}.",
            code="no_vllm_model",
            field="placement.engine",
            hint=f"Set it to builtin, or choose a model among {', '.join(VLLM_ARCHITECTURES)}.",
        )
    return found[0]
