"""Temporal activity localization: from features to labelled segments, without pixels and without a network.

What a localizer needs around it: features as rows of an even grid, Soft-NMS, voting, the labels of an external
classifier; and a localizer that needs no training, from the similarity with the names of the classes.

    T frames, R rows, D width, N candidate segments
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everyframe.features import VideoFeatures, as_array
from everyframe.spans import iou_matrix
from everyframe.tasks.grounding import ground

FOREGROUND = "activity"
"""The label of segments whose class is not decided yet."""


@dataclass(frozen=True)
class Segment:
    """An annotated activity: [start, end) in seconds. Not checked, as annotations hold odd ones that are counted."""

    start: float
    end: float
    label: str


@dataclass(frozen=True)
class Detection:
    """A predicted activity: [start, end) in seconds, a larger score is surer."""

    start: float
    end: float
    label: str
    score: float

    def as_dict(self) -> dict[str, Any]:
        """The entry of a prediction file: segment, label, score."""
        return {"segment": [self.start, self.end], "label": self.label, "score": self.score}


def duration_of(feats: VideoFeatures) -> float:
    """Seconds of video that the features stand for, from 0: the recorded duration, at least the last frame's end."""
    known = feats.video.get("duration_seconds")
    end = float(feats.frame_ends[-1]) if feats.num_frames else 0.0
    return max(end, float(known)) if isinstance(known, (int, float)) else end


def feature_rows(feats: VideoFeatures, rows: int, *, start: float = 0.0, end: float | None = None) -> NDArray[Any]:
    """Features on an even grid: float32 [rows, D], row k the mean over the k-th of `rows` equal parts of [start, end).

    The mean is that of the curve which joins the frames by straight lines and stays level before the first and after
    the last: it averages where frames are dense and interpolates where they are sparse, so features of any rate, even
    or not, become the same kind of rows. end: by default that of the video. Raises ValueError for no frames, fewer
    than one row, or a span without length.
    """
    end = duration_of(feats) if end is None else end
    if not feats.num_frames:
        raise ValueError(f"the features of {feats.video.get('path', 'the video')} have no frames")
    if rows < 1 or not (math.isfinite(start) and math.isfinite(end) and end > start):
        raise ValueError(f"rows must be at least 1 and end after start, got {rows} rows of {start} to {end} s")
    edges = np.linspace(start, end, rows + 1)
    times, values = feats.times, feats.embeddings.astype(np.float64)
    if len(times) == 1:
        return np.repeat(values, rows, axis=0).astype(np.float32)
    steps = np.diff(times)[:, None]
    area = np.concatenate([np.zeros((1, feats.dim)), np.cumsum(steps * (values[1:] + values[:-1]) / 2, axis=0)])
    left = np.clip(np.searchsorted(times, edges, side="right") - 1, 0, len(times) - 2)
    into = np.clip(edges - times[left], 0.0, steps[left, 0])[:, None]
    slope = (values[left + 1] - values[left]) / steps[left]
    integral = area[left] + into * (values[left] + slope * into / 2)
    integral += np.minimum(edges - times[0], 0.0)[:, None] * values[0]
    integral += np.maximum(edges - times[-1], 0.0)[:, None] * values[-1]
    return (np.diff(integral, axis=0) / ((end - start) / rows)).astype(np.float32)


def soft_nms(
    windows: NDArray[np.float64],
    scores: NDArray[np.float64],
    *,
    sigma: float = 0.5,
    min_score: float = 0.001,
    top: int = 200,
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Gaussian Soft-NMS (Bodla et al. 2017): indices of the kept windows, best first, and their scores.

    windows: [N, 2] in any unit; scores: [N]. The best of those left is kept, and the scores of all others are
    multiplied by exp(-IoU^2 / sigma) with it, until `top` are kept or none reaches `min_score`. Equal scores go to the
    first.
    Raises ValueError for parameters out of range.
    """
    if sigma <= 0 or top < 1:
        raise ValueError(f"sigma must be > 0 and top at least 1, got {sigma} and {top}")
    left = np.arange(len(scores))
    current = np.array(scores, dtype=np.float64)
    kept: list[int] = []
    values: list[float] = []
    while len(left) and len(kept) < top:
        best = int(current[left].argmax())
        index = left[best]
        if current[index] < min_score:
            break
        kept.append(int(index))
        values.append(float(current[index]))
        left = np.delete(left, best)
        overlap = iou_matrix(windows[index][None], windows[left])[0]
        current[left] *= np.exp(-(overlap**2) / sigma)
        left = left[current[left] >= min_score]
    return np.asarray(kept, dtype=np.intp), np.asarray(values)


def vote(
    kept: NDArray[np.float64], windows: NDArray[np.float64], scores: NDArray[np.float64], *, iou: float
) -> NDArray[np.float64]:
    """Kept windows [M, 2], each moved to the mean of all windows [N, 2] that overlap it by at least `iou`.

    The mean is weighted by the scores [N] before Soft-NMS. A window without such neighbours stays.
    """
    if not len(kept) or not len(windows):
        return kept
    weights = np.where(iou_matrix(kept, windows) >= iou, scores[None, :], 0.0)
    total = weights.sum(axis=1, keepdims=True)
    return np.where(total > 0, weights @ windows / np.where(total > 0, total, 1.0), kept)


def fuse_classes(detections: Sequence[Detection], classes: Mapping[str, float], *, top: int = 2) -> list[Detection]:
    """Detections of activities of no class, each given the `top` likeliest classes of its video; best first.

    classes: probability by label, of the whole video, from an external classifier. The score becomes the root of the
    product of both, as is customary on ActivityNet. Equal probabilities go to the label that comes first. Raises
    ValueError for top < 1.
    """
    if top < 1:
        raise ValueError(f"top must be at least 1, got {top}")
    likeliest = sorted(classes.items(), key=lambda item: -item[1])[:top]
    fused = [
        Detection(found.start, found.end, label, math.sqrt(max(found.score * share, 0.0)))
        for label, share in likeliest
        for found in detections
    ]
    return sorted(fused, key=lambda found: -found.score)


def localize_zero_shot(
    feats: VideoFeatures, classes: Mapping[str, Any], *, per_class: int = 10, smooth: float = 3.0
) -> list[Detection]:
    """Activities found without training: `ground` with the embedding of every class name; best first.

    classes: text embedding [D] by label. A moment's score is its cosine's lead over the best other class, both averaged
    over the moment, plus one so that it stays positive: raw cosines of different texts are not on one scale.
    Raises what `ground` raises.
    """
    matrix = np.stack([as_array(vector).astype(np.float32) for vector in classes.values()])
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    curves = feats.normalised() @ matrix.T
    found = []
    for number, (label, vector) in enumerate(classes.items()):
        for moment in ground(feats, vector, top=per_class, smooth=smooth):
            inside = slice(*np.searchsorted(feats.times, [moment.start, moment.end]))
            means = curves[inside].mean(axis=0)
            others = np.delete(means, number)
            lead = float(means[number] - others.max()) if len(others) else float(means[number])
            found.append(Detection(moment.start, moment.end, label, 1.0 + lead))
    return sorted(found, key=lambda detection: -detection.score)
