"""The picture of `mips explain`: what it says is what the bands are, and it stands by itself."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from mips_dist.chem.bands import band_structure
from mips_dist.use.explain.bands import _FLOOR, _PANELS, _TOP, draw_bands
from tests.polymers import POLYMERS
from tests.test_cli import mips

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("psmiles", POLYMERS)
def test_every_polymer_can_be_drawn(psmiles: str) -> None:
    drawn = draw_bands(psmiles, band_structure(psmiles, 17))
    root = ET.fromstring(drawn)
    assert root.tag == f"{SVG}svg"
    # No nan, and nothing that is fetched from elsewhere.
    assert "nan" not in drawn
    assert "inf" not in re.sub(r"[a-z]inf|inf[a-z]", "", drawn)
    assert not re.search(r"href|<script|@import|url\((?!#)", drawn)


def test_edges_and_bands_stand_where_they_are() -> None:
    bands = band_structure("*c1ccc(*)s1", 129)
    root = ET.fromstring(draw_bands("*c1ccc(*)s1", bands))
    texts = ["".join(element.itertext()) for element in root.iter(f"{SVG}text")]
    assert "*c1ccc(*)s1" in texts
    assert f"{bands.gap:.2f} eV" in texts
    left, right = _PANELS["valence"]
    dots = [(float(d.get("cx")), float(d.get("cy"))) for d in root.iter(f"{SVG}circle")]
    low, high = bands.vbm - 8, bands.cbm + 5
    for (x, y), energy in zip(dots, (bands.vbm, bands.cbm), strict=True):
        assert abs(low + (high - low) * (_FLOOR - y) / (_FLOOR - _TOP) - energy) < 0.01
        assert left <= x <= right
    pi_lines = [p for p in root.iter(f"{SVG}path") if p.get("class") == "pi"]
    in_view = bands.valence[bands.is_pi].reshape(129, -1)
    seen = ((in_view.max(0) > low) & (in_view.min(0) < high)).sum()
    assert len(pi_lines) == seen + bands.pi.shape[1]
    # A band is drawn from 0 to pi, at every wave number.
    points = pi_lines[0].get("d").strip("M").split("L")
    assert len(points) == len(bands.k)
    assert [float(points[i].split(",")[0]) for i in (0, -1)] == [left, right]


def test_texts_are_escaped() -> None:
    name = "<script>&\"'\x07" + "x" * 200
    drawn = draw_bands(name, band_structure("*C*", 5))
    assert "<script" not in drawn
    titles = [e.text for e in ET.fromstring(drawn).iter(f"{SVG}title")]
    assert titles[0].startswith("Bands of <script>&\"'\ufffdx")


def test_metals_have_no_gap() -> None:
    assert "half filled" in draw_bands("x", band_structure("*[CH]*", 17))
    assert "eV, between" not in draw_bands("x", band_structure("*[CH]*", 17))
    assert np.isfinite(band_structure("*[CH]*", 17).valence).all()


def test_the_command(tmp_path) -> None:
    output = tmp_path / "bands.svg"
    done = mips("explain", "*CCCC(*)C(=O)OC", "-o", output)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    first = output.read_bytes()
    done = mips("explain", "COC(=O)C(*)CCC*", "-o", output)  # another spelling, over it
    assert (done.returncode, output.read_bytes()) == (0, first)
    for psmiles, name, says, code in (
        ("CCO", "x.svg", "no polymer: star_count", 2),
        ("*CC*", "x.png", "ends in .svg", 2),
        ("*CC*", "none/x.svg", "no folder", 2),
        ("*CC(*)C(=O)O[Na]", "x.svg", "element 11", 1),
    ):
        done = mips("explain", psmiles, "-o", tmp_path / name)
        assert done.returncode == code
        assert says in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert sorted(p.name for p in tmp_path.iterdir()) == ["bands.svg"]
