"""Tests that need the benchmark data run where MIPS_DATA points, and are left out where it is unset."""

import os
from pathlib import Path

import pytest


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
