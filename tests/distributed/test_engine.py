"""The engine alone, on a toy model: what must not depend on ZeRO stage, ranks or micro-batches."""

import math
from dataclasses import asdict
from typing import Any

import pytest

from mips_dist.train.plan import state_bytes
from tests.distributed.conftest import work

FP32 = [f"fp32-{stage}" for stage in range(4)]
BF16 = [f"bf16-{stage}" for stage in (1, 2, 3)]
POISONED = 7


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Findings of two ranks; `one` reads the checkpoints that they leave."""
    folder = tmp_path_factory.mktemp("engine")
    return {
        "folder": folder,
        **work(
            "stages+save_and_go_on+splits+offload+recompute+replayed+xl+memory", folder, ranks=2
        ),
    }


@pytest.fixture(scope="module")
def one(two: dict[str, Any]) -> dict[str, Any]:
    return work("load_elsewhere+splits", two["folder"], ranks=1)


def close(a: list[float], b: list[float], tolerance: float) -> bool:
    return all(
        math.isclose(x, y, rel_tol=tolerance) or (math.isnan(x) and math.isnan(y))
        for x, y in zip(a, b, strict=True)
    )


def test_fp32_stages_agree(two):
    curves = two["stages"]["curves"]
    for name in FP32:
        assert close(curves[name]["losses"], curves["fp32-0"]["losses"], 1e-5), name
        finite = [i for i in range(20) if i != POISONED]
        norms = [[curves[n]["norms"][i] for i in finite] for n in (name, "fp32-0")]
        assert close(*norms, 1e-4), name
    losses = curves["fp32-0"]["losses"]
    assert losses[-1] < 0.1 * losses[0], "the toy must learn, or the comparison says little"


def test_bf16_stages_agree(two):
    curves = two["stages"]["curves"]
    for name in BF16:
        assert close(curves[name]["losses"], curves["bf16-1"]["losses"], 1e-3), name
    assert close(curves["bf16-1"]["losses"], curves["fp32-0"]["losses"], 3e-2)


def test_clipping_acts_and_its_norm_is_reported(two):
    norms = two["stages"]["curves"]["fp32-0"]["norms"]
    assert max(n for n in norms if math.isfinite(n)) > 0.5, "nothing was clipped"


def test_a_loss_that_is_not_finite_is_applied_nowhere(two):
    for name in FP32 + BF16:
        applied = two["stages"]["curves"][name]["applied"]
        assert [i for i, done in enumerate(applied) if not done] == [POISONED], name
        assert two["stages"]["adam_steps"][name] == 19, name


def test_zero_halves_what_it_says(two):
    held = two["stages"]["bytes"]
    between, before = zip(*(held[str(stage)] for stage in range(4)), strict=True)
    for stage, rows in enumerate(before):
        optimizer = rows["optimizer"] / before[0]["optimizer"]
        parameters = rows["parameters"] / before[0]["parameters"]
        gradients = between[stage]["gradients"] / between[0]["gradients"]
        assert optimizer == pytest.approx(0.5 if stage >= 1 else 1.0, rel=0.05)
        assert gradients == pytest.approx(0.5 if stage >= 2 else 1.0, rel=0.1)
        assert parameters == pytest.approx(0.5 if stage >= 3 else 1.0, rel=0.05)


def test_split_into_ranks_and_micro_batches_cancels(one, two):
    whole = one["splits"]["1"]["losses"]
    for other in (one["splits"]["4"], two["splits"]["2"], two["splits"]["1"]):
        assert close(other["losses"], whole, 1e-5)


def test_resume_at_the_same_ranks_is_bit_equal(two):
    found = two["save_and_go_on"]
    assert found["repeated"] == found["second"]
    assert found["is_same_state"]


def test_two_ranks_stage_2_continue_on_one_rank_at_any_stage(one, two):
    expected = two["save_and_go_on"]["plain_second"]["losses"]
    for name, curve in one["load_elsewhere"].items():
        tolerance = 3e-2 if name.startswith("bf16") else 1e-5
        assert close(curve["losses"], expected, tolerance), name


def test_offloading_changes_nothing(two):
    found = two["offload"]
    for setup in ("fp32-1", "fp32-3", "bf16-1", "bf16-2", "bf16-3"):
        offloaded, on_board = found[f"{setup}-optimizer"], found[f"{setup}-none"]
        assert offloaded["applied"] == on_board["applied"], setup
        assert close(offloaded["losses"], on_board["losses"], 1e-5), setup


def test_computing_layers_again_gives_the_same_bits(two):
    found = two["recompute"]
    for setup in ("fp32-0", "fp32-1", "fp32-3", "bf16-2", "bf16-3"):
        assert found[f"{setup}-True"] == found[f"{setup}-False"], setup


def test_what_a_gpu_replays_adds_the_same_gradients(two):
    found = two["replayed"]
    assert max(found["errors"]) < 5e-3, "bf16, sums in another order"
    assert all(close([ours], [other], 1e-3) for ours, other in found["losses"])
    losses = [loss for loss, _ in found["losses"]]
    assert losses[2] < losses[0], "the twin's weights are those that the step changed"
    assert min(found["norms"]) > 0


def test_the_largest_preset_is_built_in_parts_and_steps(two):
    found = two["xl"]
    assert found["parameters"] > 50_000_000
    assert found["whole_on_a_rank"] == 0, "after building, every weight is on its rank alone"
    assert found["differing"] == []
    first, second = found["losses"]
    assert second < first
    for name in ("parameters", "master"):
        assert found["held"][name] == pytest.approx(2 * found["parameters"], rel=0.02), name
    assert found["held"]["optimizer"] == pytest.approx(4 * found["parameters"], rel=0.02)


@pytest.mark.parametrize("setup", FP32 + BF16)
def test_the_plan_predicts_what_a_rank_holds(two, setup):
    found = two["memory"]
    precision, stage = setup.split("-")
    predicted = asdict(state_bytes(found["parameters"], 2, int(stage), precision))
    for kind, held in found[setup].items():
        assert predicted[kind] == pytest.approx(held, rel=0.05), kind
