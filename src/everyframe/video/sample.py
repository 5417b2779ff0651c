"""Sample a video at a frame rate: real frames, true times, and the motion between them."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from types import TracebackType
from typing import Any, Literal

import numpy as np

from everyframe.video.decode import Decoder, OnDamage
from everyframe.video.errors import VideoError
from everyframe.video.foresight import UnforeseenError
from everyframe.video.images import ImageFolder, is_folder
from everyframe.video.info import VideoInfo
from everyframe.video.motion import MotionMeter
from everyframe.video.opening import Input, Source, source_name
from everyframe.video.picture import Converter, checksum
from everyframe.video.shown import Picture
from everyframe.video.targets import Scout, TargetRange, Targets, Timing

OnFewer = Literal["warn", "accept"]
Seam = list[float | int | None]
"""What was seen where one range of targets ends and the next begins: seconds of the last picture before and of the
first after it (None: the video ends there), and the latter's byte in the file (None: unknown) and checksum."""


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
    target: int | None = None
    """k of the first target time that it is nearest to; None where every frame is given."""


class SampledVideo(Iterator[Sample]):
    """What `sample_frames` returns: an iterator of `Sample`, to be run through once; a context manager.

    `info` is there from the start. `damage`, the numbers of frames, `motion_source`, `last_end_seconds` and the seams
    are complete when the iteration is.
    """

    def __init__(
        self,
        frames: Decoder | ImageFolder,
        plan: Timing,
        meter: MotionMeter | None,
        on_fewer: OnFewer = "warn",
        targets: TargetRange | None = None,
    ):
        self.info: VideoInfo = frames.info
        self.num_frames_decoded = 0
        """Frames on the way, whether they were wanted or not; those too that needed no decoding."""
        self.num_frames_left_out = 0
        """How many of these were not decoded, because nothing that is wanted needs them."""
        self.last_end_seconds = 0.0
        """When the last decoded frame ends: the length of the picture track, if it was read to its end."""
        self.head: Seam | None = None
        """Where a range of targets begins: None at the start of the sampling, or where the video ends before it."""
        self.tail: Seam | None = None
        """Where it ends: the `head` of the next range, if both were read rightly. None where the video ends first."""
        self._frames = frames
        self._plan = plan
        self._meter = meter
        self._on_fewer = on_fewer
        self._range = targets or TargetRange()
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
        given = 0
        try:
            for sample in self._pass():
                given += 1
                yield sample
        except UnforeseenError:
            # What was given is right: a picture counts only once the one after it has come as foreseen.
            if isinstance(self._frames, Decoder):
                self._frames.read_in_full(self._plan.start)
            yield from islice(self._pass(), given, None)
        finally:
            self._frames.close()

    def _pass(self) -> Generator[Sample, None, None]:
        """All samples. Raises UnforeseenError where pictures were left out that should not have been."""
        plan, unit = self._plan, self._frames.unit
        convert = Converter(self._frames.geometry)
        targets = Targets(plan, unit, self._range)
        self.num_frames_decoded = self.num_frames_left_out = 0
        self.head = self.tail = None
        emitted = inside = 0
        before: Picture | None = None
        held: Picture | None = None
        if self._range.first:
            self._go_to_first_target()
        if isinstance(self._frames, Decoder) and self._meter is None and plan.fps is not None:
            self._frames.foresee(Scout(plan, unit, self._range))
        for picture in self._frames:
            self.num_frames_decoded += 1
            self.num_frames_left_out += picture.frame is None
            self.last_end_seconds = float((picture.time + picture.duration) * unit)
            inside += plan.holds(picture.time * unit)
            if held is not None:
                hit = targets.nearest(held, picture)
                self._look_for_seams(targets, held, picture)
                if hit:
                    yield self._sample(convert, before, held, picture, targets.given)
                    emitted += 1
                if targets.done:
                    break
            if self._meter is not None:
                self._meter.add(picture)
            before, held = held, picture
        else:
            if held is not None:
                hit = targets.last(held)
                self._look_for_seams(targets, held, None)
                if hit:
                    yield self._sample(convert, before, held, None, targets.given)
                    emitted += 1
        self._report(emitted, targets.count, inside)

    def _go_to_first_target(self) -> None:
        """Seek to where the range begins, after learning the source of motion, which the second frame of all decides.

        The picture shown at the target before the first may serve that one, but not the first: for what comes after
        it all is known.
        """
        if self._meter is not None:
            targets, held = Targets(self._plan, self._frames.unit, TargetRange()), None
            for picture in self._frames:
                if held is not None and targets.nearest(held, picture):
                    self._meter.take(held)
                if self._meter.source is not None or targets.done:
                    break
                self._meter.add(picture)
                held = picture
            else:
                if held is not None and targets.last(held):
                    self._meter.take(held)
            self._meter.restart()
        rate = self._plan.fps or Fraction(1)
        self._frames.seek(self._plan.start + (self._range.first - 1) / rate)

    def _look_for_seams(self, targets: Targets, held: Picture, after: Picture | None) -> None:
        first, stop = self._range.first, self._range.stop
        if first and targets.settled(first):
            self.head = self._seam(held, after)
        if stop is not None and targets.settled(stop):
            self.tail = self._seam(held, after)

    def _seam(self, held: Picture, after: Picture | None) -> Seam:
        seen = held if after is None else after
        if seen.frame is None:
            raise UnforeseenError
        ends = None if after is None else float(after.time * self._frames.unit)
        return [float(held.time * self._frames.unit), ends, seen.position, checksum(seen.frame)]

    def _sample(
        self, convert: Converter, before: Picture | None, held: Picture, after: Picture | None, target: int | None
    ) -> Sample:
        if held.frame is None:
            raise UnforeseenError
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
            target=target,
        )

    def _report(self, emitted: int, wanted: int, inside: int) -> None:
        start, end = self._plan.start, self._plan.end
        if emitted == 0 and self._range.first == 0:
            upto = "on" if end is None else f"to {float(end):g} s"
            raise VideoError(
                f"{self.info.path}: no frame from {float(start):g} s {upto}; "
                f"the video ends at {self.last_end_seconds:.2f} s"
            )
        whole = self._range.first == 0 and self._range.stop is None
        each_given_once = whole and wanted > emitted == inside and not self.damage
        if self._plan.fps is not None and each_given_once and self._on_fewer == "warn":
            finish = self.last_end_seconds if end is None else min(float(end), self.last_end_seconds)
            seconds = max(finish - float(start), 1e-9)
            warnings.warn(
                f"{self.info.path}: {float(self._plan.fps):g} frames per second were asked for but the video "
                f"has {emitted} in {seconds:.2f} s ({emitted / seconds:.3g} per second); each is given once",
                UserWarning,
                stacklevel=5,
            )


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
    targets: TargetRange | None = None,
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
        header promises; "skip" leaves out what cannot be read, and `damage` lists it. At a rate and without motion
        a picture that nothing wanted refers to is not decoded, and not found damaged.
    on_fewer: "accept" gives no warning where the video has fewer frames than `fps`.
    threads: decoder threads; None leaves the choice to FFmpeg.
    targets: only the frames whose first target lies in this range, sought out. Ranges that follow each other give each
        frame of the whole exactly once; the first one's motion is empty, no frame is no error (but in a range from 0
        on), and few frames are no warning. `SampledVideo.head` and `tail` tell whether two ranges fit together.

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
    if targets is not None and plan.fps is None:
        raise ValueError("targets are those of a rate; fps=None gives every frame")
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    frames: Decoder | ImageFolder
    if is_folder(source):
        rate = exact_rate("image_fps", image_fps) or plan.fps or Fraction(1)
        frames = ImageFolder(os.fspath(source), rate=rate, on_damage=on_damage)  # type: ignore[arg-type]
    else:
        opened = Input(source, threads=threads, export_vectors=motion)
        try:
            frames = Decoder(opened, on_damage=on_damage, references=motion, skips=not motion and plan.fps is not None)
        except BaseException:
            opened.close()
            raise
    try:
        if plan.start > 0:
            frames.seek(plan.start)
        meter = MotionMeter(frames.geometry, frames.info.codec) if motion else None
        return SampledVideo(frames, plan, meter, on_fewer, targets)
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
