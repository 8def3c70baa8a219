"""A random model of a given shape, made on the device, with prompts and texts for it.

Its tokenizer is that of the tests: a token for every byte, and a chat template. The LM head is scaled, so that the
probabilities of the next token are as uneven as a trained model's: sampling from a flat distribution over the whole
vocabulary costs much more.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from persona_atlas.jobs.messages import ChatMessage
from persona_atlas.jobs.sizing.estimate import DEFAULT_BATCH_TOKENS
from persona_atlas.jobs.specs.spec_parts import CaptureSpec, SamplingSpec
from persona_atlas.jobs.work.addresses import RolloutAddress
from persona_atlas.jobs.work.units import RolloutRequest
from persona_atlas.workers.builtin.builtin_engine import BuiltinEngine
from persona_atlas.workers.chat.renderer import ChatRenderer
from persona_atlas.workers.engine import EngineSettings, TokenisedText

from tiny_models import SPECIAL, save_tokenizer

_HEAD_SCALE = 8.0
"""Factor of the LM head: logits with a standard deviation of about 10 instead of 1.3."""

_LETTERS = "abcdefghijklmnopqrstuvwxyz "


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Shape of a Llama-like model.

    Attributes:
        dtype: Type of its parameters.
        layers: Decoder layers.
        width: Width of the residual stream.
        mlp_width: Inner width of an MLP.
        heads: Query heads.
        kv_heads: Key-value heads.
        vocabulary: Number of tokens.
    """

    dtype: str
    layers: int
    width: int
    mlp_width: int
    heads: int
    kv_heads: int
    vocabulary: int

    @property
    def value_bytes(self) -> int:
        """Bytes of a parameter, and of a value of the KV cache."""
        return getattr(torch, self.dtype).itemsize

    @property
    def layer_parameters(self) -> int:
        """Parameters of the matrices of all decoder layers."""
        kv_width = self.width // self.heads * self.kv_heads
        return self.layers * (2 * self.width**2 + 2 * self.width * kv_width + 3 * self.width * self.mlp_width)

    @property
    def step_bytes(self) -> int:
        """Bytes of the weights that a decoding step reads: those of the layers and of the LM head."""
        return (self.layer_parameters + self.width * self.vocabulary) * self.value_bytes

    @property
    def kv_values_per_token(self) -> int:
        """Values that a token adds to the KV cache, over all layers."""
        return 2 * self.layers * self.width // self.heads * self.kv_heads

    def prefill_operations(self, lengths: Sequence[int]) -> int:
        """Count the operations of reading texts without an LM head: matrix products, and causal attention.

        Args:
            lengths: Tokens of each text.
        """
        scores = sum(length * (length + 1) // 2 for length in lengths)
        return 2 * self.layer_parameters * sum(lengths) + 4 * scores * self.width * self.layers


def make_settings(size: ModelSize, device: str, scratch: Path) -> EngineSettings:
    """Make settings of an engine that captures ``response_mean`` at every layer, and save a tokenizer for it.

    Args:
        size: Shape of the model.
        device: ``cuda`` or ``cpu``.
        scratch: Directory in which the tokenizer is saved.
    """
    directory = scratch / "tokenizer"
    directory.mkdir(exist_ok=True)
    save_tokenizer(directory)
    return EngineSettings(
        directory=directory,
        dtype=size.dtype,
        device=device,
        threads=torch.get_num_threads(),
        # On a GPU, what its memory has room for.
        batch_tokens=None if device == "cuda" else DEFAULT_BATCH_TOKENS,
        layers=tuple(range(size.layers)),
        sampling=SamplingSpec(),
        capture=CaptureSpec(),
    )


def make_engine(size: ModelSize, settings: EngineSettings) -> BuiltinEngine:
    """Make an engine with a random model.

    Args:
        size: Shape of the model.
        settings: How to run it.
    """
    return BuiltinEngine(settings, lambda asked: _random_model(size, asked))


def _random_model(size: ModelSize, settings: EngineSettings) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(settings.directory, trust_remote_code=False)
    torch.manual_seed(0)
    # On the device and in its type from the start: a float32 model on the way there would take twice the memory.
    with torch.device(settings.device):
        model: Any = AutoModelForCausalLM.from_config(
            config_of(size), dtype=getattr(torch, settings.dtype), trust_remote_code=False
        )
    with torch.no_grad():
        model.lm_head.weight.mul_(_HEAD_SCALE)
    return model.eval(), tokenizer


def config_of(size: ModelSize) -> Any:
    """Make the configuration of a Llama of a shape, for transformers.

    Args:
        size: Shape of the model.
    """
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        intermediate_size=size.mlp_width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=8192,
        bos_token_id=None,
        eos_token_id=SPECIAL.index("<|end|>"),
        pad_token_id=0,
    )


def make_requests(renderer: ChatRenderer, count: int, prompt_tokens: int) -> list[RolloutRequest]:
    """Make requests whose prompts have a number of tokens each, and no beginning in common.

    Args:
        renderer: Renders prompts, a token a byte.
        count: Number of requests.
        prompt_tokens: Tokens of each prompt.
    """
    rng = random.Random(0)
    around = len(renderer.render([ChatMessage("user", "x")])) - 1
    made: list[RolloutRequest] = []
    for index in range(count):
        words = "".join(rng.choice(_LETTERS) for _ in range(prompt_tokens - around - 2))
        # A template may strip spaces at the ends.
        messages = (ChatMessage("user", f"q{words}q"),)
        assert len(renderer.render(messages)) == prompt_tokens
        address = RolloutAddress("role", "pirate", "pos", 0, index, 0)
        made.append(RolloutRequest(address, messages, address.seed(0)))
    return made


def make_texts(size: ModelSize, count: int, mean_tokens: int) -> list[TokenisedText]:
    """Make texts of random tokens, of 0.5 to 1.5 times a length; the second half of each is a response.

    Args:
        size: Shape of the model.
        count: Number of texts.
        mean_tokens: Mean length of the texts.
    """
    rng = random.Random(0)
    made: list[TokenisedText] = []
    for index in range(count):
        length = rng.randrange(mean_tokens // 2, mean_tokens * 3 // 2)
        ids = tuple(rng.randrange(len(SPECIAL), size.vocabulary) for _ in range(length))
        made.append(TokenisedText(f"text {index}", ids, ((length // 2, length),)))
    return made
