"""Law L1 for the spelling: one string per polymer, and a named reason for everything else."""

import csv
import gzip
from itertools import islice

import numpy as np
import pytest
from rdkit import Chem

from mips_dist.chem.psmiles import (
    MAX_ATOMS,
    MAX_CHARACTERS,
    InvalidPolymer,
    _clean,
    canonicalize,
    has_stereo_marks,
    parse,
)
from mips_dist.chem.respell import random_spelling, respell
from tests.polymers import CORNER_CASES, POLYMERS


@pytest.mark.parametrize(("spelling", "canonical"), CORNER_CASES.items())
def test_corner_cases(spelling, canonical):
    assert canonicalize(spelling) == canonical
    assert canonicalize(canonical) == canonical


REJECTIONS = {
    "": "empty",
    "   ": "empty",
    "C" * (MAX_CHARACTERS + 1): "too_long",
    "*" + "C" * (MAX_ATOMS + 1) + "*": "too_large",
    "*CC* polyethylene": "characters",
    "*C\x00C*": "characters",
    "*С*": "characters",  # a Cyrillic letter
    "＊CC＊": "characters",  # full-width stars
    "*CC(*": "unparsable",
    "=1+1": "unparsable",
    "*C(C)(C)(C)(C)*": "valence",
    "*c1cccc1*": "valence",
    "*CC(*)C(=O)[O-].[Na+]": "fragments",
    "*C.C*": "fragments",
    "CCO": "star_count",
    "*CC": "star_count",
    "*C(*)*": "star_count",
    "*C1C(*)C(*)C1*": "star_count",
    "[*+]CC*": "star_form",
    "[*H]CC*": "star_form",
    "*1CC*1": "star_degree",
    "C*C*": "star_degree",
    "*CCC(=*)C": "star_bond",
    "*P(=*)(C)C": "star_bond",
    "*C~C*": "bond_type",
    "*->[Fe]*": "bond_type",
    "*O(C)[Li]C*": "bond_type",
    "*CN(C)(C)[Zn]*": "bond_type",
    "*[40000CH2]C*": "isotope",
    "**": "no_atoms",
}


@pytest.mark.parametrize(("text", "code"), REJECTIONS.items())
def test_rejections_are_named(text, code):
    with pytest.raises(InvalidPolymer) as caught:
        canonicalize(text)
    assert caught.value.code == code
    assert str(caught.value).startswith(f"{code}: ")
    assert "\n" not in str(caught.value)


def test_ring_closure_across_a_dot_is_one_molecule():
    assert canonicalize("*C1.C1*") == canonicalize("*CC*")


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("*C([H])([H])*", "*C*"),
        ("[H]C(*)([H])[2H]*", None),
        ("*OC([#1])([H])*", "*CO*"),
        ("*N([H])C(*)=O", "*NC(*)=O"),
        ("*c1cc(*)n([H])c1", "*c1c[nH]c(*)c1"),
        ("*[H]*", None),
    ],
)
def test_hydrogens_written_as_atoms_belong_to_their_neighbours(text, canonical):
    if canonical is None:
        with pytest.raises(InvalidPolymer):
            canonicalize(text)
    else:
        assert canonicalize(text) == canonicalize(canonical)


@pytest.mark.needs_data
def test_reading_equals_a_full_parse(benchmark_texts):
    for text in benchmark_texts:
        mol, clean = parse(text).mol, _clean(text)
        full = Chem.MolFromSmiles(clean)
        assert Chem.MolToSmiles(mol) == Chem.MolToSmiles(full), text
        assert mol.GetRingInfo().AtomRings() == full.GetRingInfo().AtomRings(), text


def test_stereo_marks_are_seen():
    assert has_stereo_marks("*C[C@H](*)C")
    assert has_stereo_marks("*C/C=C/C*")
    assert not has_stereo_marks("*CC(*)C")


@pytest.mark.parametrize("polymer", POLYMERS)
def test_every_spelling_has_one_canonical_form(polymer):
    rng = np.random.default_rng(7)
    canonical = canonicalize(polymer)
    spellings = {random_spelling(polymer, rng) for _ in range(20)}
    assert {canonicalize(spelling) for spelling in spellings} == {canonical}
    # The law would hold of nothing if the spellings were all alike.
    assert len(spellings) > 1


def check_respellings(polymer: str, rng: np.random.Generator, number: int) -> set[tuple]:
    """Draw as `mips rsit` does; return the kinds that were met."""
    given, canonical = Chem.MolFromSmiles(polymer), canonicalize(polymer)
    kinds = set()
    for _ in range(number):
        drawn = respell(polymer, rng)
        assert canonicalize(drawn.psmiles) == canonical
        written = Chem.MolFromSmiles(drawn.psmiles)
        copies = 2 if drawn.is_repeated else 1
        assert written.GetNumAtoms() - 2 == copies * (given.GetNumAtoms() - 2)
        if not (drawn.is_repeated or drawn.is_shifted):
            assert Chem.MolToSmiles(written) == Chem.MolToSmiles(given)
        kinds.add((drawn.is_repeated, drawn.is_shifted, drawn.is_reversed))
    return kinds


def test_respellings_are_of_every_kind():
    rng = np.random.default_rng(3)
    drawn = [check_respellings(canonicalize(polymer), rng, 20) for polymer in POLYMERS]
    assert max(len(kinds) for kinds in drawn) == 8
    # One backbone bond to a unit: a shift leads to the same cut again.
    assert not any(is_shifted for _, is_shifted, _ in check_respellings("*O*", rng, 20))


def test_a_reversed_spelling_begins_at_the_other_end():
    rng = np.random.default_rng(4)
    for _ in range(20):
        drawn = respell("*CCO*", rng)
        if not drawn.is_shifted:
            assert drawn.psmiles.startswith("*O") == drawn.is_reversed


@pytest.mark.needs_data
def test_respellings_of_the_benchmark_are_the_same_polymers(benchmark_texts):
    rng = np.random.default_rng(5)
    for text in benchmark_texts[::5]:
        check_respellings(Chem.CanonSmiles(text, useChiral=0), rng, 3)


def test_different_polymers_have_different_forms():
    assert len({canonicalize(polymer) for polymer in POLYMERS}) == len(POLYMERS)


@pytest.mark.needs_data
def test_every_benchmark_polymer_has_one_form(benchmark_texts):
    rng = np.random.default_rng(11)
    canonical = {text: canonicalize(text) for text in benchmark_texts}
    # 3,649 chains among 3,973 texts: counted by an independent prototype as well.
    assert len(set(canonical.values())) == 3649
    for text, form in canonical.items():
        assert canonicalize(form) == form
        for _ in range(3):
            assert canonicalize(random_spelling(text, rng)) == form


@pytest.mark.needs_data
def test_corpus_polymers_have_one_form(data_dir):
    rng = np.random.default_rng(13)
    with gzip.open(data_dir / "corpus" / "pl1m_like.csv.gz", "rt") as file:
        texts = [row["psmiles"] for row in islice(csv.DictReader(file), 1000)]
    for text in texts:
        form = canonicalize(text)
        assert canonicalize(form) == form
        assert canonicalize(random_spelling(text, rng)) == form
