"""What a model says of a polymer of which it is shown only some atoms and some groups of features.

This is the value function of an explanation; docs/explain.md says why it is this one.

Legend: G sets of what is known, n atoms, N = G n.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mips_dist.chem.chain_features import COMPOSITION, ChainFeatures
from mips_dist.chem.chain_parts import ChainParts
from mips_dist.data.batch import PolymerBatch
from mips_dist.model.bundle import Bundle
from mips_dist.model.chain_model import ChainModel
from mips_dist.model.kernel import LINEAR

Known = npt.NDArray[np.bool_]
Values = npt.NDArray[np.float64]

# Features of the whole chain by the names that users see, and which inputs each of them is.
TOPOLOGY, DESCRIPTORS, BANDS, CONFORMER = "topology", "descriptors", "bands", "conformer"
GROUPS = (TOPOLOGY, DESCRIPTORS, BANDS, CONFORMER)
_OF_NETWORK = {"rdkit_2d": DESCRIPTORS, "bands": BANDS, "atom_pair_3d": CONFORMER}
_OF_CHAIN = {"topology": TOPOLOGY, "descriptors": DESCRIPTORS, "bands": BANDS}

_BATCH_ATOMS = 2048  # of the network's batches
_BATCH_SETS = 256  # of the chain model's: some tens of MB for 3,000 training rows


class KnownInPart:
    """A property model and one polymer.

    Parameters
    ----------
    bundle
        A property model.
    batch
        The polymer as the network reads it, alone.
    parts, chain
        Its atoms' parts and its features for the partner; None where there is no partner.

    Attributes
    ----------
    groups
        Those of `GROUPS` that the model reads and the polymer has.
    """

    def __init__(
        self,
        bundle: Bundle,
        batch: PolymerBatch,
        parts: ChainParts | None,
        chain: ChainFeatures | None,
    ) -> None:
        self._bundle = bundle
        self._batch = batch
        self._parts = parts
        self._chain = chain
        self.num_atoms = len(batch.batch_index)
        found = {
            _OF_NETWORK[name]
            for name in bundle.model.config.descriptors
            if batch.descriptor_valid[name].item()
        }
        if chain is not None:
            found |= {
                group
                for name, group in _OF_CHAIN.items()
                if not np.isnan(getattr(chain, name)).all()
            }
        self.groups = [group for group in GROUPS if group in found]

    def predict(self, known: Known) -> Values:
        """Predict (G,) in the unit of the property.

        Parameters
        ----------
        known
            (G, n + groups): the atoms, then the groups.
        """
        atoms = known[:, : self.num_atoms]
        groups = {name: known[:, self.num_atoms + i] for i, name in enumerate(self.groups)}
        values = self._network(atoms, groups)
        partner = self._bundle.partner
        if partner is not None:
            share = partner.network_share
            values = share * values + (1.0 - share) * self._partner(partner.model, atoms, groups)
        return values

    def _network(self, atoms: Known, groups: Mapping[str, Known]) -> Values:
        scaler = self._bundle.scaler
        assert scaler is not None
        size = max(1, _BATCH_ATOMS // self.num_atoms)
        z = []
        for first in range(0, len(atoms), size):
            own = slice(first, first + size)
            batch = repeated(self._batch, len(atoms[own]))
            valid = {
                name: present & torch.from_numpy(groups[_OF_NETWORK[name]][own].copy())
                for name, present in batch.descriptor_valid.items()
                if _OF_NETWORK[name] in groups
            }
            batch = replace(
                batch,
                is_masked=torch.from_numpy(~atoms[own].ravel()),
                descriptor_valid=batch.descriptor_valid | valid,
            )
            with torch.inference_mode():
                z.append(self._bundle.model(batch)[:, 0].double().numpy())
        values: Values = np.concatenate(z) * scaler["std"] + scaler["mean"]
        return values

    def _partner(self, model: ChainModel, atoms: Known, groups: Mapping[str, Known]) -> Values:
        assert self._parts is not None
        assert self._chain is not None
        average = average_composition(model)
        found = []
        for first in range(0, len(atoms), _BATCH_SETS):
            own = slice(first, first + _BATCH_SETS)
            blocks = {
                name: np.where(
                    groups[group][own, None] if group in groups else False,
                    getattr(self._chain, name),
                    np.float32(np.nan),
                )
                for name, group in _OF_CHAIN.items()
            }
            features = ChainFeatures(
                environments=self._parts.environments(atoms[own]),
                composition=self._parts.composition(atoms[own], average),
                **blocks,
            )
            found.append(model.predict(features))
        return np.concatenate(found)


def average_composition(model: ChainModel) -> Values:
    """Return the composition (C,) of the average polymer that the process was trained on."""
    average = np.zeros(len(COMPOSITION))
    block = model.process.blocks.get(LINEAR)
    if block is not None:
        average[block.columns] = block.centre
    return average


def repeated(batch: PolymerBatch, copies: int) -> PolymerBatch:
    """Return a batch of copies of one polymer, each a pack of its own.

    Parameters
    ----------
    batch
        One polymer, collated with ``pack_size=None``.
    """
    num_atoms, num_pairs = len(batch.batch_index), len(batch.pair_query)
    size = batch.pack_size
    copy = torch.arange(copies)

    def tiled(values: Tensor) -> Tensor:
        return values.repeat(copies, *[1] * (values.dim() - 1))

    def moved(values: Tensor, step: int) -> Tensor:
        return (values[None] + copy[:, None].to(values.dtype) * step).flatten()

    bonds: dict[str, Any] = {}
    if batch.path_bond_pair is not None:
        bonds = {
            "path_bond_pair": moved(batch.path_bond_pair, num_pairs),
            **{
                name: tiled(getattr(batch, name))
                for name in ("path_bond_position", "path_bond_type", "path_bond_weight")
            },
        }
    return PolymerBatch(
        atom_features=tiled(batch.atom_features),
        is_backbone=tiled(batch.is_backbone),
        batch_index=copy.repeat_interleave(num_atoms),
        ptr=torch.arange(copies + 1) * num_atoms,
        pair_query=moved(batch.pair_query, num_atoms),
        pair_key=moved(batch.pair_key, num_atoms),
        pair_hops=tiled(batch.pair_hops),
        pair_cell=moved(batch.pair_cell, len(batch.cell_slot)),
        cell_slot=moved(batch.cell_slot, size * size),
        token_slot=moved(batch.token_slot, size),
        num_packs=copies,
        pack_size=size,
        path_pair=moved(batch.path_pair, num_pairs),
        path_position=tiled(batch.path_position),
        path_atom=moved(batch.path_atom, num_atoms),
        path_weight=tiled(batch.path_weight),
        descriptors={name: tiled(x) for name, x in batch.descriptors.items()},
        descriptor_valid={name: tiled(x) for name, x in batch.descriptor_valid.items()},
        sample_index=copy,
        **bonds,
    )
