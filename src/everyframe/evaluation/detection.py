"""Mean average precision of temporal detections, as ActivityNet and OpenTAD compute it.

Per class, over all videos: predictions by score; each takes the unused ground truth of its video with the highest
temporal IoU, where that reaches the threshold, and is a false positive otherwise. Average precision is the area under
the precision made non-increasing from the right; the mean goes over the classes that the ground truth has.

OpenTAD leaves the order of equal scores to NumPy's unstable sort. Here the later of equals comes first, which is what
that sort makes of short lists; of ground truths with equal IoU the later is taken, for the same reason.

    P predictions, G ground truths, K thresholds
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from everyframe.spans import iou_matrix
from everyframe.tasks.localization import Detection, Segment

TIOUS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
"""ActivityNet's thresholds: 0.5, 0.55 ... 0.95."""
REPORTED = (0.5, 0.75, 0.95)
_SAME_SECONDS = 1e-3


@dataclass(frozen=True, kw_only=True)
class DetectionScore:
    """What predictions are worth.

    mean: mAP over classes and thresholds. at: mAP by threshold. by_class: average over thresholds by label. All are
    shares in [0, 1]. The counts say what was met on the way: of the ground truth, segments that repeat another or have
    no length (left out); of the predictions, those of videos that the ground truth does not have (false positives),
    of labels that it does not have (not scored), and segments that end before they start (false positives).
    """

    mean: float
    at: dict[float, float]
    by_class: dict[str, float]
    videos: int
    segments: int
    predictions: int
    repeated: int
    empty: int
    unknown_videos: int
    unknown_labels: int
    reversed: int

    def metrics(self) -> dict[str, float]:
        """Percentages: "mAP", the mean over thresholds, and "mAP@t" for 0.5, 0.75 and 0.95, or for all others given."""
        shown = [tiou for tiou in REPORTED if tiou in self.at] if set(TIOUS) <= set(self.at) else list(self.at)
        return {"mAP": 100 * self.mean, **{f"mAP@{tiou:g}": 100 * self.at[tiou] for tiou in shown}}

    def counts(self) -> dict[str, int]:
        """Everything that was counted, by name."""
        names = ("videos", "segments", "predictions", "repeated", "empty", "unknown_videos", "unknown_labels")
        return {**{name: getattr(self, name) for name in names}, "reversed": self.reversed}


def detection_map(
    truth: Mapping[str, Sequence[Segment]],
    predictions: Mapping[str, Sequence[Detection]],
    *,
    tious: Sequence[float] = TIOUS,
    blocked: Collection[str] = (),
) -> DetectionScore:
    """mAP at temporal IoUs of predictions against the annotated segments of the same videos.

    truth, predictions: by video id; a video without predictions has found nothing. blocked: ids that count on neither
    side. Raises ValueError where no segment is left to find, or a threshold lies outside (0, 1].
    """
    check_tious(tious)
    kept = {video: _distinct(segments) for video, segments in truth.items() if video not in blocked}
    labels = list(dict.fromkeys(segment.label for segments, _, _ in kept.values() for segment in segments))
    if not labels:
        raise ValueError("the ground truth has no segments, so there is nothing to be found")
    windows: dict[str, dict[str, list[tuple[float, float]]]] = {label: {} for label in labels}
    for video, (segments, _, _) in kept.items():
        for segment in segments:
            windows[segment.label].setdefault(video, []).append((segment.start, segment.end))
    found: dict[str, list[tuple[str, Detection]]] = {label: [] for label in labels}
    counts = {"unknown_videos": 0, "unknown_labels": 0, "reversed": 0, "predictions": 0}
    for video, detections in predictions.items():
        if video in blocked:
            continue
        counts["predictions"] += len(detections)
        counts["unknown_videos"] += len(detections) * (video not in kept)
        for detection in detections:
            counts["reversed"] += detection.end < detection.start
            if detection.label in found:
                found[detection.label].append((video, detection))
            else:
                counts["unknown_labels"] += 1
    thresholds = np.asarray(tious, dtype=np.float64)
    precisions = np.stack([_average_precision(windows[label], found[label], thresholds) for label in labels])
    means = precisions.mean(axis=0)
    return DetectionScore(
        mean=float(means.mean()),
        at={float(tiou): float(value) for tiou, value in zip(tious, means, strict=True)},
        by_class={label: float(row.mean()) for label, row in zip(labels, precisions, strict=True)},
        videos=len(kept),
        segments=sum(len(segments) for segments, _, _ in kept.values()),
        repeated=sum(repeated for _, repeated, _ in kept.values()),
        empty=sum(empty for _, _, empty in kept.values()),
        **counts,
    )


def check_tious(tious: Sequence[float]) -> None:
    """Raises ValueError unless there are thresholds, all in (0, 1]."""
    if not tious or any(not 0 < tiou <= 1 for tiou in tious):
        raise ValueError(f"thresholds of temporal IoU must be in (0, 1], got {list(tious)}")


def _distinct(segments: Sequence[Segment]) -> tuple[list[Segment], int, int]:
    """The segments that have a length and do not repeat one before, and how many repeat or have none."""
    kept: list[Segment] = []
    repeated = empty = 0
    for segment in segments:
        if segment.end <= segment.start:
            empty += 1
        elif any(_same(segment, other) for other in kept):
            repeated += 1
        else:
            kept.append(segment)
    return kept, repeated, empty


def _same(one: Segment, other: Segment) -> bool:
    near = abs(one.start - other.start) <= _SAME_SECONDS and abs(one.end - other.end) <= _SAME_SECONDS
    return near and one.label == other.label


def _average_precision(
    windows: Mapping[str, Sequence[tuple[float, float]]],
    found: Sequence[tuple[str, Detection]],
    tious: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Average precision of one class at each threshold: float64 [K]."""
    if not found:
        return np.zeros(len(tious))
    scores = np.array([detection.score for _, detection in found])
    order = np.argsort(scores, kind="stable")[::-1]
    places: dict[str, list[int]] = {}  # of each video, where its predictions stand in the ranking
    for place, index in enumerate(order):
        places.setdefault(found[index][0], []).append(place)
    hits = np.zeros((len(tious), len(found)), dtype=bool)
    for video, ranked in places.items():
        if video in windows:
            spans = np.array([(found[order[place]][1].start, found[order[place]][1].end) for place in ranked])
            hits[:, ranked] = _matched(_overlaps(spans, np.array(windows[video])), tious)
    right = np.cumsum(hits, axis=1)
    precision = right / np.arange(1, len(found) + 1)
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    total = sum(len(spans) for spans in windows.values())
    return (best * hits).sum(axis=1) / total  # recall rises by 1 / total at every hit and nowhere else


def _overlaps(spans: NDArray[np.float64], truth: NDArray[np.float64]) -> NDArray[np.float64]:
    """Temporal IoU [P, G]; a span that ends before it starts overlaps nothing."""
    overlaps = np.zeros((len(spans), len(truth)))
    forward = spans[:, 1] >= spans[:, 0]
    if forward.any():
        overlaps[forward] = iou_matrix(spans[forward], truth)
    return overlaps


def _matched(overlaps: NDArray[np.float64], tious: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which predictions of one video, best first, take a ground truth at each threshold: bool [K, P]."""
    overlaps = overlaps[:, ::-1]  # the later of equals: argmax takes the first
    hits = np.zeros((len(tious), len(overlaps)), dtype=bool)
    free = np.ones((len(tious), overlaps.shape[1]), dtype=bool)
    rows = np.arange(len(tious))
    for place in np.flatnonzero(overlaps.max(axis=1) >= tious.min()):
        candidates = np.where(free, overlaps[place], -math.inf)
        best = candidates.argmax(axis=1)
        hits[:, place] = candidates[rows, best] >= tious
        free[rows, best] &= ~hits[:, place]
    return hits
