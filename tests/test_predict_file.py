"""`mips predict`: rows in = rows out, whatever stands in them, in whatever format they come."""

import csv
import io
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mips_dist.errors import MipsError, UsageError
from mips_dist.use import predict_file as module
from mips_dist.use import workers as workers_module
from mips_dist.use.known import KnownPolymers
from mips_dist.use.predict_file import predict_file, predict_given
from mips_dist.use.predictor import Predictor
from mips_dist.use.table import CHUNK_ROWS
from mips_dist.use.workers import Failed, Workers
from tests.shard_folder import polymers
from tests.test_calibration import calibrated_model

ADDED = ["canonical", "status", "reason"]
ENDINGS = ["", "_lower", "_upper", "_distance", "_in_domain", "_unit"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated_model(tmp_path_factory.mktemp("model") / "tg", "tg")


def test_every_row_comes_back_once_in_order_as_it_was(model: Path, tmp_path: Path) -> None:
    """A tenth of the rows is bad; they span chunks, and polymers repeat across them."""
    good = polymers(30)
    bad = ["=1+1", "+CC", "-C", "@x", "nonsense", "*CC", "", "*C.C*", "C" * 30_000]
    texts = [bad[i // 10 % len(bad)] if i % 10 == 7 else good[i % 29] for i in range(1040)]
    texts[-1] = good[29]
    source = tmp_path / "in.csv"
    lines = [f"=cmd|{i},{text},\xe9".encode("latin-1") for i, text in enumerate(texts)]
    lines.insert(300, b"a,*CC*,b,c")  # one value too many
    source.write_bytes(b"\n".join([b'"=name",PSMILES,', *lines]) + b"\n")
    predict_file(source, [model], tmp_path / "out.csv", num_workers=1)
    content = (tmp_path / "out.csv").read_bytes().decode("utf-8", "surrogateescape")
    header, *rows = csv.reader(io.StringIO(content))
    assert header == ["=name", "PSMILES", "", *ADDED, *(f"tg{ending}" for ending in ENDINGS)]
    cut = rows.pop(300)
    assert (cut[4], cut[5].partition(":")[0], cut[6]) == ("rejected", "columns", "")
    expected = [[f"=cmd|{i}", text, "\udce9"] for i, text in enumerate(texts)]
    assert [row[:3] for row in rows] == expected
    is_bad = [text in bad for text in texts]
    assert [row[4] == "rejected" for row in rows] == is_bad
    assert all(bool(row[5]) and not any(row[6:]) for row, b in zip(rows, is_bad, strict=True) if b)
    # Each polymer is what it is alone; its later rows name the first (the odd row moved some on).
    alone = Predictor.open([model]).predict(good)
    cells_of = {p: p_row.cells(["tg"]) for p, p_row in zip(good, alone, strict=True)}
    first: dict[str, int] = {}
    for number, (row, text) in enumerate(zip(rows, texts, strict=True)):
        if text in bad:
            continue
        number += number >= 300
        canonical, *_, value, lower, upper, distance, in_domain, unit = row[3:]
        assert canonical == cells_of[text][0]
        assert row[5] == (f"same polymer as row {first[text]}" if text in first else "")
        first.setdefault(text, number)
        assert [value, lower, upper, distance] == [f"{x:.9g}" for x in cells_of[text][3:7]]
        assert (in_domain, unit) == (str(cells_of[text][7]).lower(), "K")
    assert set(first) == set(good)
    assert len(rows) > 2 * CHUNK_ROWS


def test_two_processes_and_parquet_change_no_bit(model: Path, tmp_path: Path) -> None:
    texts = [*polymers(24)[::-1], None, "[*]C(c1ccccc1)C[*]"]
    own = pa.table({"n": pa.array(range(26), pa.int16()), "psmiles": pa.array(texts)})
    pq.write_table(own, tmp_path / "in.parquet", row_group_size=10)
    predict_file(tmp_path / "in.parquet", [model], tmp_path / "out.parquet", num_workers=2)
    found = pq.read_table(tmp_path / "out.parquet")
    assert found.select(["n", "psmiles"]).equals(own)
    rows = Predictor.open([model]).predict(texts)
    cells = [row.cells(["tg"]) for row in rows]
    added = found.drop_columns(["n", "psmiles"])
    assert added.column_names == rows.columns
    assert [list(row.values()) for row in added.to_pylist()] == cells
    assert added["tg_in_domain"].type == pa.bool_()


MEMORY = """
import sys
from pathlib import Path
from mips_dist.use import predict_file as module
from mips_dist.use.prediction import Estimate, Prediction

class Workers:
    properties, uncalibrated = ["tg"], []
    def __init__(self, *_): pass
    def __enter__(self): return self
    def __exit__(self, *_): pass
    def map(self, method, texts, piece):
        if method == "spell":
            return [(text, "") for text in texts]
        found = Estimate(1 / 3, 0.1, 0.9, 0.5, True, "K")
        return [Prediction(text, text, "ok", "", {"tg": found}) for text in texts]

module.Workers = Workers
module.predict_file(Path(sys.argv[1]), ["tg"], Path(sys.argv[1] + ".out.csv"), 1)
# Not ru_maxrss: that of a new process begins with the memory of the one that started it.
fields = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(fields["VmHWM"].split()[0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """All polymers differ, of 120 characters; models and chemistry are left out, for their time."""
    peak = []
    for number in (10_000, 100_000):
        source = tmp_path / f"{number}.csv"
        source.write_text("psmiles\n" + "".join(f"*{i:0>120}*\n" for i in range(number)))
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, str(source)],
            cwd=Path(__file__).resolve().parents[1],
            capture_output=True,
            text=True,
            check=True,
        )
        peak.append(int(done.stdout) / 1024)
        with source.with_name(f"{number}.csv.out.csv").open() as file:
            assert sum(1 for _ in file) == number + 1
    # MiB; the texts alone have 12, and a dictionary of what was predicted would take 60.
    assert peak[1] - peak[0] < 15, peak


POISON = """
import os, signal
from pathlib import Path
from mips_dist.use import prediction
real = prediction.canonicalize
def canonicalize(text):
    if text == "*ABORT*":
        os.abort()
    if text == "*HANG*":
        while True:
            pass
    flag = Path(__file__).with_name("flag")
    if text == "*CO*" and not flag.exists():
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return real(text)
prediction.canonicalize = canonicalize
"""


def test_a_text_that_ends_its_process_costs_only_its_row(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(POISON)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(workers_module, "SECONDS_PER_TEXT", 2.0)
    with Workers([model], 1) as workers:
        texts = ["*CC*", "*ABORT*", "*CO*", "*HANG*", "*CN*"]
        found = workers.map("spell", texts, 2)
    assert [isinstance(result, Failed) for result in found] == [False, True, False, True, False]
    assert found[1] == "crashed: ended its process by SIGABRT"
    assert found[3].startswith("timed_out: no result within 2 s")
    assert [found[i] for i in (0, 2, 4)] == [("*C*", ""), ("*CO*", ""), ("*CN*", "")]
    assert (tmp_path / "flag").exists()


def test_what_is_known_of_a_polymer_comes_back_bit_for_bit() -> None:
    known = KnownPolymers()
    cells = ["*C*", "ok", "", 0.1 + 0.2, -1e-300, None, 1 / 3, True, "eV"]
    known.add("*C*", 5, cells)
    assert known.get("*C*") == (5, cells)
    assert known.get("*CO*") is None
    known.close()


def test_pipes_and_one_polymer(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Pipe:
        buffer = io.BytesIO(b"psmiles\n*CO*\n")

    monkeypatch.setattr(sys, "stdin", Pipe)
    predict_file(Path("-"), [model], tmp_path / "a.csv")
    predict_given("*OC*", [model], tmp_path / "b.csv", None)
    a, b = ((tmp_path / name).read_text().splitlines() for name in ("a.csv", "b.csv"))
    assert a[0] == b[0]
    assert a[1] == b[1].replace("*OC*", "*CO*", 1)


def test_wrong_use_is_one_line(model: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text("psmiles\n*CC*\n")
    with pytest.raises(UsageError, match="no output; give a file with -o"):
        predict_given(str(source), [model], None, None)
    with pytest.raises(UsageError, match="nothing to predict"):
        predict_given(str(source), [], tmp_path / "out.csv", None)
    with pytest.raises(MipsError, match="no file nowhere"):
        predict_given("nowhere", [model], tmp_path / "out.csv", None)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(MipsError, match="is damaged, or is no parquet file"):
        predict_file(tmp_path / "bad.parquet", [model], tmp_path / "out.csv")
    with pytest.raises(UsageError, match="did you mean egc"):
        predict_file(source, ["egcc"], tmp_path / "out.csv")
    source.write_text("psmiles,tg_lower\n*CC*,1\n")
    with pytest.raises(UsageError, match="has a column tg_lower already"):
        predict_file(source, [model], tmp_path / "out.csv")
    assert {p.name for p in tmp_path.iterdir()} == {"in.csv", "bad.parquet"}


def test_few_rows_get_one_process() -> None:
    assert module._number_of_workers(3) == 1
    assert module._number_of_workers(10**6) == module._number_of_workers(None) >= 1
