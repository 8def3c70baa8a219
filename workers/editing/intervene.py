"""Interventions on any Hugging Face model without the engine: a context manager for forward passes and ``generate``.

Loads torch only when it is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ...jobs.errors import InputError
from ...jobs.interventions import Intervention

if TYPE_CHECKING:
    from torch import nn


@contextmanager
def intervene(
    model: nn.Module,
    intervention: Intervention | Sequence[Intervention | None],
    *,
    prompt_length: int | Sequence[int] | None = None,
) -> Iterator[None]:
    """Apply an intervention to everything that a model computes within the context.

    Works with ``model.generate``, with and without a KV cache, and with plain forward passes; batched, with padding on
    either side. A KV cache has to be filled under the same intervention under which it is used. Other hooks and
    ``output_hidden_states`` see the edited stream. Of two nested contexts, the inner one edits first.

    Args:
        model: A causal language model of transformers, on any devices.
        intervention: One for all rows of every batch, or one for each row, None for none. Where ``generate`` expands
            each row to several, as with ``num_return_sequences`` or beams, these have the intervention of their row.
        prompt_length: Tokens of the prompts, padding on the left included: one number for all rows, or one for each.
            Required where an edit acts on the response only, whose tokens are those after the prompt. For ``generate``
            it is ``input_ids.shape[1]``.

    Raises:
        InputError: The intervention does not fit the model; the prompt's length is missing; or a batch has a number of
            rows that is no multiple of that of the interventions or prompt lengths.

    Example:
        >>> import torch
        >>> from persona_atlas import Cap, Direction, Intervention, intervene
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=32, **sizes))
        >>> axis = Direction.of([1.0] * 8)
        >>> input_ids = torch.tensor([[1, 5, 9]])
        >>> with intervene(model, Intervention((Cap(1, axis, floor=0.5, positions="response"),)), prompt_length=3):
        ...     output_ids = model.generate(input_ids, max_new_tokens=4, min_new_tokens=4, do_sample=False)
        >>> output_ids.shape
        torch.Size([1, 7])
    """
    per_row = [intervention] if isinstance(intervention, Intervention) else list(intervention)
    given = prompt_length if isinstance(prompt_length, Iterable) else [prompt_length]
    lengths = [int(length) for length in given if length is not None]
    if not per_row:
        raise InputError("no intervention was given.", code="bad_batch", field="intervention")
    if not lengths and any(one is not None and one.of_prompt() != one for one in per_row):
        raise InputError(
            "an edit acts on the response only, and it is not known where the response begins.",
            code="no_prompt_length",
            field="prompt_length",
            hint="Give the number of prompt tokens, padding included: input_ids.shape[1] for generate.",
        )
    # Here, so that importing persona_atlas does not load torch.
    from .edited_batches import EditedBatches

    handles = EditedBatches(model, per_row, lengths).attach()
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
