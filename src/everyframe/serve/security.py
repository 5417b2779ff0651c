"""What stands before every request: who asks, from which page, for which host, and how much it may send.

The server reads files of this machine for whoever reaches its port, and browsers let any web page try. So: the Host
header must name this server (a page that makes its own name point at 127.0.0.1, DNS rebinding, sends its own), a
request that a browser says comes from another page is refused, and off this machine a token is needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import json
import logging
import secrets
import socket
import urllib.parse
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any

from everyframe.serve.errors import TooLarge

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOG = logging.getLogger("everyframe.serve")
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
_HEADERS = (
    (b"content-security-policy", CSP.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=()"),
)
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_SMALL_BODY = 1 << 16
_DRAINED_BYTES, _DRAIN_SECONDS = 1 << 28, 10.0


class BodyTooLarge(TooLarge):
    """More came than the request may hold."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"the request is larger than the {size_text(limit)} that it may have")


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What is let through.

    hosts: names that the Host header may have, without port. addresses: may it also be any IP address? A rebound name
    is a name, never an address. bodies: path -> bytes that a request to it may have, 64 KiB for all others.
    cookie: its name; cookies are shared between ports, so that the name holds the port.
    """

    hosts: frozenset[str]
    addresses: bool
    token: str | None
    cookie: str
    bodies: dict[str, int]


def allowed_hosts(host: str, more: Iterable[str]) -> tuple[frozenset[str], bool]:
    """The names for a server bound to `host`, and whether any address will do."""
    names = {"127.0.0.1", "localhost", "::1", host, *more}
    wildcard = host in ("0.0.0.0", "::", "")
    if wildcard:
        names |= {socket.gethostname(), socket.getfqdn()}
    return frozenset(name.lower().strip("[]") for name in names if name), wildcard


def size_text(size: int) -> str:
    """3000000 -> "3 MB"."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "KB")):
        if size >= unit:
            value = size / unit
            return f"{value:.0f} {name}" if value >= 10 else f"{value:.2g} {name}"
    return f"{size} bytes"


def unforeseen(request: str) -> str:
    """What a client is told of an error that nobody foresaw; the rest is in the log."""
    return f"something went wrong here; the server's log has it under {request}"


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(self, app: App, rules: Rules) -> None:
        self._app = app
        self._rules = rules
        self._cookie_value = _cookie_value(rules.token)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # there are no websockets here
            await send({"type": "websocket.close", "code": 1008})
            return
        exchange = _Exchange(scope, receive, send)
        refused = self._refusal(exchange)
        if refused is not None:
            await exchange.answer(*refused)
            return
        given, location = self._handed_in(exchange)
        if given is not None and not _same(given, self._rules.token or ""):
            await exchange.answer(401, "this is not the token; the server printed it when it started")
            return
        if given is not None:
            cookie = f"{self._rules.cookie}={self._cookie_value}; Path=/; HttpOnly; SameSite=Strict"
            await exchange.answer(303, None, (b"location", location), (b"set-cookie", cookie.encode()))
            return
        limit = self._rules.bodies.get(scope["path"], _SMALL_BODY)
        length = exchange.header(b"content-length")
        if length is not None and length.isdecimal() and int(length) > limit:
            await exchange.answer(413, str(BodyTooLarge(limit)), (b"connection", b"close"))
            return
        try:
            await self._app(scope, exchange.limited(limit), exchange.send)
        except BodyTooLarge as error:
            await exchange.answer(413, str(error), (b"connection", b"close"))
        except Exception:
            LOG.exception("request %s: %s %s", exchange.id, scope["method"], scope["path"])
            if exchange.started:
                raise  # the connection is closed in the middle of the answer, which is all that can be said
            await exchange.answer(500, unforeseen(exchange.id), (b"connection", b"close"))

    def _refusal(self, exchange: _Exchange) -> tuple[Any, ...] | None:
        """Status, sentence and headers for a request that is not let in."""
        scope, rules = exchange.scope, self._rules
        host = exchange.header(b"host")
        if host is None or not self._knows(host):
            return 400, f"this server is not {host}; start it with --allow-host to be reached by that name"
        path, method = scope["path"], scope["method"]
        page = method in _SAFE_METHODS and _is_page(path)
        origin, site = exchange.header(b"origin"), exchange.header(b"sec-fetch-site")
        if origin is not None and urllib.parse.urlsplit(origin).netloc.lower() != host.lower():
            return 403, "requests from other web pages are not answered"
        foreign = origin is None and site not in (None, "same-origin", "none")
        if foreign and not (page and exchange.header(b"sec-fetch-mode") == "navigate"):
            return 403, "requests from other web pages are not answered"
        if rules.token is None or page or self._is_known(exchange):
            return None
        bearer = (b"www-authenticate", b"Bearer")
        return 401, "this server needs its token: Authorization: Bearer TOKEN, or open /?token=TOKEN once", bearer

    def _knows(self, host: str) -> bool:
        try:
            name = urllib.parse.urlsplit(f"//{host}").hostname
        except ValueError:
            return False
        if name is None:
            return False
        if name.lower() in self._rules.hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return self._rules.addresses

    def _is_known(self, exchange: _Exchange) -> bool:
        """Is the token there, as a header, as a cookie, or (for the page alone) in the address?"""
        token = self._rules.token or ""
        kind, _, given = (exchange.header(b"authorization") or "").partition(" ")
        if kind.lower() == "bearer" and _same(given.strip(), token):
            return True
        return any(_same(value, self._cookie_value) for value in exchange.cookies(self._rules.cookie))

    def _handed_in(self, exchange: _Exchange) -> tuple[str | None, bytes]:
        """The token of /?token=TOKEN, if one is needed and given, and where to go on: the same page without it."""
        scope = exchange.scope
        if self._rules.token is None or scope["method"] != "GET" or scope["path"] != "/":
            return None, b""
        query = urllib.parse.parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        rest = urllib.parse.urlencode([(name, value) for name, value in query if name != "token"])
        return dict(query).get("token"), f"/?{rest}".encode() if rest else b"/"


class _Exchange:
    """One request: its headers, its body, and the way back."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.id = secrets.token_hex(6)
        self.started = False
        self._receive, self._send = receive, send
        length = self.header(b"content-length")
        self._more = length not in (None, "0") or self.header(b"transfer-encoding") is not None
        scope["everyframe.request_id"] = self.id

    def header(self, name: bytes) -> str | None:
        """The first header of that name (lower case)."""
        return next((value.decode("latin-1") for key, value in self.scope["headers"] if key == name), None)

    def cookies(self, name: str) -> list[str]:
        jar = SimpleCookie()
        try:
            jar.load(self.header(b"cookie") or "")
        except CookieError:
            return []
        return [jar[name].value] if name in jar else []

    def limited(self, limit: int) -> Receive:
        """The body, of which more than `limit` bytes raise: what Content-Length says is not what comes."""
        count = 0

        async def receive() -> Message:
            nonlocal count
            message = await self._received()
            count += len(message.get("body", b""))
            if count > limit:
                raise BodyTooLarge(limit)
            return message

        return receive

    async def _received(self) -> Message:
        message = await self._receive()
        self._more = message["type"] == "http.request" and message.get("more_body", False)
        return message

    async def _drain(self) -> None:
        """Read on for a while. A client that is still sending when the connection closes never sees the answer."""
        taken = 0
        while self._more and taken < _DRAINED_BYTES:
            taken += len((await self._received()).get("body", b""))

    async def send(self, message: Message) -> None:
        """Pass a message on, with the headers that every answer has."""
        if message["type"] == "http.response.start":
            self.started = True
            if self._more and message["status"] >= 400:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._drain(), _DRAIN_SECONDS)
            present = {key for key, _ in message["headers"]}
            added = [(key, value) for key, value in _HEADERS if key not in present]
            message["headers"] = [*message["headers"], *added, (b"x-request-id", self.id.encode())]
        await self._send(message)

    async def answer(self, status: int, sentence: str | None, *headers: tuple[bytes, bytes]) -> None:
        """A sentence as JSON."""
        body = b"" if sentence is None else json.dumps({"detail": sentence}).encode()
        kind = [] if sentence is None else [(b"content-type", b"application/json")]
        every = [*kind, (b"content-length", str(len(body)).encode()), *headers]
        await self.send({"type": "http.response.start", "status": status, "headers": every})
        await self.send({"type": "http.response.body", "body": b"" if self.scope["method"] == "HEAD" else body})


def _is_page(path: str) -> bool:
    """What holds nothing of the library, and is there before the token is."""
    return path in ("/", "/docs", "/favicon.ico") or path.startswith("/static/")


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), wanted.encode())


def _cookie_value(token: str | None) -> str:
    """Made from the token, so that whoever reads the cookie does not read the token."""
    return hmac.new((token or "").encode(), b"everyframe serve cookie", hashlib.sha256).hexdigest()
