"""What pre-training will cost: memory of a GPU, hours, preprocessing, disk. Computes, runs nothing.

The bytes of weights, gradients and optimizer state follow from the ZeRO stage, and a test compares
them with what ranks really hold (`scripts/zero_bytes.py`). The time of a step is `scaling`'s. All
else rests on the constants below and on the keys of configs/plan.yaml, which are printed with the
result.
"""

import math

import torch

from mips_dist.errors import UsageError
from mips_dist.model.mips import MaskedAtomModel, MipsConfig
from mips_dist.train import cluster
from mips_dist.train.batch_plan import BatchPlan, largest_on_gpu, plan_batches
from mips_dist.train.flops import forward_work
from mips_dist.train.partitions import StateBytes
from mips_dist.train.plan_config import PlanConfig
from mips_dist.train.scaling import (
    PERSISTENT_ELEMENTS,
    REDUCTION_BUFFER,
    Collective,
    Device,
    Links,
    ModelSize,
    StepTime,
    collectives,
    live_weights,
    reduces_at_end,
    step_time,
)
from mips_dist.train.zero import choose_stage

# Measured on a million generated polymers like those of PI1M: 2 cores, 2026-11 (docs/log.md).
_ATOMS = 30.3  # heavy atoms of a repeat unit
_CELLS = 6.1  # atoms that an atom attends to, itself included, at max_hops=2
_MASKED = 0.3

_PACK = 128  # tokens of an attention pack
_PACKING = 1.06  # tokens with padding / without
GB = 1e9

_LARGEST = 1_024  # GPUs of the curve
_BROKEN = 0.5  # efficiency from which on it is said to break


def count_parameters(model: MipsConfig) -> int:
    """Return the number of parameters, without allocating them."""
    return model_size(model).parameters


def model_size(model: MipsConfig) -> ModelSize:
    """Return the number of parameters and of small ones, without allocating them."""
    with torch.device("meta"):
        sizes = [p.numel() for p in MaskedAtomModel(model).parameters()]
    small = [size for size in sizes if size <= PERSISTENT_ELEMENTS]
    return ModelSize(parameters=sum(sizes), persistent=sum(small), num_persistent=len(small))


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
    return 3 * forward_work(
        model, atoms=_ATOMS, cells=_ATOMS * _CELLS, masked=_ATOMS * _MASKED, polymers=1
    )


def plan(config: PlanConfig) -> list[str]:
    """Return the lines of the plan.

    Raises
    ------
    UsageError
        The batch cannot be shared out, or the ZeRO settings do not go together.
    """
    size = model_size(config.model)
    stage, why = choose_stage(config.zero, config.precision, size.parameters)
    batches = plan_batches(
        config.global_batch_size,
        config.micro_batch_size,
        config.num_gpus,
        largest_micro_batch(config),
    )
    step = predict(config, size, stage, batches)
    hours = step.total * config.num_steps / 3600
    seen = config.num_steps * config.global_batch_size
    return [
        f"{size.parameters:,} parameters, {config.precision}, {config.num_gpus} GPUs of "
        f"{config.gpu_gb:g} GB",
        f"{batches}",
        f"ZeRO stage {stage} ({why}), offload {config.zero.offload}",
        "",
        *_memory_table(config, size, stage, batches),
        "",
        f"step           {step.total:.3g} s: {_in_words(step)}",
        *_traffic(config, size, stage, batches),
        f"pre-training   {hours:.3g} h for {config.num_steps:,} steps, {seen:,} polymers, "
        f"{seen / config.polymers:.1f} epochs",
        "",
        *cluster.describe(config, size, step.total),
        "",
        *_curve(config, size, stage),
        "",
        *_assumptions(config, stage, batches),
    ]


def largest_micro_batch(config: PlanConfig) -> int:
    """Return the polymers of a micro-batch that training on such a GPU would choose, at most."""
    one = activation_bytes(config.model, 1, config.precision, config.activation_checkpointing)
    return largest_on_gpu(config.gpu_gb * GB, one)


def predict(config: PlanConfig, size: ModelSize, stage: int, batches: BatchPlan) -> StepTime:
    """Return the time of a step on ``batches.world_size`` GPUs."""
    layers = config.model.num_layers
    is_held = config.polymers <= cluster.held_polymers(config)
    return step_time(
        polymer_flops(config.model) * (4 / 3 if config.activation_checkpointing else 1),
        size,
        _collectives(config, size, stage, batches),
        Device(
            flops_per_s=config.peak_tflops * 1e12 * config.peak_fraction,
            overhead=layers * layer_overhead(config, stage) / 1e3,
            memory_bytes_per_s=config.memory_gb_s * GB,
            polymers_per_s=config.loader_per_s,
            decoded_per_s=math.inf if is_held else cluster.decoded_per_s(config),
        ),
        Links(
            ranks_per_node=config.gpus_per_node,
            inside=config.nvlink_gb_s * GB,
            between=config.network_gb_s * GB,
            latency=config.latency_us / 1e6,
        ),
        stage=stage,
        num_ranks=batches.world_size,
        grad_accum_steps=batches.grad_accum_steps,
        micro_batch_size=batches.micro_batch_size,
    )


def is_recorded(config: PlanConfig, stage: int) -> bool:
    """Whether a step is recorded once and replayed, as `pretraining.replays` has it."""
    return (
        config.precision == "bf16"
        and stage == 1
        and config.zero.offload == "none"
        and not config.activation_checkpointing
        and not config.model.bond_path_bias
    )


def layer_overhead(config: PlanConfig, stage: int) -> float:
    """Return what a layer adds to a micro-batch, in ms."""
    return config.replay_overhead_ms if is_recorded(config, stage) else config.layer_overhead_ms


def _collectives(
    config: PlanConfig, size: ModelSize, stage: int, batches: BatchPlan
) -> list[Collective]:
    return collectives(
        size,
        stage,
        config.precision,
        batches.grad_accum_steps,
        config.zero.bucket_elements,
        is_offloaded=config.zero.offload == "optimizer",
    )


def _in_words(step: StepTime) -> str:
    """Return what a step is made of, in ms."""
    named = ", ".join(f"{name} {1e3 * part:.3g}" for name, part in step.parts.items() if part)
    return f"{named} ms" + (
        f" (of {1e3 * step.communication:.3g} ms of communication)" if step.communication else ""
    )


def _traffic(config: PlanConfig, size: ModelSize, stage: int, batches: BatchPlan) -> list[str]:
    """Say what a GPU sends in a step."""
    if batches.world_size == 1:
        return []
    traffic = _collectives(config, size, stage, batches)
    sent = sum(part.wire_bytes(batches.world_size) for part in traffic)
    kinds = ", ".join(f"{part.count} {part.kind} ({part.when})" for part in traffic if part.count)
    return [f"sent           {sent / GB:.3g} GB by each GPU and step: {kinds}"]


def _curve(config: PlanConfig, size: ModelSize, stage: int) -> list[str]:
    """Return step and efficiency by number of GPUs, and where half of it is lost."""
    lines = [
        f"global batch {config.global_batch_size:,} on N GPUs, stage {stage}, ms of a step:",
        "     N  per GPU     step  compute    fixed  waiting   optim.  exposed  efficiency  hours"
        "      GB",
    ]
    for num_gpus, batches, step, efficiency in scan(config, size, stage):
        per_gpu = batches.grad_accum_steps * batches.micro_batch_size
        parts = (step.total, step.compute, step.overhead, step.waiting, step.optimizer)
        memory = sum(memory_of(config, size, stage, batches).values())
        lines.append(
            f"{num_gpus:>6} {per_gpu:>8}"
            + "".join(f"{1e3 * part:>9.3g}" for part in (*parts, step.exposed))
            + f"{efficiency:>12.0%}{step.total * config.num_steps / 3600:>7.3g}"
            + f"{memory / GB:>8.3g}"
            + (" does not fit" if memory > config.gpu_gb * GB else "")
        )
    for times in (1, 4, 16):
        batch = times * config.global_batch_size
        half = next(
            (row for row in scan(config, size, stage, batch) if row[3] < _BROKEN and row[0] > 1),
            None,
        )
        lines.append(
            f"batch {batch:,}: "
            + (
                f"below half of the efficiency from N={half[0]:,} on, for {half[2].largest}"
                if half
                else f"above half of the efficiency up to N={_LARGEST:,}"
            )
        )
    return lines


def scan(
    config: PlanConfig, size: ModelSize, stage: int, global_batch_size: int = 0
) -> list[tuple[int, BatchPlan, StepTime, float]]:
    """Return (GPUs, batches, step, efficiency) for 1, 2, 4 ... GPUs, where the batch can be shared.

    Efficiency: the time of one GPU, over N times the time of N.
    """
    batch = global_batch_size or config.global_batch_size
    rows: list[tuple[int, BatchPlan, StepTime, float]] = []
    for num_gpus in (2**i for i in range(_LARGEST.bit_length())):
        for micro in dict.fromkeys((config.micro_batch_size, 0)):
            try:
                batches = plan_batches(batch, micro, num_gpus, largest_micro_batch(config))
            except UsageError:
                continue
            step = predict(config, size, stage, batches)
            alone = rows[0][2] if rows else step
            rows.append((num_gpus, batches, step, alone.total / (num_gpus * step.total)))
            break
    return rows


def _assumptions(config: PlanConfig, stage: int, batches: BatchPlan) -> list[str]:
    """Say what the figures rest on, measured apart from assumed."""
    again = config.activation_checkpointing
    flops = polymer_flops(config.model) * (4 / 3 if again else 1)
    card = "one step of base recorded as a graph on one H200"
    if not is_recorded(config, stage):
        card = "one step of base on one H100"
    return [
        "Measured, as the keys stand (docs/gpu.md, docs/log.md, docs/scaling.md):",
        f"- {_ATOMS} heavy atoms a polymer, {flops / 1e9:.3g} GFLOP each: three times the forward"
        + (", once more for layers computed again" if again else ""),
        f"- {card}: a busy GPU reaches {config.peak_fraction:.0%} of {config.peak_tflops:g} "
        f"TFLOP/s; a layer costs {layer_overhead(config, stage):g} ms in a micro-batch besides, "
        "however small",
        f"- a rank's loader makes {config.loader_per_s:,.0f} polymers a second, beside the GPU; of "
        f"a corpus above {cluster.held_polymers(config) / 1e6:.1f} M, which is a quarter of the "
        f"memory, it decodes all, {cluster.decoded_per_s(config):,.0f} a second, also what other "
        "ranks take",
        f"- {cluster.CORE_HOURS_PER_MILLION[config.content]} core-hours for a million polymers and "
        f"{cluster.BYTES_PER_POLYMER[config.content]:,} bytes a polymer at "
        f"content={config.content}",
        f"- a checkpoint: 12 bytes a parameter at {config.checkpoint_gb_s:g} GB/s of CPU time; two "
        f"are kept, and a third while it is written; recovery {config.recovery_s:g} s",
        "- which collectives run, and their bytes",
        "Assumed:",
        f"- {config.gpus_per_node} GPUs a machine; {config.nvlink_gb_s:g} GB/s from a GPU inside "
        f"it, {config.network_gb_s:g} GB/s from a machine, {config.latency_us:g} us a collective",
        "- gradients are reduced during the backward pass, and stage 3 gathers weights during both "
        "passes; stage 0, and 1 in bf16, reduces after it; stages 1 and 2 gather after the step",
        "- other sizes and numbers of GPUs reach the same part of the peak as that one step",
        f"- activations of {batches.micro_batch_size} polymers, layers "
        f"{'computed again' if again else 'kept'}: counted on a CPU, an upper estimate for a GPU",
        f"- {config.cores_per_node} cores a machine preprocess, and one driver keeps up with "
        "descriptors and conformers as with topology",
        "- failures come at random, each takes the whole job down",
        "- not counted: the CUDA context and libraries, 1 to 2 GB; validation",
    ]


def memory_of(
    config: PlanConfig, size: ModelSize, stage: int, batches: BatchPlan
) -> dict[str, float]:
    """Return the bytes of one GPU by what they are for."""
    held = state_bytes(size.parameters, batches.world_size, stage, config.precision)
    is_offloaded = config.zero.offload == "optimizer" and stage > 0
    # Two, so that one is filled while the other is reduced; or one, of gradients joined for it.
    buckets = 2 * min(size.parameters, config.zero.bucket_elements)
    if reduces_at_end(stage, config.precision, is_offloaded):
        buckets = min(size.parameters, REDUCTION_BUFFER)
    width = 4 if config.precision == "fp32" else 2
    return {
        "weights": held.parameters,
        "gathered": width * live_weights(size, stage),
        "gradients": held.gradients,
        "moments": 0 if is_offloaded else held.optimizer,
        "fp32 copy": 0 if is_offloaded else held.master,
        "buckets": 4 * buckets,
        "activations": activation_bytes(
            config.model,
            batches.micro_batch_size,
            config.precision,
            config.activation_checkpointing,
        ),
    }


def _memory_table(
    config: PlanConfig, size: ModelSize, chosen: int, batches: BatchPlan
) -> list[str]:
    """Return GB of one GPU by stage; the one that would run is marked."""
    rows = {
        stage: memory_of(config, size, stage, batches)
        for stage in range(0 if config.precision == "fp32" else 1, 4)
    }
    names = [*rows[chosen], "total"]
    lines = ["GB of a GPU  " + "".join(f"{name:>12}" for name in names)]
    for stage, cells in rows.items():
        total = sum(cells.values())
        fits = "" if total <= config.gpu_gb * GB else "  does not fit"
        row = "".join(f"{cell / GB:>12.3g}" for cell in (*cells.values(), total))
        lines.append(f"{'->' if stage == chosen else '  '} stage {stage}   {row}{fits}")
    return lines
