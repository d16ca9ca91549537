"""Whole-polymer inputs, and their fusion into the atoms by cross-attention.

Legend: G polymers, N atoms, D hidden, K key dim, S descriptor groups.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mips_dist.data.batch import PolymerBatch
from mips_dist.errors import MipsError

# Width of each group that a model can read (chem.descriptors, which the model does not import).
DESCRIPTOR_WIDTHS = {"rdkit_2d": 200, "atom_pair_3d": 512, "bands": 48, "xtb": 32}

RESIDUAL_WEIGHT = 0.5  # the released model's


class DescriptorFusion(nn.Module):
    """Every atom attends to its polymer's descriptor groups, one token per group.

    key_g = K_g f_g, value_g = V_g f_g + c_g, q_i = W_q x_i / sqrt(D);
    x_i += 0.5 * sum over g of softmax_g(q_i . key_g) value_g. One head, no normalisation.
    A group that a polymer does not have takes no part; with no group, x is unchanged.

    Parameters
    ----------
    hidden_dim
        D; the keys have a quarter of it.
    groups
        Names of the descriptor groups, at least one.
    """

    def __init__(self, hidden_dim: int, groups: Sequence[str]) -> None:
        super().__init__()
        self.groups = tuple(groups)
        self.scale = hidden_dim**-0.5
        self.query = nn.Linear(hidden_dim, hidden_dim // 4, bias=False)
        self.key = nn.ModuleDict()
        self.value = nn.ModuleDict()
        for name in self.groups:
            width = DESCRIPTOR_WIDTHS[name]
            self.key[name] = nn.Linear(width, hidden_dim // 4, bias=False)
            self.value[name] = nn.Linear(width, hidden_dim)

    def forward(self, x_ND: Tensor, batch: PolymerBatch, atoms: Tensor | None = None) -> Tensor:
        """Return x (N, D) with the polymer's descriptors added; ``atoms`` says which x has.

        Parameters
        ----------
        x_ND
            Vectors of all atoms, or of some.
        batch
            The polymers.
        atoms
            (N,) atoms that x has, where these are not all.
        """
        polymer = batch.batch_index if atoms is None else batch.batch_index.index_select(0, atoms)
        valid_GS = torch.stack([batch.descriptor_valid[name] for name in self.groups], dim=1)
        keys, values = [], []
        for name in self.groups:
            features = batch.descriptors[name].to(x_ND.dtype)
            # What stands in an absent row has no meaning, and 0 * nan would be nan.
            features = features.masked_fill(~batch.descriptor_valid[name][:, None], 0.0)
            keys.append(self.key[name](features))
            values.append(self.value[name](features))
        # In fp32, as gradients of a polymer's atoms are added up here.
        wide = torch.promote_types(x_ND.dtype, torch.float32)
        query_NK = self.query(x_ND).to(wide) * self.scale
        key_NSK = torch.stack(keys, dim=1).to(wide).index_select(0, polymer)
        valid_NS = valid_GS.index_select(0, polymer)
        scores = (query_NK[:, None, :] * key_NSK).sum(-1)
        # The lowest finite number and not -inf: a polymer without any group has a finite softmax,
        # which the product with its validity then makes zero.
        scores = scores.masked_fill(~valid_NS, torch.finfo(scores.dtype).min)
        weights_NS = scores.softmax(-1) * valid_NS
        value_NSD = torch.stack(values, dim=1).to(wide).index_select(0, polymer)
        fused = (weights_NS[:, :, None] * value_NSD).sum(1)
        return (x_ND + RESIDUAL_WEIGHT * fused).to(x_ND.dtype)


def check_descriptors(batch: PolymerBatch, groups: Sequence[str]) -> None:
    """Raise MipsError where the batch lacks a group altogether: the shards were made without it."""
    missing = [name for name in groups if name not in batch.descriptors]
    if missing:
        raise MipsError(
            f"the shards have no descriptor group {', '.join(missing)}, which the model reads; "
            "preprocess with content=full or choose model.descriptors=[]"
        )
