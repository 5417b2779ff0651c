"""Moments of one video of a library, from all of its frames or from a few around each likely peak.

The rule is that of `everyframe.tasks.retrieval.search`: a moment is a run of the smoothed curve above a level. Of
runs that may not overlap only those at the base level count, so a moment needs two things: the frames of its own run,
half a moving average further on each side, and the level. The level is the mean of the smoothed curve, which is linear
in the frames; so it is the product of the query with one vector that is stored for each video (`video_means`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from everyframe.features import VideoFeatures
from everyframe.spans import Moment
from everyframe.tasks.grounding import average_weights, moving_average
from everyframe.tasks.proposals import base_runs, runs_of
from everyframe.tasks.retrieval import at_least

SMOOTH_SECONDS = 2.0
"""The moving average whose mean is stored; that of other lengths takes all frames of a video."""

# Wider than what rounding can move a stored level by: a video that never changes must not fall below its own mean.
_LEVEL_EPSILON = 5e-7
_TIME_EPSILON = 1e-6


@dataclass(frozen=True)
class Peaked(Moment):
    """A moment; peak: seconds, where the smoothed curve is highest."""

    peak: float


@dataclass(frozen=True, kw_only=True)
class MomentRule:
    """How moments are cut, as in `everyframe.tasks.retrieval.search`. Raises ValueError for values out of range."""

    per_video: int = 3
    smooth: float = SMOOTH_SECONDS
    threshold: float = 1.0
    shortest: float = 2.0

    def __post_init__(self) -> None:
        if self.per_video < 1:
            raise ValueError(f"per_video must be at least 1, got {self.per_video}")
        for name in ("smooth", "shortest"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a number of seconds >= 0, got {value}")
        if not math.isfinite(self.threshold):
            raise ValueError(f"threshold must be a finite number, got {self.threshold}")

    def choose(self, found: list[Peaked], first: float, last: float) -> list[Peaked]:
        """The moments of a video that count, best first, of all its runs; it covers [first, last) seconds."""
        # Twice as many as asked for: growing can make neighbours overlap, and one of them goes.
        ranked = sorted(found, key=lambda moment: -moment.score)[: 2 * self.per_video]
        return at_least(ranked, self.shortest, first, last, top=self.per_video)


def video_means(feats: VideoFeatures) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(mean of the normalised rows, mean of them under a moving average of `SMOOTH_SECONDS`), each float32 [dim].

    A query's product with them is the mean of its cosines, and of its smoothed cosines, over the video. Zeros for
    features without frames. Raises FeaturesError for a row of zeros.
    """
    weights = average_weights(feats.times, SMOOTH_SECONDS)
    sums = np.zeros((2, feats.dim))
    for first in range(0, feats.num_frames, 8192):  # blocks: no second copy of all rows
        rows = slice(first, first + 8192)
        block = feats.embeddings[rows] / feats.norms[rows, None]
        sums += np.stack([np.full(len(block), 1 / feats.num_frames), weights[rows]]) @ block.astype(np.float64)
    mean, smoothed = sums.astype(np.float32)
    return mean, smoothed


def whole_curve(times: NDArray[np.float64], scores: NDArray[np.float32], end: float, rule: MomentRule) -> list[Peaked]:
    """All runs of a video, from all of its frames: times [T] and end in seconds, scores [T]."""
    curve = moving_average(scores[None], times, rule.smooth)[0]
    return _moments(curve, times, end, base_runs(curve, rule.threshold))


@dataclass(frozen=True, kw_only=True)
class Part:
    """Neighbouring frames of a video: times [n] in seconds, scores [n].

    at_start, at_end: does it begin with the video's first frame, end with its last one?
    """

    times: NDArray[np.float64]
    scores: NDArray[np.float32]
    at_start: bool
    at_end: bool


@dataclass(frozen=True)
class PartRuns:
    """What a part tells: its whole runs, and whether those asked for go on before or after it."""

    found: list[Peaked]
    more_before: bool
    more_after: bool


def part_of_curve(part: Part, near: NDArray[np.float64], end: float, level: float, smooth: float) -> PartRuns:
    """The runs of a part of a video.

    near: times in the part, increasing; asked for are the runs with a frame within half a moving average of one of
        them, the only ones that a high score at that time can belong to. end: where the video ends, level: of its
        smoothed curve.
    """
    times, reach = part.times, smooth / 2 + _TIME_EPSILON
    curve = moving_average(part.scores[None], times, smooth)[0]
    # Frames whose moving average lies in the part.
    begin = 0 if part.at_start else int(np.searchsorted(times, times[0] + reach, side="left"))
    past = len(times) if part.at_end else int(np.searchsorted(times, times[-1] - reach, side="right"))
    if begin >= past:
        return PartRuns([], not part.at_start, not part.at_end)
    more_before = not part.at_start and near[0] - reach < times[begin]
    more_after = not part.at_end and near[-1] + reach > times[past - 1]
    above = np.flatnonzero(curve[begin:past] >= level - _LEVEL_EPSILON) + begin
    if not len(above):
        return PartRuns([], bool(more_before), bool(more_after))
    found = _moments(curve, times, end, runs_of(curve, above))
    # A run is whole if the frames on both sides of it are known to be below the level, or are not there.
    cut_before = not part.at_start and above[0] == begin
    cut_after = not part.at_end and above[-1] == past - 1
    if cut_before:
        more_before |= found[0].end > near[0] - reach
    if cut_after:
        more_after |= found[-1].start < near[-1] + reach
    return PartRuns(found[int(cut_before) : len(found) - int(cut_after)], bool(more_before), bool(more_after))


def _moments(
    curve: NDArray[np.float32],
    times: NDArray[np.float64],
    end: float,
    runs: tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]],
) -> list[Peaked]:
    ends = np.append(times[1:], end)
    return [
        Peaked(times[first], ends[past - 1], curve[peak], float(times[peak]))
        for first, past, peak in zip(*runs, strict=True)
    ]
