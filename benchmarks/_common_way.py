"""The model alone, and the common way of capturing and generating, that the engine is compared with.

Axes: B slots of a batch, T tokens, D d_model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from persona_atlas.jobs.work.units import RolloutRequest
from persona_atlas.workers.builtin.builtin_engine import BuiltinEngine
from persona_atlas.workers.builtin.passes.registration import plain_attention
from persona_atlas.workers.engine import EngineSettings, TokenisedText

SAMPLING = {"temperature": 0.7, "top_p": 0.9}
BASELINE_PREFILL_SLOTS, BASELINE_GENERATE_SLOTS = 16, 32


def padded(batch: Sequence[TokenisedText], device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Make token ids and attention mask ``(B, T)``, padded on the right."""
    longest = max(len(text.token_ids) for text in batch)
    ids_BT = torch.zeros(len(batch), longest, dtype=torch.long)
    mask_BT = torch.zeros_like(ids_BT)
    for row, text in enumerate(batch):
        ids_BT[row, : len(text.token_ids)] = torch.tensor(text.token_ids)
        mask_BT[row, : len(text.token_ids)] = 1
    return ids_BT.to(device), mask_BT.to(device)


def bare_prefill(engine: BuiltinEngine, settings: EngineSettings, read: Sequence[TokenisedText]) -> None:
    """Run only the model over the tokens: no LM head, no hooks, batches sorted by length."""
    ordered = sorted(read, key=lambda text: -len(text.token_ids))
    with torch.inference_mode(), plain_attention(engine.model, engine.loaded.own_attention):
        while ordered:
            rows = max(1, settings.batch_size // len(ordered[0].token_ids))
            ids_BT, mask_BT = padded(ordered[:rows], settings.device)
            engine.model.base_model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False)
            ordered = ordered[rows:]


def baseline_prefill(engine: BuiltinEngine, settings: EngineSettings, read: Sequence[TokenisedText]) -> None:
    """Capture in the common way: unsorted batches of 16, LM head included, all hidden states kept, then averaged."""
    with torch.inference_mode(), plain_attention(engine.model, engine.loaded.own_attention):
        for first in range(0, len(read), BASELINE_PREFILL_SLOTS):
            batch = read[first : first + BASELINE_PREFILL_SLOTS]
            ids_BT, mask_BT = padded(batch, settings.device)
            output = engine.model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False, output_hidden_states=True)
            for row, text in enumerate(batch):
                ((start, stop),) = text.responses
                torch.stack([kept_BTD[row, start:stop].mean(dim=0) for kept_BTD in output.hidden_states[1:]]).cpu()


def baseline_generate(
    engine: BuiltinEngine, settings: EngineSettings, asked: Sequence[RolloutRequest], **options: Any
) -> list[TokenisedText]:
    """Generate with ``model.generate`` in batches of 32, padded on the left.

    Args:
        engine: Its model and tokenizer are used.
        settings: Device and sampling.
        asked: The requests.
        **options: More arguments of ``model.generate``.

    Returns:
        The finished conversations.
    """
    made: list[TokenisedText] = []
    stop_ids = sorted(engine.loaded.stop_ids)
    with torch.inference_mode(), plain_attention(engine.model, engine.loaded.own_attention):
        for first in range(0, len(asked), BASELINE_GENERATE_SLOTS):
            prompts = [
                engine.renderer.render(request.messages) for request in asked[first : first + BASELINE_GENERATE_SLOTS]
            ]
            longest = max(len(prompt) for prompt in prompts)
            ids_BT = torch.zeros(len(prompts), longest, dtype=torch.long)
            mask_BT = torch.zeros_like(ids_BT)
            for row, prompt in enumerate(prompts):
                ids_BT[row, longest - len(prompt) :] = torch.tensor(prompt)
                mask_BT[row, longest - len(prompt) :] = 1
            output_BT = engine.model.generate(
                input_ids=ids_BT.to(settings.device),
                attention_mask=mask_BT.to(settings.device),
                do_sample=True,
                top_k=0,
                pad_token_id=0,
                eos_token_id=stop_ids,
                max_new_tokens=settings.sampling.max_new_tokens,
                **SAMPLING,
                **options,
            )
            for prompt, generated_T in zip(prompts, output_BT[:, longest:].tolist(), strict=True):
                ends = [place for place, token in enumerate(generated_T) if token in engine.loaded.stop_ids]
                response = generated_T[: ends[0]] if ends else generated_T
                ids = (*prompt, *response, 0)
                made.append(TokenisedText("baseline", ids, ((len(prompt), len(prompt) + max(len(response), 1)),)))
    return made
