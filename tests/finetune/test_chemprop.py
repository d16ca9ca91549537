"""The baseline `chemprop` in a study: its rule on test labels, its numbers, and where it writes."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from mips_dist.config import run
from mips_dist.finetune import main
from mips_dist.train.cells import run_cells
from mips_dist.train.finetune_config import FinetuneConfig
from mips_dist.train.finetuning import inner_polymers
from mips_dist.train.results import Cell, FoldResult
from mips_dist.train.study import Study
from tests.finetune.learnable import labelled_rows, tiny_model, write_csv

needs_chemprop = pytest.mark.skipif(
    find_spec("chemprop") is None, reason='needs pip install "mips-dist[chemprop]"'
)


def result_of(study: Study, fold: int) -> FoldResult:
    return run_cells(study, [Cell("chemprop", "oxygen", fold, 0, "strict")])[0]


@pytest.fixture(scope="module")
def study() -> Study:
    # 65 rows in the test fold 1: chemprop's loader would by default drop the last one.
    block, rows = labelled_rows(160, repeats=5)
    folds = np.where(rows.sample < 60, 1, 0)
    config = FinetuneConfig(model=tiny_model(), baselines=["chemprop"])
    return Study(
        config=config, properties=[], rows={"oxygen": rows}, folds={"oxygen": folds}, block=block,
        schema={},
    )  # fmt: skip


@needs_chemprop
def test_it_learns_gives_the_same_numbers_again_and_writes_nothing(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    # Within a Slurm job, where Lightning by itself would look for its ranks.
    monkeypatch.setenv("SLURM_JOB_NAME", "study")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    first = result_of(study, 1)
    again = result_of(study, 1)
    assert again.prediction == first.prediction
    assert len(first.prediction) == 65
    assert first.r2 > 0.5
    assert 1 <= first.epoch <= 50
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


@needs_chemprop
def test_no_label_of_the_test_fold_is_read_and_the_inner_split_is_not_trained_on(
    study: Study,
) -> None:
    rows, folds = study.rows["oxygen"], study.folds["oxygen"]
    hidden = np.where(folds == 0, 1e9, rows.value)
    blind = replace(study, rows={"oxygen": replace(rows, value=hidden)})
    seen = result_of(study, 0)
    assert result_of(blind, 0).prediction == seen.prediction
    watched = inner_polymers(rows.sample[folds == 1], 0.15, 0, 0)
    assert seen.num_train == np.count_nonzero(~np.isin(rows.sample[folds == 1], watched)) < 65


def test_without_the_package_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("mips_dist.train.baselines.find_spec", lambda name: None)
    path = write_csv(tmp_path / "own.csv", ["psmiles", "x"], [["*C*", 1.0]])
    run_dir = tmp_path / "run"
    arguments = [f"input={path}", "targets=[x]", "baselines=[chemprop]", f"run_dir={run_dir}"]
    assert run(main, FinetuneConfig, "finetune", arguments) == 1
    error = capsys.readouterr().err
    assert error == 'error: the baseline chemprop needs: pip install "mips-dist[chemprop]"\n'
    assert not run_dir.exists()
