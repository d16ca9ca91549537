"""A Gaussian process on features of the infinite chain, as arrays: what prediction needs of it.

k(a, b) = s_1 T + s_2 T^2 + sum over blocks g of s_g M(|a_g - b_g| / l_g) + s_l <a_l, b_l>: T(a, b)
is the min-max (Tanimoto) similarity of the counts of environments, M the Matern kernel of
smoothness 5/2, and the last term is linear in the composition, since some properties are sums over
bonds.
`mips_dist.train.gaussian_process` chooses the constants.

Legend: R training rows, G polymers, F features of a block.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.uint8]
Steps = npt.NDArray[np.int8]
Values = npt.NDArray[np.float64]

# Standardised values are rounded to steps of so many standard deviations, in training and in use:
# a model keeps the features of its training rows, and so they take a byte each.
STEP = 0.05
LINEAR = "composition"  # the block that has the linear term too


@dataclass(frozen=True, slots=True)
class Block:
    """How one block of real features enters: used columns, their centre and scale, and its terms.

    Attributes
    ----------
    columns, centre, scale
        (F,) columns of the block that vary over the training rows, and what standardises them.
    amplitude, length
        s_g and l_g.
    """

    columns: npt.NDArray[np.int64]
    centre: Values
    scale: Values
    amplitude: float = 1.0
    length: float = 1.0

    @classmethod
    def fit(cls, features: npt.NDArray[np.float32]) -> "Block":
        """Standardise by the training rows (R, all columns); NaN counts as the mean."""
        wide = features.astype(np.float64)
        known = ~np.isnan(wide)
        count = np.maximum(known.sum(0), 1)
        centre = np.where(known, wide, 0.0).sum(0) / count
        spread = np.sqrt(np.where(known, (wide - centre) ** 2, 0.0).sum(0) / count)
        # A column that only one or two rows differ in teaches nothing.
        differing = (known & (np.abs(wide - np.nanmedian(wide, 0)) > 1e-9)).sum(0)
        (columns,) = ((differing >= 3) & (spread > 1e-9)).nonzero()
        return cls(columns, centre[columns], spread[columns])

    def standardise(self, features: npt.NDArray[np.float32]) -> Steps:
        """Return (G, F) standardised columns in steps of `STEP`, cut at 127 of them."""
        z = (features[:, self.columns].astype(np.float64) - self.centre) / self.scale
        return np.clip(np.rint(np.nan_to_num(z, nan=0.0) / STEP), -127, 127).astype(np.int8)


def min_max_similarity(left: Counts, right: Counts) -> Values:
    """Return sum of minima over sum of maxima of counts, (G, R) for (G, bins) and (R, bins)."""
    totals = left.sum(1, dtype=np.int64)[:, None] + right.sum(1, dtype=np.int64)[None, :]
    # Of one polymer nearly all bins are empty.
    used = left.any(0)
    left, right = left[:, used], right[:, used]
    # min(a, b) is the number of thresholds t with a >= t and b >= t: products of bits.
    minima = np.zeros((len(left), len(right)))
    for threshold in range(1, int(min(left.max(initial=0), right.max(initial=0))) + 1):
        a, b = left >= threshold, right >= threshold
        columns = a.any(0) & b.any(0)
        if columns.any():
            minima += a[:, columns].astype(np.float32) @ b[:, columns].astype(np.float32).T
    similarity: Values = minima / np.maximum(totals - minima, 1)
    return similarity


def mean_products(left: Steps, right: Steps) -> Values:
    """Return the mean product over features, (G, R) for (G, F) and (R, F), exact."""
    products: Values = left.astype(np.float64) @ right.T.astype(np.float64)
    return products * (STEP**2 / max(left.shape[1], 1))


def mean_squares(left: Steps, right: Steps) -> Values:
    """Return the squared distance per feature, (G, R) for (G, F) and (R, F), exact."""
    # Sums of products of integers: no rounding, so equal rows are at distance 0.
    a, b = left.astype(np.float64), right.astype(np.float64)
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None, :] - 2.0 * a @ b.T
    return squares * (STEP**2 / max(left.shape[1], 1))


def matern(squares: Values, length: float) -> Values:
    """Return the Matern kernel of smoothness 5/2 for squared distances."""
    r = np.sqrt(5.0 * squares) / length
    values: Values = (1.0 + r + r**2 / 3.0) * np.exp(-r)
    return values


@dataclass(frozen=True, slots=True)
class GaussianProcess:
    """A fitted process.

    Attributes
    ----------
    mean, std
        Of the training labels, in the unit of the property.
    amplitude, amplitude_of_square, linear
        s_1, s_2 and s_l.
    blocks
        By name.
    environments, features
        Those of the training rows: (R, bins) and, by block, (R, F) in steps.
    weights
        (R,) in standard deviations of the label.
    """

    mean: float
    std: float
    amplitude: float
    amplitude_of_square: float
    linear: float
    blocks: dict[str, Block]
    environments: Counts
    features: dict[str, Steps]
    weights: Values

    def predict(
        self, environments: Counts, features: Mapping[str, npt.NDArray[np.float32]]
    ) -> Values:
        """Predict (G,) in the unit of the property; counts (G, bins), blocks (G, columns)."""
        similarity = min_max_similarity(environments, self.environments)
        kernel = self.amplitude * similarity + self.amplitude_of_square * similarity**2
        for name, block in sorted(self.blocks.items()):  # one order of the sum, read or fitted
            z = block.standardise(features[name])
            kernel += block.amplitude * matern(mean_squares(z, self.features[name]), block.length)
            if name == LINEAR:
                kernel += self.linear * mean_products(z, self.features[name])
        values: Values = self.mean + self.std * (kernel @ self.weights)
        return values
