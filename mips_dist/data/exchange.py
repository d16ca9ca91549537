"""Polymers to and from torch-geometric, so that any of its models can be tried on exact graphs.

N atoms, B bonds, P pairs; other names as in `mips_dist.chem.graph.PolymerGraph`.
"""

from typing import Any

import numpy as np
import torch
from torch_geometric.data import Data

from mips_dist.chem.graph import PolymerGraph

# Fields that are copied as they stand, with the dtype that they have in a PolymerGraph.
_COPIED = {
    "is_backbone": np.bool_,
    "pair_index": np.int16,
    "pair_shift": np.int8,
    "pair_hops": np.uint8,
    "path_pair": np.int32,
    "path_position": np.uint8,
    "path_atom": np.int16,
    "path_weight": np.float32,
    "path_bond_pair": np.int32,
    "path_bond_position": np.uint8,
    "path_bond_type": np.uint8,
    "path_bond_weight": np.float32,
}


class PolymerData(Data):
    """A polymer as torch-geometric's Data: the quotient graph of the infinite chain.

    `x` (N, 9) float32 holds the atom features, `edge_index` (2, 2 B) every bond in both directions
    (first all as stored, then all reversed), with `bond_type` (2 B,) and `cell_shift` (2 B,): the
    edge (i, j) with shift s joins atom i of cell c to atom j of cell c + s. Parallel edges and
    self-loops are real bonds of the chain: do not coalesce them. Pairs and paths are carried along.
    """

    def __inc__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        """Return by how much an index grows for the next polymer of a batch."""
        if key in ("path_pair", "path_bond_pair"):
            return self.pair_hops.size(0)
        if key == "path_atom":
            return self.num_nodes
        return super().__inc__(key, value, *args, **kwargs)


def to_data(graph: PolymerGraph) -> PolymerData:
    """Turn a polymer's graph into torch-geometric's Data; integers become long, `x` float32."""
    edges = graph.edge_index.astype(np.int64)
    shift = graph.cell_shift.astype(np.int64)
    data = PolymerData(
        x=torch.from_numpy(graph.atom_features.astype(np.float32)),
        edge_index=torch.from_numpy(np.concatenate([edges, edges[::-1]], axis=1)),
        bond_type=torch.from_numpy(np.tile(graph.bond_type.astype(np.int64), 2)),
        cell_shift=torch.from_numpy(np.concatenate([shift, -shift])),
        psmiles=graph.psmiles,
    )
    for name, dtype in _COPIED.items():
        wide = np.int64 if np.issubdtype(dtype, np.integer) else dtype
        data[name] = torch.from_numpy(getattr(graph, name).astype(wide))
    return data


def from_data(data: Data) -> PolymerGraph:
    """Turn the Data of one polymer back into its graph, exactly.

    Raises
    ------
    ValueError
        The second half of the edges is not the first one reversed.
    """
    num_bonds = data.edge_index.size(1) // 2
    forward, backward = data.edge_index[:, :num_bonds], data.edge_index[:, num_bonds:]
    if not torch.equal(forward, backward.flip(0)):
        raise ValueError("edge_index must hold every bond and then every bond reversed")
    copied = {name: data[name].numpy().astype(dtype) for name, dtype in _COPIED.items()}
    return PolymerGraph(
        psmiles=data.psmiles,
        atom_features=data.x.numpy().astype(np.int16),
        edge_index=forward.numpy().astype(np.int16),
        bond_type=data.bond_type[:num_bonds].numpy().astype(np.uint8),
        cell_shift=data.cell_shift[:num_bonds].numpy().astype(np.int8),
        **copied,
    )
