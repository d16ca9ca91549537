"""The repeat and shift invariance test: ours passes it bit for bit, and the others fail it."""

import csv
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from mips_dist.chem.psmiles import canonicalize
from mips_dist.chem.stars import STAR_STRATEGIES
from mips_dist.data.schema import feature_schema
from mips_dist.errors import MipsError, UsageError
from mips_dist.model.bundle import save_bundle
from mips_dist.model.gin import GinConfig
from mips_dist.train.gin_training import fit_gin
from mips_dist.use import rsit
from mips_dist.use.rsit import NUM_RESPELLINGS, draw_polymers, measure, rsit_file
from tests.model.hand import property_model
from tests.polymers import POLYMERS
from tests.test_cli import mips

EXAMPLE = Path(__file__).parent.parent / "examples" / "glass_transition.csv"
FIT = partial(fit_gin, config=GinConfig(hidden_dim=16), num_epochs=4, seed=0)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> Path:
    """A model with every branch on and every weight random, so that each input counts."""
    torch.manual_seed(0)
    model = property_model(bond_path_bias=True)
    assert model.config.descriptors == ["rdkit_2d", "atom_pair_3d"]
    directory = tmp_path_factory.mktemp("rsit") / "model"
    save_bundle(
        directory,
        model,
        feature_schema=feature_schema(2, model.config.descriptors),
        metrics={},
        trained_on="nothing",
        scaler={"property": "tg_K", "unit": "K", "mean": 300.0, "std": 90.0},
    )
    return directory


def write(path: Path, texts: list[str]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["psmiles"], *([text] for text in texts)])
    return path


def test_ours_is_exact_and_the_others_are_not(tmp_path, model_dir):
    output = tmp_path / "rsit.json"
    done = mips(
        *("rsit", "-m", model_dir, "--input", EXAMPLE, "--json", output),
        *("--max-polymers", 30, "--epochs", 2),
    )
    assert done.returncode == 0, done.stderr
    assert "link_cut_features" in done.stdout
    rows = json.loads(output.read_text())["rows"]
    assert [(row["strategy"], row["model"]) for row in rows] == [
        *((strategy, "gin") for strategy in STAR_STRATEGIES),
        ("link", "mips"),
    ]
    for row in rows:
        assert row["labels"] == "tg_K"
        assert row["gap"] == row["original"] - row["respelled"]
        assert row["num_respellings"] == NUM_RESPELLINGS * row["num_polymers"]
        assert min(row["num_shifted"], row["num_repeated"], row["num_reversed"]) > 0
        if row["strategy"] == "link":
            assert row["gap"] == row["max_abs_difference"] == 0
        elif row["strategy"] in ("keep", "remove", "substitute"):
            assert row["gap"] > 0
    assert [row["num_polymers"] for row in rows] == [6] * 5 + [30]


def test_without_labels_a_model_is_measured_against_itself(tmp_path, model_dir):
    source = write(tmp_path / "in.csv", ["not a polymer", *POLYMERS[28:40], POLYMERS[28]])
    gaps = rsit_file(source, tmp_path / "rsit.json", FIT, model_dir)
    for gap in gaps:
        assert (gap.labels, gap.original, gap.num_polymers) == ("given", 1.0, 12)
        assert gap.weights == ("random" if gap.model == "gin" else gap.weights)
        is_ours = gap.strategy == "link"
        assert (gap.gap == 0) == (gap.max_abs_difference == 0) == is_ours


def test_a_model_that_depends_on_the_spelling_is_reported(tmp_path, model_dir, monkeypatch):
    values = iter(np.arange(1000.0))
    monkeypatch.setattr(rsit, "predict_value", lambda bundle, canonical: (next(values), ""))
    source, output = write(tmp_path / "in.csv", POLYMERS[28:32]), tmp_path / "rsit.json"
    with pytest.raises(MipsError, match=r"change by up to .* with the spelling"):
        rsit_file(source, output, FIT, model_dir)
    assert json.loads(output.read_text())["rows"][-1]["max_abs_difference"] > 0


def test_drawn_polymers_are_distinct_and_the_same_for_a_seed():
    draw = partial(draw_polymers, EXAMPLE, ["tg_K"], 40, is_needed=True)
    polymers, column = draw(0)
    assert (len(polymers), column) == (40, "tg_K")
    forms = [canonicalize(polymer.given) for polymer in polymers]
    assert len(set(forms)) == 40
    for polymer, form in zip(polymers, forms, strict=True):
        assert {canonicalize(other.psmiles) for other in polymer.others} == {form}
    assert draw(0)[0] == polymers != draw(1)[0]


def test_the_worst_spelling_counts():
    polymers, _ = draw_polymers(EXAMPLE, ["tg_K"], 3, 0, is_needed=True)
    label = np.array([polymer.label for polymer in polymers])
    predictions = np.tile(label + 1.0, (6, 1))
    predictions[2, 1] += 4.0  # further away: counts
    predictions[3, 2] -= 1.5  # nearer: does not
    gap = measure(predictions, polymers, "keep", "gin", "tg_K", "")
    spread = ((label - label.mean()) ** 2).sum()
    assert gap.original == pytest.approx(1 - 3 / spread, rel=1e-12)
    assert gap.respelled == pytest.approx(1 - (1 + 25 + 1) / spread, rel=1e-12)
    assert gap.max_abs_difference == 4.0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"label": "density"}, "no column density; its columns are: psmiles, tg_K"),
        ({"output": Path("nowhere/x.json")}, "cannot be a file"),
        ({"input": "two.csv"}, "not two different polymers"),
    ],
)
def test_usage_errors_are_one_line(tmp_path, changes, says):
    two = write(tmp_path / "two.csv", ["*CC*", "*C*", "x"])
    arguments = {"input": EXAMPLE, "output": tmp_path / "x.json"} | changes
    if changes.get("input"):
        arguments["input"] = two
    with pytest.raises(UsageError, match=says) as caught:
        rsit_file(**arguments, fit_gin=FIT)
    assert "\n" not in str(caught.value)


@pytest.mark.needs_data
def test_gaps_of_trained_gins_on_a_benchmark_set(tmp_path, data_dir):
    source = data_dir / "benchmark" / "Egb.csv"
    fit = partial(fit_gin, config=GinConfig(hidden_dim=32), num_epochs=10, seed=0)
    gaps = {
        gap.strategy: gap for gap in rsit_file(source, tmp_path / "x.json", fit, max_polymers=150)
    }
    assert gaps["link"].gap == gaps["link"].max_abs_difference == 0
    for strategy in ("keep", "remove", "substitute"):
        assert gaps[strategy].gap > 0.001
