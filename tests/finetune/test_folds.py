import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from mips_dist.config import configs_dir
from mips_dist.data.folds import assign_folds, folds_text, load_or_assign
from mips_dist.data.properties import (
    BENCHMARK,
    LabelledSet,
    read_labelled_sets,
    read_property,
)
from mips_dist.errors import MipsError
from tests.finetune.learnable import labelled_set
from tests.shard_folder import polymers


@pytest.fixture(scope="module")
def sets():
    names = polymers(230)
    # Overlapping properties of different size; some polymers twice in one of them.
    return [
        labelled_set("large", names[:200] + names[:7]),
        labelled_set("small", names[150:193]),
        labelled_set("other", names[180:230] + names[3:6]),
    ]


def fold_of_polymers(sets, folds):
    found = {}
    for labelled, fold in zip(sets, folds, strict=True):
        for canonical, f in zip(labelled.canonical, fold, strict=True):
            found.setdefault(canonical, set()).add(int(f))
    return found


def test_no_polymer_is_in_two_folds_whatever_the_property(sets):
    assert all(len(f) == 1 for f in fold_of_polymers(sets, assign_folds(sets, 5, 1)).values())


def test_every_property_is_balanced(sets):
    for fold, labelled in zip(assign_folds(sets, 5, 1), sets, strict=True):
        counts = np.bincount(fold, minlength=5)
        assert counts.sum() == len(labelled.row)
        assert counts.max() - counts.min() <= 3


def test_folds_depend_on_polymers_and_seed_alone(sets):
    def reversed_rows(s):
        return LabelledSet(s.property, s.row[::-1], s.canonical[::-1], s.value[::-1])

    first = fold_of_polymers(sets, assign_folds(sets, 5, 1))
    turned = [reversed_rows(s) for s in sets]
    assert fold_of_polymers(turned, assign_folds(turned, 5, 1)) == first
    assert fold_of_polymers(sets, assign_folds(sets, 5, 20)) != first


def test_saved_folds_hold_hashes_only_and_are_reused(sets, tmp_path):
    path = tmp_path / "folds.csv"
    folds, digest = load_or_assign(path, sets, 5, 1)
    text = path.read_text()
    assert text.startswith("property,row,sha256,fold\nlarge,0,")
    assert "*" not in text
    assert hashlib.sha256(sets[0].canonical[0].encode()).hexdigest() in text
    assert digest == hashlib.sha256(text.encode()).hexdigest()
    # Another seed is not asked for again: what was saved counts.
    again, same = load_or_assign(path, sets, 5, 99)
    assert same == digest
    assert all(np.array_equal(a, b) for a, b in zip(folds, again, strict=True))
    assert folds_text(sets, again) == text


def test_folds_that_do_not_match_are_refused(sets, tmp_path):
    path = tmp_path / "folds.csv"
    load_or_assign(path, sets, 5, 1)
    with pytest.raises(MipsError, match="folds of other rows"):
        load_or_assign(path, sets[:2], 5, 1)
    with pytest.raises(MipsError, match="folds of other rows"):
        load_or_assign(path, [labelled_set("large", sets[1].canonical), *sets[1:]], 5, 1)
    with pytest.raises(MipsError, match="does not hold 3 folds"):
        load_or_assign(path, sets, 3, 1)
    lines = path.read_text().splitlines(keepends=True)
    other_fold = "1" if lines[1][-2] == "0" else "0"
    path.write_text("".join([lines[0], lines[1][:-2] + other_fold + "\n", *lines[2:]]))
    with pytest.raises(MipsError, match="does not match"):
        load_or_assign(path, sets, 5, 1)


@pytest.mark.skipif("MIPS_DATA" not in os.environ, reason="needs the benchmark sets")
def test_the_committed_folds_are_those_that_a_study_deals():
    properties = [read_property(configs_dir() / "property", name) for name in BENCHMARK]
    for prop in properties:
        prop.file = str(Path(os.environ["MIPS_DATA"]) / "benchmark" / prop.file)
    sets, _ = read_labelled_sets(properties)
    committed = Path(__file__).parents[2] / "docs" / "results" / "benchmark_folds.csv"
    assert committed.read_text() == folds_text(sets, assign_folds(sets, 5, 1))
    assert "*" not in committed.read_text()  # no P-SMILES
