"""The ``mips`` command itself, and the arguments that verbs share."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mips_dist.shell import Shell, complete_property

app = Shell(help="mips predicts properties of polymers, each the infinite chain of a P-SMILES.")

Input = Annotated[Path, typer.Argument(metavar="FILE", help="csv or csv.gz with a psmiles column")]
Output = Annotated[Path, typer.Option("-o", "--output", help="csv or csv.gz to write")]
Debug = Annotated[bool, typer.Option("--debug", help="show tracebacks")]


def _model(text: str) -> Path | str:
    return text if "://" in text else Path(text)


Models = Annotated[
    list[Any] | None,
    typer.Option(
        "-m", "--model", parser=_model, metavar="DIR", help="model directory, or URL; repeatable"
    ),
]


def property_option(help: str) -> Any:
    """Return the option -p, whose values the shell completes."""
    return typer.Option("-p", "--property", help=help, autocompletion=complete_property)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from importlib.metadata import version

        print(f"mips-dist {version('mips-dist')}")
        raise typer.Exit


@app.callback()
def mips(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Take the options that stand before a verb."""
