"""The csv that a corpus command writes: one column ``psmiles``, there whole or not at all."""

import csv
import gzip
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import IO, cast

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
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as raw:
            # No name and no time in the gzip header: equal rows give equal bytes.
            is_gzip = output.suffix.lower() == ".gz"
            packed = gzip.GzipFile("", "wb", 6, raw, mtime=0) if is_gzip else raw
            with TextIOWrapper(cast(IO[bytes], packed), encoding="utf-8", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(["psmiles"])
                yield lambda psmiles: writer.writerow([psmiles])
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
