"""A slow second implementation of the encoder, on an explicit oligomer, with none of the tricks.

Nothing of the model's code runs here: the repeat unit is unrolled into copies, distances come from
breadth-first search and paths from enumerating walks on the explicit graph, every atom attends to
its own list of explicit atoms (no cells, images, packs or matrices), and the weights are read by
name from the state dict. Law L3: the atoms of the middle copy get what the quotient graph gives.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from rdkit import Chem
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu}


def copies_needed(graph: Any, reach: int) -> int:
    """Return an odd number of copies whose ends are more than `reach` bonds from the middle one."""
    adjacency = unroll(graph, 1)[0]
    right, left = (int(a) for a in graph.edge_index[:, -1])
    # Bonds from one link to the next; a chain end can be felt only by walking over whole cells.
    period = distances(adjacency, left, limit=len(adjacency))[right] + 1
    return 2 * (reach // period + 2) + 1


def unroll(graph: Any, copies: int) -> tuple[list[dict[int, int]], int]:
    """Return the explicit graph as neighbour -> bond type per atom, and the size of the unit."""
    size = len(graph.is_backbone)
    adjacency: list[dict[int, int]] = [{} for _ in range(size * copies)]
    for bond in range(graph.edge_index.shape[1]):
        a, b = (int(x) for x in graph.edge_index[:, bond])
        for cell in range(copies):
            other = cell + int(graph.cell_shift[bond])
            if 0 <= other < copies:
                u, v = a + size * cell, b + size * other
                adjacency[u][v] = adjacency[v][u] = int(graph.bond_type[bond])
    return adjacency, size


def distances(adjacency: list[dict[int, int]], start: int, limit: int) -> dict[int, int]:
    """Return atom -> bonds from the start, up to a limit."""
    found, frontier = {start: 0}, [start]
    for depth in range(1, limit + 1):
        frontier = list({b for a in frontier for b in adjacency[a] if b not in found})
        found.update(dict.fromkeys(frontier, depth))
    return found


def shortest_paths(adjacency: list[dict[int, int]], start: int, end: int, length: int) -> list:
    """Return every walk of the given length between two atoms that far apart."""
    if length == 0:
        return [[start]] if start == end else []
    return [
        [start, *rest]
        for neighbour in adjacency[start]
        for rest in shortest_paths(adjacency, neighbour, end, length - 1)
    ]


def input_row(config: Any, features: Sequence[int], backbone: bool, masked: bool) -> list[float]:
    """Return one atom's input row: one-hot columns, scalars, backbone, masked."""
    element, degree, charge, radicals, hybridization, aromatic, hydrogens, ring, isotope = features

    def one_hot(value: int, width: int) -> list[float]:
        return [float(k == min(value, width - 1)) for k in range(width)]

    mass = isotope or np.float32(Chem.GetPeriodicTable().GetAtomicWeight(element))
    row = one_hot(element - 1, 101) + one_hot(degree, 12) + one_hot(radicals, 6)
    row += one_hot(hybridization, 6) + one_hot(hydrogens, 6)
    row += one_hot(ring, 21) if config.ring_embedding else []
    row += [float(aromatic), float(charge), 0.01 * float(mass)]
    row += [float(backbone)] if config.backbone_embedding else []
    return [0.0] * len(row) + [1.0] if masked else [*row, 0.0]


class OligomerReference:
    """The encoder's output on explicit oligomers.

    Parameters
    ----------
    model
        MaskedAtomModel or PropertyModel; its config and its weights are read, its code is not run.
    """

    def __init__(self, model: Any) -> None:
        self.config = model.config
        self.weights = {
            name.removeprefix("encoder."): w.detach()
            for name, w in model.state_dict().items()
            if name.startswith("encoder.")
        }
        self.layers = [self._part(f"layers.{k}.") for k in range(self.config.num_layers)]

    def _part(self, prefix: str) -> dict[str, Tensor]:
        found = {k: w for k, w in self.weights.items() if k.startswith(prefix)}
        return {k.removeprefix(prefix): w for k, w in found.items()}

    def middle_unit(
        self,
        graph: Any,
        descriptors: Mapping[str, np.ndarray] | None = None,
        is_masked: np.ndarray | None = None,
    ) -> Tensor:
        """Return the output (N, D) of the middle unit of an oligomer that is long enough.

        Parameters
        ----------
        graph
            PolymerGraph; only atoms, bonds and cell shifts are read.
        descriptors
            Values of the groups that the polymer has.
        is_masked
            (N,) bool, masked atoms of the unit (in every copy).
        """
        config, weights = self.config, self.weights
        copies = copies_needed(graph, config.num_layers * config.max_hops)
        adjacency, size = unroll(graph, copies)
        masked = np.zeros(size, bool) if is_masked is None else is_masked
        atoms = zip(graph.atom_features.tolist(), graph.is_backbone, masked, strict=True)
        unit = torch.tensor([input_row(config, *atom) for atom in atoms], dtype=torch.float32)
        matrix = weights["embedding.linear.weight"]
        x = unit.repeat(copies, 1).to(matrix.dtype) @ matrix.T + weights["embedding.linear.bias"]
        pairs = explicit_pairs(config, weights, x, adjacency)
        for layer in self.layers:
            x = layer_output(config, layer, x, pairs)
        middle = x[size * (copies // 2) : size * (copies // 2 + 1)]
        return fused(config, weights, middle, descriptors or {})


def explicit_pairs(
    config: Any, weights: dict[str, Tensor], x0: Tensor, adjacency: list[dict[int, int]]
) -> list[tuple[list[int], Tensor]]:
    """Return for every atom the atoms that it attends to, and their biases (atoms, B)."""
    path_weight = weights["bias.path.weight"]
    num_positions = config.max_hops + 1
    scores = (x0 @ path_weight.T).view(len(x0), num_positions, -1).tolist()
    distance = weights["bias.distance"].tolist()
    bond = weights["bias.bond"].tolist() if config.bond_path_bias else []

    def path_bias(path: list[int], b: int) -> float:
        hops = len(path) - 1
        bias = distance[hops][b]
        bias += sum(scores[atom][k][b] for k, atom in enumerate(path)) / len(path)
        if bond and hops:
            types = [adjacency[path[k]][path[k + 1]] for k in range(hops)]
            bias += sum(bond[k][bond_type][b] for k, bond_type in enumerate(types)) / hops
        return bias

    result = []
    for query in range(len(adjacency)):
        near = distances(adjacency, query, config.max_hops)
        biases = []
        for key, hops in near.items():
            paths = shortest_paths(adjacency, key, query, hops)
            per_path = [[path_bias(path, b) for b in range(len(distance[0]))] for path in paths]
            biases.append([sum(column) / len(paths) for column in zip(*per_path, strict=True)])
        result.append((list(near), torch.tensor(biases, dtype=x0.dtype)))
    return result


def layer_output(
    config: Any, w: dict[str, Tensor], x: Tensor, pairs: list[tuple[list[int], Tensor]]
) -> Tensor:
    """Return the atoms after one layer."""

    def norm(name: str, value: Tensor) -> Tensor:
        return F.layer_norm(value, value.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])

    def linear(name: str, value: Tensor) -> Tensor:
        return value @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    head_dim = config.hidden_dim // config.num_heads
    scale = 1 / math.sqrt(config.hidden_dim if config.logit_scale == "model" else head_dim)

    def attend(value: Tensor) -> Tensor:
        qkv = linear("attention.qkv", value).view(len(x), 3, config.num_heads, head_dim)
        mixed = []
        for query, (keys, biases) in enumerate(pairs):
            logits = (qkv[keys, 1] * qkv[query, 0]).sum(-1) * scale + biases
            mixed.append((logits.softmax(0)[:, :, None] * qkv[keys, 2]).sum(0).flatten())
        return linear("attention.out", torch.stack(mixed))

    def feed_forward(value: Tensor) -> Tensor:
        return linear("narrow", ACTIVATIONS[config.activation](linear("widen", value)))

    if config.norm == "pre":
        x = x + attend(norm("attention_norm", x))
        return x + feed_forward(norm("ffn_norm", x))
    x = norm("attention_norm", x + attend(x))
    return norm("ffn_norm", x + feed_forward(x))


def fused(
    config: Any, weights: dict[str, Tensor], x: Tensor, descriptors: Mapping[str, np.ndarray]
) -> Tensor:
    """Return the atoms after cross-attention to the groups that the polymer has."""
    present = [name for name in config.descriptors if name in descriptors]
    if not present:
        return x
    values = {name: torch.tensor(np.asarray(descriptors[name]), dtype=x.dtype) for name in present}
    keys = torch.stack([weights[f"fusion.key.{n}.weight"] @ values[n] for n in present])
    tokens = torch.stack(
        [
            weights[f"fusion.value.{n}.weight"] @ values[n] + weights[f"fusion.value.{n}.bias"]
            for n in present
        ]
    )
    queries = x @ weights["fusion.query.weight"].T / math.sqrt(config.hidden_dim)
    return x + 0.5 * (queries @ keys.T).softmax(-1) @ tokens
