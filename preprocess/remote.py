"""Open the input wherever it lies; what goes wrong on the way becomes one line."""

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mips_dist.data.remote import connect, in_words, scheme_of, shown
from mips_dist.errors import MipsError

_BLOCK_BYTES = 1 << 23  # read ahead of a remote file
_BUFFER_BYTES = 1 << 18


class Source(io.RawIOBase):
    """A file as it is, compressed or not, which is hashed while it is read from its beginning."""

    def __init__(self, url: str, file: Any) -> None:
        self._url = url
        self._file = file
        self._hash: Any = hashlib.sha256()

    def readable(self) -> bool:  # noqa: D102
        return True

    def readinto(self, buffer: Any) -> int:
        """Read; whatever class of error the file system raises is a lost transfer."""
        try:
            data: bytes = self._file.read(len(buffer))
        except Exception as error:
            raise _unreadable(self._url, error) from error
        if self._hash is not None:
            self._hash.update(data)
        buffer[: len(data)] = data
        return len(data)

    def sha256(self) -> str:
        """Read what is left, and return the sha256 of the whole file."""
        while self.read(_BUFFER_BYTES):
            pass
        digest: str = self._hash.hexdigest()
        return digest

    def at_random(self) -> Any:
        """Return the file for reading at any place; nothing is hashed from here on."""
        self._hash = None
        return self

    def seekable(self) -> bool:  # noqa: D102
        return self._hash is None

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move; only after `at_random`."""
        try:
            self._file.seek(offset, whence)
            return self.tell()
        except Exception as error:
            raise _unreadable(self._url, error) from error

    def tell(self) -> int:
        """Return the place in the file."""
        return int(self._file.tell())


@contextmanager
def opened(url: str, is_whole: bool) -> Iterator[Source]:
    """Open a local path or a URL that fsspec knows.

    Credentials come from the environment, as the service's own tools read them.

    Parameters
    ----------
    url
        Where the file lies.
    is_whole
        The file is read from beginning to end: over http one request will do, from a server that
        knows no ranges too.

    Raises
    ------
    MipsError
        No such file, no access, or the transfer breaks off.
    UsageError
        The URL holds a password.
    """
    scheme = scheme_of(url)
    try:
        system, path = connect(url)
        is_stream = is_whole and scheme in ("http", "https")
        file = system.open(path, "rb", block_size=0 if is_stream else _BLOCK_BYTES)
    except MipsError:
        raise
    except FileNotFoundError as error:
        # What a server does not show or is not there to show is not found either.
        remedy = "check address and credentials" if scheme else "check the path of input="
        raise MipsError(f"no file {shown(url)}; {remedy}") from error
    except Exception as error:  # each file system has its own classes
        raise _unreadable(url, error) from error
    with file:
        yield Source(url, file)


def _unreadable(url: str, error: Exception) -> MipsError:
    if "://" in url:
        remedy = "check the address, credentials and connection, and run the same command again"
    else:
        remedy = "check the path of input="
    return MipsError(f"{shown(url)} cannot be read ({in_words(url, error)}); {remedy}")
