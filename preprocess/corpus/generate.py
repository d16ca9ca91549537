"""``python -m preprocess.corpus generate input=SEEDS.csv output=FILE.csv.gz num_polymers=N``.

New polymers from known ones: two segments of seeds joined at backbone bonds with equal atom
environments (`preprocess.corpus.pieces`). Their sizes follow those of the seeds, as long as there
are new polymers of a size: the smallest sizes run out first.

Rows go to the file as they are found. Memory holds the segments of the seeds (72 bytes each, some
200 per seed) and 64-bit hashes of the polymers written and of the joins tried, two to three per
polymer; nothing else grows.
"""

import hashlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mips_dist.chem.psmiles import InvalidPolymer, canonicalize
from mips_dist.data.records import find_column, read_csv
from mips_dist.errors import MipsError, UsageError
from preprocess.corpus.pieces import Pieces, cut_seeds, join
from preprocess.corpus.table import polymer_table
from preprocess.progress import progress

# Sizes that are looked for at a time. Fewer cost time; more let common sizes come first.
_BATCH = 64
# Draws for one size before another is drawn; most find no second segment and cost little. A join
# counts for several draws: sizes that have run out must not take all the time.
_MAX_DRAWS = 1024
_COST_OF_A_JOIN = 16
# Joins in a row that give nothing new: the seeds have no more to give, or less than one in so many.
_MAX_OLD = 10_000

Array = npt.NDArray[np.int64]


@dataclass(kw_only=True, slots=True)
class GenerateConfig:
    """What to generate.

    Attributes
    ----------
    input
        csv or csv.gz with known polymers, or a folder of such files.
    output
        csv or csv.gz to write, with the one column ``psmiles``; an existing file is replaced.
    num_polymers
        Number of distinct polymers.
    seed
        The same input, seed and number give the same rows in any process.
    column
        Column with the P-SMILES; empty: psmiles, else smiles.
    keep_seeds
        Whether a polymer of the input may come out again.
    """

    input: str = ""
    output: str = ""
    num_polymers: int = 100_000
    seed: int = 0
    column: str = ""
    keep_seeds: bool = False

    def __post_init__(self) -> None:
        if not self.input or not self.output:
            raise ValueError("input=SEEDS.csv and output=FILE.csv are needed; see --help")
        if self.num_polymers < 1:
            raise ValueError(f"num_polymers={self.num_polymers}: must be at least 1")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed}: must not be negative")


def generate(config: GenerateConfig) -> None:
    """Write a corpus; the file appears complete or not at all."""
    files = _seed_files(Path(config.input))
    output = Path(config.output)
    if any(output.exists() and output.samefile(file) for file in files):
        raise UsageError(f"output={output} is the input; give another name")
    seeds, num_rejected = read_seeds(files, config.column)
    print(f"{len(seeds):,} distinct seeds; {num_rejected:,} rows that are no polymer left out")
    known = set() if config.keep_seeds else {hash_of(psmiles) for psmiles in seeds}
    found = 0
    with (
        polymer_table(output) as add,
        progress("generation", config.num_polymers, "polymers") as advance,
    ):
        for psmiles in new_polymers(seeds, known, config.seed):
            add(psmiles)
            advance(1)
            found += 1
            if found == config.num_polymers:
                break
        else:
            raise MipsError(
                f"the seeds gave only {found:,} polymers, and {_MAX_OLD:,} joins more nothing new; "
                f"ask for num_polymers={found} or less, or give more seeds"
            )
    print(f"wrote {found:,} distinct polymers to {output}")


def _seed_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(file for pattern in ("*.csv", "*.csv.gz") for file in path.glob(pattern))
    if not files:
        raise UsageError(f"input={path} has no csv or csv.gz in it; give a file, or another folder")
    return files


def read_seeds(files: list[Path], column: str = "") -> tuple[list[str], int]:
    """Read the polymers of some csv files.

    Returns
    -------
    Distinct canonical P-SMILES in the order of the rows, and the number of rows that are none.
    """
    seeds: dict[str, None] = {}
    num_rejected = 0
    for file in files:
        header, records = read_csv(file)
        place = find_column(str(file), header, column)
        for record in records:
            try:
                seeds[canonicalize(record.text(place, len(header)))] = None
            except InvalidPolymer:
                num_rejected += 1
    if not seeds:
        raise MipsError(f"{files[0]} has no valid polymer; see `mips canonicalize` for the reasons")
    return list(seeds), num_rejected


def hash_of(psmiles: str) -> int:
    """Return 64 bits; the rare equality of two polymers' costs one of them its place, no more."""
    return int.from_bytes(hashlib.blake2b(psmiles.encode(), digest_size=8).digest())


@dataclass(frozen=True, slots=True)
class Segments:
    """S distinct segments of the seeds, sorted by `key`.

    Attributes
    ----------
    pieces
        What they are made of.
    key
        (S,) int64: the bond before the segment and its size, in one number.
    behind
        (S,) int64: the bond behind it.
    first, last
        (S,) int64: kinds of its first and last atom.
    size
        (S,) int64: heavy atoms.
    ring, start, count
        (S,) int64: `count` pieces of ring `ring`, from piece `start` on; backwards if negative.
    weight
        (S + 1,) float64: sum of the weights of the segments before. All segments of one seed weigh
        as much as those of another: long chains, which have many, must not crowd out the others.
    """

    pieces: Pieces
    key: Array
    behind: Array
    first: Array
    last: Array
    size: Array
    ring: Array
    start: Array
    count: Array
    weight: npt.NDArray[np.float64]

    @classmethod
    def of(cls, pieces: Pieces) -> "Segments":
        """List every segment; of several that read the same, the first."""
        rows = array("q")
        for ring, (members, bonds) in enumerate(zip(pieces.rings, pieces.bonds, strict=True)):
            period = len(members)
            for start in range(period):
                size = 0
                for count in range(1, period + 1):
                    places = [(start + k) % period for k in range(count)]
                    size += int(pieces.sizes[members[places[-1]]])
                    before, behind = bonds[start], bonds[(start + count) % period]
                    # Turned pieces have negative numbers. The hash of integers is the same in every
                    # process.
                    text = hash(tuple(members[place] + 1 for place in places))
                    ends = (before.along, behind.along, before.right, behind.left)
                    rows.extend((text, *ends, size, ring, start, count))
                    text = hash(tuple(-members[place] - 1 for place in reversed(places)))
                    ends = (behind.against, before.against, behind.left, before.right)
                    rows.extend((text, *ends, size, ring, places[-1], -count))
        table: Array = np.array(rows, dtype=np.int64).reshape(-1, 9).T
        key = _key(pieces, table[1], table[5])
        _, kept = np.unique(np.stack([key, table[2], table[0]]), axis=1, return_index=True)
        after, first, last, sizes, rings, starts, counts = table[2:, kept]
        share = 1 / np.bincount(rings)[rings]
        return cls(
            pieces=pieces,
            key=key[kept],
            behind=after,
            first=first,
            last=last,
            size=sizes,
            ring=rings,
            start=starts,
            count=counts,
            weight=np.concatenate([[0.0], np.cumsum(share)]),
        )

    def draw(self, target: Array, rng: np.random.Generator) -> tuple[Array, Array]:
        """Draw pairs that can be joined.

        Parameters
        ----------
        target
            (T,) int64, heavy atoms wanted of each pair.

        Returns
        -------
        (T,) index of the first segment; (T,) index of the second, -1 where none was found.
        """
        a = self._weighted(np.zeros(len(target)), np.full(len(target), self.weight[-1]), rng)
        rest = target - self.size[a]
        wanted = _key(self.pieces, self.behind[a], np.maximum(rest, 0))
        low = np.searchsorted(self.key, wanted, side="left")
        high = np.searchsorted(self.key, wanted, side="right")
        b = self._weighted(self.weight[low], self.weight[high], rng)
        is_found = (high > low) & self.pieces.can_link[self.last[b], self.first[a]]
        return a, np.where(is_found, b, -1)

    def _weighted(
        self,
        low: npt.NDArray[np.float64],
        high: npt.NDArray[np.float64],
        rng: np.random.Generator,
    ) -> Array:
        """Draw a segment from each range of weight."""
        at = low + rng.random(len(low)) * (high - low)
        return np.clip(np.searchsorted(self.weight, at, side="right") - 1, 0, len(self.key) - 1)

    def write(self, *segments: int) -> str:
        """Write the polymer of which some segments in a row are the repeat unit."""
        oriented = []
        for segment in segments:
            members = self.pieces.rings[self.ring[segment]]
            start, count = int(self.start[segment]), int(self.count[segment])
            step = 1 if count > 0 else -1
            for k in range(abs(count)):
                text = self.pieces.texts[members[(start + step * k) % len(members)]]
                oriented.append((text, count < 0))
        return join(oriented)


def _key(pieces: Pieces, before: Array, size: Array) -> Array:
    # No segment is larger than the largest seed, and no larger size is asked for.
    return before * (pieces.seed_sizes.max() + 1) + size


def new_polymers(seeds: list[str], known: set[int], seed: int) -> Iterator[str]:
    """Yield distinct canonical polymers made of seeds, until nothing new is found.

    Parameters
    ----------
    seeds
        Canonical P-SMILES.
    known
        Hashes of polymers that must not come; those that have come are added.
    seed
        Decides the draws.
    """
    pieces = cut_seeds(seeds)
    if not pieces.rings:
        raise MipsError("the seeds have no backbone bond that can be cut; give others")
    segments = Segments.of(pieces)
    sizes = segments.pieces.seed_sizes
    rng = np.random.default_rng(seed)
    target = rng.choice(sizes, _BATCH)
    draws = np.zeros(_BATCH, dtype=np.int64)
    old = 0
    while old < _MAX_OLD:
        first, second = segments.draw(target, rng)
        draws += 1
        old += 1  # or seeds of which no two can be joined would be tried for ever
        for place in np.flatnonzero(second >= 0).tolist():
            old += 1
            draws[place] += _COST_OF_A_JOIN
            text = segments.write(int(first[place]), int(second[place]))
            if (key := hash_of(text)) in known:
                continue  # joined before, and canonical spelling is what costs time
            known.add(key)
            try:
                polymer = canonicalize(text)
            except InvalidPolymer:
                continue
            if (key := hash_of(polymer)) not in known:
                known.add(key)
                draws[place] = _MAX_DRAWS
                old = 0
                yield polymer
        # A size is drawn anew once it has given its polymer, or does not want to.
        is_over = draws >= _MAX_DRAWS
        target[is_over] = rng.choice(sizes, int(is_over.sum()))
        draws[is_over] = 0
