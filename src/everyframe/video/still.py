"""One picture file as pixels."""

from __future__ import annotations

import io
import math
import os
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from everyframe.video.errors import VideoError
from everyframe.video.opening import geometry_of, open_options, source_name


def read_still(
    source: str | os.PathLike[str] | bytes, *, most_pixels: int = 50_000_000, shrink_to: int | None = None
) -> np.ndarray:
    """The picture of a file (PNG, JPEG, WebP, GIF, BMP, ...), or of its bytes: uint8 [H, W, 3] RGB.

    Upright, as its EXIF orientation says; what is transparent lies on white; of an animation the first picture.
    most_pixels: a larger picture is refused before it is decoded. shrink_to: pixels to which a larger one is reduced.
    Raises VideoError, which names the file and says what is wrong with it.
    """
    name = source_name(source)
    if isinstance(source, (str, os.PathLike)) and not Path(source).is_file():
        raise VideoError(f"{name}: no such picture")
    opened: Any = io.BytesIO(source) if isinstance(source, bytes) else os.path.abspath(source)
    try:
        with av.open(opened, container_options=open_options(), stream_options=[]) as container:
            stream = next((stream for stream in container.streams if stream.type == "video"), None)
            if stream is None or stream.codec_context is None:
                raise VideoError(f"{name}: holds no picture")
            if stream.codec_context.width * stream.codec_context.height > most_pixels:
                raise VideoError(
                    f"{name}: is {stream.codec_context.width} x {stream.codec_context.height} pixels, more than the "
                    f"{most_pixels / 1e6:g} million that are read; make it smaller"
                )
            stream.codec_context.options = {"max_pixels": str(most_pixels)}
            frame = next(container.decode(stream), None)
    except (av.error.FFmpegError, IndexError) as error:
        reason = getattr(error, "strerror", None) or error
        raise VideoError(f"{name}: not a picture that FFmpeg can read ({reason})") from error
    if frame is None:
        raise VideoError(f"{name}: holds no picture that can be read")
    return geometry_of(frame).orient(_pixels(frame, shrink_to))


def _pixels(frame: Any, shrink_to: int | None) -> np.ndarray:
    """RGB over white, before it is turned upright."""
    scale = 1.0 if shrink_to is None else min(1.0, math.sqrt(shrink_to / (frame.width * frame.height)))
    size = (max(1, round(frame.width * scale)), max(1, round(frame.height * scale)))
    transparent = frame.format.name == "pal8" or any(part.is_alpha for part in frame.format.components)
    shown = VideoReformatter().reformat(
        frame,
        width=size[0],
        height=size[1],
        format="rgba" if transparent else "rgb24",
        interpolation="AREA" if scale < 1 else "BICUBIC",
        dst_color_range="JPEG",
    )
    pixels: np.ndarray = shown.to_ndarray()
    if not transparent:
        return pixels
    opacity = pixels[..., 3:].astype(np.uint32)
    return ((pixels[..., :3] * opacity + 255 * (255 - opacity) + 127) // 255).astype(np.uint8)
