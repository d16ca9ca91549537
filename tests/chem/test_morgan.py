"""Environments of the infinite chain are the same however it is spelled."""

import numpy as np
import pytest

from mips_dist.chem.morgan import chain_counts, distance_to_nearest
from mips_dist.chem.psmiles import canonicalize, parse
from mips_dist.chem.respell import random_spelling
from tests.polymers import POLYMERS

CANONICAL = sorted({canonicalize(text) for text in POLYMERS})


@pytest.mark.parametrize("canonical", CANONICAL)
def test_a_unit_written_k_times_counts_k_times(canonical):
    rng = np.random.default_rng(0)
    counts = chain_counts(canonical).GetNonzeroElements()
    size = parse(canonical).mol.GetNumAtoms() - 2
    for _ in range(5):
        spelling = random_spelling(canonical, rng)
        copies = (parse(spelling).mol.GetNumAtoms() - 2) // size
        found = chain_counts(spelling).GetNonzeroElements()
        assert found == {key: copies * count for key, count in counts.items()}


def test_distances_by_hand():
    # Polyethylene: one atom a unit, three radii, each once.
    one = chain_counts("*C*")
    assert sorted(one.GetNonzeroElements().values()) == [1, 1, 1]
    other = chain_counts("*CCO*")
    assert distance_to_nearest([one, other], [one, other]).tolist() == [0.0, 0.0]
    # A fluorinated chain shares no environment with it.
    assert distance_to_nearest([one], [chain_counts("*C(F)(F)*")]).tolist() == [1.0]
    # The pair is described by smallest and largest counts.
    a, b = one.GetNonzeroElements(), chain_counts("*CCCCCCO*").GetNonzeroElements()
    keys = set(a) | set(b)
    small = sum(min(a.get(k, 0), b.get(k, 0)) for k in keys)
    large = sum(max(a.get(k, 0), b.get(k, 0)) for k in keys)
    assert small > 0
    found = distance_to_nearest([one], [chain_counts("*CCCCCCO*")])
    assert found[0] == pytest.approx(1 - small / large)
