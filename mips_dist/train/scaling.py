"""What a training step costs on N ranks: its work, optimizer, bytes on the wire, what hides them.

Arithmetic alone; docs/scaling.md derives it. That the collectives are those which DeepSpeed really
starts, in kind, number and bytes, is a test; `scripts/bench_scaling.py` compares predicted steps
with measured ones.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Gradients of ranks are added up in fp32, whatever the products are computed in.
_GRADIENT_BYTES = 4
# DeepSpeed's own limits, which we leave alone: what is reduced after the backward pass goes in
# buffers of the first size; at stage 3 a weight that is used again within the second number of
# elements stays whole, and whole at a time is never more than the third.
REDUCTION_BUFFER = 500_000_000
REUSE_DISTANCE = 1_000_000_000
LIVE_ELEMENTS = 1_000_000_000
# Weights up to this size are whole on every rank at stage 3, as in `engine`.
PERSISTENT_ELEMENTS = 1_024
# Of the time of a micro-batch, the backward pass takes this part.
_BACKWARD = 2 / 3
# Bytes that Adam moves for a parameter: weight, two moments, read and written, gradient read, and
# the weight in the type of the products written.
ADAM_BYTES = 30
# Slowest rank over the mean, in atoms, minus 1, times the polymers of a rank and step: measured,
# see docs/scaling.md. A rank with one polymer waits for the one with the largest.
_IMBALANCE = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSize:
    """Parameters of a model; ``persistent`` of them, in ``num_persistent`` weights, are small."""

    parameters: int
    persistent: int
    num_persistent: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Collective:
    """Some collectives of one kind in an optimizer step.

    Attributes
    ----------
    kind
        all_reduce, reduce_scatter or all_gather.
    count
        How many.
    num_bytes
        Of the whole tensor, all of them together.
    when
        backward or gather: during the passes; end: when none is left to hide behind.
    """

    kind: str
    count: int
    num_bytes: float
    when: str

    def wire_bytes(self, num_ranks: int) -> float:
        """Return what one rank sends, and receives, when the ranks form a ring."""
        passes = 2 if self.kind == "all_reduce" else 1
        return passes * self.num_bytes * (num_ranks - 1) / num_ranks


def collectives(
    size: ModelSize,
    stage: int,
    precision: str,
    grad_accum_steps: int,
    bucket_elements: int,
    *,
    is_offloaded: bool = False,
    reuse_distance: int = REUSE_DISTANCE,
) -> list[Collective]:
    """Return what DeepSpeed 0.19.8 starts in an optimizer step, but for a few single numbers.

    Stage 0, and stage 1 in bf16, reduce after the backward pass and know no buckets. Stages 1 and 2
    add gradients up on every rank, with the bytes of an all-reduce, and gather the weights after
    the step; stage 2 does the former for every micro-batch. Stage 3 gathers the weights for every
    micro-batch, and at most those a second time whose backward pass is further away than
    ``reuse_distance``; after the step it gathers the small ones, each by itself.
    """
    total, width = size.parameters, 4 if precision == "fp32" else 2
    gradients = total * _GRADIENT_BYTES
    buckets = math.ceil(total / bucket_elements)
    if reduces_at_end(stage, precision, is_offloaded):
        count, times, when = math.ceil(total / REDUCTION_BUFFER), 1, "end"
    else:
        times = 1 if stage == 1 else grad_accum_steps
        count, when = times * buckets, "backward"
    if stage < 3:
        reduction = Collective(
            kind="all_reduce", count=count, num_bytes=times * gradients, when=when
        )
        gather = Collective(kind="all_gather", count=1, num_bytes=total * width, when="end")
        return [reduction] if stage == 0 else [reduction, gather]
    large = total - size.persistent
    gathered = large + max(0, large - reuse_distance // 2)
    return [
        Collective(
            kind="all_gather",
            count=grad_accum_steps * math.ceil(gathered / bucket_elements),
            num_bytes=grad_accum_steps * gathered * width,
            when="gather",
        ),
        Collective(kind="reduce_scatter", count=count, num_bytes=times * gradients, when=when),
        Collective(
            kind="all_gather",
            count=size.num_persistent,
            num_bytes=size.persistent * width,
            when="end",
        ),
    ]


def reduces_at_end(stage: int, precision: str, is_offloaded: bool) -> bool:
    """Return whether gradients are reduced when the backward pass is over, in one buffer."""
    # DeepSpeed has an optimizer of its own for stage 1 in bf16 with gradients in fp32.
    return stage == 0 or (stage == 1 and precision == "bf16" and not is_offloaded)


def live_weights(size: ModelSize, stage: int) -> int:
    """Return the elements of gathered weights that a rank of stage 3 holds at most."""
    return min(size.parameters, LIVE_ELEMENTS) if stage == 3 else 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Links:
    """How ranks reach each other.

    Attributes
    ----------
    ranks_per_node
        Ranks of a machine.
    inside
        Bytes a second that a rank sends to another one of its machine, while it receives as many.
    between
        Bytes a second that a machine sends to others, all its ports together.
    latency
        Seconds of a collective of nearly nothing between two ranks; it grows with log2 of ranks.
    """

    ranks_per_node: int
    inside: float
    between: float
    latency: float

    def seconds(self, collective: Collective, num_ranks: int) -> float:
        """Return the time of collectives over all ranks, nothing else running.

        Rings pass each machine's border once, so what a machine sends is what a rank sends.
        """
        if num_ranks == 1:
            return 0.0
        rate = self.inside
        if num_ranks > self.ranks_per_node:
            rate = min(self.inside, self.between)
        waits = collective.count * self.latency * math.log2(num_ranks)
        return waits + collective.wire_bytes(num_ranks) / rate


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """One rank.

    Attributes
    ----------
    flops_per_s
        Operations of products a second, while it is busy with a step: all else that it does then
        takes its part of that time.
    overhead
        Seconds of a micro-batch however few polymers it has, added to those that it is busy.
    memory_bytes_per_s
        Of its memory, as the optimizer uses it.
    polymers_per_s
        That its loader makes ready meanwhile.
    decoded_per_s
        Polymers of all ranks, as each decodes the windows that all draw from.
    overlaps
        Whether collectives run while it computes.
    """

    flops_per_s: float
    overhead: float
    memory_bytes_per_s: float
    polymers_per_s: float
    decoded_per_s: float = math.inf
    overlaps: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTime:
    """Seconds of an optimizer step and what they are made of.

    ``compute`` is what grows with the polymers, ``overhead`` what a micro-batch adds; ``waiting``
    is for the rank with the largest polymers, ``data`` for the loader; ``communication`` is what
    the collectives would take alone, ``exposed`` the part of it that nothing hides.
    """

    compute: float
    overhead: float
    waiting: float
    optimizer: float
    data: float
    communication: float
    exposed: float

    @property
    def parts(self) -> dict[str, float]:
        """What the step is made of, by name."""
        return {
            "compute": self.compute,
            "fixed cost of micro-batches": self.overhead,
            "waiting for the largest polymers": self.waiting,
            "optimizer": self.optimizer,
            "waiting for the loader": self.data,
            "communication that nothing hides": self.exposed,
        }

    @property
    def total(self) -> float:
        """Seconds of the step."""
        return sum(self.parts.values())

    @property
    def largest(self) -> str:
        """Name the largest part."""
        return max(self.parts, key=lambda name: self.parts[name])


def step_time(
    flops: float,
    size: ModelSize,
    traffic: Sequence[Collective],
    device: Device,
    links: Links,
    *,
    stage: int,
    num_ranks: int,
    grad_accum_steps: int,
    micro_batch_size: int,
) -> StepTime:
    """Return the time of a step.

    Parameters
    ----------
    flops
        Operations of one polymer, forward and backward.
    size, traffic, device, links
        The model, its collectives, one rank, and what is between ranks.
    stage, num_ranks, grad_accum_steps, micro_batch_size
        As in training.

    Notes
    -----
    Where the device overlaps, reductions hide behind the backward passes that they run in (of
    stage 1 the last one alone) and gathers of stage 3 behind both passes; the last bucket of
    gradients and the first of weights have nothing to hide behind. What comes at the end has not
    either.
    """
    per_rank = grad_accum_steps * micro_batch_size
    compute = per_rank * flops / device.flops_per_s
    overhead = grad_accum_steps * device.overhead
    owned = size.parameters / (1 if stage == 0 else num_ranks)
    busy = compute + overhead
    alone = {when: 0.0 for when in ("backward", "gather", "end")}
    uncovered = 0.0  # at least
    for part in traffic:
        seconds = links.seconds(part, num_ranks)
        alone[part.when] += seconds
        if part.when != "end":
            passes = 1 if stage == 1 else grad_accum_steps
            uncovered += passes * seconds / max(part.count, passes)
    window = _BACKWARD * busy / (grad_accum_steps if stage == 1 else 1)
    if stage == 3:
        window = busy
    during = alone["backward"] + alone["gather"]
    hidden = min(window, during - uncovered) if device.overlaps else 0.0
    communication = during + alone["end"]
    waiting = 0.0 if num_ranks == 1 else compute * imbalance(per_rank)
    optimizer = owned * ADAM_BYTES / device.memory_bytes_per_s
    exposed = communication - hidden
    made = per_rank / device.polymers_per_s + per_rank * num_ranks / device.decoded_per_s
    data = made - (busy + waiting + optimizer + exposed)
    return StepTime(
        compute=compute,
        overhead=overhead,
        waiting=waiting,
        optimizer=optimizer,
        data=max(0.0, data),
        communication=communication,
        exposed=exposed,
    )


def imbalance(polymers_per_rank: int) -> float:
    """Return by how much the slowest rank's atoms exceed the mean, for polymers of a step."""
    return _IMBALANCE / polymers_per_rank
