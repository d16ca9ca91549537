"""The learning rate is a function of the step; batches divide, or the line says how they could."""

from itertools import pairwise

import pytest

from mips_dist.errors import UsageError
from mips_dist.train.batch_plan import plan_batches
from mips_dist.train.optim import OptimizerConfig, learning_rate


def test_the_paper_schedule():
    peak = OptimizerConfig().peak_lr(512)
    rates = [learning_rate(step, 20_000, peak, 0.1) for step in range(20_000)]
    assert peak == max(rates) == rates[1_999] == rates[2_000] == pytest.approx(2e-4)
    assert rates[0] == pytest.approx(1e-7)
    assert rates[11_000] == pytest.approx(1e-4)
    assert 0 < rates[-1] < 2e-8
    assert all(a < b for a, b in pairwise(rates[:2_000]))
    assert all(a > b for a, b in pairwise(rates[2_000:]))


def test_narrow_models_get_a_higher_rate_unless_told():
    assert OptimizerConfig().peak_lr(64) == pytest.approx(1.6e-3)
    assert OptimizerConfig(lr=1e-3).peak_lr(64) == 1e-3


@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_short_runs_have_a_rate_at_every_step(num_steps):
    assert all(learning_rate(step, num_steps, 1.0, 0.1) > 0 for step in range(num_steps))


@pytest.mark.parametrize("name", ["lr", "beta1", "beta2", "warmup_fraction", "clip_norm"])
def test_bad_values_name_their_key(name):
    with pytest.raises(ValueError, match=f"optimizer.*{name}"):
        OptimizerConfig(**{name: -1.0})


@pytest.mark.parametrize(
    ("size", "micro", "ranks", "expected"),
    [(1024, 0, 1, (8, 128)), (1024, 0, 2, (4, 128)), (1024, 64, 4, (4, 64)), (30, 0, 2, (1, 15))],
)
def test_batches_are_derived(size, micro, ranks, expected):
    plan = plan_batches(size, micro, ranks)
    assert (plan.grad_accum_steps, plan.micro_batch_size) == expected
    assert plan.world_size * plan.grad_accum_steps * plan.micro_batch_size == size
    assert str(plan).startswith(f"global batch {size} = {ranks} ranks x ")


@pytest.mark.parametrize(
    ("size", "micro", "ranks", "text"),
    [(100, 0, 3, "use 99 or 102"), (2, 0, 4, "use 4$"), (100, 40, 2, "1, 2, 5, 10, 25, 50")],
)
def test_batches_that_do_not_divide_are_explained(size, micro, ranks, text):
    with pytest.raises(UsageError, match=text):
        plan_batches(size, micro, ranks)
