"""Tests that need the benchmark data run where MIPS_DATA points, else they are left out."""

import csv
import os
from pathlib import Path

import pytest

# Small tensors on many threads are slower than on one, and two cores are soon crowded.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if os.environ.get("MIPS_DATA"):
        return
    kept = [item for item in items if "needs_data" not in item.keywords]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of benchmark sets and corpus; only for tests marked needs_data."""
    return Path(os.environ["MIPS_DATA"])


@pytest.fixture(scope="session")
def benchmark_texts(data_dir: Path) -> list[str]:
    """The distinct P-SMILES texts of all eight sets."""
    texts = set()
    for path in sorted((data_dir / "benchmark").glob("*.csv")):
        with path.open(newline="") as file:
            texts |= {row["psmiles"] for row in csv.DictReader(file)}
    return sorted(texts)
