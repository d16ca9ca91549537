"""Run the command as ``python -m mips_dist.cli``."""

from mips_dist.cli import main

main()
