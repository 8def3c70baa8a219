"""The reference for captured vectors: plain Hugging Face passes over one conversation at a time, with own hooks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from persona_atlas.jobs.interventions import Ablate, AddVector, Edit
from persona_atlas.jobs.work.rollouts import Rollout

POINTS = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
POOLINGS = ("response_mean", "response_last", "prompt_mean", "prompt_last")
ALL_POOLINGS = (*POOLINGS, "assistant_start", "user_mean")

_TOKENS_AFTER_USER = 1 + len("\n") + 1 + len("assistant\n")
"""Of the tiny models' template, between the user's last word and the response: <|end|> and <|start|> are one token."""


class PlainModel:
    """A freshly loaded model, in float32 by default, used without batching, padding or cache."""

    def __init__(
        self,
        directory: Path,
        dtype: torch.dtype = torch.float32,
        edits: Sequence[Edit] = (),
        device: str = "cpu",
    ) -> None:
        """Load it; ``edits`` are applied to the outputs of its layers, each by its own formula, in float64."""
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(directory)
        # Not sdpa, which some versions of transformers choose for Gemma 2 and which leaves its soft cap out.
        softcap = getattr(config.get_text_config(), "attn_logit_softcapping", None)
        own = {} if softcap is None else {"attn_implementation": "eager"}
        self.model: Any = model_class(config).from_pretrained(directory, dtype=dtype, **own).eval().to(device)
        self.layers: list[Any] = next(list(found) for place in _LISTS if (found := _at(self.model, place)) is not None)
        self.moved: dict[int, torch.Tensor] = {}
        """How far the edits of each edited layer moved each token in the last run: float64, by layer."""
        self.before: dict[int, torch.Tensor] = {}
        """The stream before these edits."""
        self._response = 0
        for layer in {edit.layer for edit in edits}:
            here = [edit for edit in edits if edit.layer == layer]
            self.layers[layer].register_forward_hook(self._editing(layer, here))

    def run(self, token_ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Compute the output of each layer, and Hugging Face's hidden states after it: both (layer, token, d_model)."""
        states = self.places(token_ids)
        return states["resid_post"], states["hidden"]

    def logits(self, token_ids: Sequence[int], response: int = 0) -> torch.Tensor:
        """Compute the logits after the last token: ``(V,)``; see ``places``."""
        self._response = response
        with torch.no_grad():
            return self.model(input_ids=self._ids(token_ids), use_cache=False).logits[0, -1]

    def outputs(self, token_ids: Sequence[int], response: int = 0) -> np.ndarray:
        """Compute the output of each layer, in any family: (layer, token, d_model); see ``places``."""
        self._response = response
        seen: list[torch.Tensor] = []
        handles = [
            layer.register_forward_hook(
                lambda _module, _inputs, output: seen.append((output if torch.is_tensor(output) else output[0])[0])
            )
            for layer in self.layers
        ]
        with torch.no_grad():
            self.model(input_ids=self._ids(token_ids), use_cache=False)
        for handle in handles:
            handle.remove()
        return torch.stack(seen).float().cpu().numpy()

    def places(self, token_ids: Sequence[int], response: int = 0) -> dict[str, np.ndarray]:
        """Compute every hook point, found by the family's own module names, and Hugging Face's hidden states.

        ``response`` is the position from which edits of the response alone act.
        """
        self._response = response
        seen: dict[tuple[str, int], torch.Tensor] = {}
        handles = []

        def keep_output(key: tuple[str, int]) -> Any:
            def keep(_module: Any, _inputs: Any, output: Any) -> None:
                seen[key] = (output if isinstance(output, torch.Tensor) else output[0])[0]

            return keep

        def keep_input(key: tuple[str, int]) -> Any:
            return lambda _module, inputs: seen.__setitem__(key, inputs[0][0])

        for layer, module in enumerate(self.layers):
            parts = {name: getattr(module, name) for name in _PARTS[self._kind_of(module)]}
            for point, part in zip(("attn_out", "resid_mid", "mlp_out"), parts.values(), strict=True):
                if point == "resid_mid":
                    handles.append(part.register_forward_pre_hook(keep_input((point, layer))))
                else:
                    handles.append(part.register_forward_hook(keep_output((point, layer))))
            handles.append(module.register_forward_pre_hook(keep_input(("resid_pre", layer))))
            handles.append(module.register_forward_hook(keep_output(("resid_post", layer))))
        with torch.no_grad():
            output = self.model(input_ids=self._ids(token_ids), output_hidden_states=True, use_cache=False)
        for handle in handles:
            handle.remove()
        points = {point for point, _ in seen}
        states = {
            point: torch.stack([seen[point, layer] for layer in range(len(self.layers))]).float().cpu().numpy()
            for point in points
        }
        states["hidden"] = torch.stack([hidden[0] for hidden in output.hidden_states[1:]]).float().cpu().numpy()
        return states

    def _editing(self, layer: int, edits: Sequence[Edit]) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> Any:
            resid = output if isinstance(output, torch.Tensor) else output[0]
            before = stream = resid[0].double()
            for edit in edits:
                first = self._response if edit.positions == "response" else 0
                stream = torch.cat([stream[:first], _edited(edit, stream[first:])])
            self.before[layer], self.moved[layer] = before.cpu(), (stream - before).norm(dim=-1).cpu()
            new = stream[None].to(resid.dtype)
            return new if isinstance(output, torch.Tensor) else (new, *output[1:])

        return hook

    def _ids(self, token_ids: Sequence[int]) -> torch.Tensor:
        return torch.tensor([list(token_ids)], device=self.model.device)

    @staticmethod
    def _kind_of(layer: Any) -> str:
        if hasattr(layer, "pre_feedforward_layernorm"):
            return "sandwich"
        return "gpt2" if hasattr(layer, "ln_2") else "llama"


def model_class(config: Any) -> Any:
    """Return the class with which transformers loads and makes a model, of text or of images and text."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    return AutoModelForImageTextToText if config.model_type in ("mistral3", "qwen2_5_vl") else AutoModelForCausalLM


_LISTS = (
    "transformer.h",
    "transformer.blocks",
    "model.language_model.layers",
    "model.layers",
    "backbone.layers",
    "backbone.blocks",
    "rwkv.blocks",
)
"""Where families keep their decoder layers."""


def _at(model: Any, place: str) -> Any:
    for name in place.split("."):
        model = getattr(model, name, None)
    return model


_PARTS = {
    # Modules whose output is attn_out, whose input is resid_mid, and whose output is mlp_out.
    "llama": ("self_attn", "post_attention_layernorm", "mlp"),
    "sandwich": ("post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
    "gpt2": ("attn", "ln_2", "mlp"),
}


def _edited(edit: Edit, stream_TD: torch.Tensor) -> torch.Tensor:
    vector_D = torch.tensor(edit.vector.numbers, dtype=torch.float64, device=stream_TD.device)
    if isinstance(edit, AddVector):
        return stream_TD + edit.coefficient * vector_D
    v_D = vector_D / vector_D.norm()
    projection_T1 = (stream_TD @ v_D)[:, None]
    if isinstance(edit, Ablate):
        return stream_TD - v_D * projection_T1
    return stream_TD - v_D * torch.minimum(projection_T1 - edit.floor, torch.zeros_like(projection_T1))


def user_span_of(rollout: Rollout) -> tuple[int, int]:
    """Count where the question lies in a tiny model's prompt: its tokens are bytes, and so is nearly all after it."""
    stop = len(rollout.prompt_token_ids) - _TOKENS_AFTER_USER
    return stop - len(rollout.question.encode()), stop


def pool(states_LTD: np.ndarray, rollout: Rollout, user_span: tuple[int, int] | None = None) -> dict[str, np.ndarray]:
    """Pool a whole conversation's states; NaN for the response poolings of an empty response.

    ``user_mean`` is over ``user_span``, in a tiny model's prompt over the question.
    """
    prompt = states_LTD[:, : len(rollout.prompt_token_ids)].astype(np.float64)
    response = states_LTD[:, len(rollout.prompt_token_ids) :].astype(np.float64)
    user = prompt[:, slice(*(user_span or user_span_of(rollout)))]
    nothing = np.full((states_LTD.shape[0], states_LTD.shape[2]), np.nan)
    return {
        "response_mean": response.mean(axis=1) if response.shape[1] else nothing,
        "response_last": response[:, -1] if response.shape[1] else nothing,
        "prompt_mean": prompt.mean(axis=1),
        "prompt_last": prompt[:, -1],
        "assistant_start": prompt[:, -1],
        "user_mean": user.mean(axis=1) if user.shape[1] else nothing,
    }


def conversation_ids(rollout: Rollout) -> list[int]:
    """List the token ids of prompt and response content, without the end of the turn."""
    return [*rollout.prompt_token_ids, *rollout.response_token_ids[: rollout.num_content_tokens]]


def relative_errors(got_LD: np.ndarray, expected_LD: np.ndarray) -> np.ndarray:
    """Compute the norm of the difference over the norm of the expected vector, per layer; 0 if both are zero."""
    off_L, norms_L = np.linalg.norm(got_LD - expected_LD, axis=-1), np.linalg.norm(expected_LD, axis=-1)
    # The embedding of a padding token is zero, and so is the residual stream before the first layer.
    return np.divide(off_L, norms_L, out=np.where(off_L > 0, np.inf, 0.0), where=norms_L > 0)
