"""Clips to train on: from a user's own videos, WebDataset shards, or a table of captions.

F frames per clip, H, W pixels, T samples of a window; seconds are the video's own presentation times.
"""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from array import array
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np

from everyframe.training.decoding import length_of, load_window, read_clip, shown_per_second
from everyframe.training.shards import MemberFile, find_shards, index_shard
from everyframe.training.tables import read_table
from everyframe.video import NoVideosError, VideoError, find_videos
from everyframe.video.find import VIDEO_SUFFIXES

__all__ = ["Clip", "Clips", "clip_name", "load_window", "open_clips"]

Window = tuple[np.ndarray, list[np.ndarray] | None, np.ndarray]


@dataclass(frozen=True)
class Clip:
    """A few frames of one video and what is said about them."""

    frames: np.ndarray
    """uint8 [F, H, W, 3] RGB, upright, in the order they are shown."""
    caption: str | None
    video: str
    """The video it comes from, as `Clips.video`."""
    seconds: float
    """The time of its first frame."""

    @property
    def name(self) -> str:
        return clip_name(self.video, self.seconds)


def clip_name(video: str, seconds: float) -> str:
    """What messages and logs call the clip of a video that begins there."""
    return f"{video} at {seconds:.2f} s"


class Clips(Protocol):
    """A data set: numbered clips, each of a few frames. Indices run from 0 to len - 1."""

    frames: int
    """F, frames per clip."""
    captioned: bool
    """Whether every clip carries a caption; otherwise none does."""

    def __len__(self) -> int:
        """Number of clips."""
        ...

    def video(self, index: int) -> str:
        """The video that clip `index` comes from: its path."""
        ...

    def video_number(self, index: int) -> int:
        """The same for all clips of one video and no other, from 0 on: cheaper than `video`."""
        ...

    def start(self, index: int) -> float:
        """Earliest second at which the clip may start, to hold out the end of a single long video."""
        ...

    def end(self, index: int) -> float:
        """The second at which the clip's part of its video ends; infinite where that is the end of the video."""
        ...

    def load(self, index: int, seed: int) -> Clip:
        """Decode a clip; the same index and seed (from 0 on) give the same clip. Raises VideoError."""
        ...

    def window(self, index: int, *, seconds: float, fps: float, motion: bool) -> Window:
        """Consecutive samples of the clip's video from `start(index)` on, as `load_window`; may outlast the clip.

        An image folder has as many images per second as its clips show.
        """
        ...

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the list of clips: names, sizes, captions, frames and rate, not the folder it lies in."""
        ...


def open_clips(
    videos: str | Path | Sequence[str | Path],
    captions: str | Path | None = None,
    *,
    frames: int = 4,
    rate: float = 1.0,
    failures: list[VideoError] | None = None,
) -> Clips:
    """The clips of `frames` frames at `rate` per second that some videos give.

    videos: one or several of either kind, not of both:

    - files, folders, patterns and `.txt` lists, as `everyframe.video.find_videos` takes them. Without captions, a
      video gives one clip per consecutive window of frames / rate seconds, at least one. Its header is read now.
    - WebDataset shards: a `.tar`, a folder of them, a pattern, or braces (`{000000..000012}.tar`), each video a
      `key.mp4` with `key.txt` or the field "caption" or "text" of `key.json`. One clip per video. The tars are
      indexed now and their videos read later, at random (see `everyframe.training.shards`).

    captions: a .csv, .tsv, .jsonl or .parquet table of (video, caption), optionally with start and end in seconds
        (see `everyframe.training.tables`): one clip per row, within [start, end). A row names its video by its
        path, absolute or relative, or by its bare name, each with or without suffix. Captions in shards are
        then ignored.

    A clip starts at a random second of its window, segment or video. Where `rate` leaves no room for all frames, they
    are spread evenly over what there is. Videos without a caption, where others have one, and rows whose video is
    not there are left out with one UserWarning for each of the two. The result can be pickled for worker processes,
    and holds 10 million clips in little more than the bytes of their names and captions.

    failures: collects VideoErrors of videos that cannot be used, and the rest goes on; without it the first is raised.
    Files that are only found out to be damaged when their clip is loaded raise VideoError there.

    Raises NoVideosError or VideoError when no video can be used; ValueError for frames or rate out of range, tars
    mixed with videos, and a table that cannot be read, has no caption, names none of the videos, or names one
    ambiguously.
    """
    if frames < 1:
        raise ValueError(f"frames must be at least 1, got {frames}")
    if not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"rate must be a number of frames per second > 0, got {rate}")
    paths = [videos] if isinstance(videos, str | Path) else list(videos)
    failed: list[VideoError] = [] if failures is None else failures
    before = len(failed)
    shards, others = find_shards(paths, failures)
    if shards and others:
        raise ValueError(f"videos mixes tar files ({shards[0]}) with others ({others[0]}); train on one kind at a time")
    clips = _StoredClips(frames=int(frames), rate=float(rate))
    said = _Texts()
    if shards:
        said = _add_shards(clips, shards, failures)
    elif others or not paths:
        for path in find_videos(others, failures=failures):
            clips.add_video(str(path.parent), path.name, size=_size(path))
    if captions is not None and clips.num_videos:
        _add_rows(clips, Path(captions), where=", ".join(map(str, paths)))
    elif shards:
        _add_members(clips, said)
    else:
        _add_windows(clips, failures)
    if not len(clips):
        if len(failed) - before == 1:
            raise failed[-1]
        first = f"; the first: {failed[before]}" if failed[before:] else ""
        raise NoVideosError(f"none of the {len(failed) - before} videos and places can be used{first}")
    return clips


class _Texts:
    """A list of strings in one block of memory, a few bytes more each than their UTF-8."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._ends = array("q", [0])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        return self._bytes[self._ends[index] : self._ends[index + 1]].decode("utf-8", "surrogateescape")

    def append(self, text: str) -> None:
        self._bytes += text.encode("utf-8", "surrogateescape")
        self._ends.append(len(self._bytes))

    def update(self, digest: Any) -> None:
        digest.update(self._bytes)
        digest.update(self._ends)


class _StoredClips:
    """All `Clips` there are: videos (files or members of tars) and ranges of them, in flat arrays."""

    def __init__(self, *, frames: int, rate: float):
        self.frames = frames
        self.captioned = False
        self.rate = rate
        self._places: list[str] = []  # folders, or tars
        self._place = array("i")
        self._names = _Texts()
        self._offset = array("q")  # -1: a file of its own
        self._size = array("q")
        self._video = array("q")  # this and the following: one per clip
        self._low = array("d")
        self._high = array("d")  # NaN: the end of the video
        self._captions = _Texts()
        self._fingerprint: str | None = None

    @property
    def num_videos(self) -> int:
        return len(self._names)

    def add_video(self, place: str, name: str, *, size: int, offset: int = -1) -> None:
        """Videos of one place come one after the other."""
        if not self._places or self._places[-1] != place:
            self._places.append(place)
        self._place.append(len(self._places) - 1)
        self._names.append(name)
        self._size.append(size)
        self._offset.append(offset)

    def add_clip(self, video: int, low: float, high: float, caption: str | None) -> None:
        self._video.append(video)
        self._low.append(low)
        self._high.append(high)
        if caption is not None:
            self._captions.append(caption)
            self.captioned = True

    def path_of(self, video: int) -> str:
        return str(Path(self._places[self._place[video]]) / self._names[video])

    def name_of(self, video: int) -> str:
        return self._names[video]

    def open(self, video: int) -> AbstractContextManager[Any]:
        """The source of a video, to be used in a `with`."""
        path, offset = self.path_of(video), self._offset[video]
        if offset < 0:
            return nullcontext(path)
        return MemberFile(self._places[self._place[video]], offset, self._size[video], path)

    def __len__(self) -> int:
        return len(self._video)

    def video(self, index: int) -> str:
        return self.path_of(self._video[self._checked(index)])

    def video_number(self, index: int) -> int:
        return self._video[self._checked(index)]

    def start(self, index: int) -> float:
        return self._low[self._checked(index)]

    def end(self, index: int) -> float:
        high = self._high[self._checked(index)]
        return math.inf if math.isnan(high) else high

    def load(self, index: int, seed: int) -> Clip:
        low, high = self._low[self._checked(index)], self._high[index]
        draw = float(np.random.default_rng([seed, index]).random())
        frames, times = self._read(
            index,
            lambda source: read_clip(source, frames=self.frames, rate=self.rate, low=low, high=high, draw=draw),
        )
        caption = self._captions[index] if self.captioned else None
        return Clip(frames, caption, self.video(index), float(times[0]))

    def window(self, index: int, *, seconds: float, fps: float, motion: bool) -> Window:
        start = self.start(index)
        return self._read(
            index,
            lambda source: load_window(
                source, start=start, seconds=seconds, fps=fps, motion=motion, image_fps=self.rate
            ),
        )

    @property
    def fingerprint(self) -> str:
        if self._fingerprint is None:
            digest = hashlib.sha256(f"{self.frames} {self.rate!r} {len(self)}".encode())
            for values in (self._size, self._video, self._low, self._high):
                digest.update(values)
            self._names.update(digest)
            self._captions.update(digest)
            self._fingerprint = digest.hexdigest()[:16]
        return self._fingerprint

    def _checked(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"there are {len(self)} clips, counted from 0; got index {index}")
        return int(index)

    def _read(self, index: int, reader: Callable[[Any], Any]) -> Any:
        try:
            with self.open(self._video[index]) as source:
                return reader(source)
        except OSError as error:  # a tar that went away
            raise VideoError(f"{self.video(index)}: cannot be read ({error.strerror or error})") from error


def _size(path: Path) -> int:
    """Bytes of a file, or of the files of an image folder."""
    if path.is_dir():
        return sum(entry.stat().st_size for entry in os.scandir(path) if entry.is_file())
    return path.stat().st_size


def _add_windows(clips: _StoredClips, failures: list[VideoError] | None) -> None:
    for video in range(clips.num_videos):
        try:
            seconds, info = length_of(clips.path_of(video), clips.rate, frames=clips.frames)
        except VideoError as error:
            if failures is None:
                raise
            failures.append(error)
            continue
        length = clips.frames / min(clips.rate, shown_per_second(info, clips.rate))
        # What is left over widens every window a little, so that nothing of the video is never seen.
        number = max(1, int(seconds / length + 1e-6))
        for window in range(number):
            clips.add_clip(video, window * seconds / number, (window + 1) * seconds / number, None)


def _add_shards(clips: _StoredClips, shards: Iterable[Path], failures: list[VideoError] | None) -> _Texts:
    """Add the videos of all shards; returns their captions."""
    said = _Texts()
    for shard in shards:
        try:
            members, damage = index_shard(shard)
            if damage is not None and failures is None:
                raise damage
        except VideoError as error:
            if failures is None:
                raise
            failures.append(error)
            continue
        if damage is not None and failures is not None:
            failures.append(damage)
        for name, offset, size, caption in members:
            clips.add_video(str(shard), name, size=size, offset=offset)
            said.append(caption)
    return said


def _add_members(clips: _StoredClips, said: _Texts) -> None:
    """One clip per member: of those with text, or of all where there is none in any."""
    missing = [video for video in range(len(said)) if not said[video]]
    captioned = len(missing) < len(said)
    if captioned:
        _warn_missing(clips, missing)
    for video in range(len(said)):
        caption = said[video]
        if caption or not captioned:
            clips.add_clip(video, 0.0, math.nan, caption or None)


def _add_rows(clips: _StoredClips, table: Path, *, where: str) -> None:
    """One clip per row of a table whose video is there."""
    by_key: dict[str, list[int]] = {}
    for video in range(clips.num_videos):
        by_key.setdefault(_without_suffix(PurePosixPath(clips.name_of(video)).name), []).append(video)
    covered = bytearray(clips.num_videos)
    unknown: list[str] = []
    rows = strangers = 0
    for name, caption, low, high in read_table(table):
        rows += 1
        found = _match(clips, by_key, name, table)
        if found is None:
            strangers += 1
            if len(unknown) < 3 and name not in unknown:
                unknown.append(name)
        elif caption:
            clips.add_clip(found, low, high, caption)
            covered[found] = 1
    some = ", ".join(repr(name) for name in unknown)
    if rows and strangers == rows:
        raise ValueError(
            f"{table}: names no video that is there: it says {some}; looked among the {clips.num_videos} videos of "
            f"{where} ({clips.path_of(0)}, ...); give paths, or names with or without suffix"
        )
    if not len(clips):
        raise ValueError(f"{table}: has no caption for any of the {clips.num_videos} videos of {where}; fill them in")
    if strangers:
        warnings.warn(
            f"{table}: {strangers} of {rows} rows name videos that are not there (first: {unknown[0]!r}): "
            "these are left out",
            UserWarning,
            stacklevel=3,
        )
    _warn_missing(clips, [video for video in range(clips.num_videos) if not covered[video]])


def _match(clips: _StoredClips, by_key: dict[str, list[int]], name: str, table: Path) -> int | None:
    """The video that a row names: by its whole path, the end of its path, or its bare name."""
    candidates = by_key.get(_without_suffix(PurePosixPath(name).name), []) if name else []
    if candidates and "/" in name:
        # Relative to any of the folders given, or to where we are.
        ending, whole = "/" + os.path.normpath(_without_suffix(name)), os.path.abspath(_without_suffix(name))
        full = {video: os.path.abspath(_without_suffix(clips.path_of(video))) for video in candidates}
        exact = [video for video in candidates if full[video] == whole]
        relative = [] if os.path.isabs(name) else [v for v in candidates if full[v].endswith(ending)]
        candidates = exact or relative
    if len(candidates) > 1:
        base = PurePosixPath(name).name
        candidates = [v for v in candidates if PurePosixPath(clips.name_of(v)).name == base] or candidates
    if len(candidates) > 1:
        first, second = (clips.path_of(video) for video in candidates[:2])
        raise ValueError(f"{table}: {name!r} may mean {first} or {second}; give more of the path")
    return candidates[0] if candidates else None


def _without_suffix(name: str) -> str:
    root, suffix = os.path.splitext(name)
    return root if suffix.lower() in VIDEO_SUFFIXES else name


def _warn_missing(clips: _StoredClips, missing: Sequence[int]) -> None:
    if missing:
        warnings.warn(
            f"captions are missing for {len(missing)} of {clips.num_videos} videos "
            f"(first: {PurePosixPath(clips.name_of(missing[0])).name}): these are left out",
            UserWarning,
            stacklevel=4,
        )
