"""The models that come with the library: named, whole, and worth what their cards say."""

import csv
import gzip
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mips_dist.chem.psmiles import canonicalize
from mips_dist.data.properties import BENCHMARK
from mips_dist.data.schema import known_schema
from mips_dist.errors import MipsError, UsageError
from mips_dist.model.bundle import is_complete, load_bundle
from mips_dist.model.mips import MaskedAtomModel
from mips_dist.model.released import (
    RELEASED_DIR,
    model_directory,
    property_model,
    released_models,
)
from mips_dist.train.fold_config import FoldConfig, load_pretrained
from mips_dist.use.predict import predict_value

ROOT = Path(__file__).resolve().parents[2]


def test_a_model_is_named_by_path_or_released_name(tmp_path, monkeypatch):
    assert "mips-small" in released_models()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mips-small").mkdir()
    assert model_directory("mips-small") == RELEASED_DIR / "mips-small"
    assert model_directory("./mips-small") == Path("mips-small")
    with pytest.raises(MipsError, match=r"mips-smal is no model directory.*released: .*mips-small"):
        model_directory("mips-smal")


@pytest.mark.parametrize("name", ["mips-small", "mips-base"])
def test_pretrained_models_fit_this_version(name):
    folder = RELEASED_DIR / name
    assert is_complete(folder)
    bundle = load_bundle(folder, known_schema())
    assert isinstance(bundle.model, MaskedAtomModel)
    assert bundle.training is not None
    assert bundle.metrics["held_out_loss"] < bundle.metrics["held_out_class_entropy"]


@pytest.mark.parametrize("name", ["mips-small", "mips-base"])
def test_fine_tuning_takes_a_released_model_by_its_name(name):
    released = load_bundle(RELEASED_DIR / name, known_schema()).model
    model = load_pretrained(FoldConfig(model=released.config, pretrained=name))
    weights = released.state_dict()
    assert all((w == weights[key]).all() for key, w in model.state_dict().items())


@pytest.mark.needs_data
@pytest.mark.parametrize("name", ["mips-small", "mips-base"])
def test_the_loss_of_a_released_model_is_that_of_its_card(name, data_dir, tmp_path):
    """From the corpus's first rows to the loss, through the commands, in fresh processes."""
    bundle = load_bundle(RELEASED_DIR / name, known_schema())
    source = tmp_path / "first.csv"
    with gzip.open(data_dir / "corpus" / "pl1m_like.csv.gz", "rt", encoding="utf-8") as file:
        rows = itertools.islice(csv.reader(file), bundle.metrics["check_rows"] + 1)
        source.write_text("".join(f"{row[0]}\n" for row in rows), encoding="utf-8")

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )

    shards = tmp_path / "shards"
    made = run("-m", "preprocess", f"input={source}", f"output={shards}", "content=descriptors")
    assert made.returncode == 0, made.stderr
    done = run("scripts/held_out_loss.py", f"model={name}", f"shards={shards}")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert f"card     {bundle.metrics['check_loss']:.8f} (check_loss)" in done.stdout


@pytest.mark.parametrize("name", BENCHMARK)
def test_models_of_the_eight_properties_are_small_and_predict(name):
    directory = property_model(name)
    assert sum(path.stat().st_size for path in directory.iterdir()) <= 5 * 2**20
    bundle = load_bundle(directory, known_schema())
    assert bundle.scaler is not None
    assert bundle.scaler["property"] == name
    assert bundle.metrics["model"] == "mips-ensemble"
    value, remark = predict_value(bundle, canonicalize("*CC*"))
    assert value is not None
    assert remark == ""
    # Within three standard deviations of the property, and the same for another spelling.
    assert abs(value - bundle.scaler["mean"]) < 3 * bundle.scaler["std"]
    assert predict_value(bundle, canonicalize("[*]CCCC[*]"))[0] == value


def test_an_unknown_property_is_one_line():
    with pytest.raises(UsageError, match="no released model predicts 'tg'; there are: eat, eea"):
        property_model("tg")
