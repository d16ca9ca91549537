"""Cheap dropout is dropout: its mean, its rate, its gradient, its seed."""

import pytest
import torch

from mips_dist.model.dropout import dropout


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rate_and_scale(probability: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    dropped = dropout(torch.ones(501, 1001, dtype=dtype), probability, True).float()
    values = dropped.unique()
    assert values.tolist() == pytest.approx([0.0, 1 / (1 - probability)], rel=1e-2)
    # Half a million draws: five standard errors.
    error = (probability * (1 - probability) / dropped.numel()) ** 0.5
    assert abs((dropped == 0).float().mean() - probability) < 5 * error + 2**-16
    # No pattern along rows or columns, as a bad use of the bits would leave.
    for axis in (0, 1):
        spread = (dropped == 0).float().mean(axis).std()
        expected = (probability * (1 - probability) / dropped.shape[axis]) ** 0.5
        assert spread == pytest.approx(expected, rel=0.15)


def test_gradient_follows_the_mask_and_the_seed_decides_it() -> None:
    x = torch.randn(33, 7, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(3)
    first = dropout(x, 0.3, True)
    first.sum().backward()
    assert torch.allclose(x.grad, first.detach() / x.detach())
    torch.manual_seed(3)
    assert torch.equal(dropout(x, 0.3, True), first)
    assert not torch.equal(dropout(x, 0.3, True), first)


def test_nothing_is_dropped_outside_training_or_at_zero() -> None:
    x = torch.randn(5)
    assert dropout(x, 0.5, False) is x
    assert dropout(x, 0.0, True) is x
