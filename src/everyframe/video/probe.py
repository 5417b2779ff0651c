"""Facts about a video, from its header and, on request, from its content."""

from __future__ import annotations

import dataclasses
import heapq
import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from everyframe.video.errors import VideoError
from everyframe.video.opening import Geometry, Input, Source, has_audio, packets_of, video_streams


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """Facts about one video stream. What a header says may be wrong: those names say where they come from."""

    path: str
    """As given; "<bytes>" for data in memory."""
    codec: str
    """FFmpeg's name of the coding ("h264", "av1"), not of the decoder; "images" for a folder of images."""
    container: str
    pixel_format: str
    width: int
    """As displayed: after rotation and sample aspect ratio."""
    height: int
    coded_width: int
    coded_height: int
    rotation: int
    """Degrees clockwise that show the coded picture upright: 0, 90, 180 or 270."""
    mirrored: bool = False
    """The coded picture is mirrored left to right before it is turned (some front cameras)."""
    sample_aspect_ratio: float
    """Width of a coded pixel over its height."""
    duration_seconds: float | None
    """Best known length of the picture track (for "container": of the whole file, sound included)."""
    duration_from: str | None
    """Who says so: "stream", "container" or "content"; None when nobody does."""
    average_fps: float | None
    """From the header."""
    num_frames_from_header: int | None
    start_seconds: float
    """Container time that counts as 0; added to a frame's time it gives the file's own clock."""
    stream_index: int
    num_video_streams: int
    has_audio: bool
    num_frames_from_content: int | None = None
    """This and the following: only after a scan of all packets. Frames that are shown."""
    average_fps_from_content: float | None = None
    variable_frame_rate: bool | None = None
    largest_gap_seconds: float | None = None
    """Longest time between the starts of two neighbouring frames."""
    num_keyframes: int | None = None


def probe(source: Source, *, scan: bool = False) -> VideoInfo:
    """Facts about a video file, URL, bytes, file object or folder of images.

    Opens it and decodes one frame (which tells the rotation). `scan=True` also reads all packets, without
    decoding them, and fills the fields about the content.

    Raises VideoError when it is missing, empty, not a video, without picture or without any readable frame.
    """
    if isinstance(source, str | os.PathLike) and Path(source).is_dir():
        from everyframe.video.images import probe_images

        return probe_images(Path(source))
    opened = Input(source)
    try:
        frame = _first_frame(opened)
        info = describe(opened, frame)
        if scan:
            opened.reopen()
            info = _scan(opened, info)
        return info
    finally:
        opened.close()


def describe(opened: Input, frame: Any) -> VideoInfo:
    """VideoInfo of an open input from its header and its first decoded frame."""
    stream, container = opened.stream, opened.container
    geometry: Geometry = frame if isinstance(frame, Geometry) else _geometry(opened, frame)
    end, duration_from = opened.promised_end()
    zero = opened.zero()
    width, height = geometry.shown
    average = stream.average_rate
    return VideoInfo(
        path=opened.name,
        codec=stream.codec_context.codec.canonical_name,
        container=container.format.name,
        pixel_format=stream.codec_context.pix_fmt or "unknown",
        width=width,
        height=height,
        coded_width=geometry.coded_width,
        coded_height=geometry.coded_height,
        rotation=geometry.quarter_turns * 90,
        mirrored=geometry.mirrored,
        sample_aspect_ratio=float(geometry.sample_aspect_ratio),
        duration_seconds=None if end is None else float(max(end - zero, Fraction(0))),
        duration_from=duration_from,
        average_fps=float(average) if average else None,
        num_frames_from_header=stream.frames or None,
        start_seconds=float(zero),
        stream_index=stream.index,
        num_video_streams=len(video_streams(container)),
        has_audio=has_audio(container),
    )


def _geometry(opened: Input, frame: Any) -> Geometry:
    from everyframe.video.opening import geometry_of

    return geometry_of(frame, opened.stream)


def _first_frame(opened: Input) -> Any:
    from everyframe.video.decode import Decoder

    decoder = Decoder(opened, on_damage="skip")
    first = decoder.first()
    if first is None:
        raise VideoError(f"{opened.name}: has a video stream but no readable frame")
    return first.frame


class _Gaps:
    """Smallest and largest step between presentation times that arrive in decoding order."""

    def __init__(self, tick: Fraction):
        self._tick = tick
        self._pending: list[int] = []
        self._last: int | None = None
        self.first: int | None = None
        self.smallest: int | None = None
        self.largest: int | None = None

    def add(self, pts: int) -> None:
        heapq.heappush(self._pending, pts)
        if len(self._pending) > 64:  # deeper than any codec reorders
            self._step(heapq.heappop(self._pending))

    def finish(self) -> None:
        while self._pending:
            self._step(heapq.heappop(self._pending))

    def _step(self, pts: int) -> None:
        if self.first is None:
            self.first = pts
        if self._last is not None and pts > self._last:
            gap = pts - self._last
            self.smallest = gap if self.smallest is None else min(self.smallest, gap)
            self.largest = gap if self.largest is None else max(self.largest, gap)
        self._last = pts if self._last is None else max(self._last, pts)

    @property
    def last(self) -> int | None:
        return self._last

    @property
    def variable(self) -> bool | None:
        """Whether steps differ by more than a clock that rounds to its ticks explains."""
        if self.smallest is None or self.largest is None:
            return None
        spread = self.largest - self.smallest
        return spread > 2 and spread > 0.02 * self.largest


def _scan(opened: Input, info: VideoInfo) -> VideoInfo:
    gaps = _Gaps(opened.time_base)
    frames = keyframes = 0
    end = 0
    try:
        for packet in packets_of(opened.container, opened.stream):
            if packet.is_discard:
                continue
            frames += 1
            keyframes += bool(packet.is_keyframe)
            pts = packet.pts if packet.pts is not None else packet.dts
            if pts is not None:
                gaps.add(pts)
                end = max(end, pts + (packet.duration or 0))
    except av.error.FFmpegError as error:
        raise VideoError(f"{opened.name}: cannot be read to its end ({error.strerror})") from error
    gaps.finish()
    duration, duration_from = info.duration_seconds, info.duration_from
    rate: float | None = None
    if gaps.first is not None and gaps.last is not None:
        zero = opened.zero()
        content = float(end * opened.time_base - zero)
        if content > 0:
            duration, duration_from = content, "content"
        if gaps.last > gaps.first:
            rate = float((frames - 1) / ((gaps.last - gaps.first) * opened.time_base))
    return dataclasses.replace(
        info,
        duration_seconds=duration,
        duration_from=duration_from,
        num_frames_from_content=frames,
        average_fps_from_content=rate,
        variable_frame_rate=gaps.variable,
        largest_gap_seconds=None if gaps.largest is None else float(gaps.largest * opened.time_base),
        num_keyframes=keyframes,
    )
