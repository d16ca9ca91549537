"""From a finished run to a released model, and its loss measured again in a fresh process."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mips_dist.data.schema import known_schema
from mips_dist.data.shards import read_manifest
from mips_dist.model.bundle import load_bundle
from tests.distributed.conftest import ROOT, Outcome, execute, pretrain
from tests.shard_folder import write_shards


def script(name: str, **arguments: object) -> Outcome:
    texts = [f"{key}={value}" for key, value in arguments.items()]
    return execute([sys.executable, str(ROOT / "scripts" / name), *texts])


@pytest.fixture(scope="module")
def check_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first rows of `full_shards`, as an input of their own."""
    folder = write_shards(tmp_path_factory.mktemp("check") / "shards", count=70, content="full")
    manifest = replace(read_manifest(folder), input={"name": "first.csv", "sha256": "1" * 64})
    (folder / "manifest.json").write_text(manifest.to_json())
    return folder


@pytest.fixture(scope="module")
def released(full_shards, check_shards, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("release")
    run, notes = folder / "run", folder / "notes.md"
    notes.write_text("# Notes\nMade for a test.\n")
    done = pretrain(f"shards={full_shards}", f"run_dir={run}", "masking.rate=0.4", "seed=5")
    assert done.code == 0, done.err
    done = script(
        "release_model.py",
        run_dir=run,
        shards=full_shards,
        check=check_shards,
        output=folder / "model",
        weights="bf16",
        notes=notes,
    )
    assert done.code == 0, done.err
    return folder / "model"


def test_weights_stored_in_bf16_are_loaded_in_fp32(released):
    bundle = load_bundle(released, known_schema())
    trained = load_bundle(released.parent / "run" / "model", known_schema())
    half = trained.model.state_dict()
    assert {w.dtype for w in bundle.model.parameters()} == {torch.float32}
    assert all(
        torch.equal(w, half[name].bfloat16().float())
        for name, w in bundle.model.state_dict().items()
    )
    sizes = [
        (path / "weights.safetensors").stat().st_size
        for path in (released, released.parent / "run/model")
    ]
    assert sizes[0] < 0.52 * sizes[1]


def test_the_card_says_how_the_model_was_made(released):
    card = (released / "README.md").read_text()
    metrics = json.loads((released / "metrics.json").read_text())
    for text in (
        "(bfloat16)",
        "120 rows = 120 polymers",
        "masking.rate 0.4",
        "seed 5",
        "model=debug 'model.descriptors=[rdkit_2d,atom_pair_3d]'",
        f"held_out_loss: {metrics['held_out_loss']}",
        "`NOTES.md`",
    ):
        assert text in card
    assert str(released.parent) not in card + (released / "config.json").read_text()
    assert (released / "NOTES.md").read_text() == "# Notes\nMade for a test.\n"
    # The run validated its fp32 weights; these were rounded.
    trained = load_bundle(released.parent / "run" / "model", known_schema()).metrics
    assert metrics["held_out_loss"] == pytest.approx(trained["held_out_loss"], rel=2e-2)
    assert metrics["held_out_masked_atoms"] == trained["held_out_masked_atoms"]


def test_the_loss_is_that_of_the_card(released, full_shards, check_shards, shards):
    for folder, name in ((full_shards, "held_out_loss"), (check_shards, "check_loss")):
        done = script("held_out_loss.py", model=released, shards=folder)
        assert (done.code, done.err) == (0, "")
        assert name in done.out
    path = released / "metrics.json"
    metrics = json.loads(path.read_text())
    try:
        path.write_text(json.dumps(metrics | {"held_out_loss": 1.0001 * metrics["held_out_loss"]}))
        assert script("held_out_loss.py", model=released, shards=full_shards).code == 1
    finally:
        path.write_text(json.dumps(metrics))
    silent = released.parent / "silent"
    shutil.copytree(released, silent)
    config = json.loads((silent / "config.json").read_text())
    del config["training"]
    (silent / "config.json").write_text(json.dumps(config))
    refused = {
        "it was trained on": {"model": released, "shards": shards},
        "does not say how it was pre-trained": {"model": silent, "shards": full_shards},
        "released: ": {"model": "no-such-model", "shards": full_shards},
    }
    for text, arguments in refused.items():
        done = script("held_out_loss.py", **arguments)
        assert (done.code, done.err.count("\n")) == (1, 1), done.err
        assert text in done.err
    assert script("held_out_loss.py", model=released).code == 2
