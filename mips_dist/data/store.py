"""The bytes of a shard folder, local or behind a URL: whole files, and parts. No torch."""

import hashlib
import time
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from mips_dist.data.cache import ByteCache
from mips_dist.data.remote import connect, in_words, scheme_of, shown
from mips_dist.errors import MipsError

REMEDY = "copy it again from where it was made, or run `python -m preprocess repair output=DIR`"

_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds before asking again, while nothing comes
_TOGETHER = 16  # requests at a time: most of a request is waiting


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


class _Range(NamedTuple):
    """Some bytes of a file, or all of them; None is what is not known."""

    name: str
    start: int | None
    num_bytes: int | None

    @property
    def end(self) -> int | None:
        return None if self.start is None or self.num_bytes is None else self.start + self.num_bytes


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
        if not self.is_remote:
            return str(Path(self._folder) / name)
        parts = urlsplit(self._folder)
        return parts._replace(path=f"{parts.path.rstrip('/')}/{name}").geturl()

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
        (data,) = self._fetch([_Range(name, None, num_bytes)])
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
        fetched = self._fetch([_Range(p.name, p.start, p.num_bytes) for p in parts])
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

    def _fetch(self, wanted: Sequence[_Range]) -> list[bytes]:
        """Return the bytes of ranges.

        Asks again for what did not come, with growing pauses, until nothing new came for a while.
        """
        found: dict[int, bytes] = {}
        pauses = list(_PAUSES)
        while len(found) < len(wanted):
            asked = [n for n in range(len(wanted)) if n not in found][:_TOGETHER]
            before, failure = len(found), (0, Exception())
            answers = self._ask([wanted[number] for number in asked])
            for number, answer in zip(asked, answers, strict=True):
                if isinstance(answer, bytes) and wanted[number].num_bytes in (None, len(answer)):
                    found[number] = answer
                else:
                    failure = number, self._check(wanted[number], answer)
            if len(found) > before:
                pauses = list(_PAUSES)
            elif pauses:
                time.sleep(pauses.pop(0))
            else:
                number, error = failure
                url = self.address(wanted[number].name)
                raise MipsError(
                    f"{shown(url)} cannot be read ({in_words(url, error)}); check connection and "
                    "credentials, and run the same command again"
                ) from error
        return [found[number] for number in range(len(wanted))]

    def _ask(self, wanted: Sequence[_Range]) -> list[Any]:
        """Return bytes or an error for each part; whatever class of error a file system has."""
        urls = [self.address(part.name) for part in wanted]
        try:
            system, _ = connect(self._folder)
            paths = [system._strip_protocol(url) for url in urls]
            starts, ends = [part.start for part in wanted], [part.end for part in wanted]
            return list(system.cat_ranges(paths, starts, ends, on_error="return"))
        except MipsError:
            raise
        except Exception as error:
            return [error] * len(urls)

    def _check(self, wanted: _Range, answer: Any) -> Exception:
        """Return what went wrong with an answer if asking again may help, else raise."""
        url = shown(self.address(wanted.name))
        if isinstance(answer, FileNotFoundError):
            # What a server does not show is not found either.
            raise MipsError(f"no file {url}; check address and credentials") from answer
        if isinstance(answer, Exception):
            status = getattr(answer, "status", 0)
            if isinstance(answer, PermissionError) or (
                400 <= status < 500 and status not in (408, 425, 429)
            ):
                words = in_words(self.address(wanted.name), answer)
                raise MipsError(
                    f"{url} cannot be read ({words}); check address and credentials"
                ) from answer
            return answer
        num_bytes = wanted.num_bytes or 0
        if wanted.start is not None and len(answer) > num_bytes:
            raise MipsError(
                f"{url} comes whole where a part of it was asked for: the server knows no byte "
                "ranges; copy the shards to this machine, or serve them by another one"
            )
        return ConnectionError(f"{len(answer):,} of {num_bytes:,} bytes came")


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
