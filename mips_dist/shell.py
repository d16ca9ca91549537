"""How ``mips`` meets the shell: help that fits a screen, one-line errors, completion.

A verb is a function in `mips_dist.cli`. Its docstring is its help: one sentence, paragraphs, then
a last section "Examples" of command lines, which are shown as they stand.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

# Groups of verbs, in the order of the help; `rich_help_panel` of a verb. Without one it is USE.
USE, TRAIN, OPERATE = "Use a model", "Train a model", "Operate"
_EXAMPLES = "Examples\n--------\n"


class Verb(TyperCommand):
    """One verb: what it does, its options, and its examples last, where the terminal stops."""

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        """Write the paragraphs before the examples."""
        text = (self.help or "").partition(_EXAMPLES)[0].strip()
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(text)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples, lines kept."""
        formatter.write("\nExamples:\n")
        for line in examples(self):
            formatter.write(f"  {line}\n")


class Verbs(TyperGroup):
    """The command itself; its help lists the verbs by group."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the page that ``mips`` and ``mips --help`` show."""
        formatter.write("Usage: mips VERB [OPTIONS] ...\n\n")
        formatter.write(f"{self.help}\n\n")
        for group in (USE, TRAIN, OPERATE):
            formatter.write(f"{group}\n")
            for name, verb in self.commands.items():
                if (getattr(verb, "rich_help_panel", None) or USE) == group:
                    formatter.write(f"  {name:<13} {summary(verb)}\n")
        formatter.write(
            "\nmips VERB --help has the options and examples of one. Also: --version,\n"
        )
        formatter.write("--install-completion (bash, zsh, fish), --show-completion.\n")


class Shell(typer.Typer):
    """An application whose commands are `Verb`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(cls=Verbs, no_args_is_help=True, rich_markup_mode=None, **settings)

    def command(self, name: str | None = None, **settings: Any) -> Callable[..., Any]:
        """Register a verb."""
        return super().command(name, **{"cls": Verb, **settings})


def verbs(app: typer.Typer) -> dict[str, Any]:
    """Return the verbs of an application by name, as the parser has them."""
    return dict(typer.main.get_group(app).commands)


def summary(verb: Any) -> str:
    """Return the first sentence of a verb's help, which stands in the list of verbs."""
    return " ".join((verb.help or "").partition("\n\n")[0].split())


def examples(verb: Any) -> list[str]:
    """Return the command lines of the section "Examples" in a verb's help."""
    lines = (verb.help or "").partition(_EXAMPLES)[2].splitlines()
    return [line.strip() for line in lines if line.strip()]


def complete_property(incomplete: str) -> list[str]:
    """Return the properties that released models predict and that begin with a text."""
    # Not by mips_dist.model.released, which imports torch: a shell does not wait for that.
    released = Path(__file__).resolve().parent / "released"
    names = sorted(path.parent.name for path in released.glob("*/scaler.json"))
    return [name for name in names if name.startswith(incomplete)]


def run_app(app: typer.Typer) -> None:
    """Run the command line and exit; a usage error is one line and exit code 2."""
    try:
        sys.exit(app(prog_name="mips", standalone_mode=False))
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        text = error.format_message()
        if text.startswith("Usage: "):  # no arguments at all: the error is the help itself
            print(text, file=sys.stderr)
        else:
            command = context.command_path if context else "mips"
            line = " ".join(text.split()).rstrip(".")
            print(f"error: {line[:1].lower()}{line[1:]}; see {command} --help", file=sys.stderr)
        sys.exit(error.exit_code)
