"""The site builds without a warning and loads nothing from outside."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mips_dist.cli import app
from mips_dist.shell import verbs

ROOT = Path(__file__).resolve().parents[2]
# What a browser fetches by itself; links that a reader clicks may lead anywhere.
LOADED = re.compile(
    r"""<(?:script|img|iframe|source|audio|video|embed|object)\b[^>]*?\b(?:src|data)="?(?:https?:)?//[^">]*"""
    r"""|<link\b(?![^>]*rel="?canonical)[^>]*href="?(?:https?:)?//[^">]*"""
)
IMPORTED = re.compile(r"""(?:@import|url\()\s*["']?(?:https?:)?//[^"')]*""")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=550
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_nothing_is_loaded_from_outside(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        assert not LOADED.search(page.read_text(encoding="utf-8")), page.name
    for sheet in site.rglob("*.css"):
        assert not IMPORTED.search(sheet.read_text(encoding="utf-8")), sheet.name


def test_reference_shows_every_verb_and_the_interface(site):
    command = (site / "reference" / "cli" / "index.html").read_text(encoding="utf-8")
    assert all(f"mips {name}" in command for name in verbs(app))
    python = (site / "reference" / "python" / "index.html").read_text(encoding="utf-8")
    for name in ("load", "Predictor", "canonicalize", "UsageError"):
        assert 'id="mips_dist.' in python
        assert name in python


def test_notebooks_are_pages(site):
    for notebook in (ROOT / "docs" / "notebooks").glob("*.ipynb"):
        page = site / "notebooks" / notebook.stem / "index.html"
        assert "The tests run it" in page.read_text(encoding="utf-8")
