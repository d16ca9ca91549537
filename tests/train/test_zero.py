"""The stage follows the size of the model, unless given; what cannot work is refused."""

import pytest

from mips_dist.config import compose
from mips_dist.errors import UsageError
from mips_dist.model.mips import MaskedAtomModel, MipsConfig
from mips_dist.train.plan import activation_bytes, count_parameters, plan, state_bytes
from mips_dist.train.plan_config import PlanConfig
from mips_dist.train.zero import ZeroConfig, choose_stage


@pytest.mark.parametrize(
    ("preset", "stage"), [("debug", 1), ("small", 1), ("base", 1), ("large", 2), ("xl", 3)]
)
def test_the_stage_suits_the_preset(preset, stage):
    config = compose(PlanConfig, "plan", [f"model={preset}"])
    size = count_parameters(config.model)
    chosen, why = choose_stage(config.zero, "bf16", size)
    assert chosen == stage
    assert f"{size:,} parameters" in why
    assert choose_stage(ZeroConfig(stage=2), "bf16", size) == (2, "as given")


def test_what_cannot_work_is_refused_or_said():
    with pytest.raises(UsageError, match=r"zero.offload=optimizer needs .* use zero.stage=1"):
        choose_stage(ZeroConfig(stage=0, offload="optimizer"), "fp32", 1)
    stage, why = choose_stage(ZeroConfig(stage=0), "bf16", 1)
    assert stage == 1
    assert "runs as stage 1" in why
    for wrong in ({"stage": 4}, {"offload": "disk"}, {"bucket_elements": 0}):
        with pytest.raises(ValueError, match=f"zero.{next(iter(wrong))}="):
            ZeroConfig(**wrong)


def test_parameters_are_counted_without_building():
    config = MipsConfig(hidden_dim=64, num_layers=2, num_heads=4, ffn_dim=128)
    assert count_parameters(config) == sum(p.numel() for p in MaskedAtomModel(config).parameters())


def test_ranks_hold_the_whole_between_them():
    size = 10**9
    for stage in (1, 2, 3):
        held = state_bytes(size, 8, stage, "bf16")
        assert 8 * held.optimizer == 8 * size
        assert 8 * held.master == 4 * size
    assert 8 * state_bytes(size, 8, 3, "bf16").parameters == 2 * size


def test_a_plan_says_what_fits():
    def lines(*overrides: str) -> list[str]:
        return plan(compose(PlanConfig, "plan", list(overrides)))

    def chosen(*overrides: str) -> str:
        return next(line for line in lines(*overrides) if line.startswith("->"))

    assert "does not fit" not in chosen("model=xl", "num_gpus=8")
    assert chosen("model=xl", "num_gpus=8").startswith("-> stage 3")
    assert "does not fit" in chosen("model=xl", "num_gpus=1", "gpu_gb=16")
    small = ("model=xl", "num_gpus=1", "gpu_gb=16", "micro_batch_size=8", "zero.offload=optimizer")
    assert "does not fit" not in chosen(*small, "activation_checkpointing=true")
    base = compose(PlanConfig, "plan", []).model
    kept, again = (activation_bytes(base, 128, "bf16", recompute) for recompute in (False, True))
    assert again < 0.3 * kept


def test_the_papers_schedule_costs_what_the_paper_did():
    """47 to 71 PFLOP for 20,000 steps of 1,024 polymers (issue: pre-training)."""
    ideal = ["peak_tflops=1", "peak_fraction=1", "layer_overhead_ms=0"]
    text = "\n".join(plan(compose(PlanConfig, "plan", ideal)))
    hours = float(text.split("pre-training")[1].split()[0])
    assert 47 <= hours * 3600 * 8 / 1000 <= 72
