"""From a file to what encoders take: sampled frames, resized and normalised, with their times and motion.

T sampled frames, S side of the model's input.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from everyframe.backbone import Model
from everyframe.video import SampledVideo, Source, sample_frames

_RAW_BYTES = 24 << 20  # decoded frames waiting to be preprocessed together
_RAW_FRAMES = 16


@dataclass
class Chunk:
    """Preprocessed frames of one video: times in seconds, pixels float32 [T, 3, S, S], motion float32 [T, S, S]."""

    times: list[float]
    pixels: Tensor
    motion: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Window:
    """A part of a video, preprocessed in one piece.

    times float64 [T] seconds, true presentation times; pixels float32 [T, 3, S, S]; motion float32 [T, S, S], None
    unless asked for, and motion_source "codec" or "luma". end_seconds: where the last frame stops being shown, if
    known.
    """

    times: np.ndarray
    pixels: Tensor
    motion: Tensor | None
    motion_source: str | None
    end_seconds: float | None


def read_window(
    source: Source,
    model: Model,
    *,
    fps: float = 3.0,
    start: float | None = None,
    end: float | None = None,
    motion: bool = True,
    keep_partial: bool = False,
) -> Window:
    """All frames of [start, end) as `encode_video` reads them, decoded once; the whole part is held in memory.

    motion: with motion maps, which takes a little longer. keep_partial: of a damaged file what can be read.
    Raises VideoError for damage, or no frame in there.
    """
    on_damage: Literal["skip", "raise"] = "skip" if keep_partial else "raise"
    with sample_frames(source, fps, start=start, end=end, motion=motion, on_damage=on_damage) as sampled:
        (chunk,) = preprocessed(sampled, model, motion=motion)
    return Window(
        times=np.array(chunk.times, np.float64),
        pixels=chunk.pixels,
        motion=chunk.motion,
        motion_source=sampled.motion_source,
        end_seconds=last_end(chunk.times[-1], sampled.last_end_seconds, end),
    )


def preprocessed(sampled: SampledVideo, model: Model, *, motion: bool, per_chunk: int | None = None) -> Iterator[Chunk]:
    """Collect frames, preprocess them a few at a time, hand out chunks of `per_chunk`; None: all of them in one."""
    times: list[float] = []
    pixels: list[Tensor] = []
    maps: list[Tensor] = []
    raw: list[np.ndarray] = []
    raw_maps: list[np.ndarray] = []

    def flush() -> None:
        if raw:
            frames = np.stack(raw)
            pixels.append(model.preprocess(frames))
            if motion:
                maps.append(model.preprocess_motion(np.stack(raw_maps), frames.shape[1:3]))
            raw.clear()
            raw_maps.clear()

    for sample in sampled:
        times.append(sample.time)
        raw.append(sample.pixels)
        if sample.motion is not None:
            raw_maps.append(sample.motion)
        if len(raw) * sample.pixels.nbytes >= _RAW_BYTES or len(raw) >= _RAW_FRAMES:
            flush()
        if len(times) == per_chunk:
            flush()
            yield Chunk(times, torch.cat(pixels), torch.cat(maps) if maps else None)
            times, pixels, maps = [], [], []
    flush()
    if times:
        yield Chunk(times, torch.cat(pixels), torch.cat(maps) if maps else None)


def last_end(last: float, decoded: float | None, asked: float | None) -> float | None:
    """Where the last frame's interval ends: with the pictures, or where the caller's range does."""
    ends = [end for end in (decoded, asked) if end is not None and end > last]
    return min(ends, default=None)
