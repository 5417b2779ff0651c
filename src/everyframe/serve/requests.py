"""What a search asks for, out of the query string."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Annotated, Literal

from fastapi import Query as Parameter

from everyframe.library import Filter, LibraryError, parse_query
from everyframe.serve.errors import BadRequest

_MOST_LETTERS, _MOST_WORDS, _MOST_TEXTS = 2000, 200, 8
_GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Frame:
    """A frame to find others like it."""

    video: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is looked for, in which collection; what is found must be like `positive` and unlike `negative`."""

    positive: tuple[str, ...]
    negative: tuple[str, ...]
    like: Frame | None
    image: str | None
    collection: str | None

    @property
    def is_empty(self) -> bool:
        """Is there nothing to look for?"""
        return not self.positive and self.like is None and self.image is None


Texts = Annotated[
    list[str] | None,
    Parameter(description='What to look for; -word or -"some words" is to be left out. Several combine.'),
]
Like = Annotated[
    str | None,
    Parameter(description="VIDEO@SECONDS: like that frame.", pattern=r"^[0-9]{1,19}@[0-9]{1,9}(\.[0-9]{1,9})?$"),
]
Image = Annotated[str | None, Parameter(description="Id that a search by image answered.", pattern=r"^[0-9a-f]{24}$")]
InCollection = Annotated[str | None, Parameter(description="Id, beginning of an id, or label.", max_length=300)]
Level = Literal["moment", "clip", "video"]


async def wanted(q: Texts = None, like: Like = None, image: Image = None, collection: InCollection = None) -> Wanted:
    """Raises BadRequest for a query that is too long, or that has only what is to be left out."""
    texts = [" ".join(re.sub(r"[\x00-\x1f\x7f\ud800-\udfff]", " ", text).split()) for text in q or []]
    texts = [text for text in texts if text]
    if len(texts) > _MOST_TEXTS:
        raise BadRequest(f"at most {_MOST_TEXTS} texts can be combined, got {len(texts)}")
    for text in texts:
        words = len(text.split())
        if len(text) > _MOST_LETTERS or words > _MOST_WORDS:
            raise BadRequest(
                f"the query has {words} words and {len(text)} letters; at most {_MOST_WORDS} words and {_MOST_LETTERS} "
                "letters are read: say it shorter"
            )
    parsed = parse_query(*texts)
    frame = None
    if like is not None:
        video, _, seconds = like.partition("@")
        frame = Frame(video, float(seconds))
    asked = Wanted(
        positive=parsed.positive, negative=parsed.negative, like=frame, image=image, collection=collection or None
    )
    if parsed.negative and asked.is_empty:
        raise BadRequest("the query says only what to leave out; say also what to look for")
    return asked


_DAY = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?(Z|[+-][0-9]{2}:[0-9]{2})?)?$"
Day = Annotated[str | None, Parameter(description="2025-03-31, or with a time; UTC unless it says.", pattern=_DAY)]
Length = Annotated[float | None, Parameter(description="Seconds of the video.", ge=0, le=1e9)]


async def conditions(
    path: Annotated[
        list[str] | None,
        Parameter(description="Part of the name or path, a pattern with * and ?, or a folder.", max_length=20),
    ] = None,
    after: Day = None,
    before: Day = None,
    min_seconds: Length = None,
    max_seconds: Length = None,
) -> Filter | None:
    """Raises BadRequest for a date that is none, and where nothing could meet the conditions."""
    patterns = tuple(each for text in path or [] for each in _patterns(text.strip()))
    if not patterns and after is before is min_seconds is max_seconds is None:
        return None
    first, last = _date(after, last=False), _date(before, last=True)
    try:
        return Filter(paths=patterns, after=first, before=last, min_seconds=min_seconds, max_seconds=max_seconds)
    except LibraryError as error:
        raise BadRequest(str(error)) from error


def _patterns(text: str) -> tuple[str, ...]:
    if not text:
        return ()
    return (text,) if _GLOB.search(text) else (text, f"*{text}*")


def _date(text: str | None, *, last: bool) -> datetime | None:
    """A day alone begins at midnight, and as the last one, is meant as a whole."""
    if text is None:
        return None
    try:
        date = datetime.fromisoformat(text.replace("Z", "+00:00"))
        date = date if date.tzinfo is not None else date.replace(tzinfo=timezone.utc)
        return date + timedelta(days=1) if last and len(text) == 10 else date
    except (ValueError, OverflowError) as error:
        raise BadRequest(f"{text} is no date ({error}); write it as 2025-03-31") from error
