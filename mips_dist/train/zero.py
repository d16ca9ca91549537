"""What the ranks share out (ZeRO), chosen by the size of the model. No torch, no DeepSpeed."""

from dataclasses import dataclass

from mips_dist.errors import UsageError

OFFLOADS = ("none", "optimizer")

# Parameters up to which a stage is the default. Stage 1 sends half as much again as stage 0 and
# shares out the moments; stage 2 sends gradients for every micro-batch instead of
# once, stage 3 also weights (docs/scaling.md). Beyond the first limit the gradients in fp32 begin
# to count, beyond the second the weights themselves.
_LARGEST_FOR_STAGE = {1: 150_000_000, 2: 500_000_000}


@dataclass(kw_only=True, slots=True)
class ZeroConfig:
    """What the ranks share out, and what leaves the GPU.

    Attributes
    ----------
    stage
        0 nothing, 1 optimizer state, 2 also gradients, 3 also weights; None: by the model's size.
    offload
        "optimizer": Adam's moments and the fp32 weights live in the memory of the CPU, which also
        takes the step (stages 1 to 3); "none".
    bucket_elements
        Numbers that one reduction carries, of stage 3 also a gather; a larger weight goes by
        itself. Stage 0, and 1 in bf16, have buffers of DeepSpeed's size, and stages 1 and 2 gather
        all weights at once. The default gives two reductions per step for the base preset, and a
        buffer that is small beside the training state.
    """

    stage: int | None = None
    offload: str = "none"
    bucket_elements: int = 16_000_000

    def __post_init__(self) -> None:
        if self.stage not in (None, 0, 1, 2, 3):
            raise ValueError(f"zero.stage={self.stage} must be 0, 1, 2, 3 or null")
        if self.offload not in OFFLOADS:
            raise ValueError(f"zero.offload={self.offload} must be one of {', '.join(OFFLOADS)}")
        if self.bucket_elements < 1:
            raise ValueError(f"zero.bucket_elements={self.bucket_elements} must be at least 1")


def choose_stage(config: ZeroConfig, precision: str, num_parameters: int) -> tuple[int, str]:
    """Return the ZeRO stage to run, and the reason in words.

    Raises
    ------
    UsageError
        Offloading has nothing to work on at the stage that was asked for.
    """
    if config.stage == 0 and config.offload != "none":
        raise UsageError(
            f"zero.offload={config.offload} needs the optimizer state of stage 1, 2 or 3, not "
            "zero.stage=0; use zero.stage=1 or zero.offload=none"
        )
    if config.stage == 0 and precision != "fp32":
        return 1, (
            f"zero.stage=0 with precision={precision} runs as stage 1: DeepSpeed's stage 0 follows "
            "another update rule there"
        )
    if config.stage is not None:
        return config.stage, "as given"
    for stage, limit in _LARGEST_FOR_STAGE.items():
        if num_parameters <= limit:
            return stage, f"chosen for {num_parameters:,} parameters, up to {limit:,}"
    return 3, f"chosen for {num_parameters:,} parameters, above {limit:,}"
