"""A video as one that every browser plays: H.264 and AAC in MP4, small, with its times kept."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.filter

from everyframe.video.decode import Decoder
from everyframe.video.errors import VideoError
from everyframe.video.opening import Geometry, Input, Source, packets_of

_TICK = Fraction(1, 90_000)
_AUDIO_RATE = 48_000


def make_preview(
    source: Source,
    out: str | Path,
    *,
    short_side: int = 720,
    crf: int = 25,
    progress: Callable[[float, float | None], None] | None = None,
) -> None:
    """Write `source` as H.264 (and AAC where it has sound) to an MP4 file that plays while it loads.

    Pictures are upright, with square pixels, at most `short_side` by 16/9 of that, and shown at the times that
    `sample_frames` gives them, so that a moment found there is at that second here. What is damaged is left out.
    progress: called with the seconds written and the video's duration, None where nobody knows it.
    `out` appears whole or not at all. Raises VideoError where the source cannot be read or nothing be written.
    """
    out = Path(out)
    partial = out.with_name(f".{out.stem}.{os.getpid()}.partial.mp4")
    opened = Input(source)
    decoder = None
    try:
        decoder = Decoder(opened, on_damage="skip")
        zero = opened.zero()
        with av.open(os.path.abspath(partial), "w", format="mp4", options={"movflags": "faststart"}) as container:
            pictures = _Pictures(container, decoder.geometry, short_side, crf)
            sound = _Sound.of(source, container, zero)
            for picture in decoder:
                seconds = picture.time * decoder.unit
                pictures.add(picture.frame, seconds)
                if sound is not None:
                    sound.up_to(float(seconds))
                if progress is not None:
                    progress(float(seconds), decoder.info.duration_seconds)
            pictures.finish()
            if sound is not None:
                sound.finish()
        os.replace(partial, out)
    except av.error.FFmpegError as error:
        raise VideoError(f"{opened.name}: cannot be converted ({error.strerror or error})") from error
    finally:
        if decoder is not None:
            decoder.close()
        opened.close()
        partial.unlink(missing_ok=True)


class _Pictures:
    """The video stream: each frame scaled, turned upright, and encoded."""

    def __init__(self, container: Any, geometry: Geometry, short_side: int, crf: int) -> None:
        self._container = container
        self._geometry = geometry
        width, height = geometry.shown
        scale = min(1.0, short_side / min(width, height), short_side * 16 / 9 / max(width, height))
        shown = (_even(width * scale), _even(height * scale))
        self._before_turn = shown[::-1] if geometry.quarter_turns % 2 else shown
        # The rate is only a hint to the encoder: times are those of the frames.
        stream = container.add_stream("libx264", rate=30, options={"preset": "veryfast", "crf": str(crf)})
        stream.width, stream.height = shown
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = _TICK
        stream.codec_context.gop_size = 60  # seeking lands within two seconds
        self._stream = stream
        self._graph: Any = None
        self._kind: tuple[Any, ...] = ()
        self._last = -1

    def add(self, frame: Any, seconds: Fraction) -> None:
        kind = (frame.width, frame.height, frame.format.name)
        if kind != self._kind:
            self._drain()
            self._graph, self._kind = self._new_graph(frame), kind
        self._last = max(round(seconds / _TICK), self._last + 1)
        frame.pts, frame.time_base = self._last, _TICK
        frame.pict_type = 0  # the encoder chooses its key frames itself
        self._graph.push(frame)
        self._pull()

    def finish(self) -> None:
        self._drain()
        self._container.mux(self._stream.encode(None))

    def _new_graph(self, frame: Any) -> Any:
        graph = av.filter.Graph()
        width, height = self._before_turn
        steps = ["bwdif=mode=send_frame:deint=interlaced", f"scale={width}:{height}:out_range=tv", "setsar=1"]
        if self._geometry.mirrored:
            steps.append("hflip")
        turns = {0: [], 1: ["transpose=clock"], 2: ["hflip", "vflip"], 3: ["transpose=cclock"]}
        steps += [*turns[self._geometry.quarter_turns], "format=yuv420p"]
        last = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=_TICK)
        for step in steps:
            name, _, arguments = step.partition("=")
            following = graph.add(name, arguments or None)
            last.link_to(following)
            last = following
        last.link_to(graph.add("buffersink"))
        graph.configure()
        return graph

    def _drain(self) -> None:
        if self._graph is not None:
            self._graph.push(None)
            self._pull()

    def _pull(self) -> None:
        while True:
            try:
                frame = self._graph.pull()
            except (BlockingIOError, EOFError):
                return
            frame.pict_type = 0
            self._container.mux(self._stream.encode(frame))


class _Sound:
    """The sound, in step with the pictures: what one stream is ahead of the other waits in memory."""

    def __init__(self, opened: Input, track: Any, container: Any, zero: Fraction) -> None:
        self._opened, self._track, self._container, self._zero = opened, track, container, zero
        self._stream = container.add_stream("aac", rate=_AUDIO_RATE, options={"b": "128k"})
        self._stream.layout = "stereo"
        self._resampler = av.AudioResampler(format="fltp", layout="stereo", rate=_AUDIO_RATE, frame_size=1024)
        self._next = 0  # sample after the last one written
        self._frames = self._decode()

    @classmethod
    def of(cls, source: Source, container: Any, zero: Fraction) -> _Sound | None:
        """None where the video has no sound that can be decoded. A source that is a stream cannot be read twice."""
        if not isinstance(source, (str, os.PathLike, bytes)):
            return None
        opened = Input(source)
        track = opened.container.streams.best("audio")
        if track is None or track.codec_context is None:
            opened.close()
            return None
        return cls(opened, track, container, zero)

    def up_to(self, seconds: float) -> None:
        """Write what is heard until then."""
        while self._next / _AUDIO_RATE <= seconds:
            frame = next(self._frames, None)
            if frame is None:
                self._next = 1 << 62
                return
            self._write(frame)

    def finish(self) -> None:
        for frame in self._frames:
            self._write(frame)
        self._container.mux(self._stream.encode(None))
        self._opened.close()

    def _write(self, frame: Any) -> None:
        # A track that jumps back must not: the file's times only grow.
        stamp = self._next if frame.pts is None else max(frame.pts, self._next)
        frame.pts, frame.time_base = stamp, Fraction(1, _AUDIO_RATE)
        self._next = stamp + frame.samples
        self._container.mux(self._stream.encode(frame))

    def _decode(self) -> Iterator[Any]:
        failures = 0
        packets = packets_of(self._opened.container, self._track)
        while failures < 4:
            try:
                packet = next(packets, None)
                if packet is None:
                    break
                frames = packet.decode()
            except av.error.FFmpegError:
                failures += 1  # without that piece of sound
                continue
            for frame in frames:
                if frame.pts is not None:
                    seconds = frame.pts * Fraction(frame.time_base) - self._zero
                    frame.pts, frame.time_base = round(seconds * frame.sample_rate), Fraction(1, frame.sample_rate)
                yield from self._resampler.resample(frame)
        yield from self._resampler.resample(None)


def _even(length: float) -> int:
    return max(2, 2 * round(length / 2))
