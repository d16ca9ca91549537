"""The same run under every launcher, and wrong commands, each one line and an exit code."""

import json
import shutil
import signal
import socket
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from mips_dist.data.schema import feature_schema
from mips_dist.data.shards import read_manifest
from mips_dist.model.bundle import load_bundle
from mips_dist.train.pretrain_config import PretrainConfig
from mips_dist.train.run_dir import RunDir
from tests.distributed.conftest import (
    PRETRAIN,
    TINY,
    command,
    curve,
    deepspeed,
    events,
    execute,
    pretrain,
    stop,
    texts,
)
from tests.shard_folder import write_shards

COMMANDS = Path(__file__).with_name("commands.py")


@pytest.fixture(scope="module")
def launched(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One configuration without dropout: plain python, torchrun, DeepSpeed's launcher; and plain
    python as on a GPU, with compiled layers on whole packs and batches made by workers."""
    folder = tmp_path_factory.mktemp("launchers")
    names = ("python", "torchrun", "deepspeed", "gpu-like", "wandering")
    runs = {name: folder / name for name in names}

    def arguments(name: str) -> list[str]:
        return [f"shards={shards}", f"run_dir={runs[name]}", "model.dropout=0", "num_steps=20"]

    outcomes = [
        # Both spellings of what launchers append; the second one's value would be wrong here.
        pretrain(*arguments("python"), "--local_rank=0", "--local-rank=0"),
        pretrain(*arguments("torchrun"), "zero.stage=3", ranks=2),
        execute(deepspeed(*arguments("deepspeed"))),
        pretrain(*arguments("gpu-like"), "compile=true", "loader_workers=2"),
    ]
    # One rank, two, and one again, killed in between.
    for ranks in (1, 2):
        argv = command(PRETRAIN, *TINY, *arguments("wandering"), ranks=ranks)
        stop(runs["wandering"], argv, signal.SIGKILL, "all")
    outcomes.append(pretrain(*arguments("wandering")))
    for outcome in outcomes:
        assert outcome.code == 0, outcome.out + outcome.err
    assert "1 ranks x 4 accumulation steps x 4 polymers" in outcomes[0].out
    assert "2 ranks x 2 accumulation steps x 4 polymers" in outcomes[1].out
    assert "Traceback" not in "".join(o.out + o.err for o in outcomes)
    assert outcomes[0].err == "", "a plain run has nothing to warn of"
    return runs


def test_same_curve_under_every_launcher(launched):
    expected = curve(launched["python"])
    assert list(expected) == list(range(1, 21))
    for name in ("torchrun", "deepspeed", "gpu-like", "wandering"):
        assert curve(launched[name]) == pytest.approx(expected, rel=1e-5), name


def test_checkpoints_hold_the_same_whatever_the_ranks_and_the_stage(launched):
    """Read by safetensors and json alone: one rank at stage 1, two at stages 3 and 1."""
    names = ("python", "torchrun", "deepspeed")
    folders = [launched[name] / "checkpoints" / "step-00000020" for name in names]
    num_parameters = len(load_file(folders[0] / "weights.safetensors"))
    expected, *others = (
        load_file(folder / "weights.safetensors") | load_file(folder / "moments.safetensors")
        for folder in folders
    )
    states = [json.loads((folder / "state.json").read_text()) for folder in folders]
    assert len(expected) == 3 * num_parameters
    for found, state in zip(others, states[1:], strict=True):
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            assert array.dtype == np.float32
            np.testing.assert_allclose(found[name], array, rtol=1e-2, atol=1e-5, err_msg=name)
        assert state["state"]["train"] == states[0]["state"]["train"]
        assert state["state"]["adam_steps"] == 20


def test_scalars_and_model(launched):
    run = launched["python"]
    for tag in ("train/accuracy", "train/lr", "train/grad_norm", "perf/polymers_per_s"):
        assert len(curve(run, tag)) == 20
    for name in ("data_wait_s", "data_wait_fraction", "memory_gib", "fraction_of_peak"):
        assert len(curve(run, f"perf/{name}")) == 20
    assert all(0.05 < gib < 100 for gib in curve(run, "perf/memory_gib").values())
    assert all(0 < part < 2 for part in curve(run, "perf/fraction_of_peak").values())
    validations = [5, 10, 15, 20]
    assert list(curve(run, "val/loss")) == list(curve(run, "val/accuracy")) == validations
    beside = run / "tensorboard"
    assert curve(beside / "training", "learning/loss", "") == curve(run)
    assert curve(beside / "held_out", "learning/loss", "") == curve(run, "val/loss")
    assert list(curve(beside / "class_frequencies", "learning/loss", "")) == validations
    bundle = load_bundle(run / "model", feature_schema(2, []))
    assert bundle.kind == "pretrained"
    assert bundle.metrics["held_out_loss"] == pytest.approx(curve(run, "val/loss")[20])
    assert 0 < bundle.metrics["held_out_class_entropy"] < 3
    assert bundle.model.config.descriptors == []


def test_the_confusion_is_counted_over_all_ranks(launched):
    one, two = launched["python"], launched["torchrun"]
    assert curve(one, "val_element/C") == curve(two, "val_element/C")
    # The image has the number of atoms of every element in it.
    drawn = [events(run / "tensorboard").Images("val/confusion") for run in (one, two)]
    assert [[image.step for image in images] for images in drawn] == [[5, 10, 15, 20]] * 2
    assert [i.encoded_image_string for i in drawn[0]] == [i.encoded_image_string for i in drawn[1]]


def test_the_page_says_what_ran(launched):
    (text,) = texts(launched["torchrun"])
    assert text.step == 1
    words = text.tensor_proto.string_val[0].decode()
    assert "- **ZeRO** stage 3 (as given)" in words
    assert "2 ranks x 2 accumulation steps x 4 polymers" in words
    assert "\n  hidden_dim: 64\n" in words
    assert "GFLOP/s, matrix products in fp32 of 2 ranks together" in words


def test_wrong_commands_are_one_line(launched, shards, full_shards, tmp_path):
    other_hops = write_shards(tmp_path / "hops", count=20, max_hops=3)
    old = tmp_path / "old"
    shutil.copytree(shards, old)
    manifest = read_manifest(old)
    other = replace(manifest, feature_schema=manifest.feature_schema + 1)
    (old / "manifest.json").write_text(other.to_json())
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.txt").write_text("mine")
    busy = RunDir(tmp_path / "busy")
    busy.lock(PretrainConfig(run_dir=str(busy.path)))
    run, new = f"run_dir={launched['python']}", f"run_dir={tmp_path / 'new'}"
    here = f"shards={shards}"
    cases = [
        ([here, run, "model.dropout=0", "model.hidden_dim=32"], 1, "model.hidden_dim=64"),
        ([f"shards={full_shards}", run, "model.dropout=0"], 1, "another feature schema"),
        ([here, run, "model.dropout=0", "num_steps=5"], 1, "num_steps=5"),
        ([here, f"run_dir={tmp_path / 'foreign'}"], 1, "no pre-training run"),
        ([here, f"run_dir={busy.path}"], 1, "another process is training"),
        ([f"shards={other_hops}", new], 1, "max_hops=3"),
        ([f"shards={old}", new], 1, "another version"),
        ([f"shards={tmp_path / 'nowhere'}", new], 1, "nowhere"),
        ([new], 1, "./scripts/quickstart"),
        ([here, new, "precision=fp16"], 2, "CUDA"),
        ([here, new, "micro_batch_size=3"], 2, "1, 2, 4, 8, 16"),
        ([here, new, "zero.stage=4"], 2, "zero.stage=4"),
        ([here, new, "no_such_key=1"], 2, "no_such_key"),
        ([here, f"run_dir={tmp_path / 'wild'}", "optimizer.lr=1e30"], 1, "5 steps in a row"),
    ]
    argv = [[*TINY, *arguments] for arguments, _, _ in cases]
    # Elsewhere: the shards of a quickstart may lie here, which are what a run takes by default.
    outcome = execute([sys.executable, str(COMMANDS), json.dumps(argv)], cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    results = json.loads(outcome.out.splitlines()[-1])
    for (arguments, code, text), (found, _, err) in zip(cases, results, strict=True):
        assert (found, err.count("\n")) == (code, 1), (arguments, err)
        assert err.startswith("error: "), err
        assert text in err, (arguments, err)
    assert not (tmp_path / "new").exists(), "a refused command leaves nothing behind"


def test_an_error_under_a_launcher_is_printed_once(tmp_path):
    outcome = pretrain(f"shards={tmp_path / 'nowhere'}", f"run_dir={tmp_path / 'run'}", ranks=2)
    assert outcome.code != 0
    assert outcome.err.count("error: no shard folder") == 1


def test_a_taken_port_is_one_line_and_its_owner_is_left_alone(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as owner:
        port = owner.getsockname()[1]
        place = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "MASTER_PORT": port}
        words = [f"{name}={value}" for name, value in place.items()]
        start = ["env", *words, "MASTER_ADDR=127.0.0.1", sys.executable, str(PRETRAIN)]
        outcome = execute([*start, f"run_dir={tmp_path / 'run'}"])
    assert (outcome.code, outcome.err.count("error: ")) == (1, 1), outcome.err
    assert f":{port} is taken by another program" in outcome.err
    assert "--master_port" in outcome.err
    assert "Traceback" not in outcome.err
