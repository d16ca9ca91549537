"""However a list of texts is written, it gives the same rows; hostile files give rows too."""

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mips_dist.data.records import MAX_LINE
from mips_dist.errors import MipsError, UsageError
from preprocess.rows import Refused, inspect

TEXTS = ["*CC*", "*CC(*)C", "", "*OCC*"]


def rows_of(path: Path, data: bytes, column: str = "") -> list[str | Refused]:
    path.write_bytes(data)
    source = inspect(str(path), column)
    texts = list(source.texts())
    assert len(texts) == source.num_rows
    return texts


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.csv", b"psmiles\n*CC*\n*CC(*)C\n\n*OCC*\n"),
        ("no_last_newline.csv", b"psmiles\n*CC*\n*CC(*)C\n\n*OCC*"),
        ("bom_crlf.csv", b"\xef\xbb\xbfpsmiles\r\n*CC*\r\n*CC(*)C\r\n\r\n*OCC*\r\n"),
        ("extra.csv", b'id,psmiles,note\n1,*CC*,"a, b"\n2, *CC(*)C ,\n3,,\n4,*OCC*,x\n'),
        ("quoted.csv", b'SMILES,note\n"*CC*","two\nlines"\n*CC(*)C,5" pipe\n"",""""\n*OCC*,\n'),
        ("lines.txt", b"*CC*\n*CC(*)C\r\n\n*OCC*"),
    ],
)
def test_text_files(tmp_path: Path, name: str, data: bytes) -> None:
    assert rows_of(tmp_path / name, data) == TEXTS
    assert rows_of(tmp_path / f"{name}.gz", gzip.compress(data)) == TEXTS


def test_parquet_and_url(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"id": [1, 2, 3, 4], "psmiles": [TEXTS[0], TEXTS[1], None, TEXTS[3]]})
    pq.write_table(table, path, row_group_size=2)
    assert list(inspect(f"file://{path}", "").texts()) == TEXTS
    assert inspect(f"file://{path}", "").name == "a.parquet"


def test_the_column_can_be_named(tmp_path: Path) -> None:
    data = b"psmiles,unit\n*CC*,*OCC*\n"
    assert rows_of(tmp_path / "a.csv", data) == ["*CC*"]
    assert rows_of(tmp_path / "a.csv", data, column="unit") == ["*OCC*"]


def test_hostile_lines_are_rows(tmp_path: Path) -> None:
    long = "C" * 3_000_000
    data = f'psmiles,note\n*C\0C*,x\n"never closed,x\n*CC*,y\n{long},z\n*OCC*,w\n'.encode()
    texts = rows_of(tmp_path / "a.csv", data + b"\xff\xfe*,v\n")
    assert texts[0] == "*C\0C*"
    assert texts[1] == "never closed,x"
    assert texts[2] == "*CC*"
    assert texts[3] == Refused(f"too_long: a line of more than {MAX_LINE} characters")
    assert texts[4] == "*OCC*"
    assert texts[5] == "\udcff\udcfe*"


@pytest.mark.parametrize(
    ("name", "data", "error", "words"),
    [
        ("a.csv", b"", MipsError, "is empty"),
        ("a.csv", b"psmiles\n", MipsError, "has no rows"),
        ("a.txt", b"", MipsError, "has no rows"),
        (
            "a.csv",
            b"name,value\nx,1\n",
            UsageError,
            "no column psmiles or smiles; its columns are: name, value",
        ),
        ("a.xlsx", b"PK", UsageError, "no known type"),
        ("a.csv.gz", gzip.compress(b"psmiles\n" + b"*CC*\n" * 9)[:-9], MipsError, "damaged"),
        ("a.csv.gz", b"psmiles\n*CC*\n", MipsError, "damaged"),
        ("a.parquet", b"psmiles\n*CC*\n", MipsError, "damaged"),
    ],
)
def test_bad_files_are_one_line(
    tmp_path: Path, name: str, data: bytes, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        rows_of(tmp_path / name, data)
    assert "\n" not in str(caught.value)


def test_missing_files_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(MipsError, match="no file"):
        inspect(str(tmp_path / "a.csv"), "")
    with pytest.raises(MipsError, match="cannot be read"):
        inspect("nosuchprotocol://bucket/a.csv", "")
    with pytest.raises(UsageError, match="no column unit"):
        rows_of(tmp_path / "a.csv", b"psmiles\n*CC*\n", column="unit")
