"""Tables and command lines that a stranger made.

Ten thousand hostile rows, bombs of one line, large parquet: tests/preprocess/test_hostile.py.
Rows that crash, hang or eat memory in RDKit: tests/preprocess/test_faults.py. Requests over HTTP:
tests/serve/test_api.py.
"""

import csv
from concurrent.futures import ThreadPoolExecutor

import pytest

from mips_dist.config import compose
from mips_dist.errors import UsageError
from preprocess.pipeline import PreprocessConfig
from tests.security.commands import CANARY, pickled, refused, run, tree

SECRET = "canary-of-the-environment"

OVERRIDES = [
    "_target_=os.system",
    "+_target_=os.system",
    "++column._target_=os.system",
    "hydra.run.dir=elsewhere",
    "++hydra.run.dir=elsewhere",
    "hydra.searchpath=[/tmp]",
    "+hydra.searchpath=[pkg://os]",
    "hydra/launcher=evil",
    "+hydra/launcher=evil",
    "output=${oc.env:SECRET}",
    "seed=${oc.env:SECRET}",
    "column='${oc.env:SECRET}'",
    "num_actors=!!python/object/apply:os.system",
    "content={_target_:os.system}",
]


@pytest.mark.parametrize("override", OVERRIDES)
def test_an_override_calls_nothing_and_looks_up_nothing(monkeypatch, override):
    monkeypatch.setenv("SECRET", SECRET)
    with pytest.raises(UsageError) as caught:
        compose(PreprocessConfig, "preprocess", [override])
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_override_on_the_command_line(tmp_path):
    (tmp_path / "in.csv").write_text("psmiles\n*CC*\n")

    def check(override: str) -> None:
        line = refused(
            tmp_path,
            "preprocess",
            "input=in.csv",
            "output=out",
            override,
            codes=(2,),
            SECRET=SECRET,
        )
        assert SECRET not in line

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(check, [OVERRIDES[i] for i in (0, 3, 10, 9)]))


FORMULAS = ["=cmd|'/C touch canary'!A0", "@SUM(1)", "$(touch canary)", "`touch canary`", "x\0y"]


def test_cells_come_back_as_they_were_and_nothing_of_them_is_run(tmp_path):
    with (tmp_path / "in.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["psmiles", "note"])
        writer.writerows([[text, text] for text in [*FORMULAS, "*CC*"]])
        file.write("*CC*," + "x" * 2**20 + "\n")  # a line of more than a MB
    before = tree(tmp_path)
    done = run(tmp_path, "mips", "canonicalize", "in.csv", "-o", "out.csv")
    assert (done.returncode, done.stderr) == (0, "")
    assert tree(tmp_path).keys() - before.keys() == {"out.csv"}
    csv.field_size_limit(2**22)
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["note"] for row in rows[:6]] == [*FORMULAS, "*CC*"]
    assert [row["status"] for row in rows] == ["rejected"] * 5 + ["ok", "rejected"]
    assert rows[6]["reason"].startswith("too_long")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("in.csv.gz", b"\x1f\x8b\x08\0" + pickled()),
        ("in.parquet", pickled()),
        ("in.parquet", b"PAR1" + b"\xff" * 64 + b"\xff\xff\xff\x7fPAR1"),
    ],
)
def test_a_table_that_is_none_is_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path, "mips", "predict", name, "-p", "egc", "-o", "out.csv")


def test_names_that_would_be_paths_or_options(tmp_path):
    (tmp_path / "in.csv").write_text("psmiles\n*CC*\n")
    assert "no released model" in refused(
        tmp_path, "mips", "predict", "in.csv", "-p", "../../etc", "-o", "out.csv", codes=(2,)
    )
    assert not (tmp_path / CANARY).exists()


def test_a_name_of_a_stranger_commands_no_terminal(tmp_path):
    (tmp_path / "in.csv").write_text("\x1b[2J\x1b]0;owned\x07,a\n1,2\n")
    line = refused(tmp_path, "mips", "canonicalize", "in.csv", "-o", "out.csv")
    assert line.isprintable()
    assert "owned" in line
