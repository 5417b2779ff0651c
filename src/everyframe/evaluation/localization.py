"""Temporal activity localization as ResidualViT's paper judges features: an ActionFormer trained on them, its mAP.

Where there are class scores of an external classifier the network finds activities of no class and the classifier names
them, as is customary on ActivityNet-1.3; without them the network has the classes of the training videos.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from everyframe.evaluation.clips import Failure
from everyframe.evaluation.detection import TIOUS, DetectionScore, check_tious, detection_map
from everyframe.evaluation.feature_folder import Chosen, usable
from everyframe.evaluation.frame_features import Costs
from everyframe.evaluation.outcome import check_some_left
from everyframe.evaluation.segment_files import (
    Activities,
    ActivityVideo,
    Predictions,
    listed,
    write_predictions,
)
from everyframe.evaluation.writing import csv_bytes
from everyframe.feature_files import write_whole
from everyframe.features import VideoFeatures, check_same_space, space_of
from everyframe.tasks.localization import (
    FOREGROUND,
    Detection,
    Segment,
    duration_of,
    fuse_classes,
    localize_zero_shot,
)
from everyframe.training.localization_training import train_localizer
from everyframe.training.localizer import Localizer, LocalizerSettings
from everyframe.version import package_version

PREDICTIONS, METRICS, TABLE = "predictions.json", "metrics.json", "metrics.csv"
_SILENT = "videos have no predictions"
_LENGTH = 0.05  # share of its length by which a video may differ from its annotation without a word

# mAP of ActionFormer on ActivityNet-1.3 (validation) with other features, named by CUHK's classifier, percent. Figures
# of their authors, for orientation. ResidualViT's own table of this task is not among the sources at hand.
PUBLISHED: dict[str, dict[str, float]] = {
    "ActionFormer, TSP features (OpenTAD)": {"mAP@0.5": 55.08, "mAP@0.75": 38.27, "mAP@0.95": 8.91, "mAP": 37.07},
    "ActionFormer (its paper's abstract)": {"mAP": 36.6},
}
ACTIVITYNET_SIZE = 4_000
"""From so many validation videos of 200 classes on, a result is one on ActivityNet-1.3."""


@dataclass(frozen=True, kw_only=True)
class LocalizationOutcome:
    """mAP of one set of predictions, what it stands on, and what was left out.

    blocks: scores by name, the one that counts first, such as "ActionFormer" and "zero-shot". costs: by the same names,
    what encoding took, where there were features. wanted: videos the subset has. failures: videos without usable
    features. notes: what was odd in the files, in words.
    """

    blocks: Mapping[str, DetectionScore]
    wanted: int
    settings: dict[str, Any]
    costs: Mapping[str, Costs] = field(default_factory=dict)
    annotations: tuple[dict[str, str], ...] = ()
    failures: tuple[Failure, ...] = ()
    notes: tuple[str, ...] = ()
    predictions: Mapping[str, Sequence[Detection]] = field(default_factory=dict, repr=False)
    localizer: Localizer | None = field(default=None, repr=False)

    @property
    def score(self) -> DetectionScore:
        """The block that counts."""
        return next(iter(self.blocks.values()))

    @property
    def metrics(self) -> dict[str, float]:
        """Percentages of the block that counts: "mAP" (mean over the thresholds), "mAP@0.5", "mAP@0.75", "mAP@0.95"."""
        return self.score.metrics()

    @property
    def cost(self) -> Costs:
        """What encoding the test videos took, for the block that counts."""
        return self.costs.get(next(iter(self.blocks)), Costs())

    @property
    def published(self) -> dict[str, dict[str, float]]:
        """What others report on ActivityNet-1.3; empty where this is not it."""
        whole = self.wanted >= ACTIVITYNET_SIZE and len(self.score.by_class) == 200
        return PUBLISHED if whole else {}

    def as_dict(self) -> dict[str, Any]:
        """Everything but the predictions as plain values."""
        return {
            "task": "localization",
            **self.metrics,
            "metrics": {name: score.metrics() for name, score in self.blocks.items()},
            **self.cost.as_dict(),
            "tious": {f"{tiou:g}": 100 * value for tiou, value in self.score.at.items()},
            "by_class": {label: 100 * value for label, value in self.score.by_class.items()},
            "counts": self.score.counts(),
            "published": self.published,
            "partial": bool(self.failures),
            "videos_wanted": self.wanted,
            "failures": [asdict(failure) for failure in self.failures],
            "notes": list(self.notes),
            "annotations": list(self.annotations),
            "settings": self.settings,
            "everyframe": package_version(),
        }

    def as_table(self) -> list[dict[str, Any]]:
        """A line per block for CSV: its name, metrics and cost."""
        return [
            {"name": name, **score.metrics(), **self.costs.get(name, Costs()).as_dict()}
            for name, score in self.blocks.items()
        ]

    def with_block(self, name: str, other: LocalizationOutcome) -> LocalizationOutcome:
        """The same with the block that counts in another outcome behind."""
        return replace(self, blocks={**self.blocks, name: other.score}, costs={**self.costs, name: other.cost})


def score_predictions(
    predictions: Predictions | Mapping[str, Sequence[Detection]],
    activities: Activities,
    *,
    subset: str = "validation",
    tious: Sequence[float] = TIOUS,
    blocked: frozenset[str] = frozenset(),
) -> LocalizationOutcome:
    """mAP of predictions that somebody made, against the annotations of a subset.

    Nothing is dropped in silence: predictions for videos and labels that the subset does not have are counted in
    `blocks` and told of in `notes`. Raises AnnotationError where there is no such subset, ValueError for thresholds out
    of range.
    """
    videos = activities.subset(subset)
    read = (
        predictions
        if isinstance(predictions, Predictions)
        else Predictions(videos={video: tuple(own) for video, own in predictions.items()})
    )
    score = detection_map(_truth(videos), read.videos, tious=tious, blocked=blocked)
    left = [video for video in videos if video not in blocked]
    silent = [video for video in left if video not in read.videos]
    counted = {video: found for video, found in read.videos.items() if found and video not in blocked}
    elsewhere = [video for video in counted if video not in videos]
    odd = sorted({one.label for found in counted.values() for one in found} - set(score.by_class))
    lacks = f"that subset {subset!r} does not have"
    notes = [*activities.notes, *read.notes]
    for count, what in (
        (score.unknown_videos, f"predictions are of videos {lacks}, {listed(elsewhere)}: false positives"),
        (score.unknown_labels, f"predictions have labels {lacks}, {listed(odd)}: not scored"),
        (score.repeated, "annotated segments repeat another: left out"),
        (len(silent), f"{_SILENT}, {listed(silent)}: what they show counts as missed"),
    ):
        if count:
            notes.append(f"{count} {what}")
    return LocalizationOutcome(
        blocks={"predictions": score},
        wanted=len(left),
        settings={"subset": subset, "tious": list(tious), "blocked": len(blocked), **read.source},
        annotations=activities.sources,
        notes=tuple(notes),
        predictions=read.videos,
    )


def evaluate_localization(
    train: Mapping[str, VideoFeatures],
    test: Mapping[str, VideoFeatures],
    activities: Activities,
    *,
    settings: LocalizerSettings | None = None,
    class_scores: Mapping[str, Mapping[str, float]] | None = None,
    localizer: Localizer | None = None,
    train_subset: str = "training",
    subset: str = "validation",
    tious: Sequence[float] = TIOUS,
    blocked: frozenset[str] = frozenset(),
    folder: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    say: Callable[[str], None] = lambda text: None,
    epoch_done: Callable[[int, int, float], None] = lambda epoch, epochs, loss: None,
) -> LocalizationOutcome:
    """Train an ActionFormer on the features of one subset and score what it finds in those of the other.

    train, test: features by video id; videos of the subsets without features are listed in `failures` and the rest
        goes on. A test video without features counts as one in which nothing was found.
    class_scores: of whole videos, by label; with them the network is trained to find activities of no class, and each
        gets the two likeliest classes of its video.
    localizer: one that is trained already; `train` is not looked at then. device: where training computes.
    folder: gets the checkpoint, the localizer, predictions.json, metrics.json and metrics.csv; with the same arguments
        a killed run goes on and a finished one only predicts.

    Raises AnnotationError for a subset without videos, TrainingError where nothing can be trained on or the folder
    holds another run, ValueError where no test video is left or class scores are missing for the localizer.
    """
    wanted = {video: one for video, one in activities.subset(subset).items() if video not in blocked}
    check_tious(tious)
    _check_asked(wanted, test, subset)
    failures: list[Failure] = []
    if localizer is None:
        localizer = _trained(
            train, activities.subset(train_subset), settings or LocalizerSettings(),
            foreground=class_scores is not None, folder=folder, device=device, failures=failures, say=say,
            epoch_done=epoch_done,
        )  # fmt: skip
    if (localizer.labels == (FOREGROUND,)) != (class_scores is not None):
        raise ValueError(
            "this localizer finds activities of no class: give the class scores of an external classifier"
            if class_scores is None
            else f"this localizer has {len(localizer.labels)} classes of its own: leave out the class scores"
        )
    unusable: list[Failure] = []
    costs = Costs()
    predictions, odd = _predicted(localizer, test, wanted, class_scores, unusable, costs)
    check_some_left([*predictions], unusable)
    outcome = score_predictions(predictions, activities, subset=subset, tious=tious, blocked=blocked)
    notes = [note for note in outcome.notes if _SILENT not in note]  # `failures` names those videos
    outcome = replace(
        outcome,
        blocks={"ActionFormer": outcome.score},
        costs={"ActionFormer": costs},
        settings={
            **outcome.settings,
            "localizer": {**asdict(localizer.settings), "labels": list(localizer.labels), "facts": localizer.facts},
            "space": localizer.space,
            "class_scores": class_scores is not None,
        },
        failures=(*failures, *unusable),
        notes=(*notes, *odd),
        localizer=localizer,
    )
    if folder is not None:
        write_outcome(outcome, folder)
    return outcome


def zero_shot_localization(
    test: Mapping[str, VideoFeatures],
    activities: Activities,
    text: Mapping[str, Any],
    *,
    subset: str = "validation",
    tious: Sequence[float] = TIOUS,
    blocked: frozenset[str] = frozenset(),
) -> LocalizationOutcome:
    """The floor that needs no training: `localize_zero_shot` with the embedding of every class.

    text: by label, [dim], in the space of the features. Raises ValueError where no test video is left.
    """
    wanted = {video: one for video, one in activities.subset(subset).items() if video not in blocked}
    _check_asked(wanted, test, subset)
    failures: list[Failure] = []
    predictions = {}
    costs = Costs()
    for video in wanted:
        feats = usable(test, video, failures, lambda feats: feats.norms)  # a row of zeros has no cosine
        if feats is not None:
            predictions[video] = localize_zero_shot(feats, text)
            costs.add(feats)
    check_some_left([*predictions], failures)
    outcome = score_predictions(predictions, activities, subset=subset, tious=tious, blocked=blocked)
    return replace(outcome, blocks={"zero-shot": outcome.score}, costs={"zero-shot": costs}, failures=tuple(failures))


def without_content(features: Mapping[str, VideoFeatures], *, seed: int = 0) -> dict[str, VideoFeatures]:
    """The same times with random unit vectors: what a localizer reaches that sees nothing but how long videos are."""
    blind = {}
    for number, video in enumerate(sorted(features)):
        feats = features[video]
        rows = np.random.default_rng([seed, 71, number]).standard_normal(feats.embeddings.shape).astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        settings = {name: value for name, value in feats.settings.items() if not name.startswith("gflops_")}
        blind[video] = replace(feats, embeddings=rows, settings=settings)
    return blind


def write_outcome(outcome: LocalizationOutcome, folder: str | os.PathLike[str]) -> Path:
    """Write predictions.json, metrics.csv and metrics.json into a folder; returns the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_predictions(folder / PREDICTIONS, outcome.predictions)
    text = json.dumps(outcome.as_dict(), indent=1) + "\n"
    files = [(folder / TABLE, csv_bytes(outcome.as_table())), (folder / METRICS, text.encode())]
    write_whole([*files], folder / METRICS)
    return folder


def _check_asked(wanted: Mapping[str, ActivityVideo], test: Mapping[str, VideoFeatures], subset: str) -> None:
    """Fail before the training, not after it."""
    if not any(segment.end > segment.start for one in wanted.values() for segment in one.segments):
        raise ValueError(f"no video of {subset!r} that counts has a segment, so there is nothing to be found")
    if not any(video in test for video in wanted):
        raise ValueError(f"none of the {len(wanted)} videos of {subset!r} has features, such as {listed([*wanted])}")


def _truth(videos: Mapping[str, ActivityVideo]) -> dict[str, tuple[Segment, ...]]:
    return {video: one.segments for video, one in videos.items()}


def _trained(
    train: Mapping[str, VideoFeatures],
    videos: Mapping[str, ActivityVideo],
    settings: LocalizerSettings,
    *,
    foreground: bool,
    folder: str | os.PathLike[str] | None,
    device: str,
    failures: list[Failure],
    say: Callable[[str], None],
    epoch_done: Callable[[int, int, float], None],
) -> Localizer:
    """The localizer of the training subset, with one class where a classifier names what is found."""
    space: dict[str, Any] = {}

    def same(feats: VideoFeatures) -> None:
        space.update(space or space_of(feats))  # that of the first video
        check_same_space(space, feats)

    left = [video for video in videos if usable(train, video, failures, same) is not None]
    labels = sorted({segment.label for video in left for segment in videos[video].segments})
    say(f"{len(left)} of {len(videos)} videos to train on, {len(labels)} classes")
    return train_localizer(
        Chosen(train, left),
        _truth(videos),
        [FOREGROUND] if foreground else labels,
        settings,
        folder=folder,
        device=device,
        say=say,
        epoch_done=epoch_done,
    )


def _predicted(
    localizer: Localizer,
    test: Mapping[str, VideoFeatures],
    wanted: Mapping[str, ActivityVideo],
    class_scores: Mapping[str, Mapping[str, float]] | None,
    failures: list[Failure],
    costs: Costs,
) -> tuple[dict[str, list[Detection]], list[str]]:
    """What is found in every video whose features can be used, and what is odd about them, in words."""
    predictions: dict[str, list[Detection]] = {}
    unnamed: list[str] = []
    other_lengths: list[str] = []
    rates: Counter[Any] = Counter()
    for video, one in wanted.items():
        feats = usable(test, video, failures, localizer.check)
        if feats is None:
            continue
        found = localizer.predict(feats)
        if class_scores is not None:
            unnamed += [video] * (video not in class_scores)
            found = fuse_classes(found, class_scores.get(video, {}))
        predictions[video] = found
        costs.add(feats)
        rates[feats.settings.get("fps")] += 1
        seconds = duration_of(feats)
        if one.duration is not None and abs(seconds - one.duration) > max(1.0, _LENGTH * one.duration):
            other_lengths.append(f"{video} ({seconds:.1f} s, annotated {one.duration:.1f} s)")
    notes = []
    if unnamed:
        notes.append(f"{len(unnamed)} videos have no class scores ({listed(unnamed)}): nothing is predicted in them")
    if other_lengths:
        notes.append(f"{len(other_lengths)} videos are of another length than annotated: {listed(other_lengths)}")
    if len(rates) > 1:
        shares = [f"{count} at {fps:g}/s" if fps else f"{count} at no known rate" for fps, count in rates.items()]
        notes.append(f"the features are of different rates: {', '.join(shares)}")
    return predictions, notes
