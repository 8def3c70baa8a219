"""The rows that a dialogue did not reach: no prompt, no response, NaN in every pooling. Does not import torch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ..jobs.work.rollouts import ArrayName, EditRecord, Rollout
from ..jobs.work.units import RolloutRequest
from .engine import CapturedRollout

_Arrays = Mapping[ArrayName, npt.NDArray[np.float32]]


def not_reached(request: RolloutRequest, vectors_LD: _Arrays, tokens_KTD: _Arrays) -> CapturedRollout:
    """Make the row of a turn that its dialogue did not reach.

    Args:
        request: The request that nobody was asked.
        vectors_LD: Pooled arrays of any row of the run, which give the shapes; their values are ignored.
        tokens_KTD: The arrays with every token, likewise.

    Returns:
        A rollout without tokens, with finish reason ``not_reached``. Edits of its intervention changed nothing.
    """
    intervention = request.intervention
    edited = sorted(set(intervention.layers)) if intervention is not None and intervention.edits else None
    rollout = Rollout(
        address=request.address,
        system_prompt=request.system_prompt,
        question=request.question if request.user is None else "",
        response="",
        prompt_token_ids=(),
        response_token_ids=(),
        num_content_tokens=0,
        finish_reason="not_reached",
        seed=request.seed,
        edits=None if edited is None else tuple(EditRecord(layer, 0, 0, 0.0) for layer in edited),
    )
    return CapturedRollout(
        rollout,
        {name: np.full_like(values, np.nan) for name, values in vectors_LD.items()},
        {name: np.empty((len(values), 0, values.shape[2]), values.dtype) for name, values in tokens_KTD.items()},
        intervention=intervention,
    )
