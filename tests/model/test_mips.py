"""The whole model: laws L3, L4 and L6 on real polymers, its switches, and that it can learn."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
import yaml

from mips_dist.chem.descriptors import DESCRIPTOR_GROUPS
from mips_dist.chem.features import ATOM_FEATURES
from mips_dist.chem.graph import BOND_TYPES, PolymerGraph, build_graphs
from mips_dist.chem.sample import Sample
from mips_dist.config import configs_dir
from mips_dist.errors import MipsError
from mips_dist.model import embedding
from mips_dist.model.attention import NUM_BOND_TYPES
from mips_dist.model.mips import MaskedAtomModel, MipsConfig, PropertyModel
from mips_dist.model.spatial import DESCRIPTOR_WIDTHS
from tests.model.hand import (
    SMALL,
    batch_of,
    masked_atom_model,
    property_model,
    samples_with_descriptors,
)
from tests.model.reference import OligomerReference

SWITCHES = [
    {"backbone_embedding": False},
    {"ring_embedding": False},
    {"logit_scale": "head"},
    {"per_head_bias": True},
    {"bond_path_bias": True},
    {"norm": "post"},
    {"activation": "relu"},
    {"descriptors": []},
    {"descriptors": ["rdkit_2d"]},
]
ALL_SWITCHES = {"per_head_bias": True, "bond_path_bias": True, "logit_scale": "head"}


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


# L3


@pytest.mark.parametrize("changes", [{}, ALL_SWITCHES, *SWITCHES], ids=str)
def test_quotient_with_descriptors_equals_oligomer(graphs, changes):
    model = property_model(**changes).double()
    samples = samples_with_descriptors(graphs[:12])
    batch = batch_of(samples)
    reference = OligomerReference(model)
    with torch.no_grad():
        outputs = model.encode(batch).split(batch.ptr.diff().tolist())
    for sample, output in zip(samples, outputs, strict=True):
        expected = reference.middle_unit(sample.graph, sample.descriptors)
        assert relative_error(output, expected) < 1e-9, sample.graph.psmiles


def test_masked_quotient_equals_masked_oligomer_six_layers_deep(graphs):
    model = masked_atom_model(num_layers=6, max_hops=3, **ALL_SWITCHES).double()
    deep = build_graphs([g.psmiles for g in graphs[10:18]], max_hops=3)
    batch = batch_of(samples_with_descriptors(deep))
    batch.is_masked = torch.arange(len(batch.atom_features)) % 3 == 0
    reference = OligomerReference(model)
    with torch.no_grad():
        outputs = model.encode(batch).split(batch.ptr.diff().tolist())
    masks = batch.is_masked.split(batch.ptr.diff().tolist())
    for sample, output, mask in zip(samples_with_descriptors(deep), outputs, masks, strict=True):
        expected = reference.middle_unit(sample.graph, sample.descriptors, mask.numpy())
        assert relative_error(output, expected) < 1e-7, sample.graph.psmiles


# L4


# What rounding leaves in fp32 depends on the processor.
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
@pytest.mark.parametrize("pack_size", [None, 32, 64, 128])
def test_batch_equals_one_at_a_time(graphs, pack_size, dtype, limit):
    model = property_model().to(dtype)
    samples = samples_with_descriptors(graphs)
    groups = DESCRIPTOR_GROUPS.values()
    with torch.no_grad():
        alone = torch.cat([model(batch_of([s], None, groups)) for s in samples])
        together = model(batch_of(samples, pack_size))
        backwards = model(batch_of(samples[::-1], pack_size)).flip(0)
    assert relative_error(together, alone) < limit
    assert relative_error(backwards, alone) < limit


def permuted(graph: PolymerGraph, order: np.ndarray) -> PolymerGraph:
    """The same polymer with atom order[k] as atom k."""
    place = np.argsort(order).astype(np.int16)
    pair_index = place[graph.pair_index]
    rows = np.lexsort((graph.pair_shift, graph.pair_hops, *pair_index[::-1]))
    pair_place = np.argsort(rows).astype(np.int32)
    return dataclasses.replace(
        graph,
        atom_features=graph.atom_features[order],
        is_backbone=graph.is_backbone[order],
        edge_index=place[graph.edge_index],
        pair_index=pair_index[:, rows],
        pair_shift=graph.pair_shift[rows],
        pair_hops=graph.pair_hops[rows],
        path_pair=pair_place[graph.path_pair],
        path_atom=place[graph.path_atom],
        path_bond_pair=pair_place[graph.path_bond_pair],
    )


def test_atom_order_is_no_channel(graphs):
    model = property_model(**ALL_SWITCHES).double()
    rng = np.random.default_rng(0)
    orders = [rng.permutation(len(g.is_backbone)) for g in graphs]
    shuffled = [permuted(g, order) for g, order in zip(graphs, orders, strict=True)]
    batch = batch_of(samples_with_descriptors(graphs))
    with torch.no_grad():
        plain = model.encode(batch).split(batch.ptr.diff().tolist())
        moved = model.encode(batch_of(samples_with_descriptors(shuffled)))
    expected = torch.cat([x[order] for x, order in zip(plain, orders, strict=True)])
    assert relative_error(moved, expected) < 1e-12


# L6


def test_masked_atoms_are_hidden(graphs):
    model = masked_atom_model(bond_path_bias=True, descriptors=[])
    batch = batch_of([Sample(g) for g in graphs])
    batch.is_masked = torch.arange(len(batch.atom_features)) % 3 == 0
    with torch.no_grad():
        before = model(batch)
        batch.atom_features[batch.is_masked] = 1
        batch.is_backbone[batch.is_masked] ^= True
        after = model(batch)
        batch.is_masked[1] = True
        rows = model.encoder.embedding.rows(batch)
    assert before.shape == (int(batch.is_masked.sum()) - 1, 101)
    assert torch.equal(before, after)
    assert len(rows[batch.is_masked].unique(dim=0)) == 1


def test_logits_stand_in_the_order_of_the_atoms(graphs):
    model = masked_atom_model(descriptors=[])
    batch = batch_of([Sample(g) for g in graphs])
    batch.is_masked = torch.arange(len(batch.atom_features)) % 4 == 0
    with torch.no_grad():
        expected = model.head(model.encode(batch))[batch.is_masked]
        torch.testing.assert_close(model(batch), expected)


# Inputs


def test_feature_columns_agree_with_chemistry():
    names = ("ELEMENT", "DEGREE", "CHARGE", "RADICALS", "HYBRIDIZATION")
    names += ("AROMATIC", "HYDROGENS", "RING", "ISOTOPE")
    chemistry = ("atomic_number", "degree", "charge", "radical_electrons", "hybridization")
    chemistry += ("is_aromatic", "num_hydrogens", "ring_size", "isotope")
    assert chemistry == ATOM_FEATURES
    assert [getattr(embedding, name) for name in names] == list(range(9))
    assert {n: g.width for n, g in DESCRIPTOR_GROUPS.items()} == DESCRIPTOR_WIDTHS
    assert len(BOND_TYPES) == NUM_BOND_TYPES


def test_atom_classes_take_every_element():
    atoms = torch.zeros(4, 9, dtype=torch.long)
    atoms[:, 0] = torch.tensor([1, 100, 101, 118])
    assert embedding.atom_class(atoms).tolist() == [0, 99, 100, 100]


def test_every_column_of_an_atom_counts(graphs):
    batch = batch_of([Sample(graphs[-1])])
    rows = embedding.AtomEmbedding(8, True, True).rows
    before = rows(batch)
    for column in range(9):
        changed = batch_of([Sample(graphs[-1])])
        changed.atom_features[:, column] += 1
        assert not torch.equal(rows(changed), before), ATOM_FEATURES[column]


# Configuration


def test_presets_and_parameter_counts():
    counts = {}
    for path in sorted((configs_dir() / "model").glob("*.yaml")):
        config = MipsConfig(**yaml.safe_load(Path(path).read_text(encoding="utf-8")))
        with torch.device("meta"):
            model = MaskedAtomModel(config)
        counts[path.stem] = sum(p.numel() for p in model.parameters())
    # The paper's 19,823,208, and 20 input columns of 512: 21 ring sizes, the backbone, the masked
    # atom, less 3 for chirality (stereo marks are dropped). The paper's backbone has a column of an
    # unused element, and its masked row is zero.
    assert counts == {
        "debug": 179_112,
        "small": 1_358_056,
        "base": 19_823_208 + 20 * 512,
        "large": 153_648_232,
        "xl": 1_014_773_864,
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_heads", 3),
        ("hidden_dim", 0),
        ("dropout", 1.0),
        ("norm", "batch"),
        ("activation", "tanh"),
        ("logit_scale", "none"),
        ("descriptors", ["ecfp"]),
        ("descriptors", ["rdkit_2d", "rdkit_2d"]),
    ],
)
def test_bad_values_name_their_key(key, value):
    with pytest.raises(ValueError, match=f"model.{key}"):
        MipsConfig(**{key: value})


@pytest.mark.parametrize("changes", SWITCHES, ids=str)
def test_every_switch_changes_the_output(graphs, changes):
    batch = batch_of(samples_with_descriptors(graphs))
    with torch.no_grad():
        plain, switched = property_model()(batch), property_model(**changes)(batch)
    assert switched.isfinite().all()
    assert relative_error(switched, plain) > 1e-3


def test_topology_shards_are_refused_in_one_line(graphs):
    batch = batch_of([Sample(g) for g in graphs])
    with pytest.raises(MipsError, match="no descriptor group rdkit_2d, atom_pair_3d"):
        property_model()(batch)


# Learning


def test_gradients_reach_every_parameter(graphs):
    for changes in ({}, ALL_SWITCHES | {"norm": "post"}):
        model = masked_atom_model(**changes).train()
        batch = batch_of(samples_with_descriptors(graphs))
        batch.is_masked = torch.arange(len(batch.atom_features)) % 3 == 0
        labels = embedding.atom_class(batch.atom_features[batch.is_masked])
        F.cross_entropy(model(batch), labels).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().sum() > 0, name


def test_bf16_is_near_fp32(graphs):
    batch = batch_of(samples_with_descriptors(graphs))
    torch.manual_seed(0)
    model = PropertyModel(MipsConfig(**SMALL)).eval()
    with torch.no_grad():
        exact = model.encode(batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = model.encode(batch)
        half = model.bfloat16().encode(batch)
    assert half.dtype == torch.bfloat16
    assert relative_error(half.float(), exact) < 0.05
    assert relative_error(mixed.float(), exact) < 0.05


def test_overfits_32_polymers(graphs):
    torch.manual_seed(0)
    model = PropertyModel(MipsConfig(**SMALL | {"hidden_dim": 32, "dropout": 0.0}))
    batch = batch_of(samples_with_descriptors(graphs[:32]))
    target = torch.randn(32, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(150):
        loss = F.mse_loss(model(batch), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.01


def test_property_model_starts_from_the_pretrained_one(graphs):
    pretrained = masked_atom_model()
    model = PropertyModel.from_pretrained(pretrained).eval()
    batch = batch_of(samples_with_descriptors(graphs))
    with torch.no_grad():
        assert torch.equal(model.encode(batch), pretrained.encode(batch))
    assert torch.equal(model.head.hidden.weight, pretrained.head.hidden.weight)
    assert model(batch).shape == (len(graphs), 1)


def test_a_linear_head_is_the_mean_of_what_it_says_of_each_atom(graphs):
    model = property_model(head="linear")
    batch = batch_of(samples_with_descriptors(graphs))
    with torch.no_grad():
        of_atoms = model.head(model.encode(batch))[:, 0].split(batch.ptr.diff().tolist())
        expected = torch.stack([values.mean() for values in of_atoms])
        torch.testing.assert_close(model(batch)[:, 0], expected)
