"""Attention of whole packs as one Triton kernel each way, for GPUs.

A pack is a tile: 128 tokens attend to 128 tokens. So the softmax of a row is known at once, nothing
but the inputs is kept for the backward pass, gradients of q, k and v are written where the linear
map before wants them, and heads read the biases that they share. torch's own kernel, made for long
sequences, takes two to three times as long (docs/gpu.md). Not imported without a GPU.

Legend: X packs, T tokens of a pack, H heads, K head dim, B biases of a pair (1 or H).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mips_dist.model.dropout import LEVELS


@triton.jit
def _kept(pack_head, seed, T: tl.constexpr, num_dropped):
    """Return which weights of the tile stay: `model.dropout.mixed_bits` of their places."""
    rows, columns = tl.arange(0, T), tl.arange(0, T)
    place = pack_head * (T * T) + rows[:, None] * T + columns[None, :]
    seed = seed.to(tl.uint32, bitcast=True)
    bits = (place.to(tl.uint32, bitcast=True) ^ seed) * 2654435761
    bits = (bits ^ (bits >> 16)) * 0x7FEB352D
    bits = bits ^ (seed * 747796405)
    bits = (bits ^ (bits >> 15)) * 2221713035
    return ((bits >> 16) & 0xFFFF).to(tl.int32) >= num_dropped


@triton.jit
def _softmax(q, k, bias_ptr, scale, T: tl.constexpr, PRECISION: tl.constexpr):
    rows, columns = tl.arange(0, T), tl.arange(0, T)
    logits = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    logits += tl.load(bias_ptr + rows[:, None] * T + columns[None, :]).to(tl.float32)
    weights = tl.exp(logits - tl.max(logits, 1)[:, None])
    return weights / tl.sum(weights, 1)[:, None]


@triton.jit
def _forward_kernel(
    qkv_ptr,
    bias_ptr,
    seed_ptr,
    mixed_ptr,
    scale,
    num_dropped,
    keep_scale,
    H: tl.constexpr,
    B: tl.constexpr,
    T: tl.constexpr,
    K: tl.constexpr,
    DROPS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    pack_head = tl.program_id(0)  # heads of one pack side by side: its biases stay in the cache
    pack, head = pack_head // H, pack_head % H
    rows, dims = tl.arange(0, T), tl.arange(0, K)
    tile = rows[:, None] * (3 * H * K) + dims[None, :]
    start = qkv_ptr + pack.to(tl.int64) * (T * 3 * H * K) + head * K
    q, k = tl.load(start + tile), tl.load(start + H * K + tile)
    v = tl.load(start + 2 * H * K + tile)
    bias_ptr += (pack.to(tl.int64) * B + head % B) * (T * T)
    weights = _softmax(q, k, bias_ptr, scale, T, PRECISION)
    if DROPS:
        kept = _kept(pack_head, tl.load(seed_ptr), T, num_dropped)
        weights = tl.where(kept, weights * keep_scale, 0.0)
    mixed = tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
    mixed_ptr += pack.to(tl.int64) * (T * H * K) + head * K
    tl.store(mixed_ptr + rows[:, None] * (H * K) + dims[None, :], mixed.to(v.dtype))


@triton.jit
def _backward_kernel(
    qkv_ptr,
    bias_ptr,
    seed_ptr,
    grad_ptr,
    qkv_grad_ptr,
    logit_grad_ptr,
    scale,
    num_dropped,
    keep_scale,
    H: tl.constexpr,
    B: tl.constexpr,
    T: tl.constexpr,
    K: tl.constexpr,
    DROPS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    pack_head = tl.program_id(0)
    pack, head = pack_head // H, pack_head % H
    rows, dims, columns = tl.arange(0, T), tl.arange(0, K), tl.arange(0, T)
    tile = rows[:, None] * (3 * H * K) + dims[None, :]
    offset = pack.to(tl.int64) * (T * 3 * H * K) + head * K
    start = qkv_ptr + offset
    q, k = tl.load(start + tile), tl.load(start + H * K + tile)
    bias_ptr += (pack.to(tl.int64) * B + head % B) * (T * T)
    weights = _softmax(q, k, bias_ptr, scale, T, PRECISION)
    grad_ptr += pack.to(tl.int64) * (T * H * K) + head * K
    grad = tl.load(grad_ptr + rows[:, None] * (H * K) + dims[None, :])
    v = tl.load(start + 2 * H * K + tile)
    weight_grad = tl.dot(grad, tl.trans(v), input_precision=PRECISION)
    used = weights
    if DROPS:
        kept = _kept(pack_head, tl.load(seed_ptr), T, num_dropped)
        used = tl.where(kept, weights * keep_scale, 0.0)
        weight_grad = tl.where(kept, weight_grad * keep_scale, 0.0)
    v_grad = tl.dot(tl.trans(used.to(grad.dtype)), grad, input_precision=PRECISION)
    start = qkv_grad_ptr + offset
    tl.store(start + 2 * H * K + tile, v_grad.to(v.dtype))
    logit_grad = weights * (weight_grad - tl.sum(weight_grad * weights, 1)[:, None])
    narrow = logit_grad.to(q.dtype)
    logit_grad_ptr += pack_head.to(tl.int64) * (T * T)
    tl.store(logit_grad_ptr + rows[:, None] * T + columns[None, :], narrow)
    q_grad = tl.dot(narrow, k, input_precision=PRECISION) * scale
    tl.store(start + tile, q_grad.to(q.dtype))
    k_grad = tl.dot(tl.trans(narrow), q, input_precision=PRECISION) * scale
    tl.store(start + H * K + tile, k_grad.to(q.dtype))


def _settings(qkv: Tensor, bias: Tensor, scale: float, probability: float) -> dict[str, Any]:
    _, size, _, num_heads, head_dim = qkv.shape
    num_dropped = round(probability * LEVELS)
    return {
        "scale": scale,
        "num_dropped": num_dropped,
        "keep_scale": LEVELS / (LEVELS - num_dropped),
        "H": num_heads,
        "B": bias.shape[1],
        "T": size,
        "K": head_dim,
        "DROPS": num_dropped > 0,
        "PRECISION": "ieee" if qkv.dtype == torch.float32 else "tf32",
        "num_warps": 8,
        "num_stages": 1,
    }


@torch.library.custom_op("mips::pack_attention", mutates_args=())
def pack_attention(
    qkv: Tensor, bias: Tensor, seed: Tensor, scale: float, probability: float
) -> Tensor:
    """Return the attended values (X, T, H * K).

    Parameters
    ----------
    qkv
        (X, T, 3, H, K) contiguous, fp32, bf16 or fp16.
    bias
        (X, B, T, T) contiguous, same dtype; -inf where nothing is attended.
    seed
        () int32, of the dropout.
    scale
        Factor on q . k.
    probability
        Of dropping a weight; 0: none is.
    """
    num_packs, size, _, num_heads, head_dim = qkv.shape
    mixed = qkv.new_empty(num_packs, size, num_heads * head_dim)
    grid = (num_packs * num_heads,)
    _forward_kernel[grid](qkv, bias, seed, mixed, **_settings(qkv, bias, scale, probability))
    return mixed


@pack_attention.register_fake
def _(qkv: Tensor, bias: Tensor, seed: Tensor, scale: float, probability: float) -> Tensor:
    num_packs, size, _, num_heads, head_dim = qkv.shape
    return qkv.new_empty(num_packs, size, num_heads * head_dim)


@torch.library.custom_op("mips::pack_attention_backward", mutates_args=())
def pack_attention_backward(
    grad: Tensor, qkv: Tensor, bias: Tensor, seed: Tensor, scale: float, probability: float
) -> tuple[Tensor, Tensor]:
    """Return the gradients of qkv, and of the logits of every head (X, H, T, T)."""
    num_packs, size, _, num_heads, _ = qkv.shape
    qkv_grad = torch.empty_like(qkv)
    logit_grad = qkv.new_empty(num_packs, num_heads, size, size)
    _backward_kernel[(num_packs * num_heads,)](
        qkv,
        bias,
        seed,
        grad.contiguous(),
        qkv_grad,
        logit_grad,
        **_settings(qkv, bias, scale, probability),
    )
    return qkv_grad, logit_grad


@pack_attention_backward.register_fake
def _(
    grad: Tensor, qkv: Tensor, bias: Tensor, seed: Tensor, scale: float, probability: float
) -> tuple[Tensor, Tensor]:
    num_packs, size, _, num_heads, _ = qkv.shape
    return torch.empty_like(qkv), qkv.new_empty(num_packs, num_heads, size, size)


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    qkv, bias, seed, ctx.scale, ctx.probability = inputs
    ctx.save_for_backward(qkv, bias, seed)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    qkv, bias, seed = ctx.saved_tensors
    settings = ctx.scale, ctx.probability
    qkv_grad, bias_grad = pack_attention_backward(grad, qkv, bias, seed, *settings)
    if bias.shape[1] == 1:
        bias_grad = bias_grad.sum(1, keepdim=True)
    return qkv_grad, bias_grad, None, None, None


pack_attention.register_autograd(_backward, setup_context=_keep_inputs)
