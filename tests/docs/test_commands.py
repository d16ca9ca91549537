"""Every command of the tutorial and the how-tos is run, in the order of the page.

A fence of ``bash`` is run. A fence of ``sh`` is only shown, and a line right above it tells the
reader why the tests do not run it.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = [DOCS / "index.md", DOCS / "tutorial.md", *sorted((DOCS / "howto").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
REASON = re.compile(r"\*Not run by the tests:\* .+\n+$")
MAX_SHOWN = 4


def blocks(page: Path, language: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return [code for name, code in FENCE.findall(text) if name == language]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_run(page, tmp_path):
    commands = blocks(page, "bash")
    assert commands, "a page without a command that is run"
    own = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{own}{os.pathsep}{os.environ['PATH']}"}
    script = "set -euxo pipefail\n" + "\n".join(commands)
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=580,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_not_run_says_why_and_is_little():
    shown = 0
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for fence in FENCE.finditer(text):
            assert fence[1] in ("bash", "sh", "text", "python"), f"{page.name}: ```{fence[1]}"
            if fence[1] == "sh":
                shown += 1
                assert REASON.search(text[: fence.start()]), (
                    f"{page.name}: no reason above\n{fence[2]}"
                )
    assert shown <= MAX_SHOWN
