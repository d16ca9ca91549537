"""Whatever stops a run, the same command ends with the curve of an undisturbed one, bit for bit."""

import shutil
import signal
from pathlib import Path

import psutil

from tests.distributed.conftest import (
    PRETRAIN,
    TINY,
    Outcome,
    command,
    curve,
    deepspeed,
    events,
    pretrain,
    stop,
    tags,
    texts,
)


def newest(run_dir: Path) -> int:
    return max(int(path.name[5:]) for path in (run_dir / "checkpoints").glob("step-*"))


def files(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def settings(shards: Path, run_dir: Path) -> tuple[str, ...]:
    return (f"shards={shards}", f"run_dir={run_dir}", "num_steps=20")


def check_same(disturbed: Path, straight: Path, num_steps: int) -> None:
    for tag in ("train/loss", "train/accuracy", "train/lr", "train/grad_norm"):
        assert curve(disturbed, tag) == curve(straight, tag), tag
    assert list(curve(disturbed)) == list(range(1, num_steps + 1))
    assert files(disturbed / "model") == {
        name.replace("straight", "disturbed"): data
        for name, data in files(straight / "model").items()
    }


def test_kill_and_resume_is_bit_equal(full_shards, tmp_path):
    disturbed, straight = tmp_path / "disturbed", tmp_path / "straight"
    arguments = [*settings(full_shards, disturbed), "zero.stage=2"]
    argv = command(PRETRAIN, *TINY, *arguments)
    assert stop(disturbed, argv, signal.SIGKILL, "all").code == -signal.SIGKILL
    interrupted = stop(disturbed, argv, signal.SIGINT, "all")
    assert interrupted.code == 130
    assert f"stopped after step {newest(disturbed)};" in interrupted.out
    done = pretrain(*arguments)
    assert done.code == 0, done.err
    reference = pretrain(*settings(full_shards, straight), "zero.stage=2")
    assert reference.code == 0, reference.err
    check_same(disturbed, straight, 20)


def test_two_ranks_outlive_no_launcher_and_the_curve_is_bit_equal(full_shards, tmp_path):
    """Launchers killed alone, the same command at once; then SIGTERM to all ranks together."""
    disturbed, straight = tmp_path / "disturbed", tmp_path / "straight"
    rest = ("zero.stage=2", "num_steps=80")
    arguments = [*settings(full_shards, disturbed), *rest]
    by_torchrun = command(PRETRAIN, *TINY, *arguments, ranks=2)
    orphans = [
        stop(disturbed, argv, signal.SIGKILL, "launcher")
        for argv in (by_torchrun, deepspeed(*arguments))
    ]
    ended = stop(disturbed, by_torchrun, signal.SIGTERM, "all")
    assert ended.code != 0
    assert f"stopped after step {newest(disturbed)};" in ended.out
    for orphan in orphans:
        assert orphan.out.count("error: the launcher") == 1, orphan.out
        assert "Traceback" not in orphan.out
    for stopped in (*orphans, ended):
        assert psutil.wait_procs(stopped.family, timeout=1)[1] == []
    done = pretrain(*arguments, ranks=2)
    assert done.code == 0, done.err
    reference = pretrain(*settings(full_shards, straight), *rest, ranks=2)
    assert reference.code == 0, reference.err
    check_same(disturbed, straight, 80)


def test_what_was_drawn_beyond_the_checkpoint_is_not_drawn_twice(full_shards, tmp_path):
    arguments = [*settings(full_shards, tmp_path), "num_steps=40", "checkpoint_every=8"]
    board = tmp_path / "tensorboard"

    def has_validated() -> bool:
        """Whether step 10 is on the disk: a validation flushes."""
        if not (board / "held_out").is_dir():
            return False
        found = events(board)
        return "val/loss" in found.Tags()["scalars"] and len(found.Scalars("val/loss")) >= 2

    argv = command(PRETRAIN, *TINY, *arguments)
    assert stop(tmp_path, argv, signal.SIGKILL, "all", has_validated).code != 0
    # However late the signal came: as if it had come before the second checkpoint.
    for later in sorted((tmp_path / "checkpoints").glob("step-*"))[1:]:
        shutil.rmtree(later)
    assert (tmp_path / "checkpoints" / "step-00000008").is_dir()
    assert max(curve(tmp_path)) >= 10, "steps beyond the checkpoint had been drawn"
    assert list(curve(tmp_path, "val/loss"))[:2] == [5, 10]

    done = pretrain(*arguments)
    assert done.code == 0, done.err
    for tag in tags(tmp_path):
        every = 8 if tag == "perf/checkpoint_s" else 5 if tag.startswith("val") else 1
        assert list(curve(tmp_path, tag)) == list(range(every, 41, every)), tag
    for run, every in (("training", 1), ("held_out", 5), ("no_descriptors", 5)):
        assert list(curve(board / run, "learning/loss", "")) == list(range(every, 41, every))
    validations = list(range(5, 41, 5))
    assert [image.step for image in events(board).Images("val/confusion")] == validations
    assert [text.step for text in texts(tmp_path)] == [1, 9]


def test_a_signal_a_damaged_checkpoint_and_a_finished_run(shards, tmp_path):
    arguments = settings(shards, tmp_path)
    argv = command(PRETRAIN, *TINY, *arguments)
    assert stop(tmp_path, argv, signal.SIGTERM, "all").code == 130
    newest = max((tmp_path / "checkpoints").glob("step-*"))
    weights = newest / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])

    again = pretrain(*arguments)
    assert again.code == 0, again.err
    assert f"checkpoint {newest} is damaged" in again.out
    assert list(curve(tmp_path)) == list(range(1, 21))
    kept = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))
    assert kept == ["step-00000016", "step-00000020"]

    before = files(tmp_path)
    finished: Outcome = pretrain(*arguments)
    assert finished.code == 0
    assert "is finished" in finished.out
    assert files(tmp_path) == before

    # A model that was lost or damaged is made again, from the last checkpoint, the same.
    (tmp_path / "model" / "weights.safetensors").write_bytes(b"")
    mended = pretrain(*arguments)
    assert mended.code == 0, mended.err
    assert "is finished" not in mended.out
    model = str(tmp_path / "model")
    after = files(tmp_path)
    assert {k: v for k, v in after.items() if k.startswith(model)} == {
        k: v for k, v in before.items() if k.startswith(model)
    }
