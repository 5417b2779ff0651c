"""Sample a video at a frame rate: real frames, true times, and the motion between them."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from types import TracebackType
from typing import Any, Literal

import numpy as np

from everyframe.video.decode import Decoder, OnDamage, Picture
from everyframe.video.errors import VideoError
from everyframe.video.images import ImageFolder, is_folder
from everyframe.video.info import VideoInfo
from everyframe.video.motion import MotionMeter
from everyframe.video.opening import Input, Source, source_name
from everyframe.video.picture import Converter
from everyframe.video.references import References

OnFewer = Literal["warn", "accept"]


@dataclass(frozen=True)
class Sample:
    """One real frame of the video."""

    time: float
    """Seconds since the video's time zero: when this frame is really shown."""
    pixels: np.ndarray
    """uint8 [H, W, 3] RGB, upright, with square pixels."""
    motion: np.ndarray | None
    """float32 [ceil(H / 8), ceil(W / 8)] over the whole picture: motion since the previous sample."""
    motion_source: str | None
    """"codec" (source pixels travelled) or "luma" (grey levels 0-255 changed); None for the first sample."""
    picture_type: str
    """What the codec made it: "I", "P", "B" or "?"."""
    duration: float
    """Seconds until the next frame of the video, as far as known."""


class SampledVideo(Iterator[Sample]):
    """What `sample_frames` returns: an iterator of `Sample`, to be run through once; a context manager.

    `info` is there from the start. `damage`, `num_frames_decoded`, `motion_source` and `last_end_seconds` are
    complete when the iteration is.
    """

    def __init__(
        self, frames: Decoder | ImageFolder, plan: Timing, meter: MotionMeter | None, on_fewer: OnFewer = "warn"
    ):
        self.info: VideoInfo = frames.info
        self.num_frames_decoded = 0
        self.last_end_seconds = 0.0
        """When the last decoded frame ends: the length of the picture track, if it was read to its end."""
        self._frames = frames
        self._plan = plan
        self._meter = meter
        self._on_fewer = on_fewer
        self._samples = self._run()

    @property
    def damage(self) -> list[str]:
        """What could not be read, with the second; empty for a sound file. At most 101 lines."""
        return self._frames.damage

    @property
    def motion_source(self) -> str | None:
        """ "codec" or "luma"; None without motion or before the second sample."""
        return self._meter.source if self._meter is not None else None

    def __iter__(self) -> SampledVideo:
        return self

    def __next__(self) -> Sample:
        return next(self._samples)

    def __enter__(self) -> SampledVideo:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; iterating further ends at once."""
        self._samples.close()
        self._frames.close()

    def _run(self) -> Generator[Sample, None, None]:
        plan, unit = self._plan, self._frames.unit
        convert = Converter(self._frames.geometry)
        targets = _Targets(plan, unit)
        emitted = inside = 0
        before: Picture | None = None
        held: Picture | None = None
        try:
            for picture in self._frames:
                self.num_frames_decoded += 1
                self.last_end_seconds = float((picture.time + picture.duration) * unit)
                inside += plan.holds(picture.time * unit)
                if held is not None:
                    if targets.nearest(held, picture):
                        yield self._sample(convert, before, held, picture)
                        emitted += 1
                    if targets.done:
                        break
                if self._meter is not None:
                    self._meter.add(picture)
                before, held = held, picture
            else:
                if held is not None and targets.last(held):
                    yield self._sample(convert, before, held, None)
                    emitted += 1
            self._report(emitted, targets.count, inside)
        finally:
            self._frames.close()

    def _sample(self, convert: Converter, before: Picture | None, held: Picture, after: Picture | None) -> Sample:
        motion, source = self._meter.take(held) if self._meter is not None else (None, None)
        unit = self._frames.unit
        shown_for = after.time - held.time if after is not None else held.duration
        return Sample(
            time=float(held.time * unit),
            pixels=convert(held, before, after),
            motion=motion,
            motion_source=source,
            picture_type=held.picture_type,
            duration=float(shown_for * unit),
        )

    def _report(self, emitted: int, wanted: int, inside: int) -> None:
        start, end = self._plan.start, self._plan.end
        if emitted == 0:
            upto = "on" if end is None else f"to {float(end):g} s"
            raise VideoError(
                f"{self.info.path}: no frame from {float(start):g} s {upto}; "
                f"the video ends at {self.last_end_seconds:.2f} s"
            )
        each_given_once = wanted > emitted == inside and not self.damage
        if self._plan.fps is not None and each_given_once and self._on_fewer == "warn":
            finish = self.last_end_seconds if end is None else min(float(end), self.last_end_seconds)
            seconds = max(finish - float(start), 1e-9)
            warnings.warn(
                f"{self.info.path}: {float(self._plan.fps):g} frames per second were asked for but the video "
                f"has {emitted} in {seconds:.2f} s ({emitted / seconds:.3g} per second); each is given once",
                UserWarning,
                stacklevel=4,
            )


@dataclass(frozen=True)
class Timing:
    """Which times of a video are asked for, in seconds: at a rate (None: every frame), within [start, end)."""

    fps: Fraction | None
    start: Fraction
    end: Fraction | None

    def holds(self, time: Fraction) -> bool:
        """Is this time, in seconds, within [start, end)?"""
        return time >= self.start and (self.end is None or time < self.end)


class _Targets:
    """Walks the target times start + k / fps, in exact arithmetic, as the frames go by."""

    def __init__(self, plan: Timing, unit: Fraction):
        self._plan = plan
        self._unit = unit
        self._next = 0
        # Targets at or after `end` are not wanted: k < (end - start) * fps.
        self._limit: int | None = None
        if plan.end is not None and plan.fps is not None:
            self._limit = math.ceil((plan.end - plan.start) * plan.fps)

    @property
    def count(self) -> int:
        """Targets that have found their frame."""
        return self._next

    @property
    def done(self) -> bool:
        return self._limit is not None and self._next >= self._limit

    def nearest(self, held: Picture, after: Picture) -> bool:
        """Whether `held` is the frame nearest to a target; a target halfway between two takes the earlier."""
        if self._plan.fps is None:
            return self._every(held, after)
        if not self._plan.holds(held.time * self._unit):
            return False
        if not self._plan.holds(after.time * self._unit):  # the last frame of the range serves what is left
            return self._settle(self._limit or 0)
        middle = Fraction(held.time + after.time, 2) * self._unit
        return self._settle(math.floor((middle - self._plan.start) * self._plan.fps) + 1)

    def last(self, held: Picture) -> bool:
        """The same for the last frame, which serves the targets before its own end."""
        if self._plan.fps is None:
            return self._every(held, None)
        if not self._plan.holds(held.time * self._unit):
            return False
        finish = (held.time + held.duration) * self._unit
        return self._settle(math.ceil((finish - self._plan.start) * self._plan.fps))

    def _settle(self, upto: int) -> bool:
        if self._limit is not None:
            upto = min(upto, self._limit)
        hit = upto > self._next
        self._next = max(self._next, upto)
        return hit

    def _every(self, held: Picture, after: Picture | None) -> bool:
        end = self._plan.end
        if after is not None and end is not None and after.time * self._unit >= end:
            self._limit = 0
        return self._plan.holds(held.time * self._unit)


def sample_frames(
    source: Source,
    fps: float | Fraction | None = 3.0,
    *,
    start: float | None = None,
    end: float | None = None,
    motion: bool = False,
    on_damage: OnDamage = "raise",
    on_fewer: OnFewer = "warn",
    threads: int | None = None,
    image_fps: float | None = None,
) -> SampledVideo:
    """Frames of a video at `fps` per second, as an iterator that streams: memory does not grow with length.

    For each target time start + k / fps (k = 0, 1, ..., before `end` and before the last frame's end) the
    frame shown nearest to it is given (the earlier of two equally near), each frame at most once: frames are
    never invented or repeated, and `Sample.time` is the frame's own time. With more `fps` than the video has,
    every frame comes once and a UserWarning says how many there are. `fps=None` gives every frame.

    Time 0 is the container's own zero, as players show it: pictures that an edit list hides are not shown and
    do not count. Where everything in the file starts later than zero (broadcast streams, cuts), time 0 is the
    start of the earliest sound or picture, so that the two keep their relation; where the picture starts
    before zero, it is the first picture. `info.start_seconds` is what was subtracted.

    source: a path; a URL; bytes; a binary file object; or a folder of numbered images (in natural order,
        `image_fps` of them per second; by default as many as `fps`, so each image is a sample, and 1 with
        `fps=None`).
    start, end: seconds; only frames whose time lies in [start, end). They equal those of a full decode.
    motion: fill `Sample.motion`: from the codec's motion vectors where FFmpeg exports them (H.264, MPEG-4,
        MPEG-2 and their relatives), else from luma. `Sample.motion_source` says which; a file has only one.
    on_damage: "raise" raises VideoError at the first damaged packet, or at the end when less came than the
        header promises; "skip" leaves out what cannot be read, and `damage` lists it.
    on_fewer: "accept" gives no warning where the video has fewer frames than `fps`.
    threads: decoder threads; None leaves the choice to FFmpeg.

    Colours follow the matrix and range the file states (BT.601 where it states none, as FFmpeg does);
    transparency is dropped; frames flagged as interlaced are deinterlaced; frames of another size than the
    first (a stream that changes its resolution) are scaled to it.

    Raises: VideoError when the file is missing, empty, not a video, without picture, damaged, or for a bad
    range; ValueError for an fps that is not above 0.
    """
    plan = Timing(exact_rate("fps", fps), *time_range(source, start, end))
    if on_damage not in ("raise", "skip"):
        raise ValueError(f'on_damage must be "raise" or "skip", got {on_damage!r}')
    if on_fewer not in ("warn", "accept"):
        raise ValueError(f'on_fewer must be "warn" or "accept", got {on_fewer!r}')
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    frames: Decoder | ImageFolder
    if is_folder(source):
        rate = exact_rate("image_fps", image_fps) or plan.fps or Fraction(1)
        frames = ImageFolder(os.fspath(source), rate=rate, on_damage=on_damage)  # type: ignore[arg-type]
    else:
        opened = Input(source, threads=threads, export_vectors=motion)
        try:
            frames = Decoder(opened, on_damage=on_damage, references=References() if motion else None)
        except BaseException:
            opened.close()
            raise
    try:
        if plan.start > 0:
            frames.seek(plan.start)
        meter = MotionMeter(frames.geometry, frames.info.codec) if motion else None
        return SampledVideo(frames, plan, meter, on_fewer)
    except BaseException:
        frames.close()
        raise


def exact_rate(name: str, value: float | Fraction | None) -> Fraction | None:
    if value is None:
        return None
    if not math.isfinite(value) or value <= 0:
        raise ValueError(f"{name} must be > 0, got {value}")
    # 29.97 means 2997/100, not the binary fraction nearest to it.
    return Fraction(value).limit_denominator(1_000_000)


def time_range(source: Any, start: float | None, end: float | None) -> tuple[Fraction, Fraction | None]:
    for name, value in (("start", start), ("end", end)):
        if value is not None and (not math.isfinite(value) or value < 0):
            raise VideoError(f"{source_name(source)}: {name} must be a number of seconds from 0 on, got {value}")
    begin = Fraction(start or 0).limit_denominator(1_000_000)
    finish = None if end is None else Fraction(end).limit_denominator(1_000_000)
    if finish is not None and finish <= begin:
        raise VideoError(f"{source_name(source)}: end must be after start, got start={start or 0:g}, end={end:g}")
    return begin, finish
