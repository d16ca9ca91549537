"""Model directories: round trip, refusals, and predictions row by row."""

import json
import math
from pathlib import Path

import pytest
import torch

from mips_dist.chem.sample import Sample
from mips_dist.data.schema import feature_schema, known_schema
from mips_dist.errors import MipsError, UsageError
from mips_dist.model.bundle import load_bundle, save_bundle
from mips_dist.use.predict_file import predict_file
from mips_dist.use.predictor import Predictor
from mips_dist.use.workers import Workers
from tests.model.hand import batch_of, masked_atom_model, property_model, samples_with_descriptors

SCALER = {"property": "egc", "unit": "eV", "mean": 4.5, "std": 1.5}


def save(directory: Path, **changes) -> Path:
    model = property_model(**changes)
    save_bundle(
        directory,
        model,
        feature_schema=feature_schema(2, model.config.descriptors),
        metrics={"r2": 0.75},
        trained_on="39 polymers made up for a test.",
        scaler=SCALER,
    )
    return directory


@pytest.fixture
def model_dir(tmp_path) -> Path:
    return save(tmp_path / "model")


def test_round_trip(model_dir, graphs):
    bundle = load_bundle(model_dir, known_schema())
    assert (bundle.kind, bundle.scaler, bundle.metrics) == ("property", SCALER, {"r2": 0.75})
    assert bundle.model.config == property_model().config
    assert not bundle.model.training
    batch = batch_of(samples_with_descriptors(graphs))
    with torch.no_grad():
        assert torch.equal(bundle.model(batch), property_model()(batch))
    names = {path.name for path in model_dir.iterdir()}
    expected = {"weights.safetensors", "config.json", "scaler.json", "metrics.json", "README.md"}
    assert names == expected
    card = (model_dir / "README.md").read_text()
    assert "39 polymers made up for a test." in card
    assert "r2: 0.75" in card


def test_equal_models_give_equal_bytes(tmp_path):
    one, two = save(tmp_path / "one"), save(tmp_path / "two")
    for path in one.iterdir():
        assert path.read_bytes() == (two / path.name).read_bytes()


def test_pretrained_round_trip(tmp_path, graphs):
    model = masked_atom_model(descriptors=[])
    save_bundle(
        tmp_path / "model",
        model,
        feature_schema=feature_schema(2, []),
        metrics={},
        trained_on="A test.",
    )
    bundle = load_bundle(tmp_path / "model", known_schema())
    assert (bundle.kind, bundle.scaler) == ("pretrained", None)
    batch = batch_of([Sample(g) for g in graphs])
    with torch.no_grad():
        assert torch.equal(bundle.model.encode(batch), model.encode(batch))
    with pytest.raises(MipsError, match="fine-tune it first"):
        Predictor.open([tmp_path / "model"])


def test_a_model_is_replaced_and_anything_else_is_not(model_dir, tmp_path):
    save(model_dir, num_layers=1)
    assert load_bundle(model_dir, known_schema()).model.config.num_layers == 1
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter1.tex").write_text("...")
    with pytest.raises(MipsError, match="holds something else"):
        save(other)
    assert [path.name for path in other.iterdir()] == ["chapter1.tex"]


def refused(model_dir: Path, match: str, expected: dict | None = None) -> None:
    with pytest.raises(MipsError, match=match) as caught:
        load_bundle(model_dir, expected or known_schema())
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "name", ["weights.safetensors", "config.json", "scaler.json", "metrics.json"]
)
def test_missing_file_is_refused(model_dir, name):
    (model_dir / name).unlink()
    refused(model_dir, name)


@pytest.mark.parametrize(
    "name", ["weights.safetensors", "config.json", "scaler.json", "metrics.json"]
)
def test_truncated_file_is_refused(model_dir, name):
    path = model_dir / name
    path.write_bytes(path.read_bytes()[:-20])
    refused(model_dir, name)


def test_changed_weights_are_refused(model_dir):
    path = model_dir / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    refused(model_dir, "sha256")


def test_weights_of_another_size_are_refused(model_dir):
    path = model_dir / "config.json"
    config = json.loads(path.read_text())
    config["model"]["num_layers"] = 1
    path.write_text(json.dumps(config))
    refused(model_dir, "does not fit")
    config["model"]["num_wings"] = 2
    path.write_text(json.dumps(config))
    refused(model_dir, "describes no model")


def test_another_feature_schema_is_refused(model_dir):
    known = known_schema()
    refused(model_dir, "feature schema.*version 1", known | {"version": 999})
    refused(model_dir, "feature schema.*atom_features", known | {"atom_features": ["colour"]})
    refused(model_dir, "feature schema.*max_hops 2 instead of 3", known | {"max_hops": 3})
    newer = known | {"descriptors": known["descriptors"] | {"rdkit_2d": "newer"}}
    refused(model_dir, "feature schema.*rdkit_2d", newer)
    refused(model_dir, "feature schema.*none", known | {"descriptors": {}})


# Predictions


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_predictions_do_not_depend_on_the_other_rows(tmp_path, graphs):
    predictor = Predictor.open([save(tmp_path / "model", descriptors=[])])
    texts = [g.psmiles for g in graphs]
    all_rows = predictor.predict(texts)
    assert [row.values for row in predictor.predict(texts[::-2])] == [
        row.values for row in all_rows[::-2]
    ]
    # In units of the property: z * std + mean.
    with torch.no_grad():
        z = property_model(descriptors=[])(batch_of([Sample(graphs[-1])])).item()
    expected = z * SCALER["std"] + SCALER["mean"]
    assert math.isclose(all_rows[-1].values["egc"].value, expected, rel_tol=1e-5)


def test_absent_descriptors_are_named(tmp_path, model_dir, monkeypatch):
    from mips_dist.use import predict

    def without_conformer(canonicals, content, max_hops, **conformers):
        from mips_dist.chem.graph import build_graphs

        return [Sample(graph) for graph in build_graphs(canonicals, max_hops)]

    monkeypatch.setattr(predict, "featurize", without_conformer)
    (row,) = Predictor.open([model_dir]).predict(["*CC(*)C"])
    assert row.status == "ok"
    assert row.reason == "without rdkit_2d, atom_pair_3d"
    assert row.values["egc"].value


def test_wrong_inputs_are_one_line(tmp_path, model_dir):
    cases = {
        "": "is empty",
        "psmiles\n": "no rows",
        "name,polymer\na,*C*\n": "no column psmiles or smiles; its columns are: name, polymer",
    }
    output = tmp_path / "out.csv"
    for text, match in cases.items():
        source = write(tmp_path / "in.csv", text)
        with pytest.raises(UsageError, match=match):
            predict_file(source, [model_dir], output)
    with pytest.raises(MipsError, match="no file"):
        predict_file(tmp_path / "nowhere.csv", [model_dir], output)
    source = write(tmp_path / "in.csv", "psmiles\n*C*\n")
    with pytest.raises(UsageError, match="is the input"):
        predict_file(source, [model_dir], source)
    with pytest.raises(UsageError, match="no folder"):
        predict_file(source, [model_dir], tmp_path / "missing" / "out.csv")
    assert {path.name for path in tmp_path.iterdir()} == {"in.csv", "model"}


def test_interrupted_prediction_leaves_nothing(tmp_path, model_dir, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Workers, "map", interrupt)
    source = write(tmp_path / "in.csv", "psmiles\n*C*\n")
    with pytest.raises(KeyboardInterrupt):
        predict_file(source, [model_dir], tmp_path / "out.csv")
    assert {path.name for path in tmp_path.iterdir()} == {"in.csv", "model"}
