"""The mips command, run as a user runs it."""

import csv
import subprocess
import sys

import pytest
import torch

from mips_dist.data.schema import feature_schema
from mips_dist.model.bundle import save_bundle
from mips_dist.model.mips import MipsConfig, PropertyModel
from tests.polymers import CORNER_CASES


def mips(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "mips_dist.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_canonicalize_keeps_rows_and_columns(tmp_path):
    source, output = tmp_path / "in.csv", tmp_path / "out.csv"
    rows = [[f"polymer {i}, quoted", text, ""] for i, text in enumerate(CORNER_CASES)]
    rows.insert(3, ["not a polymer", "CCO", "x"])
    with source.open("w", newline="") as file:
        csv.writer(file).writerows([["name", "psmiles", "note"], *rows])
    done = mips("canonicalize", source, "-o", output)
    assert (done.returncode, done.stderr) == (0, "")
    with output.open(newline="") as file:
        header, *written = csv.reader(file)
    assert header == ["name", "psmiles", "note", "canonical", "status", "reason"]
    assert [row[:3] for row in written] == rows
    for row in written:
        if row[1] == "CCO":
            assert row[3:] == ["", "rejected", "star_count: 0 attachment points, needs exactly 2"]
        else:
            assert row[3:] == [CORNER_CASES[row[1]], "ok", ""]


@pytest.mark.parametrize(
    ("content", "says", "code"),
    [
        (None, "does not exist", 1),
        ("", "is empty", 2),
        ("name,value\na,1\n", "no column psmiles; its columns are: name, value", 2),
        ("psmiles\n", "no rows", 2),
    ],
)
def test_bad_input_is_one_line(tmp_path, content, says, code):
    source = tmp_path / "in.csv"
    if content is not None:
        source.write_text(content)
    done = mips("canonicalize", source, "-o", tmp_path / "out.csv")
    assert done.returncode == code
    assert done.stderr.startswith("error: ")
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out.csv").exists()


def test_no_arguments_is_usage():
    assert mips().returncode == 2
    assert mips("canonicalize").returncode == 2


def test_a_polymer_that_chemistry_fails_on_stops_no_other_row(tmp_path):
    torch.manual_seed(0)
    config = MipsConfig(hidden_dim=16, num_layers=1, num_heads=2, ffn_dim=32, descriptors=[])
    save_bundle(
        tmp_path / "model",
        PropertyModel(config),
        feature_schema=feature_schema(2, []),
        metrics={},
        trained_on="nothing",
        scaler={"property": "tg_K", "unit": "K", "mean": 300.0, "std": 90.0},
    )
    source, output = tmp_path / "in.csv", tmp_path / "out.csv"
    # Each of these once stopped a whole file.
    odd = ["*O(C)[Li]C*", "*[40000CH2]C*", "*[S-](*)C", "*CC(*)C"]
    source.write_text("\n".join(["psmiles", *odd]) + "\n")
    done = mips("predict", source, "-m", tmp_path / "model", "-o", output)
    assert (done.returncode, done.stderr) == (0, "")
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["psmiles"] for row in rows] == odd
    assert [row["reason"].partition(":")[0] for row in rows[:2]] == ["bond_type", "isotope"]
    assert (rows[3]["status"], rows[3]["reason"], rows[3]["tg_K_unit"]) == ("ok", "", "K")
    for row in rows:
        assert (row["status"] == "ok") == bool(row["tg_K"])
