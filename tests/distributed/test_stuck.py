"""A rank that hangs or dies, a step that is not finite, two jobs at once."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from mips_dist.data.shards import read_index
from tests.distributed.conftest import (
    PRETRAIN,
    TINY,
    command,
    curve,
    environment,
    execute,
    pretrain,
)

COMMANDS = Path(__file__).with_name("commands.py")
LONG = ("num_steps=60", "checkpoint_every=4")


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(PRETRAIN, *TINY, *arguments, ranks=2),
        env=environment(),
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def rank_process(launcher: subprocess.Popen[str], rank: int) -> psutil.Process:
    for child in psutil.Process(launcher.pid).children(recursive=True):
        if child.environ().get("RANK") == str(rank):
            return child
    raise AssertionError("no such rank")


def strike(launcher: subprocess.Popen[str], run_dir: Path, rank: int, number: int) -> None:
    """Send a signal to one rank after the first checkpoint."""
    deadline = time.monotonic() + 200
    while not any((run_dir / "checkpoints").glob("step-*")):
        assert launcher.poll() is None, launcher.communicate()
        assert time.monotonic() < deadline, "no checkpoint"
        time.sleep(0.005)
    os.kill(rank_process(launcher, rank).pid, number)


def test_one_rank_stops_or_dies_and_the_run_goes_on_bit_equal(shards, tmp_path):
    """Jobs run beside each other throughout: ports, locks and build folders are their own."""
    runs = {name: tmp_path / name for name in ("stopped", "killed", "straight")}
    arguments = {name: [f"shards={shards}", f"run_dir={run}", *LONG] for name, run in runs.items()}
    limit = "timeout_minutes=0.25"
    both = [start(*arguments[name], limit) for name in ("stopped", "killed")]
    # At once, as the second one might finish before its turn came.
    with ThreadPoolExecutor() as pool:
        strikes = [
            pool.submit(strike, both[0], runs["stopped"], 1, signal.SIGSTOP),
            pool.submit(strike, both[1], runs["killed"], 0, signal.SIGKILL),
        ]
    for done in strikes:
        done.result()
    straight = start(*arguments["straight"])
    for launcher, rank in zip(both, (1, 0), strict=True):
        _, err = launcher.communicate(timeout=120)
        assert launcher.returncode != 0
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, err
        assert re.match(rf"error: rank {rank} of 2 did not answer at step \d+ ", lines[0]), err

    again = [start(*arguments[name]) for name in ("stopped", "killed")]
    for launcher in (straight, *again):
        out, err = launcher.communicate(timeout=240)
        assert launcher.returncode == 0, out + err
    expected = curve(runs["straight"])
    assert list(expected) == list(range(1, 61))
    for name in ("stopped", "killed"):
        assert curve(runs[name]) == expected, name


def test_a_refused_step_names_its_polymers(shards, tmp_path):
    """A learning rate that destroys the weights in one step: the five after it are refused."""
    outcome = pretrain(f"shards={shards}", f"run_dir={tmp_path}", "optimizer.lr=1e30", ranks=2)
    assert outcome.code != 0
    assert outcome.err.count("error: no finite gradient at 5 steps in a row") == 1, outcome.err
    index = read_index(shards)
    spelling = dict(zip(index.row.tolist(), index.psmiles, strict=True))
    files = sorted((tmp_path / "skipped").iterdir())
    assert len(files) == 5
    for file in files:
        found = json.loads(file.read_text())
        assert file.name == f"step-{found['step']}.json"
        parts = [(part["rank"], part["micro_batch"]) for part in found["micro_batches"]]
        assert parts == [(0, 0), (0, 1), (1, 0), (1, 1)]
        samples = [sample for part in found["micro_batches"] for sample in part["samples"]]
        assert len(samples) == 16
        assert all(spelling[sample["row"]] == sample["psmiles"] for sample in samples)


def test_a_checkpoint_that_no_longer_gives_its_loss_is_refused(shards, tmp_path):
    """Weights altered with a checksum that fits: as another version of the code would."""
    import torch
    from safetensors.torch import load_file, save_file

    from mips_dist.data.files import file_sha256
    from mips_dist.train.checkpoint import _digest

    good, altered = tmp_path / "good", tmp_path / "altered"
    started = pretrain(
        *(f"shards={shards}", f"run_dir={good}", "num_steps=4", "zero.stage=3", "precision=bf16"),
        ranks=2,
    )
    assert started.code == 0, started.err
    shutil.copytree(good, altered)
    folder = altered / "checkpoints" / "step-00000004"
    weights = load_file(folder / "weights.safetensors")
    weights["head.output.bias"] += torch.linspace(0, 3, 101)
    save_file(weights, folder / "weights.safetensors")
    body = json.loads((folder / "state.json").read_text())
    del body["sha256"]
    body["files"]["weights.safetensors"] = file_sha256(folder / "weights.safetensors")
    (folder / "state.json").write_text(json.dumps({"sha256": _digest(body), **body}))
    argv = [[*TINY, f"shards={shards}", f"run_dir={run}"] for run in (altered, good)]
    outcome = execute([sys.executable, str(COMMANDS), json.dumps(argv)])
    assert outcome.code == 0, outcome.err
    (code, _, err), (good_code, _, good_err) = json.loads(outcome.out.splitlines()[-1])
    assert (code, err.count("\n")) == (1, 1), err
    assert "on its probe, not the stored" in err
    # One rank, stage 1 and fp32 give what two ranks, stage 3 and bf16 stored, within its tolerance.
    assert good_code == 0, good_err
