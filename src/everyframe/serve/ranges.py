"""Which bytes a request asks for (RFC 9110, sections 13 and 14)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from email.utils import formatdate

_SINGLE = re.compile(r"bytes=\s*(\d*)-(\d*)\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Span:
    """Bytes [start, end) of a file; end > start."""

    start: int
    end: int


class Unsatisfiable(ValueError):
    """No byte of the file lies in the range: 416."""


def parse_range(header: str | None, size: int) -> Span | None:
    """The part of a file of `size` bytes that a Range header asks for; None for all of it.

    A header that cannot be understood, in another unit or with several ranges, is passed over, as the RFC has it.
    Raises Unsatisfiable.
    """
    match = _SINGLE.fullmatch(header.strip()) if header is not None else None
    if match is None or not any(match.groups()) or len(header or "") > 100:
        return None
    first, last = match.groups()
    if not first:
        length = min(int(last), size)
        if length == 0:
            raise Unsatisfiable
        return Span(size - length, size)
    start = int(first)
    if last and int(last) < start:
        return None  # not a range at all
    if start >= size:
        raise Unsatisfiable
    return Span(start, min(int(last) + 1, size) if last else size)


def etag_matches(header: str, etag: str, *, strong: bool) -> bool:
    """Does an If-None-Match (or, strong, If-Range) header name this tag?"""
    if header.strip() == "*":
        return not strong
    given = [tag.strip() for tag in header.split(",")]
    return etag in given or (not strong and f"W/{etag}" in given)


def http_date(seconds: float) -> str:
    """A time as HTTP writes it; whole seconds."""
    return formatdate(seconds, usegmt=True)


def still_current(if_range: str | None, etag: str, modified: str) -> bool:
    """Is the part of the file that the client holds still one of this file?"""
    if if_range is None:
        return True
    if '"' in if_range:
        return etag_matches(if_range, etag, strong=True)
    return if_range.strip() == modified
