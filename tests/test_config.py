"""Configuration is strict, and every error is one line and an exit code."""

import errno
from pathlib import Path

import pytest

from mips_dist.config import compose, configs_dir, run, save_resolved
from mips_dist.errors import MipsError, UsageError
from mips_dist.train.finetune_config import FinetuneConfig
from mips_dist.train.pretrain_config import PretrainConfig
from preprocess.pipeline import PreprocessConfig

SCHEMAS = {"pretrain": PretrainConfig, "finetune": FinetuneConfig, "preprocess": PreprocessConfig}


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_root_loads_strictly(name):
    assert isinstance(compose(SCHEMAS[name], name, []), SCHEMAS[name])


@pytest.mark.parametrize("preset", sorted(p.stem for p in (configs_dir() / "model").glob("*.yaml")))
@pytest.mark.parametrize("name", ["pretrain", "finetune"])
def test_every_preset_loads_strictly(name, preset):
    config = compose(SCHEMAS[name], name, [f"model={preset}", "model.dropout=0"])
    assert config.model.dropout == 0


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("num_step=3", "unknown key 'num_step'; did you mean num_steps"),
        ("zero.stag=1", "did you mean zero.stage?"),
        ("model=tiny", "unknown model 'tiny'; there are: base, debug, large, small, xl"),
        ("num_steps=many", "num_steps: Value 'many'"),
        ("zero.stage=7", "zero.stage=7 must be 0, 1, 2, 3 or null"),
        ("num_steps", "'num_steps' is not a key=value override"),
        ("+num_step=3", "num_step"),
    ],
)
def test_wrong_overrides_are_one_line(override, says, capsys):
    assert run(lambda _: None, PretrainConfig, "pretrain", [override]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_launcher_arguments_are_dropped():
    arguments = ["--local_rank=1", "--local-rank=1", "num_steps=7"]
    seen = []
    assert run(seen.append, PretrainConfig, "pretrain", arguments) == 0
    assert seen[0].num_steps == 7


def raising(error: BaseException):
    def main(_: PretrainConfig) -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (MipsError("the disk is gone; plug it in"), 1, "error: the disk is gone; plug it in"),
        (UsageError("no such thing"), 2, "error: no such thing"),
        (OSError(errno.ENOSPC, "No space", "x.tar"), 1, "x.tar"),
        (KeyboardInterrupt(), 130, "the same command again"),
    ],
)
def test_errors_become_exit_codes(error, code, says, capsys):
    assert run(raising(error), PretrainConfig, "pretrain", []) == code
    message = capsys.readouterr().err
    assert says in message
    assert message.count("\n") == 1


def test_only_the_first_rank_speaks(monkeypatch, capsys):
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setenv("RANK", "1")
    assert run(raising(MipsError("said once")), PretrainConfig, "pretrain", []) == 1
    assert capsys.readouterr().err == ""


def test_defects_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run(raising(ZeroDivisionError()), PretrainConfig, "pretrain", [])


def test_resolved_config_reads_back(tmp_path: Path):
    config = compose(PretrainConfig, "pretrain", ["model=debug", "num_steps=5"])
    save_resolved(config, tmp_path / "config.yaml")
    assert "num_steps: 5" in (tmp_path / "config.yaml").read_text()


def test_help_lists_every_key(capsys):
    assert run(lambda _: None, PretrainConfig, "pretrain", ["--help"]) == 0
    text = capsys.readouterr().out
    assert "zero.offload=none" in text
    assert "model.hidden_dim=" in text
