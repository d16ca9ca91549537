"""Calibrate a property model by the predictions of cross-validation, see `model.calibration`."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from mips_dist.model.calibration import (
    DOMAIN_SHARE,
    LEVEL,
    Calibration,
    difficulty,
    features,
    nearest_distance,
)
from mips_dist.model.kernel import Counts, min_max_similarity

Indices = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]


class Coverage(NamedTuple):
    """Share of held-out rows in their intervals, and the mean width in the unit of the property."""

    share: float
    mean_width: float


class HeldOut(NamedTuple):
    """Predictions of cross-validation, R rows of G polymers.

    Attributes
    ----------
    environments
        (G, bins) counts of the polymers.
    fold
        (G,) fold of each polymer.
    polymer
        (R,) polymer of each row.
    value, prediction
        (R,) labels, and what the models of the other folds predict.
    """

    environments: Counts
    fold: Indices
    polymer: Indices
    value: Values
    prediction: Values

    def largest_error(self) -> Values:
        """Return (G,) the largest error of the rows of each polymer."""
        error = np.zeros(len(self.fold))
        np.maximum.at(error, self.polymer, np.abs(self.value - self.prediction))
        return error


def calibrate(held_out: HeldOut) -> tuple[Calibration, Coverage]:
    """Make the calibration of all folds, and measure it on each fold by that of the others.

    Every polymer has its distance from the folds that its model was trained on.
    """
    similarity = min_max_similarity(held_out.environments, held_out.environments)
    is_apart = held_out.fold[:, None] != held_out.fold[None, :]
    distance = nearest_distance(np.where(is_apart, similarity, 0.0))
    np.fill_diagonal(similarity, 0.0)  # nobody is asked for an own error
    error = held_out.largest_error()
    coefficients, quantile = _fit(similarity, distance, error)
    calibration = Calibration(
        held_out.environments,
        error,
        coefficients,
        quantile,
        float(np.quantile(distance, DOMAIN_SHARE)),
    )
    return calibration, _coverage(held_out, similarity, distance, error)


def _fit(similarity: Values, distance: Values, error: Values) -> tuple[Values, float]:
    """Return the coefficients of the difficulty and the quantile of the scores."""
    coefficients, _ = nnls(features(similarity, distance, error), error)
    score = np.sort(error / difficulty(similarity, distance, error, coefficients))
    # The conformal rank; with fewer than nine polymers there is none, and the largest score serves.
    rank = min(len(score), int(np.ceil((len(score) + 1) * LEVEL)))
    return coefficients, float(score[rank - 1])


def _coverage(held_out: HeldOut, similarity: Values, distance: Values, error: Values) -> Coverage:
    half = np.empty(len(error))
    for fold in np.unique(held_out.fold):
        test, others = np.flatnonzero(held_out.fold == fold), np.flatnonzero(held_out.fold != fold)
        known = error[others]
        coefficients, quantile = _fit(similarity[np.ix_(others, others)], distance[others], known)
        half[test] = quantile * difficulty(
            similarity[np.ix_(test, others)], distance[test], known, coefficients
        )
    own = half[held_out.polymer]
    is_covered = np.abs(held_out.value - held_out.prediction) <= own
    return Coverage(float(is_covered.mean()), float(2 * own.mean()))
