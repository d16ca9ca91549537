"""The bytes of a shard folder, local or behind a URL: whole files, and parts. No torch."""

import hashlib
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from mips_dist.data.cache import ByteCache
from mips_dist.data.remote import scheme_of, shown
from mips_dist.data.transfer import Range, address, fetch
from mips_dist.errors import MipsError

REMEDY = "copy it again from where it was made, or run `python -m preprocess repair output=DIR`"


class Part(NamedTuple):
    """Some bytes of a file of which the sha256 is known."""

    name: str
    sha256: str
    start: int
    num_bytes: int

    @property
    def key(self) -> str:
        """Return a name that stands for these bytes wherever they lie."""
        return f"{self.sha256[:32]}-{self.start}-{self.num_bytes}"


class ShardStore:
    """Where shards lie.

    Parameters
    ----------
    folder
        Local folder, or a URL that fsspec knows (``s3://``, ``https://``).
    cache
        Keeps what came from a URL; local files are read where they are.
    """

    def __init__(self, folder: str | Path, cache: ByteCache | None = None) -> None:
        self._folder = str(folder)
        self.is_remote = scheme_of(self._folder) != ""
        self._cache = cache if self.is_remote and cache and cache.max_bytes else None

    def __str__(self) -> str:
        """Return how lines name it."""
        return shown(self._folder)

    def address(self, name: str) -> str:
        """Return the path or URL of a file; a query stays at the end."""
        return address(self._folder, name)

    def file(self, name: str, num_bytes: int | None = None, sha256: str | None = None) -> bytes:
        """Return a whole file, checked as far as it is known.

        Raises
        ------
        MipsError
            It is missing, cannot be had, or is not what it should be.
        """
        if not self.is_remote:
            return read_file(Path(self.address(name)), num_bytes, sha256)
        cache = self._cache if num_bytes is not None and sha256 is not None else None
        if cache and (data := cache.get(str(sha256), num_bytes or 0)) is not None:
            if hashlib.sha256(data).hexdigest() == sha256:
                return data
            cache.drop(str(sha256))
        (data,) = fetch(self._folder, [Range(name, None, num_bytes)])
        if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
            raise MipsError(
                f"{shown(self.address(name))} was altered: its sha256 is not the manifest's; "
                f"{REMEDY}"
            )
        if cache:
            cache.put(str(sha256), data)
        return data

    def parts(self, wanted: Sequence[Part]) -> list[bytes]:
        """Return parts of files; what they hold is not checked.

        Raises
        ------
        MipsError
            A file is missing, too short, or cannot be had.
        """
        if not self.is_remote:
            by_file = groupby(wanted, key=lambda part: part.name)
            return [x for name, parts in by_file for x in self._local(name, list(parts))]
        found = [self._cache.get(p.key, p.num_bytes) if self._cache else None for p in wanted]
        missing = [number for number, data in enumerate(found) if data is None]
        parts = [wanted[number] for number in missing]
        fetched = fetch(self._folder, [Range(p.name, p.start, p.num_bytes) for p in parts])
        for number, part, data in zip(missing, parts, fetched, strict=True):
            found[number] = data
            if self._cache:
                self._cache.put(part.key, data)
        return [data for data in found if data is not None]

    def forget(self, parts: Sequence[Part]) -> None:
        """Drop parts from the cache, as they were found damaged."""
        if self._cache:
            for part in parts:
                self._cache.drop(part.key)

    def _local(self, name: str, parts: list[Part]) -> list[bytes]:
        path = Path(self.address(name))
        found = []
        try:
            with path.open("rb", buffering=0) as file:
                for part in parts:
                    file.seek(part.start)
                    found.append(file.read(part.num_bytes))
        except FileNotFoundError as error:
            raise MipsError(f"{path} is missing; {REMEDY}") from error
        except OSError as error:
            raise MipsError(f"{path} cannot be read ({error}); {REMEDY}") from error
        for part, data in zip(parts, found, strict=True):
            if len(data) != part.num_bytes:
                raise MipsError(f"{path} ends before byte {part.start + part.num_bytes}; {REMEDY}")
        return found


def read_file(path: Path, num_bytes: int | None, sha256: str | None) -> bytes:
    """Return the bytes of a file of a shard folder, checked against what the manifest says.

    Raises
    ------
    MipsError
        The file is missing, truncated or altered.
    """
    if not path.is_file():
        raise MipsError(f"{path} is missing; {REMEDY}")
    if num_bytes is not None and path.stat().st_size != num_bytes:
        raise MipsError(f"{path} has {path.stat().st_size} bytes instead of {num_bytes}; {REMEDY}")
    data = path.read_bytes()
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise MipsError(f"{path} was altered: its sha256 is not the manifest's; {REMEDY}")
    return data
