"""Features on the regular grid a trainer expects: row k for k/rate seconds, or for (k + 0.5)/rate.

T rows, D width.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from everyframe.exports.targets import How, Phase
from everyframe.features import FeaturesError, VideoFeatures, is_of_clips, nearest_rows

_EPSILON = 1e-6  # seconds; presentation times are rationals stored in float64


class Rows(NamedTuple):
    """values: float32 [T, D]. times: float64 [T], the seconds that the rows stand for.

    furthest: the largest distance, in seconds, from a row's time to the (mean) time of the frames in it.
    """

    values: NDArray[np.float32]
    times: NDArray[np.float64]
    furthest: float


def row_times(count: int, rate: float, phase: Phase) -> NDArray[np.float64]:
    """float64 [count], seconds."""
    return np.asarray((np.arange(count) + (0.5 if phase == "middle" else 0.0)) / rate, dtype=np.float64)


def count_rows(end_seconds: float, rate: float, phase: Phase) -> int:
    """Rows of a video: those that begin before its end; of middles round(end * rate), as FFmpeg's fps filter makes."""
    length = end_seconds * rate
    count = math.floor(length + 0.5 + _EPSILON) if phase == "middle" else math.ceil(length - _EPSILON)
    return max(1, count)


def on_grid(features: VideoFeatures, rate: float, phase: Phase, how: How) -> Rows:
    """The whole video from second 0 to its end at `rate` rows per second.

    "nearest" takes the frame closest to the row's time (the earlier of two); "mean" averages the frames at most half
    a row away, or takes the nearest where there is none, and makes unit vectors of rows where model["normalised"] is
    true. Of features of clips (TempMe's) a row takes the clip it lies in, whatever `how` says.

    Unlike `VideoFeatures.resample`, rows begin at second 0 whenever the first frame is shown: trainers count from
    there. Raises FeaturesError for features without frames or of a part of the video.
    """
    _check_whole(features, rate)
    ends = features.frame_ends
    times = row_times(count_rows(float(ends[-1]), rate, phase), rate, phase)
    if is_of_clips(features):
        nearest = np.maximum(np.searchsorted(features.times, times + _EPSILON) - 1, 0)
        shown = (features.times + ends)[nearest] / 2
    else:
        nearest = nearest_rows(features.times, times)
        shown = features.times[nearest]
    values = features.embeddings[nearest].astype(np.float32)
    if how == "mean" and not is_of_clips(features):
        edges = np.append(times, times[-1] + 1 / rate) - 0.5 / rate - _EPSILON
        bounds = np.searchsorted(features.times, edges)
        counts = np.diff(bounds)
        filled = np.flatnonzero(counts)
        if len(filled):
            past = bounds[filled[-1] + 1]
            sums = np.add.reduceat(features.embeddings[:past], bounds[filled], axis=0, dtype=np.float32)
            values[filled] = sums / counts[filled, None]
            shown[filled] = np.add.reduceat(features.times[:past], bounds[filled]) / counts[filled]
        if features.model.get("normalised"):
            values = unit(values)
    return Rows(values, times, float(np.abs(shown - times).max()))


def stored_rate(features: VideoFeatures) -> float | None:
    """Rows per second that the features were made with, where they say so."""
    settings = features.settings
    if is_of_clips(features):
        return 1 / float(settings["clip_seconds"])
    fps = settings.get("fps")
    return float(fps) if isinstance(fps, (int, float)) and fps > 0 else None


def unit(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of length 1. Raises FeaturesError for a row of zeros."""
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    if not norms.all():
        raise FeaturesError(f"row {int(np.argmin(norms))} is all zeros and cannot be normalised")
    return values / norms


def _check_whole(features: VideoFeatures, rate: float) -> None:
    if not features.num_frames:
        raise FeaturesError("the features hold no frames")
    settings = features.settings
    end, duration = float(features.frame_ends[-1]), features.video.get("duration_seconds")
    cut = settings.get("end") is not None and (duration is None or end < duration - 1 / rate)
    if settings.get("start") or cut or "slice_seconds" in settings:
        raise FeaturesError(
            f"the features cover only {features.times[0]:.2f} to {end:.2f} s of the video, but trainers count rows "
            "from its beginning and to its end; encode it without --start and --end"
        )
