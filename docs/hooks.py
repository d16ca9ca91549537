"""Pages of the site that are made from something else: the command's help, and the notebooks."""

import base64
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

CLI = """# The command

What `mips --help` and `mips VERB --help` print.

"""


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made."""
    folder = Path(config["docs_dir"])
    files.append(File.generated(config, "reference/cli.md", content=cli_page()))
    for path in sorted((folder / "notebooks").glob("*.ipynb")):
        files.remove(files.src_uris[f"notebooks/{path.name}"])
        page = notebook_page(path)
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=page))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links to what is no part of the site, such as a file of the library, into text."""
    if "/" in page.file.src_uri:  # ../ of a page further down is the site's own
        return markdown
    return re.sub(r"\[([^\]]+)\]\(\.\./([^)]+)\)", r"\1 (`\2`)", markdown)


def cli_page() -> str:
    """Return the help of the command and of each verb."""
    from mips_dist.cli import app
    from mips_dist.shell import verbs

    parts = [CLI, _help()]
    for name in verbs(app):
        parts += [f"\n## mips {name}\n\n", _help(name)]
    return "".join(parts)


def _help(*verb: str) -> str:
    command = [sys.executable, "-m", "mips_dist.cli", *verb, "--help"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return f"```text\n{shown.rstrip()}\n```\n"


def notebook_page(path: Path) -> str:
    """Turn a notebook into Markdown: text, code, and what the code printed and drew."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts = [f"*This page is a notebook: `docs/notebooks/{path.name}`. The tests run it.*\n"]
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        parts += [_shown(output) for output in cell["outputs"]]
    return "\n\n".join(parts) + "\n"


def _shown(output: dict[str, Any]) -> str:
    data = output.get("data", {"text/plain": output.get("text", [])})
    if "image/svg+xml" in data:
        # As an image, so that neither Markdown nor the page's styles touch it.
        drawn = "".join(data["image/svg+xml"])
        title = re.search("<title[^>]*>([^<]*)", drawn)
        about = title[1].replace('"', "&quot;") if title else "a picture"
        packed = base64.b64encode(drawn.encode()).decode()
        return f'<img src="data:image/svg+xml;base64,{packed}" alt="{about}">'
    text = "".join(data.get("text/plain", []))
    return f"```text\n{text.rstrip()}\n```"
