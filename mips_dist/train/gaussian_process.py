"""Fit a Gaussian process on features of the infinite chain by its marginal likelihood.

Legend: R training rows, H hyperparameters.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize
from torch import Tensor

from mips_dist.model.kernel import (
    LINEAR,
    Block,
    Counts,
    GaussianProcess,
    Steps,
    Values,
    mean_products,
    mean_squares,
    min_max_similarity,
)

# Rows that choose the hyperparameters; more change them little and cost with the cube.
MAX_ROWS = 800
MAX_EVALUATIONS = 50
JITTER = 1e-8
# Bounds keep one unlucky fold from explaining its labels without noise.
_NOISE_BOUNDS = (np.log(2e-4), np.log(1.0))
_AMPLITUDE_BOUNDS = (np.log(1e-4), np.log(30.0))
_LENGTH_BOUNDS = (np.log(0.1), np.log(30.0))
# Log-normal priors, weak: (centre, width) of log values.
_AMPLITUDE_PRIOR = (np.log(0.3), 1.5)
_LENGTH_PRIOR = (np.log(1.5), 1.0)
_NOISE_PRIOR = (np.log(0.05), 1.5)


def fit_gaussian_process(
    environments: Counts,
    features: Mapping[str, npt.NDArray[np.float32]],
    value: Values,
    seed: int,
) -> tuple[GaussianProcess, Values]:
    """Fit to training rows.

    Returns the process, which predicts in the unit of the labels, and (R,) what it would predict
    for each training row without that row (leave-one-out at the same hyperparameters).

    Parameters
    ----------
    environments
        (R, bins) counts.
    features
        Block name -> (R, columns); NaN where a row has no value.
    value
        (R,) labels.
    seed
        Chooses the rows that choose the hyperparameters, where there are more than `MAX_ROWS`.
    """
    mean, std = float(value.mean()), float(value.std()) or 1.0
    z = (value - mean) / std
    blocks = {name: Block.fit(x) for name, x in features.items()}
    standard = {name: block.standardise(features[name]) for name, block in blocks.items()}
    rng = np.random.default_rng(seed)
    some = np.sort(rng.permutation(len(value))[:MAX_ROWS])
    own = {name: x[some] for name, x in standard.items()}
    log_theta = _Likelihood(environments[some], own, z[some]).maximise()
    full = _Likelihood(environments, standard, z)
    theta = np.exp(log_theta)
    covariance = full.covariance(torch.from_numpy(log_theta)).numpy()
    # An eigenvalue below zero by rounding, never by more, is what the jitter is for.
    precision = np.linalg.inv(covariance + JITTER * np.eye(len(z)))
    weights = precision @ z
    left_out: Values = value - std * weights / precision.diagonal()
    names = list(blocks)
    process = GaussianProcess(
        mean=mean,
        std=std,
        amplitude=float(theta[1]),
        amplitude_of_square=float(theta[2]),
        linear=float(theta[3]),
        blocks={
            name: replace(
                blocks[name], amplitude=float(theta[4 + 2 * i]), length=float(theta[5 + 2 * i])
            )
            for i, name in enumerate(names)
        },
        environments=environments,
        features=standard,
        weights=weights,
    )
    return process, left_out


class _Likelihood:
    """Marginal likelihood of some rows; log hyperparameters in the order of `_bounds`."""

    def __init__(self, environments: Counts, features: Mapping[str, Steps], z: Values) -> None:
        similarity = min_max_similarity(environments, environments)
        self.similarity = torch.from_numpy(similarity)
        self.squares = [torch.from_numpy(mean_squares(x, x)) for x in features.values()]
        self.products = torch.zeros_like(self.similarity)
        if LINEAR in features:
            self.products = torch.from_numpy(mean_products(features[LINEAR], features[LINEAR]))
        self.z = torch.from_numpy(z)
        count = len(self.squares)
        self.bounds = [_NOISE_BOUNDS, _AMPLITUDE_BOUNDS, _AMPLITUDE_BOUNDS, _AMPLITUDE_BOUNDS]
        self.bounds += [_AMPLITUDE_BOUNDS, _LENGTH_BOUNDS] * count
        priors = [_NOISE_PRIOR, _AMPLITUDE_PRIOR, _AMPLITUDE_PRIOR, _AMPLITUDE_PRIOR]
        priors += [_AMPLITUDE_PRIOR, _LENGTH_PRIOR] * count
        self.prior = torch.tensor(priors, dtype=torch.float64)

    def covariance(self, log_theta: Tensor) -> Tensor:
        """Return the covariance of the rows (R, R), noise included."""
        theta = log_theta.exp()
        total = theta[1] * self.similarity + theta[2] * self.similarity**2
        total = total + theta[3] * self.products
        for i, squares in enumerate(self.squares):
            # Offset, for the derivative of a root at 0 is infinite.
            r = (5.0 * squares + 1e-12).sqrt() / theta[5 + 2 * i]
            total = total + theta[4 + 2 * i] * (1.0 + r + r**2 / 3.0) * (-r).exp()
        return total + theta[0] * torch.eye(len(self.z), dtype=torch.float64)

    def maximise(self) -> Values:
        """Return the best log hyperparameters (H,)."""
        found = minimize(
            self._value_and_gradient,
            self.prior[:, 0].numpy(),
            jac=True,
            method="L-BFGS-B",
            bounds=self.bounds,
            options={"maxfun": MAX_EVALUATIONS},
        )
        best: Values = found.x
        return best

    def _value_and_gradient(self, x: Values) -> tuple[float, Values]:
        log_theta = torch.tensor(x, dtype=torch.float64, requires_grad=True)
        n = len(self.z)
        covariance = self.covariance(log_theta) + JITTER * torch.eye(n, dtype=torch.float64)
        factor = torch.linalg.cholesky(covariance)
        solved = torch.cholesky_solve(self.z[:, None], factor)[:, 0]
        loss = 0.5 * self.z @ solved + factor.diagonal().log().sum()
        centre, width = self.prior.unbind(1)
        loss = loss + (0.5 * ((log_theta - centre) / width) ** 2).sum()
        loss.backward()
        assert log_theta.grad is not None
        return float(loss.detach()), log_theta.grad.numpy()
