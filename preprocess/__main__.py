"""``python -m preprocess input=FILE output=DIR``: P-SMILES to WebDataset shards, through Ray.

``python -m preprocess verify output=DIR`` checks every byte of what came out, ``python -m
preprocess repair output=DIR [input=FILE]`` makes again what is bad.
"""

import sys

from mips_dist.errors import needs_extra

with needs_extra():
    from mips_dist.config import run
    from preprocess.pipeline import PreprocessConfig, preprocess
    from preprocess.pool import interrupt_on_sigterm
    from preprocess.repair import RepairConfig, repair
    from preprocess.verify import VerifyConfig, verify


def main() -> int:
    """Run the command and return its exit code."""
    interrupt_on_sigterm()
    verb, *arguments = sys.argv[1:] or [""]
    if verb == "verify":
        return run(verify, VerifyConfig, verb, arguments)
    if verb == "repair":
        return run(repair, RepairConfig, verb, arguments)
    if verb in ("--help", "-h"):
        print((__doc__ or "").replace("``", ""))
    return run(preprocess, PreprocessConfig, "preprocess")


if __name__ == "__main__":
    sys.exit(main())
