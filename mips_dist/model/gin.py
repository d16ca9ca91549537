"""The paper's GIN baseline (3 layers of 512), by torch-geometric, on the exact quotient graph.

Legend: G polymers, N atoms, D hidden, T targets.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch_geometric.nn import GINConv, global_mean_pool

from mips_dist.data.batch import PolymerBatch
from mips_dist.model.embedding import AtomEmbedding


@dataclass(kw_only=True, slots=True)
class GinConfig:
    """Sizes of the baseline; the defaults are the paper's.

    Attributes
    ----------
    hidden_dim, num_layers
        Width and number of message-passing layers.
    dropout
        Probability of dropping an entry after each layer.
    backbone_embedding, ring_embedding
        As in `mips_dist.model.mips.MipsConfig`.
    """

    hidden_dim: int = 512
    num_layers: int = 3
    dropout: float = 0.0
    backbone_embedding: bool = True
    ring_embedding: bool = True

    def __post_init__(self) -> None:
        for name in ("hidden_dim", "num_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"gin.{name}={getattr(self, name)} must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"gin.dropout={self.dropout} must be in [0, 1)")


class GinModel(nn.Module):
    """Graph isomorphism network: sum over neighbours, mean over atoms, two-layer head.

    The neighbours of an atom are those of the infinite chain, so parallel edges and self-loops of
    the quotient each bring a message.

    Parameters
    ----------
    config
        Sizes.
    num_targets
        T.
    """

    def __init__(self, config: GinConfig, num_targets: int = 1) -> None:
        super().__init__()
        width = config.hidden_dim
        self.config = config
        self.embedding = AtomEmbedding(width, config.backbone_embedding, config.ring_embedding)
        self.layers = nn.ModuleList(
            GINConv(
                nn.Sequential(
                    nn.Linear(width, width),
                    nn.BatchNorm1d(width),
                    nn.ReLU(),
                    nn.Linear(width, width),
                ),
                train_eps=True,
            )
            for _ in range(config.num_layers)
        )
        self.activation = nn.Sequential(nn.ReLU(), nn.Dropout(config.dropout))
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, num_targets))

    def encode(self, batch: PolymerBatch) -> Tensor:
        """Return the atom vectors (N, D)."""
        edge_index = batch_edges(batch)
        x_ND = self.embedding(batch)
        for layer in self.layers:
            x_ND = self.activation(layer(x_ND, edge_index))
        return x_ND

    def forward(self, batch: PolymerBatch) -> Tensor:
        """Return predictions (G, T) in units of the targets' standard deviation."""
        pooled = global_mean_pool(self.encode(batch), batch.batch_index, batch.num_graphs)
        return self.head(pooled)


def initial_gin(config: GinConfig, seed: int) -> GinModel:
    """Return a model with random weights, a function of the seed alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return GinModel(config).eval()


def batch_edges(batch: PolymerBatch) -> Tensor:
    """Return the bonds of the batch, each in both directions (2, 2 B): neighbour, atom.

    A pair one hop apart is a bond of the infinite chain, so the pairs already hold them all.
    """
    is_bond = batch.pair_hops == 1
    return torch.stack([batch.pair_key[is_bond], batch.pair_query[is_bond]]).long()
