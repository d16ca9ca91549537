"""The notebooks run from top to bottom, and show no path of the machine that they were run on."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MACHINE_PATH = re.compile(r"/(home|root|tmp|usr|work|opt|var|Users|mnt)/")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path):
    notebook = nbformat.read(path, as_version=4)
    shown = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    resources = {"metadata": {"path": str(FOLDER)}}
    NotebookClient(notebook, timeout=550, kernel_name="python3", resources=resources).execute()
    made = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    # What a reader sees is what comes out, but for digits: sums differ in the last bits between
    # processors.
    assert [len(outputs) for outputs in made] == [len(outputs) for outputs in shown]
    for new, old in zip(made, shown, strict=True):
        assert [_outline(o) for o in new] == [_outline(o) for o in old]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_names_no_machine(path):
    text = path.read_text(encoding="utf-8")
    assert not MACHINE_PATH.search(text)
    assert len(text) < 500_000


def _outline(output: nbformat.NotebookNode) -> tuple[str, list[str]]:
    text = "".join(output.get("text", "")) + "".join(output.get("data", {}).get("text/plain", ""))
    return output.output_type, re.sub(r"[\d.]+", "#", text).split()
