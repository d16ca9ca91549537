"""Before the work: the space and the time that it will take, and whether the space is there."""

import os
import shutil
import statistics
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rdkit import Chem

from mips_dist.chem.descriptors import Content, has
from mips_dist.errors import MipsError
from preprocess.progress import duration
from preprocess.rows import InputFile

# Bytes of shards per character of P-SMILES, and CPU time as a multiple of bare RDKit parsing, both
# as `scripts/bench_scale.py` prints them: 20,000 (full: 400) polymers of the corpus, 2026-11-22;
# and for the bands 1.4 bytes and 38 times parsing: 4,096 polymers; for xtb: the eight sets,
# 2026-11-26.
_SHARD_BYTES_PER_CHARACTER = {"topology": 6.3, "descriptors": 11.7, "full": 27.4, "xtb": 29.5}
_TIMES_PARSING = {"topology": 7.0, "descriptors": 70.0, "full": 83.0, "xtb": 2500.0}
_TIMES_PARSING_PER_CONFORMER = 150.0  # of content=full
# The work folder holds each spelling once, with its hash, and 48 bytes a row while merging.
_WORK_BYTES_PER_ROW = 95
_DEFAULT_CHARACTERS = 57.0  # mean of the corpus
_MAX_CHARACTERS = 1000  # longer texts are rare, and mostly rejected

# Rows of the input are not parsed here: one that crashes RDKit would end the driver.
_YARDSTICK = (
    "*CC(*)(C)C(=O)OCCOCCOC",
    "*Oc1ccc(C(C)(C)c2ccc(OC(*)=O)cc2)cc1",
    "*NCCCCCCNC(=O)CCCCC(*)=O",
    "*N1C(=O)c2ccc(Oc3ccc4c(c3)C(=O)N(*)C4=O)cc2C1=O",
    "*c1ccc2c(c1)C(CCCC)(CCCC)c1cc(*)ccc1-2",
    "*CC(*)c1ccc(S(=O)(=O)NCCC(F)(F)F)cc1",
)


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """What is to be expected.

    Attributes
    ----------
    parse_seconds
        CPU seconds of bare RDKit parsing of one row on this machine now.
    cpu_seconds
        CPU seconds of all that is left to do.
    missing_bytes
        Bytes that are still to be written, those of the work folder included.
    free_bytes
        Bytes free where the output lies.
    """

    parse_seconds: float
    cpu_seconds: float
    missing_bytes: float
    free_bytes: int

    def line(self, num_actors: int | None) -> str:
        """Say it in one line; `num_actors` is None where it is not known yet."""
        if num_actors is None:
            expected = f"{duration(self.cpu_seconds)} of CPU time"
        else:
            expected = f"{duration(self.cpu_seconds / num_actors)} with {num_actors} actors"
        return (
            f"preflight: {gigabytes(self.missing_bytes)} of {gigabytes(self.free_bytes)} free, "
            f"about {expected}"
        )


def look_ahead(
    source: InputFile, content: Content, output: Path, num_conformers: int = 1
) -> Preflight:
    """Estimate what a run takes; what an interrupted run has left counts as done.

    Parameters
    ----------
    source
        The input; the length of its first rows stands for that of all.
    content
        ``topology``, ``descriptors`` or ``full``.
    output
        Output folder; need not exist.
    num_conformers
        Conformers of a polymer, where content has them.

    Raises
    ------
    MipsError
        There is not enough space.
    """
    texts = (text for text in source.head if isinstance(text, str))
    lengths = [len(text) for text in texts if 0 < len(text) <= _MAX_CHARACTERS]
    characters = statistics.mean(lengths) if lengths else _DEFAULT_CHARACTERS
    parse_seconds = characters * _parse_seconds_per_character()
    shards = source.num_rows * characters * _SHARD_BYTES_PER_CHARACTER[content]
    work = source.num_rows * (characters + _WORK_BYTES_PER_ROW)
    missing = max(0.0, shards + work - _bytes_in(output))
    path = output.absolute()
    existing = next(place for place in (path, *path.parents) if place.exists())
    free = shutil.disk_usage(existing).free
    if missing > free:
        raise MipsError(
            f"output {output} needs about {gigabytes(missing)} (shards {gigabytes(shards)}, "
            f"temporary files {gigabytes(work)}) and its disk has {gigabytes(free)} free; free "
            "some space, or give an output folder on another disk"
        )
    times_parsing = _TIMES_PARSING[content]
    if has(content, "full"):
        times_parsing += _TIMES_PARSING_PER_CONFORMER * num_conformers
    cpu_seconds = source.num_rows * parse_seconds * times_parsing
    return Preflight(
        parse_seconds=parse_seconds,
        cpu_seconds=cpu_seconds * missing / (shards + work),
        missing_bytes=missing,
        free_bytes=free,
    )


def gigabytes(num_bytes: float) -> str:
    """Write a number of bytes with its unit."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= size:
            return f"{num_bytes / size:,.1f} {unit}"
    return f"{num_bytes / 1e3:.1f} kB"


def _parse_seconds_per_character() -> float:
    """Return the CPU seconds of bare parsing, the median of short rounds."""
    rounds = []
    for _ in range(9):
        start = time.thread_time()
        for text in _YARDSTICK * 5:
            Chem.MolFromSmiles(text)
        rounds.append(time.thread_time() - start)
    return statistics.median(rounds) / (5 * sum(map(len, _YARDSTICK)))


def _bytes_in(folder: Path) -> int:
    """Return the bytes of the files that lie in a folder, at any depth."""
    if not folder.is_dir():
        return 0
    total = 0
    for entry in os.scandir(folder):
        with suppress(FileNotFoundError):  # another run, which is refused later, is at work there
            total += _bytes_in(Path(entry)) if entry.is_dir() else entry.stat().st_size
    return total
