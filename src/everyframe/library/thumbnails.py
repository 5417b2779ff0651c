"""Thumbnails of a video, for a library to keep."""

from __future__ import annotations

from typing import TYPE_CHECKING

from everyframe.library.records import Thumbnail

if TYPE_CHECKING:
    from everyframe.video import Source


def make_thumbnails(
    source: Source, *, every: float = 2.0, most: int = 1000, width: int = 160, image_fps: float = 3.0
) -> list[Thumbnail]:
    """Small pictures of a video about `every` seconds apart, at most `most`, in order.

    Their times are those of frames, and they are shown as they should be (rotation, pixel aspect). `width` in pixels;
    image_fps: images per second of a folder of images, which is what it was encoded with.
    Of a damaged video what can be read. Raises VideoError when nothing can.
    """
    from everyframe.video.thumbnail import small_pictures  # searching needs no decoder

    pictures = small_pictures(source, every=every, most=most, width=width, image_fps=image_fps)
    return [Thumbnail(seconds, jpeg) for seconds, jpeg in pictures]
