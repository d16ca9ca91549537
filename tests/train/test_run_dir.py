"""A run's folder is begun, continued or refused."""

import os
import signal
from dataclasses import replace
from threading import Timer

import pytest

from mips_dist.data import lock
from mips_dist.data.schema import feature_schema
from mips_dist.errors import MipsError
from mips_dist.model.bundle import save_bundle
from mips_dist.model.mips import MaskedAtomModel
from mips_dist.train.optim import OptimizerConfig
from mips_dist.train.pretrain_config import PretrainConfig
from mips_dist.train.run_dir import RunDir
from mips_dist.train.signals import StopSignal
from tests.finetune.learnable import tiny_model


def config(folder, **changes) -> PretrainConfig:
    return PretrainConfig(run_dir=str(folder / "run"), **changes)


def begin(folder, config) -> list[str]:
    run = RunDir(folder / "run")
    run.lock(config)
    return run.open(config)


def test_continue_with_what_may_change(tmp_path):
    first = config(tmp_path, num_steps=10)
    begin(tmp_path, first)
    lines = begin(tmp_path, replace(first, num_steps=20, precision="bf16"))
    assert lines == [
        "continuing with num_steps=20 (was 10)",
        "continuing with precision=bf16 (was fp32)",
    ]
    assert begin(tmp_path, replace(first, num_steps=20, precision="bf16")) == []


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"seed": 1}, "seed=0, not seed=1"),
        ({"global_batch_size": 8}, "global_batch_size"),
        ({"optimizer": OptimizerConfig(lr=1.0)}, "optimizer.lr"),
    ],
)
def test_refuse_what_would_mix_two_runs(tmp_path, change, text):
    begin(tmp_path, config(tmp_path))
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    for attempt in (RunDir.lock, RunDir.open, RunDir.check):
        with pytest.raises(MipsError, match=text):
            attempt(RunDir(tmp_path / "run"), config(tmp_path, **change))
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before


def test_refuse_what_is_no_run(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(MipsError, match="no pre-training run"):
        begin(tmp_path, config(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(MipsError, match="is a file"):
        RunDir(tmp_path / "file").check(config(tmp_path))


@pytest.mark.parametrize("name", ["weights.safetensors", "config.json", "metrics.json"])
def test_a_model_that_lost_or_damaged_a_file_is_not_there(tmp_path, name):
    folder = RunDir(tmp_path)
    assert not folder.has_model()
    save_bundle(
        folder.model,
        MaskedAtomModel(tiny_model()),
        feature_schema=feature_schema(2, []),
        metrics={},
        trained_on="nothing",
    )
    assert folder.has_model()
    file = folder.model / name
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]) if name.startswith("weights") else b"{")
    assert not folder.has_model()
    file.unlink()
    assert not folder.has_model()
    file.write_bytes(whole)
    assert folder.has_model()


def test_one_process_at_a_time(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lock, "LOCK_SECONDS", 0.5)
    holder = RunDir(tmp_path / "run")
    holder.lock(config(tmp_path))
    with pytest.raises(MipsError, match="another process"):
        RunDir(tmp_path / "run").lock(config(tmp_path))
    assert capsys.readouterr().out.count("is in use, waiting") == 1
    # One that ends in the meantime is waited for.
    monkeypatch.setattr(lock, "LOCK_SECONDS", 60.0)
    end = Timer(0.5, holder._lock.close)
    end.start()
    RunDir(tmp_path / "run").lock(config(tmp_path))
    end.join()


def test_a_start_that_was_killed_is_no_foreign_folder(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".config.yaml.partial").write_text("seed: 0")
    begin(tmp_path, config(tmp_path))
    assert sorted(os.listdir(tmp_path / "run")) == [".lock", "config.yaml"]


def test_a_signal_only_sets_the_flag():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignal() as stop:
        assert not stop.is_set
        # One Ctrl-C comes twice: from the terminal and from the launcher.
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert stop.is_set
    assert signal.getsignal(signal.SIGTERM) is before
