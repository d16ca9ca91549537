"""A plan for this machine: what the rehearsal runs is the job, and what follows from it adds up."""

import math
from dataclasses import replace

import pytest

from mips_dist.config import compose
from mips_dist.train.plan_config import PlanConfig
from mips_dist.train.pretrain_config import PretrainConfig
from mips_dist.train.rehearsal import (
    Cost,
    Rehearsal,
    describe,
    forecast,
    pretrain_command,
    rehearse,
)
from tests.shard_folder import polymers

COST = Cost(wall_seconds=20.0, cpu_seconds=30.0, disk_bytes=4e5, memory_bytes=1e9)
MEASURED = Rehearsal(
    rows=400,
    actors=2,
    preprocessing=COST,
    pretraining=COST,
    polymer_cpu_seconds=0.03,
    shard_bytes=1000.0,
    start_seconds=8.0,
    step_seconds=0.1,
    checkpoint_seconds=0.5,
    end_seconds=2.0,
    start_cpu_seconds=12.0,
    step_cpu_seconds=0.15,
    growth_bytes=2e7,
)
SETTINGS = ("content=topology", "polymers=10400", "num_steps=1000", "global_batch_size=52")


def settings(*overrides: str) -> PlanConfig:
    return compose(PlanConfig, "plan", ["num_gpus=2", *SETTINGS, *overrides])


@pytest.mark.parametrize(
    "overrides",
    [(), ("model=small", "model.descriptors=[]", "zero.stage=2", "precision=fp32"),
     ("model=debug", "activation_checkpointing=true", "micro_batch_size=13", "model.norm=post")],
)  # fmt: skip
def test_the_command_trains_what_is_planned(overrides):
    config = settings(*overrides)
    command = pretrain_command(config)
    assert "--nproc_per_node=2" in command
    given = command[next(i for i, word in enumerate(command) if word.endswith("pretrain.py")) + 1 :]
    trained = compose(PretrainConfig, "pretrain", given)
    for name in ("model", "zero", "precision", "global_batch_size", "micro_batch_size"):
        assert getattr(trained, name) == getattr(config, name), name
    assert trained.activation_checkpointing == config.activation_checkpointing


def test_what_follows_is_the_rest_of_the_job():
    found = forecast(settings("checkpoint_every=100", "validate_every=500"), MEASURED)
    prepared, trained = found["preprocessing"], found["pre-training"]
    assert prepared.cpu_seconds == pytest.approx(30 + 10_000 * 0.03)
    assert prepared.wall_seconds == pytest.approx(20 + 10_000 * 0.03 / 2)
    assert prepared.disk_bytes == 10_400_000
    # 520 polymers are held out: ten batches, a third of a step's work each, at two validations.
    steps = 1000 + 2 * 10 / 3
    assert trained.wall_seconds == pytest.approx(8 + steps * 0.1 + 10 * 0.5 + 2)
    assert trained.cpu_seconds == pytest.approx(12 + steps * 0.15)
    windows = 2 * 10_400 * 2_200
    assert trained.memory_bytes == pytest.approx(1e9 + windows + 2 * 2e7 * math.log(1000 / 24))
    twice = forecast(settings("polymers=20800", "num_steps=2000"), replace(MEASURED, rows=400))
    assert twice["preprocessing"].disk_bytes == 2 * prepared.disk_bytes
    assert twice["pre-training"].wall_seconds > trained.wall_seconds


def test_a_rehearsal_measures_everything():
    """The real commands, on a few polymers."""
    config = compose(
        PlanConfig,
        "plan",
        ["model=debug", "precision=fp32", "num_gpus=1", "content=topology",
         "global_batch_size=8", "polymers=1000", "num_steps=100"],
    )  # fmt: skip
    found = rehearse(config, polymers(80))
    assert found.rows == 80
    assert found.growth_bytes >= 0
    numbers = [getattr(found, name) for name in Rehearsal.__slots__ if name != "growth_bytes"]
    flat = [n for n in numbers if not isinstance(n, Cost)]
    assert all(n > 0 for n in flat), found
    for cost in (found.preprocessing, found.pretraining):
        assert all(getattr(cost, name) > 0 for name in Cost.__slots__), cost
    text = "\n".join(describe(config, found))
    assert "1,000 polymers like those" in text
    assert text.index("Measured here:") < text.index("Assumed:")
