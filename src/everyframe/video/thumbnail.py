"""Small pictures of a video: from key frames, which cost a fraction of a full decode, where these are dense enough."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from fractions import Fraction

import av

from everyframe.video.decode import Decoder
from everyframe.video.errors import VideoError
from everyframe.video.images import ImageFolder, is_folder
from everyframe.video.opening import Geometry, Input, Source, source_name
from everyframe.video.picture import Converter
from everyframe.video.shown import Picture
from everyframe.video.write import write_image

_KEY_FRAME_SECONDS = 4.0
_QUALITY = 75


def small_pictures(
    source: Source, *, every: float = 2.0, most: int = 1000, width: int = 160, image_fps: float = 3.0
) -> list[tuple[float, bytes]]:
    """(seconds, JPEG) of frames about `every` seconds apart, in order: true times, shown upright with square pixels.

    Only key frames are decoded where none is more than 4 s (or two steps) after the one before it; else all frames
    are. most: where that would be more pictures, they lie further apart. width: pixels as shown; smaller videos are
    not enlarged, and tall ones end at twice the width. image_fps: of a folder of images.
    What is damaged is left out. Raises VideoError when nothing can be read, ValueError for numbers out of range.
    """
    if not (math.isfinite(every) and every > 0):
        raise ValueError(f"every must be a number of seconds > 0, got {every}")
    if most < 1:
        raise ValueError(f"most must be at least 1, got {most}")
    if width < 16:
        raise ValueError(f"width must be at least 16 pixels, got {width}")
    if is_folder(source):
        folder = ImageFolder(source, rate=Fraction(image_fps).limit_denominator(1_000_000), on_damage="skip")
        return _collect(folder, iter(folder), _Cells(every, most, folder.info.duration_seconds), width).pictures
    with closing(Input(source)) as opened:
        decoder = Decoder(opened, on_damage="skip")
        cells = _Cells(every, most, decoder.info.duration_seconds)
        if _collect(decoder, _key_frames(opened, decoder), cells, width, dense=True).are_dense:
            return cells.pictures
        # The frames before the next key frame are what is missing: read it all, but not what nothing refers to.
        opened.reopen()
        decoder = Decoder(opened, on_damage="skip")
        opened.stream.codec_context.skip_frame = "NONREF"
        cells = _Cells(every, most, decoder.info.duration_seconds)
        found = _collect(decoder, iter(decoder), cells, width).pictures
    if not found:
        raise VideoError(f"{source_name(source)}: no frame of it could be turned into a picture")
    return found


@dataclass
class _Cells:
    """One picture, the first, of every `step` seconds."""

    every: float
    most: int
    duration: float | None
    pictures: list[tuple[float, bytes]] = field(default_factory=list)
    are_dense: bool = True

    def __post_init__(self) -> None:
        # At least so far apart that they fit; where the header lies they are thinned out later.
        self.step = max(self.every, (self.duration or 0.0) / self.most * 1.001)

    @property
    def gap(self) -> float:
        """The most seconds between two key frames that still count as dense."""
        return max(_KEY_FRAME_SECONDS, 2 * self.step)

    def wants(self, seconds: float) -> bool:
        return not self.pictures or self._cell(seconds) > self._cell(self.pictures[-1][0])

    def add(self, seconds: float, jpeg: bytes) -> None:
        self.pictures.append((seconds, jpeg))
        while len(self.pictures) > self.most:
            self.step *= 2
            kept: dict[int, tuple[float, bytes]] = {}
            for picture in self.pictures:
                kept.setdefault(self._cell(picture[0]), picture)
            self.pictures = list(kept.values())

    def _cell(self, seconds: float) -> int:
        return math.floor(seconds / self.step + 1e-6)


def _key_frames(opened: Input, decoder: Decoder) -> Iterator[Picture]:
    """Frames of a decoder that has read the first one; the others that are on their way come, too."""
    opened.stream.codec_context.skip_frame = "NONKEY"
    # A recording may begin within a group of pictures; its first picture is one that is shown all the same.
    return (picture for number, picture in enumerate(decoder) if not number or picture.frame.key_frame)


def _collect(
    frames: Decoder | ImageFolder, pictures: Iterator[Picture], cells: _Cells, width: int, *, dense: bool = False
) -> _Cells:
    """Fill the cells. dense: stop, and note it, where two pictures are too far apart."""
    convert = Converter(_shrunk(frames.geometry, width))
    last = 0.0
    for picture in pictures:
        seconds = float(picture.time * frames.unit)
        if dense and seconds - last > cells.gap:
            cells.are_dense = False
            return cells
        last = seconds
        if cells.wants(seconds):
            try:
                pixels = convert(picture, None, None)
            except av.error.FFmpegError:  # a damaged picture; the next will do
                continue
            cells.add(seconds, write_image(None, pixels, quality=_QUALITY))
    cells.are_dense = bool(cells.pictures) and (cells.duration or 0.0) - last <= cells.gap
    return cells


def _shrunk(geometry: Geometry, width: int) -> Geometry:
    """A geometry that scales to the small size in the same step as it straightens."""
    shown_width, shown_height = geometry.shown
    scale = min(1.0, width / shown_width, 2 * width / shown_height)
    small = [max(2, 2 * round(side * scale / 2)) for side in geometry.upright_before_turn]
    return replace(geometry, coded_width=small[0], coded_height=small[1], sample_aspect_ratio=Fraction(1))
