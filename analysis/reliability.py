"""How far a projection depends on which questions were asked, and what to think of a thin run.

Axes: N rollouts, P personas or roles, Q questions of a persona, B samples, L layers, D d_model.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..jobs.wording import count_of
from .axis import is_distinct
from .bootstrap import BOUNDS, SAMPLES

Float64 = npt.NDArray[np.float64]

TRUSTED_COSINE = 0.9
"""Agreement of an axis with itself, by halves or by samples, below which a reader should know it."""
_FEW_QUESTIONS = 20
_FEW_ROLLOUTS = 10
_FEW_ROLES = 50


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
        by_layer_LN = projections_NL[rows].astype(np.float64).T
        sums_QL = np.stack([np.bincount(question_of_row, values_N, num_questions) for values_N in by_layer_LN], axis=1)
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


def expected_cosine(split_half: float) -> float:
    """Estimate the cosine of the axis of all questions with the axis of arbitrarily many questions of their kind.

    If each half's axis is the true one plus independent error of equal size, two halves with cosine r mean that their
    average has cosine sqrt(2 r / (1 + r)) with the true axis: the formula of Spearman and Brown (1910) for a test of
    twice the length, as an index of reliability.

    Args:
        split_half: Cosine between the axes of the two halves.

    Returns:
        0 to 1; 0 if the halves do not agree at all, and NaN for NaN.

    Example:
        >>> round(expected_cosine(0.41), 2), expected_cosine(1.0)
        (0.76, 1.0)
    """
    agreement = np.maximum(split_half, 0.0)  # keeps NaN, which max() may not
    return float(np.sqrt(2 * agreement / (1 + agreement)))


def standing_out(default_LD: Float64, role_vectors_PLD: Float64) -> Float64:
    """Compute how far the default stands out on the axis, and how far each role would if it were taken as the default.

    The axis runs from the roles to the default by construction, so any persona lies far out on the axis that is made of
    it: its own noise is part of the axis. The roles tell how far that is in this run. This control is this project's
    own.

    Args:
        default_LD: Default vector.
        role_vectors_PLD: Role vectors, at least three.

    Returns:
        ``(P + 1, L)``, the default first: projection of the persona on the axis from the mean of the other roles to it,
        as a z-score among their projections. NaN where the vectors are NaN, or the others do not vary along this axis.
        A role of few rollouts has more noise than the default and stands out more for that alone.

    Example:
        >>> roles_PLD = np.random.default_rng(0).standard_normal((20, 1, 50))
        >>> found = standing_out(np.full((1, 50), 2.0), roles_PLD)
        >>> bool(found[0, 0] > found[1:, 0].max())
        True
    """
    num_roles, num_layers, _ = role_vectors_PLD.shape
    found = np.full((num_roles + 1, num_layers), np.nan)
    for position in range(num_layers):
        roles_PD = np.asarray(role_vectors_PLD[:, position], np.float64)
        mean_D = roles_PD.mean(axis=0)
        axis_D = default_LD[position] - mean_D
        centred_PD = roles_PD - mean_D
        if not np.isfinite(axis_D).all() or not is_distinct(centred_PD, mean_D[None]).any():
            continue
        found[0, position] = _ratio(float(axis_D @ axis_D), centred_PD @ axis_D)
        # Without role p the mean of the roles is that much nearer the others.
        gram_PP = centred_PD @ centred_PD.T * num_roles / (num_roles - 1)
        for role in range(num_roles):
            squared = float(gram_PP[role, role]) * num_roles / (num_roles - 1)
            found[role + 1, position] = _ratio(squared, np.delete(gram_PP[role], role))
    return found


def _ratio(squared_length: float, projected_P: Float64) -> float:
    """z-score of the end of an axis among projections on it, all of them times the length of the axis."""
    spread = float(projected_P.std())
    return squared_length / spread if spread > 0 else float("nan")


def trust(
    layer: int,
    *,
    num_roles: int,
    num_questions: int,
    least_rollouts: int,
    split_half: float | None = None,
    axis_interval: tuple[float, float] | None = None,
    roles_above: int | None = None,
) -> list[str]:
    """Say in sentences what limits the trust in an axis; none for a run that is large enough and agrees with itself.

    Args:
        layer: 0-based layer of the values below.
        num_roles: Number of roles that the axis is made of.
        num_questions: Number of questions that were asked.
        least_rollouts: Number of rollouts behind the role vector that has the fewest.
        split_half: Cosine between the axes of the questions with even and with odd index; None or NaN: there is none.
        axis_interval: 95 % interval over bootstrap samples of the roles of the cosine with the axis; None or NaN: there
            is none.
        roles_above: Number of roles that would stand out more than the default does if they were taken as the default
            (``standing_out``); None: not computed.

    Example:
        >>> trust(15, num_roles=275, num_questions=240, least_rollouts=900, split_half=0.99)
        []
        >>> trust(15, num_roles=26, num_questions=240, least_rollouts=900, split_half=0.99)
        ['The axis rests on 26 roles; the paper has 275.']
    """
    lines: list[str] = []
    if split_half is None or np.isnan(split_half):
        lines.append(f"There are no two halves of the questions to compare at layer {layer}.")
    elif split_half < TRUSTED_COSINE:
        expected = expected_cosine(split_half)
        lines.append(
            f"The axes of the questions with even and with odd index have cosine {split_half:.2f} at layer {layer}. "
            f"That of all is expected to have cosine {expected:.2f} with that of many more questions."
        )
    if axis_interval is not None and axis_interval[0] < TRUSTED_COSINE:
        low, high = axis_interval
        lines.append(
            f"With other roles the axis would be another: over bootstrap samples of them its cosine with this axis is "
            f"{low:.2f} to {high:.2f} at layer {layer}."
        )
    if roles_above:
        lines.append(
            f"Taken as the default, {roles_above} of {num_roles} roles would stand out more than the default does at "
            f"layer {layer}, so its distance from the roles says little."
        )
    if num_questions < _FEW_QUESTIONS:
        asked = "1 question was" if num_questions == 1 else f"{num_questions} questions were"
        lines.append(f"Only {asked} asked, and every interval over questions rests on them.")
    if least_rollouts < _FEW_ROLLOUTS:
        lines.append(
            f"A role vector is the mean of as few as {count_of(least_rollouts, 'rollout')}; the paper keeps a role "
            f"from {_FEW_ROLLOUTS} on."
        )
    if num_roles < _FEW_ROLES:
        lines.append(f"The axis rests on {num_roles} role{'s' * (num_roles != 1)}; the paper has 275.")
    return lines
