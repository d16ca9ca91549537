"""Laws L3 to L6 of the design, over the polymers of the benchmark where MIPS_DATA is set."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from itertools import combinations

import numpy as np
import pytest
import torch
from rdkit import Chem

from mips_dist.chem.graph import PolymerGraph, build_graphs
from mips_dist.chem.psmiles import BOND_OF_ORDER, InvalidPolymer, canonicalize, parse
from mips_dist.chem.sample import Sample, featurize
from mips_dist.data.batch import PolymerBatch, collate
from mips_dist.data.block import stack
from mips_dist.model.mips import MaskedAtomModel, MipsConfig, PropertyModel
from tests.model.reference import OligomerReference
from tests.polymers import POLYMERS

L5_THRESHOLD = 1e-4


@pytest.fixture(scope="session")
def canonicals() -> list[str]:
    return [canonicalize(polymer) for polymer in POLYMERS]


@pytest.fixture(scope="session")
def benchmark_canonicals(benchmark_texts) -> list[str]:
    return sorted({canonicalize(text) for text in benchmark_texts})


def model_of(seed: int = 0, **changes) -> PropertyModel:
    """A small model in double precision with every parameter random, so that each term counts."""
    torch.manual_seed(seed)
    values = {"hidden_dim": 16, "num_layers": 2, "num_heads": 2, "ffn_dim": 32, "descriptors": []}
    model = PropertyModel(MipsConfig(**values | changes)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def batch_of(graphs: list[PolymerGraph], pack_size: int | None = 128) -> PolymerBatch:
    return collate(stack([Sample(g) for g in graphs], rows=range(len(graphs))), pack_size)


def encode(model: PropertyModel, graphs: list[PolymerGraph], size: int = 256) -> list[torch.Tensor]:
    """Atom vectors (N, D) of each polymer."""
    outputs: list[torch.Tensor] = []
    with torch.no_grad():
        for start in range(0, len(graphs), size):
            part = graphs[start : start + size]
            x = model.encode(batch_of(part))
            outputs += x.split([len(g.is_backbone) for g in part])
    return outputs


# L3: the quotient gives what the middle of a long oligomer gives, without any of the tricks.


def check_oligomers(graphs: list[PolymerGraph], model: PropertyModel) -> None:
    reference = OligomerReference(model)
    for graph, x in zip(graphs, encode(model, graphs), strict=True):
        expected = reference.middle_unit(graph)
        # Double precision throughout, but for the input rows.
        torch.testing.assert_close(x, expected, rtol=1e-6, atol=1e-6, msg=graph.psmiles)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"max_hops": 4, "num_layers": 1},
        {"per_head_bias": True, "bond_path_bias": True, "logit_scale": "head"},
        {"norm": "post", "activation": "relu"},
    ],
    ids=str,
)
def test_l3_quotient_equals_oligomer(canonicals, changes):
    model = model_of(**changes)
    check_oligomers(build_graphs(canonicals, model.config.max_hops), model)


@pytest.mark.needs_data
def test_l3_over_every_benchmark_polymer(benchmark_canonicals):
    model = model_of(bond_path_bias=True)
    check_oligomers(build_graphs(benchmark_canonicals), model)


# L4: batch mates and atom order never matter.


def check_batches(graphs: list[PolymerGraph]) -> None:
    model = model_of()
    together = encode(model, graphs)
    with torch.no_grad():
        for graph, x in zip(graphs, together, strict=True):
            alone = model.encode(batch_of([graph], pack_size=None))
            torch.testing.assert_close(alone, x, rtol=1e-6, atol=1e-12, msg=graph.psmiles)


def test_l4_batch_equals_one_at_a_time(canonicals):
    check_batches(build_graphs(canonicals))


@pytest.mark.needs_data
def test_l4_over_every_benchmark_polymer(benchmark_canonicals):
    check_batches(build_graphs(benchmark_canonicals))


# L5: twins, the same closed graph of different chains, are told apart.


def ring_bond_cuts(psmiles: str) -> Iterator[str]:
    """Other polymers with the same closed graph: close the link, cut another bond of a ring."""
    unit = parse(psmiles)
    if unit.ends[0] == unit.ends[1] or unit.bond_orders[unit.ends]:
        return  # the closed graph has a loop or a double edge; no molecule shows it
    closed = Chem.RWMol(unit.mol)
    Chem.Kekulize(closed, clearAromaticFlags=True)
    for star, end in zip(unit.stars, unit.ends, strict=True):
        closed.RemoveBond(star, end)
    closed.AddBond(*unit.ends, BOND_OF_ORDER[unit.order])
    Chem.FastFindRings(closed)
    for bond in closed.GetBonds():
        if not bond.IsInRing():
            continue
        left, right = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        twin = Chem.RWMol(closed)
        twin.RemoveBond(left, right)
        twin.AddBond(left, unit.stars[0], bond.GetBondType())
        twin.AddBond(right, unit.stars[1], bond.GetBondType())
        try:
            yield canonicalize(Chem.MolToSmiles(twin))
        except InvalidPolymer:
            # Cutting an aromatic ring can leave a unit that RDKit does not take.
            continue


def unseparated(families: list[set[str]]) -> tuple[int, list[tuple[str, str]]]:
    """Compare the members of each family by the embeddings of an untrained default model."""
    texts = sorted(set().union(*families))
    torch.manual_seed(0)
    config = MipsConfig(hidden_dim=64, num_layers=2, num_heads=4, ffn_dim=256, descriptors=[])
    model = PropertyModel(config).double().eval()
    vectors = [x.mean(0) for x in encode(model, build_graphs(texts))]
    embedding = dict(zip(texts, vectors, strict=True))
    pairs = [pair for family in families for pair in combinations(sorted(family), 2)]
    together = [(a, b) for a, b in pairs if (embedding[a] - embedding[b]).norm() <= L5_THRESHOLD]
    return len(pairs), together


def theta_units() -> list[set[str]]:
    """All units of two bridgeheads joined by three arms of 1 to 6 atoms: cut any arm."""
    families = []
    for arms in combinations(range(1, 7), 3):
        a, b, c = ("C" * n for n in arms)
        families.append(
            {canonicalize(f"*{x}C1{y}C({z}1)*") for x, y, z in ((a, b, c), (b, a, c), (c, a, b))}
        )
    for same in range(1, 7):
        for other in range(1, 7):
            if same != other:
                a, b = "C" * same, "C" * other
                families.append(
                    {canonicalize(f"*{a}C1{a}C({b}1)*"), canonicalize(f"*{b}C1{a}C({a}1)*")}
                )
    return families


def test_l5_bridged_twins_are_told_apart():
    families = theta_units()
    assert all(len(family) > 1 for family in families)
    count, together = unseparated(families)
    assert count >= 90
    assert together == []


def test_l5_fused_bicycles_are_told_apart():
    bicycles = ["*C1CCC2C(*)CCC12", "*C1CCC2CC(*)CCC2C1", "*C1CC2CC(*)CC2C1", "*C1CC2(C1)CC(*)C2"]
    families = [{canonicalize(b), *ring_bond_cuts(b)} for b in bicycles]
    _, together = unseparated(families)
    assert together == []


@pytest.mark.needs_data
def test_l5_ring_bond_cuts_of_the_benchmark(benchmark_canonicals):
    families = []
    for canonical in benchmark_canonicals:
        twins = set(ring_bond_cuts(canonical)) - {canonical}
        families += [{canonical, twin} for twin in twins]
    count, together = unseparated(families)
    print(f"L5: {count} twin pairs, {len(together)} not told apart:", *together, sep="\n  ")
    assert count > 9_000
    assert len(together) <= 23


# L6: masking hides.

EXCHANGES = [("O", "S"), ("F", "Cl"), ("Cl", "Br"), ("C", "[Si]"), ("N", "P")]


def exchanged(canonical: str, position: int, element: str) -> str | None:
    """Write another element at one atom of a text, if the result is a polymer as it stands."""
    mol = Chem.MolFromSmiles(canonical)
    atoms = [a for a in mol.GetAtoms() if a.GetAtomicNum() != 0]
    atom = atoms[position]
    if atom.GetIsAromatic() or atom.GetFormalCharge() or atom.GetIsotope():
        return None
    atom.SetAtomicNum(Chem.GetPeriodicTable().GetAtomicNumber(element.strip("[]")))
    atom.SetNoImplicit(False)
    atom.SetNumExplicitHs(0)
    # Written in the order of the first text, so that atoms keep their places.
    order = list(range(mol.GetNumAtoms()))
    if Chem.SanitizeMol(mol, catchErrors=True) != Chem.SanitizeFlags.SANITIZE_NONE:
        return None
    text = Chem.MolToSmiles(mol, canonical=False)
    return text if written_order(mol) == order else None


def written_order(mol: Chem.Mol) -> list[int]:
    properties = mol.GetPropsAsDict(includePrivate=True, includeComputed=True)
    return list(properties["_smilesAtomOutputOrder"])


def masked_exchanges(canonicals: list[str], per_polymer: int) -> tuple[list[str], list[str], list]:
    """Draw (text, text with another element at one atom, its position) for each polymer."""
    rng = np.random.default_rng(5)
    texts, others, positions = [], [], []
    for canonical in canonicals:
        mol = Chem.MolFromSmiles(canonical)
        symbols = [a.GetSymbol() for a in mol.GetAtoms() if a.GetAtomicNum()]
        choices = [
            (position, there)
            for position, symbol in enumerate(symbols)
            for here, there in EXCHANGES
            if symbol == here
        ]
        for k in rng.permutation(len(choices))[:per_polymer]:
            position, there = choices[k]
            other = exchanged(canonical, position, there)
            if other is not None:
                texts.append(canonical)
                others.append(other)
                positions.append(position)
    return texts, others, positions


def check_masking(canonicals: list[str], per_polymer: int) -> int:
    """Compare all model inputs of polymers before and after the exchange; return how many."""
    texts, others, positions = masked_exchanges(canonicals, per_polymer)
    before, after = build_graphs(texts), build_graphs(others)
    kept = []
    for k, position in enumerate(positions):
        neighbours = np.arange(len(before[k].is_backbone)) != position
        # Conjugation may change the neighbours' hybridization; the law speaks of the others.
        if np.array_equal(before[k].atom_features[neighbours], after[k].atom_features[neighbours]):
            kept.append(k)
    where = [positions[k] for k in kept]
    inputs = [masked_inputs([graphs[k] for k in kept], where) for graphs in (before, after)]
    assert inputs[0].keys() == inputs[1].keys()
    for name, value in inputs[0].items():
        assert torch.equal(value, inputs[1][name]), name
    return len(kept)


def masked_inputs(graphs: list[PolymerGraph], positions: list[int]) -> dict[str, torch.Tensor]:
    """Every tensor that reaches the layers, one atom of each polymer masked: x0, biases, layout."""
    batch = batch_of(graphs)
    batch.is_masked = torch.zeros(len(batch.is_backbone), dtype=torch.bool)
    batch.is_masked[batch.ptr[:-1] + torch.tensor(positions)] = True
    encoder = _l6_model.encoder
    with torch.no_grad():
        x0 = encoder.embedding(batch)
        inputs = {"x0": x0, "pairs": encoder.bias.pairs(x0, batch)}
    layout = {
        f.name: getattr(batch, f.name)
        for f in fields(batch)
        if isinstance(getattr(batch, f.name), torch.Tensor) and f.name != "atom_features"
    }
    return inputs | layout


torch.manual_seed(0)
_l6_model = MaskedAtomModel(
    MipsConfig(hidden_dim=16, num_layers=1, num_heads=2, descriptors=[], bond_path_bias=True)
).eval()


def test_l6_element_of_a_masked_atom_reaches_no_input(canonicals):
    assert check_masking(canonicals, per_polymer=20) > 50


@pytest.mark.needs_data
def test_l6_over_every_benchmark_polymer(benchmark_canonicals):
    assert check_masking(benchmark_canonicals, per_polymer=2) > 1000


def test_l6_masked_rows_are_one_constant(canonicals):
    batch = batch_of(build_graphs(canonicals))
    batch.is_masked = torch.arange(len(batch.is_backbone)) % 3 == 0
    with torch.no_grad():
        x0 = _l6_model.encoder.embedding(batch)
    assert len(x0[batch.is_masked].unique(dim=0)) == 1


# L1, for what the shards hold beyond the graph.


def test_l1_spelling_changes_no_byte_of_conformer_and_descriptors():
    spellings = ["*CC(*)c1ccccc1", "[*:1]C(c1ccccc1)C[*:2]", "*C(CC(c1ccccc1)C*)c1ccccc1"]
    samples = [featurize([canonicalize(s)])[0] for s in spellings]
    counts = Counter(
        (
            sample.conformer.coordinates.tobytes(),
            *(value.tobytes() for _, value in sorted(sample.descriptors.items())),
        )
        for sample in samples
    )
    assert len(counts) == 1
    assert len(samples[0].descriptors) == 3
