"""Every command reads the same rows from the same file, and decides alike on each."""

import csv
import gzip
import io
from pathlib import Path

import pytest

from mips_dist.data.properties import Property, read_labelled_sets
from mips_dist.data.records import MAX_LINE, find_column, parse, read_csv, read_lines
from mips_dist.errors import UsageError
from mips_dist.use.canonicalize import canonicalize_file
from preprocess.rows import inspect
from preprocess.work import canonical_rows

# One row each: the line or lines, and the canonical spelling or the code of the rejection.
ROWS = [
    (b"*CCO*,1,x", "*COC*"),
    (b"", "empty"),
    (b'"*CO*,1,x', "unparsable"),  # never closed: its own line is lost, and no other
    (b"*CS*,1,x", "*CS*"),
    (b"*C*,1,x,y,z", "columns"),
    (b"*CC(C)*,1", "*CC(*)C"),
    (b"C" * 1_000_000 + b",1,x", "too_long"),
    (b"*C\0C*,1,x", "characters"),
    (b"*CN*,1," + b"x" * 1_000_000, "*CN*"),
    (b'*CF*,1,"' + b'x""' * 700_000 + b'"', "too_long"),
    (b'*CN*,1,"two' + b"\r\n" + b'lines"', "*CN*"),
    (b'*CO*,1,"' + b"x" * 1_500_000 + b"\r\n" + b'lines"', "too_long"),
    (b"C" * 1_500_000 + b',"a' + b"\r\n" + b'b",x', "too_long"),
    (b"*C\xe9*,1,x", "characters"),
    (b'" *CO* ",1,x', "*CO*"),
    (b"CCC", "star_count"),
]


def decision(canonical: str | None, reason: str) -> str:
    return canonical or reason.split(":")[0]


@pytest.fixture(scope="module", params=["in.csv", "in.csv.gz"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = b"\xef\xbb\xbf SMILES ,value,note\r\n" + b"".join(line + b"\r\n" for line, _ in ROWS)
    path = tmp_path_factory.mktemp("records") / request.param
    path.write_bytes(gzip.compress(data, 1) if path.suffix == ".gz" else data)
    return path


def test_preprocess(path: Path) -> None:
    source = inspect(str(path), "")
    result = canonical_rows(list(source.texts()), {})
    found = [decision(c, result.reasons.get(i, "")) for i, c in enumerate(result.canonical)]
    assert found == [wanted for _, wanted in ROWS]
    assert source.num_rows == len(ROWS)
    assert result.reasons[4] == (
        "columns: row has 5 values, the header 3; quote values that contain a comma"
    )


def test_canonicalize(path: Path) -> None:
    output = path.parent / "out.csv"
    canonicalize_file(path, output)
    with output.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == [" SMILES ", "value", "note", "canonical", "status", "reason"]
    assert [decision(row[3], row[5]) for row in rows] == [wanted for _, wanted in ROWS]
    assert all(row[4] == ("ok" if row[3] else "rejected") for row in rows)
    assert rows[4][:3] == ["*C*", "1", "x"]
    assert [len(row[0]) for row in rows][12] == 1_500_000  # no value is cut


def test_labelled_sets(path: Path) -> None:
    [labelled], rejects = read_labelled_sets([Property(name="p", file=str(path))])
    decisions = dict(zip(labelled.row.tolist(), labelled.canonical, strict=True))
    decisions |= {reject.row: decision(None, reject.reason) for reject in rejects}
    assert [decisions[row] for row in range(len(ROWS))] == [wanted for _, wanted in ROWS]


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_the_end_of_a_file_is_no_row(tmp_path: Path, end: bytes) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"psmiles\n*CC*" + end)
    header, records = read_csv(path)
    assert header == ["psmiles"]
    assert [record.values for record in records] == [["*CC*"]]


@pytest.mark.parametrize("end", [b"\r\n", b"\n", b"\r"])
@pytest.mark.parametrize("excess", [-1, 0, 1, 2])
def test_a_cut_line_is_as_long_as_a_whole_one(excess: int, end: bytes) -> None:
    data = b"x" * (MAX_LINE + excess) + end + b"y" + end
    for is_cut in (False, True):
        records = list(parse(read_lines(io.BytesIO(data), "a.csv", is_cut=is_cut)))
        assert [record.is_long for record in records] == [excess > 0, False]
        assert records[1].values == ["y"]


def test_columns_are_found_in_any_case() -> None:
    assert find_column("a.csv", ["name", " PSmiles"]) == 1
    assert find_column("a.csv", ["smiles", "psmiles"]) == 1
    assert find_column("a.csv", ["Value", "value"], "value") == 1
    with pytest.raises(UsageError, match="no column psmiles or smiles; its columns are: a, b"):
        find_column("a.csv", ["a", "", "b"])
