"""From the names in an annotation file to what a model makes of the videos: finding, cutting, encoding, remembering.

V clips (the views of one video), F frames, S side of the model's picture
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from everyframe.evaluation.reading import AnnotationError, spellings, stem
from everyframe.feature_files import FeaturesError, write_whole
from everyframe.video import (
    VideoError,
    alternate_views,
    decode_ahead,
    middle_frames,
    probe,
    sample_clip,
    second_frames,
    spread_frames,
    strided_views,
)
from everyframe.video.find import VIDEO_SUFFIXES

Progress = Callable[[str, int, int], None]
"""(what is being done, how much of it is done, of how much)"""
Found = dict[str, Tensor]
"""What was computed of one video, on the CPU."""


class Reader(Protocol):
    """A model with a way to read clips: `VidTLDR`, `ToMe`, ... of a video model, `FrameReader` of an image model.

    tokens and pool are only asked for where a cross-encoder reads the tokens.
    """

    model: Any

    @property
    def settings(self) -> dict[str, Any]: ...
    def tokens(self, pixels: Tensor) -> Any: ...
    def pool(self, tokens: Tensor) -> Tensor: ...
    def encode(self, pixels: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Failure:
    """A video that is left out, or a text of one that is empty."""

    video: str
    kind: Literal["missing", "unreadable", "no text"]
    error: str


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Which frames of a video, and which part of them, make the clips that a model sees.

    kind: "middle" (UMT), "spread" (ViFi-CLIP), "seconds" (TempMe), "strided" (VideoMAE on UCF101), "alternate"
        (VideoMAE on SSv2); see `everyframe.video.clip`.
    views: clips over time, of the last two kinds. stride: frames from one to the next, of "strided".
    crops: squares side by side along the longer side, for each view; None leaves the framing to `model.preprocess`.
    crop_share: their side as a share of the shorter side.
    end_seconds: how much of the video counts, from its beginning.
    """

    kind: Literal["middle", "spread", "seconds", "strided", "alternate"] = "middle"
    views: int = 1
    stride: int = 4
    crops: int | None = None
    crop_share: float = 1.0
    end_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.views < 1 or (self.crops is not None and self.crops < 1):
            raise ValueError(f"views and crops must be at least 1, got {self.views} and {self.crops}")
        if self.views > 1 and self.kind in ("middle", "spread", "seconds"):
            raise ValueError(f"{self.kind!r} sampling makes one view of a video, got views={self.views}")
        if not 0 < self.crop_share <= 1:
            raise ValueError(f"crop_share must be in (0, 1], got {self.crop_share}")

    def check_one_clip(self) -> None:
        """Raises ValueError where a video gives more than one clip, which only a classifier averages."""
        if self.views * (self.crops or 1) > 1:
            raise ValueError(f"this task reads one clip per video, got {self.views} views of {self.crops or 1} crops")

    def numbers(self, num_frames: int, count: int, *, fps: float | None = None) -> list[int]:
        """The frame numbers of all views, one after another. fps: of the video, which only "seconds" asks for."""
        if self.kind == "seconds":
            return second_frames(num_frames, count, fps=fps)
        if self.kind == "middle":
            return middle_frames(num_frames, count)
        if self.kind == "spread":
            return spread_frames(num_frames, count)
        if self.kind == "strided":
            views = strided_views(num_frames, count, stride=self.stride, views=self.views)
        else:
            views = alternate_views(num_frames, count, views=self.views)
        return [number for view in views for number in view]

    def clips(self, path: Path, model: Any, *, keep_partial: bool = False) -> Tensor:
        """The views of a video as the model takes them: float32 [views * crops, F, 3, S, S].

        Squares are cut before the picture is resized, not after it as in VideoMAE: the same but for rounding at the
        edges. A video with fewer frames than the model takes shows some twice; where frames are spread over it
        ("seconds"), that is a UserWarning. Raises VideoError.
        """
        fps = probe(path).average_fps if self.kind == "seconds" else None
        clip = sample_clip(
            path,
            model.frames,
            end=self.end_seconds,
            choose=partial(self.numbers, fps=fps),
            on_damage="skip" if keep_partial else "raise",
        )
        if self.kind == "seconds" and clip.num_frames < model.frames:
            warnings.warn(
                f"{path}: shows {clip.num_frames} frames, fewer than the {model.frames} asked for: some are read twice",
                stacklevel=2,
            )
        views = np.split(clip.frames, len(clip.frames) // model.frames)
        return torch.stack([model.preprocess(crop) for view in views for crop in self._crops(view)])

    def _crops(self, frames: np.ndarray) -> Iterator[np.ndarray]:
        if self.crops is None:
            yield frames
            return
        height, width = frames.shape[1:3]
        side = max(1, round(min(height, width) * self.crop_share))
        for crop in range(self.crops):
            # The first crop starts at one end and the last one stops at the other; a single one is central.
            share = crop / (self.crops - 1) if self.crops > 1 else 0.5
            top = int((height - side) * (share if height > width else 0.5))
            left = int((width - side) * (share if width >= height else 0.5))
            yield np.ascontiguousarray(frames[:, top : top + side, left : left + side])


class VideoFolder:
    """Finds the videos that annotations name, wherever below a folder they lie and whatever their extension."""

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise AnnotationError(f"{self.folder} is not a folder; give the one that holds the videos (--videos)")
        self._by_stem: dict[str, list[Path]] | None = None

    def find(self, name: str) -> Path | None:
        """The file (or folder of images) of a name, or None. Raises AnnotationError where several files fit."""
        direct = self.folder / name
        if direct.exists():
            return direct
        index = self._index()
        found = (index.get(spelling) for spelling in spellings(stem(os.path.basename(name))))
        candidates = next(filter(None, found), [])
        parent = os.path.dirname(name).strip("/")
        if len(candidates) > 1 and parent:
            candidates = [path for path in candidates if str(path.parent).endswith(parent)] or candidates
        if len(candidates) > 1:
            raise AnnotationError(
                f"{name} could be {candidates[0]} or {candidates[1]}; give a folder that holds it once (--videos)"
            )
        return candidates[0] if candidates else None

    def _index(self) -> dict[str, list[Path]]:
        if self._by_stem is None:
            self._by_stem = {}
            for place, folders, files in os.walk(self.folder):
                folders.sort()
                for name in sorted(files):
                    if os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES:
                        self._by_stem.setdefault(stem(name), []).append(Path(place, name))
        return self._by_stem


class Cache:
    """What was computed of each video, one file a video, for the same model, reader and sampling only.

    settings: everything that decides the numbers. A file that cannot be read counts as absent and is made again.
    """

    def __init__(self, folder: str | os.PathLike[str], settings: dict[str, Any]):
        self.folder = Path(folder)
        text = json.dumps(settings, sort_keys=True, default=str)
        self._settings = hashlib.sha256(text.encode()).hexdigest()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"cannot write to {self.folder}: {error.strerror or error}; choose another cache"
            ) from error

    def get(self, video: Path, names: Sequence[str]) -> Found | None:
        """The tensors under all of `names`, or None."""
        try:
            with np.load(self._file(video), allow_pickle=False) as arrays:
                return {name: _as_tensor(arrays[name], str(arrays[f"{name}_dtype"])) for name in names}
        except Exception:  # absent, cut short, or without one of the names: all mean that it must be made
            return None

    def put(self, video: Path, found: Found) -> None:
        """Write the tensors of a video, whole or not at all."""
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {}
        for name, value in found.items():
            arrays[name] = as_numpy(value)
            arrays[f"{name}_dtype"] = np.array(str(value.dtype).removeprefix("torch."))
        np.savez(buffer, **arrays)
        target = self._file(video)
        try:
            write_whole([(target, buffer.getbuffer())], target)
        except FeaturesError as error:
            raise ValueError(f"the cache cannot be written: {error}") from error

    def _file(self, video: Path) -> Path:
        status = video.stat()
        own = f"{self._settings} {os.path.abspath(video)} {status.st_size} {status.st_mtime_ns}"
        return self.folder / f"{stem(video.name)[:80]}-{hashlib.sha256(own.encode()).hexdigest()[:20]}.npz"


def as_numpy(value: Tensor) -> np.ndarray:
    """A tensor as NumPy stores it: bfloat16, which NumPy lacks, as its 16 bits."""
    value = value.detach().cpu().contiguous()
    return value.view(torch.int16).numpy() if value.dtype == torch.bfloat16 else value.numpy()


def _as_tensor(array: np.ndarray, dtype: str) -> Tensor:
    value = torch.from_numpy(array)
    return value.view(torch.bfloat16) if dtype == "bfloat16" else value


def reader_settings(reader: Reader, sampling: Sampling) -> dict[str, Any]:
    """What decides the numbers that a reader makes of a video."""
    model = reader.model
    return {
        "model": model.name,
        "weights_sha256": model.weights_sha256,
        "frames": model.frames,
        "image_size": model.image_size,
        "dtype": model.precision,
        "reader": reader.settings,
        "sampling": asdict(sampling),
    }


def read_videos(
    reader: Reader,
    videos: Sequence[str],
    folder: str | os.PathLike[str],
    sampling: Sampling,
    compute: Callable[[int, Tensor], Found],
    *,
    names: Sequence[str],
    depends: dict[str, Any] | None = None,
    cache: str | os.PathLike[str] | None = None,
    keep_partial: bool = False,
    progress: Progress | None = None,
) -> Iterator[tuple[int, Found | Failure]]:
    """(number, what `compute` makes of its clips) for every video, in order; a Failure where there is nothing.

    compute: (number, clips [views * crops, F, 3, S, S]) -> tensors under `names`. Videos are decoded one ahead. cache:
    a folder; what it holds of the same file, model, reader and sampling, and the same `depends` (whatever else decides
    the tensors), is not computed again.
    """
    root = VideoFolder(folder)
    store = None
    if cache is not None:
        task = {"partial": keep_partial, "names": list(names), "depends": depends}
        store = Cache(cache, reader_settings(reader, sampling) | task)

    paths = [root.find(video) for video in videos]  # before the first is decoded: a name may fit several files

    def prepare() -> Iterator[Found | Tensor | Failure]:
        for video, path in zip(videos, paths, strict=True):
            if path is None:
                yield Failure(video, "missing", f"{video}: is not in {root.folder}")
                continue
            known = None if store is None else store.get(path, names)
            try:
                yield known or sampling.clips(path, reader.model, keep_partial=keep_partial)
            except VideoError as error:
                yield Failure(video, "unreadable", str(error))

    with decode_ahead(prepare(), depth=1) as ahead:
        for number, (path, item) in enumerate(zip(paths, ahead, strict=True)):
            if isinstance(item, Tensor):
                item = {name: value.cpu() for name, value in compute(number, item).items()}
                if store is not None and path is not None:
                    store.put(path, item)
            yield number, item
            if progress is not None:
                progress("videos", number + 1, len(videos))
