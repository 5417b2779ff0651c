"""The papers' tasks on synthetic videos that are trained: activity localization and audio description.

Localization is trained anew on the features of every way, as the paper trains ActionFormer on each of its features.
Description is trained once, on dense features, and then shown the features of every way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from everyframe.evaluation.description import Narrated, evaluate_description, narrated_events
from everyframe.evaluation.localization import evaluate_localization, zero_shot_localization
from everyframe.evaluation.segment_files import Activities, activities_of_events
from everyframe.evaluation.synthetic_tasks import Scene, TaskScores, Texts
from everyframe.evaluation.ways import DENSE, Way
from everyframe.extras import require
from everyframe.features import VideoFeatures
from everyframe.tasks.describer import Describer
from everyframe.training.description import DescribeRecipe, train_describer
from everyframe.training.localization_training import LocalizerSettings

SPOKEN = ("CIDEr", "ROUGE-L")
"""Metrics of descriptions that need no Java."""


@dataclass(kw_only=True)
class Trained:
    """What the trained tasks share. features: (set, way) -> features by video. folder: where runs are kept.

    epochs: of training, None for what each task has of its own.
    """

    train: Sequence[Scene]
    test: Sequence[Scene]
    dense: Way
    features: Callable[[str, Way], Mapping[str, VideoFeatures]]
    folder: Path
    epochs: int | None
    texts: Texts
    say: Callable[[str], None]
    _describers: dict[str, Describer] = field(default_factory=dict)

    def describer(self, *, blind: bool = False) -> Describer:
        """Trained on dense features; blind: without sight."""
        name = "no-vision" if blind else "describer"
        if name not in self._describers:
            changes = {} if self.epochs is None else {"epochs": self.epochs}
            items = _narrated(self.train, self.features("train", self.dense))
            recipe = DescribeRecipe.small(blind=blind, **changes)
            self._describers[name] = train_describer(items, recipe, out=self.folder / name, say=self.say)
        return self._describers[name]

    def activities(self) -> Activities:
        """The events as activities of 8 classes, in two subsets."""
        return activities_of_events(_events(self.train), subset="training") | activities_of_events(
            _events(self.test), subset="validation"
        )


def localization(trained: Trained, way: Way) -> TaskScores:
    """mAP of an ActionFormer trained on the way's own features."""
    epochs = {} if trained.epochs is None else {"epochs": trained.epochs, "warmup_epochs": 1}
    settings = LocalizerSettings.synthetic(seed=0, **epochs)
    activities = trained.activities()
    test = trained.features("known", way)
    outcome = evaluate_localization(
        train=trained.features("train", way),
        test=test,
        activities=activities,
        settings=settings,
        folder=trained.folder / f"localization-{way.name}",
        say=trained.say,
    )
    floor = None
    if way.name == DENSE:
        labels = sorted({segment.label for video in activities.videos.values() for segment in video.segments})
        rows = trained.texts([activities.prompt.format(label) for label in labels])
        zero = zero_shot_localization(test, activities, dict(zip(labels, rows, strict=True)))
        floor = ("dense, nothing trained", dict(zero.metrics))
    count = sum(len(video.segments) for video in activities.subset("validation").values())
    return TaskScores(metrics=dict(outcome.metrics), hits={}, queries=count, floor=floor)


def description(trained: Trained, way: Way) -> TaskScores:
    """CIDEr and ROUGE-L of a describer trained on dense features, on the way's features."""
    require("pycocoevalcap", extra="describe")  # before minutes of training, not after
    test = _narrated(trained.test, trained.features("known", way))
    outcome = evaluate_description(None, test, describer=trained.describer(), metrics=SPOKEN)
    floor = None
    if way.name == DENSE:
        blind = evaluate_description(None, test, describer=trained.describer(blind=True), metrics=SPOKEN)
        floor = ("trained without sight", dict(blind.metrics))
    return TaskScores(metrics=dict(outcome.metrics), hits={}, queries=outcome.clips, floor=floor)


def _events(scenes: Sequence[Scene]) -> dict[str, tuple[float | None, list[tuple[str, float, float]]]]:
    return {
        scene.id: (scene.seconds, [(event.caption, event.start, event.end) for event in scene.events])
        for scene in scenes
    }


def _narrated(scenes: Sequence[Scene], feats: Mapping[str, VideoFeatures]) -> list[Narrated]:
    return [
        narrated_events(
            feats[scene.id], [(event.caption, event.start, event.end) for event in scene.events], video=scene.id
        )
        for scene in scenes
    ]
