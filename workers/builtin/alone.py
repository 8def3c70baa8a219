"""Run one text at a time: transformers' own forward pass, in the model's own attention, without packing.

For texts that must not share a pass (``sharing``). Reading is a plain pass over the text. Generation samples from the
logits of such passes, and the finished text is then read, so what is captured is the plain pass of the finished
conversation by construction. Slower than packed passes by about the number of texts that would share one, or more
where the model's own cache cannot be used.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ..editing.interventions import Interventions
from ..engine import CapturedRollout, TokenisedText
from .batching.admission import RunningRollout
from .loaded_model import LoadedModel
from .passes.registration import plain_attention
from .reading import TextReader
from .sampling.choices import choices_of
from .sampling.sampling import sample


class AloneGeneration:
    """Generates one rollout at a time.

    Args:
        loaded: The model.
        interventions: Applies interventions to the model.
        reader: Captures the finished text.
    """

    def __init__(self, loaded: LoadedModel, interventions: Interventions, reader: TextReader) -> None:
        self._loaded = loaded
        self._interventions = interventions
        self._reader = reader
        self._choices = choices_of(loaded)

    def answer(self, rollout: RunningRollout) -> CapturedRollout:
        """Sample a rollout's tokens, then read the finished text.

        Args:
            rollout: A rollout without any token.

        Raises:
            UnitError: A value is not finite, or a hook did not fire.
        """
        with plain_attention(self._loaded.model, self._loaded.own_attention):
            self._sample(rollout)
        finished = rollout.finished(self._loaded.tokenizer)
        intervention = rollout.request.intervention
        (text,) = self._reader.read([TokenisedText.of(finished, rollout.user_span, intervention)])
        finished = replace(finished, edits=text.edits[0])
        return CapturedRollout(finished, text.vectors_LD[0], text.tokens_KTD[0], rollout.user_span, intervention)

    def _sample(self, rollout: RunningRollout) -> None:
        sharing = self._loaded.sharing
        sampling = rollout.sampling
        past: Any = None
        fed = 0
        while len(rollout.token_ids) < rollout.max_new:
            ids = [*rollout.prompt_ids, *rollout.token_ids]
            if past is None or fed <= sharing.up_to < len(ids):
                # Beyond the border every token has other rotary embeddings, those in the cache too: the text is run
                # again as a whole.
                past, fed = None, 0
            applied = rollout.intervention
            edits = applied.stretches(0, fed, len(ids), len(rollout.prompt_ids)) if applied else []
            with self._interventions.applied(edits):
                output = self._loaded.run_alone(ids[fed:], use_cache=sharing.has_cache, past=past)
            fed = len(ids)
            past = output["past_key_values"] if sharing.has_cache else None
            uniform_1 = torch.tensor([rollout.random[len(rollout.token_ids)]], device=output.logits.device)
            guided = [(rollout.request.choices, rollout.token_ids)]
            logits_1V = self._choices.restrict(output.logits[0, -1:], guided)
            next_id = int(sample(logits_1V, uniform_1, sampling.temperature, sampling.top_p))
            if rollout.append(next_id, self._loaded.stop_ids):
                return
