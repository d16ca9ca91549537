"""DeepSpeed's bf16 optimizer of stage 1, on all gradients at once and without waiting for a GPU.

It copies, adds, measures and clips gradients parameter by parameter: some 500 launches of a few
microseconds a step for 80 parameters, a quarter of the step of the base preset on a GPU. Its own
buffers hold the gradients of all parameters one after the other, so a handful of launches do. And
it looks at the norm before it asks for the rest of the step, while the GPU has nothing to do; here
Adam itself passes a step by whose norm is not finite.
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
    optimizer.step = MethodType(_step, optimizer)


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


@torch.no_grad()
def _step(optimizer: Any) -> None:
    """Clip and apply the sums, unless their norm is not finite; it is reported as inf then."""
    sums: list[Tensor] = optimizer.fp32_groups_actual_gradients_flat
    norm = torch.stack([torch.linalg.vector_norm(flat) for flat in sums]).norm()
    adam = optimizer.optimizer
    # What torch's fused Adam is given by its own loss scaler: all on the device.
    adam.found_inf = norm.isfinite().logical_not().float()
    adam.grad_scale = None
    if optimizer.clip_grad > 0:
        # The same formula as in DeepSpeed's other stages.
        adam.grad_scale = ((norm + 1e-6) / optimizer.clip_grad).clamp(min=1)
    for partition, gradient in zip(
        optimizer.fp32_groups_flat_partition,
        optimizer.fp32_groups_gradient_flat_partition,
        strict=True,
    ):
        partition.grad = gradient
    adam.step()
    optimizer._lazy_init_hp_params_optimizer_state()
    optimizer.update_lp_params()
    optimizer.clear_hp_grads()
    optimizer.overflow = False  # as far as is known here
    optimizer._global_grad_norm = norm.nan_to_num(nan=torch.inf, posinf=torch.inf)
