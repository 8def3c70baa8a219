"""Recompute one rollout in a plain Hugging Face forward pass: the finished conversation alone, no cache, no packing.

Captured values are compared with this (the canary), so it shares as little as possible with the code that captures: the
model and its decoder layers, the taps, the arithmetic of an edit, and the table of poolings. Where possible the values
are transformers' ``hidden_states``. These do not include the hook points inside a layer, nor the outputs of edited
layers and of the last layer (which comes after the final norm), so a hook keeps those tensors whole. Means are
computed in float64.
Axes: L captured layers, T tokens of the conversation, N of its response's content, D d_model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ....jobs.poolings import Pooling, TokenSpans, pooling_named
from ....jobs.specs.spec_parts import HookPoint
from ....jobs.work.rollouts import ArrayName
from ...editing.interventions import AppliedIntervention, Interventions
from ...engine import CapturedRollout
from ...models.hook_points import Tap


class PlainPass:
    """Recomputes rollouts with one model.

    Args:
        model: A causal language model; it must be within ``plain_attention`` while this runs.
        taps: For every hook point, one tap per captured layer.
        layers: The captured layers, 0-based.
        token_positions: Indices among ``layers`` of those at which every token is kept.
        interventions: Applies interventions to the model.
        bottom: Decoder layer 0, whose output tells where ``hidden_states`` begin.
        before_edits: Whether the values at a layer are those before the edits of the same layer.
    """

    def __init__(
        self,
        model: Any,
        taps: Mapping[HookPoint, Sequence[Tap]],
        layers: Sequence[int],
        token_positions: Sequence[int],
        interventions: Interventions,
        bottom: nn.Module,
        *,
        before_edits: bool = False,
    ) -> None:
        self._before_edits = before_edits
        self._model = model
        self._bottom = bottom
        self._taps = taps
        self._layers = list(layers)
        self._token_positions = list(token_positions)
        self._interventions = interventions

    def vectors(
        self, captured: CapturedRollout, arrays: Sequence[ArrayName]
    ) -> dict[ArrayName, npt.NDArray[np.float64]]:
        """Recompute a rollout's values.

        Args:
            captured: A rollout. Only its tokens, spans and intervention are read, not its values.
            arrays: The arrays to recompute, as (hook point, pooling); the rollout must have a value in each.

        Returns:
            The values of each array: ``(L, D)``, or ``(K, N, D)`` where every token is kept.
        """
        rollout = captured.rollout
        ids = [*rollout.prompt_token_ids, *rollout.response_token_ids[: rollout.num_content_tokens]]
        streams = self._run(ids, len(rollout.prompt_token_ids), self._interventions.ready(captured.intervention))
        # Pooled where the model is: copying whole streams off a GPU would take longer than the pass.
        return {
            (point, name): torch.stack(
                [pooled(streams[point, i], captured.spans, pooling_named(name)) for i in self._positions(name)]
            )
            .cpu()
            .numpy()
            for point, name in arrays
        }

    def _positions(self, name: str) -> Sequence[int]:
        return self._token_positions if pooling_named(name).keeps_tokens else range(len(self._layers))

    def _run(
        self, ids: Sequence[int], response: int, intervention: AppliedIntervention | None
    ) -> dict[tuple[str, int], torch.Tensor]:
        """Run the conversation, and return the stream at every hook point and captured layer, ``(T, D)`` each.

        Args:
            ids: Token ids of the conversation.
            response: Position of the first token of the response.
            intervention: What is applied to it; None for none.
        """
        seen: dict[tuple[str, int], torch.Tensor] = {}
        ends: dict[bool, torch.Tensor] = {}

        def keep(key: tuple[str, int]) -> Any:
            return lambda states: seen.__setitem__(key, states)

        # Attached first, because transformers records a layer's output before hooks edit it.
        at_bottom = [Tap(self._bottom, of_input=end).attach(partial(ends.__setitem__, end)) for end in (True, False)]
        # Edits first: hooks on a module run in the order in which they were attached, and later ones see the edit,
        # unless they are put before it.
        stretches = intervention.stretches(0, 0, len(ids), response) if intervention is not None else []
        with self._interventions.applied(stretches) as edits:
            handles = [
                tap.attach(keep((point, i)), first=self._before_edits)
                for point, places in self._taps.items()
                for i, tap in enumerate(places)
            ]
            try:
                with torch.inference_mode():
                    output = self._model(
                        input_ids=torch.tensor([list(ids)], device=next(self._model.parameters()).device),
                        use_cache=False,
                        output_hidden_states=True,
                        logits_to_keep=1,
                    )
            finally:
                for handle in (*at_bottom, *handles):
                    handle.remove()
        hidden = output.hidden_states
        # Most families list the embeddings first, and some, such as Mamba and RWKV, do not.
        lists_embeddings = torch.equal(hidden[0], ends[True]) or not torch.equal(hidden[0], ends[False])
        first = 1 if lists_embeddings else 0
        return {
            (point, i): self._stream(hidden, seen, point, i, edits.layers, first)
            for point in self._taps
            for i in range(len(self._layers))
        }

    def _stream(
        self,
        hidden: Sequence[torch.Tensor],
        seen: Mapping[tuple[str, int], torch.Tensor],
        point: str,
        position: int,
        edited: Sequence[int],
        first: int,
    ) -> torch.Tensor:
        layer = self._layers[position]
        # ``first`` is the index in ``hidden`` of the output of decoder layer 0; the last entry is after the final norm.
        index = {"resid_pre": layer - 1, "resid_post": layer}.get(point, len(hidden)) + first
        # transformers records a layer's output before hooks edit it.
        is_edited = index - first in edited
        is_listed = 0 <= index < len(hidden) - 1 and not is_edited
        states = hidden[index] if is_listed else seen[point, position]
        return states[0]


def pooled(states_TD: torch.Tensor, spans: TokenSpans, pooling: Pooling) -> torch.Tensor:
    """Pool one layer of a whole conversation in float64.

    Args:
        states_TD: The stream at a hook point.
        spans: Token ranges of its response and of the user's message.
        pooling: The pooling.

    Returns:
        ``(D,)``, or every token of the response, ``(N, D)``.
    """
    start, stop = spans.of(pooling.span)
    span_TD = states_TD[start:stop].double()
    if pooling.combine == "every":
        return span_TD
    return span_TD.mean(dim=0) if pooling.combine == "mean" else span_TD[-1]
