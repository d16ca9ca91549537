"""What a request must pass before it is read: the name of the host, its type, its size."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

MAX_BYTES = 1_000_000  # of a body
SECONDS_TO_SEND = 30.0  # a body
_MAX_DRAINED = 50_000_000
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
# A drawing has its style inside and nothing else.
_SVG_POLICY = "default-src 'none'; style-src 'unsafe-inline'"

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Refused(Exception):
    """Status and reason."""


class Guard:
    """An ASGI application around another one.

    Parameters
    ----------
    hosts
        Names that a request may call this server by, so that a page of a stranger cannot reach it
        through a name of its own (DNS rebinding); empty: any.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], hosts: Sequence[str]) -> None:
        self._app, self._hosts = app, frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        send = _with_headers(send)
        try:
            headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
            self._check_host(headers)
            if scope["method"] == "POST":
                kind = headers.get(b"content-type", "").partition(";")[0].strip().lower()
                if kind != "application/json":
                    raise Refused(415, "send the body as Content-Type: application/json")
            body = await asyncio.wait_for(_read(headers, receive), SECONDS_TO_SEND)
        except TimeoutError:
            await _refuse(send, 408, f"the body did not come within {SECONDS_TO_SEND:g} s")
            return
        except Refused as error:
            await _refuse(send, *error.args)
            return
        is_read = False

        async def replay() -> dict[str, Any]:
            nonlocal is_read
            if is_read:
                return await receive()  # whether the client is gone
            is_read = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)

    def _check_host(self, headers: dict[bytes, str]) -> None:
        host = headers.get(b"host", "")
        name = host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
        if self._hosts and name.lower() not in self._hosts:
            raise Refused(400, f"this server is called {' or '.join(sorted(self._hosts))}")


async def _read(headers: dict[bytes, str], receive: Receive) -> bytes:
    """Read a body. One that is too large is read on and dropped, for its sender to hear why."""
    parts: list[bytes] = []
    size, is_more = 0, True
    while is_more:
        message = await receive()
        if message["type"] != "http.request":
            raise Refused(400, "the client is gone")
        size += len(message.get("body", b""))
        is_more = message.get("more_body", False)
        if size <= MAX_BYTES:
            parts.append(message.get("body", b""))
        elif size > _MAX_DRAINED:
            break
    if size > MAX_BYTES:
        raise Refused(413, f"a body has at most {MAX_BYTES:,} bytes; send fewer polymers at a time")
    return b"".join(parts)


def _with_headers(send: Send) -> Send:
    async def send_more(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            own = list(message.get("headers", []))
            is_svg = any(n == b"content-type" and v.startswith(b"image/svg") for n, v in own)
            more = HEADERS | ({"content-security-policy": _SVG_POLICY} if is_svg else {})
            own += [(name.encode(), value.encode()) for name, value in more.items()]
            message = message | {"headers": own}
        await send(message)

    return send_more


async def _refuse(send: Send, status: int, reason: str) -> None:
    body = json.dumps({"detail": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
