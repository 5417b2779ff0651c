"""Which videos are looked at, and which parts of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from everyframe.pipeline import is_address
from everyframe.video import VideoError, find_videos, sample_frames

_SECONDS = 20.0  # of a window, where a video is longer than its sample: several events fit, several windows too
_FRAMES = 240  # in a window at most, so that its pixels stay below 150 MB at 224 x 224


def spread(duration: float | None, sample_seconds: float, fps: float) -> list[tuple[float | None, float | None]]:
    """(start, end) of the windows to read, in seconds; None is the start or the end of the video.

    A video of at most `sample_seconds` is read whole, in one piece unless it has more than 240 frames. Of a longer one
    `sample_seconds` are read in windows of 20 s (fewer at high frame rates), their middles spread evenly. Where nobody
    says how long it is, one window at its start is all.
    """
    longest = _FRAMES / fps
    if duration is None:
        return [(None, min(sample_seconds, longest))]
    if duration <= sample_seconds:
        count = max(-int(-duration // longest), 1)
        edges = [None, *(duration * k / count for k in range(1, count)), None]
        return list(pairwise(edges))
    count = max(round(sample_seconds / min(_SECONDS, longest)), 1)
    length = min(sample_seconds / count, longest)
    starts = [max(duration * (k + 0.5) / count - length / 2, 0.0) for k in range(count)]
    return [(round(start, 3), round(start + length, 3)) for start in starts]


def video_windows(source: str, sample_seconds: float, fps: float) -> list[tuple[float | None, float | None]]:
    """`spread` over a file, address or folder of images. Raises VideoError where it cannot be opened."""
    with sample_frames(source, fps) as sampled:  # not `probe`: a folder of images lasts as long as fps says
        return spread(sampled.info.duration_seconds, sample_seconds, fps)


def distinct_sources(given: Sequence[str | Path], missing: list[VideoError]) -> list[str]:
    """Every video once, as it was first named. given: as for `find_videos`, and addresses."""
    found: dict[str, str] = {}
    for path in given:
        videos = [path] if is_address(path) else find_videos([path], failures=missing)
        for video in videos:
            found.setdefault(str(video) if is_address(video) else os.path.abspath(video), str(video))
    return list(found.values())
