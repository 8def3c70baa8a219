"""Recompute one rollout in a plain Hugging Face forward pass: the finished conversation alone, no cache, no packing.

Captured values are compared with this (the canary), so it shares as little as possible with the code that captures: the
model and its decoder layers, the taps, the arithmetic of an edit, and the table of poolings. Where possible the values
are transformers' ``hidden_states``. These do not include the hook points inside a layer, nor the outputs of edited
layers and of the last layer (which comes after the final norm), so a hook keeps those tensors whole. Means are
computed by numpy in float64.
Axes: L captured layers, T tokens of the conversation, N of its response's content, D d_model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...jobs.poolings import Pooling, TokenSpans, pooling_named
from ...jobs.rollouts import ArrayName
from ...jobs.spec_parts import HookPoint
from ..engine import CapturedRollout
from ..interventions import AppliedIntervention, Interventions
from ..models.hook_points import Tap


class PlainPass:
    """Recomputes rollouts with one model.

    Args:
        model: A causal language model; it must be within ``plain_attention`` while this runs.
        taps: For every hook point, one tap per captured layer.
        layers: The captured layers, 0-based.
        token_positions: Indices among ``layers`` of those at which every token is kept.
        interventions: Applies interventions to the model.
    """

    def __init__(
        self,
        model: Any,
        taps: Mapping[HookPoint, Sequence[Tap]],
        layers: Sequence[int],
        token_positions: Sequence[int],
        interventions: Interventions,
    ) -> None:
        self._model = model
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
        streams = self._run(ids, self._interventions.ready(captured.intervention))
        return {
            (point, name): np.stack(
                [_pooled(streams[point, i], captured.spans, pooling_named(name)) for i in self._positions(name)]
            )
            for point, name in arrays
        }

    def _positions(self, name: str) -> Sequence[int]:
        return self._token_positions if pooling_named(name).keeps_tokens else range(len(self._layers))

    def _run(
        self, ids: Sequence[int], intervention: AppliedIntervention | None
    ) -> dict[tuple[str, int], npt.NDArray[np.float64]]:
        """Run the conversation, and return the stream at every hook point and captured layer, ``(T, D)`` each."""
        seen: dict[tuple[str, int], torch.Tensor] = {}

        def keep(key: tuple[str, int]) -> Any:
            return lambda states: seen.__setitem__(key, states)

        # Edits first: hooks on a module run in the order in which they were attached, and later ones see the edit.
        with self._interventions.applied([(intervention, 0, len(ids))]):
            handles = [
                tap.attach(keep((point, i))) for point, places in self._taps.items() for i, tap in enumerate(places)
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
                for handle in handles:
                    handle.remove()
        edited = intervention.by_layer if intervention is not None else {}
        return {
            (point, i): self._stream(output.hidden_states, seen, point, i, edited)
            for point in self._taps
            for i in range(len(self._layers))
        }

    def _stream(
        self,
        hidden: Sequence[torch.Tensor],
        seen: Mapping[tuple[str, int], torch.Tensor],
        point: str,
        position: int,
        edited: Mapping[int, object],
    ) -> npt.NDArray[np.float64]:
        layer = self._layers[position]
        # ``hidden`` has one entry more than there are decoder layers, and the last is after the final norm.
        index = {"resid_pre": layer, "resid_post": layer + 1}.get(point, len(hidden))
        # transformers records a layer's output before hooks edit it.
        is_edited = index - 1 in edited
        states = seen[point, position] if index >= len(hidden) - 1 or is_edited else hidden[index]
        return states[0].double().cpu().numpy()


def _pooled(states_TD: npt.NDArray[np.float64], spans: TokenSpans, pooling: Pooling) -> npt.NDArray[np.float64]:
    """Pool one layer: ``(D,)``, or every token ``(N, D)``."""
    start, stop = spans.of(pooling.span)
    span_TD = states_TD[start:stop]
    if pooling.combine == "every":
        return span_TD
    return span_TD.mean(axis=0) if pooling.combine == "mean" else span_TD[-1]
