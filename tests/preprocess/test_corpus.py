"""The embedded corpus is reproducible and valid; the two example tables keep what they promise."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rdkit import Chem

from mips_dist.chem.psmiles import InvalidPolymer, canonicalize
from preprocess.corpus.__main__ import main
from preprocess.corpus.embedded import take_in_turns

ROOT = Path(__file__).parents[2]
NUM_POLYMERS = 120


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The corpus written by two processes that order their sets differently."""
    folder = tmp_path_factory.mktemp("corpus")
    outputs = [folder / f"{hash_seed}" / "corpus.csv" for hash_seed in (1, 2)]
    processes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "preprocess.corpus", "embedded"),
                *(f"output={output}", f"num_polymers={NUM_POLYMERS}", "seed=3"),
            ],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": output.parent.name},
            stdout=subprocess.DEVNULL,
        )
        for output in outputs
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    return outputs


def test_two_processes_write_the_same_bytes(corpora: list[Path]) -> None:
    first, second = corpora
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes().startswith(b"psmiles\n")
    # Nothing temporary stays behind.
    assert [path.name for path in first.parent.iterdir()] == ["corpus.csv"]


def test_polymers_are_valid_distinct_and_as_many_as_asked(corpora: list[Path]) -> None:
    texts = [row["psmiles"] for row in read(corpora[0])]
    assert len({canonicalize(text) for text in texts}) == len(texts) == NUM_POLYMERS
    for text in texts:
        # Said in RDKit's terms, apart from our own validation.
        mol = Chem.MolFromSmiles(text)
        assert len(Chem.GetMolFrags(mol)) == 1, text
        stars = [atom for atom in mol.GetAtoms() if atom.GetAtomicNum() == 0]
        assert [star.GetDegree() for star in stars] == [1, 1], text


def test_turns_are_fair_and_items_distinct() -> None:
    taken: list[int] = []
    streams = [iter("aab"), iter("acdefg"), iter("")]
    assert take_in_turns(streams, 4, taken.append) == ["a", "c", "b", "d"]
    assert sum(taken) == 4
    assert take_in_turns([iter("xyx")], 9, taken.append) == ["x", "y"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "usage: python -m preprocess.corpus embedded output=FILE.csv"),
        (["embed"], 2, "usage: python -m preprocess.corpus embedded output=FILE.csv"),
        (["embedded", "num_polymers=0"], 2, "num_polymers=0: must be at least 1"),
        (["embedded", "size=9"], 2, "size"),
        (["embedded", f"output={ROOT}"], 2, "is a folder; name a csv file"),
        (["embedded", "output=x.parquet"], 2, "is no csv"),
    ],
)
def test_wrong_commands_are_one_line(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == code
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def glass_transitions() -> dict[str, float]:
    rows = read(ROOT / "examples" / "glass_transition.csv")
    values = {canonicalize(row["psmiles"]): float(row["tg_K"]) for row in rows}
    assert len(values) == len(rows), "a polymer stands twice in the table"
    return values


def test_glass_transition_table() -> None:
    values = glass_transitions()
    assert len(values) >= 100
    assert all(100 <= value <= 700 for value in values.values())
    for row in read(ROOT / "examples" / "glass_transition.csv"):
        assert row["source"], row
        assert row["name"], row


@pytest.mark.needs_data
def test_recalled_glass_transitions_are_near_the_check_table(data_dir: Path) -> None:
    values = glass_transitions()
    checked = set()
    for row in read(data_dir / "check" / "Tg.csv"):
        polymer = canonicalize(row["psmiles"])
        if polymer in values:
            checked.add(polymer)
            assert abs(values[polymer] - float(row["value"])) <= 15, row
    assert checked == set(values)


def test_example_polymers_hold_two_bad_rows() -> None:
    codes = []
    for row in read(ROOT / "examples" / "polymers.csv"):
        try:
            canonicalize(row["psmiles"])
        except InvalidPolymer as error:
            codes.append(error.code)
    assert codes == ["star_count", "valence"]
