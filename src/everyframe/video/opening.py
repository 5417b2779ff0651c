"""Open a source, choose its video stream, and learn how its pictures are shown."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
from av.sidedata.sidedata import SideDataContainer

from everyframe.video.errors import MissingVideoError, UnreachableError, VideoError
from everyframe.video.remote import is_remote, local_path, open_remote

Source = str | os.PathLike[str] | bytes | BinaryIO

_STILL_FORMATS = frozenset({"image2", "gif", "apng"})
# What a server and the way to it may answer: no, for good, or nothing, for now.
_REFUSALS = (
    av.error.HTTPNotFoundError,
    av.error.HTTPForbiddenError,
    av.error.HTTPUnauthorizedError,
    av.error.HTTPBadRequestError,
    FileNotFoundError,
    PermissionError,
)
_BREAKS = (OSError, av.error.HTTPError, av.error.HTTPClientError, av.error.EOFError, av.error.ExitError)
_only: dict[str, str] = {}
_threads: dict[str, int] = {"count": 0}  # as many as there are processors


def restrict(demuxers: str) -> None:
    """From now on this process opens only files of these kinds, and nothing that they name: for files of strangers.

    demuxers: FFmpeg's names, separated by commas. A playlist, or a script of cuts, is then no video at all.
    """
    _only.update(format_whitelist=demuxers, protocol_whitelist="file")


def limit_threads(count: int) -> None:
    """From now on decoders in this process use so many threads, where nobody asks for another number."""
    _threads.update(count=count)


def open_options() -> dict[str, str]:
    """What every container must be opened with."""
    return dict(_only)


def source_name(source: Source) -> str:
    """What to call a source in messages and in `VideoInfo.path`."""
    if isinstance(source, bytes | bytearray | memoryview | io.BytesIO):
        return "<bytes>"
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    name = getattr(source, "name", None)
    return name if isinstance(name, str) else "<file object>"


class Input:
    """An open container with its chosen video stream; reopens from the start, so seeking may fail safely."""

    def __init__(self, source: Any, *, threads: int | None = None, export_vectors: bool = False):
        self.name = source_name(source)
        self._own = is_remote(source)
        self.source: Any = _readable(source, self.name)
        self._threads = threads
        self._export_vectors = export_vectors
        self._offset = self.source.tell() if _seekable(self.source) else None
        self.container: Any = None
        self.stream: Any = None
        try:
            self.reopen()
        except BaseException:
            self.close()
            raise

    def reopen(self) -> None:
        """Open the source from its beginning (again)."""
        self._close_container()
        if self._offset is not None:
            self.source.seek(self._offset)
        self.container = _open(self.source, self.name)
        try:
            self.stream = _choose_stream(self.container, self.name)
            context = self.stream.codec_context
            # With frame threads FFmpeg now and then hands out a picture's vectors before they are complete (seen
            # with H.264), so a run would not repeat; slice threads cost speed only where there are many cores.
            context.thread_type = "SLICE" if self._export_vectors else "AUTO"
            context.thread_count = self._threads or _threads["count"]
            if self._export_vectors:
                context.flags2 |= av.codec.context.Flags2.export_mvs
        except BaseException:
            self._close_container()
            raise

    @property
    def is_streamed(self) -> bool:
        """Does FFmpeg read it from a server?"""
        return _is_address(self.source)

    @property
    def rewinds(self) -> bool:
        """Can it be read from its beginning as often as one likes?"""
        if isinstance(self.source, str | os.PathLike):
            return not self.is_streamed and os.path.isfile(self.source)
        return self._offset is not None

    def check_reachable(self, error: Exception) -> None:
        """Raise UnreachableError where an error of reading means that a server no longer answers."""
        if self.is_streamed and isinstance(error, _BREAKS):
            raise UnreachableError(
                f"{self.name}: did not come to its end ({_reason(error)}); check the network, and read it again"
            ) from error

    def close(self) -> None:
        """Close the file, unless it was handed in open; there is no opening it again."""
        self._close_container()
        if self._own:
            self.source.close()

    def _close_container(self) -> None:
        if self.container is not None:
            self.container.close()
            self.container = None

    @property
    def time_base(self) -> Fraction:
        return Fraction(self.stream.time_base)

    @property
    def header_rate(self) -> Fraction | None:
        """Average frames per second as the header says, if it says something believable."""
        for rate in (self.stream.average_rate, self.stream.guessed_rate, self.stream.base_rate):
            if rate and 0 < rate <= 1000:
                return Fraction(rate)
        return None

    def zero(self) -> Fraction:
        """The container time, in seconds, that counts as 0 (see `sample_frames` for the rule)."""
        starts = [
            stream.start_time * Fraction(stream.time_base)
            for stream in self.container.streams
            if stream.type in ("video", "audio") and stream.start_time is not None and not _is_cover(stream)
        ]
        own = self.stream.start_time
        first = min(starts, default=Fraction(0))
        return first if first > 0 else min(Fraction(0), (own or 0) * self.time_base)

    def promised_end(self) -> tuple[Fraction | None, str | None]:
        """Container time at which the header says the content ends, and who says it: "stream" or "container".

        For "container" the content is all streams together: sound may well be longer than the picture.
        """
        stream = self.stream
        begin = (stream.start_time or 0) * self.time_base
        if stream.duration:
            return begin + stream.duration * self.time_base, "stream"
        tagged = _clock_seconds(stream.metadata.get("DURATION", ""))
        if tagged:
            return tagged, "stream"
        if self.container.duration and self.container.format.name not in _STILL_FORMATS:
            start = Fraction(self.container.start_time or 0, 1_000_000)
            return start + Fraction(self.container.duration, 1_000_000), "container"
        return None, None


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """How a coded picture becomes the shown one: widened to square pixels, mirrored, turned clockwise."""

    coded_width: int
    coded_height: int
    sample_aspect_ratio: Fraction
    quarter_turns: int
    mirrored: bool

    @property
    def upright_before_turn(self) -> tuple[int, int]:
        """(width, height) after the aspect ratio, before the turn."""
        return max(1, round(self.coded_width * self.sample_aspect_ratio)), self.coded_height

    @property
    def shown(self) -> tuple[int, int]:
        """(width, height) as displayed."""
        width, height = self.upright_before_turn
        return (height, width) if self.quarter_turns % 2 else (width, height)

    def orient(self, picture: np.ndarray) -> np.ndarray:
        """Mirror and turn the first two axes of an array, contiguous."""
        if self.mirrored:
            picture = picture[:, ::-1]
        if self.quarter_turns:
            picture = np.rot90(picture, k=-self.quarter_turns)
        return np.ascontiguousarray(picture)


def geometry_of(frame: Any, stream: Any = None) -> Geometry:
    """Geometry from the first frame (display matrix) and its stream (sample aspect ratio)."""
    ratio = Fraction(1)
    if stream is not None:
        for given in (stream.sample_aspect_ratio, stream.codec_context.sample_aspect_ratio):
            if given and Fraction(1, 20) <= given <= 20:
                ratio = Fraction(given)
                break
    turns, mirrored = 0, False
    try:
        matrix = side_data(frame).get("DISPLAYMATRIX")
    except ValueError:  # PyAV has no name for some kinds, such as a photo's EXIF, and then gives none
        matrix, turns = None, round(-frame.rotation / 90) % 4
    if matrix is not None:
        a, b, _, c, d = np.frombuffer(bytes(matrix), dtype=np.int32)[:5].astype(float)
        mirrored = a * d - b * c < 0
        if mirrored:
            a, b = -a, -b
        # The matrix sends (1, 0) to (a, b) with y pointing down, so the angle is clockwise on the screen.
        turns = round(math.degrees(math.atan2(b, a)) / 90) % 4
    return Geometry(
        coded_width=frame.width,
        coded_height=frame.height,
        sample_aspect_ratio=ratio,
        quarter_turns=turns,
        mirrored=mirrored,
    )


def side_data(frame: Any) -> Any:
    """What `frame.side_data` gives, without making the frame refer to itself.

    That property keeps its answer in the frame and the answer keeps the frame, so pictures would stay in memory
    until Python's cycle collector happens to run: hundreds of them, gigabytes for large ones.
    """
    return SideDataContainer(frame)  # type: ignore[call-arg]


def has_audio(container: Any) -> bool:
    return any(stream.type == "audio" for stream in container.streams)


def video_streams(container: Any) -> list[Any]:
    """Video streams that are moving pictures, not cover art."""
    return [stream for stream in container.streams if stream.type == "video" and not _is_cover(stream)]


def packets_of(container: Any, *streams: Any) -> Iterator[Any]:
    """Packets of the given streams (all when none is given), without the empty one that ends each stream."""
    for packet in container.demux(*streams):
        if packet.size:
            yield packet


def _readable(source: Any, name: str) -> Any:
    """A source as FFmpeg can take it: bytes become a file, a remote file is opened."""
    if isinstance(source, bytes | bytearray | memoryview):
        return io.BytesIO(source)
    path = local_path(source)
    if path is not None:
        return path
    if not is_remote(source):
        return source
    if _only:
        raise VideoError(f"{name}: is an address, and only files are opened here")
    return open_remote(source)


def _open(source: Any, name: str) -> Any:
    if isinstance(source, str | os.PathLike):
        text = os.fspath(source)
        if _is_address(text):
            return _open_container(text, name, timeout=(15.0, 60.0))
        path = Path(text)
        if not path.exists():
            raise MissingVideoError(f"{name}: no such file")
        if path.is_dir():
            raise VideoError(f"{name}: is a folder; name the video files in it")
        if path.stat().st_size == 0:
            raise VideoError(f"{name}: the file is empty (0 bytes); copy or record it again")
        # Absolute, so that a colon in the name is not taken for a protocol.
        return _open_container(os.path.abspath(text), name)
    if not hasattr(source, "read"):
        raise TypeError(f"source must be a path, URL, bytes or binary file, got {type(source).__name__}")
    return _open_container(source, name)


def _open_container(source: Any, name: str, **settings: Any) -> Any:
    try:
        return av.open(source, container_options=open_options(), **settings)
    except av.error.FFmpegError as error:
        reason = _reason(error)
        if _is_address(source):
            refused, broken = isinstance(error, _REFUSALS), isinstance(error, _BREAKS)
            kind = MissingVideoError if refused else UnreachableError if broken else VideoError
            raise kind(f"{name}: cannot be opened ({reason}); check the address and the network") from error
        if isinstance(error, PermissionError):
            raise MissingVideoError(f"{name}: no permission to read this file") from error
        if _starts_like_mp4(source):
            raise VideoError(
                f"{name}: an MP4/MOV file without its index (moov): the recording or download was cut short; "
                "fetch it again"
            ) from error
        raise VideoError(f"{name}: not a video that FFmpeg can read ({reason})") from error


def _is_address(source: Any) -> bool:
    """Is it one that FFmpeg reads as it streams?"""
    return isinstance(source, str) and "://" in source


def _reason(error: Any) -> str:
    return getattr(error, "strerror", None) or str(error)


def _choose_stream(container: Any, name: str) -> Any:
    # FFmpeg reads any text file as "terminal art"; nobody who passes one means that.
    if container.format.name == "tty":
        raise VideoError(f"{name}: is a text file, not a video")
    candidates = video_streams(container)
    best = container.streams.best("video")
    if best is not None and _is_cover(best):
        best = candidates[0] if candidates else None
    if best is None:
        kind = "only sound" if has_audio(container) else "no video stream"
        extra = " (its cover picture is not a video)" if any(s.type == "video" for s in container.streams) else ""
        raise VideoError(f"{name}: has {kind}{extra}, so there are no frames to read")
    if best.codec_context is None:
        raise VideoError(f"{name}: FFmpeg has no decoder for its video stream; convert it to H.264 first")
    return best


def _is_cover(stream: Any) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _seekable(source: Any) -> bool:
    seekable = getattr(source, "seekable", None)
    return bool(seekable()) if callable(seekable) else False


def _starts_like_mp4(source: Any) -> bool:
    if isinstance(source, str):
        with open(source, "rb") as file:
            return file.read(8)[4:] == b"ftyp"
    if _seekable(source):
        source.seek(0)
        return bool(source.read(8)[4:] == b"ftyp")
    return False


def _clock_seconds(text: str) -> Fraction | None:
    """Matroska's DURATION tag, "00:00:10.333000000", in seconds."""
    parts = text.strip().split(":")
    try:
        hours, minutes, seconds = (Fraction(part) for part in parts)
    except ValueError:
        return None
    return hours * 3600 + minutes * 60 + seconds
