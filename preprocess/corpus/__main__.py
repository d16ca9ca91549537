"""``python -m preprocess.corpus``: corpora and labelled sets, fetched or made.

- ``embedded output=FILE.csv``: polymers of molecules that RDKit carries; needs no network.
- ``fetch pi1m output=FILE.csv``, ``fetch benchmark output=FOLDER``: published sets.
- ``generate input=SEEDS.csv output=FILE.csv.gz num_polymers=N``: new polymers of known ones.
"""

import sys
from collections.abc import Sequence

from mips_dist.errors import UsageError, guarded, needs_extra

with needs_extra():
    from mips_dist.config import run
    from preprocess.corpus.embedded import EmbeddedConfig, write_embedded
    from preprocess.corpus.fetch import FetchConfig, fetch
    from preprocess.corpus.generate import GenerateConfig, generate


_USAGE = (
    "usage: python -m preprocess.corpus embedded output=FILE.csv | fetch pi1m output=FILE.csv | "
    "fetch benchmark output=FOLDER | generate input=SEEDS.csv output=FILE.csv num_polymers=N "
    "(--help after any of them lists its keys)"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    match arguments:
        case ["embedded", *options]:
            return run(write_embedded, EmbeddedConfig, "corpus_embedded", options)
        case ["fetch", ("pi1m" | "benchmark") as name, *options]:
            return run(fetch, FetchConfig, f"corpus_{name}", options)
        case ["generate", *options]:
            return run(generate, GenerateConfig, "corpus_generate", options)
        case ["-h" | "--help", *_]:
            print(_USAGE)
            return 0

    def refuse() -> None:
        raise UsageError(_USAGE)

    return guarded(refuse)


if __name__ == "__main__":
    sys.exit(main())
