"""The mips command, run as a user runs it."""

import csv
import subprocess
import sys

import pytest

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
