"""How far a projection depends on which questions were asked, and what to think of a thin run.

Axes: N rollouts, P personas, Q questions of a persona, B samples, L layers.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .bootstrap import BOUNDS, SAMPLES

Float64 = npt.NDArray[np.float64]


def question_intervals(
    projections_NL: npt.NDArray[np.floating],
    personas_N: npt.NDArray[np.integer],
    questions_N: npt.NDArray[np.integer],
    samples: int = SAMPLES,
    seed: int = 0,
    *,
    num_personas: int | None = None,
) -> Float64:
    """Compute a 95 % interval of each persona's mean projection by a bootstrap over its questions.

    Rollouts of one question are alike, so questions and not rollouts are drawn with replacement, each with all of its
    rollouts (a cluster bootstrap with percentile intervals). The interval of a persona depends on no other persona.

    Args:
        projections_NL: Projections of rollouts; NaN at layers without an axis.
        personas_N: Number of the persona of each rollout, from 0.
        questions_N: Index of its question.
        samples: Number of bootstrap samples B.
        seed: Seed of the random choice.
        num_personas: P; None: one more than the highest number.

    Returns:
        ``(2, P, L)``: 2.5th and 97.5th percentile. NaN for a persona with fewer than two questions, since one question
        says nothing about others, and where a projection is NaN.

    Example:
        >>> projections_NL = np.array([[0.0], [1.0], [0.0], [1.0], [5.0]])
        >>> found = question_intervals(projections_NL, np.array([0, 0, 0, 0, 1]), np.array([0, 1, 2, 3, 0]))
        >>> found[:, 0, 0].tolist(), found[:, 1, 0].tolist()
        ([0.0, 1.0], [nan, nan])
    """
    count = int(personas_N.max(initial=-1)) + 1 if num_personas is None else num_personas
    intervals = np.full((2, count, projections_NL.shape[1]), np.nan)
    drawn: dict[int, Float64] = {}
    order = np.argsort(personas_N, kind="stable")
    bounds = np.searchsorted(personas_N[order], np.arange(count + 1))
    for persona in range(count):
        rows = order[bounds[persona] : bounds[persona + 1]]
        _, question_of_row = np.unique(questions_N[rows], return_inverse=True)
        num_questions = int(question_of_row.max(initial=-1)) + 1
        if num_questions < 2:
            continue
        sums_QL = np.zeros((num_questions, projections_NL.shape[1]))
        np.add.at(sums_QL, question_of_row, projections_NL[rows].astype(np.float64))
        counts_Q = np.bincount(question_of_row, minlength=num_questions).astype(np.float64)
        if num_questions not in drawn:
            drawn[num_questions] = _draws(num_questions, samples, seed)
        weights_BQ = drawn[num_questions]
        means_BL = (weights_BQ @ sums_QL) / (weights_BQ @ counts_Q)[:, None]
        intervals[:, persona] = np.percentile(means_BL, BOUNDS, axis=0)
    return intervals


def _draws(num_questions: int, samples: int, seed: int) -> Float64:
    """How often each question is drawn in each sample, ``(B, Q)``; the same for all personas with so many questions."""
    rng = np.random.default_rng([seed, num_questions])
    return rng.multinomial(num_questions, np.full(num_questions, 1 / num_questions), size=samples).astype(np.float64)
