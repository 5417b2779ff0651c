"""Search: the best moments for a query over many videos, by comparing with every frame."""

import math
import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from everyframe.feature_files import RECIPE_SUFFIX
from everyframe.features import SUFFIXES, FeaturesError, VideoFeatures, check_same_space, space_of
from everyframe.spans import Moment, nms
from everyframe.tasks.grounding import ground


@dataclass(frozen=True)
class Hit:
    """A moment [start, end) of a video in seconds; score is a cosine, comparable across one search.

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
    top: int = 10,
    per_video: int = 3,
    smooth: float = 2.0,
    threshold: float = 1.0,
    shortest: float = 2.0,
) -> list[Hit]:
    """The best moments over all videos, highest score first; ties keep the order of the videos.

    features: a folder of feature files, or any iterable, read once; one video's features are in memory at a time.
        Of several features of one video the first counts, with a warning.
    query: [dim], array or tensor. per_video: the most hits that one video may take; they do not overlap.
    smooth: seconds of moving average. Shorter than `ground`'s 5 s, because here peaks of different videos
    compete: 5 s would take most of the height off a one-second event and rank long lukewarm scenes above it.
    threshold: as in `ground`. shortest: seconds; a shorter moment grows on both sides, as far as the video
    goes.

    Raises ValueError for a query of another dim or parameters out of range, FeaturesError where two videos
    come from different models, a frame is zero, or the features do not say which video they are of.
    """
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
    for feats in features:
        space = space or space_of(feats)
        check_same_space(space, feats)
        video = feats.video.get("path")
        if not isinstance(video, str):
            raise FeaturesError('the features do not say which video they are of: video["path"] is missing')
        if video in seen:
            repeated += 1
            continue
        seen.add(video)
        # Twice as many as asked for: growing to `shortest` can make neighbours overlap, and one of them goes.
        moments = ground(feats, query, top=2 * per_video, smooth=smooth, threshold=threshold, overlap=0.0)
        grown = [_at_least(moment, shortest, feats) for moment in moments]
        found = [Hit(video, m.start, m.end, m.score) for m in nms(grown, 0.0, top=per_video)]
        hits = sorted(hits + found, key=lambda hit: -hit.score)[:top]
    if repeated:
        warnings.warn(
            f"{repeated} of the features are of videos that others cover too; the first of each was searched",
            stacklevel=2,
        )
    return hits


def _at_least(moment: Moment, seconds: float, feats: VideoFeatures) -> Moment:
    """The moment, grown around its middle to `seconds` and shifted to stay within the video."""
    first, last = float(feats.times[0]), float(feats.frame_ends[-1])
    seconds = min(seconds, last - first)
    if moment.duration >= seconds:
        return moment
    start = min(max((moment.start + moment.end - seconds) / 2, first), last - seconds)
    return Moment(start, min(start + seconds, last), moment.score)


def load_folder(
    path: str | os.PathLike[str], *, failures: list[tuple[Path, FeaturesError]] | None = None
) -> Iterator[VideoFeatures]:
    """All feature files below a folder, one at a time, in the order of their paths.

    failures: a list that collects (file, error) for every file that cannot be used, so that the rest goes on;
    read it after the iterator is used up. Without it the first such file raises its FeaturesError.
    Raises FeaturesError at once where the folder is missing or holds no feature file, and ImportError where a
    format's package is missing: no file of that format could be read.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise FeaturesError(f"{folder} is not a folder; give the one that holds the features")
    found = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    files = [file for file in found if not file.name.endswith(RECIPE_SUFFIX)]
    if found and not files:
        raise FeaturesError(f"{folder} holds recipes alone; everyframe restore makes features from them")
    if not files:
        raise FeaturesError(f"{folder} holds no features ({', '.join(SUFFIXES)}); encode some videos first")
    return _load_each(files, failures)


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
