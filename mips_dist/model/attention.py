"""Exact localized attention on the infinite chain, as dense attention inside packs.

An atom attends to every image (j, c) of every atom within `max_hops` bonds of the infinite chain.
All images of one atom j share key and value, so their biases b_c act together like the single
bias logsumexp over c of b_c: one dense matrix over the atoms of the unit is the whole attention.
(With dropout on the attention weights the images of one atom are dropped together; on the chain
they would be dropped one by one. Only in training, and only there, do the two differ.)

Legend: N atoms, P pairs, C cells, D hidden, H heads, K head dim, B biases of a pair (1, or H where
heads have their own), T pack size, X packs.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from mips_dist.data.batch import DEFAULT_PACK_SIZE, PolymerBatch
from mips_dist.model.dropout import dropout
from mips_dist.model.rows import select_distinct

NUM_BOND_TYPES = 5  # chem.graph.BOND_TYPES


class OpenLinear(nn.Linear):
    """A linear map whose bias may be left to who takes its outputs."""

    def forward(self, x: Tensor, is_apart: bool = False) -> Any:
        """Return the mapped rows; or ``is_apart`` without the bias, and the bias."""
        if is_apart:
            return F.linear(x, self.weight), self.bias.clone()  # ZeRO-3 takes the weights back
        return super().forward(x)


class WideLinear(nn.Linear):
    """A linear map computed in fp32 or better, whatever the dtype of its weights."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the mapped rows, in fp32 or better."""
        wide = torch.promote_types(x.dtype, torch.float32)
        if torch.compiler.is_compiling():
            # For the few outputs here a product of fp32 matrices writes and reads wide copies of x
            # and of its gradient; sums are taken where x is read anyway.
            return (x.to(wide)[:, None, :] * self.weight.to(wide)).sum(-1)
        return F.linear(x.to(wide), self.weight.to(wide))


class PairBias(nn.Module):
    """The attention biases, made once from x0 and shared by all layers.

    bias(i, j, c) = e[hops] + 1 / (hops + 1) * sum over k of w_k . x0[p_k] for the path p_0..p_hops
    from the attended atom (p_0 = j) to the attending one (p_hops = i); where shortest paths tie,
    the mean over all of them. The optional bond term is the mean over the path of one learned
    scalar for each (position, bond type).

    Parameters
    ----------
    hidden_dim
        D.
    max_hops
        Radius of attention in bonds.
    num_biases
        B, 1 where all heads share the biases.
    bond_path_bias
        Whether the bond types along the path count.
    """

    def __init__(
        self, hidden_dim: int, max_hops: int, num_biases: int, bond_path_bias: bool
    ) -> None:
        super().__init__()
        self.num_biases = num_biases
        num_positions = max_hops + 1
        self.distance = nn.Parameter(torch.zeros(num_positions, num_biases))
        self.path = WideLinear(hidden_dim, num_positions * num_biases, bias=False)
        self.bond = None
        if bond_path_bias:
            self.bond = nn.Parameter(torch.zeros(max_hops, NUM_BOND_TYPES, num_biases))

    def forward(self, x0_ND: Tensor, batch: PolymerBatch) -> Tensor:
        """Return dense biases (X, B, T, T) in fp32 or better; -inf where nothing is attended."""
        with torch.autocast(x0_ND.device.type, enabled=False):
            return pack_biases(collapse(self.pairs(x0_ND, batch), batch), batch)

    def pairs(self, x0_ND: Tensor, batch: PolymerBatch) -> Tensor:
        """Return the bias of every pair of the infinite chain (P, B), in fp32 or better."""
        hops = batch.pair_hops
        # Score of an atom at a position of a path: flat row atom * num_positions + position.
        scores = self.path(x0_ND).view(-1, self.num_biases)
        num_positions = len(self.distance)

        def score(atom: Tensor, position: Tensor) -> Tensor:
            return scores.index_select(0, atom * num_positions + position)

        total = score(batch.pair_key, torch.zeros_like(hops))
        # A path of no bonds is one atom: it counts once.
        total = total + score(batch.pair_query, hops) * (hops > 0)[:, None]
        # The batch counts positions from the query.
        position = hops.index_select(0, batch.path_pair) - batch.path_position
        interior = score(batch.path_atom, position) * batch.path_weight[:, None]
        total = total.index_add(0, batch.path_pair, interior.to(total.dtype))
        bias = total / (hops + 1)[:, None]
        for number, distance in enumerate(self.distance.to(total.dtype)):
            # Picked by index, a hundred thousand gradients would be added to one place, in turns.
            bias = bias + torch.where((hops == number)[:, None], distance, 0.0)
        if self.bond is not None:
            bias = bias + self._bond_term(self.bond.to(bias.dtype), batch)
        return bias

    def _bond_term(self, bond: Tensor, batch: PolymerBatch) -> Tensor:
        assert batch.path_bond_pair is not None, "the block was read without bonds"
        assert batch.path_bond_position is not None
        assert batch.path_bond_type is not None
        assert batch.path_bond_weight is not None
        hops = batch.pair_hops
        position = hops[batch.path_bond_pair] - batch.path_bond_position
        share = batch.path_bond_weight / hops[batch.path_bond_pair]
        scalars = bond.flatten(0, 1)[position * NUM_BOND_TYPES + batch.path_bond_type]
        zero = torch.zeros(len(hops), self.num_biases, dtype=bond.dtype, device=bond.device)
        return zero.index_add(0, batch.path_bond_pair, scalars * share[:, None].to(bond.dtype))


def collapse(bias_PB: Tensor, batch: PolymerBatch) -> Tensor:
    """Join the biases of all images of one (i, j) by logsumexp.

    Parameters
    ----------
    bias_PB
        (P, B) floating.

    Returns
    -------
    (C, B), same dtype.
    """
    num_cells = len(batch.cell_slot)
    index = batch.pair_cell[:, None].expand_as(bias_PB)
    # The maximum only keeps exp in range; it cancels, so no gradient goes through it.
    top = bias_PB.new_full((num_cells, bias_PB.shape[1]), -torch.inf)
    top = top.scatter_reduce(0, index, bias_PB.detach(), "amax")
    shifted = (bias_PB - top.index_select(0, batch.pair_cell)).exp()
    return torch.zeros_like(top).index_add(0, batch.pair_cell, shifted).log() + top


def pack_biases(bias_CB: Tensor, batch: PolymerBatch) -> Tensor:
    """Lay the biases of the cells (C, B) out as dense matrices (X, B, T, T)."""
    num_packs, size, num_biases = batch.num_packs, batch.pack_size, bias_CB.shape[1]
    dense = bias_CB.new_full((num_packs, size, size, num_biases), -torch.inf)
    # Padding attends to itself: a row of -inf alone has no softmax. Atoms overwrite their diagonal.
    dense.diagonal(dim1=1, dim2=2).zero_()
    dense = dense.view(-1, num_biases).index_copy(0, batch.cell_slot, bias_CB)
    return dense.view(num_packs, size, size, num_biases).permute(0, 3, 1, 2)


class LocalAttention(nn.Module):
    """Multi-head attention with given biases; the linear maps run on atoms or whole packs.

    Parameters
    ----------
    hidden_dim, num_heads
        D, H.
    scale
        Factor on q . k.
    dropout
        Probability of dropping an attention weight in training.

    Attributes
    ----------
    is_fused
        Whether softmax and both products are one kernel, for GPUs: biases are rounded to the type
        of the products.
    tile_kernel
        `model.pack_attention`'s, in training on a GPU for packs that are its tile; it takes biases
        that are contiguous.
    """

    def __init__(self, hidden_dim: int, num_heads: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = scale
        self.dropout = dropout
        self.is_fused = False
        self.tile_kernel: Callable[..., Tensor] | None = None
        self.qkv = OpenLinear(hidden_dim, 3 * hidden_dim)
        self.out = nn.Linear(hidden_dim, hidden_dim)

    def forward(
        self,
        x: Tensor,
        bias_XBTT: Tensor,
        token_slot: Tensor | None,
        wanted: Tensor | None = None,
        seed: Tensor | None = None,
    ) -> Tensor:
        """Return the attended values of all rows, or of the wanted ones.

        Parameters
        ----------
        x
            Atoms (N, D); or whole packs (X, T, D), padding included.
        bias_XBTT
            From `PairBias`.
        token_slot
            (N,) slot of each atom; None where x is packs.
        wanted
            (M,) distinct atoms, or flat slots, to return, where not all are needed.
        seed
            () int32 for the dropout of the fused kernel.

        Returns
        -------
        The shape of x, or (M, D).
        """
        num_packs, size = bias_XBTT.shape[0], bias_XBTT.shape[2]
        shape = num_packs, size, 3, self.num_heads, -1
        probability = self.dropout if self.training else 0.0
        if self.tile_kernel is not None and seed is not None and self._fits(size, x):
            products, bias = self.qkv(x, is_apart=True)
            inputs = products.view(shape), bias, bias_XBTT, seed
            mixed_XTD = self.tile_kernel(*inputs, self.scale, probability)
        else:
            packed = self.qkv(x)
            if token_slot is not None:
                slots = packed.new_zeros(num_packs * size, packed.shape[1])
                packed = slots.index_copy(0, token_slot, packed)
            mixed_XTD = self._mix(packed.view(shape), bias_XBTT, probability)
        if token_slot is not None:
            wanted = token_slot if wanted is None else token_slot.index_select(0, wanted)
        if wanted is not None:
            mixed_XTD = select_distinct(mixed_XTD.flatten(0, 1), wanted)
        return self.out(mixed_XTD)

    def _mix(self, qkv_XT3HK: Tensor, bias: Tensor, probability: float) -> Tensor:
        """Return softmax(q . k + bias) v, heads side by side (X, T, D)."""
        q, k, v = qkv_XT3HK.permute(2, 0, 3, 1, 4).unbind(0)  # (X, H, T, K)
        if self.is_fused:
            # One kernel, in which the heads share the biases without copies of them.
            shared = bias.to(q.dtype).expand(-1, self.num_heads, -1, -1)
            mixed = F.scaled_dot_product_attention(
                q, k, v, attn_mask=shared, dropout_p=probability, scale=self.scale
            )
        else:
            # Scaled before the product, so that fp16 does not overflow; softmax in the biases'
            # fp32.
            logits = (q * self.scale) @ k.transpose(-1, -2) + bias
            mixed = dropout(logits.softmax(-1).to(v.dtype), probability, self.training) @ v
        return mixed.transpose(1, 2).flatten(2)

    def _fits(self, size: int, x: Tensor) -> bool:
        """Whether a pack is a tile of the kernel; larger ones hold a polymer beyond its size.

        The kernel has the heads' tiles in the memory of one multiprocessor, 99 KiB on many GPUs.
        """
        head_dim = self.qkv.in_features // self.num_heads
        known = (16, 32, 64, 128) if x.element_size() == 2 else (16, 32)
        return size == DEFAULT_PACK_SIZE and head_dim in known
