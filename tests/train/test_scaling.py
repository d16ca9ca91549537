"""The model of a step's time: limits that must hold, and figures that can be worked out by hand."""

from dataclasses import replace

import pytest

from mips_dist.config import compose
from mips_dist.errors import UsageError
from mips_dist.train.plan import memory_of, model_size, plan, scan, state_bytes
from mips_dist.train.plan_config import PlanConfig
from mips_dist.train.scaling import (
    Collective,
    Device,
    Links,
    ModelSize,
    StepTime,
    collectives,
    imbalance,
    step_time,
)

SIZE = ModelSize(parameters=100_000_000, persistent=100_000, num_persistent=100)
DEVICE = Device(flops_per_s=4e14, overhead=0.01, memory_bytes_per_s=3e12, polymers_per_s=1e9)
LINKS = Links(ranks_per_node=8, inside=3e11, between=5e10, latency=1e-5)
FLOPS = 2e10
STAGES = range(4)


def step(ranks: int, stage: int = 1, batch: int = 1024, accum: int = 1, **changes) -> StepTime:
    given = {
        "device": DEVICE,
        "links": LINKS,
        "traffic": collectives(SIZE, stage, "bf16", accum, 16_000_000),
        **changes,
    }
    return step_time(
        FLOPS,
        SIZE,
        given["traffic"],
        given["device"],
        given["links"],
        stage=stage,
        num_ranks=ranks,
        grad_accum_steps=accum,
        micro_batch_size=batch // ranks // accum,
    )


@pytest.mark.parametrize("stage", STAGES)
def test_one_rank_says_and_waits_for_nothing(stage):
    alone = step(1, stage)
    assert alone.communication == alone.exposed == alone.waiting == 0
    for part in collectives(SIZE, stage, "bf16", 4, 1_000_000):
        assert part.wire_bytes(1) == 0
    # 1024 x 20 GFLOP at 400 TFLOP/s, 10 ms of fixed cost, 30 bytes a parameter at 3 TB/s.
    assert alone.total == pytest.approx(0.0512 + 0.01 + 0.001)


def test_a_ring_sends_what_it_must():
    """Reduce-scatter or all-gather: all but one of the parts; all-reduce: both."""
    gather = Collective(kind="all_gather", count=1, num_bytes=800.0, when="end")
    assert gather.wire_bytes(2) == 400
    assert gather.wire_bytes(8) == 700
    assert replace(gather, kind="all_reduce").wire_bytes(8) == 1400


def test_bytes_by_stage():
    """Elements of the model that a rank of very many sends in a step, times bytes of one."""

    def sent(stage: int, accum: int = 1, precision: str = "bf16") -> float:
        parts = collectives(SIZE, stage, precision, accum, 16_000_000)
        return sum(part.wire_bytes(10**9) for part in parts) / SIZE.parameters

    assert sent(0, precision="fp32") == pytest.approx(8)
    assert sent(1, precision="fp32") == pytest.approx(12)
    assert sent(1) == sent(1, accum=8) == pytest.approx(10)
    assert sent(2) == pytest.approx(10)
    assert sent(2, accum=8) == pytest.approx(8 * 8 + 2)
    assert sent(3) == pytest.approx(6, rel=1e-3)
    assert sent(3, accum=8) == pytest.approx(8 * 6, rel=1e-3)


@pytest.mark.parametrize("stage", STAGES)
def test_more_of_anything_bad_is_never_faster(stage):
    base = step(16, stage).total
    slow = replace(LINKS, between=LINKS.between / 4)
    assert step(16, stage, links=slow).total >= base
    assert step(16, stage, links=replace(LINKS, latency=1e-3)).total > base
    assert step(16, stage, batch=2048).total > base
    assert step(16, stage, accum=4).total > base
    assert step(16, stage, device=replace(DEVICE, flops_per_s=1e14)).total > base
    assert step(16, stage, device=replace(DEVICE, overlaps=False)).total >= base
    assert step(16, stage, device=replace(DEVICE, polymers_per_s=10.0)).total > base
    waits = [step(ranks, stage).communication for ranks in (1, 2, 4, 8, 16, 1024)]
    assert waits == sorted(waits)
    work = [step(ranks, stage).compute for ranks in (1, 2, 4, 8, 16, 1024)]
    assert work == sorted(work, reverse=True)


@pytest.mark.parametrize("stage", STAGES)
def test_what_hides_is_neither_more_than_there_is_nor_than_hides_it(stage):
    for ranks in (2, 8, 16, 1024):
        found = step(ranks, stage)
        assert 0 < found.exposed <= found.communication
        assert found.communication - found.exposed <= found.compute + found.overhead
    bare = step(8, stage, device=replace(DEVICE, overlaps=False))
    assert bare.exposed == bare.communication
    if stage < 2:
        assert step(8, stage).exposed == bare.exposed, "they reduce after the backward pass"
    else:
        assert step(8, stage).exposed < bare.exposed


def test_a_loader_that_keeps_up_costs_nothing():
    assert step(8).data == 0
    late = step(8, device=replace(DEVICE, polymers_per_s=1000.0))
    assert late.total == pytest.approx(128 / 1000)


def test_waiting_for_the_largest_polymers_grows_as_ranks_get_fewer_of_them():
    assert imbalance(512) < imbalance(8) < imbalance(1)


def settings(*overrides: str) -> PlanConfig:
    return compose(PlanConfig, "plan", list(overrides))


def test_the_curve_breaks_and_a_larger_batch_shifts_it():
    config = settings("model=base")
    size = model_size(config.model)

    def last_good(batch: int) -> int:
        return max(n for n, _, _, efficiency in scan(config, size, 1, batch) if efficiency > 0.5)

    curve = scan(config, size, 1)
    assert [row[0] for row in curve] == [2**i for i in range(11)]
    assert curve[0][3] == 1
    assert all(row[3] <= 1.001 for row in curve)
    assert curve[-1][3] < 0.1
    assert last_good(1024) < last_good(4096) < last_good(16_384)


def test_a_batch_that_cannot_be_shared_is_left_out_of_the_curve():
    config = settings("global_batch_size=96", "num_gpus=2", "micro_batch_size=48")
    counts = [row[0] for row in scan(config, model_size(config.model), 1)]
    assert counts == [1, 2, 4, 8, 16, 32]


@pytest.mark.parametrize("stage", STAGES)
def test_memory_is_that_of_the_states(stage):
    precision = "fp32" if stage == 0 else "bf16"
    config = settings("model=large", f"precision={precision}")
    size = model_size(config.model)
    for num_gpus, batches, *_ in scan(config, size, stage):
        held = state_bytes(size.parameters, num_gpus, stage, precision)
        memory = memory_of(config, size, stage, batches)
        assert memory["weights"] == held.parameters
        assert memory["gradients"] == held.gradients
        assert memory["moments"] == held.optimizer
        assert memory["fp32 copy"] == held.master
        assert (memory["gathered"] > 0) == (stage == 3)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("content=all", "content=all must be one of xtb, full, descriptors, topology"),
        ("nvlink_gb_s=0", "nvlink_gb_s=0.0 must be above 0"),
        ("network_gb_s=inf", "network_gb_s=inf must be above 0"),
        ("latency_us=-1", "latency_us=-1.0 must not be negative"),
        ("gpus_per_node=0", "gpus_per_node=0 must be at least 1"),
        ("nvlink=1", "unknown key 'nvlink'; did you mean nvlink_gb_s?"),
    ],
)
def test_wrong_keys_are_one_line(override, says):
    with pytest.raises(UsageError) as error:
        settings(override)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_the_plan_says_its_constants():
    text = "\n".join(plan(settings("content=descriptors", "peak_fraction=0.25", "nvlink_gb_s=123")))
    for part in ("25% of 989", "123 GB/s", "content=descriptors", "  1024  ", "batch 16,384: "):
        assert part in text
    alone = "\n".join(plan(settings("num_gpus=1")))
    assert "sent " not in alone
