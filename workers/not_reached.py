"""The rows that a dialogue did not reach: no prompt, no response, NaN in every pooling. Does not import torch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..jobs.work.rollouts import Rollout
from ..jobs.work.units import RolloutRequest
from .engine import CapturedRollout


def not_reached(request: RolloutRequest, like: CapturedRollout) -> CapturedRollout:
    """Make the row of a turn that its dialogue did not reach.

    Args:
        request: The request that nobody was asked.
        like: Any captured rollout of the same run, whose arrays give the shapes.

    Returns:
        A rollout without tokens, with finish reason ``not_reached``. Edits, where they are recorded, changed nothing.
    """
    edits = like.rollout.edits
    rollout = Rollout(
        address=request.address,
        system_prompt=request.system_prompt,
        question=request.question,
        response="",
        prompt_token_ids=(),
        response_token_ids=(),
        num_content_tokens=0,
        finish_reason="not_reached",
        seed=request.seed,
        edits=None
        if edits is None
        else tuple(replace(edit, num_tokens=0, num_changed=0, mean_correction=0.0) for edit in edits),
    )
    return CapturedRollout(
        rollout,
        {name: np.full_like(values, np.nan) for name, values in like.vectors_LD.items()},
        {name: np.empty((len(values), 0, values.shape[2]), values.dtype) for name, values in like.tokens_KTD.items()},
        intervention=request.intervention,
    )
