"""Features by video id, read when they are asked for: those of a folder, some of them, and which can be used."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from everyframe.evaluation.clips import Failure, Progress
from everyframe.evaluation.frame_features import EncodedVideos, files_by_video
from everyframe.evaluation.outcome import check_some_left
from everyframe.evaluation.segment_files import plain_id
from everyframe.feature_files import SUFFIXES, FeaturesError
from everyframe.features import VideoFeatures
from everyframe.tasks.localization import duration_of

_ROOM = 2 << 30  # bytes of features that `FeatureFiles` keep in memory


class FeatureFiles(Mapping[str, VideoFeatures]):
    """Feature files by video id, read when they are asked for. failures: videos, or second files of one, left out."""

    def __init__(self, files: Mapping[str, Path], failures: Sequence[Failure] = ()) -> None:
        self._files = files
        self.failures = tuple(failures)
        self._held: dict[str, VideoFeatures] = {}
        self._room = _ROOM

    def __getitem__(self, video: str) -> VideoFeatures:
        if video not in self._held:
            feats = VideoFeatures.load(self._files[video])
            self._room -= feats.embeddings.nbytes
            if self._room < 0:
                return feats
            self._held[video] = feats
        return self._held[video]

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, video: object) -> bool:  # Mapping's own would read the file
        return video in self._files


class FeatureFolder(FeatureFiles):
    """The feature files below a folder by video id.

    The id is the file's name without suffixes and leading "v_". failures: files that share an id with another.
    Raises FeaturesError where the folder is missing or holds no features.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FeaturesError(f"{self.folder} is not a folder; give the one that holds the features")
        found: dict[str, Path] = {}
        failures: list[Failure] = []
        for name, files in files_by_video(self.folder).items():
            video = plain_id(name)
            first = found.setdefault(video, files[0])
            failures += [
                Failure(video, "unreadable", f"{file}: {first} has features of {video} already")
                for file in files
                if file != first
            ]
        if not found:
            raise FeaturesError(f"{self.folder} holds no features ({', '.join(SUFFIXES)}); encode some videos first")
        super().__init__(found, failures)


def encoded_files(source: EncodedVideos, videos: Sequence[str], progress: Progress | None = None) -> FeatureFiles:
    """The features of these videos, encoded into the cache of `source`. failures: those that are missing or unreadable.

    Raises ValueError where none is left or `source` has no cache.
    """
    files: dict[str, Path] = {}
    failures: list[Failure] = []
    for number, found in source.files(videos, progress):
        if isinstance(found, Failure):
            failures.append(found)
        else:
            files[videos[number]] = found
    check_some_left([*files], failures)
    return FeatureFiles(files, failures)


class Chosen(Mapping[str, VideoFeatures]):
    """Some of the videos of a mapping, still read when they are asked for."""

    def __init__(self, features: Mapping[str, VideoFeatures], videos: Sequence[str]) -> None:
        self._features, self._videos = features, tuple(videos)

    def __getitem__(self, video: str) -> VideoFeatures:
        return self._features[video]

    def __iter__(self) -> Iterator[str]:
        return iter(self._videos)

    def __len__(self) -> int:
        return len(self._videos)


def usable(
    features: Mapping[str, VideoFeatures],
    video: str,
    failures: list[Failure],
    check: Callable[[VideoFeatures], object],
) -> VideoFeatures | None:
    """The features of a video, or None with a word on why not."""
    if video not in features:
        failures.append(Failure(video, "missing", f"{video}: has no features"))
        return None
    try:
        feats = features[video]
        if not feats.num_frames or duration_of(feats) <= 0:
            raise FeaturesError("the features have no frames, or say of no duration")
        check(feats)
    except FeaturesError as error:
        failures.append(Failure(video, "unreadable", f"{video}: {error}"))
        return None
    return feats


def readable(features: Mapping[str, VideoFeatures], videos: Iterable[str]) -> dict[str, VideoFeatures]:
    """The features of those of the videos that have some which can be read."""
    found = {video: usable(features, video, [], lambda feats: None) for video in videos}
    return {video: feats for video, feats in found.items() if feats is not None}
