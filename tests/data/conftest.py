"""Small polymers with made-up descriptors and coordinates; some lack one or the other."""

from collections.abc import Callable

import numpy as np
import pytest

from mips_dist.chem.conformer import Conformer
from mips_dist.chem.graph import build_graphs
from mips_dist.chem.psmiles import canonicalize
from mips_dist.chem.sample import Sample
from mips_dist.data.block import PolymerBlock, stack

POLYMERS = (
    "*C*",
    "*CC(*)C",
    "*CC(*)c1ccccc1",
    "*OCC*",
    "*c1ccc(*)s1",
    "*C(=O)CCCCC(=O)NCCCCCCN*",
    "*O[Si](*)(C)C",
    "*C=CC(*)C#N",
    "*CC1CCC(*)C1",
    "*c1ccc(C(C)(C)c2ccc(OC(=O)O*)cc2)cc1",
    "*N1C(=O)c2ccc(*)cc2C1=O",
    "*CC(F)(F)*",
)


@pytest.fixture(scope="session")
def samples() -> list[Sample]:
    """Twelve polymers; every third has no conformer, and so no 3D fingerprint."""
    rng = np.random.default_rng(0)
    made = []
    for number, graph in enumerate(build_graphs([canonicalize(p) for p in POLYMERS], max_hops=2)):
        descriptors = {"rdkit_2d": rng.random(200, dtype=np.float32)}
        conformer = None
        if number % 3:
            descriptors["atom_pair_3d"] = rng.integers(0, 2, 512, dtype=np.uint8)
            size = len(graph.is_backbone) + 4
            conformer = Conformer(
                coordinates=rng.standard_normal((size, 3), dtype=np.float32),
                is_hydrogen=np.arange(size) >= len(graph.is_backbone),
                status=number % 4,
            )
        made.append(Sample(graph, descriptors, conformer))
    return made


@pytest.fixture(scope="session")
def block(samples: list[Sample]) -> PolymerBlock:
    """The twelve polymers as one block."""
    return stack(samples, range(100, 100 + len(samples)))


@pytest.fixture(scope="session")
def assert_equal() -> Callable[[PolymerBlock, PolymerBlock], None]:
    """Assert that two blocks are equal in every value and kind of dtype."""
    return _assert_equal


def _assert_equal(left: PolymerBlock, right: PolymerBlock) -> None:
    for name in PolymerBlock.__dataclass_fields__:
        mine, theirs = getattr(left, name), getattr(right, name)
        if isinstance(mine, dict):
            assert list(mine) == list(theirs)
            pairs = [(mine[key], theirs[key]) for key in mine]
        else:
            pairs = [(mine, theirs)]
        for a, b in pairs:
            if isinstance(a, np.ndarray):
                # What is read from a shard may be of a narrower integer type.
                both = {a.dtype.kind, b.dtype.kind}
                assert a.dtype == b.dtype or both <= {"i", "u"}, name
                assert a.shape == b.shape, name
                assert np.array_equal(a, b), name
            else:
                assert a == b, name
