"""How a global batch is shared out: ranks x accumulation steps x polymers of a micro-batch."""

from dataclasses import dataclass

from mips_dist.errors import UsageError

# A micro-batch that nobody asked for, in polymers. On a CPU about 3,000 atoms keep the products
# busy; a GPU wants ten times as many, where its memory holds them.
LARGEST_ON_CPU = 128
LARGEST_ON_GPU = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchPlan:
    """Polymers of a rank's forward pass, and passes of a rank per optimizer step."""

    world_size: int
    grad_accum_steps: int
    micro_batch_size: int

    def __str__(self) -> str:
        """Say it in words."""
        total = self.world_size * self.grad_accum_steps * self.micro_batch_size
        return (
            f"global batch {total} = {self.world_size} ranks x {self.grad_accum_steps} "
            f"accumulation steps x {self.micro_batch_size} polymers"
        )


def largest_on_gpu(memory_bytes: float, polymer_bytes: float) -> int:
    """Return the polymers of a micro-batch whose activations take no more than half of a GPU.

    Parameters
    ----------
    memory_bytes, polymer_bytes
        Memory of the GPU, and what the backward pass needs kept for one polymer.
    """
    return max(1, min(LARGEST_ON_GPU, int(memory_bytes / 2 / polymer_bytes)))


def plan_batches(
    global_batch_size: int,
    micro_batch_size: int,
    world_size: int,
    largest: int = LARGEST_ON_CPU,
) -> BatchPlan:
    """Derive the accumulation steps, and the micro-batch where none is given.

    Parameters
    ----------
    global_batch_size
        Polymers of an optimizer step.
    micro_batch_size
        Polymers of one forward pass of a rank; 0 chooses.
    world_size
        Ranks.
    largest
        Polymers of a micro-batch that is chosen here, at most; at least 1.

    Raises
    ------
    UsageError
        The numbers do not divide; the line names some that do.
    """
    per_rank, rest = divmod(global_batch_size, world_size)
    if rest:
        below = global_batch_size - rest
        choices = [n for n in (below, below + world_size) if n > 0]
        raise UsageError(
            f"global_batch_size={global_batch_size} cannot be shared by {world_size} ranks; "
            f"use {' or '.join(map(str, choices))}"
        )
    divisors = [n for n in range(1, per_rank + 1) if per_rank % n == 0]
    micro = micro_batch_size or max(n for n in divisors if n <= largest)
    if micro not in divisors:
        raise UsageError(
            f"micro_batch_size={micro} does not divide the {per_rank} polymers of each rank "
            f"(global_batch_size={global_batch_size} / {world_size} ranks); "
            f"it can be {', '.join(map(str, divisors))}"
        )
    return BatchPlan(
        world_size=world_size, grad_accum_steps=per_rank // micro, micro_batch_size=micro
    )
