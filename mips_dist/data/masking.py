"""Choose masked atoms and corrupt descriptors: pure functions of (seed, step, sample). No torch.

Never of the rank, the micro-batch or the place in it (law L8). Each number is a hash of its
coordinates, so that no generator per polymer is ever made.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mips_dist.data.block import PolymerBlock, ragged_rows
from mips_dist.data.order import text_key, uniform

Array = npt.NDArray[Any]

# The first key of a hash says what the number is for; never reuse one.
_ATOMS, _DROP, _CORRUPT, _VALUE = range(4)


@dataclass(kw_only=True, slots=True)
class MaskingConfig:
    """How the inputs of pre-training are hidden."""

    rate: float = 0.3  # probability that an atom is masked
    descriptor_corruption: float = 0.3  # probability that a descriptor entry is replaced
    group_drop: float = 0.2  # probability that a polymer loses a descriptor group

    def __post_init__(self) -> None:
        for name in ("rate", "descriptor_corruption", "group_drop"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"masking.{name} must lie in [0, 1], not {getattr(self, name)}")
        if self.rate == 0.0:
            raise ValueError("masking.rate must be above 0, or there is nothing to learn")


def atom_mask(seed: int, step: int, sample: Array, num_atoms: Array, rate: float) -> Array:
    """Choose masked atoms, each with the same probability.

    Parameters
    ----------
    seed, step
        Seed of the run and optimizer step.
    sample
        (G,) number of each polymer in the data set.
    num_atoms
        (G,) atoms of each.
    rate
        Probability that an atom is masked; a small polymer may have none masked, or all.

    Returns
    -------
    (N,) bool.
    """
    local_atom = ragged_rows(np.zeros(len(num_atoms), np.int64), num_atoms)
    return uniform(_ATOMS, seed, step, np.repeat(sample, num_atoms), local_atom) < rate


def corrupt_descriptors(
    block: PolymerBlock, seed: int, step: int, sample: Array, config: MaskingConfig
) -> PolymerBlock:
    """Return the block with whole descriptor groups dropped and entries of the others replaced.

    Descriptors are functions of the whole polymer and tell what a masked atom is (law L6c). A
    replaced real entry is uniform in [0, 1), a replaced bit is flipped. A dropped group is marked
    as not available, like that of a polymer for which it could not be computed.

    Parameters
    ----------
    block
        G polymers.
    seed, step
        Seed of the run and optimizer step.
    sample
        (G,) number of each polymer in the data set.
    config
        The probabilities.
    """
    descriptors: dict[str, Array] = {}
    valid: dict[str, Array] = {}
    for name, values in block.descriptors.items():
        # By name, so that a group's numbers do not depend on which other groups are read.
        group = text_key(name)
        keys = (seed, step, group, sample)
        valid[name] = block.descriptor_valid[name] & (uniform(_DROP, *keys) >= config.group_drop)
        is_bits = values.dtype == np.uint8
        entry = np.arange(values.shape[1] * (8 if is_bits else 1))
        grid = (seed, step, group, sample[:, None], entry)
        replaced = uniform(_CORRUPT, *grid) < config.descriptor_corruption
        if is_bits:
            corrupted = values ^ np.packbits(replaced, axis=1)
        else:
            corrupted = np.where(replaced, uniform(_VALUE, *grid), values).astype(values.dtype)
        descriptors[name] = np.where(valid[name][:, None], corrupted, 0).astype(values.dtype)
    return replace(block, descriptors=descriptors, descriptor_valid=valid)


def drop_descriptors(block: PolymerBlock) -> PolymerBlock:
    """Return the block with every descriptor group marked as not available."""
    return replace(
        block,
        descriptors={name: np.zeros_like(x) for name, x in block.descriptors.items()},
        descriptor_valid={name: np.zeros_like(x) for name, x in block.descriptor_valid.items()},
    )
