"""Search: the best moments, clips or videos for a query, over many videos."""

import math
import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import numpy as np

from everyframe.feature_files import RECIPE_SUFFIX
from everyframe.features import SUFFIXES, FeaturesError, VideoFeatures, check_same_space, is_of_clips, space_of
from everyframe.spans import Moment, nms
from everyframe.tasks.grounding import ground, similarity

Level = Literal["moment", "clip", "video"]
AnyMoment = TypeVar("AnyMoment", bound=Moment)
LEVELS: tuple[Level, ...] = ("moment", "clip", "video")


@dataclass(frozen=True)
class Hit:
    """A moment, a clip or all of a video, [start, end) in seconds; score is a cosine, comparable across one search.

    video: the path that the features recorded.
    """

    video: str
    start: float
    end: float
    score: float


def search(
    features: Iterable[VideoFeatures] | str | os.PathLike[str],
    query: Any,
    *,
    level: Level = "moment",
    top: int = 10,
    per_video: int = 3,
    smooth: float = 2.0,
    threshold: float = 1.0,
    shortest: float = 2.0,
) -> list[Hit]:
    """The best moments, clips or videos, highest score first; ties keep the order of the videos.

    level: "moment": stretches of frames that `ground` finds; where the features are of clips (TempMe), clips. "clip":
        clips. "video": one hit per video. With features of clips that is its best clip; with those of frames all of the
        video, scored by the mean of the normalised features (CLIP4Clip's mean pooling).

    features: a folder of feature files, or any iterable, read once; one video's features are in memory at a time.
        Of several features of one video the first counts, with a warning.
    query: [dim], array or tensor. per_video: the most hits that one video may take; they do not overlap.

    Of moments made of frames alone:
    smooth: seconds of moving average. Shorter than `ground`'s 5 s, because here peaks of different videos
    compete: 5 s would take most of the height off a one-second event and rank long lukewarm scenes above it.
    threshold: as in `ground`. shortest: seconds; a shorter moment grows on both sides, as far as the video
    goes.

    Raises ValueError for a query of another dim or parameters out of range, FeaturesError where two videos
    come from different models, some features are of frames and others of clips, a frame is zero, there are no clips
    for level="clip", or the features do not say which video they are of.
    """
    if level not in LEVELS:
        raise ValueError(f"level must be one of {', '.join(LEVELS)}, got {level!r}")
    if top < 1 or per_video < 1:
        raise ValueError(f"top and per_video must be at least 1, got {top} and {per_video}")
    if not (math.isfinite(shortest) and shortest >= 0):
        raise ValueError(f"shortest must be a number of seconds >= 0, got {shortest}")
    if isinstance(features, (str, os.PathLike)):
        features = load_folder(features)
    hits: list[Hit] = []
    seen: set[str] = set()
    repeated = 0
    space: dict[str, Any] | None = None
    of_clips: bool | None = None
    for feats in features:
        space = space or space_of(feats)
        check_same_space(space, feats)
        of_clips = is_of_clips(feats) if of_clips is None else of_clips
        _check_kind(feats, of_clips, level)
        video = feats.video.get("path")
        if not isinstance(video, str):
            raise FeaturesError('the features do not say which video they are of: video["path"] is missing')
        if video in seen:
            repeated += 1
            continue
        seen.add(video)
        if level == "video":
            moments = _best_rows(feats if of_clips else _pooled(feats), query, 1)
        elif of_clips:
            moments = _best_rows(feats, query, per_video)
        else:
            # Twice as many as asked for: growing to `shortest` can make neighbours overlap, and one of them goes.
            moments = ground(feats, query, top=2 * per_video, smooth=smooth, threshold=threshold, overlap=0.0)
            if moments:
                first, last = float(feats.times[0]), float(feats.frame_ends[-1])
                moments = at_least(moments, shortest, first, last, top=per_video)
        found = [Hit(video, m.start, m.end, m.score) for m in moments]
        hits = sorted(hits + found, key=lambda hit: -hit.score)[:top]
    if repeated:
        warnings.warn(
            f"{repeated} of the features are of videos that others cover too; the first of each was searched",
            stacklevel=2,
        )
    return hits


def _check_kind(feats: VideoFeatures, of_clips: bool, level: Level) -> None:
    """Raise FeaturesError unless the features are of the kind of the first ones, and the level is one they have."""
    video = feats.video.get("path")
    if is_of_clips(feats) != of_clips:
        kinds = ("clips", "frames") if of_clips else ("frames", "clips")
        raise FeaturesError(
            f"features of frames and of clips are not comparable: the first are of {kinds[0]}, those of {video} of "
            f"{kinds[1]}; encode all videos with one encoder"
        )
    if level == "clip" and not of_clips:
        raise FeaturesError(
            f"the features of {video} are of frames, and there are no clips to find in them; encode it with "
            "--encoder tempme, or search for moments or videos"
        )


def _best_rows(feats: VideoFeatures, query: Any, top: int) -> list[Moment]:
    """The rows nearest to the query, each from where it begins to where the next one does; the earlier of equals."""
    scores, ends = similarity(feats, query), feats.frame_ends
    return [Moment(feats.times[row], ends[row], scores[row]) for row in np.argsort(-scores, kind="stable")[:top]]


def _pooled(feats: VideoFeatures) -> VideoFeatures:
    """One row for all of the video: the mean of the normalised ones."""
    if not feats.num_frames:
        return feats
    total = np.zeros(feats.dim)
    for first in range(0, feats.num_frames, 8192):  # blocks: no second copy of all of them
        rows = slice(first, first + 8192)
        total += (feats.embeddings[rows] / feats.norms[rows, None]).sum(axis=0, dtype=np.float64)
    mean = (total / feats.num_frames).astype(np.float32)
    end = float(feats.frame_ends[-1])
    return replace(feats, times=feats.times[:1], embeddings=mean[None], roles=feats.roles[:1], end_seconds=end)


def at_least(moments: Iterable[AnyMoment], seconds: float, first: float, last: float, *, top: int) -> list[AnyMoment]:
    """The best moments, best first; the short ones grown to `seconds`, which may make them overlap: then one goes.

    They grow around their middle and are shifted to stay within [first, last), the video.
    """
    return cast("list[AnyMoment]", nms([_grown(moment, seconds, first, last) for moment in moments], 0.0, top=top))


def _grown(moment: AnyMoment, seconds: float, first: float, last: float) -> AnyMoment:
    seconds = min(seconds, last - first)
    if moment.duration >= seconds:
        return moment
    start = min(max((moment.start + moment.end - seconds) / 2, first), last - seconds)
    return replace(moment, start=start, end=min(start + seconds, last))


def load_folder(
    path: str | os.PathLike[str], *, failures: list[tuple[Path, FeaturesError]] | None = None
) -> Iterator[VideoFeatures]:
    """All feature files below a folder, one at a time, in the order of their paths.

    failures: a list that collects (file, error) for every file that cannot be used, so that the rest goes on;
    read it after the iterator is used up. Without it the first such file raises its FeaturesError.
    Raises FeaturesError at once where the folder is missing or holds no feature file, and ImportError where a
    format's package is missing: no file of that format could be read.
    """
    return _load_each(feature_paths(path), failures)


def feature_paths(path: str | os.PathLike[str]) -> list[Path]:
    """All feature files below a folder, sorted, but for hidden ones, which are parts of a run that goes on.

    Raises FeaturesError where the folder is missing or holds none.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise FeaturesError(f"{folder} is not a folder; give the one that holds the features")
    candidates = (file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    found = sorted(file for file in candidates if not _is_hidden(file.relative_to(folder)))
    files = [file for file in found if not file.name.endswith(RECIPE_SUFFIX)]
    if found and not files:
        raise FeaturesError(f"{folder} holds recipes alone; everyframe restore makes features from them")
    if not files:
        raise FeaturesError(f"{folder} holds no features ({', '.join(SUFFIXES)}); encode some videos first")
    return files


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _load_each(files: list[Path], failures: list[tuple[Path, FeaturesError]] | None) -> Iterator[VideoFeatures]:
    for file in files:
        try:
            feats = VideoFeatures.load(file)
        except FeaturesError as error:
            if failures is None:
                raise
            failures.append((file, error))
        else:
            yield feats
