"""What a plan says of a cluster: figures that can be worked out by hand, and what is not given."""

import math

import pytest

from mips_dist.chem import descriptors
from mips_dist.config import compose
from mips_dist.errors import UsageError
from mips_dist.train import cluster
from mips_dist.train.batch_plan import plan_batches
from mips_dist.train.plan import is_recorded, layer_overhead, model_size, plan, predict
from mips_dist.train.plan_config import CONTENTS, PRICES, PlanConfig

BASE = ("model=base", "num_gpus=16", "gpus_per_node=8")


def settings(*overrides: str) -> PlanConfig:
    return compose(PlanConfig, "plan", [*BASE, *overrides])


def test_without_prices_no_cost_but_how_to_give_them():
    text = "\n".join(plan(settings()))
    assert "GPU-hours" not in text
    assert "total" not in text.partition("no prices")[2]
    assert all(f"{name}=" in text for name in PRICES)


def test_costs_are_quantities_times_prices():
    prices = ["price_gpu_hour=3", "price_core_hour=0.05", "price_gb_month=0.02"]
    config = settings(*prices, "num_steps=3600", "content=full")
    size = model_size(config.model)
    rows = {what: (amount, price) for what, amount, _, price in cluster.costs(config, size, 2.0)}
    assert rows["pre-training"] == (32.0, 3.0)  # two hours of sixteen GPUs
    assert rows["preprocessing"] == (8.1, 0.05)
    assert rows["disk, a month"][0] == pytest.approx(1.38 + 36 * size.parameters / 1e9)
    assert rows["shards read"] == (pytest.approx(16 * 1.38), None)
    text = "\n".join(cluster.describe(config, size, 2.0))
    total = 32 * 3 + 8.1 * 0.05 + rows["disk, a month"][0] * 0.02
    assert f"{total:,.2f}" in text
    assert "without a price, and not in the total: shards read" in text
    by_machine = settings("price_machine_hour=20", "num_steps=3600")
    assert cluster.costs(by_machine, size, 2.0)[0][:3] == ("pre-training", 4.0, "machine-hours")
    with pytest.raises(UsageError, match="give one of the two"):
        settings("price_machine_hour=20", "price_gpu_hour=3")


def test_the_best_interval_loses_least_time():
    """Young's: no other interval of the model costs less, and it grows as the root of both."""

    def lost(interval: float) -> float:
        return 3.0 / interval + interval / (2 * 7200.0)

    best = cluster.best_interval(3.0, 7200.0)
    assert all(lost(best) < lost(best * factor) for factor in (0.5, 0.9, 1.1, 2.0))
    assert cluster.best_interval(12.0, 7200.0) == pytest.approx(2 * best)
    assert cluster.best_interval(3.0, 28800.0) == pytest.approx(2 * best)


def test_failures_prolong_a_run_and_none_are_invented():
    size = model_size(settings().model)
    assert cluster.failures(settings(), size, 1.0) is None
    work = 10_000 * 1.0 + 50 * cluster.checkpoint_seconds(settings(), size)
    hours = []
    for mtbf in (100_000.0, 100.0, 1.0):
        config = settings(f"mtbf_hours={mtbf}", "num_steps=10000", "checkpoint_every=200")
        found = cluster.failures(config, size, 1.0)
        assert found is not None
        assert found.between == 3600 * mtbf / 2  # two machines
        # All that is not work is what failures cost: recovery and half an interval each.
        cost = found.expected * (config.recovery_s + 100.0)
        assert 3600 * found.hours == pytest.approx(work + cost)
        hours.append(found.hours)
    assert hours == sorted(hours)
    hopeless = cluster.failures(settings("mtbf_hours=0.05"), size, 1.0)
    assert hopeless is not None
    assert hopeless.hours == math.inf


def test_every_rank_decodes_what_all_draw_from():
    """Of a corpus that is not kept decoded, more GPUs do not make the loader faster."""

    def step(polymers: int, num_gpus: int):
        config = settings(f"polymers={polymers}", "global_batch_size=16384")
        size = model_size(config.model)
        return predict(config, size, 1, plan_batches(16_384, 0, num_gpus, 1024))

    held, huge = cluster.held_polymers(settings()), 10**9
    assert held == int(0.25 * 1e12 / settings().gpus_per_node / 2_200)
    assert step(held, 64).data == 0
    for num_gpus in (64, 1024):
        assert step(huge, num_gpus).total >= 16_384 / (7 * settings().decode_per_s)
    assert cluster.reads(settings(f"polymers={held}"))[0] == 1
    assert cluster.reads(settings("polymers=20000000", "num_steps=200000"))[0] == 10.24


def test_a_step_is_recorded_where_training_records_it():
    assert is_recorded(settings(), 1)
    assert layer_overhead(settings(), 1) == settings().replay_overhead_ms
    for change, stage in (
        ("precision=fp32", 1),
        ("zero.offload=optimizer", 1),
        ("activation_checkpointing=true", 1),
        ("model.bond_path_bias=true", 1),
        ("precision=bf16", 2),
    ):
        assert not is_recorded(settings(change), stage)
        assert layer_overhead(settings(change), stage) == settings().layer_overhead_ms


def test_the_plan_gives_the_step_that_it_was_fitted_to():
    """15.69 ms of base on one H200 (docs/gpu.md), and 0.2 ms of the optimizer once more."""
    config = settings("num_gpus=1")
    step = predict(config, model_size(config.model), 1, plan_batches(1024, 0, 1, 1024))
    assert 1e3 * step.total == pytest.approx(15.69 + 0.2, abs=0.1)


def test_every_content_of_shards_can_be_planned() -> None:
    assert set(CONTENTS) == set(descriptors.CONTENTS)
    for content in CONTENTS:
        assert f"content={content}; " in "\n".join(plan(settings(f"content={content}")))
