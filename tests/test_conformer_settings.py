"""The number of conformers: from the command to shards, models and predictions."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rdkit import Chem

from mips_dist.chem.conformer import MAX_EMBEDDED_ATOMS, embed_each
from mips_dist.chem.descriptors import atom_pair_3d
from mips_dist.chem.psmiles import canonicalize
from mips_dist.config import compose
from mips_dist.data.batch import collate
from mips_dist.data.schema import check_shards, known_schema, model_schema
from mips_dist.data.shards import load, read_manifest
from mips_dist.errors import MipsError, UsageError
from mips_dist.model.bundle import load_bundle, save_bundle
from mips_dist.model.mips import MipsConfig, PropertyModel
from mips_dist.use.predict_file import predict_file
from preprocess import pipeline
from preprocess.pipeline import PreprocessConfig, preprocess
from tests.preprocess.inline import InlinePool

POLYMERS = ["*CC(*)c1ccccc1", "*OCCOC(=O)c1ccc(C(*)=O)cc1", "*CCCCCCNC(*)=O", "*[Fe](C)C*"]
LARGE = "*" + "OCC" * (MAX_EMBEDDED_ATOMS // 3) + "OC(C)*"


@pytest.fixture
def make_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(pipeline, "WorkerPool", InlinePool)
    source = tmp_path / "in.csv"
    source.write_text("\n".join(["psmiles", *POLYMERS, LARGE, ""]), encoding="utf-8")

    def make(name: str, **settings: Any) -> Path:
        preprocess(PreprocessConfig(input=str(source), output=str(tmp_path / name), **settings))
        return tmp_path / name

    return make


def model_config(**changes: Any) -> MipsConfig:
    return MipsConfig(hidden_dim=16, num_layers=1, num_heads=2, ffn_dim=32, **changes)


def test_several_conformers_give_the_mean_of_their_bits(make_shards: Any) -> None:
    one, three = make_shards("one"), make_shards("three", num_conformers=3, seed=5)
    bits, means = load(one), load(three)
    for block in (bits, means):
        assert block.descriptor_valid["atom_pair_3d"].tolist() == [True] * 4 + [False]
        assert block.descriptor_valid["rdkit_2d"].all()
    assert bits.descriptors["atom_pair_3d"].dtype == np.uint8
    stored = means.descriptors["atom_pair_3d"]
    assert stored.dtype == np.float16
    assert means.offsets["num_coordinates"][-2:].tolist() == [len(means.coordinates)] * 2
    for place, canonical in enumerate(means.psmiles[:4]):
        mol = Chem.MolFromSmiles(canonical)
        (found,) = embed_each([mol], seed=5, num_conformers=3)
        mean = sum(atom_pair_3d(mol, c).astype(float) for c in found) / len(found)
        assert len(found) == 3
        assert stored[place].tolist() == mean.astype(np.float16).tolist()
        rows = slice(*means.offsets["num_coordinates"][place : place + 2])
        assert means.coordinates[rows].tobytes() == found[0].coordinates.tobytes()
    fractional = stored[(stored > 0) & (stored < 1)]
    assert len(fractional)  # seeds do differ


def test_manifest_says_what_was_made(make_shards: Any) -> None:
    one, three = (
        read_manifest(make_shards(f"made{number}", num_conformers=number)) for number in (1, 3)
    )
    assert (one.num_conformers, one.conformer_backend) == (1, "rdkit")
    assert three.num_conformers == 3
    kinds = [{g["name"]: g["kind"] for g in made.descriptors} for made in (one, three)]
    assert kinds == [
        {"rdkit_2d": "real", "atom_pair_3d": "bits", "bands": "real"},
        {"rdkit_2d": "real", "atom_pair_3d": "real", "bands": "real"},
    ]
    assert one.conformer_status["too_large"] == 1
    assert sum(one.conformer_status.values()) == one.num_samples
    make_shards("made3", num_conformers=3)  # the same command again: nothing to do
    with pytest.raises(MipsError, match="num_conformers is 3 there and 2 here"):
        make_shards("made3", num_conformers=2)


def test_models_refuse_shards_of_another_number(make_shards: Any) -> None:
    shards = make_shards("three", num_conformers=3)
    manifest = read_manifest(shards)
    check_shards(shards, manifest, model_schema(model_config(num_conformers=3)))
    with pytest.raises(
        MipsError,
        match=r"made with num_conformers=3, the model has model\.num_conformers=1; use that value",
    ) as caught:
        check_shards(shards, manifest, model_schema(model_config()))
    assert len(str(caught.value).splitlines()) == 1
    # A model that reads nothing made of conformers takes any, and topology has none.
    check_shards(shards, manifest, model_schema(model_config(descriptors=["rdkit_2d"])))
    topology = read_manifest(make_shards("topology", content="topology"))
    check_shards("topology", topology, model_schema(model_config(num_conformers=3)))


def test_prediction_computes_the_same_conformers(make_shards: Any, tmp_path: Path) -> None:
    """A model reads in prediction what it read from shards."""
    torch.manual_seed(0)
    config = model_config(num_conformers=3)
    model = PropertyModel(config).eval()
    scaler = {"property": "egc", "unit": "eV", "mean": 1.0, "std": 2.0}
    save_bundle(
        tmp_path / "model",
        model,
        feature_schema=model_schema(config),
        metrics={},
        trained_on="A test.",
        scaler=scaler,
    )
    bundle = load_bundle(tmp_path / "model", known_schema())
    assert (bundle.feature_schema["num_conformers"], bundle.model.config) == (3, config)
    with pytest.raises(MipsError, match="num_conformers 3 instead of 1"):
        load_bundle(tmp_path / "model", model_schema(model_config()))

    block = load(make_shards("three", num_conformers=3))
    predict_file(tmp_path / "in.csv", [tmp_path / "model"], tmp_path / "out.csv")
    with open(tmp_path / "out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[-1]["reason"] == "without atom_pair_3d"
    for place, row in enumerate(rows):
        assert row["canonical"] == canonicalize(row["psmiles"]) == block.psmiles[place]
        with torch.inference_mode():
            z = model(collate(block.select([place]), pack_size=None)).item()
        assert float(row["egc"]) == pytest.approx(2 * z + 1, rel=1e-5)


def test_models_made_before_the_setting_have_one_conformer(tmp_path: Path) -> None:
    config = model_config(descriptors=[])
    save_bundle(
        tmp_path / "model",
        PropertyModel(config),
        feature_schema=model_schema(config),
        metrics={},
        trained_on="A test.",
        scaler={"property": "egc", "unit": "eV", "mean": 1.0, "std": 2.0},
    )
    path = tmp_path / "model" / "config.json"
    saved = json.loads(path.read_text())
    del saved["model"]["num_conformers"], saved["model"]["conformer_backend"]
    path.write_text(json.dumps(saved))
    assert load_bundle(tmp_path / "model", known_schema()).model.config == config


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("num_conformers=0", "num_conformers=0: must be at least 1"),
        ("conformer_backend=abacus", "must be rdkit or nvmolkit"),
        (f"seed={2**31 - 1}", "must be 0 to 2147483646"),
    ],
)
def test_bad_settings_are_usage_errors(override: str, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        compose(PreprocessConfig, "preprocess", [override])


@pytest.mark.parametrize("name", ["finetune", "pretrain"])
def test_bad_settings_of_models_are_usage_errors(name: str) -> None:
    from mips_dist.train.finetune_config import FinetuneConfig
    from mips_dist.train.pretrain_config import PretrainConfig

    schema = {"finetune": FinetuneConfig, "pretrain": PretrainConfig}[name]
    for override in ("model.num_conformers=0", "model.conformer_backend=abacus"):
        with pytest.raises(UsageError, match=override.partition("=")[0]):
            compose(schema, name, [override])
    assert compose(schema, name, ["model.num_conformers=4"]).model.num_conformers == 4
