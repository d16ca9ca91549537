"""Files behind URLs that fsspec knows: how they are reached, and named where others may read it."""

from typing import Any
from urllib.parse import urlsplit

import fsspec

from mips_dist.errors import MipsError, UsageError

_EXTRA = {"s3": "s3", "s3a": "s3", "http": "http", "https": "http"}
HTTP = ("http", "https")


def scheme_of(url: str) -> str:
    """Return the scheme of a URL, nothing for a local path."""
    return urlsplit(url).scheme if "://" in url else ""


def shown(url: str) -> str:
    """Return a URL without what may be secret in it."""
    if "://" not in url:
        return url
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def connect(url: str) -> tuple[Any, str]:
    """Return the file system of a URL or local path, and the path on it.

    Credentials come from the environment, as the service's own tools read them.

    Raises
    ------
    UsageError
        The URL holds a password.
    MipsError
        A package is missing.
    Exception
        Whatever the file system raises where it cannot be reached.
    """
    scheme = scheme_of(url)
    if scheme and "@" in urlsplit(url).netloc:
        raise UsageError(
            f"{shown(url)} was given with a password, which logs would keep; "
            "set credentials in the environment (AWS_ACCESS_KEY_ID and so on)"
        )
    try:
        options = {"client_kwargs": {"timeout": _patience()}} if scheme in HTTP else {}
        system, path = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        extra = _EXTRA.get(scheme)
        remedy = f"pip install 'mips-dist[{extra}]'" if extra else "install it, or copy the file"
        raise MipsError(f"{shown(url)} needs a package that is not installed; {remedy}") from error
    return system, path


def in_words(url: str, error: Exception) -> str:
    """Return what a file system's error says, in one line, without what may be secret."""
    return " ".join(str(error).split())[:200].replace(url, shown(url)) or type(error).__name__


def _patience() -> Any:
    """Return time limits for http: none in all, for a file is read as fast as it is needed."""
    from aiohttp import ClientTimeout

    return ClientTimeout(total=None, sock_connect=30.0, sock_read=60.0)
