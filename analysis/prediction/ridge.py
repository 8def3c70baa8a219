"""Ridge regression whose strength is chosen inside the training part, and predictions of what was held out. Pure numpy.

Of many targets at once, as a permutation test has them: the decomposition of the features is shared. Axes: N rows,
E features, P targets, K folds, A strengths.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

STRENGTHS: tuple[float, ...] = tuple(10.0**power for power in range(4, -4, -1))
"""The strengths that are tried, the strongest first: penalties in units of the mean eigenvalue of the features'
products. At the strongest a prediction is hardly more than the mean."""


class RidgePath:
    """Ridge regressions of one set of rows at every strength, intercept included and not penalised.

    Source: Hoerl and Kennard, "Ridge regression", Technometrics 12 (1970), 55-67, by the eigenvectors of X'X.

    Args:
        features_NE: Features of the rows.
        targets_NP: Targets of the rows.
    """

    def __init__(self, features_NE: Float64, targets_NP: Float64) -> None:
        self._centre_E = features_NE.mean(axis=0)
        self.mean_P: Float64 = targets_NP.mean(axis=0)
        centred_NE = features_NE - self._centre_E
        values_E, self._basis_EE = np.linalg.eigh(centred_NE.T @ centred_NE)
        self._values_E = np.maximum(values_E, 0.0)
        # Without any variance of the features every prediction is the mean.
        self._unit = float(self._values_E.mean()) or 1.0
        self._along_EP = self._basis_EE.T @ (centred_NE.T @ (targets_NP - self.mean_P))

    def predict(self, features_NE: Float64, strength: float, columns: slice | Int64 = slice(None)) -> Float64:
        """Predict targets at one strength.

        Args:
            features_NE: Features of the rows to predict.
            strength: Penalty, in units of the mean eigenvalue.
            columns: The targets to predict; all of them by default.

        Returns:
            ``(N, P)``, P the chosen targets.
        """
        weights_EP = self._along_EP[:, columns] / (self._values_E + strength * self._unit)[:, None]
        return self.mean_P[columns] + (features_NE - self._centre_E) @ (self._basis_EE @ weights_EP)


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Predictions of rows by models that have not seen their fold.

    Attributes:
        predicted_NP: The prediction of each row.
        baseline_NP: Mean of the targets of the rows that its model was trained on: a prediction without features.
        strength_KP: The strength that was chosen for each fold.
    """

    predicted_NP: Float64
    baseline_NP: Float64
    strength_KP: Float64


def held_out(features_NE: Float64, targets_NP: Float64, fold_N: Int64) -> HeldOut:
    """Predict each fold by a model of the others, whose strength is chosen among these others only.

    The strength is that with the least squared error when each of the other folds is left out in turn, so a row never
    has a part in the choice of the strength with which it is predicted.

    Args:
        features_NE: Features of each row.
        targets_NP: Targets of each row.
        fold_N: Fold of each row, 0 to K - 1; at least three folds.

    Raises:
        ValueError: There are fewer than three folds.
    """
    num_folds = int(fold_N.max()) + 1 if len(fold_N) else 0
    if num_folds < 3:
        raise ValueError(f"{num_folds} folds: one is predicted, and of the others one is left out to choose a strength")
    predicted_NP, baseline_NP = np.empty_like(targets_NP), np.empty_like(targets_NP)
    strength_KP = np.empty((num_folds, targets_NP.shape[1]))
    for fold in range(num_folds):
        inside = fold_N != fold
        best_P = chosen_strength(features_NE[inside], targets_NP[inside], fold_N[inside])
        path = RidgePath(features_NE[inside], targets_NP[inside])
        for strength in np.unique(best_P):
            columns = np.flatnonzero(best_P == strength)
            predicted_NP[np.ix_(~inside, columns)] = path.predict(features_NE[~inside], float(strength), columns)
        baseline_NP[~inside] = path.mean_P
        strength_KP[fold] = best_P
    return HeldOut(predicted_NP, baseline_NP, strength_KP)


def chosen_strength(features_NE: Float64, targets_NP: Float64, fold_N: Int64) -> Float64:
    """Return the strength that predicts the folds best when each is left out in turn; of equal ones the strongest.

    Args:
        features_NE: Features of each row.
        targets_NP: Targets of each row.
        fold_N: Fold of each row; at least two different ones.

    Returns:
        ``(P,)``, one of ``STRENGTHS`` for each target.
    """
    errors_AP = np.zeros((len(STRENGTHS), targets_NP.shape[1]))
    for fold in np.unique(fold_N):
        inside = fold_N != fold
        path = RidgePath(features_NE[inside], targets_NP[inside])
        for place, strength in enumerate(STRENGTHS):
            left_NP = targets_NP[~inside] - path.predict(features_NE[~inside], strength)
            errors_AP[place] += np.einsum("np,np->p", left_NP, left_NP)
    return np.array(STRENGTHS)[errors_AP.argmin(axis=0)]


def r_squared(targets_NP: Float64, predicted_NP: Float64) -> Float64:
    """Return the share of the squared deviations from the mean of all targets that predictions save.

    The mean is that of the targets that are predicted. The mean of the training part would be the easier one to beat:
    where groups differ in level, leaving one out moves that mean away from it.

    Args:
        targets_NP: The targets.
        predicted_NP: The predictions.

    Returns:
        ``(P,)``: 1 for perfect predictions, 0 for the mean, below 0 for worse; NaN where the targets are all the same.

    Example:
        >>> target = np.array([[1.0], [3.0]])
        >>> float(r_squared(target, target)[0]), float(r_squared(target, np.full((2, 1), 2.0))[0])
        (1.0, 0.0)
    """
    left_P = ((targets_NP - predicted_NP) ** 2).sum(axis=0)
    whole_P = ((targets_NP - targets_NP.mean(axis=0)) ** 2).sum(axis=0)
    return np.divide(whole_P - left_P, whole_P, out=np.full(len(whole_P), np.nan), where=whole_P > 0)
