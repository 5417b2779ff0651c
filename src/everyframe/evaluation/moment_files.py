"""Queries and their moments: the official annotation files of grounding, and other people's predictions.

`read_moments` guesses the layout from the content; `LAYOUTS` lists them all. A file that is not of its layout is an
AnnotationError with file and line; single entries that mean nothing (a window that ends before it starts, a qid that
occurs twice) are left out and listed, and the rest goes on.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from everyframe.evaluation.reading import AnnotationError, Raw, read_raw, table, text_of

Span = tuple[float, float]
# Ends that were rounded to hundredths of a second do not lie outside the video.
_ROUNDING = 0.005
_ID_COLUMNS = ("id", "vid", "video", "video_id", "name")
_LENGTH_COLUMNS = ("length", "duration", "seconds", "video_duration")


@dataclass(frozen=True, kw_only=True)
class MomentQuery:
    """A sentence, and when it happens in its video: windows (start, end) in seconds, any of which answers it."""

    qid: str
    video: str
    text: str
    windows: tuple[Span, ...]
    duration: float | None = None
    clips: tuple[int, ...] = ()
    """QVHighlights: relevant clips of 2 s, from 0."""
    saliency: tuple[tuple[float, ...], ...] = ()
    """For each of them what its annotators gave, 0 to 4."""


@dataclass(frozen=True)
class Fault:
    """An entry that cannot be used, or only in part: where it is, and what is wrong."""

    where: str
    why: str

    def __str__(self) -> str:
        return f"{self.where}: {self.why}"


@dataclass(frozen=True, kw_only=True)
class MomentSet:
    """The queries of one annotation file. clipped: windows that were cut to their video's duration."""

    queries: tuple[MomentQuery, ...]
    layout: str
    path: str
    sha256: str
    faults: tuple[Fault, ...] = ()
    clipped: int = 0

    def __post_init__(self) -> None:
        if not self.queries:
            first = f": {self.faults[0]}" if self.faults else ""
            raise AnnotationError(f"{self.path}: has no query that can be used{first}")

    @property
    def videos(self) -> tuple[str, ...]:
        """Each video once, in the order of the file."""
        return tuple(dict.fromkeys(query.video for query in self.queries))

    @property
    def without_duration(self) -> tuple[str, ...]:
        """Videos whose length the file does not give."""
        return tuple(dict.fromkeys(query.video for query in self.queries if query.duration is None))

    @property
    def outside(self) -> int:
        """How many windows reach beyond their video, as far as its length is known."""
        return sum(
            window != _clipped(window, query.duration, _ROUNDING) for query in self.queries for window in query.windows
        )

    def with_durations(self, seconds: Mapping[str, float]) -> MomentSet:
        """The lengths of videos that the file does not give."""
        queries = (
            replace(query, duration=seconds.get(query.video)) if query.duration is None else query
            for query in self.queries
        )
        return replace(self, queries=tuple(queries))

    def clip(self) -> MomentSet:
        """Every window cut to its video, where its length is known; `clipped` counts those that changed."""
        queries, changed = [], 0
        for query in self.queries:
            windows = tuple(_clipped(window, query.duration) for window in query.windows)
            changed += sum(new != old for new, old in zip(windows, query.windows, strict=True))
            queries.append(replace(query, windows=windows))
        return replace(self, queries=tuple(queries), clipped=self.clipped + changed)

    def of_videos(self, videos: set[str]) -> MomentSet:
        """The queries of these videos. Raises AnnotationError for none."""
        return replace(self, queries=tuple(query for query in self.queries if query.video in videos))

    def facts(self) -> dict[str, Any]:
        """What a report must name to be comparable."""
        return {
            "path": self.path,
            "split": Path(self.path).stem,
            "sha256": self.sha256,
            "layout": self.layout,
            "queries": len(self.queries),
            "videos": len(self.videos),
            "windows_clipped": self.clipped,
            "windows_outside": self.outside,
            "left_out": [str(fault) for fault in self.faults],
        }


@dataclass(frozen=True)
class Layout:
    """One kind of annotation file."""

    about: str
    recognises: Callable[[Raw], bool]
    queries: Callable[[Raw], Iterator[tuple[str, MomentQuery]]]
    """The words that name an entry's place, and the entry; windows may still be reversed."""


def read_moments(
    path: str | os.PathLike[str],
    *,
    layout: str | None = None,
    durations: Mapping[str, float] | None = None,
    clip_gt: bool = False,
) -> MomentSet:
    """Read the queries of a grounding benchmark.

    layout: one of `LAYOUTS`; guessed from the content where it can be. durations: seconds of videos, where the file
    does not give them (`read_durations`). clip_gt: cut windows to the video; the result counts how many.

    A query is left out, and listed in `faults`, where a window ends before it starts or its qid occurred before.
    Raises AnnotationError, which names file and line, for a file that cannot be used.
    """
    raw = read_raw(path).as_lines("qid")
    name = layout or _guess(raw)
    if name not in LAYOUTS:
        raise AnnotationError(f"layout must be one of {', '.join(LAYOUTS)}, got {name!r}")
    if not LAYOUTS[name].recognises(raw):
        raise raw.wrong(f"is not a {name} file ({LAYOUTS[name].about}); leave out the layout")
    kept: dict[str, MomentQuery] = {}
    faults: list[Fault] = []
    for where, query in LAYOUTS[name].queries(raw):
        reversed_ones = [window for window in query.windows if window[1] < window[0]]
        if reversed_ones:
            start, end = reversed_ones[0]
            faults.append(Fault(where, f"window [{start:g}, {end:g}] of {query.video} ends before it starts"))
        elif query.qid in kept:
            faults.append(Fault(where, f"qid {query.qid} occurred before"))
        else:
            kept[query.qid] = query
    items = MomentSet(
        queries=tuple(kept.values()), layout=name, path=str(raw.path), sha256=raw.sha256, faults=tuple(faults)
    )
    items = items.with_durations(durations or {})
    return items.clip() if clip_gt else items


def read_durations(path: str | os.PathLike[str]) -> dict[str, float]:
    """Seconds of videos by their id: from a JSON object {id: seconds} or {id: {"duration": seconds}}, from JSON lines
    with vid and duration, or from a table with a header such as id,length (Charades_v1_test.csv). AnnotationError."""
    raw = read_raw(path)
    if raw.is_list:
        return {
            text_of(entry, ("vid", "video"), where): _seconds(entry.get("duration"), where, "duration")
            for where, entry in raw.entries()
        }
    if raw.is_dict:
        found = {}
        for video, value in raw.value.items():
            if isinstance(value, dict):
                value = value.get("duration", value.get("video_duration"))
            found[str(video)] = _seconds(value, f"{raw.path} key {video!r}", "duration")
        return found
    (_, header), *rows = table(raw)
    names = [name.lower() for name in header]
    ids, lengths = ([name for name in known if name in names] for known in (_ID_COLUMNS, _LENGTH_COLUMNS))
    if not ids or not lengths:
        raise raw.wrong(
            f"needs a header with a column {' or '.join(_ID_COLUMNS)} and one {' or '.join(_LENGTH_COLUMNS)}"
        )
    video, length = names.index(ids[0]), names.index(lengths[0])
    found = {}
    for where, fields in rows:
        if len(fields) != len(names):
            raise AnnotationError(f"{where}: has {len(fields)} columns where the header has {len(names)}")
        found[fields[video]] = _seconds(fields[length], where, names[length])
    return found


def _guess(raw: Raw) -> str:
    for name, layout in LAYOUTS.items():
        if layout.recognises(raw):
            return name
    raise raw.wrong(f"has no layout that is known here ({', '.join(LAYOUTS)})")


def _clipped(window: Span, duration: float | None, tolerance: float = 0.0) -> Span:
    if duration is None:
        return window
    start, end = (0.0 if -tolerance > time else duration if time > duration + tolerance else time for time in window)
    return start, end


def _seconds(value: Any, where: str, name: str) -> float:
    """A finite number, also as text. Raises AnnotationError."""
    try:
        seconds = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        seconds = float("nan")
    if not math.isfinite(seconds):
        raise AnnotationError(f"{where}: {name} must be a number of seconds, got {value!r}")
    return seconds


def _span(value: Any, where: str, name: str) -> Span:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise AnnotationError(f"{where}: {name} must be [start, end] in seconds, got {value!r}")
    return _seconds(value[0], where, name), _seconds(value[1], where, name)


def _list(entry: Mapping[str, Any], key: str, where: str) -> list[Any]:
    value = entry.get(key)
    if not isinstance(value, list):
        raise AnnotationError(f"{where}: {key} must be a list, got {value!r}")
    return value


def _lines(raw: Raw) -> Iterator[tuple[str, MomentQuery]]:
    for where, entry in raw.entries():
        spans = _list(entry, "relevant_windows", where)
        if not spans:
            raise AnnotationError(f"{where}: relevant_windows is empty; a split without ground truth cannot be scored")
        duration = None if entry.get("duration") is None else _seconds(entry["duration"], where, "duration")
        clips, saliency = _saliency(entry, duration, where)
        yield (
            where,
            MomentQuery(
                qid=text_of(entry, ("qid",), where),
                video=text_of(entry, ("vid",), where),
                text=text_of(entry, ("query",), where),
                windows=tuple(_span(span, where, "a window") for span in spans),
                duration=duration,
                clips=clips,
                saliency=saliency,
            ),
        )


def _saliency(
    entry: dict[str, Any], duration: float | None, where: str
) -> tuple[tuple[int, ...], tuple[tuple[float, ...], ...]]:
    if "saliency_scores" not in entry:
        return (), ()
    clips, scores = _list(entry, "relevant_clip_ids", where), _list(entry, "saliency_scores", where)
    if len(clips) != len(scores):
        raise AnnotationError(f"{where}: has {len(clips)} relevant_clip_ids but {len(scores)} saliency_scores")
    if duration is None:
        raise AnnotationError(f"{where}: saliency_scores need the duration of the video")
    count = int(duration / 2)
    for clip, each in zip(clips, scores, strict=True):
        if not isinstance(clip, int) or not 0 <= clip < count:
            raise AnnotationError(f"{where}: clip {clip!r} is not one of the {count} clips of 2 s in {duration:g} s")
        numbers = isinstance(each, list) and all(isinstance(score, (int, float)) for score in each)
        if not numbers or len(each) != len(scores[0]) or not each:
            raise AnnotationError(f"{where}: saliency_scores must be lists of equally many numbers, got {each!r}")
    return tuple(clips), tuple(tuple(map(float, each)) for each in scores)


_CHARADES = re.compile(r"\s*(\S+)\s+(\S+)\s+(\S+)\s*##(.*)")


def _charades(raw: Raw) -> Iterator[tuple[str, MomentQuery]]:
    for place, (number, line) in enumerate(raw.value):
        where = f"{raw.path} line {number}"
        match = _CHARADES.fullmatch(line)
        if match is None or not match[4].strip():
            raise AnnotationError(f"{where}: must read 'VIDEO START END##sentence', got {line[:80]!r}")
        window = _seconds(match[2], where, "the start"), _seconds(match[3], where, "the end")
        yield where, MomentQuery(qid=str(place), video=match[1], text=match[4].strip(), windows=(window,))


def _captions(raw: Raw) -> Iterator[tuple[str, MomentQuery]]:
    for video, entry in raw.value.items():
        where = f"{raw.path} key {video!r}"
        if not isinstance(entry, dict):
            raise AnnotationError(f"{where}: must be an object with keys, got {type(entry).__name__}")
        spans, sentences = _list(entry, "timestamps", where), _list(entry, "sentences", where)
        if len(spans) != len(sentences):
            raise AnnotationError(f"{where}: has {len(spans)} timestamps but {len(sentences)} sentences")
        duration = None if entry.get("duration") is None else _seconds(entry["duration"], where, "duration")
        for number, (span, sentence) in enumerate(zip(spans, sentences, strict=True)):
            place = f"{where} sentence {number + 1}"
            yield (
                place,
                MomentQuery(
                    qid=f"{video}/{number}",
                    video=video,
                    text=text_of({"sentence": sentence}, ("sentence",), place),
                    windows=(_span(span, place, "a timestamp"),),
                    duration=duration,
                ),
            )


def _mad(raw: Raw) -> Iterator[tuple[str, MomentQuery]]:
    for qid, entry in raw.value.items():
        where = f"{raw.path} key {qid!r}"
        if not isinstance(entry, dict):
            raise AnnotationError(f"{where}: must be an object with keys, got {type(entry).__name__}")
        length = entry.get("movie_duration")
        yield (
            where,
            MomentQuery(
                qid=str(qid),
                video=text_of(entry, ("movie",), where),
                text=text_of(entry, ("sentence",), where),
                windows=(_span(entry.get("ext_timestamps", entry.get("timestamps")), where, "ext_timestamps"),),
                duration=None if length is None else _seconds(length, where, "movie_duration"),
            ),
        )


def _has(raw: Raw, *keys: str) -> bool:
    """The first entry, of a list or an object, is an object with these keys."""
    return isinstance(raw.first, dict) and set(keys) <= set(raw.first)


LAYOUTS: dict[str, Layout] = {
    "lines": Layout(
        "Moment-DETR, Lighthouse and everyframe synthesize: JSON lines with qid, query, vid, duration, "
        "relevant_windows; QVHighlights also relevant_clip_ids and saliency_scores",
        lambda raw: raw.is_list and _has(raw, "qid", "query", "vid"),
        _lines,
    ),
    "charades": Layout(
        "Charades-STA: VIDEO START END##sentence, a line each; the qid is the line's number from 0",
        lambda raw: raw.kind == "lines" and "##" in raw.first,
        _charades,
    ),
    "activitynet": Layout(
        "ActivityNet Captions: {video: {duration, timestamps, sentences}}; the qid is video/number from 0",
        lambda raw: raw.is_dict and _has(raw, "timestamps", "sentences"),
        _captions,
    ),
    "mad": Layout(
        "MAD: {qid: {movie, sentence, movie_duration, ext_timestamps}}",
        lambda raw: raw.is_dict and _has(raw, "movie", "sentence"),
        _mad,
    ),
}
