"""Moments from the nearest frames: which rows to read around them, and when to stop.

A moment's score is the highest value of the smoothed curve. So one of the frames it averages scores that high by
itself, and the frames nearest to the query lead to all moments that can win. How high the curve can be near them
follows from their scores; the highest are read first, each with the frames around it, until the run it is in is whole
(`everyframe.library.moments` says why that is enough). It ends when nothing that was not read can be an answer. Where
not even that is certain after all near frames, more are asked for.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from everyframe.library.hits import ArchiveHit, Best, Question
from everyframe.library.moments import SMOOTH_SECONDS, Part, Peaked, part_of_curve, whole_curve
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
# So many places are read at once, at least, and whole videos where it has to be those.
_READS_AT_ONCE, _VIDEOS_AT_ONCE = 10, 4
# Read at first on both sides of near frames.
_FIRST_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Neighbouring rows [first, past) of a video around near frames: their times; no moment there is above `bound`."""

    video: VideoRecord
    first: int
    past: int
    near: NDArray[np.float64]
    bound: float


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

    def is_known(self, place: _Place) -> bool:
        """Are all near frames of a place in runs that are known?"""
        left = np.ones(len(place.near), bool)
        for run in self.runs.get(place.video.id, {}).values():
            left &= (place.near < run.start) | (place.near >= run.end)
        return not left.any()

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
        near = nearest(
            question.table,
            question.direction,
            count,
            where=_condition(progress),
            among=question.collection.num_frames,
        )
        _take(progress, near, ids)
        if progress.best.settled(near.bound) or near.bound == -math.inf:
            break
        before = len(progress.aside)
        _set_aside(progress, near, count)
        if not known.keys() - progress.aside:
            break
        if len(progress.aside) == before:  # else there is room for others now
            count *= _MORE
    else:
        if min(len(question.left_out), len(question.videos)) > MOST_LISTED:
            return _in_lists(question)
    return progress.best.hits


def _take(progress: _Progress, near: Near, ids: NDArray[np.int64]) -> None:
    """The answers that near frames lead to; those of videos that may not be found are passed over."""
    ours = near.only(np.isin(near.video, ids))
    if progress.question.of_rows:
        _rows(progress, ours)
    elif progress.question.rule.smooth == SMOOTH_SECONDS:
        _moments(progress, ours)
    else:
        _moments_of_whole_videos(progress, ours)


def _in_lists(question: Question) -> list[ArchiveHit]:
    """Where frames of videos that may not be found took every place: ask for the others alone, a list at a time."""
    best = Best(question)
    for first in range(0, len(question.videos), MOST_LISTED):
        some = {video.id: video for video in question.videos[first : first + MOST_LISTED]}
        found: dict[int, list[Peaked]] = {}
        for hit in lookup(replace(question, videos=list(some.values()))):
            found.setdefault(hit.id, []).append(Peaked(hit.start, hit.end, hit.score, hit.peak))
        for name, answers in found.items():
            best.put(some[name], answers)
    return best.hits


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
    """Read the runs around near frames, those first that may be highest, until the next one can be no answer."""
    best, many = progress.best, max(_READS_AT_ONCE, progress.question.top)
    waiting = deque(sorted(_places(progress, near), key=lambda place: -place.bound))
    reading: list[_Place] = []
    while waiting or reading:
        bound = max(place.bound for place in (*reading, *list(waiting)[:1]))
        if best.settled(bound):
            return
        while waiting and len(reading) < many and not best.settled(waiting[0].bound):
            place = waiting.popleft()
            if not progress.is_known(place):
                reading.append(place)
        if reading:
            reading = _read(progress, reading)


def _places(progress: _Progress, near: Near) -> Iterator[_Place]:
    """Near frames that are close together, and the rows around them."""
    known, smooth = progress.known, progress.question.rule.smooth
    order = np.lexsort((near.row, near.video))
    rows, times, scores = near.row[order], near.time[order], near.score[order]
    # No frame of the videos that were asked for, but for the near ones, scores higher.
    others = float(scores.min()) if near.bound == -math.inf and len(scores) else near.bound
    for name, here in runs_of_videos(near.video[order]):
        video = known[name]
        fewest = max(1, min(int(_rate(video) * smooth / 2), video.num_frames))
        highest = _highest_averages(times[here], scores[here], others, fewest, smooth)
        apart = np.flatnonzero(np.diff(rows[here]) > math.ceil(_rate(video) * smooth) + 1) + 1
        around = min(math.ceil(_rate(video) * _FIRST_SECONDS), video.num_frames) + 1
        for own in np.split(np.arange(here.stop - here.start), apart):
            first, past = int(rows[here][own[0]]) - around, int(rows[here][own[-1]]) + around + 1
            bound = float(highest[own].max()) + DISTANCE_EPSILON
            yield _Place(video=video, first=first, past=past, near=np.sort(times[here][own]), bound=bound)


def _rate(video: VideoRecord) -> float:
    return (video.num_frames - 1) / max(video.last - video.start, 1e-3)


def _highest_averages(
    times: NDArray[np.float64], scores: NDArray[np.float32], others: float, fewest: int, smooth: float
) -> NDArray[np.float64]:
    """For each near frame the highest that a moving average can be whose first near frame it is: float64 [n].

    times, scores: of the near frames of a video. An average is over `fewest` frames or more; those that are not near
    score at most `others`. Of more than twice as many, some `fewest` neighbours have no lower average.
    """
    sums = np.concatenate([[0.0], np.cumsum(scores, dtype=np.float64)])
    highest = np.full(len(times), -np.inf)
    for size in range(1, min(2 * fewest, len(times) + 1)):
        first = slice(0, len(times) - size + 1)
        average = (sums[size:] - sums[:-size] + max(fewest - size, 0) * others) / max(size, fewest)
        together = times[size - 1 :] - times[first] <= smooth + 1e-5
        highest[first] = np.maximum(highest[first], np.where(together, average, -np.inf))
    return highest


def _read(progress: _Progress, places: list[_Place]) -> list[_Place]:
    """Find the runs around places; returns the places where they go on, with more rows."""
    question, runs = progress.question, progress.runs
    # All in one: a request for rows costs as much as a thousand of them.
    rows = progress.rows.at(np.concatenate([np.arange(place.first, place.past) for place in places]))
    larger: list[_Place] = []
    touched: dict[int, VideoRecord] = {}
    whole: dict[int, VideoRecord] = {}
    for place in places:
        part = _part(rows, place)
        if part is None:
            whole[place.video.id] = place.video
            continue
        known = part_of_curve(part, place.near, place.video.end, question.level(place.video), question.rule.smooth)
        if known.more_before or known.more_after:
            length = place.past - place.first
            first, past = place.first - length * known.more_before, place.past + length * known.more_after
            larger.append(replace(place, first=first, past=past))
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
