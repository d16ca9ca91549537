"""What the model of scaling says of a step's collectives is what two real ranks do."""

import json
from pathlib import Path
from typing import Any

import pytest

from mips_dist.train import engine
from mips_dist.train.plan import model_size
from mips_dist.train.scaling import (
    LIVE_ELEMENTS,
    PERSISTENT_ELEMENTS,
    REUSE_DISTANCE,
    Collective,
    ModelSize,
    collectives,
)
from mips_dist.train.zero import ZeroConfig
from tests.distributed.conftest import command, execute
from tests.distributed.traffic_worker import BUCKET, LAST_GRADIENT, SMALL_XL, XL_WIDTH_DIVISOR

WORKER = Path(__file__).with_name("traffic_worker.py")
SETUPS = [("fp32", stage) for stage in range(4)] + [("bf16", stage) for stage in (1, 2, 3)]
WHOLE = ZeroConfig().bucket_elements  # one bucket holds all gradients of the worker's model


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("traffic")
    outcome = execute(command(WORKER, str(folder), ranks=2), timeout=500)
    assert outcome.code == 0, outcome.out + outcome.err
    return json.loads((folder / "traffic.json").read_text())


def by_kind(parts: list[Collective]) -> tuple[dict[str, int], dict[str, float]]:
    kinds = {part.kind for part in parts}
    count = {kind: sum(part.count for part in parts if part.kind == kind) for kind in kinds}
    size = {kind: sum(part.num_bytes for part in parts if part.kind == kind) for kind in kinds}
    return count, size


@pytest.mark.parametrize(
    ("precision", "stage", "accum"),
    [*((*setup, 1) for setup in SETUPS), *(("fp32", n, 2) for n in (1, 2, 3)), ("bf16", 1, 2)],
)
def test_bytes_and_collectives_are_those_of_the_model(found, precision, stage, accum):
    seen = found[f"{precision}-{stage}-{accum}"]
    parts = collectives(ModelSize(**found["size"]), stage, precision, accum, WHOLE)
    count, size = by_kind(parts)
    # Small: norms, overflow, and at stage 3 persistent weights of a few bytes.
    assert set(seen["count"]) - {"small"} == set(count), "a collective the model does not know"
    assert seen["count"].get("small", 0) <= 6
    for kind, expected in size.items():
        assert seen["num_bytes"][kind] == pytest.approx(expected, rel=0.02), kind
        assert seen["count"][kind] == pytest.approx(count[kind], abs=2), kind
    ring = sum(part.wire_bytes(2) for part in parts)
    assert seen["ring"] == pytest.approx(ring, rel=0.02)


@pytest.mark.parametrize(("precision", "stage"), SETUPS)
def test_the_kernel_counts_the_same_bytes(found, precision, stage):
    seen = found[f"{precision}-{stage}-1"]
    # gloo runs a reduce-scatter as an all-reduce: twice the bytes of a ring's.
    expected = seen["ring"] + seen["num_bytes"].get("reduce_scatter", 0) / 2
    # Equal to 0.4 % as a rule; what a crowded machine sends again counts here too, never less.
    assert 0.98 * expected < seen["sent"] < 1.1 * expected


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_smaller_buckets_are_more_collectives_with_the_same_bytes(found, stage):
    kind = "reduce_scatter" if stage == 3 else "all_reduce"
    size = ModelSize(**found["size"])
    whole = found[f"fp32-{stage}-1"]
    seen = found[f"bucket-{stage}"]
    assert seen["num_bytes"][kind] == pytest.approx(whole["num_bytes"][kind], rel=0.001)
    least = by_kind(collectives(size, stage, "fp32", 1, BUCKET))[0][kind]
    assert 1 == whole["count"][kind] < least <= seen["count"][kind]
    assert seen["count"][kind] <= 2 * least, "a bucket holds whole weights"


def test_buckets_are_nothing_to_what_is_reduced_at_the_end(found):
    """Stage 0, and 1 in bf16: DeepSpeed has buffers of its own, after the backward pass."""
    for name in ("bucket-0", "bf16-bucket-1"):
        assert found[name]["count"]["all_reduce"] == 1
        order = found[name]["order"]
        assert "all_reduce" not in order[: order.index(LAST_GRADIENT)]
    assert by_kind(collectives(ModelSize(**found["size"]), 1, "bf16", 1, BUCKET))[0] == {
        "all_reduce": 1,
        "all_gather": 1,
    }


@pytest.mark.parametrize(("stage", "kind"), [(2, "all_reduce"), (3, "reduce_scatter")])
def test_small_buckets_are_reduced_during_the_backward_pass(found, stage, kind):
    order = found[f"bucket-{stage}"]["order"]
    before = order[: order.index(LAST_GRADIENT)].count(kind)
    assert before >= 0.7 * order.count(kind)
    # A bucket that holds all gradients is full when there is nothing left to hide behind.
    order = found[f"fp32-{stage}-1"]["order"]
    assert kind not in order[: order.index(LAST_GRADIENT)]


def test_the_largest_preset_gathers_some_weights_twice(found):
    """Those of the first layers, which are far from their backward pass; the model says at most."""
    size = model_size(SMALL_XL)
    elements = XL_WIDTH_DIVISOR**2
    parts = collectives(
        size, 3, "fp32", 1, WHOLE // elements, reuse_distance=REUSE_DISTANCE // elements
    )
    most = by_kind(parts)[1]["all_gather"]
    seen = found["small_xl"]["num_bytes"]["all_gather"]
    assert most == pytest.approx(1.5 * 4 * size.parameters, rel=0.03)
    assert 1.2 * 4 * size.parameters < seen <= most
    # Where all weights stay whole until then, nothing is gathered twice.
    assert found["fp32-3-1"]["num_bytes"]["all_gather"] == pytest.approx(
        4 * found["size"]["parameters"], rel=0.01
    )


def test_deepspeed_has_the_limits_that_the_model_assumes():
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    defaults = DeepSpeedZeroConfig(stage=3)
    assert defaults.max_reuse_distance == REUSE_DISTANCE
    assert defaults.max_live_parameters == LIVE_ELEMENTS


def test_the_model_and_the_engine_keep_the_same_weights_whole():
    assert engine._PERSISTENT_ELEMENTS == PERSISTENT_ELEMENTS
