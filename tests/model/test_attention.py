"""Attention biases by hand, and the collapsed dense form against a plain sum over pairs."""

import math

import pytest
import torch

from mips_dist.chem.sample import Sample
from mips_dist.data.batch import collate
from mips_dist.model.attention import LocalAttention, PairBias, collapse, pack_biases
from tests.model.hand import batch_of, hand_block, randomized


def log_sum_exp(*values: float) -> float:
    return math.log(sum(math.exp(v) for v in values))


def test_biases_by_hand():
    bias = PairBias(hidden_dim=2, max_hops=2, num_biases=1, bond_path_bias=True)
    with torch.no_grad():
        bias.distance.copy_(torch.tensor([[0.1], [0.2], [0.3]]))
        bias.path.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    # Scores w_k . x0: C of polymer 0: 1 0 1; C of polymer 1: 2 0 2; O: 0 3 3.
    x0 = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
    dense = bias(x0, collate(hand_block(), pack_size=4)).detach()
    assert dense.shape == (1, 1, 4, 4)
    expected = torch.full((4, 4), -torch.inf)
    two_apart = 0.3 + (1 + 0 + 1) / 3
    expected[0, 0] = log_sum_exp(0.1 + 1, 0.2 + (1 + 0) / 2, 0.2 + (1 + 0) / 2, *[two_apart] * 2)
    expected[1, 1] = log_sum_exp(0.1 + 2, *[0.3 + (2 + 3 + 2) / 3] * 2)
    expected[1, 2] = log_sum_exp(*[0.2 + (0 + 0) / 2] * 2)
    expected[2, 1] = log_sum_exp(*[0.2 + (2 + 3) / 2] * 2)
    expected[2, 2] = log_sum_exp(0.1 + 0, *[0.3 + (0 + 0 + 3) / 3] * 2)
    expected[3, 3] = 0.0  # padding looks at itself
    torch.testing.assert_close(dense[0, 0], expected)

    # Each step along a path brings the scalar of its place and bond, averaged over the path.
    with torch.no_grad():
        bias.bond[:, 1, 0] = torch.tensor([4.0, 6.0])
    pairs = bias.pairs(x0, collate(hand_block())).detach()
    without = torch.tensor([0.1 + 1, 0.2 + 0.5, 0.2 + 0.5, two_apart, two_apart])
    torch.testing.assert_close(pairs[:5, 0], without + torch.tensor([0.0, 4.0, 4.0, 5.0, 5.0]))


@pytest.mark.parametrize("num_biases", [1, 2])
@pytest.mark.parametrize("pack_size", [None, 32])
def test_dense_packs_equal_a_sum_over_the_pairs_of_the_chain(graphs, num_biases, pack_size):
    batch = batch_of([Sample(g) for g in graphs], pack_size)
    attention = randomized(LocalAttention(8, 2, scale=0.5, dropout=0.0)).double()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(len(batch.atom_features), 8, generator=generator).double()
    bias = torch.randn(len(batch.pair_hops), num_biases, generator=generator).double()

    # No images joined, no matrix: every atom sums over its own pairs.
    q, k, v = attention.qkv(x).view(-1, 3, 2, 4).unbind(1)
    logits = (q[batch.pair_query] * k[batch.pair_key]).sum(-1) * 0.5 + bias
    weights = logits.exp()
    total = torch.zeros(len(x), 2).double().index_add(0, batch.pair_query, weights)
    weights = weights / total[batch.pair_query]
    mixed = torch.zeros(len(x), 2, 4).double()
    mixed = mixed.index_add(0, batch.pair_query, weights[:, :, None] * v[batch.pair_key])
    expected = attention.out(mixed.flatten(1))

    found = attention(x, pack_biases(collapse(bias, batch), batch), batch.token_slot)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_collapse_survives_large_biases_and_has_the_right_gradient():
    batch = collate(hand_block())
    bias = torch.tensor([[1000.0], [0.0]]).repeat(8, 1)[:15].double().requires_grad_()
    joined = collapse(bias, batch)
    assert joined.isfinite().all()
    joined.sum().backward()
    gradients = torch.zeros(5, 1).double().index_add(0, batch.pair_cell, bias.grad)
    torch.testing.assert_close(gradients, torch.ones(5, 1).double())


def test_biases_and_softmax_stay_in_fp32():
    batch = collate(hand_block())
    bias = PairBias(8, 2, num_biases=1, bond_path_bias=True).bfloat16()
    x0 = torch.randn(3, 8, dtype=torch.bfloat16)
    assert bias(x0, batch).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert PairBias(8, 2, 1, False)(x0.float(), batch).dtype == torch.float32
    attention = LocalAttention(8, 2, scale=1.0, dropout=0.0).bfloat16()
    assert attention(x0, bias(x0, batch), batch.token_slot).dtype == torch.bfloat16


def test_dropout_only_in_training():
    batch = collate(hand_block())
    attention = LocalAttention(8, 2, scale=1.0, dropout=0.5)
    x, bias = torch.randn(3, 8), torch.zeros(1, 1, 128, 128)
    assert not torch.equal(
        attention(x, bias, batch.token_slot), attention(x, bias, batch.token_slot)
    )
    attention.eval()
    assert torch.equal(attention(x, bias, batch.token_slot), attention(x, bias, batch.token_slot))
