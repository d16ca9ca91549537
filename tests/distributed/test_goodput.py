"""The drill of goodput in its short form; `scripts/goodput_drill.py` alone kills ten times."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.conftest import environment

DRILL = Path(__file__).resolve().parents[2] / "scripts" / "goodput_drill.py"
PARTS = ("steps", "checkpoints", "repeated", "noticing", "starting", "ending")


def test_killed_twice_the_curve_is_the_same_and_the_figures_add_up(shards, tmp_path):
    command = [
        sys.executable, str(DRILL), "--no-preprocessing", "--kills", "2", "--steps", "120",
        "--json", str(tmp_path / "figures.json"), "--output", str(tmp_path / "runs"),
        f"shards={shards}", "checkpoint_every=10",
    ]  # fmt: skip
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "the same curve, bit for bit: True" in done.stdout
    figures = json.loads((tmp_path / "figures.json").read_text())["pretraining"]
    assert sum(figures["kills"].values()) == len(figures["recoveries_s"]) == 2
    assert figures["steps"] == 120
    calm, wild = figures["undisturbed"], figures["disturbed"]
    for run in (calm, wild):
        assert sum(run[part] for part in PARTS) == pytest.approx(run["wall"])
        assert all(run[part] >= 0 for part in PARTS), run
        assert run["steps"] > 0
        assert run["checkpoints"] > 0
    assert calm["repeated"] == calm["noticing"] == 0
    assert wild["starting"] > calm["starting"]
    assert figures["goodput"] == pytest.approx(calm["steps"] / wild["wall"])
    assert figures["goodput"] < figures["goodput_undisturbed"]
    # Each recovery lies between a kill and what was lost to it.
    assert figures["recovery_median_s"] <= figures["recovery_max_s"] < wild["wall"]
    assert figures["checkpoint_ms_per_step"] * 120 == pytest.approx(1e3 * calm["checkpoints"])
