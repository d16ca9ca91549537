"""The report of a small study: whole, alone, safe, and its numbers those of the ledger."""

import json
import re
import shlex
from dataclasses import replace
from html import escape as html_escape
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from mips_dist.cli import app
from mips_dist.config import compose, save_resolved
from mips_dist.errors import MipsError
from mips_dist.train import tables
from mips_dist.train.cells import ensemble_results, run_cells, study_cells
from mips_dist.train.environment import environment, read_environments, record_environment
from mips_dist.train.finetune_config import FinetuneConfig
from mips_dist.train.results import Ledger
from mips_dist.train.study import Study, load_study, read_sets
from mips_dist.train.tables import summarize
from mips_dist.use.report.charts import bin_edges
from mips_dist.use.report.command import study_command
from mips_dist.use.report.folder import read_folder, read_labels
from mips_dist.use.report.write import write_report
from tests.finetune.learnable import label, tiny_model, write_csv
from tests.page import Page
from tests.shard_folder import polymers, write_shards

COUNT = 45
HOSTILE = """<script>alert('1')</script><img src=x onerror="x()">&amp;"""


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> tuple[Path, FinetuneConfig]:
    """Run a study of two targets, one of them named to do harm, in this process."""
    root = tmp_path_factory.mktemp("study")
    rows = [[p, label(p), label(p) ** 2 + i] for i, p in enumerate(polymers(COUNT))]
    rows.append(["CCO", 1.0, 2.0])
    config = FinetuneConfig(
        model=tiny_model(),
        num_epochs=3,
        num_folds=3,
        input=str(write_csv(root / "own.csv", ["psmiles", "tg_K", HOSTILE], rows)),
        targets=["tg_K", HOSTILE],
        units=["K", "<b>"],
        shards=str(write_shards(root / "shards", COUNT)),
        run_dir=str(root / "run, 1"),
    )
    run_study(config)
    return Path(config.run_dir), config


def run_study(config: FinetuneConfig) -> tuple[Study, Ledger]:
    run_dir = Path(config.run_dir)
    run_dir.mkdir()
    loaded = load_study(config, *read_sets(config))
    save_resolved(config, run_dir / "config.yaml")
    ledger = Ledger(run_dir / "ledger.jsonl")
    for cell in study_cells(config):
        ledger.append(run_cells(loaded, [cell])[0])
    ledger.close()
    return loaded, ledger


def test_the_ensemble_stands_beside_its_members(study, tmp_path):
    config = replace(study[1], run_dir=str(tmp_path / "run"), baselines=["gp-trees"])
    loaded, ledger = run_study(config)
    run_dir = Path(config.run_dir)
    assert not read_folder(run_dir).ensembles  # scored by the command, at its end
    expected = ensemble_results(loaded, ledger.results)
    tables.write_csv([*ledger.results.values(), *expected], run_dir / "results.csv")
    folder = read_folder(run_dir)
    assert len(folder.ensembles) == len(expected) == 6
    for found, known in zip(folder.ensembles, expected, strict=True):
        assert found.cell() == known.cell()
        assert (found.row, found.prediction) == (known.row, known.prediction)
        assert (found.r2, found.rmse, found.mae) == (known.r2, known.rmse, known.mae)
    assert not folder.missing
    text, page = page_of(run_dir)
    assert page.texts.count("mips-ensemble") > 3
    hours = sum(result.seconds for result in ledger.results.values()) / 3600
    assert f"all cells: {hours:.3g} CPU hours" in " ".join(text.split())
    (run_dir / "results.csv").write_text("model,property\nmips,x\n")
    with pytest.raises(MipsError, match=r"results\.csv is damaged; run the command"):
        read_folder(run_dir)


@pytest.fixture
def run_dir(study, tmp_path) -> Path:
    """Copy the folder of the study, to be changed."""
    copy = tmp_path / "run"
    copy.mkdir()
    for path in study[0].iterdir():
        if path.is_file():
            (copy / path.name).write_bytes(path.read_bytes())
    return copy


def page_of(run_dir: Path) -> tuple[str, Page]:
    text = write_report(run_dir, None, None).read_text(encoding="utf-8")
    return text, Page(text)


def test_the_page_is_whole_alone_and_escaped(run_dir):
    (run_dir / "ablation.json").write_text(
        json.dumps(
            [
                {"component": HOSTILE, "variant": HOSTILE, "property": HOSTILE, "r2": 0.5,
                 "r2_sd": 0.1, "rmse": 1.0, "num_cells": 5, "protocol": HOSTILE,
                 "published": HOSTILE, "further": HOSTILE},
                {"component": "radius", "variant": "1", "property": "tg_K", "r2": None},
            ]
        )
    )  # fmt: skip
    (run_dir / "rsit.json").write_text(
        json.dumps(
            {"rows": [{"strategy": HOSTILE, "model": HOSTILE, "gap": 0.0, "original": 0.875}]}
        )
    )
    text, page = page_of(run_dir)
    page.check_alone()
    assert "url(" not in text
    assert sum(HOSTILE in piece for piece in page.texts) > 20
    assert page.tags["h1"] == 1
    assert page.tags["caption"] == page.tags["table"]
    levels = [int(level) for level in re.findall(r"<h(\d)>", text)]
    assert all(after - before <= 1 for before, after in pairwise(levels))
    svgs = re.findall(r"<svg [^>]*>(?:<title>[^<]+</title>)?", text)
    assert all('aria-hidden="true"' in svg or "<title>" in svg for svg in svgs)
    radios = {value for tag, name, value in page.attributes if (tag, name) == ("input", "id")}
    named = {value for tag, name, value in page.attributes if (tag, name) == ("label", "for")}
    assert len(radios) == 2 * 3
    assert radios == named
    for heading in ("Ablations", "Repeat and shift invariance", "Rows that could not be used"):
        assert f"<h2>{heading}</h2>" in text
    assert "0.875" in page.texts


def test_numbers_are_those_of_the_ledger(study, run_dir):
    text, page = page_of(run_dir)
    folder = read_folder(run_dir)
    assert len(folder.results) == 2 * 3 * 3
    assert not folder.missing
    assert "Not finished" not in text
    again = summarize(folder.results, folder.properties, 3, 1)
    assert len(again) == 2 * 3 + 3
    words = " ".join(page.texts)
    for summary in again:
        if not np.isnan(summary.r2_sd):
            assert f"{summary.r2:.3f} ± {summary.r2_sd:.3f}" in words
            assert f"{summary.rmse:.3f} ± {summary.rmse_sd:.3f}" in words
    for result in folder.results:
        assert f"{result.r2:.4f}" in words
    # Every prediction is one dot, in the colour of its fold.
    dots = re.findall(r'<path class="dots c(\d)" d="([^"]*)"', text)
    assert len(dots) == 2 * 3 * 3
    assert sum(d.count("M") for _, d in dots) == 2 * 3 * COUNT
    first = [r for r in folder.results if r.model == "mips" and r.property == "tg_K"]
    for result in first:
        assert (str(result.fold), len(result.row)) in [(c, d.count("M")) for c, d in dots]


def test_an_unfinished_study_says_so(run_dir):
    ledger = run_dir / "ledger.jsonl"
    lines = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join(lines[1:-2]) + lines[-1][:50])  # as a killed driver leaves it
    before = ledger.read_bytes()
    text, _ = page_of(run_dir)
    assert "3 of 18 cells are missing" in text
    assert "mips tg_K fold 0 seed 0" in text
    assert "incomplete" in text
    assert ledger.read_bytes() == before
    ledger.write_bytes(b"")
    with pytest.raises(MipsError, match="no finished cell"):
        page_of(run_dir)


def test_without_the_labels_the_page_has_the_rest(study, run_dir, tmp_path):
    whole, _ = page_of(run_dir)
    config = (run_dir / "config.yaml").read_text()
    moved = tmp_path / "moved.csv"
    moved.write_bytes(Path(study[1].input).read_bytes())
    (run_dir / "config.yaml").write_text(config.replace("own.csv", "gone.csv"))
    text, page = page_of(run_dir)
    page.check_alone()
    assert "<b>Without labels,</b>" in text
    assert "gone.csv" in text
    assert "<h2>Parity</h2>" not in text
    assert "<h2>Learning curves</h2>" in text
    again = write_report(run_dir, tmp_path / "page.html", moved).read_text(encoding="utf-8")
    assert again.count('class="dots') == whole.count('class="dots')
    # Labels that the study was not scored on are never drawn.
    lines = moved.read_text().splitlines()
    number = float(lines[1].split(",")[1])
    changed = lines[1].replace(f",{number},", f",{number + 1},", 1)
    assert changed != lines[1]
    moved.write_text("\n".join([lines[0], changed, *lines[2:]]) + "\n")
    with pytest.raises(MipsError, match="are not those that the study was scored on"):
        write_report(run_dir, None, moved)


def test_distances_are_to_other_folds(study, run_dir):
    folder = read_folder(run_dir)
    labels = read_labels(folder, None)["tg_K"]
    assert len(labels.value) == len(labels.distance) == COUNT
    assert all(0 < d <= 1 for d in labels.distance.values())
    edges = bin_edges(np.array(list(labels.distance.values())))
    assert edges[0] == min(labels.distance.values())
    assert edges[-1] == max(labels.distance.values())
    assert len(bin_edges(np.full(50, 0.5))) == 2


def test_the_command_gives_the_configuration(study):
    config = read_folder(study[0]).config
    words = shlex.split(study_command(config))
    assert words[:2] == ["python", "mips_dist/finetune.py"]
    composed = compose(FinetuneConfig, "finetune", words[2:])
    composed.given = []  # which keys the command named
    assert composed == study[1]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda d: None, "no folder"),
        (lambda d: d.mkdir(), "is no run of this library"),
        (lambda d: (d / "model").mkdir(parents=True), "is no run of this library"),
        (lambda d: (d / "checkpoints").mkdir(parents=True), "config.yaml cannot be read"),
    ],
)
def test_a_folder_that_is_no_run_is_one_line(tmp_path, make, says):
    make(tmp_path / "run")
    with pytest.raises(MipsError, match=says) as caught:
        write_report(tmp_path / "run", None, None)
    assert "\n" not in str(caught.value)


def test_damaged_rows_are_named(run_dir):
    (run_dir / "rsit.json").write_text('{"strategy": 1}')
    with pytest.raises(MipsError, match=r"rsit\.json is no list of rows"):
        page_of(run_dir)


def test_environments_are_recorded_once(tmp_path):
    record_environment(tmp_path)
    record_environment(tmp_path)
    assert read_environments(tmp_path) == [environment()]
    other = environment() | {"processor": "another"}
    (tmp_path / "environment.json").write_text(json.dumps([other]))
    record_environment(tmp_path)
    assert read_environments(tmp_path) == [other, environment()]


def test_the_command_line_makes_it(run_dir, tmp_path):
    from typer.testing import CliRunner

    target = tmp_path / "page.html"
    done = CliRunner().invoke(app, ["report", str(run_dir), "-o", str(target)])
    assert done.exit_code == 0
    assert done.stdout == f"report: {target}\n"
    assert html_escape(HOSTILE) in target.read_text(encoding="utf-8")
