"""What one search asks, and the best answers so far."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everyframe.library.moments import MomentRule, Peaked, whole_curve
from everyframe.library.query import Direction
from everyframe.library.records import Collection, VideoRecord
from everyframe.tasks.proposals import base_level
from everyframe.tasks.retrieval import Hit


@dataclass(frozen=True)
class ArchiveHit(Hit):
    """A hit in a library.

    id: of the video. peak: seconds; the middle of a moment's best seconds, and otherwise the best frame or clip.
    """

    id: int
    peak: float


@dataclass(frozen=True, kw_only=True)
class Question:
    """One search in one collection.

    table: its frames. videos: those that may be found, which have frames, in the order of the library. left_out: ids
    of the collection's other videos. of_rows: single rows are looked for (clips), not moments.
    Raises ValueError for `top` below 1, TypeError for one that is no number.
    """

    table: Any
    collection: Collection
    videos: list[VideoRecord]
    left_out: list[int]
    direction: Direction
    rule: MomentRule
    top: int
    of_rows: bool

    def __post_init__(self) -> None:
        if not isinstance(self.top, (int, np.integer)):
            raise TypeError(f"top must be a whole number, got {self.top!r}")
        if self.top < 1:
            raise ValueError(f"top must be at least 1, got {self.top}")

    @property
    def num_frames(self) -> int:
        """Of the videos that may be found."""
        return sum(video.num_frames for video in self.videos)

    def level(self, video: VideoRecord) -> float:
        """The level at which moments of the video begin, from what is stored of it."""
        return base_level(self.direction.mean_score(video.smoothed_mean), self.rule.threshold)

    def answers(self, video: VideoRecord, times: NDArray[np.float64], scores: NDArray[np.float32]) -> list[Peaked]:
        """The best moments or rows of a video, from the times [T] and scores [T] of all its rows."""
        if not self.of_rows:
            return self.rule.choose(whole_curve(times, scores, video.end, self.rule), video.start, video.end)
        ends = np.append(times[1:], video.end)
        rows = np.argsort(-scores, kind="stable")[: self.rule.per_video]
        return [Peaked(times[row], ends[row], scores[row], float(times[row])) for row in rows]


class Best:
    """The best answers so far; ties keep the order of the videos."""

    def __init__(self, question: Question) -> None:
        self._top = question.top
        self._order = {video.id: place for place, video in enumerate(question.videos)}
        self.hits: list[ArchiveHit] = []

    def put(self, video: VideoRecord, answers: Iterable[Peaked]) -> None:
        """The answers of a video, best first, instead of those it had."""
        mine = [ArchiveHit(video.path, each.start, each.end, each.score, video.id, each.peak) for each in answers]
        others = [hit for hit in self.hits if hit.id != video.id]
        self.hits = sorted(others + mine, key=lambda hit: (-hit.score, self._order[hit.id]))[: self._top]

    def settled(self, bound: float) -> bool:
        """Does what scores at most `bound` change nothing?"""
        return len(self.hits) == self._top and self.hits[-1].score >= bound
