import csv
import json
import math

import numpy as np
import pytest
from rich.console import Console

from mips_dist.data.properties import Property, Published
from mips_dist.errors import MipsError
from mips_dist.train.results import Cell, FoldResult, Ledger, regression_scores
from mips_dist.train.tables import CSV_COLUMNS, render, summarize, write_csv, write_json


def result(model="mips", name="tg", fold=0, seed=0, protocol="strict", r2=0.5):
    return FoldResult(
        model=model, property=name, fold=fold, seed=seed, protocol=protocol, r2=r2, rmse=1 - r2,
        mae=0.1, unit="K", num_train=8, epoch=2, curve=[{"epoch": 1.0}], row=[1, 2],
        prediction=[0.1, 1 / 3],
    )  # fmt: skip


def test_scores_are_those_of_scikit_learn():
    from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

    target, prediction = np.random.default_rng(0).normal(size=(2, 20))
    scores = regression_scores(target, prediction)
    assert scores.r2 == pytest.approx(r2_score(target, prediction))
    assert scores.rmse == pytest.approx(root_mean_squared_error(target, prediction))
    assert scores.mae == pytest.approx(mean_absolute_error(target, prediction))
    assert math.isnan(regression_scores(np.ones(3), np.zeros(3)).r2)


def test_the_ledger_keeps_cells_bit_for_bit_and_never_twice(tmp_path):
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    ledger.append(result(r2=1 / 3))
    ledger.append(result(r2=0.9))
    ledger.close()
    again = Ledger(path)
    assert list(again.results) == [Cell("mips", "tg", 0, 0, "strict")]
    assert again.results[Cell("mips", "tg", 0, 0, "strict")] == result(r2=1 / 3)
    again.close()


def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path):
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    ledger.append(result(fold=0))
    ledger.append(result(fold=1))
    ledger.close()
    path.write_bytes(path.read_bytes()[:-20])
    ledger = Ledger(path)
    assert [cell.fold for cell in ledger.results] == [0]
    ledger.append(result(fold=1))
    ledger.close()
    assert [json.loads(line)["fold"] for line in path.read_text().splitlines()] == [0, 1]


def test_a_damaged_ledger_and_a_second_driver_are_refused(tmp_path):
    path = tmp_path / "ledger.jsonl"
    path.write_text("{}\n")
    with pytest.raises(MipsError, match="line 1, is damaged"):
        Ledger(path)
    other = tmp_path / "other.jsonl"
    first = Ledger(other)
    with pytest.raises(MipsError, match="another run is at work"):
        Ledger(other)
    first.close()
    Ledger(other).close()


@pytest.fixture
def summaries():
    row = Published(model="MIPS", protocol="paper", r2=0.9, r2_sd=0.1, rmse=2.0, rmse_sd=0.2)
    properties = [Property(name="tg", unit="K", published=row), Property(name="egc", unit="eV")]
    results = [result(fold=f, r2=r2) for f, r2 in enumerate([0.4, 0.6])]
    results += [result("boosting", fold=f, r2=0.7) for f in range(2)]
    results += [result(name="egc", r2=0.8, fold=f) for f in range(2)]
    results += [result("boosting", "egc", r2=0.2, fold=f) for f in range(2)]
    results += [result(name=n, protocol="paper") for n in ("tg", "egc")]  # one fold of two
    return results, summarize(results, properties, num_folds=2)


def test_the_table_has_mean_and_sd_and_the_published_row_beside(summaries):
    tg = [s for s in summaries[1] if s.property == "tg"]
    assert [s.model for s in tg] == ["mips", "mips", "boosting", "MIPS"]
    tg.pop(0)  # paper, incomplete
    assert (tg[0].r2, tg[0].num_cells) == (pytest.approx(0.5), 2)
    assert tg[0].r2_sd == pytest.approx(np.std([0.4, 0.6], ddof=1))
    assert tg[0].note == "below boosting"
    assert (tg[2].protocol, tg[2].note) == ("paper", "published")
    egc = next(s for s in summaries[1] if s.property == "egc")
    assert (egc.protocol, egc.note) == ("paper", "incomplete")
    assert math.isnan(egc.r2_sd)
    # Over sets: only the rows that every set has.
    means = {s.model: s.r2 for s in summaries[1] if s.property == "mean of all sets"}
    assert means == {"mips": pytest.approx(0.65), "boosting": pytest.approx(0.45)}


def test_a_row_without_all_seeds_is_incomplete():
    results = [result(fold=f, protocol=p) for f in range(2) for p in ("strict", "paper")]
    results += [result(fold=f, seed=1) for f in range(2)]
    results += [result("mean", fold=f) for f in range(2)]
    found = summarize(results, [Property(name="tg")], num_folds=2, num_seeds=2)
    notes = {(s.model, s.protocol): s.note for s in found}
    assert notes == {
        ("mips", "paper"): "incomplete",
        ("mips", "strict"): "",
        ("mean", "strict"): "",
    }


def test_the_printed_table_fits_eighty_columns(summaries):
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render(summaries[1], {"tg": 12, "egc": 3}))
    text = console.export_text()
    for wanted in (
        "0.500 ± 0.141",
        "mips *",
        "strict",
        "12",
        "tg, K",
        "published",
        "(1 cells only)",
    ):
        assert wanted in text


def test_the_files_hold_what_the_table_shows(summaries, tmp_path):
    results, lines = summaries
    write_csv(results, tmp_path / "results.csv")
    with open(tmp_path / "results.csv") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == CSV_COLUMNS
    assert len(rows) == len(results)
    assert {float(r["r2"]) for r in rows if r["model"] == "boosting"} == {
        0.2, 0.7
    }  # fmt: skip
    write_json(lines, {"failures": {}}, tmp_path / "results.json")
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["summary"][0]["unit"] == "K"
    assert content["failures"] == {}
