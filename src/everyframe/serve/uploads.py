"""One file out of a multipart body, as it streams in."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from python_multipart.multipart import MultipartParser, parse_options_header

from everyframe.serve.errors import BadRequest, TooSlow

if TYPE_CHECKING:
    from starlette.requests import Request

PATIENCE_SECONDS = 60.0
"""A client that sends nothing for so long is not waited for."""

Sink = Callable[[str, bytes], Awaitable[None]]


async def read_file_field(request: Request, field: str, sink: Sink) -> str:
    """Pass the bytes of the first file under that name to `sink(file name, bytes)`; returns the file's name.

    Other fields are read and let go. Raises BadRequest, TooSlow, and what the sink raises.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise BadRequest(f"send the file as multipart/form-data, in a field named {field}")
    parts = _Parts(field)
    try:
        parser = MultipartParser(boundary, parts.callbacks())  # type: ignore[arg-type]
        chunks = request.stream().__aiter__()
        while True:
            try:
                chunk = await asyncio.wait_for(chunks.__anext__(), PATIENCE_SECONDS)
            except StopAsyncIteration:
                break
            except asyncio.TimeoutError:
                raise TooSlow(f"nothing came for {PATIENCE_SECONDS:g} seconds") from None
            if chunk:
                parser.write(chunk)
                for piece in parts.taken():
                    await sink(parts.name or "", piece)
        parser.finalize()
    except ValueError as error:  # the parser's own are ValueErrors
        raise BadRequest(f"the multipart body is broken: {error}") from error
    if parts.name is None or not parts.complete:
        raise BadRequest(f"there is no file in a field named {field}")
    return parts.name


class _Parts:
    """What the parser calls: keeps the bytes of the wanted part until they are taken."""

    def __init__(self, field: str) -> None:
        self._field = field
        self._header: list[bytes] = [b"", b""]
        self._headers: dict[bytes, bytes] = {}
        self._wanted = False
        self._pieces: list[bytes] = []
        self.name: str | None = None
        self.complete = False

    def callbacks(self) -> dict[str, Callable[..., Any]]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._add(0, data[start:end]),
            "on_header_value": lambda data, start, end: self._add(1, data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._data,
            "on_part_end": self._end,
        }

    def taken(self) -> list[bytes]:
        pieces, self._pieces = self._pieces, []
        return pieces

    def _begin(self) -> None:
        self._headers, self._header, self._wanted = {}, [b"", b""], False

    def _add(self, which: int, data: bytes) -> None:
        self._header[which] += data
        if len(self._header[which]) > 8192:
            raise BadRequest("a header of the multipart body is too long")

    def _end_header(self) -> None:
        self._headers[self._header[0].lower()] = self._header[1]
        self._header = [b"", b""]

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        if self.name is None and options.get(b"name") == self._field.encode() and b"filename" in options:
            self._wanted = True
            self.name = options[b"filename"].decode("utf-8", "replace")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._wanted:
            self._pieces.append(data[start:end])

    def _end(self) -> None:
        self.complete = self.complete or self._wanted
        self._wanted = False
