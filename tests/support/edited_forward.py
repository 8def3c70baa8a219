"""A reference for edits of the residual stream: hooks on a plain model, in float64, written from the definitions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from persona_atlas.jobs.interventions import Ablate, AddVector, Cap, Direction, Edit, Intervention
from persona_atlas.jobs.work.units import RolloutRequest
from persona_atlas.workers.engine import CapturedRollout

from conformance import assert_equal_to_plain
from plain_forward import PlainModel


@contextmanager
def edited_model(plain: PlainModel, intervention: Intervention | None, response_start: int) -> Iterator[PlainModel]:
    """Let a plain model run under an intervention; ``response_start`` is the first token that is response to it."""
    handles = [
        plain.layers[edit.layer].register_forward_hook(_hook(edit, response_start))
        for edit in (intervention.edits if intervention else ())
    ]
    try:
        yield plain
    finally:
        for handle in handles:
            handle.remove()


def _hook(edit: Edit, response_start: int) -> Any:
    vector_D = torch.tensor(edit.vector.numbers).double()
    unit_D = vector_D / vector_D.norm().clamp(min=1e-300)

    def change(_module: Any, _inputs: Any, output: Any) -> Any:
        states = output if isinstance(output, torch.Tensor) else output[0]
        resid_TD = states[0].double()
        along_T = resid_TD @ unit_D
        if isinstance(edit, AddVector):
            changed_TD = resid_TD + edit.coefficient * vector_D
        elif isinstance(edit, Cap):
            changed_TD = resid_TD - (along_T - edit.floor).clamp(max=0)[:, None] * unit_D
        else:
            changed_TD = resid_TD - along_T[:, None] * unit_D
        acts_T = torch.full((len(resid_TD),), edit.positions == "all")
        acts_T[response_start:] = True
        changed = torch.where(acts_T[:, None], changed_TD, resid_TD).to(states.dtype)[None]
        return changed if isinstance(output, torch.Tensor) else (changed, *output[1:])

    return change


def assert_equal_to_edited(
    rows: Sequence[CapturedRollout], plain: PlainModel, token_layers: Sequence[int] = (), **options: bool
) -> None:
    """Compare each rollout with a plain pass under the edits of its own intervention; see ``assert_equal_to_plain``."""
    for row in rows:
        with edited_model(plain, row.intervention, len(row.rollout.prompt_token_ids)):
            assert_equal_to_plain([row], plain, token_layers, **options)


def interventions_of_every_kind(d_model: int, num_layers: int) -> list[Intervention]:
    """Make interventions that differ in kind, layers, positions, number and order of their edits."""
    rng = np.random.default_rng(0)
    vectors = [Direction.of(rng.standard_normal(d_model)) for _ in range(3)]
    last = num_layers - 1
    return [
        Intervention((AddVector(0, vectors[0], 0.4),)),
        # Limits beyond what a random model has, so that they are never idle.
        Intervention(tuple(Cap(layer, vectors[1], 3.0) for layer in range(1, num_layers))),
        Intervention((Cap.ceiling(1, vectors[1], -3.0, "response"),)),
        # In this order: what is added is taken away again by the second edit of the layer.
        Intervention((AddVector(1, vectors[2], 0.5), Ablate(1, vectors[2]), Ablate(last, vectors[0], "response"))),
        Intervention((AddVector(0, vectors[2], -0.4, "response"), Cap(0, vectors[0], 2.0))),
    ]


def under(requests: Sequence[RolloutRequest], interventions: Sequence[Intervention]) -> list[RolloutRequest]:
    """Give the requests the interventions in turn, and none to each that is left over at the end of a turn."""
    turn = [*interventions, None]
    return [replace(request, intervention=turn[n % len(turn)]) for n, request in enumerate(requests)]
