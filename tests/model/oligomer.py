"""The reference of `tests.model.reference` with flat index arrays, quick enough for every polymer.

Still an explicit oligomer, plain search and a sparse softmax over explicit pairs; only the loops
over heads and pairs are index operations.
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tests.model.reference import (
    ACTIVATIONS,
    copies_needed,
    distances,
    input_row,
    shortest_paths,
    unroll,
)


class OligomerReference:
    """Outputs of a model's encoder on the middle unit of long oligomers (topology only)."""

    def __init__(self, model: Any) -> None:
        self.config = model.config
        self.weights = {
            name.removeprefix("encoder."): value.detach()
            for name, value in model.state_dict().items()
            if name.startswith("encoder.")
        }
        assert not self.config.descriptors

    def middle_unit(self, graph: Any) -> Tensor:
        """Return (N, D)."""
        config, weights = self.config, self.weights
        copies = copies_needed(graph, config.num_layers * config.max_hops)
        adjacency, size = unroll(graph, copies)
        unit = [
            input_row(config, features, backbone, masked=False)
            for features, backbone in zip(
                graph.atom_features.tolist(), graph.is_backbone.tolist(), strict=True
            )
        ]
        dtype = weights["embedding.linear.weight"].dtype
        rows = torch.tensor(unit * copies, dtype=dtype)
        x = F.linear(rows, weights["embedding.linear.weight"], weights["embedding.linear.bias"])
        query, key, bias = self._pairs(x, adjacency)
        for layer in range(config.num_layers):
            x = self._layer(f"layers.{layer}.", x, query, key, bias)
        return x[size * (copies // 2) : size * (copies // 2 + 1)]

    def _pairs(self, x0: Tensor, adjacency: list[dict[int, int]]) -> tuple[Tensor, Tensor, Tensor]:
        """Return query and key atom of each explicit pair (P,), and its biases (P, B)."""
        positions = self.config.max_hops + 1
        path_weight = self.weights["bias.path.weight"]
        num_biases = path_weight.shape[0] // positions
        scores = (x0 @ path_weight.T).view(-1, num_biases)
        pairs: list[tuple[int, int, int]] = []
        atoms: list[tuple[int, int, float]] = []  # pair, row of scores, weight
        bonds: list[tuple[int, int, int, float]] = []  # pair, position, type, weight
        for query in range(len(adjacency)):
            for key, hops in distances(adjacency, query, self.config.max_hops).items():
                paths = shortest_paths(adjacency, key, query, hops)
                for path in paths:
                    share = 1 / len(paths)
                    for k, atom in enumerate(path):
                        atoms.append((len(pairs), atom * positions + k, share / (hops + 1)))
                    for k in range(hops):
                        bond = adjacency[path[k]][path[k + 1]]
                        bonds.append((len(pairs), k, bond, share / hops))
                pairs.append((query, key, hops))
        query, key, hops = torch.tensor(pairs).T
        bias = self.weights["bias.distance"][hops]
        pair, row, share = zip(*atoms, strict=True)
        terms = scores[list(row)] * torch.tensor(share, dtype=x0.dtype)[:, None]
        bias = bias.index_add(0, torch.tensor(pair), terms)
        if self.config.bond_path_bias:
            pair, position, kind, share = zip(*bonds, strict=True)
            scalars = self.weights["bias.bond"][list(position), list(kind)]
            terms = scalars * torch.tensor(share, dtype=x0.dtype)[:, None]
            bias = bias.index_add(0, torch.tensor(pair), terms)
        return query, key, bias

    def _layer(self, prefix: str, x: Tensor, query: Tensor, key: Tensor, bias: Tensor) -> Tensor:
        config = self.config
        w = {k.removeprefix(prefix): v for k, v in self.weights.items() if k.startswith(prefix)}

        def norm(name: str, value: Tensor) -> Tensor:
            return F.layer_norm(value, value.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])

        def linear(name: str, value: Tensor) -> Tensor:
            return value @ w[f"{name}.weight"].T + w[f"{name}.bias"]

        def attend(value: Tensor) -> Tensor:
            q, k, v = linear("attention.qkv", value).view(len(x), 3, config.num_heads, -1).unbind(1)
            head_dim = q.shape[-1]
            scaled_dim = config.hidden_dim if config.logit_scale == "model" else head_dim
            logits = (q[query] * k[key]).sum(-1) / scaled_dim**0.5 + bias
            weight = logits.exp()
            total = torch.zeros(len(x), config.num_heads, dtype=x.dtype).index_add(0, query, weight)
            share = weight / total[query]
            mixed = torch.zeros_like(q).index_add(0, query, share[:, :, None] * v[key])
            return linear("attention.out", mixed.flatten(1))

        def feed_forward(value: Tensor) -> Tensor:
            return linear("narrow", ACTIVATIONS[config.activation](linear("widen", value)))

        if config.norm == "pre":
            x = x + attend(norm("attention_norm", x))
            return x + feed_forward(norm("ffn_norm", x))
        x = norm("attention_norm", x + attend(x))
        return norm("ffn_norm", x + feed_forward(x))
