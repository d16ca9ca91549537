"""DeepSpeed's bf16 optimizer of stage 1, on all gradients at once.

It copies, adds, measures and clips gradients parameter by parameter: some 500 launches of a few
microseconds a step for 80 parameters, a quarter of the step of the base preset on a GPU. Its own
buffers hold the gradients of all parameters one after the other, so a handful of launches do.
Imports no DeepSpeed: it reads the attributes of the optimizer that it is given.
"""

from types import MethodType
from typing import Any

import torch
from torch import Tensor


def use_flat_gradients(optimizer: Any) -> None:
    """Replace two methods of a ``BF16_Optimizer`` by ones that do the same all at once.

    Parameters
    ----------
    optimizer
        DeepSpeed 0.19.8's.
    """
    optimizer.update_hp_grads = MethodType(_update_hp_grads, optimizer)
    optimizer.get_grads_for_norm = MethodType(_get_grads_for_norm, optimizer)


@torch.no_grad()
def _update_hp_grads(optimizer: Any, clear_lp_grads: bool = False) -> None:
    """Add the gradients of a micro-batch to the sums in fp32."""
    for parameters, sums in zip(
        optimizer.bf16_groups, optimizer.fp32_groups_actual_gradients_flat, strict=True
    ):
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        sums.add_(torch.cat([gradient.view(-1) for gradient in gradients]))
    if clear_lp_grads:
        optimizer.clear_lp_grads()


def _get_grads_for_norm(optimizer: Any, for_clipping: bool = False) -> Any:
    """Return what the norm is taken of, and what is clipped: everything."""
    flats: list[Tensor] = optimizer.fp32_groups_actual_gradients_flat
    return flats if for_clipping else (flats, {})
