"""Which videos of a library a search may look at."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from fnmatch import fnmatchcase
from functools import cached_property

from everyframe.library.errors import LibraryError
from everyframe.library.records import VideoRecord


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Conditions that a video has to meet, all of them; one that is not given always holds.

    paths: patterns, of which one has to fit: "*.mkv" or "holiday*" (the name or the path; * takes any characters, a
        slash too; ? one; [ab] one of these), or a folder, for all that lies below. What a path or a name is literally
        fits too, with * or [ in it; so do paths from the working directory. Capital letters do not matter.
    after, before: after <= date < before, where the date is when the file was last changed. Without a time zone they
        are UTC.
    min_seconds, max_seconds: of the video's duration; one of unknown duration counts as long as what was encoded.
    ids: of videos, of which it has to be one; empty: any.

    Raises LibraryError for a duration that is no number, or a span in which nothing can lie.
    """

    paths: tuple[str, ...] = ()
    after: datetime | None = None
    before: datetime | None = None
    min_seconds: float | None = None
    max_seconds: float | None = None
    ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.paths, str):
            raise LibraryError(f"paths must be a tuple of patterns, got the text {self.paths!r}")
        object.__setattr__(self, "paths", tuple(self.paths))
        object.__setattr__(self, "ids", tuple(self.ids))
        for name in ("after", "before"):
            value = getattr(self, name)
            if value is not None and value.tzinfo is None:
                object.__setattr__(self, name, value.replace(tzinfo=timezone.utc))
        for name in ("min_seconds", "max_seconds"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise LibraryError(f"{name} must be a number of seconds >= 0, got {value}")
        if self.after is not None and self.before is not None and self.after >= self.before:
            raise LibraryError(f"no video is from after {self.after} and before {self.before}; swap them")
        if None not in (self.min_seconds, self.max_seconds) and self.min_seconds > self.max_seconds:  # type: ignore[operator]
            raise LibraryError(f"no video is longer than {self.min_seconds} s and shorter than {self.max_seconds} s")

    @cached_property
    def _patterns(self) -> list[_Pattern]:
        return [_Pattern.of(text) for text in self.paths]

    def holds(self, video: VideoRecord) -> bool:
        """Does the video meet all conditions?"""
        seconds = video.end - video.start if video.duration is None else video.duration
        return (
            (not self.ids or video.id in self.ids)
            and (self.after is None or video.date >= self.after)
            and (self.before is None or video.date < self.before)
            and (self.min_seconds is None or seconds >= self.min_seconds)
            and (self.max_seconds is None or seconds <= self.max_seconds)
            and (not self.paths or any(pattern.fits(video) for pattern in self._patterns))
        )


@dataclass(frozen=True)
class _Pattern:
    """One of `Filter.paths`. literals: what it means where * and [ are just letters."""

    globs: tuple[str, ...]
    literals: tuple[str, ...]

    @staticmethod
    def of(text: str) -> _Pattern:
        pattern = text.lower()
        folder = pattern.rstrip("/") + "/*"
        return _Pattern((pattern, folder, "*/" + folder), (pattern.rstrip("/"), os.path.abspath(text).lower()))

    def fits(self, video: VideoRecord) -> bool:
        path, name = video.path.lower(), video.name.lower()
        if any(literal in (path, name) or path.startswith(literal + "/") for literal in self.literals):
            return True
        return fnmatchcase(name, self.globs[0]) or any(fnmatchcase(path, glob) for glob in self.globs)


def allowed(videos: Iterable[VideoRecord], where: Filter | None) -> list[VideoRecord]:
    """The videos that meet the conditions, in their order; all for None."""
    return list(videos) if where is None else [video for video in videos if where.holds(video)]
