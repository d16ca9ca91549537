"""Bias, GELU and dropout of a layer's widest rows as one Triton kernel each way, for GPUs.

Memory is what they cost: 2,048 numbers of each token, read and written. No mask of what was dropped
is kept, and the bias is added here, as its gradient is a sum of what the backward kernel has at
hand; compiled code reads all of it once more for each. Not imported without a GPU.

Legend: N rows, F columns, S strips of rows.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mips_dist.model.dropout import LEVELS
from mips_dist.model.kernel_dropout import random_bits

_STRIP, _ROWS, _COLUMNS = 128, 16, 128  # rows of a program, and of its tile; columns of a tile


@triton.jit
def _kept(rows, columns, seed, num_dropped, F: tl.constexpr):
    """Return which elements of the two halves of the columns stay: 16 bits of a word for each."""
    bits = random_bits(rows[:, None] * (F // 2) + columns[None, :], seed)
    left = (bits & 0xFFFF).to(tl.int32) >= num_dropped
    return left, (bits >> 16).to(tl.int32) >= num_dropped


@triton.jit
def _tail(x):
    """Return the normal distribution beyond -abs(x), and exp(-x * x / 2).

    Abramowitz and Stegun 7.1.26, to within 1e-7: a third of the instructions of erf.
    """
    fall = tl.exp2(x * x * -0.7213475204444817)
    root = tl.rsqrt(1 + 0.23164187 * tl.abs(x))
    t = root * root  # a division takes three instructions more
    series = -0.7265760135 + t * 0.5307027145
    series = -0.142248368 + t * (0.7107068705 + t * series)
    return (0.127414796 + t * series) * t * fall, fall


@triton.jit
def _gelu(x_ptr, place, mask, bias):
    x = tl.load(x_ptr + place, mask=mask, other=0.0).to(tl.float32) + bias[None, :]
    tail, _ = _tail(x)
    return tl.maximum(x, 0.0) - tl.abs(x) * tail


@triton.jit
def _gelu_grad(x_ptr, place, mask, bias):
    x = tl.load(x_ptr + place, mask=mask, other=0.0).to(tl.float32) + bias[None, :]
    tail, fall = _tail(x)
    return tl.where(x > 0, 1 - tail, tail) + x * (0.3989422804014327 * fall)


@triton.jit
def _forward_kernel(
    x_ptr,
    bias_ptr,
    seed_ptr,
    out_ptr,
    num_rows,
    num_dropped,
    keep_scale,
    F: tl.constexpr,
    STRIP: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_left = columns < F // 2
    left_bias = tl.load(bias_ptr + columns, mask=is_left, other=0.0).to(tl.float32)
    right_bias = tl.load(bias_ptr + F // 2 + columns, mask=is_left, other=0.0).to(tl.float32)
    seed = tl.load(seed_ptr)
    for step in range(STRIP // ROWS):
        rows = tl.program_id(0) * STRIP + step * ROWS + tl.arange(0, ROWS)
        mask = (rows < num_rows)[:, None] & is_left[None, :]
        place = rows.to(tl.int64)[:, None] * F + columns[None, :]
        left_kept, right_kept = _kept(rows, columns, seed, num_dropped, F)
        left = _gelu(x_ptr, place, mask, left_bias)
        right = _gelu(x_ptr + F // 2, place, mask, right_bias)
        left = tl.where(left_kept, left * keep_scale, 0.0)
        right = tl.where(right_kept, right * keep_scale, 0.0)
        tl.store(out_ptr + place, left.to(out_ptr.dtype.element_ty), mask=mask)
        tl.store(out_ptr + F // 2 + place, right.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _backward_kernel(
    grad_ptr,
    x_ptr,
    bias_ptr,
    seed_ptr,
    x_grad_ptr,
    bias_grad_ptr,
    num_rows,
    num_dropped,
    keep_scale,
    F: tl.constexpr,
    STRIP: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    strip = tl.program_id(0)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_left = columns < F // 2
    left_bias = tl.load(bias_ptr + columns, mask=is_left, other=0.0).to(tl.float32)
    right_bias = tl.load(bias_ptr + F // 2 + columns, mask=is_left, other=0.0).to(tl.float32)
    seed = tl.load(seed_ptr)
    left_sum = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    right_sum = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for step in range(STRIP // ROWS):
        rows = strip * STRIP + step * ROWS + tl.arange(0, ROWS)
        mask = (rows < num_rows)[:, None] & is_left[None, :]
        place = rows.to(tl.int64)[:, None] * F + columns[None, :]
        left_kept, right_kept = _kept(rows, columns, seed, num_dropped, F)
        left = tl.load(grad_ptr + place, mask=mask, other=0.0).to(tl.float32)
        right = tl.load(grad_ptr + F // 2 + place, mask=mask, other=0.0).to(tl.float32)
        left = tl.where(left_kept, left * keep_scale, 0.0)
        right = tl.where(right_kept, right * keep_scale, 0.0)
        left *= _gelu_grad(x_ptr, place, mask, left_bias)
        right *= _gelu_grad(x_ptr + F // 2, place, mask, right_bias)
        tl.store(x_grad_ptr + place, left.to(x_grad_ptr.dtype.element_ty), mask=mask)
        tl.store(x_grad_ptr + F // 2 + place, right.to(x_grad_ptr.dtype.element_ty), mask=mask)
        left_sum += left
        right_sum += right
    bias_grad_ptr += strip * F + columns
    tl.store(bias_grad_ptr, tl.sum(left_sum, 0), mask=is_left)
    tl.store(bias_grad_ptr + F // 2, tl.sum(right_sum, 0), mask=is_left)


def _settings(x: Tensor, probability: float) -> dict[str, Any]:
    num_dropped = round(probability * LEVELS)
    return {
        "num_rows": len(x),
        "num_dropped": num_dropped,
        "keep_scale": LEVELS / (LEVELS - num_dropped),
        "F": x.shape[1],
        "STRIP": _STRIP,
        "ROWS": _ROWS,
        "COLUMNS": _COLUMNS,
        "num_warps": 8,
    }


def _grid(x: Tensor) -> tuple[int, int]:
    return triton.cdiv(len(x), _STRIP), triton.cdiv(x.shape[1] // 2, _COLUMNS)


@torch.library.custom_op("mips::gelu_dropout", mutates_args=())
def gelu_dropout(x: Tensor, bias: Tensor, seed: Tensor, probability: float) -> Tensor:
    """Return dropout(gelu(x + bias)) (N, F).

    Parameters
    ----------
    x
        (N, F) contiguous, fp32, bf16 or fp16; F even.
    bias
        (F,) of the same type.
    seed
        () int32, of the dropout.
    probability
        Of dropping an element; 0: none is.
    """
    out = torch.empty_like(x)
    _forward_kernel[_grid(x)](x, bias, seed, out, **_settings(x, probability))
    return out


@gelu_dropout.register_fake
def _(x: Tensor, bias: Tensor, seed: Tensor, probability: float) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("mips::gelu_dropout_backward", mutates_args=())
def gelu_dropout_backward(
    grad: Tensor, x: Tensor, bias: Tensor, seed: Tensor, probability: float
) -> tuple[Tensor, Tensor]:
    """Return the gradients of x, and of the bias by strips of rows (S, F) in fp32."""
    x_grad = torch.empty_like(x)
    bias_grad = x.new_empty(_grid(x)[0], x.shape[1], dtype=torch.float32)
    inputs = grad.contiguous(), x, bias, seed, x_grad, bias_grad
    _backward_kernel[_grid(x)](*inputs, **_settings(x, probability))
    return x_grad, bias_grad


@gelu_dropout_backward.register_fake
def _(
    grad: Tensor, x: Tensor, bias: Tensor, seed: Tensor, probability: float
) -> tuple[Tensor, Tensor]:
    # `len` would make a constant of the rows, and compiled layers anew for each number of them.
    bias_grad = x.new_empty(triton.cdiv(x.shape[0], _STRIP), x.shape[1], dtype=torch.float32)
    return torch.empty_like(x), bias_grad


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, bias, seed, ctx.probability = inputs
    ctx.save_for_backward(x, bias, seed)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, bias, seed = ctx.saved_tensors
    x_grad, by_strip = gelu_dropout_backward(grad, x, bias, seed, ctx.probability)
    return x_grad, by_strip.sum(0).to(bias.dtype), None, None


gelu_dropout.register_autograd(_backward, setup_context=_keep)
