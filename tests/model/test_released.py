"""The models that come with the library: named, whole, and worth what their cards say."""

import csv
import gzip
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mips_dist.data.schema import known_schema
from mips_dist.errors import MipsError
from mips_dist.model.bundle import is_complete, load_bundle
from mips_dist.model.mips import MaskedAtomModel
from mips_dist.model.released import RELEASED_DIR, model_directory, released_models
from mips_dist.train.finetuning import FoldConfig, load_pretrained

ROOT = Path(__file__).resolve().parents[2]


def test_a_model_is_named_by_path_or_released_name(tmp_path, monkeypatch):
    assert "mips-small" in released_models()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mips-small").mkdir()
    assert model_directory("mips-small") == RELEASED_DIR / "mips-small"
    assert model_directory("./mips-small") == Path("mips-small")
    with pytest.raises(MipsError, match=r"mips-smal is no model directory.*released: .*mips-small"):
        model_directory("mips-smal")


@pytest.mark.parametrize("name", released_models())
def test_released_models_fit_this_version(name):
    folder = RELEASED_DIR / name
    assert is_complete(folder)
    bundle = load_bundle(folder, known_schema())
    assert isinstance(bundle.model, MaskedAtomModel)
    assert bundle.training is not None
    assert bundle.metrics["held_out_loss"] < bundle.metrics["held_out_class_entropy"]


@pytest.mark.parametrize("name", released_models())
def test_fine_tuning_takes_a_released_model_by_its_name(name):
    released = load_bundle(RELEASED_DIR / name, known_schema()).model
    model = load_pretrained(FoldConfig(model=released.config, pretrained=name))
    weights = released.state_dict()
    assert all((w == weights[key]).all() for key, w in model.state_dict().items())


@pytest.mark.needs_data
def test_the_loss_of_a_released_model_is_that_of_its_card(data_dir, tmp_path):
    """From the corpus's first rows to the loss, through the commands, in fresh processes."""
    bundle = load_bundle(RELEASED_DIR / "mips-small", known_schema())
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
    done = run("scripts/held_out_loss.py", "model=mips-small", f"shards={shards}")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert f"card     {bundle.metrics['check_loss']:.8f} (check_loss)" in done.stdout
