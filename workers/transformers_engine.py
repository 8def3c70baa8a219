"""Generate with a Hugging Face model and capture while it does: no second pass.

Each batch is one pass over its prompts, padded on the left, then one token a row and pass. Rows that have ended leave
the batch once enough have. The last content token is fed back too, so that the mean over a response is over all of
its content tokens: the same as one forward pass over the finished conversation.
Axes: B rollouts of the batch, A of them still active, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..jobs.block import Rollout
from ..jobs.errors import InputError, UnitError
from ..jobs.units import RolloutRequest
from .capture import PooledCapture, find_blocks
from .chat import ChatRenderer, stop_token_ids
from .engine import CapturedRollout, EngineSettings
from .sampling import sample, uniforms

_LEAVE_FRACTION = 0.25
"""Share of a batch that must have ended before its cache is copied without them."""


_ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}


def _refuse_other_attention(config: Any) -> None:
    """Layers that keep a running state instead of keys and values see padding, and rows cannot leave them."""
    other = set(getattr(config, "layer_types", None) or ()) - _ATTENTION
    if other:
        raise InputError(
            f"the model has layers of type {', '.join(sorted(other))}, which cannot be batched here yet.",
            code="unknown_model",
            field="model.source",
            mend="Choose a model of attention layers throughout.",
        )


@dataclass(frozen=True, slots=True)
class _Prompt:
    position: int
    request: RolloutRequest
    token_ids: list[int]


class TransformersEngine:
    """An engine that holds one loaded model.

    Args:
        settings: What to load and how to run it.

    Raises:
        InputError: The model cannot be loaded, or its tokenizer has no chat template.
    """

    def __init__(self, settings: EngineSettings) -> None:
        from safetensors import SafetensorError
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._settings = settings
        torch.set_num_threads(settings.threads)
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(settings.directory)
            self.model: Any = AutoModelForCausalLM.from_pretrained(
                settings.directory, dtype=getattr(torch, settings.dtype), use_safetensors=True
            )
            self.model.to(settings.device).eval()
        except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
            raise InputError(
                f"the model in {settings.directory} cannot be loaded: {str(error).strip().splitlines()[0]}",
                code="model_not_loaded",
                field="model.source",
                mend="Check its files, or choose another model.",
            ) from error
        self.renderer = ChatRenderer(self._tokenizer)
        config: Any = self.model.config.get_text_config()
        _refuse_other_attention(config)
        self._d_model = int(config.hidden_size)
        self._max_context = int(getattr(config, "max_position_embeddings", None) or 2**31)
        self._stop_ids = stop_token_ids(self._tokenizer, self.model.config, self.model.generation_config)
        self._blocks = find_blocks(self.model, int(config.num_hidden_layers))

    def generate(self, requests: Sequence[RolloutRequest]) -> list[CapturedRollout]:
        """Generate and capture; see ``Engine.generate``."""
        prompts = [
            _Prompt(position, request, self.renderer.render(request.system_prompt, request.question))
            for position, request in enumerate(requests)
        ]
        done: dict[int, CapturedRollout] = {}
        with torch.inference_mode():
            for batch in self._batches(prompts):
                for prompt, captured in zip(batch, self._run_batch(batch), strict=True):
                    done[prompt.position] = captured
        return [done[position] for position in range(len(requests))]

    def _batches(self, prompts: list[_Prompt]) -> list[list[_Prompt]]:
        """Sort by length and cut so that no batch, padded and grown to the end, exceeds the token budget."""
        max_new = self._settings.sampling.max_new_tokens
        batches: list[list[_Prompt]] = []
        for prompt in sorted(prompts, key=lambda p: -len(p.token_ids)):
            longest = len(batches[-1][0].token_ids) if batches else 0
            if batches and (len(batches[-1]) + 1) * (longest + max_new) <= self._settings.batch_tokens:
                batches[-1].append(prompt)
                continue
            if len(prompt.token_ids) + max_new > self._max_context:
                raise UnitError(
                    f"{prompt.request.address}: {len(prompt.token_ids)} prompt tokens and {max_new} new ones exceed "
                    f"the model's context of {self._max_context}.",
                    code="too_long",
                )
            batches.append([prompt])
        return batches

    def _run_batch(self, batch: list[_Prompt]) -> list[CapturedRollout]:
        settings = self._settings
        poolings = settings.capture.poolings
        with PooledCapture(self._blocks, settings.layers, poolings) as capture:
            try:
                generated, num_content = self._decode(batch, capture)
            except UnitError:
                # Logits that are not finite: the layer where it began says more, if a captured one shows it.
                capture.check_finite()
                raise
            pooled_BLD = capture.finish()
        rows: list[CapturedRollout] = []
        for b, prompt in enumerate(batch):
            content = generated[b][: num_content[b]]
            rollout = Rollout(
                address=prompt.request.address,
                system_prompt=prompt.request.system_prompt,
                question=prompt.request.question,
                response=self._tokenizer.decode(content, skip_special_tokens=False),
                prompt_token_ids=tuple(prompt.token_ids),
                response_token_ids=tuple(generated[b]),
                num_content_tokens=num_content[b],
                finish_reason="stop" if len(generated[b]) > num_content[b] else "length",
                seed=prompt.request.seed,
            )
            vectors = {("resid_post", name): pooled_BLD[name][b].numpy() for name in poolings}
            rows.append(CapturedRollout(rollout, vectors))
        return rows

    def _decode(self, batch: list[_Prompt], capture: PooledCapture) -> tuple[list[list[int]], list[int]]:
        """Run one batch to its end.

        Returns:
            The generated ids of each row, the end-of-turn id included where it came, and each row's count of
            content ids.
        """
        sampling, device = self._settings.sampling, self._settings.device
        longest = max(len(prompt.token_ids) for prompt in batch)
        ids_BT = torch.zeros((len(batch), longest), dtype=torch.long)
        mask_BT = torch.zeros((len(batch), longest), dtype=torch.bool)
        for b, prompt in enumerate(batch):
            ids_BT[b, longest - len(prompt.token_ids) :] = torch.tensor(prompt.token_ids)
            mask_BT[b, longest - len(prompt.token_ids) :] = True
        ids_BT, mask_BT = ids_BT.to(device), mask_BT.to(device)
        uniform_BT = uniforms([prompt.request.seed for prompt in batch], sampling.max_new_tokens).to(device)

        generated: list[list[int]] = [[] for _ in batch]
        num_content = [0] * len(batch)
        capture.begin(mask_BT, self._d_model)
        output = self.model(
            input_ids=ids_BT,
            attention_mask=mask_BT.long(),
            position_ids=(mask_BT.long().cumsum(dim=1) - 1).clamp_min(0),
            use_cache=True,
            logits_to_keep=1,
        )
        cache = output.past_key_values
        rows = list(range(len(batch)))
        mask_AT = mask_BT.long()
        for step in range(sampling.max_new_tokens):
            rows_A = torch.tensor(rows, device=device)
            next_A = sample(output.logits[:, -1], uniform_BT[rows_A, step], sampling.temperature, sampling.top_p)
            content: list[bool] = []
            for b, token in zip(rows, next_A.tolist(), strict=True):
                ended = len(generated[b]) > num_content[b]
                if not ended:
                    generated[b].append(token)
                    num_content[b] += token not in self._stop_ids
                content.append(not ended and token not in self._stop_ids)
            if not any(content):
                break
            if content.count(False) >= _LEAVE_FRACTION * len(rows):
                kept = torch.tensor([a for a, keep in enumerate(content) if keep], device=device)
                cache.batch_select_indices(kept)
                mask_AT, next_A, rows_A = mask_AT[kept], next_A[kept], rows_A[kept]
                rows = [b for b, keep in zip(rows, content, strict=True) if keep]
                content = [True] * len(rows)
            mask_AT = torch.cat([mask_AT, mask_AT.new_ones(len(rows), 1)], dim=1)
            capture.feed(rows_A, torch.tensor(content, device=device))
            output = self.model(
                input_ids=next_A[:, None],
                attention_mask=mask_AT,
                position_ids=mask_AT.sum(dim=1, keepdim=True) - 1,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        return generated, num_content
