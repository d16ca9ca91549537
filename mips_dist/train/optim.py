"""The optimizer and its learning rate, which is a pure function of the step."""

from dataclasses import dataclass

import torch
from torch import nn

_PAPER_LR = 2e-4
_PAPER_WIDTH = 512


@dataclass(kw_only=True, slots=True)
class OptimizerConfig:
    """Adam as in the paper: betas .9 and .98, no weight decay, 10 % warm-up.

    Attributes
    ----------
    lr
        Peak learning rate; None: the paper's 2e-4 at its width of 512, and inversely proportional
        to the width elsewhere, as Adam wants it.
    beta1, beta2, eps
        Adam's.
    warmup_fraction
        Part of the steps in which the learning rate rises.
    clip_norm
        Largest global gradient norm, 0 for none. Ours: the paper's code does not clip.
    """

    lr: float | None = None
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-8
    warmup_fraction: float = 0.1
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        if self.lr is not None and not self.lr > 0:
            raise ValueError(f"optimizer.lr={self.lr} must be above 0")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ValueError(f"optimizer.beta1={self.beta1}, beta2={self.beta2} must be in [0, 1)")
        if not 0 <= self.warmup_fraction < 1:
            raise ValueError(f"optimizer.warmup_fraction={self.warmup_fraction} must be in [0, 1)")
        if self.clip_norm < 0:
            raise ValueError(f"optimizer.clip_norm={self.clip_norm} must not be negative")

    def peak_lr(self, hidden_dim: int) -> float:
        """Return the learning rate at the end of the warm-up, for a model of this width."""
        return _PAPER_LR * _PAPER_WIDTH / hidden_dim if self.lr is None else self.lr


def make_adam(parameters: list[nn.Parameter], config: OptimizerConfig) -> torch.optim.Adam:
    """Build Adam with one kernel for all of a tensor's arithmetic; `TrainEngine.step` gives lr."""
    return torch.optim.Adam(
        parameters, betas=(config.beta1, config.beta2), eps=config.eps, fused=True
    )


def learning_rate(step: int, num_steps: int, peak: float, warmup_fraction: float) -> float:
    """Return the learning rate of a step: linear warm-up, then linear decay to almost nothing.

    Parameters
    ----------
    step
        Number of the step, 0 to ``num_steps - 1``.
    peak, warmup_fraction
        See `OptimizerConfig`.

    Notes
    -----
    The warm-up reaches the peak at its last step; the step after the last would get 0.
    """
    warmup = round(warmup_fraction * num_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (num_steps - step) / (num_steps - warmup)
