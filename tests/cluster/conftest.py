"""Hosts for the tests that need some."""

import os
import sys
from collections.abc import Iterator

import pytest

from tests.cluster.rules import ROOT

sys.path.append(str(ROOT / "scripts"))
from hosts import Hosts, missing_tools


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    """Two of them, where this machine allows it."""
    if missing := missing_tools():
        pytest.skip(missing)
    made = Hosts(subnet=100 + os.getpid() % 100)  # two runs on one machine stay apart
    try:
        try:
            made.up(2)
        except SystemExit as error:  # namespaces, but no bridge between them
            pytest.skip(str(error))
        yield made
    finally:
        made.down()
