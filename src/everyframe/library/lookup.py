"""Moments from the nearest frames: which rows to read around them, and when to stop."""

from __future__ import annotations

import math
from collections import Counter
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
    condition,
    curves,
    nearest,
    rows_at,
    runs_of_videos,
    times_of,
)
from everyframe.library.records import VideoRecord

MOST_LISTED = 10_000
"""Videos in one SQL condition; 10,000 cost as much as three searches."""

# How many of the nearest frames are asked for, at least and for each answer; four times as many while an answer may
# be missing.
_FEWEST, _EACH, _ROUNDS = 1024, 16, (1, 4)
# A video that holds more than this share of them is read as a whole, and the others are asked for without it.
_CROWDED = 1 / 8
# So many places are read at once, and whole videos where it has to be those.
_PLACES_AT_ONCE, _VIDEOS_AT_ONCE = 16, 4
# Read at first on both sides of a near frame.
_FIRST_SECONDS = 15.0


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Neighbouring rows [first, past) of a video; near: when the near frames in it are, best: the score of the best."""

    video: VideoRecord
    first: int
    past: int
    near: NDArray[np.float64]
    best: float


@dataclass(frozen=True)
class _Known:
    """Of a video: its runs by their start, and spans of time, [first, last], around which all was read."""

    runs: dict[float, Peaked]
    spans: list[tuple[float, float]]


_Runs = dict[int, _Known]


def lookup(question: Question) -> list[ArchiveHit]:
    """The answers to a question, from the frames that are nearest to it; `Searcher.search` says what may be missing."""
    best = Best(question)
    known = {video.id: video for video in question.videos}
    ids = np.fromiter(known, np.int64, len(known))
    runs: _Runs = {}
    aside: set[int] = set()  # not asked for any more: known as a whole, or none of the library's
    for more in _ROUNDS:
        count = more * max(_FEWEST, _EACH * question.top)
        near = nearest(question.table, question.direction, count, where=_condition(question, known, aside))
        ours = near.only(np.isin(near.video, ids))
        if question.of_rows:
            _rows(question, known, ours, best)
        elif question.rule.smooth == SMOOTH_SECONDS:
            _moments(question, known, ours, best, runs)
        else:
            _moments_of_whole_videos(question, known, ours, best)
        if best.settled(near.bound) or near.bound == -math.inf:
            break
        counts = Counter(near.video.tolist())
        aside.update(video for video in counts if video not in known)
        crowded = [known[video] for video, rows in counts.items() if video in known and rows > _CROWDED * count]
        if not question.of_rows:  # of the rows of a video the best are there already
            for video, times, scores in curves(question.table, crowded, question.direction):
                best.put(video, question.answers(video, times, scores))
        aside.update(video.id for video in crowded)
        if not known.keys() - aside:
            break
    return best.hits


def _condition(question: Question, known: dict[int, VideoRecord], aside: set[int]) -> str | None:
    """What near frames have to meet. Where no short list says it, frames of other videos are among them."""
    wanted = known.keys() - aside
    others = aside | set(question.left_out)
    if question.left_out and (len(wanted) <= min(len(others), MOST_LISTED) or len(wanted) < len(others) / 8):
        return condition(wanted)
    unwanted = others if len(others) <= MOST_LISTED else aside
    return condition(unwanted, inside=False) if unwanted else None


# --- moments ---------------------------------------------------------------------------------------------


def _moments(question: Question, known: dict[int, VideoRecord], near: Near, best: Best, runs: _Runs) -> None:
    """Read places around the near frames, the best first, until the next one cannot have an answer.

    runs: what earlier rounds found, to be added to.
    """
    places = sorted(_places(known, near), key=lambda place: -place.best)
    for first in range(0, len(places), _PLACES_AT_ONCE):
        if best.settled(places[first].best):
            return
        asked = [place for place in places[first : first + _PLACES_AT_ONCE] if not _is_known(runs, place)]
        touched = {}
        for place, found in _read(question, asked) if asked else ():
            mine = runs.setdefault(place.video.id, _Known({}, []))
            mine.runs.update((run.start, run) for run in found)
            mine.spans.append((float(place.near.min()), float(place.near.max())))
            touched[place.video.id] = place.video
        for video in touched.values():
            best.put(video, question.rule.choose(list(runs[video.id].runs.values()), video.start, video.end))


def _is_known(runs: _Runs, place: _Place) -> bool:
    """Was all around the near frames of a place read already?"""
    spans = runs[place.video.id].spans if place.video.id in runs else []
    return any(first <= place.near.min() and place.near.max() <= last for first, last in spans)


def _places(known: dict[int, VideoRecord], near: Near) -> Iterator[_Place]:
    order = np.lexsort((near.row, near.video))
    rows, times, scores = near.row[order], near.time[order], near.score[order]
    for name, here in runs_of_videos(near.video[order]):
        video = known[name]
        per_second = (video.num_frames - 1) / max(video.last - video.start, 1e-3)
        reach = min(math.ceil(_FIRST_SECONDS * per_second), video.num_frames) + 1
        for own in np.split(np.arange(here.start, here.stop), np.flatnonzero(np.diff(rows[here]) > 2 * reach) + 1):
            yield _Place(
                video=video,
                first=int(rows[own[0]]) - reach,
                past=int(rows[own[-1]]) + reach + 1,
                near=times[own],
                best=float(scores[own].max()) + DISTANCE_EPSILON,
            )


def _read(question: Question, places: list[_Place]) -> Iterator[tuple[_Place, list[Peaked]]]:
    """Runs of the curve around places; where one goes on, more is read."""
    whole: dict[int, _Place] = {}
    while places:
        rows = rows_at(question.table, np.concatenate([np.arange(each.first, each.past) for each in places]))
        scores = question.direction.scores(rows.embedding)
        larger = []
        for place in places:
            part = _part(rows, scores, place)
            if part is None:
                whole[place.video.id] = place
                continue
            level = question.level(place.video)
            runs = part_of_curve(part, place.near, place.video.end, level, question.rule.smooth)
            if runs.more_before or runs.more_after:
                length = place.past - place.first
                first, past = place.first - length * runs.more_before, place.past + length * runs.more_after
                larger.append(replace(place, first=first, past=past))
            else:
                yield place, runs.found
        places = larger
    videos = [place.video for place in whole.values()]
    for video, times, values in curves(question.table, videos, question.direction):
        yield replace(whole[video.id], near=times), whole_curve(times, values, video.end, question.rule)


def _part(rows: Rows, scores: NDArray[np.float32], place: _Place) -> Part | None:
    """What was read of a place, or None if rows are missing in it: a video's rows may be in two files."""
    span = slice(*np.searchsorted(rows.row, [place.first, place.past]))
    own = np.flatnonzero(rows.video[span] == place.video.id) + span.start
    if not len(own):
        return None
    row, times = rows.row[own], rows.time[own]
    at_start, at_end = times[0] == place.video.start, times[-1] == place.video.last
    together = row[-1] - row[0] == len(row) - 1 and (np.diff(times) > 0).all()
    reached = (at_start or row[0] == place.first) and (at_end or row[-1] == place.past - 1)
    if not (together and reached and times[0] <= place.near.min() and place.near.max() <= times[-1]):
        return None
    return Part(times=times, scores=scores[own], at_start=bool(at_start), at_end=bool(at_end))


def _moments_of_whole_videos(question: Question, known: dict[int, VideoRecord], near: Near, best: Best) -> None:
    """As `_moments`, where the level is not stored: all frames of the videos that near frames are of."""
    peaks: dict[int, float] = {}
    for name, score in zip(near.video.tolist(), near.score.tolist(), strict=True):
        peaks[name] = max(score + DISTANCE_EPSILON, peaks.get(name, -math.inf))
    ranked = sorted(peaks, key=lambda name: -peaks[name])
    for first in range(0, len(ranked), _VIDEOS_AT_ONCE):
        if best.settled(peaks[ranked[first]]):
            return
        videos = [known[name] for name in ranked[first : first + _VIDEOS_AT_ONCE]]
        for video, times, scores in curves(question.table, videos, question.direction):
            best.put(video, question.answers(video, times, scores))


# --- rows ------------------------------------------------------------------------------------------------


def _rows(question: Question, known: dict[int, VideoRecord], near: Near, best: Best) -> None:
    """Clips: near rows are answers; each ends where the next row of its video begins."""
    rows = rows_at(question.table, np.concatenate([near.row, near.row + 1]))
    scores = question.direction.scores(rows.embedding)
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
        found.setdefault(name, []).append(Peaked(time, end, scores[place], time))
    for name, answers in found.items():
        answers.sort(key=lambda answer: -answer.score)
        best.put(known[name], answers[: question.rule.per_video])
