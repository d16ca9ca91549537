"""What pre-training will cost: memory of a GPU, hours, preprocessing, disk. Computes, runs nothing.

The bytes of weights, gradients and optimizer state follow from the ZeRO stage, and a test compares
them with what ranks really hold (`scripts/zero_bytes.py`). All else rests on the constants below,
which are printed with the result.
"""

from dataclasses import dataclass, field

import torch

from mips_dist.model.mips import MaskedAtomModel, MipsConfig
from mips_dist.model.spatial import DESCRIPTOR_WIDTHS
from mips_dist.train.batch_plan import plan_batches
from mips_dist.train.partitions import StateBytes
from mips_dist.train.pretrain_config import PRECISIONS
from mips_dist.train.zero import ZeroConfig, choose_stage

# Measured on a million generated polymers like those of PI1M: 2 cores, 2026-11.
_ATOMS = 30.3  # heavy atoms of a repeat unit
_CELLS = 6.1  # atoms that an atom attends to, itself included, at max_hops=2
_MASKED = 0.3
_CORE_HOURS_PER_MILLION = {"full": 6.7, "topology": 0.4}
_BYTES_PER_POLYMER = 1_300  # of a shard with everything

_PACK = 128  # tokens of an attention pack
_PACKING = 1.06  # tokens with padding / without
GB = 1e9


@dataclass(kw_only=True, slots=True)
class PlanConfig:
    """What is to be trained, on what.

    Attributes
    ----------
    model, zero, precision, num_steps, global_batch_size, micro_batch_size, activation_checkpointing
        As in `PretrainConfig`.
    num_gpus, gpu_gb
        GPUs, and memory of one in 10^9 bytes.
    peak_tflops, peak_fraction
        10^12 operations a second of one GPU, and the part of it that a training step reaches.
    polymers, content
        Size of the corpus, and what preprocessing makes of it: full or topology.
    """

    model: MipsConfig = field(default_factory=MipsConfig)
    zero: ZeroConfig = field(default_factory=ZeroConfig)
    precision: str = "bf16"
    num_steps: int = 20_000
    global_batch_size: int = 1024
    micro_batch_size: int = 0
    activation_checkpointing: bool = False
    num_gpus: int = 8
    gpu_gb: float = 80.0
    peak_tflops: float = 989.0
    peak_fraction: float = 0.4
    polymers: int = 1_000_000
    content: str = "full"

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision={self.precision} must be one of {', '.join(PRECISIONS)}")
        if self.content not in _CORE_HOURS_PER_MILLION:
            raise ValueError(f"content={self.content} must be full or topology")
        for name in ("num_steps", "global_batch_size", "num_gpus", "polymers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("gpu_gb", "peak_tflops", "peak_fraction"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0")


def count_parameters(model: MipsConfig) -> int:
    """Return the number of parameters, without allocating them."""
    with torch.device("meta"):
        return sum(p.numel() for p in MaskedAtomModel(model).parameters())


def state_bytes(num_parameters: int, num_ranks: int, stage: int, precision: str) -> StateBytes:
    """Return what each rank holds when it holds most: between two micro-batches of a step."""
    whole, share = num_parameters, num_parameters / num_ranks
    width = 4 if precision == "fp32" else 2
    gradients = whole if stage <= 1 else share
    if stage == 1 and precision != "fp32":
        gradients += share  # summed in fp32 beside those of the micro-batch
    return StateBytes(
        optimizer=round(8 * (whole if stage == 0 else share)),
        master=0 if stage == 0 else round(4 * share),
        gradients=round(4 * gradients),
        parameters=round(width * (share if stage == 3 else whole)),
    )


def activation_bytes(model: MipsConfig, polymers: int, precision: str, recompute: bool) -> float:
    """Estimate what the backward pass of a micro-batch needs kept.

    The counts of tensors come from those that autograd saves on a CPU, where dropout masks are as
    wide as numbers; a GPU keeps them in bytes and needs less.
    """
    width, matrices = (4, 3) if precision == "fp32" else (2, 4)  # softmax runs in fp32
    layer = 9 * model.hidden_dim + 4 * model.ffn_dim + matrices * model.num_heads * _PACK * _PACKING
    outside = 2 * model.hidden_dim + 300
    kept = model.num_layers * layer
    if recompute:
        kept = model.num_layers * model.hidden_dim + layer
    return polymers * _ATOMS * width * (kept + outside)


def polymer_flops(model: MipsConfig) -> float:
    """Return the operations of one polymer in training: three times the forward of its atoms."""
    width = model.hidden_dim
    layer = 2 * (4 * width * width + 2 * width * model.ffn_dim) + 4 * _CELLS * width
    forward = _ATOMS * (model.num_layers * layer + _MASKED * 2 * width * (width + 101))
    for name in model.descriptors:
        forward += 2 * DESCRIPTOR_WIDTHS[name] * (width + width // 4)
    return 3 * forward


def plan(config: PlanConfig) -> list[str]:
    """Return the lines of the plan.

    Raises
    ------
    UsageError
        The batch cannot be shared out, or the ZeRO settings do not go together.
    """
    model, num_gpus = config.model, config.num_gpus
    size = count_parameters(model)
    chosen, why = choose_stage(config.zero, config.precision, size)
    batches = plan_batches(config.global_batch_size, config.micro_batch_size, num_gpus)
    flops = polymer_flops(model) * (4 / 3 if config.activation_checkpointing else 1)
    step_seconds = flops * config.global_batch_size / num_gpus
    step_seconds /= config.peak_tflops * 1e12 * config.peak_fraction
    core_hours = _CORE_HOURS_PER_MILLION[config.content] * config.polymers / 1e6
    seen = config.num_steps * config.global_batch_size
    layers = "computed again" if config.activation_checkpointing else "kept"
    return [
        f"{size:,} parameters, {config.precision}, {num_gpus} GPUs of {config.gpu_gb:g} GB",
        f"{batches}",
        f"ZeRO stage {chosen} ({why}), offload {config.zero.offload}",
        "",
        *_memory_table(config, size, chosen, batches.micro_batch_size),
        "",
        f"step           {step_seconds:.3g} s",
        f"pre-training   {step_seconds * config.num_steps / 3600:.3g} h for "
        f"{config.num_steps:,} steps, {seen:,} polymers, {seen / config.polymers:.1f} epochs",
        f"preprocessing  {core_hours:.3g} core-hours, content={config.content}",
        f"disk           {config.polymers * _BYTES_PER_POLYMER / GB:.3g} GB of shards, "
        f"{3 * 12 * size / GB:.3g} GB of checkpoints",
        "",
        "Assumed:",
        f"- {_ATOMS} heavy atoms a polymer, {flops / 1e9:.3g} GFLOP each: three times the forward"
        + (", once more for layers computed again" if config.activation_checkpointing else ""),
        f"- a step reaches {config.peak_fraction:.0%} of {config.peak_tflops:g} TFLOP/s, and "
        "communication hides behind it",
        f"- activations of {batches.micro_batch_size} polymers, layers {layers}: counted on a CPU, "
        "an upper estimate for a GPU",
        f"- {_CORE_HOURS_PER_MILLION['full']} core-hours for a million polymers with everything, "
        f"{_CORE_HOURS_PER_MILLION['topology']} for topology; {_BYTES_PER_POLYMER:,} bytes a "
        "polymer with everything; measured",
        "- checkpoints: two, and a third while it is written, 12 bytes a parameter",
        "- not counted: the CUDA context and libraries, 1 to 2 GB",
    ]


def _memory_table(config: PlanConfig, size: int, chosen: int, micro_batch: int) -> list[str]:
    """Return GB of one GPU by stage; the one that would run is marked."""
    columns = ("weights", "gradients", "moments", "fp32 copy", "buckets", "activations", "total")
    lines = ["GB of a GPU  " + "".join(f"{name:>12}" for name in columns)]
    active = activation_bytes(
        config.model, micro_batch, config.precision, config.activation_checkpointing
    )
    for stage in range(0 if config.precision == "fp32" else 1, 4):
        held = state_bytes(size, config.num_gpus, stage, config.precision)
        is_offloaded = config.zero.offload == "optimizer" and stage > 0
        cells = [
            held.parameters,
            held.gradients,
            0 if is_offloaded else held.optimizer,
            0 if is_offloaded else held.master,
            2 * 4 * min(size, config.zero.bucket_elements) if stage > 0 else 0,
            active,
        ]
        total = sum(cells)
        fits = "" if total <= config.gpu_gb * GB else "  does not fit"
        row = "".join(f"{cell / GB:>12.3g}" for cell in (*cells, total))
        lines.append(f"{'->' if stage == chosen else '  '} stage {stage}   {row}{fits}")
    return lines
