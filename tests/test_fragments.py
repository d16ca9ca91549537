"""Fragments: every atom in one, whatever the spelling; and shares that sum to the prediction."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from rdkit import Chem

from mips_dist.chem.fragments import fragments
from mips_dist.chem.graph import build_graph
from mips_dist.chem.psmiles import canonicalize
from mips_dist.config import compose
from mips_dist.data.schema import feature_schema, known_schema
from mips_dist.errors import MipsError, UsageError
from mips_dist.model.bundle import load_bundle, save_bundle
from mips_dist.train.finetune_config import FinetuneConfig
from mips_dist.use.fragments import FragmentEffect, divide, fragments_file, page, summarize
from mips_dist.use.predict import predict_value
from tests.model.hand import property_model
from tests.polymers import POLYMERS
from tests.test_cli import mips

EXAMPLE = Path(__file__).parent.parent / "examples" / "glass_transition.csv"
SCALER = {"property": "tg_K", "unit": "K", "mean": 300.0, "std": 90.0}
BY_HAND = {
    "*CCOC(=O)c1ccc(C(=O)O*)cc1": ["*C*", "*C*", "*OC(*)=O", "*OC(*)=O", "*c1ccc(*)cc1"],
    # The same amide whether the cut goes through it or not.
    "*NCCC(*)=O": ["*C*", "*C*", "*NC(*)=O"],
    "*C(=O)NCC*": ["*C*", "*C*", "*NC(*)=O"],
    "*CC(*)(C)C(=O)OC": ["*C", "*C", "*C(*)(*)*", "*C*", "*OC(*)=O"],
    "*C(F)(F)C(*)(F)F": ["*C(*)(F)F"],
    # Without end: cut at the link.
    "*[Si](C)(C)O*": ["*C", "*C", "*O[Si](*)(*)*"],
    "*=C=*": ["*=C=*"],
    "*NC(=O)*": ["*NC(*)=O"],
    "*C1CCC(=O)C1*": ["*C1CCC(=O)C1*"],
    "*c1ccc(S(=O)(=O)c2ccc(*)cc2)cc1": ["*S(*)(=O)=O", "*c1ccc(*)cc1", "*c1ccc(*)cc1"],
}


def save(directory: Path, **changes) -> Path:
    model = property_model(**changes)
    save_bundle(
        directory,
        model,
        feature_schema=feature_schema(2, model.config.descriptors),
        metrics={},
        trained_on="nothing",
        scaler=SCALER,
    )
    return directory


@pytest.mark.parametrize(("polymer", "expected"), BY_HAND.items())
def test_fragments_by_hand(polymer, expected):
    assert sorted(part.smiles for part in fragments(canonicalize(polymer))) == sorted(expected)


def check_partition(canonical: str) -> None:
    graph = build_graph(canonical)
    parts = fragments(canonical)
    atoms = sorted(atom for part in parts for atom in part.atoms)
    assert atoms == list(range(len(graph.is_backbone)))
    for part in parts:
        # Written with the elements that its atoms have in the graph.
        elements = graph.atom_features[list(part.atoms), 0]
        written = Chem.MolFromSmiles(part.smiles, sanitize=False).GetAtoms()
        alone = sorted(atom.GetAtomicNum() for atom in written if atom.GetAtomicNum())
        assert sorted(elements.tolist()) == alone, (canonical, part)


@pytest.mark.parametrize("polymer", POLYMERS)
def test_every_atom_is_in_one_fragment(polymer):
    check_partition(canonicalize(polymer))


@pytest.mark.needs_data
def test_every_atom_of_the_benchmark_is_in_one_fragment(benchmark_texts):
    for canonical in sorted({canonicalize(text) for text in benchmark_texts[::4]}):
        check_partition(canonical)


@pytest.mark.parametrize("descriptors", [[], ["rdkit_2d", "atom_pair_3d"]])
def test_contributions_sum_to_the_prediction(tmp_path, descriptors):
    directory = save(tmp_path / "model", head="linear", descriptors=descriptors)
    bundle = load_bundle(directory, known_schema())
    shares = []
    for polymer in POLYMERS[20:34]:
        canonical = canonicalize(polymer)
        share = divide(bundle, canonical)
        value, _ = predict_value(bundle, canonical)
        assert share.prediction == value
        total = share.contribution.sum() + share.intercept
        assert total == pytest.approx(value, rel=1e-5, abs=1e-3)
        sizes = [len(part.atoms) for part in share.parts]
        assert np.average(share.value, weights=sizes) == pytest.approx(total, rel=1e-9)
        shares.append(share)
    assert np.std([share.prediction for share in shares]) > 1  # K: the polymers differ
    effects = summarize(shares)
    assert sum(effect.count for effect in effects) == sum(len(s.parts) for s in shares)
    means = [effect.mean_effect for effect in effects]
    assert means == sorted(means, reverse=True)


def test_the_command(tmp_path):
    folder = tmp_path / "out"
    model = save(tmp_path / "model", head="linear", descriptors=[])
    done = mips("fragments", "-m", model, "--input", EXAMPLE, "-o", folder)
    assert done.returncode == 0, done.stderr
    with (folder / "fragments.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["unit"] for row in rows} == {"K"}
    assert {"*C*", "*c1ccccc1"} <= {row["fragment"] for row in rows}
    effects = [float(row["mean_effect"]) for row in rows]
    assert effects == sorted(effects, reverse=True)
    text = (folder / "fragments.html").read_text()
    assert text.count("<svg") == text.count("<tr>") - 1 == len(rows)
    assert "http" not in text.replace("http://www.w3.org", "").replace("http://www.rdkit.org", "")
    # The same command again gives the same bytes; other files are left alone.
    before = (folder / "fragments.csv").read_bytes()
    fragments_file(EXAMPLE, model, folder)
    assert (folder / "fragments.csv").read_bytes() == before
    (folder / "mine.txt").touch()
    with pytest.raises(UsageError, match="holds other files"):
        fragments_file(EXAMPLE, model, folder)


def test_names_are_escaped():
    text = page("<script>", "<b>", "<i>", [FragmentEffect("*<u>", 1, 1, 1, 0.0, 0.0, 0.0, 0.0)])
    assert not {"<script>", "<b>", "<i>", "<u>"} & set(re.findall("<[a-z]+>", text))


def test_the_remedy_is_a_key_of_fine_tuning():
    overrides = ["run_dir=x", "model=debug", "model.head=linear"]
    assert compose(FinetuneConfig, "finetune", overrides).model.head == "linear"


def test_a_head_of_two_layers_is_refused(tmp_path):
    model = save(tmp_path / "model", descriptors=[])
    with pytest.raises(MipsError, match=r"fine-tune one with model\.head=linear") as caught:
        fragments_file(EXAMPLE, model, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
