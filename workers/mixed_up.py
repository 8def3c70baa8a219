"""Find out whether captured vectors are those of another rollout or of another layer, which no rounding explains.

Rounding adds something to a vector that has nothing to do with any other: it does not bring the vector nearer to what
belongs to another layer or rollout. Knows no limits of errors. Axes: L layers, K those of which every token is kept,
T tokens, D d_model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..jobs.poolings import pooling_named
from ..jobs.work.rollouts import ArrayName
from .engine import CapturedRollout

_NEARER = 0.5
"""Share of its distance to its own plain vector within which a vector must be of another's, to be taken for that."""

_NEGLIGIBLE = 1e-4
"""Relative error below which a layer is right."""

_OF_WORST = 0.25
"""Share of the worst layer's relative error below which a layer is not the one that is wrong."""

_LEAST_TOKENS = 3
"""Tokens of a response from which on a shift is told from chance."""

Arrays = Mapping[ArrayName, npt.NDArray[Any]]
"""Values of one rollout by array: ``(L, D)``, or ``(K, T, D)`` where every token is kept."""


def others_of(captured: CapturedRollout, others: Sequence[CapturedRollout]) -> list[Arrays]:
    """Return the values of the rollouts with which one might have been mixed up, so that it could be seen.

    Args:
        captured: The rollout.
        others: Rollouts of the same unit. One with the same text is left out, and of one with the same prompt the
            poolings over the prompt: their values are the same.
    """
    own = captured.rollout
    found: list[Arrays] = []
    for other in others:
        has_prompt = other.rollout.prompt_token_ids == own.prompt_token_ids
        if has_prompt and other.rollout.response_token_ids == own.response_token_ids:
            continue
        values = other.vectors_LD | other.tokens_KTD
        kept = {a: v for a, v in values.items() if not has_prompt or pooling_named(a[1]).span == "response"}
        found.append(kept)
    return found


def taken_for(captured: Arrays, plain: Arrays, others: Sequence[Arrays] = ()) -> str:
    """Say what a rollout's captured vectors are nearer to than to its own plain vectors; ``""`` if to nothing.

    Args:
        captured: Its captured values.
        plain: Values of the plain pass, for the same arrays.
        others: Captured values of other rollouts; see ``others_of``.
    """
    for array, expected in plain.items():
        plain_LD, got_LD = _by_layer(expected), _by_layer(captured[array])
        own_L = np.linalg.norm(got_LD - plain_LD, axis=1)
        norms_L = np.linalg.norm(plain_LD, axis=1)
        error_L = np.divide(own_L, norms_L, out=np.zeros_like(own_L), where=norms_L > 0)
        # Not the layers that are off by rounding alone where others are off by much more.
        wrong = np.flatnonzero(error_L > max(_NEGLIGIBLE, _OF_WORST * error_L.max(initial=0.0)))
        if expected.ndim == 3 and _is_shifted(
            np.asarray(captured[array], np.float64), np.asarray(expected, np.float64)
        ):
            return "the vectors of the tokens beside them"
        if any(_is_of_another_layer(got_LD[layer], plain_LD, layer, own_L[layer]) for layer in map(int, wrong)):
            return "the vector of another layer"
        if wrong.size and any(
            _is_of_another_rollout(got_LD[wrong], plain_LD[wrong], other_LD[wrong], own_L[wrong])
            for other_LD in _same_array(array, others)
        ):
            return "the vectors of another rollout"
    return ""


def _is_shifted(got_KTD: npt.NDArray[np.float64], plain_KTD: npt.NDArray[np.float64]) -> bool:
    """Whether every token has what belongs to the one before it, or to the one after it."""
    if got_KTD.shape[1] < _LEAST_TOKENS or np.allclose(got_KTD, plain_KTD, rtol=_NEGLIGIBLE, atol=0):
        return False
    for own, beside in ((slice(1, None), slice(None, -1)), (slice(None, -1), slice(1, None))):
        own_KT = np.linalg.norm(got_KTD[:, own] - plain_KTD[:, own], axis=2)
        beside_KT = np.linalg.norm(got_KTD[:, own] - plain_KTD[:, beside], axis=2)
        if (beside_KT < _NEARER * own_KT).all():
            return True
    return False


def _same_array(array: ArrayName, others: Sequence[Arrays]) -> Iterator[npt.NDArray[np.float64]]:
    for other in others:
        if array in other and other[array].size:
            yield _by_layer(other[array])


def _by_layer(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return one vector per layer: of kept tokens their mean, since other texts have other numbers of tokens."""
    return np.asarray(values, np.float64) if values.ndim == 2 else values.mean(axis=1, dtype=np.float64)


def _is_of_another_layer(
    got_D: npt.NDArray[np.float64], plain_LD: npt.NDArray[np.float64], layer: int, own: float
) -> bool:
    distances_L = np.linalg.norm(plain_LD - got_D, axis=1)
    distances_L[layer] = np.inf
    return bool(distances_L.min() < _NEARER * own)


def _is_of_another_rollout(
    got_LD: npt.NDArray[np.float64],
    plain_LD: npt.NDArray[np.float64],
    other_LD: npt.NDArray[np.float64],
    own_L: npt.NDArray[np.float64],
) -> bool:
    """Whether two rollouts were exchanged (the other has what is this one's), or one has the vectors of both."""
    # At every layer: where rounding sends a token to another expert, it may do so at one.
    exchanged = np.linalg.norm(other_LD - plain_LD, axis=1) < _NEARER * own_L
    copied = np.linalg.norm(other_LD - got_LD, axis=1) < _NEARER * own_L
    return bool(exchanged.all() or copied.all())
