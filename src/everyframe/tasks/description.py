"""Descriptions of a video in time, what is seen around each, and the files players read.

C clips of F frames each, D width of the features
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from everyframe.feature_files import write_whole
from everyframe.features import VideoFeatures, nearest_rows

SUFFIXES = (".jsonl", ".vtt", ".srt")
_SHOWN_LEAST = 0.001  # seconds: the resolution of a subtitle; a cue without length is not shown


@dataclass(frozen=True, kw_only=True)
class Description:
    """What is said of [start, end) seconds of a video. Line breaks and runs of spaces become single spaces.

    Raises ValueError where a time is not finite or the end is not after the start.
    """

    start: float
    end: float
    text: str

    def __post_init__(self) -> None:
        start, end = float(self.start), float(self.end)
        if not (math.isfinite(start) and math.isfinite(end) and start < end):
            raise ValueError(f"a description must end after it starts, got {start:g} to {end:g} s")
        object.__setattr__(self, "start", start)
        object.__setattr__(self, "end", end)
        object.__setattr__(self, "text", " ".join(self.text.split()))


@dataclass(frozen=True, kw_only=True)
class Narrated:
    """A video's features and what is said of it: an example to learn from, or to compare with."""

    video: str
    features: VideoFeatures
    descriptions: tuple[Description, ...]


class Context(NamedTuple):
    """What is seen around a span. frames: float32 [C, F, D], unit rows, zeros where there is no video; present: bool
    [C], which of the clips lie in the video.
    """

    frames: NDArray[np.float32]
    present: NDArray[np.bool_]


def visual_context(
    features: VideoFeatures,
    start: float,
    end: float,
    *,
    clips: int = 8,
    frames: int = 8,
    rng: np.random.Generator | None = None,
) -> Context:
    """The span [start, end) seconds and its neighbours: `clips` spans of its length without gaps, clips // 2 of them
    before it, each as `frames` features.

    Frame k of a clip is the feature closest in time to (k + 0.5) / frames of it, but of those within the video. A clip
    that does not overlap with the video is absent. rng: for training, each frame is drawn from its part of the clip
    instead of taken from the middle. Raises ValueError where the span itself is, or has no length.
    Source: ResidualViT, section 4, "8 clips, each containing 8 frames"; it does not say where they lie.
    """
    if not (math.isfinite(start) and math.isfinite(end) and start < end):
        raise ValueError(f"what is described must end after it starts, got {start:g} to {end:g} s")
    if clips < 1 or frames < 1:
        raise ValueError(f"clips and frames must be at least 1, got {clips} and {frames}")
    if not features.num_frames:
        raise ValueError("the features hold no frames")
    first, last = float(features.times[0]), float(features.frame_ends[-1])
    if end <= first or start >= last:
        raise ValueError(f"{start:g} to {end:g} s lies outside the video, which goes from {first:g} to {last:g} s")
    length = end - start
    starts = start + length * (np.arange(clips) - clips // 2)
    present = (starts < last) & (starts + length > first)
    places = 0.5 if rng is None else rng.random((clips, frames))
    wanted = starts[:, None] + length * (np.arange(frames) + places) / frames
    rows = nearest_rows(features.times, np.clip(wanted, first, last))
    found = features.embeddings[rows].astype(np.float32) / features.norms[rows][..., None]
    return Context(found * present[:, None, None], present)


def usable(items: Sequence[Narrated]) -> tuple[list[Narrated], list[str]]:
    """The descriptions that have words and lie in their video, and a line for each that has or does not."""
    kept: list[Narrated] = []
    left_out: list[str] = []
    for item in items:
        good: list[Description] = []
        for each in item.descriptions:
            try:
                if not each.text:
                    raise ValueError(f"{each.start:g} to {each.end:g} s: the description is empty")
                visual_context(item.features, each.start, each.end, clips=1, frames=1)
                good.append(each)
            except ValueError as error:
                left_out.append(f"{item.video}: {error}")
        if good:
            kept.append(replace(item, descriptions=tuple(good)))
    return kept, left_out


def cut(features: VideoFeatures, seconds: float) -> list[tuple[float, float]]:
    """Spans of `seconds` that cover the video without gaps; what is left at the end, if less than half of one, joins
    the last. Raises ValueError.
    """
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(f"a clip must be longer than 0 seconds, got {seconds}")
    if not features.num_frames:
        return []
    first, last = float(features.times[0]), float(features.frame_ends[-1])
    count = max(1, math.floor((last - first) / seconds + 0.5))
    bounds = [first + number * seconds for number in range(count)]
    return list(zip(bounds, [*bounds[1:], last], strict=True))


# --- files -----------------------------------------------------------------------------------------------


def write_descriptions(path: str | os.PathLike[str], descriptions: Sequence[Description]) -> Path:
    """Write .jsonl (start, end and text, one line each), .vtt (WebVTT) or .srt (SubRip), whole or not at all.

    Raises ValueError for another suffix, FeaturesError where the file cannot be written.
    """
    path = Path(path)
    check_suffix(path)
    make = {".jsonl": as_jsonl, ".vtt": as_vtt, ".srt": as_srt}[path.suffix.lower()]
    write_whole([(path, make(descriptions).encode("utf-8"))], path)
    return path


def check_suffix(path: Path) -> None:
    """Raises ValueError unless `write_descriptions` knows the suffix."""
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"descriptions are written to {', '.join(SUFFIXES)}, got {path}")


def as_jsonl(descriptions: Sequence[Description]) -> str:
    """One JSON object per line."""
    return "".join(json.dumps(asdict(each), ensure_ascii=False) + "\n" for each in descriptions)


def as_vtt(descriptions: Sequence[Description]) -> str:
    """WebVTT, with kind "descriptions" said where its header has room for it; markup in a text is escaped."""
    cues = [
        f"{_clock(each.start, '.')} --> {_clock(_end(each), '.')}\n{_escaped(each.text)}\n"
        for each in descriptions
        if each.text
    ]
    return "\n".join(["WEBVTT - audio descriptions\n", *cues])


def as_srt(descriptions: Sequence[Description]) -> str:
    """SubRip, numbered from 1."""
    cues = [each for each in descriptions if each.text]
    return "\n".join(
        f"{number}\n{_clock(each.start, ',')} --> {_clock(_end(each), ',')}\n{each.text.replace('-->', '->')}\n"
        for number, each in enumerate(cues, 1)
    )


def _end(description: Description) -> float:
    return max(description.end, description.start + _SHOWN_LEAST)


def _clock(seconds: float, point: str) -> str:
    """hh:mm:ss.mmm; players know no times before 0."""
    thousandths = max(0, round(seconds * 1000))
    hours, rest = divmod(thousandths, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02d}:{minutes:02d}:{rest // 1000:02d}{point}{rest % 1000:03d}"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
