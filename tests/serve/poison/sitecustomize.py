"""Python imports this file at its start where the tests put its folder on PYTHONPATH.

It gives the processes that hold models, and them alone, polymers that end them.
"""

import os
import re
import sys

HANG, CRASH, EAT = "*C(F)C*", "*C(Cl)C*", "*C(Br)C*"


def poison() -> None:
    from mips_dist.chem import psmiles

    real = psmiles.canonicalize

    def canonicalize(text: str) -> str:
        if text == HANG:
            re.match(r"(a*)*b", "a" * 60)  # in C and with the interpreter's lock
        elif text == CRASH:
            os.abort()
        elif text == EAT:
            raise MemoryError
        return real(text)

    psmiles.canonicalize = canonicalize


if "mips_dist.serve.worker" in sys.orig_argv:
    poison()
