"""A trial that goes wrong changes no other trial's numbers; failures are injected for real."""

import io
import os
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from mips_dist.data.properties import Property
from mips_dist.data.schema import known_schema
from mips_dist.data.working_copy import WorkingCopy
from mips_dist.errors import MipsError
from mips_dist.train.board import Board
from mips_dist.train.cells import run_cells
from mips_dist.train.finetune_config import FinetuneConfig
from mips_dist.train.fold_config import PropertyRows
from mips_dist.train.results import Cell
from mips_dist.train.study import Study
from mips_dist.train.trials import MAX_DEATHS, RayTrials
from tests.finetune.learnable import labelled_rows, tiny_model

COUNT = 40


class Dying(PropertyRows):
    """Rows that kill the process that trains on them, each time, as the kernel would."""

    def __reduce__(self):
        return Dying, (self.name, self.unit, self.sample, self.row, None)

    def __getattribute__(self, name):
        if name == "value":
            with open(os.environ["MIPS_TEST_DEATHS"], "a") as file:
                file.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getattribute__(name)


class Hungry(PropertyRows):
    """Rows that allocate until there is no more memory; the limit spares the machine."""

    def __reduce__(self):
        return Hungry, (self.name, self.unit, self.sample, self.row, None)

    def __getattribute__(self, name):
        if name == "value":
            limits = resource.getrlimit(resource.RLIMIT_AS)
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, limits[1]))
            try:
                hoard = []
                while True:
                    hoard.append(np.ones(2**20))
            finally:
                resource.setrlimit(resource.RLIMIT_AS, limits)
        return super().__getattribute__(name)


def test_trials_that_die_run_out_of_memory_or_give_nan_change_no_other(tmp_path, monkeypatch):
    deaths = tmp_path / "deaths"
    monkeypatch.setenv("MIPS_TEST_DEATHS", str(deaths))
    block, good = labelled_rows(COUNT)
    nan = PropertyRows("nan", "", good.sample, good.row, np.full(COUNT, np.nan))
    # Every label is finite, but not their spread.
    far = np.where(np.arange(COUNT) % 5 == 3, 1e300, good.value)
    rows = {
        "good": PropertyRows("good", "", good.sample, good.row, good.value),
        "dying": Dying("dying", "", good.sample, good.row, good.value),
        "hungry": Hungry("hungry", "", good.sample, good.row, good.value),
        "nan": nan,
        "far": PropertyRows("far", "", good.sample, good.row, far),
        "hot": PropertyRows("hot", "", good.sample, good.row, good.value),
    }
    config = FinetuneConfig(
        run_dir=str(tmp_path),
        model=tiny_model(),
        num_epochs=2,
        num_workers=2,
        cpus_per_trial=0.5,
    )
    folds = dict.fromkeys(rows, (good.sample % 5).astype(np.int64))
    hot = Property(name="hot", training={"lr": 1e30})  # the loss becomes NaN
    study = Study(config, [hot], rows, folds, block, known_schema())
    cells = [Cell("mips", name, fold, 0, "strict") for fold in (0, 1) for name in rows]
    jobs = [{"cells": [list(cell)]} for cell in cells]
    kept, board = {}, Board(cells, [])
    with RayTrials(config, WorkingCopy(str(tmp_path)), Console(quiet=True)) as trials:
        failures = trials.run(study, jobs, board, lambda r: kept.update({r.cell(): r}))

    assert set(failures) == {str(cell) for cell in cells if cell.property != "good"}
    reasons = {name: failures[f"mips {name} fold 1 seed 0"] for name in rows if name != "good"}
    assert deaths.read_text() == "x" * 2 * (1 + MAX_DEATHS)
    assert "out of memory; lower batch_size" in reasons["hungry"]
    assert "a label is NaN" in reasons["nan"]
    assert "a prediction is not finite" in reasons["far"]
    assert "the loss is not finite in epoch" in reasons["hot"]
    # The numbers of the good ones are those of a plain call.
    assert {cell.property for cell in kept} == {"good"}
    for cell, result in kept.items():
        (here,) = run_cells(study, [cell])
        assert (here.prediction, here.curve) == (result.prediction, result.curve)
    shown = Console(width=120, record=True, file=io.StringIO())
    shown.print(board)
    text = shown.export_text()
    assert text.count("failed") >= 10
    assert f"{kept[cells[0]].r2:.3f}" in text


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"gpus_per_trial": 64.0}, "gpus_per_trial=64, but Ray sees"),
        ({"cpus_per_trial": 4096.0}, "cpus_per_trial=4096 is more than the"),
    ],
)
def test_a_share_that_the_machine_does_not_have_is_one_line(shares, message, tmp_path):
    block, rows = labelled_rows(COUNT)
    config = FinetuneConfig(run_dir=str(tmp_path), model=tiny_model(), **shares)
    folds = {"oxygen": rows.sample % 5}
    study = Study(config, [], {"oxygen": rows}, folds, block, known_schema())
    cell = Cell("mips", "oxygen", 0, 0, "strict")
    jobs = [{"cells": [list(cell)]}]
    with (
        pytest.raises(MipsError, match=message),
        RayTrials(config, WorkingCopy(str(tmp_path)), Console(quiet=True)) as trials,
    ):
        trials.run(study, jobs, Board([cell], []), lambda _: None)
    assert not (tmp_path / ".ray").is_symlink()
