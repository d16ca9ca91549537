"""The kernels for GPUs equal their formulas, dropout included, in Triton's interpreter."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# torch for CPUs comes without Triton; ./scripts/test puts one here, apart from all else.
INTERPRETER = Path(sys.prefix) / "interpreted-kernels"


def test_kernels_equal_their_formulas_both_ways():
    has_triton = importlib.util.find_spec("triton") is not None
    path = [str(ROOT), *([] if has_triton else [str(INTERPRETER)])]
    settings = {"PYTHONPATH": os.pathsep.join(path), "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.model.interpreted_kernels"],
        cwd=ROOT,
        env=os.environ | settings | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 9
    for case, errors in found.items():
        assert max(errors) < 2e-6, (case, errors)
