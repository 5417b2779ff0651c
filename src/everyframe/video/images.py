"""A folder of numbered images read as a video."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from everyframe.video.decode import Damage, Decoder, OnDamage
from everyframe.video.errors import VideoError
from everyframe.video.find import list_images
from everyframe.video.info import VideoInfo
from everyframe.video.opening import Geometry, geometry_of
from everyframe.video.shown import Picture


def is_folder(source: Any) -> bool:
    """Whether a source is a path to a folder."""
    return isinstance(source, str | os.PathLike) and Path(source).is_dir()


class ImageFolder:
    """The frames of a folder of images, image k shown from k / rate to (k + 1) / rate seconds."""

    def __init__(self, folder: Any, *, rate: Fraction | None, on_damage: OnDamage = "raise"):
        self._folder = Path(folder)
        self._images = list_images(self._folder)
        self._damage = Damage(str(folder), on_damage)
        if not self._images:
            raise VideoError(f"{folder}: is a folder without numbered images; name the video files in it")
        self.rate = rate or Fraction(1)
        self.unit = 1 / self.rate
        first = _read(self._images[0])
        self.geometry: Geometry = geometry_of(first)
        width, height = self.geometry.shown
        self._position = 0
        self.info = VideoInfo(
            path=str(folder),
            codec="images",
            container="folder",
            pixel_format=first.format.name,
            width=width,
            height=height,
            coded_width=first.width,
            coded_height=first.height,
            rotation=self.geometry.quarter_turns * 90,
            mirrored=self.geometry.mirrored,
            sample_aspect_ratio=1.0,
            duration_seconds=float(len(self._images) / self.rate) if rate else None,
            duration_from="content" if rate else None,
            average_fps=float(rate) if rate else None,
            num_frames_from_header=len(self._images),
            start_seconds=0.0,
            stream_index=0,
            num_video_streams=1,
            has_audio=False,
            num_frames_from_content=len(self._images),
        )

    @property
    def damage(self) -> list[str]:
        return self._damage.messages

    def __iter__(self) -> Iterator[Picture]:
        for index in range(self._position, len(self._images)):
            try:
                frame = _read(self._images[index])
            except VideoError as error:
                self._damage.note(f"image {self._images[index].name} cannot be read", error)
                continue
            Decoder.pictures += 1
            yield Picture(frame, index, 1, "I")

    def seek(self, seconds: Fraction) -> None:
        self._position = min(len(self._images), int(seconds * self.rate))

    def close(self) -> None:
        """Nothing stays open between images."""


def _read(path: Path) -> Any:
    try:
        with av.open(os.path.abspath(path)) as container:
            frame = next(container.decode(video=0), None)
    except (av.error.FFmpegError, IndexError) as error:
        raise VideoError(f"{path}: not an image that FFmpeg can read ({error})") from error
    if frame is None:
        raise VideoError(f"{path}: holds no picture")
    return frame
