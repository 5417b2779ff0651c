"""Encode frames into a video file, and one picture into JPEG or PNG."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from everyframe.video.errors import VideoError

_SUBSAMPLED = ("420", "422", "nv12", "nv16", "p010", "yuyv", "uyvy")


def write_video(
    path: str | Path,
    frames: Iterable[np.ndarray],
    *,
    fps: float | Fraction,
    codec: str = "libx264",
    crf: int | None = None,
    pixel_format: str = "yuv420p",
    keyframe_every: int | None = None,
    options: Mapping[str, str] | None = None,
) -> None:
    """Encode `frames` (uint8 [H, W, 3] RGB, all of one size) at a constant rate.

    The suffix of `path` chooses the container. `crf` is the encoder's quality (lower is better),
    `keyframe_every` the distance of key frames in frames, and `options` go to the encoder as they are
    (`{"preset": "ultrafast"}`). The file appears under its name only when it is complete. Colours are BT.601,
    limited range, and tagged so.

    Raises VideoError for no frames, frames of another shape or dtype, an unknown codec, a codec the container
    cannot hold, and an odd width or height where the pixel format stores one colour sample for two pixels
    (`pixel_format="yuv444p"` takes any size); ValueError for an fps that is not positive.
    """
    rate = Fraction(fps).limit_denominator(100_000)
    if rate <= 0:
        raise ValueError(f"fps must be > 0, got {fps}")
    path = Path(path)
    settings = dict(options or {})
    if crf is not None:
        settings["crf"] = str(crf)
    iterator = iter(frames)
    first = next(iterator, None)
    if first is None:
        raise VideoError(f"{path}: no frames to write")
    _check_picture(path, first, first.shape)
    _check_size(path, first, pixel_format)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        with _scheduling_kept(), av.open(os.path.abspath(partial), "w") as container:
            stream = container.add_stream(codec, rate=rate, options=settings)
            stream.height, stream.width = first.shape[:2]
            stream.pix_fmt = pixel_format
            stream.codec_context.time_base = 1 / rate
            if keyframe_every is not None:
                stream.codec_context.gop_size = keyframe_every
            if pixel_format.startswith("yuv"):
                stream.codec_context.colorspace = 6  # SMPTE 170M, what the conversion below writes
                stream.codec_context.color_range = 2 if pixel_format.startswith("yuvj") else 1
            elif pixel_format.startswith("gray"):
                stream.codec_context.color_range = 2  # the conversion to grey keeps all 256 levels
            for index, pixels in enumerate(_chain(first, iterator)):
                _check_picture(path, pixels, first.shape)
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
                frame.pts, frame.time_base = index, 1 / rate
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        os.replace(partial, path)
    except (av.error.FFmpegError, av.codec.codec.UnknownCodecError) as error:
        reason = getattr(error, "strerror", None) or "no such encoder"
        raise VideoError(f"{path}: cannot be written with {codec}, {pixel_format}: {reason}") from error
    finally:
        partial.unlink(missing_ok=True)


def write_image(path: str | Path | None, pixels: np.ndarray, *, format: str | None = None, quality: int = 85) -> bytes:
    """Encode one picture (uint8 [H, W, 3] RGB) as JPEG or PNG; returns the bytes, and writes a file if named.

    `format` is "jpeg" or "png"; by default it follows the suffix of `path`, else it is "jpeg". `quality`
    (1-100) matters to JPEG only. Raises VideoError for another format, ValueError for a quality out of range.
    """
    if not 1 <= quality <= 100:
        raise ValueError(f"quality must be in 1..100, got {quality}")
    name = (format or (Path(path).suffix.lstrip(".") if path is not None else "") or "jpeg").lower()
    if name not in ("jpeg", "jpg", "png"):
        raise VideoError(f"{path}: pictures are written as jpeg or png, not {name}")
    _check_picture(path or "<picture>", pixels, pixels.shape)
    png = name == "png"
    context = av.CodecContext.create("png" if png else "mjpeg", "w")
    context.height, context.width = pixels.shape[:2]
    context.pix_fmt = "rgb24" if png else "yuvj444p" if quality >= 95 else "yuvj420p"
    context.time_base = Fraction(1, 25)
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    if not png:
        # libavcodec counts quantiser steps from 1 (best) to 31; the user counts percent.
        step = max(1, round(31 - 30 * quality / 100))
        context.options = {"qmin": str(step), "qmax": str(step)}
        frame = frame.reformat(format=context.pix_fmt, dst_colorspace="itu601", dst_color_range="JPEG")
    frame.pts, frame.time_base = 0, Fraction(1, 25)
    data = b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)])
    if path is not None:
        partial = Path(path).with_name(f".{Path(path).name}.{os.getpid()}.partial")
        try:
            partial.write_bytes(data)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    return data


@contextmanager
def _scheduling_kept() -> Iterator[None]:
    """SVT-AV1, run by root, makes the thread that calls it a real-time one, and does not take that back.

    All that this thread starts later, processes too, would push everything else off the processor.
    """
    if not hasattr(os, "sched_getscheduler"):
        yield
        return
    policy, priority = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        if os.sched_getscheduler(0) != policy:
            os.sched_setscheduler(0, policy, priority)


def _chain(first: np.ndarray, rest: Iterable[np.ndarray]) -> Iterable[np.ndarray]:
    yield first
    yield from rest


def _check_picture(path: str | Path, pixels: np.ndarray, shape: tuple[int, ...]) -> None:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise VideoError(f"{path}: frames must be uint8 [H, W, 3], got {pixels.dtype} {list(pixels.shape)}")
    if pixels.shape != shape:
        raise VideoError(f"{path}: all frames must have one size, got {list(pixels.shape)} after {list(shape)}")


def _check_size(path: Path, pixels: np.ndarray, pixel_format: str) -> None:
    height, width = pixels.shape[:2]
    if (width % 2 or height % 2) and any(mark in pixel_format for mark in _SUBSAMPLED):
        raise VideoError(
            f"{path}: {width}x{height} is odd and {pixel_format} needs even sizes; "
            'use pixel_format="yuv444p" or crop the frames'
        )
