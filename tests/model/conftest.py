"""Polymers for tests, and one thread: on small matrices more threads only wait for each other."""

import pytest
import torch

from mips_dist.chem.graph import PolymerGraph, build_graphs
from mips_dist.chem.psmiles import canonicalize
from tests.polymers import POLYMERS

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def graphs() -> list[PolymerGraph]:
    return build_graphs([canonicalize(polymer) for polymer in POLYMERS])
