"""Equal rows are found as by a dictionary of them all, in memory that does not grow."""

import random
import tracemalloc
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from mips_dist.chem.respell import random_spelling
from preprocess import merge
from preprocess.merge import find_first_rows
from preprocess.verdicts import VerdictFiles, Verdicts
from preprocess.work import canonical_rows
from tests.polymers import POLYMERS

BAD = ["", "CC", "*C*.C", "=cmd|' /C calc'!A0"]


def respelled(texts: list[str], num_rows: int) -> list[str]:
    """Draw rows: few polymers in many spellings, some far more often than others, and bad rows."""
    rng = np.random.default_rng(0)
    spellings = [random_spelling(text, rng) for text in texts for _ in range(3)] + BAD
    draw = (len(spellings) * rng.random(num_rows) ** 3).astype(int)
    return [spellings[i] for i in draw]


def check(texts: list[str], folder: Path, chunk_size: int) -> None:
    (folder / "rows").mkdir()
    verdicts = VerdictFiles(folder / "rows", len(texts))
    expected: dict[str, int] = {}
    first_of_row: list[int | None] = []
    for chunk, start in enumerate(range(0, len(texts), chunk_size)):
        result = canonical_rows(texts[start : start + chunk_size], {})
        verdicts.write(chunk, "", result)
        for row, canonical in enumerate(result.canonical, start):
            first_of_row.append(None if canonical is None else expected.setdefault(canonical, row))
    found = find_first_rows(verdicts, len(texts), folder)
    assert found.num_polymers == len(expected)
    row = 0
    for part in verdicts:
        assert part.start == row
        for is_accepted, first in zip(part.accepted, found.of(part), strict=True):
            assert (int(first) if is_accepted else None) == first_of_row[row]
            row += 1
    assert row == len(texts)
    assert not (folder / "merge").exists()


@pytest.mark.parametrize("part_size", [8, 97, 1 << 18])
def test_first_rows_are_those_of_a_dictionary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part_size: int
) -> None:
    monkeypatch.setattr(merge, "PART_SIZE", part_size)
    check(respelled(POLYMERS, 1500), tmp_path, chunk_size=70)


@pytest.mark.needs_data
def test_first_rows_of_the_benchmark_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, benchmark_texts: list[str]
) -> None:
    monkeypatch.setattr(merge, "PART_SIZE", 500)
    random.Random(0).shuffle(benchmark_texts := [*benchmark_texts, *benchmark_texts[:2000]])
    check(benchmark_texts, tmp_path, chunk_size=512)


def test_what_an_interrupted_run_left_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "merge" / "by_hash").mkdir(parents=True)
    (tmp_path / "merge" / "by_hash" / "00000").write_bytes(b"half a record")
    (tmp_path / "first_rows").write_bytes(b"x" * 5)
    check(respelled(POLYMERS, 300), tmp_path, chunk_size=100)


def synthetic(num_rows: int, num_polymers: int) -> Iterator[Verdicts]:
    """Verdicts with random hashes; the spelling itself plays no part in merging."""
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 2**64, (num_polymers, 2), dtype=np.uint64)
    for start in range(0, num_rows, 2048):
        count = min(2048, num_rows - start)
        places = (np.arange(start, start + count) * 7919) % num_polymers
        yield Verdicts(
            start=start, canonical=["*C*"] * count, reasons={}, stereo=set(), keys=keys[places]
        )


@pytest.mark.parametrize("share_of_polymers", [1.0, 0.01])
def test_memory_does_not_grow_with_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share_of_polymers: float
) -> None:
    monkeypatch.setattr(merge, "PART_SIZE", 1 << 13)
    peaks = []
    for num_rows in (50_000, 500_000):
        folder = tmp_path / str(num_rows)
        folder.mkdir()
        num_polymers = int(num_rows * share_of_polymers)
        # The input itself is not what is measured: its keys are made before.
        chunks = synthetic(num_rows, num_polymers)
        first = next(chunks)
        tracemalloc.start()
        found = find_first_rows(chain([first], chunks), num_rows, folder)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert found.num_polymers == num_polymers
    assert peaks[1] < 1.5 * peaks[0], f"{peaks} bytes"


def test_one_polymer_in_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge, "PART_SIZE", 1 << 10)
    found = find_first_rows(synthetic(20_000, 1), 20_000, tmp_path)
    assert found.num_polymers == 1
    assert all((found.of(part) == 0).all() for part in synthetic(20_000, 1))
