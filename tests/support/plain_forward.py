"""The reference for captured vectors: one conversation at a time through plain Hugging Face, hooks of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from persona_atlas.jobs.block import Rollout

POOLINGS = ("response_mean", "response_last", "prompt_mean", "prompt_last")


class PlainModel:
    """A float32 model loaded anew, without batching, padding or cache."""

    def __init__(self, directory: Path) -> None:
        from transformers import AutoModelForCausalLM

        self.model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        inner = self.model.transformer.h if hasattr(self.model, "transformer") else self.model.model.layers
        self.blocks: list[Any] = list(inner)

    def run(self, token_ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Give what each block hands on and Hugging Face's hidden states after it: both (layer, token, d_model)."""
        seen: dict[int, torch.Tensor] = {}
        handles = []
        for layer, block in enumerate(self.blocks):

            def keep(_module: Any, _inputs: Any, output: Any, layer: int = layer) -> None:
                seen[layer] = (output if isinstance(output, torch.Tensor) else output[0])[0]

            handles.append(block.register_forward_hook(keep))
        with torch.no_grad():
            output = self.model(input_ids=torch.tensor([list(token_ids)]), output_hidden_states=True, use_cache=False)
        for handle in handles:
            handle.remove()
        hooked = torch.stack([seen[layer] for layer in range(len(self.blocks))])
        hidden = torch.stack([states[0] for states in output.hidden_states[1:]])
        return hooked.numpy(), hidden.numpy()


def pool(states_LTD: np.ndarray, rollout: Rollout) -> dict[str, np.ndarray]:
    """Pool a whole conversation's states; NaN for the response poolings of an empty response."""
    prompt = states_LTD[:, : len(rollout.prompt_token_ids)].astype(np.float64)
    response = states_LTD[:, len(rollout.prompt_token_ids) :].astype(np.float64)
    nothing = np.full((states_LTD.shape[0], states_LTD.shape[2]), np.nan)
    return {
        "response_mean": response.mean(axis=1) if response.shape[1] else nothing,
        "response_last": response[:, -1] if response.shape[1] else nothing,
        "prompt_mean": prompt.mean(axis=1),
        "prompt_last": prompt[:, -1],
    }


def conversation_ids(rollout: Rollout) -> list[int]:
    """Give a rollout's prompt and response content, without the end of its turn."""
    return [*rollout.prompt_token_ids, *rollout.response_token_ids[: rollout.num_content_tokens]]


def relative_errors(got_LD: np.ndarray, expected_LD: np.ndarray) -> np.ndarray:
    """Norm of the difference over the norm of what was expected, per layer."""
    return np.linalg.norm(got_LD - expected_LD, axis=-1) / np.linalg.norm(expected_LD, axis=-1)
