"""Real servers for tests: http from this process, S3 as a process of its own."""

import functools
import http.client
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder, with ranges if told so, and breaks off when it has sent too much."""

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        first, last = 0, len(data) - 1
        if self.server.has_ranges and "Range" in self.headers:  # type: ignore[attr-defined]
            first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
            last = min(last, len(data) - 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        else:
            self.send_response(200)
        if self.server.has_ranges:  # type: ignore[attr-defined]
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        limits = self.server.limits  # type: ignore[attr-defined]
        self.wfile.write(data[first : last + 1][: limits.pop(0) if limits else None])

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """Has the bytes to send before the line is cut, one entry for each of the next requests."""

    has_ranges = False

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
        self.limits: list[int] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


@contextmanager
def http_server(folder: Path) -> Iterator[Server]:
    with Server(folder) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def s3_server() -> Iterator[str]:
    """Start moto's S3 server; yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except OSError:  # not there yet, or a crowded machine
                assert process.poll() is None, "the S3 server ended"
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield url
    finally:
        process.kill()
        process.wait()


@contextmanager
def s3_file_system() -> Iterator[Any]:
    """Start an S3 server, point the environment at it, and yield a file system on it."""
    with pytest.MonkeyPatch.context() as patch, s3_server() as url:
        patch.setenv("AWS_ENDPOINT_URL", url)
        patch.setenv("AWS_ACCESS_KEY_ID", "somebody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        # One of another server may be remembered.
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        yield fsspec.filesystem("s3")


# A status to answer with; "cut": the connection ends in the middle of the answer; "unanswered": the
# server has done it and cannot say so any more.
Fault = int | str | None


@contextmanager
def s3_proxy(fault: Callable[[str, str], Fault]) -> Iterator[list[Fault]]:
    """Put something that fails before the S3 server of the environment; yields the failures.

    `fault` is called with the method and path of each request.
    """
    host = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")
    failures: list[Fault] = []

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def handle_request(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            wrong = fault(self.command, self.path)
            if wrong is not None:
                failures.append(wrong)
            if isinstance(wrong, int):
                self.send_response(wrong)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            upstream = http.client.HTTPConnection(host, timeout=60)
            upstream.request(self.command, self.path, body, dict(self.headers.items()))
            answer = upstream.getresponse()
            data = answer.read()
            upstream.close()
            if wrong == "unanswered":
                self.close_connection = True
                return
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                    self.send_header(name, value)
            length = answer.getheader("Content-Length") if self.command == "HEAD" else len(data)
            self.send_header("Content-Length", str(length or 0))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if wrong == "cut" else data)
            self.close_connection = wrong == "cut"

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_request  # noqa: N815

    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        try:
            yield failures
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
            fsspec.get_filesystem_class("s3").clear_instance_cache()
