"""Versions with known holes are asked for nowhere: neither as floors nor in the lock file."""

import re
import sys
import tomllib

from mips_dist.doctor.packages import locked
from tests.cluster.rules import ROOT

sys.path.append(str(ROOT / "scripts"))
from audit import verdict

# Package -> first version without the hole, and where it is described. What this project touches:
# files of strangers (torch, numpy, pyarrow, PyYAML, pillow), the cluster (ray), HTTP.
HOLES = {
    "ray": ("2.54", "CVE-2026-27482, GHSA-q5fh-2hc8-f6rq; tokens since 2.52, GHSA-gx77-xgc2-4888"),
    "torch": ("2.10", "CVE-2026-24747; 2.6: CVE-2025-32434"),
    "numpy": ("1.16.3", "CVE-2019-6446"),
    "pyarrow": ("14.0.1", "CVE-2023-47248"),
    "pillow": ("10.2.0", "CVE-2023-50447"),
    "PyYAML": ("5.4", "CVE-2020-14343"),
    "aiohttp": ("3.9.2", "CVE-2024-23334"),
    "starlette": ("0.40.0", "CVE-2024-47874"),
}
FLOORS = {"ray": "2.54", "torch": "2.10"}  # promised in SECURITY.md


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text))


def floors() -> dict[str, list[str]]:
    """Every floor of pyproject.toml, of the package and of its extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    texts = [*project["dependencies"], *(text for extra in extras for text in extra)]
    found: dict[str, list[str]] = {}
    for text in texts:
        if wanted := re.match(r"([\w.-]+)(?:\[[\w,]+\])?(?:>=|==)([\d.]+)", text):
            found.setdefault(wanted[1].lower(), []).append(wanted[2])
    return found


def test_floors_and_locked_versions_are_above_the_holes():
    asked, pins = floors(), locked(ROOT / "requirements.lock")
    assert {"ray", "torch", "numpy", "pyarrow", "pillow", "aiohttp"} <= set(asked)
    for name, (first, source) in HOLES.items():
        assert numbers(pins[name]) >= numbers(first), f"{name}: {source}"
        for floor in asked.get(name.lower(), []):
            assert numbers(floor) >= numbers(first), f"{name}>={floor}: {source}"


def test_promised_floors_are_the_floors():
    promise = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    for name, floor in FLOORS.items():
        assert all(numbers(asked) >= numbers(floor) for asked in floors()[name])
        assert f"{name} {floor}" in promise.lower()


def test_the_audit_tells_a_hole_a_good_answer_and_no_answer():
    good = {"name": "good", "version": "1", "vulns": []}
    hole = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2"]}
    bad = {"name": "bad", "version": "1", "vulns": [hole]}
    unknown = {"name": "new", "version": "1", "skip_reason": "not found"}
    assert verdict({"dependencies": [good]})[0] == 0
    code, lines = verdict({"dependencies": [good, bad, unknown]})
    assert code == 1
    assert lines[0] == "bad 1: PYSEC-1 (CVE-1), fixed in 2"
    # pip-audit itself calls this "No known vulnerabilities found".
    code, (line,) = verdict({"dependencies": [unknown]})
    assert (code, "not done" in line) == (0, True)


def test_every_test_that_the_threat_model_names_is_there():
    """A promise without its test is none."""
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(tests/[\w/]+(?:\.py)?)`", text))
    assert len(named) > 12
    assert [name for name in named if not (ROOT / name).exists()] == []
