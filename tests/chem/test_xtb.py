"""GFN2-xTB descriptors against hand-made calculations, other spellings, other processes, labels."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from mips_dist.chem.psmiles import canonicalize
from mips_dist.chem.respell import random_spelling
from mips_dist.chem.sample import content_for, featurize, groups_of
from mips_dist.chem.xtb import MAX_UNIT_ATOMS, XTB_DESCRIPTORS, describe_xtb, raw_xtb
from mips_dist.model.spatial import DESCRIPTOR_WIDTHS

pytest.importorskip("tblite.interface")
from tblite.interface import Calculator

BOHR = 0.529177210903
HARTREE = 27.211386245988
SOME = ["*C*", "*C=C*", "*CC(*)c1ccccc1", "*CNC(=O)C*", "*O[Si](*)(C)C", "*=C=*", "*C[NH2+]C*"]


def energies(
    numbers: list[int], places: list[list[float]], uhf: int = 0
) -> tuple[float, np.ndarray]:
    calculator = Calculator("GFN2-xTB", np.array(numbers), np.array(places, float) / BOHR, uhf=uhf)
    calculator.set("verbosity", 0)
    found = calculator.singlepoint()
    return found.get("energy") * HARTREE, np.sort(found.get("orbital-energies").ravel()) * HARTREE


def test_one_unit_of_polyethylene_is_methane() -> None:
    a = 1.09 / np.sqrt(3)
    corners = [[a, a, a], [a, -a, -a], [-a, a, -a], [-a, -a, a]]
    energy, levels = energies([6, 1, 1, 1, 1], [[0.0, 0.0, 0.0], *corners])
    raw = raw_xtb("*C*")
    assert raw is not None
    # Eight electrons fill four levels; the force field's bonds differ a little from these.
    assert abs(raw["homo_1"] - levels[3]) < 0.2
    assert abs(raw["lumo_1"] - levels[4]) < 0.2
    assert raw["units"] == 3

    # One more CH2 in the chain, against free atoms: experiment says 12.2 eV, the method overbinds.
    free = energies([6], [[0.0, 0.0, 0.0]])[0] + 2 * energies([1], [[0.0, 0.0, 0.0]], uhf=1)[0]
    assert energy < free
    assert 12.0 < raw["atomization"] < 18.0


def test_conjugation_closes_the_gap_with_length() -> None:
    conjugated, saturated = raw_xtb("*C=C*"), raw_xtb("*C*")
    assert conjugated is not None
    assert saturated is not None
    assert conjugated["homo_1"] < conjugated["homo"] < conjugated["homo_limit"]
    assert conjugated["lumo_1"] > conjugated["lumo"] > conjugated["lumo_limit"]
    assert conjugated["gap"] < 0.5 * saturated["gap"]
    # A chain of n + 1 over one of n: the line through both, at 1 / n = 0.
    assert conjugated["gap_limit"] == pytest.approx(
        conjugated["lumo_limit"] - conjugated["homo_limit"]
    )


@pytest.mark.parametrize("psmiles", SOME)
def test_spellings_give_equal_bytes(psmiles: str) -> None:
    rng = np.random.default_rng(0)
    expected = describe_xtb(canonicalize(psmiles))
    assert expected is not None
    assert np.isfinite(expected).all()
    found = describe_xtb(canonicalize(random_spelling(psmiles, rng)))
    assert found is not None
    assert found.tobytes() == expected.tobytes()


def test_another_process_gives_equal_bytes() -> None:
    script = (
        "from mips_dist.chem.xtb import describe_xtb\n"
        "print(*(describe_xtb(text).tobytes().hex() for text in ('*CNC(=O)C*', '*C=C*')))\n"
    )
    # More threads than the descriptors are made with.
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment
    )
    here = [describe_xtb(text) for text in ("*CNC(=O)C*", "*C=C*")]
    assert run.stdout.split() == [found.tobytes().hex() for found in here if found is not None]


def test_what_has_no_descriptors() -> None:
    too_large = f"*{'C' * (MAX_UNIT_ATOMS)}O*"
    assert describe_xtb(canonicalize(too_large)) is None
    largest = raw_xtb(canonicalize("*CC(*)C(=O)OCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCO"))
    assert largest is not None
    assert largest["units"] == 1
    assert largest["homo_limit"] == largest["homo"] == largest["homo_1"]


def test_it_is_a_group_of_a_sample() -> None:
    assert len(XTB_DESCRIPTORS) == DESCRIPTOR_WIDTHS["xtb"]
    assert content_for(["bands", "xtb"]) == "xtb"
    assert [group.name for group in groups_of("xtb")][-1] == "xtb"
    (sample,) = featurize(["*CNC(=O)C*"], "xtb", seed=3)
    expected = describe_xtb("*CNC(=O)C*", seed=3)
    assert expected is not None
    assert sample.descriptors["xtb"].tobytes() == expected.tobytes()
    (full,) = featurize(["*CNC(=O)C*"], "full", seed=3)
    assert set(sample.descriptors) == {*full.descriptors, "xtb"}


def test_without_tblite_one_line_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("psmiles\n*CC*\n")
    blocked = tmp_path / "site"
    blocked.mkdir()
    (blocked / "sitecustomize.py").write_text(
        "import importlib.util as util\n"
        "find = util.find_spec\n"
        "util.find_spec = lambda name, *a: None if name == 'tblite' else find(name, *a)\n"
    )
    run = subprocess.run(
        [sys.executable, "-m", "preprocess", "input=in.csv", "output=out", "content=xtb"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{blocked}:{Path.cwd()}"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1
    assert run.stderr.strip().splitlines() == [
        "error: descriptors of GFN2-xTB need tblite: pip install 'mips-dist[xtb]'"
    ]
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif("MIPS_DATA" not in os.environ, reason="needs the benchmark sets")
@pytest.mark.parametrize(
    ("name", "descriptor", "least"), [("Ei", "homo", -0.7), ("Eea", "lumo", -0.8)]
)
def test_levels_rank_real_polymers(name: str, descriptor: str, least: float) -> None:
    path = Path(os.environ["MIPS_DATA"]) / "benchmark" / f"{name}.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))[::12]
    raw = [raw_xtb(canonicalize(row["psmiles"])) for row in rows]
    known = [(d[descriptor], float(r["value"])) for d, r in zip(raw, rows, strict=True) if d]
    assert len(known) > 0.9 * len(rows)
    assert spearmanr(*zip(*known, strict=True))[0] < least
