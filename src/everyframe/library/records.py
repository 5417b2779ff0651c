"""What a library tells: videos, collections, thumbnails, and what became of an addition."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

AddStatus = Literal["added", "replaced", "unchanged", "moved"]


@dataclass(frozen=True)
class Thumbnail:
    """A small picture of a video: `time` in seconds when its frame is shown, `jpeg` the bytes of a JPEG file."""

    time: float
    jpeg: bytes


@dataclass(frozen=True)
class Added:
    """What became of an addition.

    status: "added"; "replaced": the library had other features of this video; "unchanged": it had these;
        "moved": it had these, of a file that is now elsewhere.
    """

    id: int
    status: AddStatus


@dataclass(frozen=True, kw_only=True)
class Collection:
    """All videos that were read by one model in one way; those of two collections are never compared.

    id: short and fixed. label: for people. settings: how they were encoded, without what differs per video.
    num_videos, num_frames: what can be searched now; rows of clips (TempMe) count as frames.
    """

    id: str
    label: str
    model: dict[str, Any]
    settings: dict[str, Any]
    dim: int
    of_clips: bool
    num_videos: int
    num_frames: int


@dataclass(frozen=True, kw_only=True)
class VideoRecord:
    """One video of one collection.

    id: a random number below 2^63, never used again. path: where the file was when it was added or last found.
    duration, start, end: seconds; the features cover [start, end), and `last` is when the last frame is
        shown. fps: of the file. width, height: pixels as shown.
    added, date: UTC; date is when the file was last changed, where that could be seen, else `added`.
    mean: float32 [dim], the mean of the normalised rows. smoothed_mean: float32 [dim], that of the rows under the
        moving average of search, see `everyframe.library.moments`.
    """

    id: int
    collection: str
    path: str
    name: str
    fingerprint: str | None
    size_bytes: int | None
    duration: float | None
    start: float
    last: float
    end: float
    codec: str | None
    container: str | None
    width: int | None
    height: int | None
    fps: float | None
    num_frames: int
    added: datetime
    date: datetime
    mean: NDArray[np.float32] = field(repr=False, compare=False)
    smoothed_mean: NDArray[np.float32] = field(repr=False, compare=False)
    own: str = field(repr=False, compare=False)
    """JSON of what `provenance` says of this video alone."""
    shared: Mapping[str, Any] = field(repr=False, compare=False)
    """What `provenance` says of all videos of the collection: "model", "settings"."""

    @property
    def available(self) -> bool:
        """Is there a file at `path` now? True where that cannot be told, as in a folder that may not be read."""
        try:
            os.stat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True
        return True

    @property
    def provenance(self) -> dict[str, Any]:
        """ "video", "model", "settings" and "end_seconds", as `VideoFeatures` has them."""
        own = json.loads(self.own)
        return {
            "video": {**own["video"], "path": self.path},
            "model": own.get("model") or dict(self.shared["model"]),
            "settings": {**self.shared["settings"], **own["settings"]},
            "end_seconds": own["end_seconds"],
        }


@dataclass(frozen=True, kw_only=True)
class LibraryStats:
    """What a library holds. bytes_on_disk: old versions included; None on an object store."""

    num_videos: int
    num_frames: int
    seconds: float
    num_thumbnails: int
    num_versions: int
    bytes_on_disk: int | None
    collections: tuple[Collection, ...]
