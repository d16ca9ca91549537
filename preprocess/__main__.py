"""``python -m preprocess input=FILE output=DIR``: P-SMILES to WebDataset shards, through Ray."""

import sys

from mips_dist.config import run
from preprocess.pipeline import PreprocessConfig, preprocess
from preprocess.pool import interrupt_on_sigterm


def main() -> int:
    """Run the command and return its exit code."""
    interrupt_on_sigterm()
    return run(preprocess, PreprocessConfig, "preprocess")


if __name__ == "__main__":
    sys.exit(main())
