"""Which parts of a video are looked at, and reading one of them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from everyframe.backbone import Model
from everyframe.video import sample_frames

_SECONDS = 20.0  # of a window, where a video is longer than its sample: several events fit, several windows too
_FRAMES = 240  # in a window at most, so that its pixels stay below 150 MB at 224 x 224
_RAW_FRAMES = 16  # decoded frames waiting to be preprocessed together


@dataclass(frozen=True, kw_only=True)
class Window:
    """A part of a video, preprocessed: a sequence of its own that begins with an I-frame.

    times float64 [T] seconds, true presentation times; pixels float32 [T, 3, S, S]; motion float32 [T, S, S].
    end: where the last frame stops being shown, if known. reading_seconds: what decoding and resizing took.
    """

    times: np.ndarray
    pixels: Tensor
    motion: Tensor | None
    motion_source: str | None
    end: float | None
    reading_seconds: float


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


def read_window(
    source: str, start: float | None, end: float | None, fps: float, model: Model, *, keep_partial: bool = False
) -> Window:
    """Decode [start, end) once, with motion. Raises VideoError for damage (unless partial), or no frame in there."""
    clock = time.perf_counter()
    times: list[float] = []
    pixels: list[Tensor] = []
    motion: list[Tensor] = []
    raw: list[np.ndarray] = []
    maps: list[np.ndarray] = []

    def flush() -> None:
        if raw:
            frames = np.stack(raw)
            pixels.append(model.preprocess(frames))
            if maps:
                motion.append(model.preprocess_motion(np.stack(maps), frames.shape[1:3]))
            raw.clear()
            maps.clear()

    on_damage: Literal["skip", "raise"] = "skip" if keep_partial else "raise"
    with sample_frames(source, fps, start=start, end=end, motion=True, on_damage=on_damage) as sampled:
        for sample in sampled:
            times.append(sample.time)
            raw.append(sample.pixels)
            if sample.motion is not None:
                maps.append(sample.motion)
            if len(raw) == _RAW_FRAMES:
                flush()
        flush()
        ends = [known for known in (sampled.last_end_seconds, end) if known is not None and known > times[-1]]
        return Window(
            times=np.array(times, np.float64),
            pixels=torch.cat(pixels),
            motion=torch.cat(motion) if motion else None,
            motion_source=sampled.motion_source,
            end=min(ends, default=None),
            reading_seconds=time.perf_counter() - clock,
        )
