"""Run the Triton kernels in Triton's interpreter, on the CPU, beside the formula; print the errors.

A program of its own: the interpreter must be chosen before Triton is imported.
"""

import copy
import json
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from mips_dist.chem.graph import build_graphs
from mips_dist.chem.psmiles import canonicalize
from mips_dist.data.batch import DEFAULT_PACK_SIZE
from mips_dist.data.padding import Capacity, pad
from mips_dist.model.dropout import LEVELS, random_words
from mips_dist.model.gelu_dropout import gelu_dropout
from mips_dist.model.mips import Layer, MipsConfig
from mips_dist.model.pack_attention import pack_attention
from tests.model.hand import masked_atom_model
from tests.model.test_packed import gradients, masked_batch
from tests.polymers import POLYMERS

X, T, H, K = 3, 32, 2, 16
SCALE = 0.25


def dropped(x: Tensor, seed: Tensor, probability: float) -> Tensor:
    """Drop by the halves of one word for each two elements, half a row apart."""
    num_dropped = round(probability * LEVELS)
    half = *x.shape[:-1], x.shape[-1] // 2
    words = random_words(torch.arange(x.numel() // 2, dtype=torch.int32), seed).view(half)
    bits = torch.cat([words & 0xFFFF, (words >> 16) & 0xFFFF], dim=-1)
    return torch.where(bits >= num_dropped, x * LEVELS / (LEVELS - num_dropped), 0.0)


def formula(qkv: Tensor, bias: Tensor, seed: Tensor, probability: float) -> Tensor:
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    weights = ((q * SCALE) @ k.transpose(-1, -2) + bias).softmax(-1)
    if probability:
        weights = dropped(weights, seed, probability)
    return (weights @ v).transpose(1, 2).flatten(2)


def errors(num_biases: int, probability: float) -> list[float]:
    """Return the largest errors of output and all gradients, relative to their largest entry."""
    torch.manual_seed(num_biases)
    qkv = torch.randn(X, T, 3, H, K, requires_grad=True)
    qkv_bias = torch.randn(3 * H * K, requires_grad=True)
    bias = torch.randn(X, num_biases, T, T)
    bias[torch.rand(bias.shape) < 0.7] = -torch.inf
    bias.diagonal(dim1=2, dim2=3).zero_()
    bias.requires_grad_()
    seed = torch.tensor(-123456789, dtype=torch.int32)
    found = pack_attention(qkv, qkv_bias, bias, seed, SCALE, probability)
    expected = formula(qkv + qkv_bias.view(3, H, K), bias, seed, probability)
    return _errors(found, expected, [qkv, qkv_bias, bias])


def errors_of_gelu(num_rows: int, num_columns: int, probability: float) -> list[float]:
    """Return the same of the activation."""
    torch.manual_seed(num_rows)
    x = (3 * torch.randn(num_rows, num_columns)).requires_grad_()
    bias = torch.randn(num_columns, requires_grad=True)
    seed = torch.tensor(987654321, dtype=torch.int32)
    expected = functional.gelu(x + bias)
    if probability:
        expected = dropped(expected, seed, probability)
    return _errors(gelu_dropout(x, bias, seed, probability), expected, [x, bias])


def _errors(found: Tensor, expected: Tensor, leaves: list[Tensor]) -> list[float]:
    grad = torch.randn_like(expected)
    pairs = [(found.detach(), expected.detach())]
    pairs += zip(
        torch.autograd.grad(found, leaves, grad),
        torch.autograd.grad(expected, leaves, grad),
        strict=True,
    )
    return [float((a - b).abs().max() / b.abs().max()) for a, b in pairs]


def errors_of_a_layer(norm: str) -> list[float]:
    """Return the same of a whole layer, with the kernels and without."""
    torch.manual_seed(0)
    layer = Layer(MipsConfig(hidden_dim=2 * K, num_heads=2, ffn_dim=40, dropout=0.0, norm=norm))
    layer.train().attention.is_fused = True
    size = DEFAULT_PACK_SIZE
    rows, bias = torch.randn(1, size, 2 * K, requires_grad=True), torch.randn(1, 1, size, size)
    bias.requires_grad_()
    wanted = torch.arange(0, size, 3)
    inputs = rows, bias, None, wanted, torch.tensor([7, 8, 9, 10], dtype=torch.int32)
    expected = layer(*inputs)
    layer.attention.tile_kernel, layer.gelu_kernel = pack_attention, gelu_dropout
    found = layer(*inputs)
    names = str(_history(found))
    assert "pack_attention" in names, names
    assert "gelu_dropout" in names, names
    return _errors(found, expected, [rows, bias, *layer.parameters()])


def errors_of_a_model(is_compiled: bool) -> list[float]:
    """Return the same of the whole model on a padded batch, as a GPU is given it, and on atoms."""
    graphs = build_graphs([canonicalize(polymer) for polymer in POLYMERS[:24]])
    batch = replace(masked_batch(graphs, DEFAULT_PACK_SIZE), path_bond_pair=None)
    model = masked_atom_model(dropout=0.0, hidden_dim=2 * K, descriptors=[])
    packed = copy.deepcopy(model)
    packed.encoder.run_packed(is_compiled=False)
    for layer in packed.encoder.layers:
        layer.attention.tile_kernel, layer.gelu_kernel = pack_attention, gelu_dropout
    if is_compiled:
        packed.forward = torch.compile(packed.forward, dynamic=False)
    found, found_grads = gradients(packed, pad(batch, Capacity.over([batch])))
    expected, grads = gradients(model, batch)
    pairs = [(found, expected), *((found_grads[name], grads[name]) for name in grads)]
    return [float((a - b).abs().max() / b.abs().max()) for a, b in pairs]


def num_graphs_of_layers() -> int:
    """Count what is compiled for the layers, over batches of several sizes."""
    graphs = build_graphs([canonicalize(polymer) for polymer in POLYMERS])
    model = masked_atom_model(hidden_dim=2 * K, descriptors=[], num_layers=1)
    model.encoder.run_packed(is_compiled=True)
    for layer in model.encoder.layers:
        layer.attention.tile_kernel, layer.gelu_kernel = pack_attention, gelu_dropout
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for part in (graphs, graphs[2:], graphs[5:]):
        batch = masked_batch(part, DEFAULT_PACK_SIZE)
        assert batch.num_packs > 1, "one is a case of its own to the compiler"
        gradients(model, batch)
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


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
    for rows, columns, p in ((300, 40, 0.0), (129, 520, 0.3), (1, 2, 0.1)):
        found[f"gelu of {rows} x {columns}, dropout {p}"] = errors_of_gelu(rows, columns, p)
    found |= {f"layer, {norm}-norm": errors_of_a_layer(norm) for norm in ("pre", "post")}
    found |= {f"model, compiled: {choice}": errors_of_a_model(choice) for choice in (False, True)}
    assert num_graphs_of_layers() == 1, "compiled anew for other numbers of atoms"
    print(json.dumps(found))
