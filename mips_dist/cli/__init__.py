"""The ``mips`` command: one thin verb each; the work is done elsewhere.

Heavy imports stand inside the verbs, so that ``mips --help`` answers at once.
"""

from mips_dist.cli import operate, train, use  # noqa: F401  (they register their verbs)
from mips_dist.cli.app import app
from mips_dist.shell import run_app


def main() -> None:
    """Run the command line and exit; usage errors with 2."""
    run_app(app)
