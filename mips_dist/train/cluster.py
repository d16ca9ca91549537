"""What a job takes of a cluster beside its steps: machines, reading, memory, failures, money.

Arithmetic alone, on constants that were measured (docs/scaling.md says how) and on keys of
configs/plan.yaml.
"""

import math
from dataclasses import dataclass

from mips_dist.train.plan_config import PRICES, PlanConfig
from mips_dist.train.pretrain_config import DECODED_SHARE, loader_workers
from mips_dist.train.scaling import ModelSize

# Measured on a million generated polymers like those of PI1M: 2 cores, 2026-11 (docs/log.md); xtb
# on 160.
CORE_HOURS_PER_MILLION = {"xtb": 135.0, "full": 8.1, "descriptors": 2.5, "topology": 0.4}
BYTES_PER_POLYMER = {"xtb": 2_000, "full": 1_380, "descriptors": 580, "topology": 340}  # of a shard
_DRIVER_SECONDS_PER_MILLION = 22.0  # of preprocessing's one driver, topology
_POLYMERS_PER_SHARD = {"xtb": 2_048, "full": 8_192, "descriptors": 65_536, "topology": 65_536}
# Measured by scripts/bench_index.py, 2026-11-26: what a rank holds of each polymer, the most that
# it held while it began, and the CPU time of that.
INDEX_BYTES, INDEX_PEAK_BYTES = 24, 26
INDEX_SECONDS_PER_MILLION = 0.9
_DECODED_BYTES = 2_200  # of a polymer in memory (docs/gpu.md)
_CHECKPOINT_BYTES = 12  # of a parameter: fp32 weight and two moments
_KEPT = 3  # checkpoints: two, and one that is being written
_GB = 1e9


@dataclass(frozen=True, kw_only=True, slots=True)
class Failures:
    """What failures do to a run.

    Attributes
    ----------
    between
        Seconds of the cluster between two of them.
    expected
        Number of them in the run.
    hours
        Of the run, with checkpoints and failures.
    best_every
        Steps between checkpoints at which least time is lost.
    """

    between: float
    expected: float
    hours: float
    best_every: int


def num_machines(config: PlanConfig) -> int:
    """Return the machines that the GPUs stand in."""
    return -(-config.num_gpus // config.gpus_per_node)


def checkpoint_seconds(config: PlanConfig, size: ModelSize) -> float:
    """Return for how long all ranks stand still for a checkpoint."""
    return _CHECKPOINT_BYTES * size.parameters / (config.checkpoint_gb_s * _GB)


def best_interval(stall: float, between: float) -> float:
    """Return the seconds of work between checkpoints at which least time is lost (Young, 1974).

    A checkpoint costs ``stall`` per interval, a failure half an interval: their sum over time,
    stall / t + t / (2 between), is least where both are equal.
    """
    return math.sqrt(2 * stall * between)


def failures(config: PlanConfig, size: ModelSize, step_seconds: float) -> Failures | None:
    """Return what failures do, where their rate is given."""
    if config.mtbf_hours is None:
        return None
    between = 3600 * config.mtbf_hours / num_machines(config)
    stall = checkpoint_seconds(config, size)
    work = config.num_steps * step_seconds + config.num_steps // config.checkpoint_every * stall
    lost = config.recovery_s + config.checkpoint_every * step_seconds / 2
    # Every failure prolongs the run, in which then more of them come.
    seconds = work * between / (between - lost) if lost < between else math.inf
    return Failures(
        between=between,
        expected=seconds / between,
        hours=seconds / 3600,
        # Above the steps of the run: at its end alone.
        best_every=min(
            config.num_steps, max(1, round(best_interval(stall, between) / step_seconds))
        ),
    )


def shard_gb(config: PlanConfig) -> float:
    """Return the 10^9 bytes of the shards."""
    return config.polymers * BYTES_PER_POLYMER[config.content] / _GB


def checkpoint_gb(size: ModelSize) -> float:
    """Return the 10^9 bytes of the checkpoints that lie on the disk at a time."""
    return _KEPT * _CHECKPOINT_BYTES * size.parameters / _GB


def preprocessing_hours(config: PlanConfig) -> tuple[float, float]:
    """Return core-hours, and hours by the clock on the cores of all machines."""
    millions = config.polymers / 1e6
    core_hours = CORE_HOURS_PER_MILLION[config.content] * millions
    driver = _DRIVER_SECONDS_PER_MILLION * millions / 3600
    return core_hours, max(core_hours / (config.cores_per_node * num_machines(config)), driver)


def held_polymers(config: PlanConfig) -> int:
    """Return how many polymers a GPU's loader keeps decoded, see `train.pretraining`."""
    memory = config.node_memory_gb * _GB / config.gpus_per_node
    return int(DECODED_SHARE * memory / _DECODED_BYTES)


def decoded_per_s(config: PlanConfig) -> float:
    """Return the polymers a second that the loader of a GPU decodes, all its processes together."""
    num_workers = loader_workers(config.cores_per_node, config.gpus_per_node)
    return num_workers * config.decode_per_s


def reads(config: PlanConfig) -> tuple[float, float]:
    """Return how often each GPU reads the shards, and the 10^9 bytes that all of them read.

    The window that a step is drawn from is read whole by every rank.
    """
    epochs = config.num_steps * config.global_batch_size / config.polymers
    times = 1 if config.polymers <= held_polymers(config) else max(1.0, epochs)
    return times, times * config.num_gpus * shard_gb(config)


def _number(value: float) -> str:
    """Write a number of three digits or more, never with an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def describe(config: PlanConfig, size: ModelSize, step_seconds: float) -> list[str]:
    """Return the lines of the plan that are about the cluster."""
    machines, millions = num_machines(config), config.polymers / 1e6
    core_hours, hours = preprocessing_hours(config)
    times, read_gb = reads(config)
    shards = -(-config.polymers // _POLYMERS_PER_SHARD[config.content])
    stall = checkpoint_seconds(config, size)
    share = stall / (stall + config.checkpoint_every * step_seconds)
    lines = [
        f"machines       {machines} of {config.gpus_per_node} GPUs and {config.cores_per_node} "
        "cores",
        f"preprocessing  {_number(core_hours)} core-hours, content={config.content}; "
        f"{_number(hours)} h on all cores, "
        f"{_DRIVER_SECONDS_PER_MILLION * millions / 3600:.2g} h of it its one driver",
        f"disk           {_number(shard_gb(config))} GB in {shards:,} shards, "
        f"{_number(checkpoint_gb(size))} GB of checkpoints",
        f"reading        all shards by every GPU, "
        f"{'once' if times == 1 else f'{times:.3g} times'}: {_number(read_gb)} GB over the network",
        f"index          {INDEX_BYTES * config.polymers / _GB:.2g} GB of memory in each rank "
        f"({INDEX_PEAK_BYTES * config.polymers / _GB:.2g} at its start), "
        f"{_number(INDEX_SECONDS_PER_MILLION * millions)} s to read",
        f"checkpoints    every {config.checkpoint_every} steps, {stall:.2g} s each: {share:.2%} of "
        "the time",
    ]
    return [
        *lines,
        *_failure_lines(config, size, step_seconds),
        "",
        *_cost_lines(config, size, step_seconds),
    ]


def run_hours(config: PlanConfig, size: ModelSize, step_seconds: float) -> float:
    """Return the hours of pre-training, with failures where their rate is given."""
    found = failures(config, size, step_seconds)
    return config.num_steps * step_seconds / 3600 if found is None else found.hours


def _failure_lines(config: PlanConfig, size: ModelSize, step_seconds: float) -> list[str]:
    found = failures(config, size, step_seconds)
    if found is None:
        return ["failures       none counted; give mtbf_hours=, of one machine"]
    if found.hours == math.inf:
        return [
            f"failures       one in {found.between:,.0f} s: the run never ends; more checkpoints, "
            "fewer machines"
        ]
    return [
        f"failures       one in {_number(found.between / 3600)} h, {found.expected:.2g} in the "
        f"run; with them and checkpoints {_number(found.hours)} h; least is lost with "
        f"checkpoint_every={found.best_every}"
    ]


def costs(
    config: PlanConfig, size: ModelSize, step_seconds: float
) -> list[tuple[str, float, str, float | None]]:
    """Return (what, how much, unit, price of one or None); failures included where given."""
    hours = run_hours(config, size, step_seconds)
    core_hours, _ = preprocessing_hours(config)
    training = [
        ("pre-training", hours * config.num_gpus, "GPU-hours", config.price_gpu_hour),
        ("pre-training", hours * num_machines(config), "machine-hours", config.price_machine_hour),
    ]
    return [
        # By one of the two, as a provider sells them.
        *(training[1:] if config.price_machine_hour is not None else training[:1]),
        ("preprocessing", core_hours, "core-hours", config.price_core_hour),
        ("disk, a month", shard_gb(config) + checkpoint_gb(size), "GB", config.price_gb_month),
        ("shards read", reads(config)[1], "GB", config.price_gb_egress),
    ]


def _cost_lines(config: PlanConfig, size: ModelSize, step_seconds: float) -> list[str]:
    if all(getattr(config, name) is None for name in PRICES):
        return [f"no prices, no cost: give {', '.join(f'{name}=' for name in PRICES)}"]
    lines, total, unpriced = (
        [f"{'cost':24}{'quantity':>12}{'':14}{'price':>10}{'cost':>12}"],
        0.0,
        [],
    )
    for what, amount, unit, price in costs(config, size, step_seconds):
        if price is None:
            unpriced.append(what)
        total += amount * (price or 0.0)
        cells = ("", "") if price is None else (f"{price:.4g}", f"{amount * price:,.2f}")
        lines.append(f"{what:24}{_number(amount):>12} {unit:13}{cells[0]:>10}{cells[1]:>12}")
    lines.append(f"{'total':60}{total:>12,.2f}")
    if unpriced:
        lines.append(f"without a price, and not in the total: {', '.join(unpriced)}")
    return lines
