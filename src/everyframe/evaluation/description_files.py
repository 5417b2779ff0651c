"""What is said of videos, and when: annotation files of audio descriptions, and descriptions somebody generated.

Beside its own layouts it reads those of grounding (`moment_files`): a query is then what is said of its first window.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from everyframe.evaluation.moment_files import LAYOUTS as MOMENT_LAYOUTS
from everyframe.evaluation.moment_files import read_moments
from everyframe.evaluation.reading import AnnotationError, Raw, read_raw, table, text_of
from everyframe.features import VideoFeatures
from everyframe.synthetic.narrations import Occurrence, narrate
from everyframe.tasks.description import Description, Narrated

LAYOUTS = {
    "descriptions": "objects with vid (or movie), start, end and text (or sentence), as JSON lines or a list",
    "table": "a CSV or TSV with the same names in its header, as AutoAD's MAD-named files",
    "synthetic": "annotations.jsonl of everyframe synthesize: sentences are made of its events",
}
_VIDEO = ("vid", "movie", "video", "video_id", "cmd_filename")
_START = ("start", "start_time", "begin")
_END = ("end", "end_time", "stop")
_TEXT = ("text", "sentence", "ad", "caption", "narration")
_SYNTHETIC = re.compile(r"synthetic-\d+")


@dataclass(frozen=True, kw_only=True)
class Narrations:
    """The descriptions of a file by video, in the file's order. left_out: entries that say nothing of any time."""

    by_video: dict[str, tuple[Description, ...]]
    layout: str
    path: str
    sha256: str
    left_out: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        return sum(map(len, self.by_video.values()))

    def facts(self) -> dict[str, Any]:
        """What a report must name to be comparable."""
        return {
            "path": self.path,
            "sha256": self.sha256,
            "layout": self.layout,
            "videos": len(self.by_video),
            "descriptions": self.count,
            "left_out": list(self.left_out),
        }


def read_narrations(path: str | os.PathLike[str], *, layout: str | None = None) -> Narrations:
    """Read descriptions in one of `LAYOUTS` or of the layouts of grounding; guessed from the content by default.

    An entry without words, one that ends before it starts or at once, and one that says again what was said of the same
    span are left out and listed. Raises AnnotationError, which names file and line, for a file that cannot be used.
    """
    known = [*LAYOUTS, *MOMENT_LAYOUTS]
    if layout not in (None, *known):
        raise AnnotationError(f"layout must be one of {', '.join(known)}, got {layout!r}")
    raw = read_raw(path)
    if raw.is_dict and _has_span(raw.value):  # JSON lines of a single line
        raw = replace(raw, value=[raw.value], numbers=(1,))
    if layout == "descriptions" or (layout is None and raw.is_list and _has_span(raw.first)):
        return _narrations(raw, "descriptions", _objects(raw))
    if layout == "table" or (layout is None and raw.kind == "lines" and _is_table(raw)):
        return _narrations(raw, "table", _rows(raw))
    moments = read_moments(path, layout=None if layout == "synthetic" else layout)
    entries = [
        (f"{path} qid {query.qid}", query.video, query.windows[0][0], query.windows[0][1], query.text)
        for query in moments.queries
    ]
    if layout == "synthetic" or (layout is None and all(_SYNTHETIC.fullmatch(video) for video in moments.videos)):
        return _narrations(raw, "synthetic", _narrated(entries), map(str, moments.faults))
    return _narrations(raw, moments.layout, entries, map(str, moments.faults))


def narrated_events(features: VideoFeatures, events: Sequence[Occurrence], *, video: str) -> Narrated:
    """A synthetic video with sentences made of its events, each (caption, start, end) in seconds."""
    texts = narrate(events, video=video)
    descriptions = [
        Description(start=start, end=end, text=text) for (_, start, end), text in zip(events, texts, strict=True)
    ]
    return Narrated(video=video, features=features, descriptions=tuple(descriptions))


_Entry = tuple[str, str, float, float, str]
"""(words that name its place, video, start, end, text)"""


def _narrations(
    raw: Raw, layout: str, entries: Iterator[_Entry] | list[_Entry], faults: Iterator[str] | tuple[()] = ()
) -> Narrations:
    by_video: dict[str, list[Description]] = {}
    left_out, seen = [*faults], set()
    for where, video, start, end, text in entries:
        try:
            each = Description(start=start, end=end, text=text)
        except ValueError as error:
            left_out.append(f"{where}: {error}")
            continue
        if not each.text:
            left_out.append(f"{where}: has no words")
        elif (video, each) in seen:
            left_out.append(f"{where}: says again what was said of {video} from {start:g} to {end:g} s")
        else:
            seen.add((video, each))
            by_video.setdefault(video, []).append(each)
    if not by_video:
        raise raw.wrong("holds no description that can be used" + (f": {left_out[0]}" if left_out else ""))
    return Narrations(
        by_video={video: tuple(found) for video, found in by_video.items()},
        layout=layout,
        path=str(raw.path),
        sha256=raw.sha256,
        left_out=tuple(left_out),
    )


def _has_span(entry: Any) -> bool:
    return isinstance(entry, dict) and any(key in entry for key in _START) and any(key in entry for key in _END)


def _objects(raw: Raw) -> Iterator[_Entry]:
    if not raw.is_list:
        raise raw.wrong(f"must hold {LAYOUTS['descriptions']}")
    for where, entry in raw.entries():
        yield _entry(entry, where)


def _entry(entry: dict[str, Any], where: str) -> _Entry:
    return (
        where,
        text_of(entry, _VIDEO, where),
        _seconds(entry, _START, where),
        _seconds(entry, _END, where),
        _words(entry, where),
    )


def _is_table(raw: Raw) -> bool:
    header = {name.lower() for name in table(replace(raw, value=raw.value[:1]))[0][1]}
    return all(header & set(names) for names in (_VIDEO, _START, _END, _TEXT))


def _rows(raw: Raw) -> Iterator[_Entry]:
    (where, header), *rows = table(raw)
    names = [name.lower() for name in header]
    for wanted in (_VIDEO, _START, _END, _TEXT):
        if not set(wanted) & set(names):
            raise AnnotationError(f"{where}: has no column {' or '.join(wanted)}; its columns are {', '.join(header)}")
    for where, fields in rows:
        if len(fields) != len(names):
            raise AnnotationError(f"{where}: has {len(fields)} columns where the header has {len(names)}")
        entry = dict(zip(names, fields, strict=True))
        yield _entry(entry, where)


def _narrated(entries: Sequence[_Entry]) -> Iterator[_Entry]:
    by_video: dict[str, list[_Entry]] = {}
    for entry in entries:
        by_video.setdefault(entry[1], []).append(entry)
    for video, own in by_video.items():
        # Sentences about events that last no time cannot be made; they go on as they are, to be listed.
        sound = [entry for entry in own if entry[2] < entry[3]]
        texts = narrate([(text, start, end) for _, _, start, end, text in sound], video=video)
        yield from (entry for entry in own if not entry[2] < entry[3])
        yield from ((*entry[:4], text) for entry, text in zip(sound, texts, strict=True))


def _seconds(entry: dict[str, Any], keys: tuple[str, ...], where: str) -> float:
    value = next((entry[key] for key in keys if key in entry), None)
    try:
        seconds = math.nan if isinstance(value, bool) or value is None else float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not math.isfinite(seconds):
        raise AnnotationError(f"{where}: {keys[0]} must be a number of seconds, got {value!r}")
    return seconds


def _words(entry: dict[str, Any], where: str) -> str:
    value = next((entry[key] for key in _TEXT if key in entry), "")
    if value is not None and not isinstance(value, str):
        raise AnnotationError(f"{where}: what is said must be a text, got {value!r}")
    return value or ""
