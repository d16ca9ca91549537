"""The process behind a replica: what a polymer can do to it, and what that costs the others."""

import os
import time
from pathlib import Path

import psutil
import pytest

import mips_dist as mips
from mips_dist.errors import MipsError, UsageError
from mips_dist.serve.engine import Engine
from tests.serve.conftest import POISON
from tests.serve.poison.sitecustomize import CRASH, EAT, HANG

BOTH = ("egc", "nc")


@pytest.fixture(scope="module")
def engine(model_dirs):
    with pytest.MonkeyPatch.context() as patch:
        path = f"{POISON}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        patch.setenv("PYTHONPATH", path)
        engine = Engine([str(path) for path in model_dirs], seconds=0.5)
        yield engine
        engine.close()


def test_a_polymer_that_ends_its_process_costs_its_row_alone(engine, model_dirs):
    texts = ["*CC(*)C", HANG, "*CO*", CRASH, "nonsense", EAT, "*c1ccc(*)s1"]
    rows = [engine.predict(text, BOTH) for text in texts]
    assert [row["reason"].partition(":")[0] for row in rows] == [
        *("", "timed_out", "", "crashed", "unparsable", "out_of_memory", "")
    ]
    assert "SIGABRT" in rows[3]["reason"]
    assert [row["status"] == "ok" for row in rows] == [not row["reason"] for row in rows]
    # The others have the bits that the library gives.
    expected = mips.load(*model_dirs).predict(texts)
    for row, known in zip(rows, expected, strict=True):
        if row["status"] == "ok":
            assert {n: v["value"] for n, v in row["values"].items()} == {
                n: v.value for n, v in known.values.items()
            }
    # It is known now, and costs nothing more.
    started = psutil.Process(engine._process.pid).children()
    assert engine.predict(HANG, BOTH) == rows[1]
    assert engine.picture(CRASH, "unit", "nc") == ("", rows[3]["reason"])
    assert psutil.Process(engine._process.pid).children() == started


def test_a_process_killed_from_outside_is_held_against_no_polymer(engine):
    row = engine.predict("*CO*", BOTH)
    psutil.Process(engine._process.pid).children()[0].kill()
    assert engine.predict("*CO*", BOTH) == row
    zygote = psutil.Process(engine._process.pid)
    children = zygote.children()
    zygote.kill()
    assert engine.predict("*CO*", ("nc",))["values"] == {"nc": row["values"]["nc"]}
    end = time.monotonic() + 20
    while any(c.is_running() and c.status() != psutil.STATUS_ZOMBIE for c in children):
        assert time.monotonic() < end, "a worker outlived the process that holds the models"
        time.sleep(0.1)


def test_models_that_cannot_be_served(model_dirs, tmp_path: Path):
    with pytest.raises(UsageError, match="two models predict egc"):
        Engine([str(model_dirs[0])] * 2)
    with pytest.raises(MipsError):
        Engine([str(tmp_path)])
