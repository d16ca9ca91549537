"""A corpus of hostile rows: each a sample, merged, or rejected with its reason; no crash."""

import gzip
import json
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mips_dist.chem.psmiles import MAX_CHARACTERS
from mips_dist.chem.respell import random_spelling
from mips_dist.data.shards import load, read_manifest
from preprocess.rows import Refused, inspect
from tests.polymers import POLYMERS
from tests.preprocess.test_pipeline import command, table

MB = 1_000_000
BOMB = 300 * MB  # characters of one line

# Code of the rejection -> texts; "" where a sample is made.
TEXTS = {
    "": [
        "*C%(99999)CCC%(99999)*",
        *("*[Og]C*", "*[U]C*"),  # elements without a place of their own in the model
        "*C" + "(C" * 330 + ")" * 330 + "C*",
        "*N" + "C" * 998 + "*",
        "*N" + "C" * 999 + "*",
    ],
    "star_count": ["CC", "*CC", "*C(*)C*", "*C1C(*)CC(*)C1*", "C", "*" * 900],
    "star_bond": ["*=CC*", "*#CC*", "*=CC#*"],
    "fragments": ["*CC*.[Na+]", "*C*.C", "*CC(*)C.[Cl-]"],
    "characters": [
        *("*C\0C*", "\0", "*CC*\0", "*C C*", "*C\tC*", "*C\x1bC*", "*C\xe9*"),
        *("\ufeff*CC*", "*C\ufeffC*", "*C\u200bC*", "*C\u2028C*", "\u202e*CC*"),
        # Cyrillic letters, full-width and mathematical stars, a minus sign.
        *("*\u0421\u0421*", "\uff0aCC\uff0a", "\u2217CC\u2217", "*C\u2212C*", "*C\U0001f600C*"),
        # No UTF-8, and a lone surrogate.
        b"*C\xff\xfeC*".decode(errors="surrogateescape"),
        b"*C\xed\xa0\x80*".decode(errors="surrogateescape"),
    ],
    "empty": ["", "   ", "\t", "\xa0", "\u3000"],
    "unparsable": [
        *("=cmd|'/C'!A0", "+1+1", "-2+3", '=HYPERLINK("a","b")', "@SUM(A1:A9)"),
        *("nan", "null", "*[Xx]C*", "*[Zz]*", "*C1CC*", "*C%", "*C%(", "*[C*"),
        *('*C"C*', '"""', "*C,C*", "*CC*,,,", "*C%(999999999999)C%(999999999999)*"),
        "*" + "(" * 9000 + "C" + ")" * 9000 + "*",
        *("(" * 19_000, "[" * 19_000, "." * 19_000, "*" + "=" * 19_000 + "C*"),
    ],
    "too_large": [
        "*C" + "(C" * 6600 + ")" * 6600 + "C*",
        "*N" + "C" * 1000 + "*",
        "*" + "C" * (MAX_CHARACTERS - 2) + "*",
    ],
    "too_long": [
        "*C" + "(C" * 10_000 + ")" * 10_000 + "C*",
        "C" * (MAX_CHARACTERS + 1),
        "C" * MB,
        "*" + '"' * MB + "*",
        "*" + "\u0421" * MB + "*",
        "*" + "C" * (3 * MB) + "*",
    ],
}
CASES = [(text, code) for code, texts in TEXTS.items() for text in texts]


def hostile(num_rows: int) -> list[tuple[str, str | None]]:
    """Return texts and the code expected; None where either may come out."""
    rng = np.random.default_rng(0)
    rows: list[tuple[str, str | None]] = [*CASES]
    spellings = [random_spelling(text, rng) for text in POLYMERS for _ in range(4)]
    short = [case for case in CASES if len(case[0]) < 100]
    alphabet = '*CNOcno()[]=#123%+-@/\\.HSFl~$:\x00 \u0421"'
    while len(rows) < num_rows:
        kind = rng.random()
        spelling = spellings[rng.integers(len(spellings))]
        if kind < 0.2:
            rows.append((spelling, ""))
        elif kind < 0.5:
            rows.append(short[rng.integers(len(short))])
        else:  # a few letters of a good one changed
            letters = list(spelling)
            for _ in range(rng.integers(1, 4)):
                letters[rng.integers(len(letters))] = alphabet[rng.integers(len(alphabet))]
            rows.append(("".join(letters), None))
    order = rng.permutation(len(rows))
    return [rows[i] for i in order]


ROWS = hostile(10_500)


def encode(text: str) -> bytes:
    return text.encode(errors="surrogateescape")


def as_csv() -> bytes:
    """All rows with every kind of line end, quoted where they must be, and a byte-order mark."""
    lines = [b"\xef\xbb\xbfid,psmiles,note"]
    for row, (text, _) in enumerate(ROWS):
        cell = encode(text)
        if any(sign in text for sign in ',"') or row % 7 == 0:
            cell = b'"' + cell.replace(b'"', b'""') + b'"'
        note = [b"x", b'"a, b"', b'"two\r\nlines"', b"=1+1"][row % 4]
        lines.append(b"%d,%s,%s" % (row, cell, note))
    ends = [b"\n", b"\r\n", b"\r"]
    return b"".join(line + ends[number % 3] for number, line in enumerate(lines))


def as_txt() -> bytes:
    lines = [encode(text) for text, _ in ROWS]
    data = b"\xef\xbb\xbf"
    for row, line in enumerate(lines):
        # Before an empty line a carriage return would be half of a line end.
        end = [b"\n", b"\r\n", b"\r"][row % 3] if lines[row + 1 : row + 2] != [b""] else b"\n"
        data += line + end
    return data


def write_csv(path: Path) -> None:
    path.write_bytes(as_csv())


def write_gz(path: Path) -> None:
    path.write_bytes(gzip.compress(as_csv(), 1))


def write_txt(path: Path) -> None:
    path.write_bytes(as_txt())


def write_parquet(path: Path) -> None:
    """As a column of text, which nobody has checked to be UTF-8."""
    cells = pa.array([encode(text) or None for text, _ in ROWS], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"id": range(len(ROWS)), "psmiles": cells}), path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("in.csv", write_csv),
        ("in.csv.gz", write_gz),
        ("in.txt", write_txt),
        ("in.parquet", write_parquet),
    ],
)
def test_every_format_gives_the_same_rows(
    tmp_path: Path, name: str, write: Callable[[Path], None]
) -> None:
    write(tmp_path / name)
    source = inspect(str(tmp_path / name), "")
    texts = list(source.texts())
    assert source.num_rows == len(texts) == len(ROWS)
    for found, (text, _) in zip(texts, ROWS, strict=True):
        if isinstance(found, Refused):
            assert found.reason.startswith("too_long")
            assert len(text) >= MB
        else:
            assert found == text.strip()[: MAX_CHARACTERS + 1]


def test_the_command_accounts_for_every_hostile_row(tmp_path: Path) -> None:
    source, output = tmp_path / "in.csv.gz", tmp_path / "out"
    write_bomb(source)
    assert source.stat().st_size < 10 * MB
    done = subprocess.run(
        command(source, output, "num_actors=2", "content=topology"),
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    bombs = ["too_long", "star_count"]

    samples = load(output).row.tolist()
    rejects = {int(row["row"]): row["reason"] for row in table(output / "rejects.csv")}
    merged = [int(row["row"]) for row in table(output / "merged.csv")]
    manifest = read_manifest(output)
    assert sorted([*samples, *rejects, *merged]) == list(range(manifest.num_rows))
    assert manifest.num_rows >= len(ROWS) + len(bombs)
    assert manifest.num_samples == len(samples)
    assert manifest.num_merged == len(merged)
    assert sum(manifest.rejected_by_reason.values()) == len(rejects)

    codes = {row: reason.partition(":")[0] for row, reason in rejects.items()}
    assert all(": " in reason for reason in rejects.values())
    for row, (text, code) in enumerate([*ROWS, *(("bomb", code) for code in bombs)]):
        assert code is None or codes.get(row, "") == code, (text[:80], rejects.get(row))
    [log] = json.loads((output / "log.json").read_text())["runs"]
    assert log["driver"]["max_rss_bytes"] < BOMB


def write_bomb(path: Path) -> None:
    """Write all rows, then a line of hundreds of MB, then a quote that a hundred MB follow."""
    packer = zlib.compressobj(1, wbits=31)
    megabyte = b"C" * MB
    with path.open("wb") as stream:
        stream.write(packer.compress(as_csv()))
        stream.write(packer.compress(b"1,"))
        for _ in range(BOMB // MB):
            stream.write(packer.compress(megabyte))
        stream.write(packer.compress(b",x\n"))
        stream.write(packer.compress(b'2,C,"'))
        for _ in range(100):
            stream.write(packer.compress(megabyte + b"\n"))
        stream.write(packer.flush())


def test_a_small_parquet_file_of_large_texts_does_not_fill_the_memory(tmp_path: Path) -> None:
    num_rows = 2000
    places = pa.array(np.zeros(num_rows, np.int32))
    column = pa.DictionaryArray.from_arrays(places, pa.array(["C" * MB]))
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"psmiles": column}), path)
    assert path.stat().st_size < MB
    lengths = [len(text) for text in inspect(str(path), "").texts()]
    assert lengths == [MAX_CHARACTERS + 1] * num_rows
    assert pa.default_memory_pool().max_memory() < 0.1 * num_rows * MB
