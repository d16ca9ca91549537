"""Trees as arrays predict what the library that grew them predicts."""

import numpy as np
from sklearn.ensemble import ExtraTreesRegressor

from mips_dist.model.forest import CHUNK, Forest


def test_predictions_equal_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    # Few distinct values: many thresholds lie close to a value.
    x = rng.integers(0, 4, (300, 12)).astype(np.float32) / 3
    y = x[:, 0] * x[:, 1] - x[:, 2] + rng.normal(0, 0.1, 300)
    fitted = ExtraTreesRegressor(n_estimators=20, random_state=0).fit(x, y)
    forest = Forest.of(fitted)
    new = rng.integers(0, 4, (CHUNK + 7, 12)).astype(np.float32) / 3
    np.testing.assert_allclose(forest.predict(new), fitted.predict(new), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(forest.predict(new[5:6]), forest.predict(new)[5:6])
    assert np.ptp(forest.predict(new)) > 0.5
