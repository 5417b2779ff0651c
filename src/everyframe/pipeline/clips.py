"""From sampled frames to clips: TempMe as an encoder whose rows are clips, and a video cut into them.

V clips, F frames of each, S side of the model's input, D width of the feature.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from everyframe.cost import Rule, add_macs
from everyframe.encoders import Encoder, FramePlanner, Plan, TempMe
from everyframe.features import nearest_rows
from everyframe.pipeline.sampling import ClipSampling, Sampling
from everyframe.pipeline.window import Chunk, Part, last_end
from everyframe.video import SampledVideo


class ClipEncoder:
    """TempMe as the pipeline drives encoders: one row, and one letter of the plan, is one clip of F frames.

    frames: F. Raises ValueError for a number that the encoder cannot read.
    """

    name = TempMe.name
    plan = "fixed"
    group_size = 1
    needs_motion = False
    looks_ahead = False

    def __init__(self, encoder: TempMe, frames: int) -> None:
        self._encoder = encoder
        self.frames = frames
        if encoder.frames not in (None, frames):
            raise ValueError(f"{encoder!r} reads clips of {encoder.frames} frames, got frames={frames}")
        encoder.counts(frames)  # raises where clips of so many cannot be joined
        self.model = encoder.model
        self.batch_size = encoder.batch_size

    @property
    def dim(self) -> int:
        return self._encoder.dim

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the features, for provenance."""
        return self._encoder.settings

    def planner(self, first_frame: int = 0) -> FramePlanner:
        """Clips are cut by time, see `cut_clips`. Raises TypeError."""
        return self._encoder.planner(first_frame)

    def roles(self, num_frames: int) -> str:
        """All clips are read in full."""
        return "I" * num_frames

    def macs(self, num_frames: int, rule: Rule) -> dict[str, float]:
        """Multiply-accumulates of that many clips by part, see `everyframe.cost`."""
        return add_macs((num_frames, self._encoder.macs(self.frames, rule)))

    def plan_macs(self, plan: Plan, rule: Rule) -> dict[str, float]:
        """Multiply-accumulates of the clips of a plan by part."""
        return self.macs(len(plan.roles), rule)

    def dense_macs(self) -> float:
        """Of one clip with every token of every frame computed, attention too."""
        dense = TempMe(self.model, r=0, clips={}, remove_cross=0, remove_intra=0)
        return sum(dense.macs(self.frames, "all").values())

    def encode(self, pixels: Tensor, motion: Tensor | None = None, *, first_frame: int = 0) -> Tensor:
        """Preprocessed clips [V, F, 3, S, S] -> float32 [V, D], L2-normalised."""
        return self._encoder.encode(pixels)

    def encode_planned(self, pixels: Tensor, plan: Plan) -> Tensor:
        """The same."""
        return self._encoder.encode(pixels)


def frames_of(encoder: TempMe) -> int:
    """As many frames of a clip as the encoder's positions are for, or the fewest from 12 on that it can join."""
    span = encoder.schedule.span
    return encoder.frames or span * math.ceil(ClipSampling.frames / span)


def driven(encoder: Encoder | TempMe, sampling: Sampling | ClipSampling) -> Encoder:
    """The encoder as the pipeline drives it. Raises ValueError unless it can read what is sampled."""
    if isinstance(encoder, TempMe) and isinstance(sampling, ClipSampling):
        return ClipEncoder(encoder, sampling.frames)
    if isinstance(encoder, TempMe):
        raise ValueError("TempMe reads clips, not frames at a rate; pass a ClipSampling")
    if isinstance(sampling, ClipSampling):
        raise ValueError(f"clips are read by TempMe alone, got {type(encoder).__name__}; pass a Sampling")
    return encoder


def cut_clips(parts: Iterable[Part], sampled: SampledVideo, sampling: ClipSampling, size: int) -> Iterator[Chunk]:
    """Chunks of up to `size` clips: times are where they begin, pixels float32 [V, F, 3, S, S].

    parts: the frames of `sampling.open`, preprocessed. In memory are those of one and a half clips, and a chunk. A clip
    in which no frame begins, as within a gap, is left out. Where a clip has fewer frames than F some are taken twice,
    and the first such clip of a video is a UserWarning, unless it is just a short last one.
    """
    cutter = _Cutter(sampling, sampled.info.path)
    times: list[float] = []
    clips: list[Tensor] = []
    for begin, clip in cutter.clips(parts, sampled):
        times.append(begin)
        clips.append(clip)
        if len(clips) == size:
            yield Chunk(times, torch.stack(clips), Plan.of("I" * size, []))
            times, clips = [], []
    if clips:
        yield Chunk(times, torch.stack(clips), Plan.of("I" * len(clips), []))


class _Cutter:
    """Holds the frames that may still belong to the next clip."""

    def __init__(self, sampling: ClipSampling, name: str) -> None:
        self._sampling, self._frames, self._name = sampling, sampling.frames, name
        self._count = 0  # clips so far, those left out too
        self._times: list[float] = []
        self._pixels: list[Tensor] = []
        self._warned = False

    @property
    def _begin(self) -> float:
        return (self._sampling.start or 0.0) + self._count * self._sampling.clip_seconds

    def clips(self, parts: Iterable[Part], sampled: SampledVideo) -> Iterator[tuple[float, Tensor]]:
        """(where it begins in seconds, float32 [F, 3, S, S]) of each."""
        for part in parts:
            self._times += part.times
            self._pixels.append(part.pixels)
            yield from self._full(self._times[-1])
        last = self._times[-1]
        end = last_end(last, sampled.last_end_seconds, self._sampling.end) or last
        yield from self._full(end)
        yield from self._cut(end)

    def _full(self, known: float) -> Iterator[tuple[float, Tensor]]:
        """The clips that are followed by at least half a clip, of a video known to last so long."""
        seconds = self._sampling.clip_seconds
        while known >= self._begin + 1.5 * seconds and self._times[-1] >= self._begin:
            yield from self._cut(self._begin + seconds)
            # Over a gap in one step: a time stamp may lie by years.
            coming = min((time for time in self._times if time >= self._begin), default=self._begin)
            self._count += max(0, math.floor((coming - self._begin) / seconds - 1e-9))

    def _cut(self, end: float) -> Iterator[tuple[float, Tensor]]:
        """The clip from where the last one ended, unless it shows nothing new."""
        begin, times, pixels = self._begin, np.array(self._times), torch.cat(self._pixels)
        if ((begin <= times) & (times < end)).any():
            wanted = begin + (end - begin) * np.arange(self._frames) / self._frames
            rows = nearest_rows(times, wanted)
            short_rest = self._count > 0 and end - begin < self._sampling.clip_seconds - 1e-6
            if not short_rest:
                self._warn_of_few(begin, len(np.unique(rows)))
            yield begin, pixels[torch.from_numpy(rows)]
        self._count += 1
        # The frame nearest to the next clip's first moment may be the last one before it.
        past = max(int(np.searchsorted(times, self._begin)) - 1, 0)
        self._times = self._times[past:]
        self._pixels = [pixels[past:].clone()]  # not a view: it would keep all of them in memory

    def _warn_of_few(self, begin: float, different: int) -> None:
        if different < self._frames and not self._warned:
            warnings.warn(
                f"{self._name}: the clip at {begin:g} s has {different} different frames, fewer than the "
                f"{self._frames} asked for: some are read twice, as in any later clip that has too few",
                stacklevel=2,
            )
            self._warned = True
