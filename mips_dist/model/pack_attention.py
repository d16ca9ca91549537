"""Attention of whole packs as one Triton kernel each way, for GPUs.

A pack is a tile: 128 tokens attend to 128 tokens. So the softmax of a row is known at once, and
gradients of q, k and v are written where the linear map before wants them. Heads read the biases
that they share, and add their gradients up where they share them: only the few pairs that attend at
all have one. The bias of the linear map is added here, as its gradient is a sum of what is here at
hand. torch's own kernel, made for long sequences, takes two to three times as long (docs/gpu.md).
Not imported without a GPU.

Legend: X packs, T tokens of a pack, H heads, K head dim, B biases of a pair (1 or H).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mips_dist.model.dropout import LEVELS
from mips_dist.model.kernel_dropout import random_bits

_LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)  # 2 to the power is what a GPU computes


@triton.jit
def _add(tile, bias_ptr, K: tl.constexpr):
    return tile + tl.load(bias_ptr + tl.arange(0, K))[None, :]


@triton.jit
def _half_logits(q, k, bias_ptr, scale, half, T: tl.constexpr, PRECISION: tl.constexpr):
    """Return the logits of half of the keys as powers of 2."""
    rows, columns = tl.arange(0, T), half * (T // 2) + tl.arange(0, T // 2)
    bias = tl.load(bias_ptr + rows[:, None] * T + columns[None, :])
    return tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale + bias * _LOG2_E


@triton.jit
def _half_bits(pack_head, seed_ptr, T: tl.constexpr):
    """Return the random bits of the tile: 16 for each weight of both halves of the keys."""
    rows, columns = tl.arange(0, T), tl.arange(0, T // 2)
    place = pack_head * (T * T // 2) + rows[:, None] * (T // 2) + columns[None, :]
    return random_bits(place, tl.load(seed_ptr))


@triton.jit
def _forward_kernel(
    qkv_ptr,
    qkv_bias_ptr,
    bias_ptr,
    seed_ptr,
    mixed_ptr,
    total_ptr,
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
    rows, dims, keys = tl.arange(0, T), tl.arange(0, K), tl.arange(0, T // 2)
    half: tl.constexpr = T // 2 * 3 * H * K
    tile = rows[:, None] * (3 * H * K) + dims[None, :]
    half_tile = keys[:, None] * (3 * H * K) + dims[None, :]
    start = qkv_ptr + pack.to(tl.int64) * (T * 3 * H * K) + head * K
    qkv_bias_ptr += head * K
    bias_ptr += (pack.to(tl.int64) * B + head % B) * (T * T)
    q = _add(tl.load(start + tile), qkv_bias_ptr, K)
    k = _add(tl.load(start + H * K + half_tile), qkv_bias_ptr + H * K, K)
    left = _half_logits(q, k, bias_ptr, scale * _LOG2_E, 0, T, PRECISION)
    k = _add(tl.load(start + H * K + half + half_tile), qkv_bias_ptr + H * K, K)
    right = _half_logits(q, k, bias_ptr, scale * _LOG2_E, 1, T, PRECISION)
    top = tl.maximum(tl.max(left, 1), tl.max(right, 1))
    left, right = tl.exp2(left - top[:, None]), tl.exp2(right - top[:, None])
    total = tl.sum(left, 1) + tl.sum(right, 1)
    tl.store(total_ptr + pack_head * T + rows, top + tl.log2(total))
    if DROPS:
        bits = _half_bits(pack_head, seed_ptr, T)
        left = tl.where((bits & 0xFFFF).to(tl.int32) >= num_dropped, left, 0.0)
        right = tl.where((bits >> 16).to(tl.int32) >= num_dropped, right, 0.0)
    v = _add(tl.load(start + 2 * H * K + half_tile), qkv_bias_ptr + 2 * H * K, K)
    mixed = tl.dot(left.to(v.dtype), v, input_precision=PRECISION)
    v = _add(tl.load(start + 2 * H * K + half + half_tile), qkv_bias_ptr + 2 * H * K, K)
    mixed = tl.dot(right.to(v.dtype), v, mixed, input_precision=PRECISION)
    mixed *= (keep_scale / total)[:, None]
    mixed_ptr += pack.to(tl.int64) * (T * H * K) + head * K
    tl.store(mixed_ptr + rows[:, None] * (H * K) + dims[None, :], mixed.to(v.dtype))


@triton.jit
def _backward_kernel(
    qkv_ptr,
    qkv_bias_ptr,
    bias_ptr,
    seed_ptr,
    mixed_ptr,
    total_ptr,
    grad_ptr,
    qkv_grad_ptr,
    qkv_bias_grad_ptr,
    bias_grad_ptr,
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
    rows, dims, keys = tl.arange(0, T), tl.arange(0, K), tl.arange(0, T // 2)
    tile = rows[:, None] * (3 * H * K) + dims[None, :]
    half_tile = keys[:, None] * (3 * H * K) + dims[None, :]
    offset = pack.to(tl.int64) * (T * 3 * H * K) + head * K
    start = qkv_ptr + offset
    qkv_bias_ptr += head * K
    matrix = (pack.to(tl.int64) * B + head % B) * (T * T)
    out = pack.to(tl.int64) * (T * H * K) + head * K
    out_tile = rows[:, None] * (H * K) + dims[None, :]
    grad = tl.load(grad_ptr + out + out_tile)
    # Over a row, the sum of weights times their gradients is that of outputs times theirs.
    mixed = tl.load(mixed_ptr + out + out_tile)
    mean = tl.sum(grad.to(tl.float32) * mixed.to(tl.float32), 1)
    total = tl.load(total_ptr + pack_head * T + rows)
    q = _add(tl.load(start + tile), qkv_bias_ptr, K)
    if DROPS:
        bits = _half_bits(pack_head, seed_ptr, T)
    q_grad = tl.zeros((T, K), dtype=tl.float32)
    qkv_bias_grad_ptr += pack.to(tl.int64) * (3 * H * K) + head * K
    v_grads = tl.zeros((T // 2, K), dtype=tl.float32)
    for half in range(2):
        here = half * (T // 2) * 3 * H * K + half_tile
        k = _add(tl.load(start + H * K + here), qkv_bias_ptr + H * K, K)
        v = _add(tl.load(start + 2 * H * K + here), qkv_bias_ptr + 2 * H * K, K)
        logits = _half_logits(q, k, bias_ptr + matrix, scale * _LOG2_E, half, T, PRECISION)
        weights = tl.exp2(logits - total[:, None])
        weight_grad = tl.dot(grad, tl.trans(v), input_precision=PRECISION) * keep_scale
        used = weights
        if DROPS:
            kept = ((bits >> (16 * half)) & 0xFFFF).to(tl.int32) >= num_dropped
            used = tl.where(kept, weights, 0.0)
            weight_grad = tl.where(kept, weight_grad, 0.0)
        v_grad = tl.dot(tl.trans(used.to(grad.dtype)), grad, input_precision=PRECISION)
        v_grad *= keep_scale
        tl.store(qkv_grad_ptr + offset + 2 * H * K + here, v_grad.to(v.dtype))
        v_grads += v_grad
        logit_grad = weights * (weight_grad - mean[:, None])
        columns = half * (T // 2) + keys
        places = bias_grad_ptr + matrix + rows[:, None] * T + columns[None, :]
        # Nine in ten weights are zero: atoms that do not attend to each other.
        tl.atomic_add(places, logit_grad, mask=weights > 0, sem="relaxed")
        narrow = logit_grad.to(q.dtype)
        q_grad = tl.dot(narrow, k, q_grad, input_precision=PRECISION)
        k_grad = tl.dot(tl.trans(narrow), q, input_precision=PRECISION) * scale
        tl.store(qkv_grad_ptr + offset + H * K + here, k_grad.to(k.dtype))
    q_grad *= scale
    tl.store(qkv_grad_ptr + offset + tile, q_grad.to(q.dtype))
    tl.store(qkv_bias_grad_ptr + dims, tl.sum(q_grad, 0))
    # What is added to all keys alike changes no softmax.
    tl.store(qkv_bias_grad_ptr + H * K + dims, tl.zeros((K,), dtype=tl.float32))
    tl.store(qkv_bias_grad_ptr + 2 * H * K + dims, tl.sum(v_grads, 0))


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
        # Two programs at a time on a multiprocessor: one waits, the other computes.
        "maxnreg": None if qkv.dtype == torch.float32 else 128,
    }


@torch.library.custom_op("mips::pack_attention", mutates_args=())
def pack_attention_forward(
    qkv: Tensor, qkv_bias: Tensor, bias: Tensor, seed: Tensor, scale: float, probability: float
) -> tuple[Tensor, Tensor]:
    """Return what `pack_attention` does, and log2 of each row's sum of 2 ** logit (X, H, T)."""
    num_packs, size, _, num_heads, head_dim = qkv.shape
    mixed = qkv.new_empty(num_packs, size, num_heads * head_dim)
    total = bias.new_empty(num_packs, num_heads, size)
    settings = _settings(qkv, bias, scale, probability)
    grid = (num_packs * num_heads,)
    _forward_kernel[grid](qkv, qkv_bias, bias, seed, mixed, total, **settings)
    return mixed, total


@pack_attention_forward.register_fake
def _(
    qkv: Tensor, qkv_bias: Tensor, bias: Tensor, seed: Tensor, scale: float, probability: float
) -> tuple[Tensor, Tensor]:
    num_packs, size, _, num_heads, head_dim = qkv.shape
    mixed = qkv.new_empty(num_packs, size, num_heads * head_dim)
    return mixed, bias.new_empty(num_packs, num_heads, size)


@torch.library.custom_op("mips::pack_attention_backward", mutates_args=())
def pack_attention_backward(
    grad: Tensor,
    qkv: Tensor,
    qkv_bias: Tensor,
    bias: Tensor,
    seed: Tensor,
    mixed: Tensor,
    total: Tensor,
    scale: float,
    probability: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of qkv, of its bias by pack (X, 3, H, K) in fp32, and of the biases."""
    num_packs, _, _, num_heads, head_dim = qkv.shape
    qkv_grad = torch.empty_like(qkv)
    qkv_bias_grad = bias.new_empty(num_packs, 3, num_heads, head_dim)
    bias_grad = torch.zeros_like(bias)
    _backward_kernel[(num_packs * num_heads,)](
        qkv,
        qkv_bias,
        bias,
        seed,
        mixed,
        total,
        grad.contiguous(),
        qkv_grad,
        qkv_bias_grad,
        bias_grad,
        **_settings(qkv, bias, scale, probability),
    )
    return qkv_grad, qkv_bias_grad, bias_grad


@pack_attention_backward.register_fake
def _(
    grad: Tensor,
    qkv: Tensor,
    qkv_bias: Tensor,
    bias: Tensor,
    seed: Tensor,
    mixed: Tensor,
    total: Tensor,
    scale: float,
    probability: float,
) -> tuple[Tensor, Tensor, Tensor]:
    num_packs, _, _, num_heads, head_dim = qkv.shape
    qkv_bias_grad = bias.new_empty(num_packs, 3, num_heads, head_dim)
    return torch.empty_like(qkv), qkv_bias_grad, torch.empty_like(bias)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    qkv, qkv_bias, bias, seed, ctx.scale, ctx.probability = inputs
    ctx.save_for_backward(qkv, qkv_bias, bias, seed, *output)


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    qkv, qkv_bias, bias, seed, mixed, total = ctx.saved_tensors
    qkv_grad, by_pack, bias_grad = pack_attention_backward(
        grad, qkv, qkv_bias, bias, seed, mixed, total, ctx.scale, ctx.probability
    )
    qkv_bias_grad = by_pack.sum(0).flatten().to(qkv_bias.dtype)
    return qkv_grad, qkv_bias_grad, bias_grad, None, None, None


pack_attention_forward.register_autograd(_backward, setup_context=_keep)


def pack_attention(
    qkv: Tensor, qkv_bias: Tensor, bias: Tensor, seed: Tensor, scale: float, probability: float
) -> Tensor:
    """Return the attended values (X, T, H * K).

    Parameters
    ----------
    qkv
        (X, T, 3, H, K) contiguous, fp32, bf16 or fp16.
    qkv_bias
        (3 * H * K,) of the same type, to be added to each token's.
    bias
        (X, B, T, T) contiguous, fp32; -inf where nothing is attended.
    seed
        () int32, of the dropout.
    scale
        Factor on q . k.
    probability
        Of dropping a weight; 0: none is.
    """
    mixed: Tensor = pack_attention_forward(qkv, qkv_bias, bias, seed, scale, probability)[0]
    return mixed
