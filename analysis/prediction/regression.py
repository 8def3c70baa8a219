"""How well the message before a reply tells where the reply lies: R^2 in-sample and held out, with a permutation test.

Pure. Axes: N replies, E features, P permutations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..bootstrap import BOUNDS
from ..dialogues.turns import Turns
from ..watching.scores import number
from .holding_out import Scheme, folds_of, permuted_places
from .ridge import STRENGTHS, HeldOut, RidgePath, chosen_strength, held_out, r_squared

Float64 = npt.NDArray[np.float64]

Target = Literal["projection", "change"]
"""What is predicted: where a reply lies, or how far it lies from the reply before it."""

IN_SAMPLE = "in-sample"
"""Name of the figure of a model that predicts the replies it was fitted to."""
IN_SAMPLE_WEAKEST = "in-sample, weakest penalty"
"""The same at the weakest strength that is tried: what fitting alone can reach with so many features and replies."""

FEWEST_GROUPS = 5
"""Held-out groups below which no interval is given."""


@dataclass(frozen=True)
class Fit:
    """One R^2, with what it was measured on.

    Attributes:
        name: ``in-sample``, ``in-sample, weakest penalty``, or what was held out.
        flatters: Whether the model had seen the replies that it predicts, so that the figure is too high.
        r_squared: Share of the squared error that the prediction saves against the mean of all replies that are
            predicted. A model of the others does not know that mean, so one that has learnt nothing is below 0, and the
            more so the fewer and the more different the held-out groups are.
        interval: Interval of 95 % by a bootstrap over the held-out groups, the models being as they are; NaN in-sample
            and for fewer than five groups.
        p_value: One-sided, of permuting whole conversations within their group; NaN where there was no permutation.
        mean_only: R^2 of the mean of the same training part, which needs no message; NaN in-sample.
        group_only: R^2 of the mean of the reply's group in the training part; NaN in-sample, with a single group, and
            where the groups themselves are held out.
        num_groups: Groups that were held out, or 0.
        num_folds: Folds in which they were, or 0.
        strength: Strength of the penalty, in units of the mean eigenvalue; of several folds the median.
    """

    name: str
    flatters: bool
    r_squared: float
    interval: tuple[float, float]
    p_value: float
    mean_only: float
    group_only: float
    num_groups: int
    num_folds: int
    strength: float

    def as_dict(self) -> dict[str, Any]:
        """Return the figure as JSON values, null where one is not known."""
        return {
            "on": self.name,
            "flatters": self.flatters,
            "r_squared": number(self.r_squared),
            "interval": [number(bound) for bound in self.interval],
            "p_value": number(self.p_value),
            "r_squared_of_training_mean": number(self.mean_only),
            "r_squared_of_group_mean": number(self.group_only),
            "held_out_groups": self.num_groups,
            "folds": self.num_folds,
            "strength": self.strength,
        }


@dataclass(frozen=True, eq=False)
class Regression:
    """The prediction of one target.

    Attributes:
        target: What is predicted.
        num_replies: Number of replies N.
        num_conversations: Their conversations.
        fits: The R^2 in-sample, then of everything that was held out.
        actual_N: The target of each reply.
        predicted_N: Its prediction with its conversation held out.
        group: Group of each reply.
    """

    target: Target
    num_replies: int
    num_conversations: int
    fits: tuple[Fit, ...]
    actual_N: Float64
    predicted_N: Float64
    group: npt.NDArray[np.object_]

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return {
            "target": self.target,
            "replies": self.num_replies,
            "conversations": self.num_conversations,
            "fits": [fit.as_dict() for fit in self.fits],
        }


def regress(
    target: Target,
    turns: Turns,
    features_NE: Float64,
    values_N: Float64,
    schemes: Sequence[Scheme],
    *,
    folds: int,
    permutations: int,
    samples: int,
    seed: int,
) -> Regression:
    """Predict a value of each reply from the features of the message before it.

    Args:
        target: What the values are.
        turns: The replies.
        features_NE: Features of the message before each reply.
        values_N: The values; all finite.
        schemes: What is held out, conversations first.
        folds: Folds of each scheme.
        permutations: Permutations of the test; 0 for none.
        samples: Bootstrap samples of the intervals.
        seed: Seed of all of them.

    Raises:
        ValueError: A value or a feature is not finite.
    """
    if not (np.isfinite(values_N).all() and np.isfinite(features_NE).all()):
        raise ValueError("a value or a feature is not finite")
    targets_NP = values_N[:, None]
    place_NP = permuted_places(turns, permutations, seed) if permutations else None
    if place_NP is not None:
        # The observed values are one more column, so that both are treated alike.
        targets_NP = np.concatenate([targets_NP, values_N[place_NP]], axis=1)
    first = folds_of(schemes[0], folds, seed)
    fits = [*_in_sample(features_NE, values_N[:, None], first)]
    predicted_N = np.empty(0)
    for scheme in schemes:
        fold_N = first if scheme is schemes[0] else folds_of(scheme, folds, seed)
        found = held_out(features_NE, targets_NP, fold_N)
        fits.append(_held_out_fit(scheme, fold_N, found, targets_NP, turns, samples, seed))
        if scheme is schemes[0]:
            predicted_N = found.predicted_NP[:, 0].copy()
    return Regression(target, len(turns), turns.num_conversations, tuple(fits), values_N, predicted_N, turns.group)


def _in_sample(features_NE: Float64, targets_N1: Float64, fold_N: npt.NDArray[np.int64]) -> list[Fit]:
    path = RidgePath(features_NE, targets_N1)
    nan = float("nan")
    best = float(chosen_strength(features_NE, targets_N1, fold_N)[0])
    fits: list[Fit] = []
    for name, strength in ((IN_SAMPLE, best), (IN_SAMPLE_WEAKEST, STRENGTHS[-1])):
        predicted_N1 = path.predict(features_NE, strength)
        saved = float(r_squared(targets_N1, predicted_N1)[0])
        fits.append(Fit(name, True, saved, (nan, nan), nan, nan, nan, 0, 0, strength))
    return fits


def _held_out_fit(
    scheme: Scheme,
    fold_N: npt.NDArray[np.int64],
    found: HeldOut,
    targets_NP: Float64,
    turns: Turns,
    samples: int,
    seed: int,
) -> Fit:
    saved_P = r_squared(targets_NP, found.predicted_NP)
    count = targets_NP.shape[1] - 1
    p_value = (1 + int((saved_P[1:] >= saved_P[0]).sum())) / (1 + count) if count else float("nan")
    actual_N, baseline_N = targets_NP[:, 0], found.baseline_NP[:, 0]
    whole_N, left_N = (actual_N - actual_N.mean()) ** 2, (actual_N - found.predicted_NP[:, 0]) ** 2
    return Fit(
        name=f"held-out {scheme.name}",
        flatters=False,
        r_squared=float(saved_P[0]),
        interval=_interval(scheme, whole_N, left_N, samples, seed),
        p_value=p_value if np.isfinite(saved_P[0]) else float("nan"),
        mean_only=float(r_squared(actual_N[:, None], baseline_N[:, None])[0]),
        group_only=_group_only(scheme, fold_N, actual_N, baseline_N, turns),
        num_groups=scheme.num_groups,
        num_folds=int(fold_N.max()) + 1,
        strength=float(np.median(found.strength_KP[:, 0])),
    )


def _interval(scheme: Scheme, whole_N: Float64, left_N: Float64, samples: int, seed: int) -> tuple[float, float]:
    """Bound R^2 by drawing held-out groups with replacement; the models stay as they are."""
    if scheme.num_groups < FEWEST_GROUPS:
        return float("nan"), float("nan")
    whole_G, left_G = (np.bincount(scheme.label_N, part_N, scheme.num_groups) for part_N in (whole_N, left_N))
    draws_BG = np.random.default_rng(seed).multinomial(
        scheme.num_groups, np.full(scheme.num_groups, 1 / scheme.num_groups), size=samples
    )
    whole_B, left_B = draws_BG @ whole_G, draws_BG @ left_G
    drawn = whole_B > 0
    if not drawn.any():
        return float("nan"), float("nan")
    low, high = np.percentile(1 - left_B[drawn] / whole_B[drawn], BOUNDS)
    return float(low), float(high)


def _group_only(
    scheme: Scheme, fold_N: npt.NDArray[np.int64], actual_N: Float64, baseline_N: Float64, turns: Turns
) -> float:
    """R^2 of the mean of the reply's group in the training part; the mean of all where the group is not in it."""
    if scheme.name == "groups" or len(set(turns.group.tolist())) < 2:
        return float("nan")
    predicted_N = baseline_N.copy()
    for fold in np.unique(fold_N):
        for group in set(turns.group[fold_N == fold].tolist()):
            inside = (fold_N != fold) & (turns.group == group)
            if inside.any():
                predicted_N[(fold_N == fold) & (turns.group == group)] = actual_N[inside].mean()
    return float(r_squared(actual_N[:, None], predicted_N[:, None])[0])
