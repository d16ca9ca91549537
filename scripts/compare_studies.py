"""Compare two fine-tuning studies cell by cell, on the folds that both have finished.

    python scripts/compare_studies.py FIRST_RUN_DIR SECOND_RUN_DIR

prints, for each property, the mean R2 of both, and the mean of their differences (second minus
first) with its standard error over folds and seeds: the folds are the same ones, so most of what
differs from fold to fold cancels. Studies that differ in more than the weights they start from are
refused.
"""

import json
import math
import statistics
import sys
from pathlib import Path

from mips_dist.errors import MipsError, UsageError, guarded
from mips_dist.train.results import NETWORK, Cell, FoldResult
from mips_dist.train.study import IDENTITY_FILE, LEDGER_FILE


def read(run_dir: Path) -> dict[Cell, FoldResult]:
    """Return the finished cells of the network; a study may still be running."""
    try:
        text = (run_dir / LEDGER_FILE).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise MipsError(f"{run_dir} is no study; give the run_dir of one") from error
    # The last line may be in the middle of being written.
    lines = text[: text.rfind("\n") + 1].splitlines()
    results = [FoldResult(**json.loads(line)) for line in lines]
    return {result.cell(): result for result in results if result.model == NETWORK}


def check(first: Path, second: Path) -> None:
    """Raise MipsError unless the two differ in `pretrained` alone."""
    one, two = (json.loads((run / IDENTITY_FILE).read_text()) for run in (first, second))
    differing = [key for key in one | two if one.get(key) != two.get(key) and key != "pretrained"]
    if differing:
        raise MipsError(f"{first} and {second} differ in {', '.join(differing)} too")


def table(first: dict[Cell, FoldResult], second: dict[Cell, FoldResult]) -> list[str]:
    """Return the lines of a Markdown table."""
    shared = [cell for cell in first if cell in second]
    if not shared:
        raise MipsError("no cell is finished in both studies")
    lines = [
        "| property | cells | first R2 | second R2 | difference | better in | "
        "first RMSE | second RMSE | epochs |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(cell.property for cell in shared):
        pairs = [(first[cell], second[cell]) for cell in shared if cell.property == name]
        gains = [b.r2 - a.r2 for a, b in pairs]
        error = f" ± {statistics.stdev(gains) / math.sqrt(len(gains)):.3f}" if gains[1:] else ""
        r2, rmse, epoch = (
            [statistics.mean(getattr(pair[arm], key) for pair in pairs) for arm in (0, 1)]
            for key in ("r2", "rmse", "epoch")
        )
        lines.append(
            f"| {name} | {len(pairs)} | {r2[0]:.3f} | {r2[1]:.3f} | "
            f"{statistics.mean(gains):+.3f}{error} | {sum(g > 0 for g in gains)} | "
            f"{rmse[0]:.3g} | {rmse[1]:.3g} | {epoch[0]:.0f}, {epoch[1]:.0f} |"
        )
    return lines


def main() -> None:
    """Read the arguments."""
    if len(sys.argv) != 3:
        raise UsageError("usage: python scripts/compare_studies.py FIRST_RUN_DIR SECOND_RUN_DIR")
    first, second = Path(sys.argv[1]), Path(sys.argv[2])
    check(first, second)
    print("\n".join(table(read(first), read(second))))


if __name__ == "__main__":
    sys.exit(guarded(main))
