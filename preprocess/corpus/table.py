"""The csv that a corpus command writes: one column ``psmiles``, there whole or not at all."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mips_dist.data.files import table
from mips_dist.errors import UsageError


@contextmanager
def polymer_table(output: Path) -> Iterator[Callable[[str], None]]:
    """Write a csv or csv.gz that takes the place of `output` at the end, or vanishes on an error.

    Parameters
    ----------
    output
        File name that ends in .csv or .csv.gz; its folder is made if need be.

    Yields
    ------
    A function that writes one polymer.

    Raises
    ------
    UsageError
        At once: the name is no csv's, or a folder's.
    """
    if output.is_dir():
        raise UsageError(f"output={output} is a folder; name a csv file")
    if not output.name.lower().endswith((".csv", ".csv.gz")):
        raise UsageError(f"output={output} is no csv; give a name that ends in .csv or .csv.gz")
    output.parent.mkdir(parents=True, exist_ok=True)
    with table(output, ["psmiles"]) as writer:
        yield lambda psmiles: writer.writerow([psmiles])
