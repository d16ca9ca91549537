"""The kernels for GPUs, on a machine without one: their results and their machine code."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# torch for CPUs comes without Triton; ./scripts/test puts one here, apart from all else.
INTERPRETER = Path(sys.prefix) / "interpreted-kernels"


def run_with_triton(*arguments: str, **settings: str) -> str:
    has_triton = importlib.util.find_spec("triton") is not None
    path = os.pathsep.join([str(ROOT), *([] if has_triton else [str(INTERPRETER)])])
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | settings | {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_kernels_equal_their_formulas_both_ways():
    printed = run_with_triton("-m", "tests.model.interpreted_kernels", TRITON_INTERPRET="1")
    found = json.loads(printed.splitlines()[-1])
    assert len(found) == 11
    for case, errors in found.items():
        assert all(error < 3e-6 for error in errors), (case, errors)  # no NaN either


@pytest.mark.parametrize("capability", ["80", "90", "100"])
def test_kernels_compile_for_gpus_that_are_not_here(tmp_path, capability):
    file = tmp_path / "costs.json"
    cache = {"TRITON_CACHE_DIR": str(tmp_path / "cache")}
    run_with_triton(
        "scripts/kernel_costs.py", "--capability", capability, "--json", str(file), **cache
    )
    costs = {row["kernel"]: row for row in json.loads(file.read_text(encoding="utf-8"))}
    assert len(costs) == 4
    for name, cost in costs.items():
        assert cost["instructions"] > 100, name
        # Two programs at a time on a multiprocessor, of 256 threads each.
        assert cost["registers"] <= 128, name
        assert cost["shared_bytes"] <= 113 * 1024, name
    assert all(row["spilled_bytes"] == 0 for name, row in costs.items() if "gelu" in name)
