"""Moments from the nearest frames: which rows to read around them, and when to stop."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from everyframe.library.hits import ArchiveHit, Best, Question
from everyframe.library.moments import SMOOTH_SECONDS, Part, Peaked, part_of_curve, values_near, whole_curve
from everyframe.library.reading import (
    DISTANCE_EPSILON,
    Near,
    Rows,
    ScoredRows,
    condition,
    curves,
    nearest,
    runs_of_videos,
    times_of,
)
from everyframe.library.records import VideoRecord

MOST_LISTED = 10_000
"""Videos in one SQL condition; 10,000 cost as much as three searches."""

# How many of the nearest frames are asked for, at least and for each answer; more, so many times, while an answer may
# be missing.
_FEWEST, _EACH, _MORE, _ROUNDS = 1024, 16, 4, 3
# A video that holds more than this share of them is read as a whole, and the others are asked for without it.
_CROWDED = 1 / 8
# So many places are looked at at once, so many are read at least, and whole videos where it has to be those.
_LOOKS_AT_ONCE, _READS_AT_ONCE, _VIDEOS_AT_ONCE = 48, 10, 4
# Read at first on both sides of near frames.
_FIRST_SECONDS = 15.0


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Neighbouring rows [first, past) of a video, around near frames: their times, and the best one's score."""

    video: VideoRecord
    first: int
    past: int
    near: NDArray[np.float64]
    best: float

    @property
    def rows(self) -> NDArray[np.int64]:
        """The places of its rows in the table."""
        return np.arange(self.first, self.past)

    def wider(self, seconds: float) -> _Place:
        """With so many seconds more on both sides, if the video's frames are regular."""
        rows = _rows_in(self.video, seconds)
        return replace(self, first=self.first - rows, past=self.past + rows)


@dataclass(frozen=True)
class _Reading:
    """A place around which runs are being read; none of them is higher than `bound`."""

    bound: float
    place: _Place


@dataclass(frozen=True, order=True)
class _Value:
    """The highest smoothed score that is waiting at a place, negative, so that the first in order is the highest."""

    negative: float
    number: int
    place: _Place = field(compare=False)
    times: NDArray[np.float64] = field(compare=False)
    values: NDArray[np.float32] = field(compare=False)

    @property
    def highest(self) -> float:
        return -self.negative


@dataclass(frozen=True)
class _Progress:
    """What is known so far.

    known: the videos that may be found, by id. runs: of the smoothed curve, by video and start. aside: videos that
    need not be asked for any more, because nothing is missing of them that could be an answer, or because they are none
    of those that may be found.
    """

    question: Question
    known: dict[int, VideoRecord]
    best: Best
    rows: ScoredRows
    runs: dict[int, dict[float, Peaked]]
    aside: set[int]

    def answers(self, video: VideoRecord) -> list[Peaked]:
        """From its runs."""
        return self.question.rule.choose(list(self.runs.get(video.id, {}).values()), video.start, video.end)

    def read(self, videos: list[VideoRecord]) -> None:
        """All frames of some videos, which are set aside then."""
        for video, times, scores in curves(self.question.table, videos, self.question.direction):
            self.best.put(video, self.question.answers(video, times, scores))
            self.aside.add(video.id)


def lookup(question: Question) -> list[ArchiveHit]:
    """The answers to a question, from the frames that are nearest to it; `Searcher.search` says what may be missing."""
    known = {video.id: video for video in question.videos}
    rows = ScoredRows(question.table, question.direction)
    progress = _Progress(question, known, Best(question), rows, {}, set())
    ids = np.fromiter(known, np.int64, len(known))
    count = max(_FEWEST, _EACH * question.top)
    for _ in range(_ROUNDS):
        near = nearest(question.table, question.direction, count, where=_condition(progress))
        ours = near.only(np.isin(near.video, ids))
        if question.of_rows:
            _rows(progress, ours)
        elif question.rule.smooth == SMOOTH_SECONDS:
            _moments(progress, ours)
        else:
            _moments_of_whole_videos(progress, ours)
        if progress.best.settled(near.bound) or near.bound == -math.inf:
            break
        before = len(progress.aside)
        _set_aside(progress, near, count)
        if not known.keys() - progress.aside:
            break
        if len(progress.aside) == before:  # else there is room for others now
            count *= _MORE
    return progress.best.hits


def _set_aside(progress: _Progress, near: Near, count: int) -> None:
    """Videos of which nothing can be missing, and, after reading them, those that leave no room for others."""
    question, crowded = progress.question, []
    for name, rows in Counter(near.video.tolist()).items():
        video = progress.known.get(name)
        if video is None:
            progress.aside.add(name)
        elif question.of_rows:
            if rows >= question.rule.per_video:
                progress.aside.add(name)
        elif name not in progress.aside:
            found = progress.answers(video)
            if len(found) == question.rule.per_video and found[-1].score >= near.bound:
                progress.aside.add(name)
            elif rows > _CROWDED * count:
                crowded.append(video)
    progress.read(crowded)


def _condition(progress: _Progress) -> str | None:
    """What near frames have to meet. Where no short list says it, frames of other videos are among them."""
    question, aside = progress.question, progress.aside
    wanted = progress.known.keys() - aside
    others = aside | set(question.left_out)
    if question.left_out and (len(wanted) <= min(len(others), MOST_LISTED) or len(wanted) < len(others) / 8):
        return condition(wanted)
    unwanted = others if len(others) <= MOST_LISTED else aside
    return condition(unwanted, inside=False) if unwanted else None


# --- moments ---------------------------------------------------------------------------------------------


def _moments(progress: _Progress, near: Near) -> None:
    """Look at places around near frames, the best first, and read the moments that may be answers.

    Looking takes few rows and tells how high the smoothed curve is there. Where it is high, the whole run is read. It
    ends when no place that was not looked at, waits or is being read can be an answer.
    """
    question, best = progress.question, progress.best
    places = sorted(_places(progress.known, near), key=lambda place: -place.best)
    looked = many = max(_READS_AT_ONCE, question.top)
    reading = [_Reading(place.best, place.wider(_FIRST_SECONDS)) for place in places[:many]]
    waiting: list[_Value] = []
    while True:
        _drop_known(waiting, progress.runs)
        unseen = places[looked].best if looked < len(places) else -math.inf
        highest = waiting[0].highest if waiting else -math.inf
        bound = max(unseen, highest, *(each.bound for each in reading))
        if bound == -math.inf or best.settled(bound):
            return
        looks = places[looked : looked + _LOOKS_AT_ONCE] if unseen > highest else []
        while waiting and len(reading) < many:
            value = heapq.heappop(waiting)
            reading.append(_Reading(value.highest, value.place.wider(_FIRST_SECONDS)))
        # All in one: a request for rows costs as much as a thousand of them.
        rows = progress.rows.at(np.concatenate([each.rows for each in (*looks, *(each.place for each in reading))]))
        reading = _read(progress, rows, reading)
        for value in _look(progress, rows, looks, looked):
            heapq.heappush(waiting, value)
        looked += len(looks)


def _places(known: dict[int, VideoRecord], near: Near) -> Iterator[_Place]:
    """Near frames that are close together, with as many rows as it takes to look at them."""
    order = np.lexsort((near.row, near.video))
    rows, times, scores = near.row[order], near.time[order], near.score[order]
    for name, here in runs_of_videos(near.video[order]):
        video = known[name]
        reach = _rows_in(video, 1.25 * SMOOTH_SECONDS)
        for own in np.split(np.arange(here.start, here.stop), np.flatnonzero(np.diff(rows[here]) > 2 * reach) + 1):
            first, past = int(rows[own[0]]) - reach, int(rows[own[-1]]) + reach + 1
            highest = float(scores[own].max()) + DISTANCE_EPSILON
            yield _Place(video=video, first=first, past=past, near=np.sort(times[own]), best=highest)


def _rows_in(video: VideoRecord, seconds: float) -> int:
    per_second = (video.num_frames - 1) / max(video.last - video.start, 1e-3)
    return min(math.ceil(seconds * per_second), video.num_frames) + 1


def _look(progress: _Progress, rows: Rows, places: list[_Place], number: int) -> Iterator[_Value]:
    """How high the smoothed curve is near the near frames; places where it does not reach the level are left out.

    number: of the first place, for order among equals.
    """
    question = progress.question
    for count, place in enumerate(places, start=number):
        part = _part(rows, place)
        found = None
        if part is not None:
            found = values_near(part, place.near, question.level(place.video), question.rule.smooth)
        if found is None:  # to be read; the scores themselves are as high as their averages can be
            yield _Value(-place.best, count, place, place.near, np.full(len(place.near), place.best, np.float32))
        elif len(found[0]):
            yield _Value(-float(found[1].max()), count, place, *found)


def _drop_known(waiting: list[_Value], runs: dict[int, dict[float, Peaked]]) -> None:
    """Until the first that waits is in no run that is known."""
    while waiting:
        first = waiting[0]
        left = np.ones(len(first.times), bool)
        for run in runs.get(first.place.video.id, {}).values():
            left &= (first.times < run.start) | (first.times >= run.end)
        if left.all():
            return
        heapq.heappop(waiting)
        if left.any():
            times, values = first.times[left], first.values[left]
            heapq.heappush(waiting, _Value(-float(values.max()), first.number, first.place, times, values))


def _read(progress: _Progress, rows: Rows, reading: list[_Reading]) -> list[_Reading]:
    """Find the runs around places; returns those that go on, with more rows."""
    question, runs = progress.question, progress.runs
    larger: list[_Reading] = []
    touched: dict[int, VideoRecord] = {}
    whole: dict[int, VideoRecord] = {}
    for each in reading:
        place = each.place
        part = _part(rows, place)
        if part is None:
            whole[place.video.id] = place.video
            continue
        known = part_of_curve(part, place.near, place.video.end, question.level(place.video), question.rule.smooth)
        if known.more_before or known.more_after:
            length = place.past - place.first
            first, past = place.first - length * known.more_before, place.past + length * known.more_after
            larger.append(replace(each, place=replace(place, first=first, past=past)))
            continue
        touched[place.video.id] = place.video
        runs.setdefault(place.video.id, {}).update((run.start, run) for run in known.found)
    for video, times, scores in curves(question.table, list(whole.values()), question.direction):
        touched[video.id] = video
        found = whole_curve(times, scores, video.end, question.rule)
        runs.setdefault(video.id, {}).update((run.start, run) for run in found)
    for video in touched.values():
        progress.best.put(video, progress.answers(video))
    return larger


def _part(rows: Rows, place: _Place) -> Part | None:
    """What was read of a place, or None if rows are missing in it: a video's rows may be in two files."""
    rows = rows.between(place.first, place.past)
    own = rows.video == place.video.id
    row, times = rows.row[own], rows.time[own]
    if not len(row):
        return None
    at_start, at_end = times[0] == place.video.start, times[-1] == place.video.last
    together = row[-1] - row[0] == len(row) - 1 and (np.diff(times) > 0).all()
    reached = (at_start or row[0] == place.first) and (at_end or row[-1] == place.past - 1)
    if not (together and reached and times[0] <= place.near[0] and place.near[-1] <= times[-1]):
        return None
    return Part(times=times, scores=rows.score[own], at_start=bool(at_start), at_end=bool(at_end))


def _moments_of_whole_videos(progress: _Progress, near: Near) -> None:
    """As `_moments`, where the level is not stored: all frames of the videos that near frames are of."""
    peaks: dict[int, float] = {}
    for name, score in zip(near.video.tolist(), near.score.tolist(), strict=True):
        peaks[name] = max(score + DISTANCE_EPSILON, peaks.get(name, -math.inf))
    ranked = sorted(peaks, key=lambda name: -peaks[name])
    for first in range(0, len(ranked), _VIDEOS_AT_ONCE):
        if progress.best.settled(peaks[ranked[first]]):
            return
        progress.read([progress.known[name] for name in ranked[first : first + _VIDEOS_AT_ONCE]])


# --- rows ------------------------------------------------------------------------------------------------


def _rows(progress: _Progress, near: Near) -> None:
    """Clips: near rows are answers; each ends where the next row of its video begins."""
    question, known = progress.question, progress.known
    rows = progress.rows.at(np.concatenate([near.row, near.row + 1]))
    found: dict[int, list[Peaked]] = {}
    for place in np.searchsorted(rows.row, np.sort(near.row)).tolist():
        name, time = int(rows.video[place]), float(rows.time[place])
        following = place + 1 < len(rows.row) and rows.row[place + 1] == rows.row[place] + 1
        if time == known[name].last:
            end = known[name].end
        elif following and rows.video[place + 1] == name:
            end = float(rows.time[place + 1])
        else:  # in another file
            times, _ = times_of(question.table, name)
            end = float(times[np.searchsorted(times, time, side="right")])
        found.setdefault(name, []).append(Peaked(time, end, rows.score[place], time))
    for name, answers in found.items():
        answers.sort(key=lambda answer: -answer.score)
        progress.best.put(known[name], answers[: question.rule.per_video])
