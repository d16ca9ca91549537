"""The objective adds up alike however it is cut."""

import math

import pytest
import torch

from mips_dist.train.objective import LEFT_OUT, class_entropy, masked_atom_loss


def test_sums_over_parts_are_the_sum_over_all():
    logits, classes = torch.randn(20, 101), torch.randint(0, 101, (20,))
    whole = masked_atom_loss(logits, classes)
    parts = [masked_atom_loss(logits[a:b], classes[a:b]) for a, b in ((0, 3), (3, 3), (3, 20))]
    assert sum(float(p.loss_sum) for p in parts) == pytest.approx(float(whole.loss_sum))
    assert sum(int(p.num_correct) for p in parts) == int(whole.num_correct)


def test_what_is_left_out_counts_nowhere():
    logits, classes = torch.randn(20, 101), torch.randint(0, 101, (20,))
    whole = masked_atom_loss(logits[:13], classes[:13])
    classes[13:] = LEFT_OUT
    padded = masked_atom_loss(logits, classes)
    assert float(padded.loss_sum) == pytest.approx(float(whole.loss_sum))
    assert int(padded.num_correct) == int(whole.num_correct)


def test_low_precision_logits_are_summed_in_fp32():
    logits = torch.randn(50, 101).bfloat16()
    loss = masked_atom_loss(logits, torch.zeros(50, dtype=torch.int64)).loss_sum
    assert loss.dtype == torch.float32


def test_no_masked_atom_gives_a_gradient_of_zero():
    logits = torch.zeros(0, 101, requires_grad=True)
    loss = masked_atom_loss(logits, torch.zeros(0, dtype=torch.int64)).loss_sum
    loss.backward()
    assert float(loss.detach()) == 0
    assert logits.grad is not None


def test_entropy_is_the_loss_of_the_best_constant():
    counts = torch.tensor([6.0, 0.0, 3.0, 1.0])
    logits = (counts / counts.sum()).log().clamp(min=-1e9).expand(10, -1)
    classes = torch.repeat_interleave(torch.arange(4), counts.long())
    assert class_entropy(counts) == pytest.approx(
        float(masked_atom_loss(logits, classes).loss_sum) / 10
    )
    assert class_entropy(torch.ones(8)) == pytest.approx(math.log(8))
