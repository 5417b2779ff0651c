"""Zero-shot action recognition: the mean of a video's frame features against the names of the classes.

As ResidualViT evaluates Kinetics-400, with CLIP's sentences around the names. V videos, C classes, D width of the joint
space.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from everyframe.backbone import Model
from everyframe.evaluation.action_files import ActionSet
from everyframe.evaluation.class_prompts import KINETICS, class_features
from everyframe.evaluation.clips import Failure, Progress
from everyframe.evaluation.frame_features import Costs, EncodedVideos, StoredFeatures
from everyframe.evaluation.outcome import check_some_left
from everyframe.features import FeaturesError, VideoFeatures
from everyframe.tasks.recognition import accuracy
from everyframe.version import package_version


@dataclass(frozen=True, kw_only=True)
class ZeroShotRow:
    """What one encoder's features give: percentages over `videos`.

    gflops_per_second: billions of multiply-accumulates, attention included, that a second of video took to encode;
    gflops_share: as a share of dense. Both None where the features do not tell.
    """

    encoder: str
    videos: int
    top1: float
    top5: float
    gflops_per_second: float | None
    gflops_share: float | None
    settings: dict[str, Any]
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ZeroShot:
    """The result on one split, one row per encoder. wanted: videos that the split has."""

    dataset: str | None
    wanted: int
    classes: int
    templates: tuple[str, ...]
    annotations: dict[str, Any]
    rows: tuple[ZeroShotRow, ...]
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def failures(self) -> tuple[Failure, ...]:
        """The videos that any row left out, each once."""
        return tuple(dict.fromkeys(failure for row in self.rows for failure in row.failures))

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values for JSON."""
        return {
            "task": "recognition",
            "dataset": self.dataset,
            "zero_shot": True,
            "rows": [asdict(row) for row in self.rows],
            "partial": bool(self.failures),
            "videos_wanted": self.wanted,
            "classes": self.classes,
            "templates": list(self.templates),
            "annotations": self.annotations,
            "details": self.details,
            "everyframe": package_version(),
        }

    def as_table(self) -> list[dict[str, Any]]:
        """A line per encoder, for CSV."""
        names = ("encoder", "videos", "top1", "top5", "gflops_per_second", "gflops_share")
        return [{name: getattr(row, name) for name in names} for row in self.rows]


def evaluate_zero_shot(
    model: Model,
    sources: Mapping[str, EncodedVideos | StoredFeatures],
    items: ActionSet,
    *,
    templates: Sequence[str] = KINETICS,
    dataset: str | None = None,
    progress: Progress | None = None,
) -> ZeroShot:
    """Top-1 and top-5 of class names against the mean of each video's frame features, for every source of features.

    model: whose text tower reads the names. sources: by the name of their row, such as "dense". Frame features are
    L2-normalised before the mean; its length does not matter, since it scales all classes alike. Videos that are
    missing or unreadable are left out and listed.

    Raises ModelError without a text tower, ValueError where the annotations name no classes or no video is left.
    """
    if items.classes is None:
        raise ValueError(f"{items.path} numbers its classes but does not name them; pass their names (--classes)")
    if not sources:
        raise ValueError("sources must hold at least one encoder's features")
    texts = class_features(model, items.classes, templates).numpy()
    rows = tuple(_row(name, source, items, texts, progress) for name, source in sources.items())
    return ZeroShot(
        dataset=dataset,
        wanted=len(items.videos),
        classes=len(items.classes),
        templates=tuple(templates),
        annotations={"path": items.path, "sha256": items.sha256},
        rows=rows,
    )


def class_scores(feats: VideoFeatures, texts: np.ndarray) -> np.ndarray:
    """Mean cosine of a video's frames with class features [C, D]: float64 [C]."""
    return texts.astype(np.float64) @ feats.normalised().mean(axis=0, dtype=np.float64)


def _row(
    name: str,
    source: EncodedVideos | StoredFeatures,
    items: ActionSet,
    texts: np.ndarray,
    progress: Progress | None,
) -> ZeroShotRow:
    scores: list[np.ndarray] = []
    labels: list[int] = []
    failures: list[Failure] = []
    costs = Costs()
    for number, feats in source.read(items.videos, progress):
        video = items.videos[number]
        if isinstance(feats, VideoFeatures) and feats.num_frames == 0:
            feats = Failure(video, "unreadable", f"{video}: its features have no frames")
        if isinstance(feats, Failure):
            failures.append(feats)
            continue
        try:
            scores.append(class_scores(feats, texts))
        except FeaturesError as error:
            failures.append(Failure(video, "unreadable", f"{video}: {error}"))
            continue
        labels.append(items.labels[number])
        costs.add(feats)
    check_some_left(scores, failures)
    result = accuracy(np.stack(scores), labels)
    return ZeroShotRow(
        encoder=name,
        videos=result.videos,
        top1=result.top1,
        top5=result.top5,
        gflops_per_second=costs.gflops_per_second,
        gflops_share=costs.gflops_share,
        settings=source.settings,
        failures=tuple(failures),
    )
