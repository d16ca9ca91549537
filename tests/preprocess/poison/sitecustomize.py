"""Python imports this file at its start where the tests put its folder on PYTHONPATH.

It gives the child processes of the actors, and them alone, molecules that end them.
"""

import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path


def harm(text: str) -> None:
    """Do what POISON says of a text: lines of ``what text``."""
    for line in Path(os.environ["POISON"]).read_text().splitlines():
        what, _, poison = line.partition(" ")
        if what == "slow":
            time.sleep(float(poison))
        elif poison == text:
            with Path(os.environ["POISON"] + ".log").open("a") as log:
                log.write(f"{what} {text}\n")
            act(what)


def act(what: str) -> None:
    """End this process in one of the ways that C++ has."""
    if what == "abort":
        os.abort()
    elif what == "abort_once":
        flag = Path(os.environ["POISON"] + ".flag")
        if not flag.exists():
            flag.touch()
            os.abort()
    elif what == "hang":
        re.match(r"(a*)*b", "a" * 60)  # in C and with the interpreter's lock
    elif what == "eat":
        import numpy as np

        eaten = []
        while True:
            eaten.append(np.empty(10**7, dtype=np.uint8))
    elif what == "kill":
        os.kill(os.getpid(), 9)


def poison() -> None:
    """Put `harm` before each step of chemistry."""
    from mips_dist.chem import psmiles
    from preprocess import work

    real_canonicalize, real_featurize = psmiles._canonicalize, work.featurize

    def canonicalize(text: str) -> str:
        harm(text)
        return real_canonicalize(text)

    def featurize(texts: Sequence[str], *arguments: object) -> object:
        for text in texts:
            harm("featurize " + text)
        if len(texts) > 1:
            harm("together")
        return real_featurize(texts, *arguments)

    psmiles._canonicalize = canonicalize
    work.featurize = featurize


if "preprocess.isolation" in sys.orig_argv and "POISON" in os.environ:
    poison()
