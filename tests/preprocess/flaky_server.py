"""A web server of the tests that fails on purpose, in a process-wide thread of its own."""

import http.server
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

STALL = 99  # a fault: send `STALL_BYTES` and then nothing more
STALL_BYTES = 70_000


@dataclass
class Site:
    """What the server holds and how it misbehaves; may change between two requests.

    Attributes
    ----------
    files
        Path -> contents.
    fault
        Called with the path and the number of requests before; returns a status to answer with, or
        the number of body bytes after which to cut the connection (negative), or `STALL`, or None.
    requests
        (path, Range header) of every request so far.
    """

    files: dict[str, bytes]
    etag: str = '"1"'
    honours_range: bool = True
    honours_if_range: bool = True
    extra_length: int = 0
    names_length: bool = True
    redirects: dict[str, str] = field(default_factory=dict)
    fault: Callable[[str, int], int | None] = lambda path, count: None
    requests: list[tuple[str, str]] = field(default_factory=list)
    url: str = ""


@contextmanager
def serve(site: Site) -> Iterator[Site]:
    """Serve a site on a free port of this machine; its address is put into ``site.url``."""

    stopped = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

        def do_GET(self) -> None:
            fault = site.fault(self.path, len(site.requests))
            wanted = self.headers.get("Range", "")
            site.requests.append((self.path, wanted))
            if fault is not None and fault > STALL:
                self.send_error(fault)
                return
            if self.path in site.redirects:
                self.send_response(302)
                self.send_header("Location", site.redirects[self.path])
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if self.path not in site.files:
                self.send_error(404)
                return
            body = site.files[self.path]
            start = 0
            is_same = self.headers.get("If-Range") == site.etag or not site.honours_if_range
            if wanted and site.honours_range and is_same:
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                if start >= len(body):
                    self.send_error(416)
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            else:
                self.send_response(200)
            if site.etag:
                self.send_header("ETag", site.etag)
            if site.names_length:
                self.send_header("Content-Length", str(len(body) - start + site.extra_length))
            self.end_headers()
            if fault == STALL:
                self.wfile.write(body[start:][:STALL_BYTES])
                stopped.wait(60)
            else:
                self.wfile.write(body[start:][: -fault if fault is not None else None])

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield site
    finally:
        stopped.set()
        server.shutdown()
        server.server_close()
        thread.join()
