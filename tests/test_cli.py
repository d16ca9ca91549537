"""The mips command, run as a user runs it."""

import csv
import gzip
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mips_dist.data.schema import feature_schema
from mips_dist.errors import UsageError
from mips_dist.model.bundle import save_bundle
from mips_dist.model.mips import MipsConfig, PropertyModel
from mips_dist.use.canonicalize import canonicalize_file
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
        (None, "no file", 1),
        ("", "is empty", 2),
        ("name,value\na,1\n", "no column psmiles or smiles; its columns are: name, value", 2),
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


def test_damaged_gzip_is_one_line(tmp_path):
    packed = bytearray(gzip.compress(b"psmiles\n" + b"*CC*\n" * 99))
    packed[10] = 0xFF  # no such type of block: zlib.error
    source = tmp_path / "in.csv.gz"
    source.write_bytes(packed)
    done = mips("canonicalize", source, "-o", tmp_path / "out.csv")
    assert done.returncode == 1
    assert "is damaged or cut short" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("header", "output", "says"),
    [
        ("psmiles", ".", ". is a folder"),
        ("psmiles", "nowhere/out.csv", "nowhere is no folder"),
        ("psmiles", "in.csv", "is the input"),
        ("psmiles,status", "out.csv", "has a column status already"),
    ],
)
def test_bad_output_is_one_line(tmp_path, monkeypatch, header, output, says):
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "in.csv"
    source.write_text(f"{header}\n*CC*\n")
    with pytest.raises(UsageError, match=re.escape(says)) as caught:
        canonicalize_file(source, Path(output))
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


def test_every_column_is_written_as_it_was(tmp_path):
    source, output = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_bytes(
        b'psmiles,note\n*CC*,caf\xe9 \0\n*CO*,"' + b"x" * 2_000_000 + b'"\n*CN*,"a\nb"\n'
    )
    canonicalize_file(source, output)
    lines = output.read_bytes().split(b"\n")
    assert lines[1] == b"*CC*,caf\xe9 \0,*C*,ok,"
    assert lines[2].startswith(b"*CO*," + b"x" * 2_000_000 + b",,rejected,too_long")
    assert lines[3:5] == [b'*CN*,"a', b'b",*CN*,ok,']


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
    assert done.returncode == 0
    assert done.stderr.startswith("tg_K: its model has no calibration")
    assert done.stderr.count("\n") == 1
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["psmiles"] for row in rows] == odd
    assert [row["reason"].partition(":")[0] for row in rows[:2]] == ["bond_type", "isotope"]
    assert (rows[3]["status"], rows[3]["reason"], rows[3]["tg_K_unit"]) == ("ok", "", "K")
    for row in rows:
        assert (row["status"] == "ok") == bool(row["tg_K"])
