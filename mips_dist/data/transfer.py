"""Bytes from and to files behind URLs; what does not come or go is asked for again. No torch."""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from mips_dist.data.remote import connect, in_words, scheme_of, shown
from mips_dist.errors import MipsError

T = TypeVar("T")

_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds before asking again, while nothing comes
TOGETHER = 16  # requests at a time: most of a request is waiting
_BUSY = (408, 425, 429)  # what a server says that is to be asked again


class Missing(MipsError):
    """There is no such file, as far as the server shows."""


class Range(NamedTuple):
    """Some bytes of a file, or all of them; None is what is not known."""

    name: str
    start: int | None = None
    num_bytes: int | None = None

    @property
    def end(self) -> int | None:
        """Return the place behind the last byte."""
        return None if self.start is None or self.num_bytes is None else self.start + self.num_bytes


def address(folder: str, name: str) -> str:
    """Return the path or URL of a file of a folder; a query stays at the end."""
    if not scheme_of(folder):
        return str(Path(folder) / name)
    parts = urlsplit(folder)
    return parts._replace(path=f"{parts.path.rstrip('/')}/{name}").geturl()


def fetch(folder: str, wanted: Sequence[Range]) -> list[bytes]:
    """Return the bytes of ranges of files behind a URL.

    Asks again for what did not come, with growing pauses, until nothing new came for a while.

    Raises
    ------
    Missing
        A file is not there.
    MipsError
        Something cannot be had.
    """
    found: dict[int, bytes] = {}
    pauses = list(_PAUSES)
    while len(found) < len(wanted):
        asked = [n for n in range(len(wanted)) if n not in found][:TOGETHER]
        before, failure = len(found), (0, Exception())
        answers = _ask(folder, [wanted[number] for number in asked])
        for number, answer in zip(asked, answers, strict=True):
            if isinstance(answer, bytes) and wanted[number].num_bytes in (None, len(answer)):
                found[number] = answer
            else:
                failure = number, _check(folder, wanted[number], answer)
        if len(found) > before:
            pauses = list(_PAUSES)
        elif pauses:
            time.sleep(pauses.pop(0))
        else:
            number, error = failure
            url = address(folder, wanted[number].name)
            raise MipsError(
                f"{shown(url)} cannot be read ({in_words(url, error)}); check connection and "
                "credentials, and run the same command again"
            ) from error
    return [found[number] for number in range(len(wanted))]


def _ask(folder: str, wanted: Sequence[Range]) -> list[Any]:
    """Return bytes or an error for each part; whatever class of error a file system has."""
    urls = [address(folder, part.name) for part in wanted]
    try:
        system, _ = connect(folder)
        paths = [system._strip_protocol(url) for url in urls]
        starts, ends = [part.start for part in wanted], [part.end for part in wanted]
        return list(system.cat_ranges(paths, starts, ends, on_error="return"))
    except MipsError:
        raise
    except Exception as error:
        return [error] * len(urls)


def _check(folder: str, wanted: Range, answer: Any) -> Exception:
    """Return what went wrong with an answer if asking again may help, else raise."""
    url = shown(address(folder, wanted.name))
    if isinstance(answer, FileNotFoundError):
        # What a server does not show is not found either.
        raise Missing(f"no file {url}; check address and credentials") from answer
    if isinstance(answer, Exception):
        if _is_final(answer):
            words = in_words(address(folder, wanted.name), answer)
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


def _is_final(error: Exception) -> bool:
    """Whether the same request would get the same answer."""
    status = getattr(error, "status", 0)
    is_refused = isinstance(error, PermissionError | FileNotFoundError)
    return is_refused or (400 <= status < 500 and status not in _BUSY)


# ---- the other way


def send(folder: str, files: Mapping[str, bytes]) -> None:
    """Write files below a URL, in place of what is there.

    Raises
    ------
    MipsError
        They cannot be written, for some time.
    """

    def call(system: Any, paths: list[str]) -> None:
        system.pipe(dict(zip(paths, files.values(), strict=True)))

    _write(folder, list(files), call)


def send_file(folder: str, name: str, path: Path) -> None:
    """Write a file below a URL, see `send`; one that is large goes in pieces."""
    _write(folder, [name], lambda system, paths: system.put_file(str(path), paths[0]))


def create(folder: str, name: str, data: bytes) -> bool:
    """Write a file that was not there; return False if somebody else has written it.

    Of several that try only one gets True, as the server decides. `data` must be of this caller
    alone: a server may have done what it could not say any more.
    """

    def call(system: Any, paths: list[str]) -> bool:
        try:
            system.pipe_file(paths[0], data, mode="create")
            return True
        except Exception:
            try:
                return bool(fetch(folder, [Range(name)])[0] == data)
            except Missing:
                pass
            raise

    return _write(folder, [name], call)


def remove(folder: str, names: Sequence[str]) -> None:
    """Remove files; what cannot be removed stays, and costs its room alone."""
    system, _ = connect(folder)
    try:
        system.rm([system._strip_protocol(address(folder, name)) for name in names])
    except Exception:
        return


def listed(folder: str, pattern: str) -> list[str]:
    """Return names of files of a folder, as far as a listing shows them."""

    def call(system: Any, paths: list[str]) -> list[str]:
        system.invalidate_cache()
        try:
            entries = system.ls(paths[0], detail=False)
        except FileNotFoundError:
            return []
        finally:
            system.invalidate_cache()  # else files that come later would not be seen
        names = (entry.rstrip("/").rpartition("/")[2] for entry in entries)
        return [name for name in names if re.fullmatch(pattern, name)]

    return _write(folder, [""], call, "read")


def _write(
    folder: str, names: list[str], call: Callable[[Any, list[str]], T], what: str = "written"
) -> T:
    """Call with the file system and the paths, again after a pause where that may help."""
    urls = [address(folder, name) for name in names]
    pauses = list(_PAUSES)
    while True:
        system, _ = connect(folder)
        try:
            return call(system, [system._strip_protocol(url) for url in urls])
        except MipsError:
            raise
        except Exception as error:  # each file system has its own classes
            if _is_final(error) or not pauses:
                raise MipsError(
                    f"{shown(urls[0])} cannot be {what} ({in_words(urls[0], error)}); check "
                    "address, connection and credentials, and run the same command again"
                ) from error
        time.sleep(pauses.pop(0))
