"""What became of every row: one file a chunk, written once, then streamed as often as needed."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preprocess.output import read_checked, write_checked
from preprocess.work import CanonicalRows

KEY_BYTES = 16
_NO_KEY = bytes(KEY_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdicts:
    """Verdicts on a chunk of consecutive rows.

    Attributes
    ----------
    start
        Number of the first row.
    canonical
        Canonical spelling of each row; None where rejected.
    reasons
        Place in the chunk -> why the row was rejected, as ``code: words``.
    stereo
        Places of accepted rows that lost stereo marks.
    keys
        (rows, 2) uint64: 128 bits that stand for the polymer; of rejected rows 0.
    """

    start: int
    canonical: list[str | None]
    reasons: dict[int, str]
    stereo: set[int]
    keys: NDArray[np.uint64]

    @property
    def accepted(self) -> NDArray[np.bool_]:
        """(rows,) whether a row has a canonical spelling."""
        return np.array([canonical is not None for canonical in self.canonical], dtype=np.bool_)


class VerdictFiles:
    """The files of the first pass.

    A file holds some thousand rows: 1e9 rows would be half a million files in the folder, which
    common file systems bear; they are never listed, only opened by name.

    Parameters
    ----------
    folder
        Made by the caller.
    num_rows
        Rows of the input.
    """

    def __init__(self, folder: Path, num_rows: int) -> None:
        self.folder = folder
        self.num_rows = num_rows

    def is_done(self, chunk: int, digest: str) -> bool:
        """Tell whether a chunk has its verdicts; `digest` stands for its texts."""
        found = self._read(chunk)
        return found is not None and found["texts"] == digest

    def write(self, chunk: int, digest: str, result: CanonicalRows) -> None:
        """Keep the verdicts on a chunk, with the one hash that will ever be made of each."""
        keys = b"".join(_NO_KEY if text is None else _key(text) for text in result.canonical)
        values = {
            "texts": digest,
            "canonical": result.canonical,
            "reasons": result.reasons,
            "stereo": result.stereo,
            "keys": keys.hex(),
        }
        write_checked(self._path(chunk), values)

    def __iter__(self) -> Iterator[Verdicts]:
        """Yield the chunks in the order of the rows; all must have been written."""
        start = chunk = 0
        while start < self.num_rows:
            values = self._read(chunk)
            assert values is not None, "the first pass wrote every chunk"
            keys = np.frombuffer(bytes.fromhex(values["keys"]), dtype="<u8").reshape(-1, 2)
            yield Verdicts(
                start=start,
                canonical=values["canonical"],
                reasons={int(place): reason for place, reason in values["reasons"].items()},
                stereo=set(values["stereo"]),
                keys=keys,
            )
            start += len(values["canonical"])
            chunk += 1

    def _path(self, chunk: int) -> Path:
        return self.folder / f"{chunk:06d}.json"

    def _read(self, chunk: int) -> dict[str, Any] | None:
        return read_checked(self._path(chunk))


def digest_of(values: Any) -> str:
    """Return a hash of plain values, to know them again."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _key(canonical: str) -> bytes:
    """Return 128 bits: among 1e9 polymers, two share them by chance once in 1e20 corpora."""
    return hashlib.blake2b(canonical.encode(), digest_size=KEY_BYTES).digest()
