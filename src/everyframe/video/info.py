"""What is known about a video before its frames are read."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from everyframe.video.opening import Geometry, Input, has_audio, video_streams


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


def describe(opened: Input, geometry: Geometry) -> VideoInfo:
    """VideoInfo of an open input, from its header and its first decoded frame."""
    stream, container = opened.stream, opened.container
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
