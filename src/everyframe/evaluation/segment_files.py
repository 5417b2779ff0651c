"""Annotated activities and predictions as they lie on disk: ActivityNet-1.3, files of its layout, synthesized videos.

    {"database": {"tVC_5_SgseY": {"duration": 137.81, "subset": "validation",
                                  "annotations": [{"segment": [39.24, 47.62], "label": "..."}]}}}
    {"results": {"tVC_5_SgseY": [{"segment": [39.2, 47.6], "label": "...", "score": 0.9}]}}

THUMOS14 as ActionFormer and OpenTAD distribute it has the first layout, too. Ids are kept without the "v_" that names
of feature files begin with.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from everyframe.evaluation.reading import AnnotationError, Raw, read_raw, stem
from everyframe.feature_files import write_whole
from everyframe.tasks.localization import Detection, Segment

By = Literal["colour", "shape"]
BYS: tuple[By, ...] = ("colour", "shape")
_SECONDS = 0.05  # annotations round; less than this beyond the end of a video is not worth a word


@dataclass(frozen=True)
class ActivityVideo:
    """One annotated video. duration: seconds, or None where the file does not say."""

    subset: str
    duration: float | None
    segments: tuple[Segment, ...]


@dataclass(frozen=True, kw_only=True)
class Activities:
    """Annotated videos by id.

    synthesized: made of events, not read from annotated activities. prompt: a class as a text, {} its label. sources:
    each file with its SHA-256. notes: what was odd, in words.
    """

    videos: Mapping[str, ActivityVideo]
    synthesized: bool = False
    prompt: str = "a video of {}"
    sources: tuple[dict[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    def subset(self, name: str) -> dict[str, ActivityVideo]:
        """The videos of a subset, whatever its case. Raises AnnotationError, naming those there are, for no video."""
        found = {video: one for video, one in self.videos.items() if one.subset.lower() == name.lower()}
        if not found:
            there = ", ".join(sorted({one.subset for one in self.videos.values()})) or "none"
            files = " and ".join(source["path"] for source in self.sources) or "the annotations"
            raise AnnotationError(
                f"{files}: no video of subset {name!r}; there are: {there}. Name another, or give its own file too"
            )
        return found

    def __or__(self, other: Activities) -> Activities:
        """Both together. Raises AnnotationError for an id that both have."""
        if twice := sorted(self.videos.keys() & other.videos.keys()):
            raise AnnotationError(f"{listed(twice)}: annotated twice; give each video once")
        return Activities(
            videos={**self.videos, **other.videos},
            synthesized=self.synthesized and other.synthesized,
            prompt=self.prompt,
            sources=self.sources + other.sources,
            notes=self.notes + other.notes,
        )

    def as_json(self) -> dict[str, Any]:
        """The ActivityNet-1.3 layout."""
        database = {
            video: {
                "duration": one.duration,
                "subset": one.subset,
                "annotations": [{"segment": [own.start, own.end], "label": own.label} for own in one.segments],
            }
            for video, one in self.videos.items()
        }
        return {"version": "everyframe", "taxonomy": [], "database": database}

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the ActivityNet-1.3 layout, whole or not at all; returns the path."""
        path = Path(path)
        write_whole([(path, (json.dumps(self.as_json()) + "\n").encode())], path)
        return path


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Detections by video id. notes: what was odd, in words."""

    videos: Mapping[str, tuple[Detection, ...]]
    source: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def plain_id(name: str) -> str:
    """A video's id from its name: no folder, no video suffix, no leading "v_"."""
    return stem(os.path.basename(name)).removeprefix("v_")


def read_activities(path: str | os.PathLike[str], *, subset: str = "validation", by: By = "colour") -> Activities:
    """Annotated activities from a file of the ActivityNet-1.3 layout, or from the annotations.jsonl of `synthesize`.

    A folder is read as the annotations.jsonl in it. Such lines have neither subset nor class: all their videos get
    `subset`, and their events the class that `by` says, see `activities_of_events`.

    Segments that are reversed or have no length, and such as lie outside their video, are kept and told of in `notes`:
    the metric leaves out the first, training cuts the second. Raises AnnotationError, naming file and entry, for a
    file that is missing or broken, an entry without what it must have, and an id given twice.
    """
    path = Path(path)
    raw = read_raw(path / "annotations.jsonl" if path.is_dir() else path)
    source = {"path": str(raw.path), "sha256": raw.sha256}
    if raw.is_dict and "database" in raw.value:
        return _activitynet(raw, source)
    lines = raw.value if raw.is_list else [raw.value] if raw.is_dict else None
    if lines and isinstance(lines[0], dict) and {"vid", "query", "relevant_windows"} <= lines[0].keys():
        return replace(_events(raw, lines, subset, by), sources=(source,))
    raise raw.wrong(
        'is neither ActivityNet-1.3 ({"database": {id: {"subset", "annotations"}}}) nor the annotations.jsonl of '
        "everyframe synthesize"
    )


def activities_of_events(
    videos: Mapping[str, tuple[float | None, Sequence[tuple[str, float, float]]]],
    *,
    subset: str = "validation",
    by: By = "colour",
) -> Activities:
    """Classes for the events of synthetic videos: every red thing, whatever its shape, pattern and size, is "red".

    videos: by id, seconds and events as (caption, start, end). by: "colour" or "shape", 8 classes each; a class has
    many captions and, where two of it follow each other, many instances in a video. The bundled model tells colours
    well and shapes badly. Raises AnnotationError for a caption that names none.
    """
    if by not in BYS:
        raise ValueError(f"classes can be made by {' or '.join(BYS)}, got {by!r}")
    found = {}
    for video, (duration, events) in videos.items():
        segments = tuple(Segment(float(start), float(end), _class_of(text, by, video)) for text, start, end in events)
        found[plain_id(video)] = ActivityVideo(subset, duration, segments)
    return Activities(videos=found, synthesized=True, prompt="a {} shape" if by == "colour" else "a {}")


def read_predictions(path: str | os.PathLike[str], activities: Activities | None = None) -> Predictions:
    """A prediction file of the ActivityNet layout.

    activities: what the notes are made with: predictions that end after their video. Raises AnnotationError, naming
    file and entry, for what is missing or no number, a score that is not finite, and an id given with and without "v_".
    """
    raw = read_raw(path)
    if not raw.is_dict or not isinstance(raw.value.get("results"), dict):
        raise raw.wrong('must be {"results": {id: [{"segment": [start, end], "label": ..., "score": ...}]}}')
    found: dict[str, tuple[Detection, ...]] = {}
    outside: Counter[str] = Counter()
    reversed_: Counter[str] = Counter()
    for name, entries in raw.value["results"].items():
        video = plain_id(name)
        if video in found:
            raise raw.wrong(f"{video} is there twice, with and without v_")
        if not isinstance(entries, list):
            raise raw.wrong(f"results of {name} must be a list, got {type(entries).__name__}")
        own = [_detection(entry, f"{raw.path} {name} entry {at}") for at, entry in enumerate(entries, 1)]
        known = None if activities is None or video not in activities.videos else activities.videos[video].duration
        outside[video] += sum(one.start < -_SECONDS or one.end > (known or math.inf) + _SECONDS for one in own)
        reversed_[video] += sum(one.end < one.start for one in own)
        found[video] = tuple(own)
    notes = [
        *_note(outside, "predicted segments reach outside their video; they count as they are"),
        *_note(reversed_, "predicted segments end before they start; they count as false positives"),
    ]
    return Predictions(videos=found, source={"path": str(raw.path), "sha256": raw.sha256}, notes=tuple(notes))


def write_predictions(path: str | os.PathLike[str], predictions: Mapping[str, Sequence[Detection]]) -> Path:
    """Write the ActivityNet layout of predictions, whole or not at all; returns the path."""
    path = Path(path)
    results = {video: [one.as_dict() for one in found] for video, found in predictions.items()}
    content = {"version": "everyframe", "results": results, "external_data": {}}
    write_whole([(path, (json.dumps(content) + "\n").encode())], path)
    return path


def read_class_scores(path: str | os.PathLike[str]) -> dict[str, dict[str, float]]:
    """Class probabilities of whole videos from an external classifier: {id: {label: probability}}.

    Takes {id: {label: probability}}, and CUHK's layout {"results": {id: [probability, ...]}, "class": [label, ...]}, as
    OpenTAD distributes it. Raises AnnotationError, naming file and video, for other layouts and what is no number.
    """
    raw = read_raw(path)
    if not raw.is_dict:
        raise raw.wrong('must be {video: {label: probability}} or {"results": {video: [...]}, "class": [...]}')
    names = raw.value.get("class")
    videos = raw.value.get("results", raw.value)
    if not isinstance(videos, dict) or not (names is None or isinstance(names, list)):
        raise raw.wrong('"results" must be an object by video, and "class" a list of labels')
    found: dict[str, dict[str, float]] = {}
    for name, own in videos.items():
        where = f"{raw.path} {name}"
        if isinstance(own, list) and names is None:
            raise AnnotationError(f"{where}: has a list of scores, but the file has no list of labels under class")
        if isinstance(own, list) and len(own) != len(names or ()):
            raise AnnotationError(f"{where}: has {len(own)} scores for {len(names or ())} classes")
        if not isinstance(own, (list, dict)) or not own:
            raise AnnotationError(f"{where}: must be scores by label, got {own!r}")
        pairs = own.items() if isinstance(own, dict) else zip(map(str, names or ()), own, strict=True)
        found[plain_id(name)] = {label: _number(value, f"score of {label}", where) for label, value in pairs}
    return found


def read_blocked(path: str | os.PathLike[str]) -> frozenset[str]:
    """Ids of videos to leave out: a JSON list (ActivityNet's blocked.json) or one id a line."""
    raw = read_raw(path)
    if raw.kind == "lines":
        return frozenset(plain_id(line.strip()) for _, line in raw.value)
    if not raw.is_list and not raw.is_dict:
        raise raw.wrong("must be a list of video ids")
    return frozenset(plain_id(str(name)) for name in raw.value)


def _activitynet(raw: Raw, source: dict[str, str]) -> Activities:
    database = raw.value["database"]
    if not isinstance(database, dict):
        raise raw.wrong(f'"database" must be an object by video id, got {type(database).__name__}')
    videos: dict[str, ActivityVideo] = {}
    odd: dict[str, Counter[str]] = {"empty": Counter(), "outside": Counter()}
    for name, entry in database.items():
        video, where = plain_id(name), f"{raw.path} {name}"
        if video in videos:
            raise AnnotationError(f"{where}: {video} is there twice, with and without v_")
        if not isinstance(entry, dict) or not isinstance(entry.get("subset"), str):
            raise AnnotationError(f"{where}: must be an object with a subset and annotations")
        given = entry.get("annotations", [])
        if not isinstance(given, list):
            raise AnnotationError(f"{where}: annotations must be a list, got {type(given).__name__}")
        duration = entry.get("duration")
        seconds = None if duration is None else _number(duration, "duration", where)
        segments = tuple(_segment(one, f"{where} entry {at}") for at, one in enumerate(given, 1))
        odd["empty"][video] += sum(one.end <= one.start for one in segments)
        limit = (seconds or math.inf) + _SECONDS
        odd["outside"][video] += sum(one.start < -_SECONDS or one.end > limit for one in segments)
        videos[video] = ActivityVideo(entry["subset"], seconds, segments)
    if not videos:
        raise raw.wrong("has no videos")
    notes = [
        *_note(odd["empty"], "annotated segments end where or before they start; they are left out"),
        *_note(odd["outside"], "annotated segments reach outside their video; they count as they are"),
    ]
    return Activities(videos=videos, sources=(source,), notes=tuple(notes))


def _events(raw: Raw, lines: list[Any], subset: str, by: By) -> Activities:
    events: dict[str, list[tuple[str, float, float]]] = {}
    durations: dict[str, float] = {}
    for at, line in enumerate(lines, 1):
        where = f"{raw.path} line {at}"
        if not isinstance(line, dict) or not {"vid", "query", "relevant_windows"} <= line.keys():
            raise AnnotationError(f"{where}: must have vid, query and relevant_windows")
        video = str(line["vid"])
        durations[video] = _number(line.get("duration"), "duration", where)
        for window in line["relevant_windows"]:
            start, end = _pair(window, "relevant_windows", where)
            events.setdefault(video, []).append((str(line["query"]), start, end))
    return activities_of_events({video: (durations[video], own) for video, own in events.items()}, subset=subset, by=by)


def _class_of(caption: str, by: By, video: str) -> str:
    from everyframe.synthetic import COLOURS, SHAPES

    known = SHAPES if by == "shape" else tuple(COLOURS)
    for word in caption.lower().split():
        if word in known:
            return word
    raise AnnotationError(
        f"{video}: {caption!r} names no {by}, so it has no class; only videos of everyframe synthesize have classes "
        "without a file of the ActivityNet-1.3 layout"
    )


def _segment(entry: Any, where: str) -> Segment:
    if not isinstance(entry, dict) or "segment" not in entry or "label" not in entry:
        raise AnnotationError(f"{where}: must be an object with segment and label, got {entry!r}")
    start, end = _pair(entry["segment"], "segment", where)
    return Segment(start, end, str(entry["label"]))


def _detection(entry: Any, where: str) -> Detection:
    one = _segment(entry, where)
    if "score" not in entry:
        raise AnnotationError(f"{where}: has no score")
    return Detection(one.start, one.end, one.label, _number(entry["score"], "score", where))


def _pair(value: Any, name: str, where: str) -> tuple[float, float]:
    if not isinstance(value, list) or len(value) != 2:
        raise AnnotationError(f"{where}: {name} must be [start, end] in seconds, got {value!r}")
    return _number(value[0], name, where), _number(value[1], name, where)


def _number(value: Any, name: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise AnnotationError(f"{where}: {name} must be a finite number, got {value!r}")
    return float(value)


def _note(counts: Counter[str], what: str) -> list[str]:
    """One sentence on what was met, with how often and where; none where it was not."""
    total = counts.total()
    return [f"{total} {what}: {listed([video for video, count in counts.items() if count])}"] if total else []


def listed(names: Sequence[str], limit: int = 3) -> str:
    """The first few of many names, and how many more there are."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
