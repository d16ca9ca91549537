"""mips finetune: what it says and refuses before it begins, and a model at the end."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mips_dist.data.schema import known_schema
from mips_dist.errors import MipsError, UsageError
from mips_dist.model.bundle import load_bundle
from mips_dist.train import own_data
from mips_dist.train.finetune_config import FinetuneConfig
from mips_dist.train.own_data import default_folder, finetune_file, own_config
from mips_dist.train.study import read_sets
from tests.finetune.learnable import label, write_csv
from tests.shard_folder import polymers

COUNT = 24
NAMES = polymers(COUNT)
ROWS = [[p, label(p), "" if i % 8 == 0 else 5 * label(p)] for i, p in enumerate(NAMES)]
HEADER = ["polymer", "tg", "other"]


class Begun(Exception):
    """The study would begin now."""


def run_study(config: FinetuneConfig) -> int:
    raise Begun


def begin(path: Path, rows: list[list[object]], targets: list[str], column: str | None = "polymer"):
    source = write_csv(path / "my.csv", HEADER, rows)
    finetune_file(source, targets, [], path / "out", column, run_study)


@pytest.fixture(autouse=True)
def no_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_data, "estimate", lambda *_: (60.0, 240.0))


def test_it_says_what_the_data_are_and_how_long_it_takes(tmp_path, capsys):
    again = [NAMES[0].replace("*", "[*]"), ROWS[0][1] + 2.5, ""]
    bad = [["CCO", 1.0, 2.0], [NAMES[1], "n.d.", ""]]
    with pytest.raises(Begun):
        begin(tmp_path, [*ROWS, *bad, again], ["tg", "other"])
    first, second, third, fourth = capsys.readouterr().out.splitlines()
    assert first.startswith(f"tg: {COUNT + 1} labelled rows of {COUNT} polymers, ")
    assert first.endswith(
        "; 1 in several rows, which stay in one fold (labels of 1 differ, by up to 2.5)"
    )
    assert second.startswith("other: 21 labelled rows of 21 polymers, ")
    assert third.startswith(f"2 rows cannot be used, the first is row {COUNT} (from 0): star_count")
    assert "about 60 s to 4 min on " in fourth


@pytest.mark.parametrize(
    ("rows", "targets", "says"),
    [
        (ROWS[:19], ["tg"], "tg: 19 labelled polymers, too few .* at least 20, or use a released"),
        ([*ROWS[:12], *ROWS[:12]], ["tg"], "tg: 12 labelled polymers"),
        (ROWS[:6], ["tg"], "6 polymers; num_folds=5 needs 10; label more"),
        ([[p, 7, ""] for p in NAMES], ["tg"], "tg: all values are 7; nothing to learn"),
        ([[p, "high", ""] for p in NAMES], ["tg"], r"row 0, from 0: tg: 'high' is not a number"),
        ([[p, "", ""] for p in NAMES], ["tg"], "no usable row with a value in column 'tg'$"),
        (ROWS, ["density"], "no column density; its columns are: polymer, tg, other"),
        (ROWS, ["tg", "tg"], "names one twice"),
    ],
)
def test_what_cannot_be_learned_is_refused_in_a_line(tmp_path, rows, targets, says):
    with pytest.raises(MipsError, match=says) as error:
        begin(tmp_path, rows, targets)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_columns_and_units_must_be_there(tmp_path):
    with pytest.raises(UsageError, match="no column psmiles or smiles"):
        begin(tmp_path, ROWS, ["tg"], column=None)
    with pytest.raises(UsageError, match="must name one unit for each"):
        own_config(tmp_path / "my.csv", ["tg", "other"], ["K"], tmp_path / "out", None)


def test_the_study_is_the_recipe_with_the_csv_put_in(tmp_path):
    source = write_csv(tmp_path / "my.csv", HEADER, ROWS)
    config = own_config(source, ["tg"], ["K"], tmp_path / "out", "polymer")
    assert (config.pretrained, config.protocol, config.num_folds) == ("mips-small", "strict", 5)
    assert set(config.baselines) == {"mean", "boosting", "gp-trees"}
    (labelled,), _ = read_sets(config)
    assert (labelled.property.name, labelled.property.unit) == ("tg", "K")
    assert labelled.value.tolist() == [row[1] for row in ROWS]
    assert default_folder(Path("a/my.data.csv.gz"), ["tg", "E/GPa"]) == Path("runs/my-tg-E_GPa")


def test_what_a_model_is_worth_is_said_beside_guessing():
    guess = {"r2": -0.02, "r2_sd": 0.01, "rmse": 90.0, "unit": "K"}
    good = own_data._verdict(
        "tg", {"mean": guess, "mips-ensemble": guess | {"r2": 0.8, "rmse": 31.5}}
    )
    assert "about 31.5 K (root mean square; 90 K by guessing the mean); R2 0.80 ± 0.01" in good
    bad = own_data._verdict("tg", {"mean": guess, "mips-ensemble": guess | {"r2": -0.1}})
    assert "no better than guessing the mean (R2 -0.10" in bad


def test_a_csv_becomes_a_model_that_predicts_and_the_same_command_again_does_nothing(tmp_path):
    source = write_csv(tmp_path / "my.csv", HEADER, ROWS)
    finetune = ["finetune", source, "--target", "tg", "--unit", "K", "--psmiles-column", "polymer"]
    done = mips(tmp_path, *finetune)
    assert done.returncode == 0, done.stderr
    where = {text: done.stdout.find(text) for text in ("tg: 24 labelled", "about ", "gp-trees ")}
    assert -1 < where["tg: 24 labelled"] < where["about "] < where["gp-trees "]
    assert done.stdout.find("mips-ensemble") < done.stdout.find("model of tg: done")
    model = Path("runs/my-tg/models/tg")
    assert f"mips predict NEW.csv -m {model} -o predictions.csv" in done.stdout
    bundle = load_bundle(tmp_path / model, known_schema())
    assert bundle.partner is not None
    again = mips(tmp_path, *finetune)
    assert again.returncode == 0, again.stderr
    assert "20 finished before" in again.stdout
    assert "about " not in again.stdout.partition("finished before")[0]
    new = write_csv(tmp_path / "new.csv", ["psmiles"], [[p] for p in polymers(30)])
    used = mips(tmp_path, "predict", new, "-m", model, "-o", "out.csv")
    assert used.returncode == 0, used.stderr
    with (tmp_path / "out.csv").open(newline="") as file:
        predicted = [float(row["tg"]) for row in csv.DictReader(file)]
    assert np.corrcoef(predicted, [label(p) for p in polymers(30)])[0, 1] > 0.8


def mips(folder: Path, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "mips_dist.cli", *map(str, arguments)]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=500, check=False
    )
