"""How far a property model may be off: an interval, and the distance to what it was trained on.

**Interval** (conformal). Errors |y - prediction| of cross-validation are divided by a difficulty
s(x) that depends on the polymer alone; q is the quantile of these scores, and the interval is
prediction ± q s(x). Where polymers are exchangeable it holds the true value of at least the stated
share of them. The errors are those of models that saw the other folds alone (as in CV+, Barber et
al. 2021): the released model saw all polymers and errs a little less, so the interval is, if
anything, wide. Equal polymers are one unit of the quantile, with the largest error of their rows.

s(x) = a + b l(x) + c d(x): d is the distance to the nearest training polymer, l the mean error of
the training polymers weighted by the fourth power of their similarity, drawn a little to the mean
of all; a, b, c >= 0 are fitted to the errors. On development folds (fold_seed 20; seven sets, model
gp-trees) intervals that cover as many rows (90 %) are on average narrower than those of one width:
d alone by 2 %, l alone by 8 %, both by 8 %; the disagreement of process and forest alone by 3 %.

**Domain.** The distance is 1 - the min-max (Tanimoto) similarity of the counts of circular
environments of the infinite chain (radius 0 to 3, `mips_dist.chem.chain_features`). In domain: no
further than 95 % of the held-out polymers were from the folds that their model was trained on.

Legend: G training polymers, N others.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mips_dist.errors import MipsError
from mips_dist.model.chain_arrays import (
    DAMAGE,
    environment_arrays,
    environments_of,
    read_arrays,
    write_arrays,
)
from mips_dist.model.kernel import Counts, min_max_similarity

LEVEL = 0.9  # share of polymers whose value lies in the interval
DOMAIN_SHARE = 0.95  # share of held-out polymers within the largest distance in the domain
_POWER = 4
_PRIOR = 0.3  # weight of the mean error of all, in polymers of similarity 1
_FLOOR = 0.2  # of the mean error: the least difficulty

Values = npt.NDArray[np.float64]


class Reliability(NamedTuple):
    """Interval of one prediction, in the unit of the property, and distance with its verdict."""

    lower: float
    upper: float
    distance: float
    in_domain: bool


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a property model keeps of its cross-validation; no P-SMILES.

    Attributes
    ----------
    environments
        (G, bins) counts of the polymers that the model was trained on.
    error
        (G,) largest held-out error of each one's rows, in the unit of the property.
    coefficients
        (3,) a, b, c of the difficulty.
    quantile
        q.
    max_distance
        The largest distance in the domain.
    """

    environments: Counts
    error: Values
    coefficients: Values
    quantile: float
    max_distance: float

    def reliability(self, environments: Counts, value: float) -> Reliability:
        """Judge the prediction for one polymer.

        Parameters
        ----------
        environments
            (1, bins) counts of the polymer.
        value
            What is predicted for it.
        """
        similarity = min_max_similarity(environments, self.environments)
        distance = nearest_distance(similarity)
        half = self.quantile * float(
            difficulty(similarity, distance, self.error, self.coefficients)[0]
        )
        own = float(distance[0])
        return Reliability(value - half, value + half, own, own <= self.max_distance)


def nearest_distance(similarity: Values) -> Values:
    """Return the distance to the nearest, (N,) from 0 to 1, for similarities (N, G)."""
    nearest: Values = 1.0 - similarity.max(axis=1)
    return nearest


def features(similarity: Values, distance: Values, error: Values) -> Values:
    """Return what the difficulty is made of, (N, 3): 1, the local mean error l, the distance.

    Parameters
    ----------
    similarity
        (N, G); 0 where one of the polymers is not to be looked at.
    distance
        (N,).
    error
        (G,).
    """
    weight = similarity**_POWER
    # Sums over rows and no matrix product: the same bits for one polymer and for many.
    total = (weight * error).sum(axis=1) + _PRIOR * error.mean()
    local = total / (weight.sum(axis=1) + _PRIOR)
    return np.column_stack([np.ones_like(local), local, distance])


def difficulty(similarity: Values, distance: Values, error: Values, coefficients: Values) -> Values:
    """Return s, (N,) above 0 in the unit of the property; parameters as of `features`."""
    x = features(similarity, distance, error)
    s: Values = np.maximum((x * coefficients).sum(axis=1), _floor(error))
    return s


def _floor(error: Values) -> float:
    # Where nothing errs at all, any width would do.
    return max(_FLOOR * float(error.mean()), 1e-12)


def save_calibration(calibration: Calibration, path: Path) -> None:
    """Write the file; what `load_calibration` reads from it judges the same, bit for bit."""
    arrays = {
        "error": calibration.error,
        "coefficients": calibration.coefficients,
        "limits": np.array([calibration.quantile, calibration.max_distance]),
        **environment_arrays(calibration.environments),
    }
    write_arrays(arrays, path)


def load_calibration(path: Path) -> Calibration:
    """Read the file.

    Raises
    ------
    MipsError
        It is damaged, or is no calibration.
    """
    try:
        arrays = read_arrays(path)
        quantile, max_distance = arrays["limits"].tolist()
        calibration = Calibration(
            environments_of(arrays), arrays["error"], arrays["coefficients"], quantile, max_distance
        )
        if len(calibration.error) != len(calibration.environments) or not len(calibration.error):
            raise ValueError("not one error for each polymer")
    except DAMAGE as error:
        raise MipsError(f"{path} is damaged; copy the whole directory again") from error
    return calibration
