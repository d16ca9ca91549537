"""What is said before, during and after the work is true, and too full a disk is known before."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from preprocess import pipeline, preflight
from preprocess import progress as progress_module
from preprocess.preflight import look_ahead
from preprocess.progress import duration, progress
from preprocess.rows import inspect
from tests.preprocess.test_pipeline import InlinePool, contents, corpus, in_process


@pytest.fixture(autouse=True)
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "WorkerPool", InlinePool)


def test_the_space_is_of_the_right_size(tmp_path: Path) -> None:
    source, output = corpus(tmp_path / "in.csv", 150), tmp_path / "out"
    expected = look_ahead(inspect(str(source), ""), "topology", output)
    assert in_process(source, output) == 0
    written = sum(map(len, contents(output).values()))
    # Small shards compress badly.
    assert written / 5 < expected.missing_bytes < 5 * written
    assert 1e-6 < expected.parse_seconds < 1e-2
    assert f"{duration(expected.cpu_seconds / 2)} with 2 actors" in expected.line(2)


def test_a_disk_without_room_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = corpus(tmp_path / "in.csv", 150), tmp_path / "deep" / "out"

    def almost_full(path: Path) -> Any:
        assert path == tmp_path
        return shutil._ntuple_diskusage(10**9, 10**9 - 5000, 5000)

    monkeypatch.setattr(preflight.shutil, "disk_usage", almost_full)
    assert in_process(source, output) == 1
    message = capsys.readouterr().err
    assert " kB (shards " in message
    assert "its disk has 5.0 kB free" in message
    assert message.count("\n") == 1
    assert not output.parent.exists()


def test_what_is_there_already_needs_no_more_room_and_no_more_time(tmp_path: Path) -> None:
    source, output = inspect(str(corpus(tmp_path / "in.csv", 150)), ""), tmp_path / "out"
    fresh = look_ahead(source, "full", output)
    (output / "work" / "rows").mkdir(parents=True)
    half = int(fresh.missing_bytes / 2)
    (output / "work" / "rows" / "000000.json").write_bytes(bytes(half))
    resumed = look_ahead(source, "full", output)
    assert resumed.missing_bytes == pytest.approx(fresh.missing_bytes - half)
    per_parse = fresh.cpu_seconds / fresh.parse_seconds
    assert resumed.cpu_seconds / resumed.parse_seconds == pytest.approx(per_parse / 2, rel=1e-3)


def test_the_log_adds_up_over_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, output = corpus(tmp_path / "in.csv", 20), tmp_path / "out"

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "find_first_rows", crash)
        assert in_process(source, output) == 130
    assert in_process(source, output) == 0
    runs = json.loads((output / "log.json").read_text())["runs"]
    assert [run["is_finished"] for run in runs] == [False, True]
    for entry in runs:
        assert entry["num_rows"] == 26
        assert entry["driver"]["max_rss_bytes"] > 1e7
        assert entry["driver"]["cpu_seconds"] > 0


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def lines_of(
    steps: list[tuple[float, int, bool]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> list[str]:
    clock = Clock()
    monkeypatch.setattr(progress_module.time, "monotonic", clock)
    capsys.readouterr()
    with progress("work", 100_000, "rows") as advance:
        for seconds, count, is_new in steps:
            clock.now += seconds
            advance(count, is_new=is_new)
    return capsys.readouterr().err.splitlines()


def test_work_of_an_earlier_run_says_nothing_about_the_rate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Half of it is looked through in 400 s, then 100 rows a second are new.
    steps = [(400.0, 50_000, False)] + [(50.0, 5000, True)] * 10
    lines = lines_of(steps, monkeypatch, capsys)
    assert lines[0] == "work: 0 of 100,000 rows"
    assert lines[1] == "work: 50,000 of 100,000 rows"
    assert lines[2] == "work: 55,000 of 100,000 rows, 100 rows/s, 7 min 30 s left"
    assert lines[-1] == "work: 100,000 of 100,000 rows, 100 rows/s"


def test_a_long_run_prints_few_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = lines_of([(1.0, 1, True)] * 100_000, monkeypatch, capsys)
    assert 300 < len(lines) < 500
    assert ", 1 rows/s, 1 d 0 h left" in lines[100]
