"""The drill of kills in its short form; `scripts/study_drill.py` alone does ten and two."""

import os
import subprocess
import sys
from pathlib import Path

from tests.finetune.learnable import label, write_csv
from tests.shard_folder import polymers, write_shards

DRILL = Path(__file__).resolve().parents[2] / "scripts" / "study_drill.py"


def test_killed_trials_and_a_killed_driver_change_no_byte(tmp_path):
    rows = [[p, label(p), label(p) ** 2] for p in polymers(40)]
    csv = write_csv(tmp_path / "own.csv", ["psmiles", "a", "b"], rows)
    shards = write_shards(tmp_path / "shards", 40)
    command = [
        sys.executable, str(DRILL), "--trial-kills", "2", "--driver-kills", "1", f"input={csv}",
        "targets=[a,b]", f"shards={shards}", "model.hidden_dim=16", "model.num_layers=1",
        "model.num_heads=2", "model.ffn_dim=32", "model.descriptors=[]", "num_epochs=60",
        "patience=60", "batch_size=4", "num_folds=4",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "results.csv: equal byte for byte" in done.stdout
    assert done.stdout.count("drill: killed a trial") == 2
    assert done.stdout.count("drill: killed a driver") == 1
