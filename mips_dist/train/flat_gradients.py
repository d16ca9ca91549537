"""DeepSpeed's bf16 optimizer of stage 1, on all gradients at once.

It copies, adds, measures and clips gradients parameter by parameter: some 500 launches of a few
microseconds a step for 80 parameters, a quarter of the step of the base preset on a GPU. Its own
buffers hold the gradients of all parameters one after the other, so a handful of launches do.
Imports no DeepSpeed: it reads the attributes of the optimizer that it is given.
"""

from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn


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
    _add(optimizer, lambda p: torch.zeros_like(p) if p.grad is None else p.grad)
    if clear_lp_grads:
        optimizer.clear_lp_grads()


@torch.no_grad()
def add_gradients(
    optimizer: Any, parameters: Mapping[str, nn.Parameter], gradients: Mapping[str, Tensor]
) -> None:
    """Add gradients, by name of all parameters, to the sums in fp32."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    _add(optimizer, lambda parameter: gradients[names[id(parameter)]])


def _add(optimizer: Any, gradient_of: Callable[[nn.Parameter], Tensor]) -> None:
    for parameters, sums in zip(
        optimizer.bf16_groups, optimizer.fp32_groups_actual_gradients_flat, strict=True
    ):
        sums.add_(torch.cat([gradient_of(parameter).reshape(-1) for parameter in parameters]))


def _get_grads_for_norm(optimizer: Any, for_clipping: bool = False) -> Any:
    """Return what the norm is taken of, and what is clipped: everything."""
    flats: list[Tensor] = optimizer.fp32_groups_actual_gradients_flat
    return flats if for_clipping else (flats, {})
