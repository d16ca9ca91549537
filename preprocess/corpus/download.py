"""One file over https: continued where it broke off, whole or not there, its checksum kept.

Beside FILE stand, while it comes, ``FILE.partial`` (its first bytes) and ``FILE.partial.json``
(of which version of the address they are), and for good ``FILE.sha256``: the checksum of the first
fetch, in the format of ``sha256sum``. It is compared ever after and written by no other hand.
"""

import contextlib
import fcntl
import hashlib
import http.client
import json
import re
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from mips_dist.data.files import write_atomically
from mips_dist.errors import MipsError, UsageError
from preprocess.progress import progress

_CHUNK = 1 << 16
_SECONDS_WITHOUT_BAR = 2.0
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")
_TRY_LATER = {408, 429, 500, 502, 503, 504}


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a download is tried.

    Attributes
    ----------
    retries
        Failures in a row, without a byte gained, before giving up.
    seconds
        Wait before the first retry; doubles with each one.
    timeout
        Seconds without a byte that count as a failure.
    """

    retries: int
    seconds: float
    timeout: float


@dataclass(frozen=True, kw_only=True)
class _Version:
    """Which state of an address some bytes belong to."""

    url: str
    validator: str  # strong ETag, else Last-Modified, else empty: then nothing can be continued
    length: int


class _Broken(Exception):
    """A transfer failed in a way that may pass; the message says how."""


class _Changed(_Broken):
    """What has come so far is not the beginning of what the address holds now."""


class _Refused(Exception):
    """No retry can help; the message says why."""


class _NoDowngrade(urllib.request.HTTPRedirectHandler):
    """Redirects are followed, but never from https to http."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if urlsplit(req.full_url).scheme == "https" and urlsplit(newurl).scheme != "https":
            raise _Refused(f"it redirects to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_opener = urllib.request.build_opener(_NoDowngrade)


def checksum_path(path: Path) -> Path:
    """Return where the checksum of a fetched file is recorded."""
    return path.with_name(path.name + ".sha256")


def download(
    url: str, path: Path, check: Callable[[Path], None], patience: Patience
) -> tuple[str, str]:
    """Fetch a file unless it is there; compare it with the checksum of its first fetch.

    Parameters
    ----------
    url
        https or http address.
    path
        Where the file is wanted. One that was put there by hand is checked and recorded.
    check
        Raises MipsError where a file is not what was asked for; called before its checksum is
        recorded, so that no error page is ever taken for the data.

    Returns
    -------
    The sha256, and what was done, in words.

    Raises
    ------
    MipsError
        The address cannot be reached or refuses; the file is not the one of the first fetch.
    """
    if urlsplit(url).scheme not in ("https", "http"):
        raise UsageError(f"url={url}: give an address that begins with https://")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        is_recorded = checksum_path(path).is_file()
        sha256 = _verify(path, path, url, check)
        return sha256, "unchanged since its first fetch" if is_recorded else "found, recorded"
    partial = path.with_name(path.name + ".partial")
    with partial.open("ab") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise MipsError(f"another command is fetching {path}; wait for it") from error
        state = path.with_name(path.name + ".partial.json")
        try:
            _transfer(url, path, stream, state, patience)
        except MipsError:
            if not stream.tell():
                partial.unlink()
                state.unlink(missing_ok=True)
            raise
        try:
            sha256 = _verify(partial, path, url, check)
        except MipsError:
            # These bytes must not be continued; without them the next fetch starts anew.
            partial.unlink()
            state.unlink()
            raise
        partial.replace(path)
        state.unlink()
    return sha256, "fetched"


def _verify(file: Path, path: Path, url: str, check: Callable[[Path], None]) -> str:
    """Compare a file with the checksum recorded for `path`, or record it as the first."""
    with file.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    record = checksum_path(path)
    if not record.is_file():
        check(file)
        write_atomically(record, f"{sha256}  {path.name}\n".encode())
        return sha256
    recorded = record.read_text(encoding="utf-8").partition(" ")[0].strip()
    if sha256 != recorded:
        where = f"{path} has" if file == path else f"{url} now gives"
        remedy = f"remove {path} and fetch again" if file == path else "give another url="
        raise MipsError(
            f"{where} sha256 {sha256}, but {recorded} was recorded at the first fetch; {remedy}, "
            f"or remove {record.name} to accept the new contents"
        )
    return sha256


def _transfer(url: str, path: Path, stream: IO[bytes], state: Path, patience: Patience) -> None:
    """Bring the partial file to its full length, with retries."""
    gained = stream.tell()
    failures = 0
    while True:
        try:
            _attempt(url, path.name, stream, state, patience.timeout)
            return
        except _Refused as error:
            raise MipsError(
                f"{url} could not be fetched: {error}; give its new address as url=, or get the "
                f"file elsewhere, put it at {path} and run the same command"
            ) from error
        except _Broken as error:
            size = stream.tell()
            if isinstance(error, _Changed):
                _empty(stream)
            failures = 1 if size > gained else failures + 1
            gained = max(gained, size)
            if failures > patience.retries:
                raise MipsError(
                    f"{url} could not be fetched: {error}; run the same command again to go on, "
                    f"or get the file elsewhere, put it at {path} and run the same command"
                ) from error
            wait = patience.seconds * 2 ** (failures - 1)
            print(f"{path.name}: {error}; again in {wait:g} s", file=sys.stderr, flush=True)
            time.sleep(wait)


def _empty(stream: IO[bytes]) -> None:
    stream.seek(0)
    stream.truncate()


def _attempt(url: str, name: str, stream: IO[bytes], state: Path, timeout: float) -> None:
    """Ask once for what is missing and append it; `_Broken` where that may work another time."""
    known = _read_state(state, url)
    offset = stream.tell() if known and known.validator else 0
    if known and offset == known.length:
        return
    request = urllib.request.Request(url, headers={"User-Agent": "mips-dist"})
    if known and offset:
        request.add_header("Range", f"bytes={offset}-")
        request.add_header("If-Range", known.validator)
    with _response(request, timeout) as response:
        continued = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if response.status == 206:
            found = None
            if known and continued and int(continued[1]) == offset:
                found = _version(url, response.headers, int(continued[2]))
            if found != known or found is None:
                raise _Changed("the address continued another file; starting anew")
            version = found
        else:
            version = _version(url, response.headers, _content_length(response.headers))
            _empty(stream)
            offset = 0
            write_atomically(state, json.dumps(asdict(version)).encode())
        _copy(response, stream, name, offset, version.length)


@contextlib.contextmanager
def _response(request: urllib.request.Request, timeout: float) -> Iterator[Any]:
    """Open an address; what goes wrong until it is closed is `_Broken` or `_Refused`."""
    try:
        with _opener.open(request, timeout=timeout) as response:
            yield response
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:
            raise _Changed("the address has fewer bytes than before; starting anew") from error
        if error.code in _TRY_LATER:
            raise _Broken(f"HTTP status {error.code}") from error
        raise _Refused(f"HTTP status {error.code} ({error.reason})") from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise _Refused(
                f"its certificate is not trusted here ({error.reason.verify_message})"
            ) from error
        raise _Broken(f"no connection: {error.reason}") from error
    except (http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
        raise _Broken(f"the connection broke: {error or type(error).__name__}") from error


def _copy(response: Any, stream: IO[bytes], name: str, offset: int, length: int) -> None:
    """Append the body to the partial file; shows its progress if it takes a while."""
    start = time.monotonic()
    advance = None
    done = offset
    with contextlib.ExitStack() as stack:
        try:
            while chunk := response.read1(_CHUNK):
                stream.write(chunk)
                done += len(chunk)
                if advance is not None:
                    advance(done // 1000 - (done - len(chunk)) // 1000)
                elif time.monotonic() - start > _SECONDS_WITHOUT_BAR:
                    advance = stack.enter_context(progress(name, -(-length // 1000), "kB"))
                    advance(offset // 1000, is_new=False)
                    advance(done // 1000 - offset // 1000)
        finally:
            stream.flush()
    if done != length:
        raise _Broken(f"{done:,} of {length:,} bytes came")


def _read_state(path: Path, url: str) -> _Version | None:
    """Return the version of the partial file; None where it is unknown, or of another address."""
    try:
        version = _Version(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
    return version if version.url == url else None


def _version(url: str, headers: http.client.HTTPMessage, length: int) -> _Version:
    etag = headers.get("ETag", "")
    # A weak ETag promises equal meaning and not equal bytes.
    validator = etag if etag.startswith('"') else headers.get("Last-Modified", "")
    return _Version(url=url, validator=validator, length=length)


def _content_length(headers: http.client.HTTPMessage) -> int:
    length = headers.get("Content-Length", "")
    if not length.isdigit():
        raise _Refused("it names no Content-Length, so a cut transfer would go unnoticed")
    return int(length)
