"""The MIPS model: topology encoder, descriptor fusion, and one head for each task.

Legend: G polymers, N atoms, M masked atoms, D hidden, T targets; X, B: see `attention`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mips_dist.data.batch import PolymerBatch
from mips_dist.model.attention import LocalAttention, OpenLinear, PairBias
from mips_dist.model.dropout import dropout
from mips_dist.model.embedding import NUM_ATOM_CLASSES, AtomEmbedding
from mips_dist.model.rows import select_distinct
from mips_dist.model.spatial import DESCRIPTOR_WIDTHS, DescriptorFusion, check_descriptors

NUM_SEEDS = 4  # of the places in a layer that drop
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu}


@dataclass(kw_only=True, slots=True)
class MipsConfig:
    """Sizes and switches of the model; the defaults are the paper's (preset base).

    Attributes
    ----------
    hidden_dim, num_layers, num_heads, ffn_dim
        Width of an atom's vector, layers, attention heads, width inside the feed-forward part.
    dropout
        Probability, at every place where the paper drops.
    max_hops
        Radius of attention in bonds of the infinite chain; the shards must have the same.
    descriptors
        Whole-polymer groups fused after the last layer; empty: topology only.
    num_conformers, conformer_backend
        Conformers that descriptor groups are made of; the shards must have the same.
    backbone_embedding, ring_embedding
        Whether an atom's place in the backbone and its smallest ring are inputs.
    logit_scale
        "model": q . k times hidden_dim ** -0.5, as released; "head": head_dim ** -0.5.
    per_head_bias
        Whether each head has its own distance and path biases.
    bond_path_bias
        Whether the bond types along the path add to the bias.
    norm
        "pre": normalise before each part, as released; "post": after it, as in the paper's text.
    activation
        "gelu", as released, or "relu", as in the paper's text; of the layers and the head.
    head
        Of a property model: "mlp", two layers, as released; "linear", under which the shares of
        atoms and fragments in a prediction are exact. Pre-training always has two layers.
    """

    hidden_dim: int = 512
    num_layers: int = 6
    num_heads: int = 8
    ffn_dim: int = 2048
    dropout: float = 0.1
    max_hops: int = 2
    descriptors: list[str] = field(default_factory=lambda: ["rdkit_2d", "atom_pair_3d"])
    num_conformers: int = 1
    conformer_backend: str = "rdkit"
    backbone_embedding: bool = True
    ring_embedding: bool = True
    logit_scale: str = "model"
    per_head_bias: bool = False
    bond_path_bias: bool = False
    norm: str = "pre"
    activation: str = "gelu"
    head: str = "mlp"

    def __post_init__(self) -> None:
        for name in (
            "hidden_dim",
            "num_layers",
            "num_heads",
            "ffn_dim",
            "max_hops",
            "num_conformers",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name}={getattr(self, name)} must be at least 1")
        if self.hidden_dim % self.num_heads:
            raise ValueError(
                f"model.hidden_dim={self.hidden_dim} is no multiple of "
                f"model.num_heads={self.num_heads}"
            )
        if self.descriptors and self.hidden_dim % 4:
            raise ValueError(f"model.hidden_dim={self.hidden_dim} is no multiple of 4")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout={self.dropout} must be in [0, 1)")
        _check_choice("conformer_backend", self.conformer_backend, ("rdkit", "nvmolkit"))
        _check_choice("logit_scale", self.logit_scale, ("model", "head"))
        _check_choice("norm", self.norm, ("pre", "post"))
        _check_choice("activation", self.activation, tuple(ACTIVATIONS))
        _check_choice("head", self.head, ("mlp", "linear"))
        for name in self.descriptors:
            _check_choice("descriptors", name, tuple(DESCRIPTOR_WIDTHS))
        if len(set(self.descriptors)) < len(self.descriptors):
            raise ValueError(f"model.descriptors={self.descriptors} names a group twice")


def _check_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"model.{key}={value} must be one of {', '.join(choices)}")


class Layer(nn.Module):
    """One transformer layer: attention and a feed-forward part, each with a residual.

    Attributes
    ----------
    gelu_kernel
        `model.gelu_dropout`'s, in training on a GPU.
    """

    gelu_kernel: Callable[..., Tensor] | None = None

    def __init__(self, config: MipsConfig) -> None:
        super().__init__()
        width = config.hidden_dim
        scaled_dim = width if config.logit_scale == "model" else width // config.num_heads
        self.is_pre_norm = config.norm == "pre"
        self.dropout = config.dropout
        self.activation = ACTIVATIONS[config.activation]
        self.has_gelu = config.activation == "gelu" and config.ffn_dim % 2 == 0
        self.attention = LocalAttention(width, config.num_heads, scaled_dim**-0.5, config.dropout)
        self.attention_norm = nn.LayerNorm(width)
        self.widen = OpenLinear(width, config.ffn_dim)
        self.narrow = nn.Linear(config.ffn_dim, width)
        self.ffn_norm = nn.LayerNorm(width)

    def forward(
        self,
        x: Tensor,
        bias_XBTT: Tensor,
        token_slot: Tensor | None,
        wanted: Tensor | None = None,
        seeds: Tensor | None = None,
    ) -> Tensor:
        """Return the rows after the layer, all of them or the wanted ones; see `LocalAttention`.

        Parameters
        ----------
        x, bias_XBTT, token_slot, wanted
            As for `LocalAttention`.
        seeds
            (4,) int32 for the dropout of compiled layers.
        """
        seed = [None] * NUM_SEEDS if seeds is None else seeds.unbind()
        normed = self.attention_norm(x) if self.is_pre_norm else x
        attended = self.attention(normed, bias_XBTT, token_slot, wanted, seed[0])
        if wanted is not None:
            x = select_distinct(x.flatten(0, -2), wanted)
        x = x + self._drop(attended, seed[1])
        if self.is_pre_norm:
            return x + self._feed_forward(self.ffn_norm(x), seed[2], seed[3])
        x = self.attention_norm(x)
        return self.ffn_norm(x + self._feed_forward(x, seed[2], seed[3]))

    def _feed_forward(self, x: Tensor, inner: Tensor | None, outer: Tensor | None) -> Tensor:
        if self.gelu_kernel is not None and self.has_gelu and self.training and inner is not None:
            products, bias = self.widen(x, is_apart=True)
            rows = products.view(-1, products.shape[-1])
            hidden = self.gelu_kernel(rows, bias, inner, self.dropout).view(products.shape)
        else:
            hidden = self._drop(self.activation(self.widen(x)), inner)
        return self._drop(self.narrow(hidden), outer)

    def _drop(self, x: Tensor, seed: Tensor | None) -> Tensor:
        return dropout(x, self.dropout, self.training, seed)


class MipsEncoder(nn.Module):
    """Polymers to atom vectors. As in the paper, nothing is normalised after the last layer.

    Attributes
    ----------
    recomputes_layers
        Whether a layer keeps its input only and is computed again in the backward pass, dropout
        included: less memory in training, the same bits.
    """

    recomputes_layers = False

    def __init__(self, config: MipsConfig) -> None:
        super().__init__()
        self.embedding = AtomEmbedding(
            config.hidden_dim, config.backbone_embedding, config.ring_embedding
        )
        self.bias = PairBias(
            config.hidden_dim,
            config.max_hops,
            config.num_heads if config.per_head_bias else 1,
            config.bond_path_bias,
        )
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        groups = config.descriptors
        self.fusion = DescriptorFusion(config.hidden_dim, groups) if groups else None
        self._runs_packed = False
        self._train_layers: Callable[..., Tensor] = _run_layers

    def run_packed(self, is_compiled: bool) -> None:
        """Let the layers run on whole packs with one kernel for attention, as a GPU wants them.

        Every shape but the number of packs is then constant. Outputs are the same up to rounding;
        padding is computed too, and thrown away.

        Parameters
        ----------
        is_compiled
            Whether the layers are compiled for training, all of them as one.
        """
        self._runs_packed = True
        on_gpu = torch.cuda.is_available()
        tile_kernel, gelu_kernel = _import_kernels() if on_gpu else (None, None)
        for layer in self.layers:
            assert isinstance(layer, Layer)
            layer.attention.is_fused = True
            layer.attention.tile_kernel = tile_kernel
            layer.gelu_kernel = gelu_kernel
        if is_compiled:
            self._train_layers = torch.compile(_run_layers)

    def forward(self, batch: PolymerBatch, atoms: Tensor | None = None) -> Tensor:
        """Return the vectors of all atoms (N, D), or of the given ones.

        Parameters
        ----------
        batch
            The polymers.
        atoms
            (M,) long, distinct atoms whose vectors are wanted; the last layer does no more than
            these need.
        """
        rows = self.embedding(batch)
        bias_XBTT = self.bias(rows, batch)
        token_slot: Tensor | None = batch.token_slot
        wanted = atoms
        if self._runs_packed:
            slots = rows.new_zeros(batch.num_packs * batch.pack_size, rows.shape[1])
            rows = slots.index_copy(0, batch.token_slot, rows)
            rows = rows.view(batch.num_packs, batch.pack_size, -1)
            bias_XBTT = bias_XBTT.contiguous()  # once for all layers
            wanted = batch.token_slot if atoms is None else batch.token_slot.index_select(0, atoms)
            token_slot = None
            if not torch.compiler.is_compiling():  # as part of a larger whole, of one shape
                # Else the first shape of each would be compiled for itself.
                for tensor in (rows, bias_XBTT, wanted):
                    torch._dynamo.maybe_mark_dynamic(tensor, 0)
        run = self._train_layers if self.training else _run_layers
        again = self.recomputes_layers and torch.is_grad_enabled()
        seeds = self._seeds(rows.device)
        rows = run(self.layers, rows, bias_XBTT, token_slot, wanted, seeds, again)
        if self.fusion is not None:
            check_descriptors(batch, self.fusion.groups)
            rows = self.fusion(rows, batch, atoms)
        return rows

    def _seeds(self, device: torch.device) -> Tensor | None:
        """Draw the seeds of each layer's dropout, where it takes place on packs."""
        if not (self._runs_packed and self.training):
            return None
        shape = len(self.layers), NUM_SEEDS
        return torch.randint(-(2**31), 2**31, shape, dtype=torch.int32, device=device)


def _import_kernels() -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    # Triton comes with torch for GPUs alone.
    from mips_dist.model.gelu_dropout import gelu_dropout
    from mips_dist.model.pack_attention import pack_attention

    return pack_attention, gelu_dropout


def _run_layers(
    layers: Iterable[nn.Module],
    rows: Tensor,
    bias_XBTT: Tensor,
    token_slot: Tensor | None,
    wanted: Tensor | None,
    seeds: Tensor | None,
    again: bool,
) -> Tensor:
    """Call the layers; the last one returns the wanted rows. ``again``: see `recomputes_layers`."""
    *others, last = layers
    for number, layer in enumerate([*others, last]):
        chosen = wanted if layer is last else None
        inputs = rows, bias_XBTT, token_slot, chosen, None if seeds is None else seeds[number]
        rows = checkpoint(layer, *inputs, use_reentrant=False) if again else layer(*inputs)
    return rows


class Head(nn.Module):
    """Two-layer perceptron on atom or polymer vectors, or its last layer alone."""

    def __init__(self, config: MipsConfig, num_outputs: int, is_linear: bool = False) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.activation = ACTIVATIONS[config.activation]
        width = config.hidden_dim
        self.hidden = None if is_linear else nn.Linear(width, width)
        self.output = nn.Linear(width, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return (rows of x, num_outputs)."""
        if self.hidden is None:
            return self.output(x)
        hidden = self.activation(self.hidden(x))
        return self.output(dropout(hidden, self.dropout, self.training))


class MaskedAtomModel(nn.Module):
    """Pre-training: name the element of each masked atom."""

    def __init__(self, config: MipsConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = MipsEncoder(config)
        self.head = Head(config, NUM_ATOM_CLASSES)

    def encode(self, batch: PolymerBatch) -> Tensor:
        """Return the atom vectors (N, D)."""
        return self.encoder(batch)

    def forward(self, batch: PolymerBatch) -> Tensor:
        """Return logits (M, 101) of the masked atoms, in the order of the atoms."""
        return self.head(self.encoder(batch, batch.masked_atoms()))


class PropertyModel(nn.Module):
    """Fine-tuning: properties of whole polymers, as z-scores."""

    def __init__(self, config: MipsConfig, num_targets: int = 1) -> None:
        super().__init__()
        self.config = config
        self.encoder = MipsEncoder(config)
        self.head = Head(config, num_targets, is_linear=config.head == "linear")

    @classmethod
    def from_pretrained(cls, pretrained: MaskedAtomModel, num_targets: int = 1) -> "PropertyModel":
        """Start from a pre-trained model: all but the output layer is copied, as in the paper."""
        model = cls(pretrained.config, num_targets)
        model.encoder.load_state_dict(pretrained.encoder.state_dict())
        if model.head.hidden is not None and pretrained.head.hidden is not None:
            model.head.hidden.load_state_dict(pretrained.head.hidden.state_dict())
        return model

    def of_target(self, target: int) -> "PropertyModel":
        """Return a copy that predicts one of the properties alone."""
        model = PropertyModel(self.config)
        state = self.state_dict()
        for name in ("head.output.weight", "head.output.bias"):
            state[name] = state[name][target : target + 1]
        model.load_state_dict(state)
        return model.to(state["head.output.bias"].device).train(self.training)

    def encode(self, batch: PolymerBatch) -> Tensor:
        """Return the atom vectors (N, D)."""
        return self.encoder(batch)

    def forward(self, batch: PolymerBatch) -> Tensor:
        """Return predictions (G, T) in units of the targets' standard deviation."""
        return self.head(mean_over_atoms(self.encoder(batch), batch))


def mean_over_atoms(x_ND: Tensor, batch: PolymerBatch) -> Tensor:
    """Return the mean atom vector of each polymer (G, D); sums run in fp32 or better."""
    wide = x_ND.to(torch.promote_types(x_ND.dtype, torch.float32))
    sums = wide.new_zeros(batch.num_graphs, wide.shape[1]).index_add(0, batch.batch_index, wide)
    return (sums / batch.ptr.diff()[:, None]).to(x_ND.dtype)
