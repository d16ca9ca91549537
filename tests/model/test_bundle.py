"""Model directories: round trip, refusals, and predictions row by row."""

import csv
import gzip
import json
import math
from pathlib import Path

import pytest
import torch

from mips_dist.chem.sample import Sample
from mips_dist.data.schema import feature_schema, known_schema
from mips_dist.errors import MipsError, UsageError
from mips_dist.model.bundle import Bundle, load_bundle, save_bundle
from mips_dist.use.predict_file import predict_file
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
        predict_file(tmp_path / "in.csv", [tmp_path / "model"], tmp_path / "out.csv")


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


def predicted(source: Path, model_dir: Path, output: Path) -> list[dict[str, str]]:
    predict_file(source, [model_dir], output)
    opener = gzip.open if output.suffix == ".gz" else open
    with opener(output, "rt", newline="", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def test_rows_in_are_rows_out(tmp_path):
    model_dir = save(tmp_path / "model", descriptors=["rdkit_2d"])
    text = 'name,PSMILES,\n"a,b",*CC(*)c1ccccc1,\nc,nonsense,x\n\nd,[*]C(C[*])c1ccccc1\n,,\n'
    source = write(tmp_path / "in.csv", text)
    rows = predicted(source, model_dir, tmp_path / "out.csv")
    # The blank line is a row as well.
    assert [row["name"] for row in rows] == ["a,b", "c", "", "d", ""]
    assert [row[""] for row in rows] == ["", "x", "", "", ""]
    assert [row["status"] for row in rows] == ["ok", "rejected", "rejected", "ok", "rejected"]
    assert list(rows[0]) == [
        *("name", "PSMILES", "", "canonical", "status", "reason", "egc", "egc_unit"),
    ]
    assert rows[0]["canonical"] == rows[3]["canonical"] == "*CC(*)c1ccccc1"
    assert rows[0]["egc"] == rows[3]["egc"] != ""
    assert rows[0]["egc_unit"] == "eV"
    assert rows[1]["reason"]
    assert rows[1]["egc"] == ""


def test_predictions_do_not_depend_on_the_other_rows(tmp_path, graphs):
    model_dir = save(tmp_path / "model", descriptors=[])
    texts = [g.psmiles for g in graphs]
    forward = write(tmp_path / "a.csv", "\n".join(["smiles", *texts]))
    source = tmp_path / "b.csv.gz"
    with gzip.open(source, "wt") as file:
        file.write("\n".join(["id,smiles", *(f"{k},{t}" for k, t in enumerate(texts[::-2]))]))
    all_rows = predicted(forward, model_dir, tmp_path / "a_out.csv.gz")
    some_rows = predicted(source, model_dir, tmp_path / "b_out.csv")
    by_text = {row["canonical"]: row["egc"] for row in all_rows}
    assert len(some_rows) == len(texts[::-2])
    assert all(by_text[row["canonical"]] == row["egc"] for row in some_rows)

    # In units of the property: z * std + mean.
    with torch.no_grad():
        z = property_model(descriptors=[])(batch_of([Sample(graphs[-1])])).item()
    expected = z * SCALER["std"] + SCALER["mean"]
    assert math.isclose(float(by_text[texts[-1]]), expected, rel_tol=1e-5)


def test_absent_descriptors_are_named(tmp_path, model_dir, monkeypatch):
    from mips_dist.use import predict

    def without_conformer(canonicals, content, max_hops, **conformers):
        from mips_dist.chem.graph import build_graphs

        return [Sample(graph) for graph in build_graphs(canonicals, max_hops)]

    monkeypatch.setattr(predict, "featurize", without_conformer)
    source = write(tmp_path / "in.csv", "psmiles\n*CC(*)C\n")
    [row] = predicted(source, model_dir, tmp_path / "out.csv")
    assert row["status"] == "ok"
    assert row["reason"] == "without rdkit_2d, atom_pair_3d"
    assert float(row["egc"])


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


def test_a_bad_row_stops_no_other(tmp_path):
    model_dir = save(tmp_path / "model", descriptors=[])
    (tmp_path / "in.csv").write_bytes(b"psmiles\n*C*,2\n\xff\xfe\n*C*\n")
    rows = predicted(tmp_path / "in.csv", model_dir, tmp_path / "out.csv")
    assert [row["reason"].partition(":")[0] for row in rows] == ["columns", "characters", ""]
    assert rows[2]["egc"] != ""


def test_interrupted_prediction_leaves_nothing(tmp_path, model_dir, monkeypatch):
    from mips_dist.use import predict

    def interrupt(bundle: Bundle, canonical: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(predict, "predict_one", interrupt)
    source = write(tmp_path / "in.csv", "psmiles\n*C*\n")
    with pytest.raises(KeyboardInterrupt):
        predict_file(source, [model_dir], tmp_path / "out.csv")
    assert {path.name for path in tmp_path.iterdir()} == {"in.csv", "model"}
