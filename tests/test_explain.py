"""`mips explain`: contributions are complete, fair, of the polymer, of the model, and true."""

import csv
import math
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch

from mips_dist.chem.chain_features import COMPOSITION, ChainFeatures, chain_features
from mips_dist.chem.chain_parts import chain_parts, is_bond_column
from mips_dist.chem.features import atom_tokens
from mips_dist.chem.fragments import fragments
from mips_dist.chem.psmiles import canonicalize
from mips_dist.data.schema import known_schema
from mips_dist.errors import MipsError, UsageError
from mips_dist.model.bundle import Bundle, Partner, TargetScaler, save_bundle
from mips_dist.model.chain_model import PROCESS_SHARE, ChainModel, blocks_of
from mips_dist.model.forest import Forest
from mips_dist.model.kernel import STEP, Block, GaussianProcess
from mips_dist.model.mips import MipsConfig, PropertyModel
from mips_dist.model.released import model_directory, property_model
from mips_dist.train.gp_trees import ChainRows, fit_chain_model
from mips_dist.use.explain.contributions import Explanation, explain
from mips_dist.use.explain.layout import lay_out
from mips_dist.use.explain.picture import draw_explanation
from mips_dist.use.explain.shapley import EXACT_PLAYERS, divide
from mips_dist.use.explain.write import ATOMS, FRAGMENTS, POLYMERS, explain_polymers
from mips_dist.use.predict import featurized, open_property_model, predict_value
from tests.polymers import POLYMERS as SOME

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "<script>alert(1)</script>"


def tiny(seed: int = 0, partner: Partner | None = None, name: str = "tg") -> Bundle:
    """Return a small network with random weights, without descriptors."""
    torch.manual_seed(seed)
    config = MipsConfig(
        hidden_dim=16, num_layers=2, num_heads=2, ffn_dim=32, descriptors=[], head="linear"
    )
    model = PropertyModel(config).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    scaler = TargetScaler(property=name, unit="K", mean=300.0, std=50.0)
    return Bundle("property", model, known_schema(), scaler, {}, None, partner)


def explained(bundle: Bundle, psmiles: str) -> Explanation:
    explanation, reason = explain(bundle, canonicalize(psmiles))
    assert explanation is not None, reason
    return explanation


def total(explanation: Explanation) -> float:
    return float(explanation.atoms.sum()) + sum(value for _, value, _ in explanation.groups)


def test_shares_are_means_over_all_orders() -> None:
    table = np.random.default_rng(0).normal(size=16)

    def value(sets: np.ndarray) -> np.ndarray:
        return table[sets @ (1 << np.arange(sets.shape[1]))]

    expected = np.zeros(4)
    for order in permutations(range(4)):
        known = np.zeros(4, bool)
        for player in order:
            before = value(known[None])[0]
            known[player] = True
            expected[player] += value(known[None])[0] - before
    found = divide(value, 4, table[15], seed=0)
    np.testing.assert_allclose(found.estimates[0], expected / math.factorial(4), atol=1e-12)


def test_drawn_orders_are_complete_and_exact_for_sums_and_pairs() -> None:
    """With each order comes its reverse, which makes interactions of two players exact."""
    rng = np.random.default_rng(1)
    p = EXACT_PLAYERS + 5
    own, pairs = rng.normal(size=p), np.triu(rng.normal(size=(p, p)), 1)

    def value(sets: np.ndarray) -> np.ndarray:
        x = sets.astype(float)
        return 7 + x @ own + np.einsum("si,ij,sj->s", x, pairs, x)

    whole = float(value(np.ones((1, p), bool))[0])
    found = divide(value, p, whole, seed=3)
    expected = own + (pairs + pairs.T).sum(1) / 2
    np.testing.assert_allclose(found.estimates, np.tile(expected, (len(found.estimates), 1)))
    np.testing.assert_allclose(found.estimates.sum(1), whole - found.none)


@pytest.mark.parametrize(
    "psmiles", ["*c1ccc(*)s1", "*CC(*)(C)C(=O)OC", "*CCOC(=O)c1ccc(C(=O)O*)cc1"]
)
def test_contributions_sum_to_the_prediction_and_equal_atoms_have_equal_ones(psmiles: str) -> None:
    bundle = tiny()
    found = explained(bundle, psmiles)
    prediction, _ = predict_value(bundle, canonicalize(psmiles))
    assert found.prediction == prediction
    assert total(found) == pytest.approx(found.prediction - found.reference, abs=1e-9)
    parts = sum(value for _, value, _ in found.fragments)
    assert parts == pytest.approx(found.atoms.sum(), abs=1e-9)
    np.testing.assert_allclose(found.atoms, found.atoms[found.equal], rtol=0, atol=1e-12)
    assert len(set(found.equal.tolist())) < len(found.atoms) or psmiles == "*CC(*)(C)C(=O)OC"
    assert np.abs(found.atoms).max() > 1e-3


def test_the_reference_is_a_constant_of_the_model() -> None:
    bundle = tiny()
    found = [explained(bundle, p).reference for p in ("*C*", "*c1ccc(*)s1", "*CC(*)C#N")]
    np.testing.assert_allclose(found, found[0], rtol=1e-6)


def test_another_model_explains_otherwise() -> None:
    """The sanity check of Adebayo and others: an explanation that ignores the weights is none."""
    first, second = (explained(tiny(seed), "*CC(*)C(=O)OC").atoms for seed in (0, 1))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.9
    assert np.abs(first - second).max() > 0.1 * np.abs(first).max()


def test_a_network_that_is_a_sum_over_atoms_is_divided_truly() -> None:
    bundle = tiny()
    model = bundle.model
    assert isinstance(model, PropertyModel)
    for layer in model.encoder.layers:
        for silent in (layer.attention.out, layer.narrow):
            torch.nn.init.zeros_(silent.weight)
            torch.nn.init.zeros_(silent.bias)
    found = explained(bundle, "*CC(*)(C)C(=O)OC")
    # Now an atom's vector is its embedding, and the head is linear in the mean of these.
    batch, _ = featurized(bundle, found.canonical)
    with torch.inference_mode():
        seen = model.encoder.embedding(batch)
        hidden = model.encoder.embedding(
            replace(batch, is_masked=torch.ones(len(seen), dtype=bool))
        )
        truth = ((seen - hidden) @ model.head.output.weight[0]).numpy() * 50.0 / len(seen)
    np.testing.assert_allclose(found.atoms, truth, atol=1e-3 * np.abs(truth).max())


def constant_forest(value: float) -> Forest:
    zero = np.zeros(1, np.int32)
    return Forest(zero, np.array([-1], np.int16), np.array([value], np.float32), zero)


def linear_process(chain: ChainFeatures, weights: np.ndarray) -> GaussianProcess:
    """Return a process that is linear in the fractions of kinds of atoms and sees nothing else."""
    composition = blocks_of(chain)["composition"]
    block = Block.fit(composition)
    kept = np.array([not is_bond_column(COMPOSITION[column]) for column in block.columns])
    block = Block(block.columns[kept], block.centre[kept], block.scale[kept], amplitude=0.0)
    return GaussianProcess(
        mean=2.0,
        std=1.5,
        amplitude=0.0,
        amplitude_of_square=0.0,
        linear=1.0,
        blocks={"composition": block},
        environments=chain.environments,
        features={"composition": block.standardise(composition)},
        weights=weights,
    )


@pytest.fixture(scope="module")
def chain() -> ChainFeatures:
    return chain_features([canonicalize(p) for p in SOME])


def test_a_process_that_is_linear_in_the_composition_is_divided_truly(chain: ChainFeatures) -> None:
    weights = np.random.default_rng(0).normal(size=len(SOME))
    process = linear_process(chain, weights)
    none = np.zeros(0)
    model = ChainModel(
        process, constant_forest(1.0), none.astype(np.int64), none.astype(np.float32)
    )
    found = explained(tiny(partner=Partner(model, 0.0)), "*CCO*")
    # Slope of the prediction by each standardised column.
    rows = process.features["composition"].astype(float) * STEP
    slope = PROCESS_SHARE * process.std * (weights @ rows) / rows.shape[1]
    block = process.blocks["composition"]
    own = chain_parts(found.canonical).own[:, block.columns]
    truth = (own - block.centre) / block.scale @ slope / len(own)
    # Standardised values are rounded to steps.
    tolerance = STEP * np.abs(slope).sum()
    assert tolerance < 0.5 * np.ptp(truth)
    np.testing.assert_allclose(found.atoms, truth, atol=tolerance)
    assert [value for _, value, _ in found.groups] == pytest.approx([0.0] * len(found.groups))


def test_a_model_fitted_to_fractions_of_elements_is_explained_by_elements(
    chain: ChainFeatures,
) -> None:
    worth = {"O": 5.0, "N": -4.0, "Cl": 3.0, "S": -2.0}

    def atoms(psmiles: str) -> np.ndarray:
        tokens = [t for t in atom_tokens(canonicalize(psmiles)) if t != "*"]
        return np.array([worth.get(t.strip("[]+-H23").capitalize(), 0.0) for t in tokens])

    value = np.array([atoms(p).mean() for p in SOME])
    rows = ChainRows(np.arange(len(SOME)), value)
    model = fit_chain_model(chain, rows, None, seed=0)
    bundle = tiny(partner=Partner(model, 0.0))
    found, truth = [], []
    for psmiles in ("*NCC(*)=O", "*CC(*)OC(C)=O", "*CC(*)(Cl)C", "*SCCO*"):
        own = atoms(psmiles)
        truth += ((own - value.mean()) / len(own)).tolist()
        found += explained(bundle, psmiles).atoms.tolist()
    assert np.corrcoef(found, truth)[0, 1] > 0.8


def test_a_released_model_is_explained_whole_and_in_sense() -> None:
    bundle, _ = open_property_model(property_model("egc"))
    ethylene, thiophene = (explained(bundle, p) for p in ("*CC*", "*c1ccc(-c2ccc(*)s2)s1"))
    for found in (ethylene, thiophene):
        prediction, _ = predict_value(bundle, found.canonical)
        assert found.prediction == prediction
        assert total(found) == pytest.approx(prediction - found.reference, abs=1e-9)
    assert thiophene.reference == pytest.approx(ethylene.reference, abs=1e-4)
    # Conjugation closes the gap, saturation opens it.
    assert thiophene.atoms.max() < 0 < ethylene.atoms.min()
    assert thiophene.atoms[0] == pytest.approx(thiophene.atoms[3], abs=1e-12)
    alone = explained(replace(bundle, partner=None), "*c1ccc(*)s1")
    assert np.abs(alone.atoms - thiophene.atoms).max() > 0.01


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tg"
    bundle = tiny(name=HOSTILE)
    schema = {**known_schema(), "max_hops": 2, "descriptors": {}}
    save_bundle(
        path,
        bundle.model,
        feature_schema=schema,
        metrics={},
        trained_on="nothing",
        scaler=bundle.scaler,
    )
    return path


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_csv_is_explained_row_by_row(model_dir: Path, tmp_path: Path) -> None:
    rows = ["*CC(*)C#N", HOSTILE, "*C(C#N)CC(C#N)C*", "=cmd()", "*NCC(*)=O"]
    (tmp_path / "in.csv").write_text("psmiles\n" + "\n".join(rows) + "\n")
    output = tmp_path / "out"
    explain_polymers(str(tmp_path / "in.csv"), [model_dir], output)
    polymers, atoms = read(output / POLYMERS), read(output / ATOMS)
    assert [p["row"] for p in polymers] == ["0", "1", "2", "3", "4"]
    assert [p["status"] for p in polymers] == ["ok", "rejected", "ok", "rejected", "ok"]
    assert "=cmd()" not in (output / POLYMERS).read_text()
    for polymer in (p for p in polymers if p["status"] == "ok"):
        own = [a for a in atoms if a["row"] == polymer["row"]]
        added = float(polymer["prediction"]) - float(polymer["reference"])
        assert sum(float(a["contribution"]) for a in own) == pytest.approx(added, rel=1e-9)
        found = [f for f in read(output / FRAGMENTS) if f["row"] == polymer["row"]]
        assert sum(float(f["contribution"]) for f in found) == pytest.approx(added, rel=1e-9)
        drawn = (output / polymer["picture"]).read_text(encoding="utf-8")
        assert "<script" not in drawn
        ET.fromstring(drawn)
    # Two spellings: the same numbers, and each atom of the unit stands twice in the longer one.
    first, second = ([a for a in atoms if a["row"] == row] for row in "02")
    assert [a["contribution"] for a in first] == [a["contribution"] for a in second]
    assert all(len(a["as_written"].split()) == 2 for a in second)
    assert sorted(int(n) for a in second for n in a["as_written"].split()) == list(range(1, 9))
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    explain_polymers(str(tmp_path / "in.csv"), [model_dir], output)  # again, in its place
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    assert not (tmp_path / ".out.partial").exists()


def test_bad_input_is_one_line(model_dir: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("mine")
    cases: list[tuple[str, list[Path], Path, type[Exception], str]] = [
        ("CCO", [model_dir], tmp_path / "o", UsageError, "star_count"),
        ("*" * 5000, [model_dir], tmp_path / "o", UsageError, "no polymer"),
        ("none.csv", [model_dir], tmp_path / "o", MipsError, "none.csv"),
        ("*CC*", [model_dir], other, UsageError, "holds other files (mine.txt)"),
        ("*CC*", [model_dir], tmp_path / "x.svg", UsageError, "give a folder"),
        ("*CC*", [model_dir], tmp_path / "no" / "o", UsageError, "is no folder"),
        ("*CC*", [model_dir, model_dir], tmp_path / "o", UsageError, "two models"),
        ("*CC*", [model_directory("mips-small")], tmp_path / "o", MipsError, "pre-trained"),
    ]
    for what, models, output, kind, says in cases:
        with pytest.raises(kind, match=re.escape(says)) as caught:
            explain_polymers(what, models, output)
        assert len(str(caught.value).splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other"]
    with pytest.raises(UsageError, match="no released model predicts"):
        property_model("egcc")


@pytest.mark.parametrize("psmiles", SOME)
def test_every_polymer_can_be_drawn(psmiles: str) -> None:
    canonical = canonicalize(psmiles)
    layout = lay_out(canonical)
    n = int(layout.atom.max()) + 1
    # Every atom of the unit once, and a neighbour on both sides.
    assert np.bincount(layout.atom[layout.atom >= 0]).tolist() == [1] * n
    assert all((layout.atom[[link.begin, link.end]] < 0).sum() == 1 for link in layout.links)
    zeros = np.zeros(n)
    drawn = draw_explanation(
        Explanation(
            canonical=canonical,
            property=HOSTILE,
            unit="<b>",
            prediction=1.0,
            reference=1.0,
            label_mean=0.0,
            atoms=zeros,
            atom_errors=zeros,
            fragments=[(part, 0.0, 0.0) for part in fragments(canonical)],
            groups=[],
            equal=np.arange(n),
            is_exact=True,
            remark="",
        )
    )
    root = ET.fromstring(drawn)
    assert {child.tag for child in root} >= {f"{SVG}title", f"{SVG}desc"}
    assert "nan" not in drawn
    assert not re.search(r"href|<script|@import|url\((?!#)", drawn)
