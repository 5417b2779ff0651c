"""Facts about a video, from its header and, on request, from its content."""

from __future__ import annotations

import dataclasses
import heapq
from fractions import Fraction

import av

from everyframe.video.decode import Decoder
from everyframe.video.errors import VideoError
from everyframe.video.images import ImageFolder, is_folder
from everyframe.video.info import VideoInfo
from everyframe.video.opening import Input, Source, packets_of


def probe(source: Source, *, scan: bool = False) -> VideoInfo:
    """Facts about a video file, URL, bytes, file object or folder of images.

    Opens it and decodes one frame (which tells the rotation). `scan=True` also reads all packets, without
    decoding them, and fills the fields about the content.

    Raises VideoError when it is missing, empty, not a video, without picture or without any readable frame.
    """
    if is_folder(source):
        return ImageFolder(source, rate=None).info
    opened = Input(source)
    try:
        info = Decoder(opened, on_damage="skip").info
        if scan:
            opened.reopen()
            info = _scan(opened, info)
        return info
    finally:
        opened.close()


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
        opened.check_reachable(error)
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
