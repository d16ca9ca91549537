"""Rows of a tensor by number, with a backward pass that a GPU does well."""

from typing import Any

import torch
from torch import Tensor


class _SelectDistinct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.num_rows = len(x)
        return x.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        return grad.new_zeros(ctx.num_rows, *grad.shape[1:]).index_copy(0, rows, grad), None


def select_distinct(x: Tensor, rows: Tensor) -> Tensor:
    """Return rows of a tensor as ``index_select`` does.

    Its own backward pass adds gradients up one by one, for which a GPU has no fast way in bf16;
    rows that are taken once need no addition.

    Parameters
    ----------
    x
        (N, ...).
    rows
        (M,) long; none twice, but rows whose gradient is zero.
    """
    return _SelectDistinct.apply(x, rows)
