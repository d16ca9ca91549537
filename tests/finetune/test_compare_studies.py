"""Two studies side by side: paired differences, and what must not be compared."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from mips_dist.train.results import FoldResult

ROOT = Path(__file__).resolve().parents[2]


def study(run_dir: Path, r2: dict[tuple[str, int], float], **identity: object) -> Path:
    run_dir.mkdir()
    (run_dir / "study.json").write_text(json.dumps({"lr": 0.1, "folds_sha256": "a", **identity}))
    lines = [
        json.dumps(
            asdict(
                FoldResult(
                    model=model, property=name, fold=fold, seed=0, protocol="strict",
                    r2=value, rmse=1.0 - value, mae=0.0, unit="eV", epoch=7, num_train=9,
                )
            )
        )
        for (name, fold), value in r2.items()
        for model in ("mips", "mean")
    ]  # fmt: skip
    # As a killed driver leaves it: an incomplete last line.
    (run_dir / "ledger.jsonl").write_text("\n".join(lines) + '\n{"model": "mi')
    return run_dir


def compare(*runs: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/compare_studies.py", *map(str, runs)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_differences_are_paired(tmp_path):
    first = study(tmp_path / "one", {("egc", 0): 0.5, ("egc", 1): 0.9, ("ei", 0): 0.1})
    second = study(
        tmp_path / "two", {("egc", 1): 0.92, ("egc", 0): 0.56, ("xc", 0): 0.3}, pretrained="b"
    )
    done = compare(first, second)
    assert (done.returncode, done.stderr) == (0, "")
    # (.06 + .02) / 2, and their standard deviation .0283 over the root of two.
    assert done.stdout.splitlines()[2:] == [
        "| egc | 2 | 0.700 | 0.740 | +0.040 ± 0.020 | 2 | 0.3 | 0.26 | 7, 7 |"
    ]


def test_what_differs_in_more_than_its_start_is_refused(tmp_path):
    first = study(tmp_path / "one", {("egc", 0): 0.5})
    others = {
        "differ in lr too": study(tmp_path / "two", {("egc", 0): 0.5}, lr=0.2),
        "no cell": study(tmp_path / "three", {("egc", 1): 0.5}),
    }
    for text, other in others.items():
        done = compare(first, other)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert text in done.stderr
