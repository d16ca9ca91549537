"""New polymers of known ones: pieces give their seeds back, joins keep environments, sizes fit."""

import csv
import gzip
import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rdkit import Chem

from mips_dist.chem.psmiles import allowed_cuts, canonicalize, parse
from preprocess.corpus.__main__ import main
from preprocess.corpus.generate import hash_of, new_polymers, read_seeds
from preprocess.corpus.pieces import cut_seeds, join
from tests.chem.oligomer import explicit_oligomer
from tests.polymers import POLYMERS

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "glass_transition.csv"


@pytest.fixture(scope="module")
def seeds() -> list[str]:
    return read_seeds([EXAMPLES])[0]


@pytest.fixture(scope="module")
def generated(seeds: list[str]) -> list[str]:
    return list(itertools.islice(new_polymers(seeds, set(), 0), 400))


def rows(path: Path) -> list[str]:
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [row["psmiles"] for row in csv.DictReader(text.decode().splitlines())]


def num_heavy(psmiles: str) -> int:
    return sum(atom.GetAtomicNum() > 1 for atom in Chem.MolFromSmiles(psmiles).GetAtoms())


def test_pieces_of_a_seed_give_it_back_from_any_start_in_both_directions(seeds):
    single = [
        psmiles for psmiles in [*seeds, *map(canonicalize, POLYMERS)] if parse(psmiles).order == 1
    ]
    pieces = cut_seeds(single)
    assert len(pieces.rings) == len(single)
    for psmiles, ring, size in zip(single, pieces.rings, pieces.seed_sizes, strict=True):
        assert len(ring) == len(allowed_cuts(parse(psmiles)))
        assert size == num_heavy(psmiles)
        for start in {0, 1 % len(ring), len(ring) // 2, len(ring) - 1}:
            turned = [pieces.texts[piece] for piece in ring[start:] + ring[:start]]
            assert canonicalize(join((text, False) for text in turned)) == psmiles
            assert canonicalize(join((text, True) for text in reversed(turned))) == psmiles


def test_chains_that_cannot_be_cut_give_no_piece():
    assert cut_seeds(["*=C=*", "*=c1ccc(=*)cc1"]).rings == []


def test_polymers_are_canonical_distinct_and_new(seeds, generated):
    assert len(set(generated)) == len(generated) == 400
    assert [canonicalize(psmiles) for psmiles in generated] == generated
    known = set(map(hash_of, seeds))
    fresh = list(itertools.islice(new_polymers(seeds, known, 0), 400))
    assert not set(fresh) & set(seeds)
    assert set(generated) & set(seeds), "without hashes, seeds do come out again"


def bond_kinds(psmiles: str) -> list[tuple[frozenset[str], frozenset[str]]]:
    """Backbone bonds of the chain, link first: both atoms alone, and with their neighbours.

    Read from an explicit oligomer of five units, not by the code under test.
    """
    unit = parse(psmiles)
    mol, index = explicit_oligomer(psmiles, 5)
    atoms = [i for i in range(unit.mol.GetNumAtoms()) if i not in unit.stars]
    kinds = []
    for cut in allowed_cuts(unit):
        left = index[atoms.index(cut.left), 1 if cut.is_link else 2]
        pair = [mol.GetAtomWithIdx(i) for i in (left, index[atoms.index(cut.right), 2])]
        alone = frozenset(state(atom) for atom in pair)
        around = [
            f"{state(a)}H{a.GetTotalNumHs()}{sorted(state(n) for n in a.GetNeighbors())}"
            for a in pair
        ]
        kinds.append((alone, frozenset(around)))
    return kinds


def state(atom: Chem.Atom) -> str:
    return f"{atom.GetSymbol()}{atom.GetFormalCharge()}{atom.GetIsAromatic()}"


def test_joins_keep_the_environments_of_seeds(seeds, generated):
    seed_kinds = [kind for psmiles in seeds for kind in bond_kinds(psmiles)]
    alone = {kind[0] for kind in seed_kinds}
    around = {kind[1] for kind in seed_kinds}
    strange = 0
    for psmiles in generated:
        kinds = bond_kinds(psmiles)
        assert {kind[0] for kind in kinds} <= alone, psmiles
        # The link, and the two bonds that share an atom with it, may be new with their neighbours.
        new = sum(kind[1] not in around for kind in kinds)
        assert new <= 3, psmiles
        strange += new > 0
    assert strange < len(generated)


def test_two_processes_write_the_same_bytes_and_fewer_are_the_first(tmp_path):
    outputs = [tmp_path / name / "new.csv.gz" for name in ("1", "2")]
    for output in outputs:
        command = [sys.executable, "-m", "preprocess.corpus", "generate", f"input={EXAMPLES}"]
        subprocess.run(
            [*command, f"output={output}", "num_polymers=150", "seed=5"],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": output.parent.name},
            check=True,
            capture_output=True,
        )
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    assert [file.name for file in outputs[0].parent.iterdir()] == ["new.csv.gz"]
    few = tmp_path / "few.csv"
    command = ["generate", f"input={EXAMPLES}", f"output={few}", "num_polymers=40"]
    assert main([*command, "seed=5"]) == 0
    assert rows(few) == rows(outputs[0])[:40]
    assert main([*command, "seed=6"]) == 0
    assert rows(few) != rows(outputs[0])[:40]


def test_seeds_that_have_no_more_to_give_say_how_many(tmp_path, capsys):
    (tmp_path / "seeds").mkdir()
    (tmp_path / "seeds" / "a.csv").write_text("psmiles\n*CCO*\n*CC(*)C\nnone\n")
    (tmp_path / "seeds" / "b.csv").write_text("id,SMILES\n1,*CCOC(=O)c1ccc(C(=O)O*)cc1\n")
    command = ["generate", f"input={tmp_path}/seeds", f"output={tmp_path}/new.csv"]
    assert main([*command, "num_polymers=1000"]) == 1
    captured = capsys.readouterr()
    assert "3 distinct seeds; 1 rows that are no polymer left out" in captured.out
    error = captured.err.splitlines()[-1]
    assert error.startswith("error: the seeds gave only ")
    number = int(error.partition("num_polymers=")[2].split()[0])
    assert 1 <= number < 1000
    assert not (tmp_path / "new.csv").exists()
    assert main([*command, f"num_polymers={number}"]) == 0
    assert len(set(rows(tmp_path / "new.csv"))) == number
    assert {p.name for p in tmp_path.iterdir()} == {"seeds", "new.csv"}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["num_polymers=10"], 2, "input=SEEDS.csv and output=FILE.csv are needed"),
        (["input={csv}", "output=x.parquet"], 2, "is no csv"),
        (["input={csv}", "output={csv}"], 2, "is the input; give another name"),
        (["input={empty}", "output=x.csv"], 2, "has no csv or csv.gz in it"),
        (["input=none.csv", "output=x.csv"], 1, "no file none.csv"),
        (["input={csv}", "output=x.csv", "column=y"], 2, "no column y"),
        (["input={csv}", "output=x.csv", "num_polymers=0"], 2, "must be at least 1"),
        (["input={bad}", "output=x.csv"], 1, "has no valid polymer"),
        (["input={double}", "output=x.csv"], 1, "have no backbone bond that can be cut"),
    ],
)
def test_wrong_commands_are_one_line(arguments, code, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts = {"csv": "*CC*", "bad": "CC", "double": "*=C=*"}
    for name, text in texts.items():
        Path(f"{name}.csv").write_text(f"psmiles\n{text}\n")
    Path("empty").mkdir()
    names = {name: f"{name}.csv" for name in texts} | {"empty": "empty"}
    assert main(["generate", *(argument.format(**names) for argument in arguments)]) == code
    lines = capsys.readouterr().err.splitlines()
    (error,) = [line for line in lines if not line.startswith("generation: 0 of")]
    assert message in error
    assert error.startswith("error: ")
    assert not Path("x.csv").exists()


@pytest.mark.needs_data
def test_sizes_follow_those_of_the_eight_sets(data_dir):
    # Every third of their polymers, for speed.
    seeds = read_seeds(sorted((data_dir / "benchmark").glob("*.csv")))[0][::3]
    polymers = itertools.islice(new_polymers(seeds, set(map(hash_of, seeds)), 0), 1500)
    wanted = np.sort([num_heavy(psmiles) for psmiles in seeds])
    found = np.sort([num_heavy(psmiles) for psmiles in polymers])
    sizes = np.union1d(wanted, found)
    # Kolmogorov-Smirnov distance of the two distributions.
    distance = np.abs(
        np.searchsorted(wanted, sizes, side="right") / len(wanted)
        - np.searchsorted(found, sizes, side="right") / len(found)
    ).max()
    assert distance < 0.08, distance
