"""The optimizer and its learning rate, which is a pure function of the step."""

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(kw_only=True, slots=True)
class OptimizerConfig:
    """Adam as in the paper (lr 2e-4, betas .9 and .98, no weight decay, 10 % warm-up).

    ``clip_norm`` is ours: the paper's code does not clip; 0 switches it off.
    """

    lr: float = 2e-4
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-8
    warmup_fraction: float = 0.1
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"optimizer.lr={self.lr} must be above 0")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ValueError(f"optimizer.beta1={self.beta1}, beta2={self.beta2} must be in [0, 1)")
        if not 0 <= self.warmup_fraction < 1:
            raise ValueError(f"optimizer.warmup_fraction={self.warmup_fraction} must be in [0, 1)")
        if self.clip_norm < 0:
            raise ValueError(f"optimizer.clip_norm={self.clip_norm} must not be negative")


def make_adam(parameters: list[nn.Parameter], config: OptimizerConfig) -> torch.optim.Adam:
    """Build Adam with one kernel for all of a tensor's arithmetic."""
    return torch.optim.Adam(
        parameters,
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )


def learning_rate(step: int, num_steps: int, config: OptimizerConfig) -> float:
    """Return the learning rate of a step: linear warm-up, then linear decay to almost nothing.

    Parameters
    ----------
    step
        Number of the step, 0 to ``num_steps - 1``.

    Notes
    -----
    The warm-up reaches ``config.lr`` at its last step; the step after the last would get 0.
    """
    warmup = round(config.warmup_fraction * num_steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    return config.lr * (num_steps - step) / (num_steps - warmup)
