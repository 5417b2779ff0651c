"""Files to clients: only the very file that the library knows, in the ranges that players ask for."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import threading
import urllib.parse
from collections import OrderedDict
from collections.abc import MutableMapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

from everyframe.serve.errors import NotFound
from everyframe.serve.ranges import Span, Unsatisfiable, etag_matches, http_date, parse_range, still_current
from everyframe.video.identity import fingerprint_of

_CHUNK = 1 << 18
_REMEMBERED = 4096
_TYPES = {"mov": "video/mp4", "matroska": "video/x-matroska", "avi": "video/x-msvideo", "mpegts": "video/mp2t"}
_PLAYED = ("h264", "vp8", "vp9", "av1")


@dataclass(frozen=True)
class Opened:
    """An open regular file. etag: of its content. Close `handle` when done."""

    handle: int
    size: int
    modified: float
    etag: str


class KnownFiles:
    """Opens files whose content is what the library recorded, and remembers which were.

    The path is only a hint: what is behind it, whatever links lead there and whoever swaps them, is served only with
    the recorded size and fingerprint.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[Any, ...], str] = OrderedDict()
        self._lock = threading.Lock()

    def open(self, path: str, size: int | None, fingerprint: str | None) -> Opened:
        """Raises NotFound with a sentence."""
        if size is None or fingerprint is None or "://" in path:
            raise NotFound("this video is not a file of this machine, and cannot be played from here")
        gone = "the video's file was moved or changed; everyframe index FOLDER finds it again"
        try:
            # Not through a link, and without waiting for the other end of a pipe.
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno == errno.ELOOP:
                raise NotFound("the video's file is a symbolic link; links are not followed") from error
            raise NotFound(gone) from error
        try:
            facts = os.fstat(handle)
            if not stat.S_ISREG(facts.st_mode) or facts.st_size != size:
                raise NotFound(gone)
            key = (path, facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
            if self._fingerprint(key, handle, size) != fingerprint:
                raise NotFound(gone)
        except BaseException:
            os.close(handle)
            raise
        return Opened(handle, size, facts.st_mtime, f'"{fingerprint}"')

    def _fingerprint(self, key: tuple[Any, ...], handle: int, size: int) -> str:
        with self._lock:
            known = self._known.get(key)
        if known is None:
            known = fingerprint_of(size, lambda start, count: os.pread(handle, count, start))
            with self._lock:
                self._known[key] = known
                while len(self._known) > _REMEMBERED:
                    self._known.popitem(last=False)
        return known


def playable(codec: str | None, container: str | None, name: str) -> bool:
    """Do the browsers of today play such a file as it is?"""
    if container is None or codec not in _PLAYED:
        return False
    if container.startswith("mov,"):
        return codec != "vp8"
    return container.startswith("matroska") and name.lower().endswith(".webm") and codec != "h264"


def media_type(container: str | None, name: str) -> str:
    """Of a video; always one that a browser plays or downloads, never shows as a page."""
    if name.lower().endswith(".webm"):
        return "video/webm"
    return _TYPES.get((container or "").partition(",")[0], "application/octet-stream")


class FileAnswer(Response):
    """An answer with (a part of) an open file, which it closes; the file is read in threads of `pool`."""

    def __init__(self, opened: Opened, *, kind: str, name: str, pool: Executor) -> None:
        super().__init__()
        self._opened, self._kind, self._name, self._pool = opened, kind, name, pool

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        try:
            await self._answer(scope, send)
        finally:
            os.close(self._opened.handle)

    async def _answer(self, scope: MutableMapping[str, Any], send: Any) -> None:
        opened = self._opened
        asked = {name: value.decode("latin-1") for name, value in reversed(scope["headers"])}
        modified = http_date(opened.modified)
        headers = {
            "accept-ranges": "bytes",
            "etag": opened.etag,
            "last-modified": modified,
            "cache-control": "private, no-cache",
            "content-type": self._kind,
            "content-disposition": f"inline; filename*=UTF-8''{urllib.parse.quote(self._name, safe='')}",
        }
        if etag_matches(asked.get(b"if-none-match", ""), opened.etag, strong=False):
            del headers["content-type"], headers["content-disposition"]
            await _send(send, 304, headers)
            return
        span = None
        if scope["method"] == "GET" and still_current(asked.get(b"if-range"), opened.etag, modified):
            try:
                span = parse_range(asked.get(b"range"), opened.size)
            except Unsatisfiable:
                body = b'{"detail": "the file has no bytes in this range"}'
                headers |= {"content-range": f"bytes */{opened.size}", "content-type": "application/json"}
                del headers["content-disposition"]
                await _send(send, 416, headers, body)
                return
        status = 200 if span is None else 206
        span = span or Span(0, opened.size)
        if status == 206:
            headers["content-range"] = f"bytes {span.start}-{span.end - 1}/{opened.size}"
        headers["content-length"] = str(span.end - span.start)
        if scope["method"] == "HEAD":
            await _send(send, status, headers)
            return
        await send({"type": "http.response.start", "status": status, "headers": _encoded(headers)})
        loop = asyncio.get_running_loop()
        position = span.start
        while position < span.end:
            size = min(_CHUNK, span.end - position)
            piece = await loop.run_in_executor(self._pool, os.pread, opened.handle, size, position)
            if not piece:
                raise ConnectionError("the file became shorter while it was read")
            position += len(piece)
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def _send(send: Any, status: int, headers: dict[str, str], body: bytes = b"") -> None:
    if "content-length" not in headers and status != 304:
        headers["content-length"] = str(len(body))
    await send({"type": "http.response.start", "status": status, "headers": _encoded(headers)})
    await send({"type": "http.response.body", "body": body})


def _encoded(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
