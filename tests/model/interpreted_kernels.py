"""Run the Triton kernels in Triton's interpreter, on the CPU, beside the formula; print the errors.

A program of its own: the interpreter must be chosen before Triton is imported.
"""

import json

import torch
from torch import Tensor

from mips_dist.data.batch import DEFAULT_PACK_SIZE
from mips_dist.model.attention import LocalAttention
from mips_dist.model.dropout import LEVELS, mixed_bits
from mips_dist.model.pack_attention import pack_attention

X, T, H, K = 3, 32, 2, 16
SCALE = 0.25


def formula(qkv: Tensor, bias: Tensor, seed: Tensor, probability: float) -> Tensor:
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    weights = ((q * SCALE) @ k.transpose(-1, -2) + bias).softmax(-1)
    if probability:
        num_dropped = round(probability * LEVELS)
        place = torch.arange(X * H * T * T, dtype=torch.int32).view(X, H, T, T)
        kept = mixed_bits(place, seed) >= num_dropped
        weights = torch.where(kept, weights * LEVELS / (LEVELS - num_dropped), 0.0)
    return (weights @ v).transpose(1, 2).flatten(2)


def errors(num_biases: int, probability: float) -> list[float]:
    """Return the largest errors of output and both gradients, relative to their largest entry."""
    torch.manual_seed(num_biases)
    qkv = torch.randn(X, T, 3, H, K, requires_grad=True)
    bias = torch.randn(X, num_biases, T, T)
    bias[torch.rand(bias.shape) < 0.7] = -torch.inf
    bias.diagonal(dim1=2, dim2=3).zero_()
    bias.requires_grad_()
    seed = torch.tensor(-123456789, dtype=torch.int32)
    found = pack_attention(qkv, bias, seed, SCALE, probability)
    expected = formula(qkv, bias, seed, probability)
    grad = torch.randn_like(expected)
    pairs = [(found.detach(), expected.detach())]
    pairs += zip(
        torch.autograd.grad(found, (qkv, bias), grad),
        torch.autograd.grad(expected, (qkv, bias), grad),
        strict=True,
    )
    return [float((a - b).abs().max() / b.abs().max()) for a, b in pairs]


def errors_of_a_layer() -> list[float]:
    """Return the same of the attention part of a layer, with the kernel and without."""
    torch.manual_seed(0)
    attention = LocalAttention(2 * K, 2, scale=SCALE, dropout=0.0).train()
    attention.is_fused = True
    size = DEFAULT_PACK_SIZE
    rows, bias = torch.randn(1, size, 2 * K, requires_grad=True), torch.randn(1, 1, size, size)
    bias.requires_grad_()
    inputs = rows, bias, None, None, torch.tensor(7, dtype=torch.int32)
    expected = attention(*inputs)
    attention.tile_kernel = pack_attention
    found = attention(*inputs)
    assert "pack_attention" in str(_history(found)), "the kernel was not used"
    grad = torch.randn_like(expected)
    pairs = [(found.detach(), expected.detach())]
    leaves = rows, bias, attention.qkv.weight
    pairs += zip(
        torch.autograd.grad(found, leaves, grad),
        torch.autograd.grad(expected, leaves, grad),
        strict=True,
    )
    return [float((a - b).abs().max() / b.abs().max()) for a, b in pairs]


def _history(tensor: Tensor) -> list[str]:
    """Return the names of the steps that a tensor was computed by."""
    names, waiting = [], [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None:
            names.append(node.name())
            waiting += [parent for parent, _ in node.next_functions]
    return names


if __name__ == "__main__":
    cases = [(1, 0.0), (1, 0.3), (H, 0.0), (H, 0.3)]
    found = {f"{biases} biases, dropout {p}": errors(biases, p) for biases, p in cases}
    print(json.dumps(found | {"layer": errors_of_a_layer()}))
