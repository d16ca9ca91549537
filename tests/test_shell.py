"""What the shell shows: help, one-line errors, completion. Every example in a help is parsed."""

import shlex
import subprocess
import sys

import pytest

from mips_dist.cli import app, main
from mips_dist.shell import complete_property, examples, summary, verbs

VERBS = verbs(app)
SCREEN = (80, 23)  # columns; and lines, the prompt that follows has the last of 24


@pytest.fixture
def mips(monkeypatch, capsys):
    """Run the command line here and return exit code, stdout and stderr."""

    def run(*arguments: str, **environment: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mips", *arguments])
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as left:
            main()
        return (left.value.code or 0, *capsys.readouterr())

    return run


def test_help_fits_a_screen_and_names_every_verb(mips):
    code, shown, errors = mips("--help")
    assert (code, errors) == (0, "")
    lines = shown.splitlines()
    assert len(lines) <= SCREEN[1]
    assert max(map(len, lines)) <= SCREEN[0]
    for name, verb in VERBS.items():
        assert sum(line.split() == [name, *summary(verb).split()] for line in lines) == 1, name
    assert mips() == (2, "", shown)


def test_help_imports_nothing_heavy():
    """The reason why it answers at once."""
    code = "import sys, mips_dist.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "rdkit", "numpy", "pyarrow", "ray", "hydra", "omegaconf", "rich", "sklearn"}
    assert not heavy & set(done.stdout.split())


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_has_three_examples_that_parse(name):
    """Options and values of each are right; nothing is run."""
    shown = examples(VERBS[name])
    assert len(shown) >= 3
    for line in shown:
        *_, command = line.split("| ")  # what is piped into the verb is another command's
        program, verb, *arguments = shlex.split(command.partition(" > ")[0], comments=True)
        assert (program, verb) == ("mips", name)
        VERBS[name].make_context(name, arguments)


@pytest.mark.parametrize("name", VERBS)
def test_help_of_a_verb_shows_its_examples_as_they_stand(mips, name):
    _, shown, _ = mips(name, "--help")
    assert max(map(len, shown.splitlines())) <= 100
    assert all(f"  {line}\n" in shown for line in examples(VERBS[name]))
    assert "--------" not in shown


def test_an_example_with_an_unknown_option_would_be_seen():
    with pytest.raises(Exception, match=r"(?i)no such option"):
        VERBS["canonicalize"].make_context("canonicalize", ["in.csv", "-o", "x", "--colour"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["predct"], "'predct'. Did you mean 'predict'?; see mips --help"),
        (["xyzzy"], "'xyzzy'; see mips --help"),
        (["canonicalize"], "missing argument 'FILE'; see mips canonicalize --help"),
        (["canonicalize", "a.csv"], "'-o' / '--output'; see mips canonicalize --help"),
        (["canonicalize", "a.csv", "--colour"], "--colour; see mips canonicalize --help"),
        (["rsit", "--max-polymers", "1", "--input", "a", "--json", "b"], "'--max-polymers'"),
    ],
)
def test_usage_errors_are_one_line(mips, arguments, says):
    code, shown, error = mips(*arguments)
    assert (code, shown) == (2, "")
    assert error.startswith("error: ")
    assert says in error
    assert error.count("\n") == 1


def test_version(mips):
    code, shown, error = mips("--version")
    assert (code, error) == (0, "")
    program, version = shown.split()
    assert program == "mips-dist"
    assert version[0].isdigit()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_properties_complete_in_every_shell(mips, shell):
    _, script, _ = mips("--show-completion", shell)
    assert "_MIPS_COMPLETE" in script
    typed = "mips predict -p e"
    code, shown, error = mips(
        _MIPS_COMPLETE=f"complete_{shell}",
        COMP_WORDS=typed,
        COMP_CWORD="3",
        _TYPER_COMPLETE_ARGS=typed,
        _TYPER_COMPLETE_FISH_ACTION="get-args",
    )
    assert (code, error) == (0, "")
    assert all(name in shown for name in ("eat", "eea", "egb", "egc", "ei", "eps"))
    assert "nc" not in shown.replace('"', " ").split()


def test_completed_properties_are_those_that_can_be_loaded():
    from mips_dist.model.released import property_directory

    names = complete_property("")
    assert len(names) == 8
    assert all(property_directory(name).is_dir() for name in names)
    assert complete_property("mips") == []  # pre-trained: predicts no property
