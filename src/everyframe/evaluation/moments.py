"""How well moments answer queries: recall, mean IoU, and the measures of Moment-DETR for moments and highlights.

Percentages throughout, as the tables of the field print them. A query's answers are [P, 3] (start, end, score) in
seconds, in the order they were given, which recall and mIoU keep; average precision sorts them by score. Its truth is
[G, 2] (start, end). Two windows whose union has no length do not overlap (0, not 0/0). The union of two that overlap is
taken as the length of their hull, as Moment-DETR's R@1 does: one rounding, where the sum of lengths has three. It
decides what is exactly at an IoU: of ActivityNet's val_1, six queries for the whole video.

Sources: Gao et al. 2017 (R@K, IoU), VSLNet (mIoU), Lei et al. 2021 (QVHighlights: MR-mAP, HL-mAP, HL-Hit1), ActivityNet
(average precision), Soldan et al. 2022 (MAD: IoU strictly above).

    Q queries, P answers of a query, G windows of its truth, C clips of 2 s
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

TOPS = (1, 5, 10)
IOUS = (0.1, 0.3, 0.5, 0.7)
AP_IOUS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
"""Where Moment-DETR measures R@1 and average precision."""
AP_ANSWERS = 10
"""How many answers count for average precision, the first in the given order."""
LENGTHS = {"short": (0.0, 10.0), "middle": (10.0, 30.0), "long": (30.0, 150.0)}
"""Seconds of a true window, (above, up to]."""
SALIENT = {"Fair": 2, "Good": 3, "VeryGood": 4}
"""The least score of QVHighlights' annotators that makes a clip a highlight."""
CLIP_SECONDS = 2.0

Windows = NDArray[np.float64]


def moment_metrics(
    truth: Sequence[Windows],
    answers: Sequence[Windows],
    *,
    tops: Sequence[int] = TOPS,
    ious: Sequence[float] = IOUS,
    strict: bool = False,
) -> dict[str, float]:
    """All measures of moments, by name.

    R{k}@{iou}: share of queries that one of their first k answers gets right; R1@{iou} also at 0.5:0.05:0.95, and
    R1@0.5:0.95, the mean of those. mIoU: mean IoU of the first answer with its best window. mAP@{iou}: mean over
    queries of average precision; mAP: its mean over 0.5:0.05:0.95. MR-short-..., MR-middle-..., MR-long-...: R1 and mAP
    where only the true windows of that length count, and queries that have one.

    strict: an answer must be above the IoU, as MAD's zero-shot CLIP has it, not at it or above. A query without answers
    is a missed one. Raises ValueError for lists of unequal or no length, or a query without truth.
    """
    if len(truth) != len(answers):
        raise ValueError(f"got answers of {len(answers)} queries but truth of {len(truth)}")
    if not len(truth):
        raise ValueError("there are no queries to score")
    overlaps = first_overlaps(truth, answers, max(tops))
    metrics: dict[str, float] = {}
    for top in tops:
        best = overlaps[:, :top].max(axis=1)
        for iou in sorted({*ious, *AP_IOUS}) if top == 1 else ious:
            metrics[f"R{top}@{iou:g}"] = _reached(best, iou, strict)
    metrics["R1@0.5:0.95"] = float(np.mean([metrics[f"R1@{iou:g}"] for iou in AP_IOUS]))
    metrics["mIoU"] = 100 * float(overlaps[:, 0].mean())
    metrics |= _mean_precision(truth, answers)
    for name, (above, up_to) in LENGTHS.items():
        inside = [windows[_between(windows, above, up_to)] for windows in truth]
        chosen = [number for number, windows in enumerate(inside) if len(windows)]
        if chosen:
            some, own = [inside[number] for number in chosen], [answers[number] for number in chosen]
            first = first_overlaps(some, own, 1)[:, 0]
            metrics |= {f"MR-{name}-R1@{iou:g}": _reached(first, iou, strict) for iou in AP_IOUS}
            metrics |= {f"MR-{name}-{key}": value for key, value in _mean_precision(some, own).items()}
    return metrics


def first_answer_metrics(
    truth: Sequence[Windows], first: Windows, *, ious: Sequence[float] = IOUS, strict: bool = False
) -> dict[str, float]:
    """R1@{iou} and mIoU where every query has one answer: first [Q, 2], (start, end)."""
    best = first_overlaps(truth, list(first[:, None]), 1)[:, 0]
    return {f"R1@{iou:g}": _reached(best, iou, strict) for iou in ious} | {"mIoU": 100 * float(best.mean())}


def first_overlaps(truth: Sequence[Windows], answers: Sequence[Windows], top: int) -> NDArray[np.float64]:
    """Of each query's first `top` answers the IoU with the best window of its truth: float64 [Q, top], 0 where none."""
    overlaps = np.zeros((len(truth), top))
    for number, (windows, given) in enumerate(zip(truth, answers, strict=True)):
        if not len(windows):
            raise ValueError(f"query {number} has no window of truth")
        if len(given):
            best = _overlaps(given[:top], windows).max(axis=1)
            overlaps[number, : len(best)] = best
    return overlaps


def average_precision(truth: Windows, answers: Windows, ious: Sequence[float] = AP_IOUS) -> NDArray[np.float64]:
    """ActivityNet's interpolated average precision of one query, in [0, 1], at each IoU: float64 [len(ious)].

    Answers, best score first and the earlier of equals, each take the free window that they overlap most, if that is at
    least the IoU; others are wrong. Precision at a recall is the best at this recall or a higher one.
    """
    if not len(answers):
        return np.zeros(len(ious))
    levels = np.asarray(ious)
    matrix = _overlaps(answers, truth)
    right = np.zeros((len(answers), len(levels)), dtype=bool)
    free = np.ones((len(truth), len(levels)), dtype=bool)
    for place, answer in enumerate(np.argsort(-answers[:, 2], kind="stable")):
        for window in np.argsort(matrix[answer], kind="stable")[::-1]:
            takes = free[window] & (matrix[answer, window] >= levels) & ~right[place]
            right[place] |= takes
            free[window] &= ~takes
    found = right.cumsum(axis=0)
    precision = found / np.arange(1, len(answers) + 1)[:, None]
    best_from_here = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    return (best_from_here * right).sum(axis=0) / len(truth)


def highlight_metrics(
    saliency: Sequence[NDArray[np.float64]], predicted: Sequence[NDArray[np.float64] | None]
) -> dict[str, float]:
    """HL-mAP and HL-Hit1, by the least score that makes a clip a highlight; without one: Very Good, as tables print.

    saliency: for each query [C, annotators], 0 to 4, 0 where a clip is not relevant. predicted: [any number], higher is
    better; clips beyond are 0, None is a missed query. Hit1: any annotator calls the best clip (the first of equals) a
    highlight. mAP: the mean over queries and annotators. Raises ValueError for lists of unequal or no length.
    """
    if len(saliency) != len(predicted):
        raise ValueError(f"got predictions of {len(predicted)} queries but saliency of {len(saliency)}")
    if not len(saliency):
        raise ValueError("there are no queries to score")
    metrics: dict[str, float] = {}
    for name, least in SALIENT.items():
        precision, hits = [], []
        for scores, given in zip(saliency, predicted, strict=True):
            wanted = scores >= least
            if given is None or not len(given):
                precision.append(0.0)
                hits.append(False)
                continue
            best = int(np.argmax(given))
            hits.append(best < len(wanted) and bool(wanted[best].any()))
            padded = np.zeros(len(wanted))
            padded[: len(given)] = given[: len(wanted)]
            precision.append(float(np.mean([_clip_precision(column, padded) for column in wanted.T])))
        metrics[f"HL-min-{name}-mAP"] = 100 * float(np.mean(precision))
        metrics[f"HL-min-{name}-Hit1"] = 100 * float(np.mean(hits))
    return {"HL-mAP": metrics["HL-min-VeryGood-mAP"], "HL-Hit1": metrics["HL-min-VeryGood-Hit1"], **metrics}


def saliency_table(
    duration: float, clips: Sequence[int], scores: Sequence[Sequence[float]], *, annotators: int = 3
) -> NDArray[np.float64]:
    """QVHighlights' annotation of a query over all clips of its video: float64 [C, annotators], C = duration / 2 s."""
    table = np.zeros((int(duration / CLIP_SECONDS), annotators))
    if len(clips):
        table[np.asarray(clips, dtype=np.intp)] = np.asarray(scores, dtype=np.float64)
    return table


def _overlaps(answers: Windows, truth: Windows) -> NDArray[np.float64]:
    """IoU of answers [P, 2 or more] with windows [G, 2]: float64 [P, G]."""
    start, end = answers[:, 0, None], answers[:, 1, None]
    inside = np.maximum(np.minimum(end, truth[:, 1]) - np.maximum(start, truth[:, 0]), 0.0)
    hull = np.maximum(end, truth[:, 1]) - np.minimum(start, truth[:, 0])
    return inside / np.where(hull > 0, hull, 1.0)


def _reached(overlaps: NDArray[np.float64], iou: float, strict: bool) -> float:
    return 100 * float(np.mean(overlaps > iou if strict else overlaps >= iou))


def _between(windows: Windows, above: float, up_to: float) -> NDArray[np.bool_]:
    lengths = windows[:, 1] - windows[:, 0]
    return (lengths > above) & (lengths <= up_to)


def _mean_precision(truth: Sequence[Windows], answers: Sequence[Windows]) -> dict[str, float]:
    """mAP over all IoUs, then at each."""
    each = [average_precision(windows, given[:AP_ANSWERS]) for windows, given in zip(truth, answers, strict=True)]
    means = 100 * np.mean(each, axis=0)
    return {"mAP": float(means.mean())} | {f"mAP@{iou:g}": float(m) for iou, m in zip(AP_IOUS, means, strict=True)}


def _clip_precision(wanted: NDArray[np.bool_], scores: NDArray[np.float64]) -> float:
    """Interpolated average precision of clips in [0, 1]: equal scores count as one step; 0 where none is wanted."""
    if not wanted.any():
        return 0.0
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.diff(scores[order], append=-np.inf))  # of each run of equal scores
    found = wanted[order].cumsum()[last]
    precision = found / (last + 1)
    best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
    # One value per recall that is reached, not per clip: so the mean over steps is Moment-DETR's.
    return float(best_from_here[np.diff(found, prepend=0) > 0].mean())
