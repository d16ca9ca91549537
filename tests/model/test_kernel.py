"""The kernel of `gp-trees`: against its definition, and positive definite on real polymers."""

import numpy as np
import pytest

from mips_dist.chem.chain_features import ChainFeatures, chain_features
from mips_dist.model.chain_model import blocks_of
from mips_dist.model.kernel import (
    STEP,
    Block,
    matern,
    mean_products,
    mean_squares,
    min_max_similarity,
)
from mips_dist.train.gaussian_process import fit_gaussian_process
from tests.polymers import CORNER_CASES


@pytest.fixture(scope="module")
def chain() -> ChainFeatures:
    return chain_features(sorted(set(CORNER_CASES.values())))


def test_similarity_is_sum_of_minima_over_sum_of_maxima() -> None:
    rng = np.random.default_rng(1)
    a = rng.integers(0, 9, (5, 40)).astype(np.uint8)
    b = rng.integers(0, 9, (4, 40)).astype(np.uint8)
    expected = [[np.minimum(x, y).sum() / np.maximum(x, y).sum() for y in b] for x in a]
    np.testing.assert_allclose(min_max_similarity(a, b), expected, rtol=1e-12)


def test_distances_and_matern() -> None:
    rng = np.random.default_rng(2)
    a, b = (rng.integers(-127, 128, (n, 3)).astype(np.int8) for n in (5, 4))
    squares = mean_squares(a, b)
    wide = STEP * (a[:, None].astype(float) - b[None])
    np.testing.assert_allclose(squares, (wide**2).mean(-1), rtol=1e-12)
    np.testing.assert_allclose(
        mean_products(a, b), STEP**2 * (a[:, None].astype(float) * b[None]).mean(-1), rtol=1e-12
    )
    assert (mean_squares(a, a).diagonal() == 0).all()
    r = np.sqrt(5 * squares) / 0.7
    np.testing.assert_allclose(matern(squares, 0.7), (1 + r + r * r / 3) * np.exp(-r))


def test_absent_values_count_as_the_mean_and_rare_columns_are_left_out() -> None:
    x = np.array([[1, 5, 0], [2, 5, 0], [3, 5, 0], [np.nan, 5, 0], [4, 5, 1]], np.float32)
    block = Block.fit(x)
    assert block.columns.tolist() == [0]  # the second is constant, the third differs in one row
    z = block.standardise(x)
    spread = np.std([1, 2, 3, 4])
    expected = [(v - 2.5) / spread / STEP for v in (1, 2, 3, 2.5, 4)]
    assert z[:, 0].tolist() == np.rint(expected).tolist()
    extreme = block.standardise(np.array([[1e9, 0, 0]], np.float32))
    assert extreme[0, 0] == 127


def test_process_interpolates_and_leaves_out(chain: ChainFeatures) -> None:
    """Leave-one-out in closed form equals fitting without the row, at equal hyperparameters."""
    blocks = blocks_of(chain)
    value = 3.0 * chain.composition[:, 1].astype(np.float64) + chain.topology[:, 0]
    process, left_out = fit_gaussian_process(chain.environments, blocks, value, seed=0)
    fitted = process.predict(chain.environments, blocks)
    assert np.corrcoef(fitted, value)[0, 1] > 0.95
    errors = np.abs(left_out - value), np.abs(fitted - value)
    assert errors[0].mean() > errors[1].mean()  # a row is predicted worse without it
    again, _ = fit_gaussian_process(chain.environments, blocks, value, seed=0)
    np.testing.assert_array_equal(again.weights, process.weights)


def test_prediction_does_not_depend_on_the_unit_of_the_label(chain: ChainFeatures) -> None:
    blocks = blocks_of(chain)
    value = chain.topology[:, 0].astype(np.float64)
    one, _ = fit_gaussian_process(chain.environments, blocks, value, seed=0)
    other, _ = fit_gaussian_process(chain.environments, blocks, 1000 * value + 7, seed=0)
    np.testing.assert_allclose(
        other.predict(chain.environments, blocks),
        1000 * one.predict(chain.environments, blocks) + 7,
        rtol=1e-6,
    )
