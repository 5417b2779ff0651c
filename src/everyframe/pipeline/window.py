"""From a file to what encoders take: sampled frames, resized and normalised, planned, in chunks of whole groups.

T sampled frames, S side of the model's input.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from everyframe.backbone import Model
from everyframe.encoders import FramePlanner, Plan
from everyframe.pipeline.uploads import stacked
from everyframe.video import Sample, Source, sample_frames

_RAW_BYTES = 24 << 20  # decoded frames waiting to be preprocessed together
_RAW_FRAMES = (
    11  # three parts are one more than a usual chunk: with parts of 16 the first call would wait for 48 frames
)


@dataclass
class Part:
    """A few preprocessed frames: times in seconds, pixels float32 [T, 3, S, S], motion float32 [T, S, S] or None."""

    times: list[float]
    pixels: Tensor
    motion: Tensor | None


@dataclass
class Chunk:
    """Whole groups of one video, to be encoded in one call: times in seconds, pixels float32 [T, 3, S, S].

    Where the encoder looks ahead, pixels and plan have the next I-frame as one frame more than there are times.
    """

    times: list[float]
    pixels: Tensor
    plan: Plan


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
        parts = list(preprocessed(sampled, model, motion=motion))
    times = [time for part in parts for time in part.times]
    return Window(
        times=np.array(times, np.float64),
        pixels=torch.cat([part.pixels for part in parts]),
        motion=torch.cat([part.motion for part in parts if part.motion is not None]) if motion else None,
        motion_source=sampled.motion_source,
        end_seconds=last_end(times[-1], sampled.last_end_seconds, end),
    )


def preprocessed(
    samples: Iterable[Sample], model: Model, *, motion: bool, device: torch.device | None = None
) -> Iterator[Part]:
    """Preprocess frames a few at a time; how many does not depend on what they are for.

    device: where; None is the CPU.
    """
    waiting: list[Sample] = []
    for sample in samples:
        waiting.append(sample)
        if len(waiting) * sample.pixels.nbytes >= _RAW_BYTES or len(waiting) >= _RAW_FRAMES:
            yield _part(waiting, model, motion, device)
            waiting = []
    if waiting:
        yield _part(waiting, model, motion, device)


def _part(samples: list[Sample], model: Model, motion: bool, device: torch.device | None) -> Part:
    frames = stacked([sample.pixels for sample in samples], device)
    maps = None
    if motion:
        raw = stacked([sample.motion for sample in samples if sample.motion is not None], device)
        maps = model.preprocess_motion(raw, (frames.shape[1], frames.shape[2]))
    return Part([sample.time for sample in samples], model.preprocess(frames), maps)


def planned(parts: Iterable[Part], planner: FramePlanner, size: int, *, look_ahead: bool = False) -> Iterator[Chunk]:
    """Chunks of as many whole groups as `size` frames hold, and of at least one group.

    look_ahead: with the I-frame that follows, if any, as one more frame of the pixels and the plan.
    """
    waiting, plan = _Waiting(), Plan.of("", [])
    for part in chain(parts, [None]):
        if part is None:
            plan += planner.finish()
        else:
            plan += planner.add(part.pixels, part.motion)
            waiting.add(part)
        while cut := _boundary(plan.roles, size):
            yield Chunk(*waiting.take(cut, cut + look_ahead), plan[: cut + look_ahead])
            plan = plan[cut:]
    if plan.roles:
        yield Chunk(*waiting.take(len(plan.roles), len(plan.roles)), plan)


def regrouped(parts: Iterable[Part], plans: Iterable[Plan]) -> Iterator[Chunk]:
    """The chunks of plans that are known already."""
    waiting, source = _Waiting(), iter(parts)
    for plan in plans:
        while len(waiting.times) < len(plan.roles):
            waiting.add(next(source))
        yield Chunk(*waiting.take(len(plan.roles), len(plan.roles)), plan)


def _boundary(roles: str, size: int) -> int:
    """Frames in the next chunk, or 0 where it takes more frames to tell."""
    if len(roles) <= size:
        return 0
    within = roles.rfind("I", 1, size + 1)
    return within if within > 0 else max(roles.find("I", size + 1), 0)


class _Waiting:
    """Frames that are waiting to become a chunk."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._parts: list[Tensor] = []  # in order, none empty

    def add(self, part: Part) -> None:
        self.times += part.times
        self._parts.append(part.pixels)

    def take(self, count: int, seen: int) -> tuple[list[float], Tensor]:
        """Times of the first `count` frames, which wait no longer, and pixels of the first `seen`."""
        times, self.times = self.times[:count], self.times[count:]
        pixels = torch.cat(list(_first(self._parts, seen)))
        while self._parts and count >= len(self._parts[0]):
            count -= len(self._parts.pop(0))
        if count:
            self._parts[0] = self._parts[0][count:].clone()  # not a view: it would keep all of them in memory
        return times, pixels


def _first(parts: list[Tensor], count: int) -> Iterator[Tensor]:
    """Views of the first `count` frames of all parts together."""
    for part in parts:
        if count <= 0:
            return
        yield part[:count]
        count -= len(part)


def last_end(last: float, decoded: float | None, asked: float | None) -> float | None:
    """Where the last frame's interval ends: with the pictures, or where the caller's range does."""
    ends = [end for end in (decoded, asked) if end is not None and end > last]
    return min(ends, default=None)
