"""Two polymers written down by hand, `*C*` and `*CO*`, and small models and batches for tests."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from mips_dist.chem.descriptors import DescriptorGroup
from mips_dist.chem.graph import PolymerGraph
from mips_dist.chem.sample import Sample
from mips_dist.data.batch import PolymerBatch, collate
from mips_dist.data.block import PolymerBlock, stack
from mips_dist.model.mips import MaskedAtomModel, MipsConfig, PropertyModel

SMALL = {"hidden_dim": 16, "num_layers": 2, "num_heads": 2, "ffn_dim": 32}


def hand_block() -> PolymerBlock:
    """Polymer 0: ...C-C-C..., one atom. Polymer 1: ...C-O-C-O..., two atoms. Radius 2."""
    carbon = [6, 2, 0, 0, 3, 0, 2, 0, 0]
    oxygen = [8, 2, 0, 0, 3, 0, 0, 0, 0]
    pairs = [  # query, key, cell, hops
        *[(0, 0, 0, 0), (0, 0, -1, 1), (0, 0, 1, 1), (0, 0, -2, 2), (0, 0, 2, 2)],
        *[(0, 0, 0, 0), (0, 0, -1, 2), (0, 0, 1, 2), (0, 1, -1, 1), (0, 1, 0, 1)],
        *[(1, 0, 0, 1), (1, 0, 1, 1), (1, 1, 0, 0), (1, 1, -1, 2), (1, 1, 1, 2)],
    ]
    query, key, cell, hops = np.array(pairs).T
    path_pair = [3, 4, 1, 2, 8, 9]  # the pairs two hops apart, numbered within their polymer
    path_atom = [0, 0, 1, 1, 0, 0]
    bonds = [(p, k + 1) for p, h in enumerate(hops[:5]) for k in range(h)]
    bonds += [(p, k + 1) for p, h in enumerate(hops[5:]) for k in range(h)]
    return PolymerBlock(
        psmiles=["*C*", "*CO*"],
        row=np.array([10, 11]),
        num_atoms=np.array([1, 2], np.int32),
        num_bonds=np.array([1, 2], np.int32),
        num_pairs=np.array([5, 10], np.int32),
        num_path_atoms=np.array([2, 4], np.int32),
        num_path_bonds=np.array([6, 12], np.int32),
        atom_features=np.array([carbon, carbon, oxygen], np.int16),
        is_backbone=np.ones(3, bool),
        edge_index=np.array([[0, 0, 1], [0, 1, 0]], np.int16),
        bond_type=np.ones(3, np.uint8),
        cell_shift=np.array([1, 0, 1], np.int8),
        pair_index=np.array([query, key], np.int16),
        pair_shift=cell.astype(np.int8),
        pair_hops=hops.astype(np.uint8),
        path_pair=np.array(path_pair, np.int32),
        path_position=np.ones(6, np.uint8),
        path_atom=np.array(path_atom, np.int16),
        path_weight=np.ones(6, np.float32),
        path_bond_pair=np.array([p for p, _ in bonds], np.int32),
        path_bond_position=np.array([k for _, k in bonds], np.uint8),
        path_bond_type=np.ones(18, np.uint8),
        path_bond_weight=np.ones(18, np.float32),
    )


def samples_with_descriptors(graphs: Sequence[PolymerGraph]) -> list[Sample]:
    """Samples with made-up descriptors: every third has none, every third one group, else both."""
    rng = np.random.default_rng(0)
    samples = []
    for index, graph in enumerate(graphs):
        real = rng.random(200).astype(np.float16)  # as shards store it
        groups = {"rdkit_2d": real, "atom_pair_3d": (rng.random(512) < 0.1).astype(np.uint8)}
        kept = list(groups)[: index % 3]
        samples.append(Sample(graph, {name: groups[name] for name in kept}))
    return samples


def batch_of(
    samples: Sequence[Sample], pack_size: int | None = 128, groups: Iterable[DescriptorGroup] = ()
) -> PolymerBatch:
    return collate(stack(samples, range(len(samples)), groups), pack_size)


def randomized(model: torch.nn.Module, std: float = 0.3) -> torch.nn.Module:
    """The model in evaluation mode, every parameter random, so that each term of it counts."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(std * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def property_model(**changes) -> PropertyModel:
    model = randomized(PropertyModel(MipsConfig(**SMALL | changes)))
    assert isinstance(model, PropertyModel)
    return model


def masked_atom_model(**changes) -> MaskedAtomModel:
    model = randomized(MaskedAtomModel(MipsConfig(**SMALL | changes)))
    assert isinstance(model, MaskedAtomModel)
    return model
