"""The probe: a few polymers whose loss a checkpoint remembers, so that it proves itself.

The inputs are stored as they were given to the model, so a run that continues checks weights,
loading and the model's arithmetic at once, at any number of ranks and any ZeRO stage.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mips_dist.data.batch import PolymerBatch, collate
from mips_dist.data.masking import atom_mask
from mips_dist.data.reader import ShardReader
from mips_dist.data.shards import Manifest
from mips_dist.errors import MipsError
from mips_dist.model.mips import MipsConfig
from mips_dist.train.engine import TrainEngine
from mips_dist.train.objective import masked_atom_loss
from mips_dist.train.validation import masked_classes

_NUM_POLYMERS = 8
_MASKED = 0.3

# Allowed difference of the loss, nats per atom, relative above 1. In fp32 sums in another order;
# in bf16 and fp16 weights that are rounded from the same fp32 ones.
_TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2, "fp16": 2e-3}


@dataclass(frozen=True, slots=True)
class Probe:
    """A masked batch on the CPU."""

    batch: PolymerBatch

    @classmethod
    def first_of(cls, shards: str, manifest: Manifest, model: MipsConfig) -> "Probe":
        """Take the first polymers of the shards, some of their atoms masked, always the same."""
        reader = ShardReader(
            shards,
            manifest.shards[:1],
            groups=model.descriptors,
            with_bonds=model.bond_path_bias,
        )
        (block,) = reader.read(np.zeros(1, np.int64))
        block = block.select(range(min(_NUM_POLYMERS, len(block))))
        mask = atom_mask(0, 0, block.row, block.num_atoms, _MASKED)
        mask[0] = True  # however small they are
        return cls(replace(collate(block), is_masked=torch.from_numpy(mask)))

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "Probe":
        """Return the probe that `tensors` came from."""
        values: dict[str, Any] = {}
        for name, tensor in tensors.items():
            outer, _, inner = name.partition(".")
            if inner:
                values.setdefault(outer, {})[inner] = tensor
            else:
                values[outer] = tensor
        for name in ("num_packs", "pack_size"):
            values[name] = int(values[name])
        for name in ("descriptors", "descriptor_valid"):
            values.setdefault(name, {})
        return cls(PolymerBatch(**values))

    def tensors(self) -> dict[str, Tensor]:
        """Return everything in it by name, for a safetensors file."""
        found: dict[str, Tensor] = {}
        for field in fields(PolymerBatch):
            value = getattr(self.batch, field.name)
            if isinstance(value, dict):
                found |= {f"{field.name}.{name}": tensor for name, tensor in value.items()}
            elif value is not None:
                found[field.name] = torch.as_tensor(value)
        return found

    @torch.no_grad()
    def loss(self, trainer: TrainEngine) -> float:
        """Return the loss per masked atom without dropout; all ranks must call, and get the same.

        Every rank computes all of it: ZeRO-3 needs them all, and nothing is left to add up.
        """
        placed = self.batch.to(trainer.ranks.device)
        trainer.module.eval()
        loss = masked_atom_loss(trainer.module(placed), masked_classes(placed))
        trainer.module.train()
        return float(loss.loss_sum) / placed.num_masked

    def check(self, trainer: TrainEngine, stored: float, precision: str, where: str) -> None:
        """Raise `MipsError` where the loss is not the stored one.

        Parameters
        ----------
        trainer
            With the weights of the checkpoint.
        stored, precision
            The loss, and the precision of the run that stored it.
        where
            Name of the checkpoint, for the error.
        """
        found = self.loss(trainer)
        tolerance = max(_TOLERANCE[precision], _TOLERANCE[trainer.precision])
        if not abs(found - stored) <= tolerance * max(1.0, abs(stored)):
            raise MipsError(
                f"checkpoint {where} gives loss {found:.7g} on its probe, not the stored "
                f"{stored:.7g}: it was made by another version or altered; use the version that "
                "wrote it, or remove it to continue from the one before"
            )
