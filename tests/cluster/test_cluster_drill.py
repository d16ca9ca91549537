"""The drill over hosts in its short form; `sudo ./scripts/cluster_drill` has all of it."""

import json
import subprocess
import sys

from tests.cluster.rules import ROOT

sys.path.append(str(ROOT / "scripts"))
from drill_base import Table
from drill_pretrain import apart
from drill_ray import RayDrill


def test_two_hosts_one_of_which_is_switched_off(hosts, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    table = Table()
    for row in RayDrill(hosts, tmp_path).rows()[:3]:
        table.drill(*row)
    assert len(table.rows) == 3
    assert all(row["ok"] for row in table.rows), table.rows


def test_a_row_that_is_not_as_expected_fails_the_drill(tmp_path, capsys):
    def breaks_off() -> str:
        raise SystemExit("error: no host")

    table = Table()
    table.drill("as expected", "1", lambda: "1")
    assert table.finish(None) == 0
    table.drill("another", "1", lambda: "2")
    table.drill("none", "1", breaks_off)
    assert table.finish(tmp_path / "table.json") == 1
    rows = json.loads((tmp_path / "table.json").read_text())
    assert [list(row) for row in rows] == [["name", "ok", "expected", "seen", "seconds"]] * 3
    assert [row["ok"] for row in rows] == [True, False, False]
    assert rows[2]["seen"] == "SystemExit: error: no host"
    assert "3 rows, 2 not as expected" in capsys.readouterr().out


def test_curves_are_held_to_law_l8():
    curve = [3.0 - n / 100 for n in range(200)]
    assert apart(curve, curve) == "the same bits"
    late = [loss * (1 + 5e-4 * (n >= 20)) for n, loss in enumerate(curve)]
    assert apart(curve, late) == "within law L8"
    early = [loss * (1 + 5e-4 * (n == 7)) for n, loss in enumerate(curve)]
    assert "beyond law L8" in apart(curve, early)
    assert "beyond law L8" in apart(curve, [*curve[:-1], curve[-1] * 1.01])
    assert "beyond law L8" in apart(curve, [*curve[:-1], float("nan")])


def test_what_is_missing_is_named_in_one_line():
    words = [sys.executable, "scripts/hosts.py", "check", "no-such-tool"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
