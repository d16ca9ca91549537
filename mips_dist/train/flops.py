"""The work of a step, and how fast this machine multiplies matrices: the peak of its speed."""

import math
import statistics
import time
from collections.abc import Callable, Sequence

import torch

from mips_dist.data.batch import PolymerBatch
from mips_dist.model.embedding import NUM_ATOM_CLASSES
from mips_dist.model.mips import MipsConfig
from mips_dist.model.spatial import DESCRIPTOR_WIDTHS
from mips_dist.train.ranks import Ranks

# Side of the square product; a small one does not fill a GPU.
_SIDE = {"cpu": 2048, "cuda": 8192}
# Enough to know a run's peak by, and soon done.
_PRODUCTS, _SECONDS = 3, 1.0


def forward_flops(model: MipsConfig, batch: PolymerBatch) -> float:
    """Return the floating-point operations of one forward pass over real tokens."""
    return forward_work(
        model,
        atoms=batch.num_atoms,
        cells=batch.num_cells,
        masked=batch.num_masked,
        polymers=batch.num_graphs,
    )


def forward_work(
    model: MipsConfig, *, atoms: float, cells: float, masked: float, polymers: float
) -> float:
    """Return the floating-point operations of one forward pass.

    Padding, softmax, norms, dropout and biases are no work; of attention, what atoms really attend
    to is. Forward and backward together are three times as much.

    Parameters
    ----------
    model
        Its sizes.
    atoms, cells, masked, polymers
        Numbers of atoms, of pairs of an atom with one that it attends to, of masked atoms, of
        polymers.
    """
    width, wide = model.hidden_dim, model.ffn_dim
    inputs = atoms * 2 * 3 * width * width  # q, k and v
    inputs += cells * 4 * width  # q . k and the weighted sum of the values
    outputs = 2 * (width * width + 2 * width * wide)
    # After its attention the last layer goes on with the masked atoms alone.
    total = float(model.num_layers * inputs)
    total += ((model.num_layers - 1) * atoms + masked) * outputs
    total += masked * 2 * width * (width + NUM_ATOM_CLASSES)
    if model.descriptors:
        total += masked * 2 * width * (width // 4)
    for name in model.descriptors:
        total += polymers * 2 * DESCRIPTOR_WIDTHS[name] * (width + width // 4)
        total += masked * 2 * (width // 4 + width)
    return total


def step_flops(model: MipsConfig, batches: Sequence[PolymerBatch], ranks: Ranks) -> float:
    """Return the operations of a step over all ranks: forward, and twice that for backward.

    The loader gives every rank the same number of atoms to within a percent, so this rank's
    batches stand for those of each.
    """
    return 3 * ranks.world_size * sum(forward_flops(model, batch) for batch in batches)


def measure_peak(ranks: Ranks, dtype: torch.dtype) -> float:
    """Return the operations per second of matrix products, all ranks at once and together."""
    device = ranks.device
    (rate,) = ranks.sum(matmul_rate(dtype, own_clock(device), device, _PRODUCTS, _SECONDS))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # the run's peak is not that of these products
    return rate


def matmul_rate(
    dtype: torch.dtype,
    clock: Callable[[], float],
    device: torch.device,
    count: int = 7,
    limit: float = math.inf,
) -> float:
    """Return the median rate of a square product, in operations per second.

    Parameters
    ----------
    dtype, device
        Of the product: 2048^3 on a CPU, 8192^3 on a GPU.
    clock
        Returns seconds; on a GPU it must wait for what was begun.
    count, limit
        Products to time, and seconds after which those that were timed must do.
    """
    side = _SIDE[device.type]
    # Numbers of its own: the generator that a run's weights and dropout come from is left alone.
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(side, side, device=device, generator=generator).to(dtype) for _ in range(2))
    a @ b
    began = clock()
    rates: list[float] = []
    while len(rates) < count and (not rates or clock() - began < limit):
        start = clock()
        a @ b
        rates.append(2 * side**3 / (clock() - start))
    return statistics.median(rates)


def own_clock(device: torch.device) -> Callable[[], float]:
    """Return a clock in s for `matmul_rate` that other processes of the machine do not disturb.

    On a GPU it waits for what was begun; on a CPU it is the processor time of one thread, so that
    the peak is that of the cores, however busy they are.
    """

    def clock() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            return time.perf_counter()
        return time.process_time() / torch.get_num_threads()

    return clock
