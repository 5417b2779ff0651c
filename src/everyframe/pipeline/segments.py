"""A long video in segments that are read and encoded apart from each other, and their features as one again.

T sampled frames, D width of an embedding. A segment is a range of the sampling's target times, never of seconds: so
each frame is in exactly one, whatever the frame rate, and with a fixed plan a segmented video has the very chunks of a
whole one, and with them the very features.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from everyframe.encoders import Encoder
from everyframe.features import VideoFeatures
from everyframe.pipeline.decoding import Finished, frames_per_call, read_chunks
from everyframe.pipeline.encode import facts_of
from everyframe.pipeline.gather import AllFeatures
from everyframe.pipeline.sampling import ClipSampling, Sampling
from everyframe.pipeline.window import Chunk
from everyframe.video import Source, TargetRange

_LONGEST_DAYS = 30  # a header that promises more is wrong
_MOST_DAMAGE = 100  # lines of damage that one video keeps, as when it is read in one piece


class SegmentsError(Exception):
    """Segments that do not fit together: the file's clock jumps, or seeking in it leads elsewhere than reading on.

    Read the video in one piece then: `Segment(0, None)`.
    """


@dataclass(frozen=True)
class Segment:
    """The targets first <= k < stop of a video's sampling, target k being start + k / fps; stop None: to its end."""

    first: int
    stop: int | None

    def __lt__(self, other: Segment) -> bool:
        """In the order of time; of two that begin together the shorter one comes first."""
        ends = [math.inf if stop is None else stop for stop in (self.stop, other.stop)]
        return (self.first, ends[0]) < (other.first, ends[1])


WHOLE = Segment(0, None)


@dataclass(frozen=True, kw_only=True, eq=False)
class SegmentFeatures:
    """What is known of an encoded segment; there may be no frame in it.

    times: float64 [T], seconds. embeddings: float32 [T, D]. roles: one letter per frame. macs: the sum over its chunks
    of `encoder.plan_macs(chunk.plan, "all")`, summed over parts. finished: what came after its last chunk (plain
    values, JSON takes them; its `error` is None).
    """

    segment: Segment
    times: np.ndarray
    embeddings: np.ndarray
    roles: str
    macs: float
    finished: Finished


def segment_frames(encoder: Encoder, sampling: Sampling, seconds: float) -> int:
    """Targets in a segment of about `seconds`: a multiple of the frames of a full chunk."""
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(f"a segment must have a number of seconds > 0, got {seconds}")
    size, group = frames_per_call(encoder), encoder.group_size
    chunk = max(size // group, 1) * group
    return max(round(seconds * sampling.fps / chunk), 1) * chunk


def split(
    duration_seconds: float | None, encoder: Encoder, sampling: Sampling | ClipSampling, seconds: float
) -> list[Segment]:
    """Segments of about `seconds` each (the last 0.5 to 1.5 times as long), in order; one where it cannot be split.

    duration_seconds: of the video, as `probe` gives it; None for what has no known length or cannot be sought in. Clips
    are never split. What is too long or too short by the header loses nothing: the last segment goes to the end.
    """
    if isinstance(sampling, ClipSampling) or duration_seconds is None:
        return [WHOLE]
    length = segment_frames(encoder, sampling, seconds)
    end = duration_seconds if sampling.end is None else min(sampling.end, duration_seconds)
    asked = end - (sampling.start or 0.0)
    if not 0 < asked < _LONGEST_DAYS * 86400:
        return [WHOLE]
    count = max(math.floor(asked * sampling.fps / length + 0.5), 1)
    stops: list[int | None] = [length * number for number in range(1, count)]
    return [Segment(length * number, stop) for number, stop in enumerate([*stops, None])]


def read_segment(
    source: Source, encoder: Encoder, sampling: Sampling | ClipSampling, segment: Segment
) -> Iterator[Chunk | Finished]:
    """As `read_chunks`: the chunks of a segment, which begins with an I-frame, then exactly one `Finished`.

    With a fixed plan and a frame for every target, and with segments that `split` made, they are the chunks of the
    whole video. There may be none.
    Raises ValueError for a segment of clips, or one that does not begin where an I-frame may be.
    """
    targets = None if segment == WHOLE else TargetRange(first=segment.first, stop=segment.stop)
    return read_chunks(source, encoder, sampling, targets)


def join(
    segments: Iterable[SegmentFeatures], encoder: Encoder, sampling: Sampling | ClipSampling, dtype: str
) -> VideoFeatures:
    """The features of the whole video from those of its segments, in order: what `encode_video` gives.

    segments: a generator that loads one after the other needs no more memory than the result and one of them.
    Where the plan may be another than that of a video read in one piece (a plan that the content decides, or fewer
    frames than targets before some segment), settings["segments"] has the seconds at which segments began anew.
    Raises SegmentsError where they do not fit together, VideoError where one was not read.
    """
    gatherer, seams = AllFeatures(encoder, dtype), _Seams()
    starts: list[float] = []
    rows, macs, same_plan = 0, 0.0, encoder.plan == "fixed"
    for each in segments:
        seams.add(each)
        if not len(each.times):
            continue
        if rows:
            starts.append(float(each.times[0]))
            same_plan = same_plan and each.segment.first == rows
        gatherer.extend(each.times, each.roles, each.embeddings)
        rows, macs = rows + len(each.times), macs + each.macs
    finished = seams.finish()
    facts = facts_of(finished, encoder, sampling, dtype, rows=rows, last=seams.last, macs=macs)
    if starts and not same_plan and encoder.group_size > 1:
        facts["settings"]["segments"] = starts
    return gatherer.finish(facts)


class _Seams:
    """Whether segments fit together, as they come, and what is known of the whole."""

    def __init__(self) -> None:
        self.last = -math.inf
        self._segment: Segment | None = None
        self._finished = Finished()
        self._motion_source: str | None = None
        self._damage: list[list[str]] = []

    def add(self, features: SegmentFeatures) -> None:
        """The next. Raises SegmentsError, or the error with which reading it broke off."""
        segment, finished = features.segment, features.finished
        if finished.error is not None:
            raise finished.error
        name, before = finished.video.get("path"), self._segment
        if segment.first != (0 if before is None else before.stop):
            raise SegmentsError(f"{name}: segment {segment} cannot follow {before}; pass all of them, in order")
        if before is not None:
            if _lasting(finished) != _lasting(self._finished):
                raise SegmentsError(f"{name}: the file changed while it was read in segments; read it again")
            if _plain(self._finished.tail) != _plain(finished.head):
                raise SegmentsError(
                    f"{name}: seeking to target {segment.first} does not lead where reading up to it does (another "
                    "picture is there, or another time); it must be read in one piece"
                )
            if len(features.times) and not features.times[0] > self.last:
                raise SegmentsError(
                    f"{name}: a segment begins at {features.times[0]:.3f} s, not after {self.last:.3f} s where the one "
                    "before it ends; it must be read in one piece"
                )
        if len({self._motion_source, finished.motion_source} - {None}) > 1:
            raise SegmentsError(f"{name}: segments measured motion in different ways; it must be read in one piece")
        self._motion_source = self._motion_source or finished.motion_source
        self._damage.append(finished.damage)
        self._segment, self._finished = segment, finished
        if len(features.times):
            self.last = float(features.times[-1])

    def finish(self) -> Finished:
        """Of the whole video. Raises SegmentsError where its end is missing, or there is no frame."""
        name = self._finished.video.get("path")
        if self._segment is None or self._segment.stop is not None:
            raise SegmentsError(f"{name}: the last segment is missing; pass all of them, in order")
        if self.last == -math.inf:
            raise SegmentsError(f"{name}: no frame in any segment; it must be read in one piece")
        return replace(self._finished, motion_source=self._motion_source, damage=merged_damage(self._damage))


def merged_damage(lists: Sequence[Sequence[str]]) -> list[str]:
    """What was damaged in parts of one video that may overlap: a place that two of them saw is there once."""
    lines: list[str] = []
    seen: Counter[str] = Counter()
    more = 0
    for damage in lists:
        here: Counter[str] = Counter()
        for line in damage:
            if unlisted := re.fullmatch(r"and (\d+) more places", line):
                more += int(unlisted[1])
                continue
            here[line] += 1
            if here[line] > seen[line]:
                lines.append(line)
        seen |= here
    more += max(len(lines) - _MOST_DAMAGE, 0)
    return [*lines[:_MOST_DAMAGE], *([f"and {more} more places"] if more else [])]


def _lasting(finished: Finished) -> dict[str, object]:
    """What is the same for every segment of a file, as long as nobody changes it."""
    return {key: value for key, value in finished.video.items() if key != "duration_seconds"}


def _plain(seam: Sequence[float | int | None] | None) -> list[float | int | None] | None:
    return None if seam is None else list(seam)
