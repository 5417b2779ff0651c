"""Moments in time: a span with a score, temporal IoU, non-maximum suppression and recall.

Every span is half-open, [start, end), in seconds. Windows are arrays of shape [..., 2] holding (start, end).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Moment:
    """A scored span of a video: [start, end) in seconds; a larger score is a better answer.

    Raises ValueError where a value is not finite or the end lies before the start.
    """

    start: float
    end: float
    score: float

    def __post_init__(self) -> None:
        for name in ("start", "end", "score"):
            value = float(getattr(self, name))  # NumPy scalars become plain floats: they print and serialise
            if not math.isfinite(value):
                raise ValueError(f"a moment's {name} must be a finite number, got {value}")
            object.__setattr__(self, name, value)
        if self.end < self.start:
            raise ValueError(f"a moment must not end before it starts, got start={self.start} and end={self.end}")

    @property
    def duration(self) -> float:
        """Length in seconds."""
        return self.end - self.start


def _windows(values: ArrayLike | Moment | Sequence[Moment]) -> NDArray[np.float64]:
    """Anything that holds spans, as a checked float64 array [..., 2]."""
    if isinstance(values, Moment):
        values = (values.start, values.end)
    elif isinstance(values, (list, tuple)) and any(isinstance(value, Moment) for value in values):
        values = [(moment.start, moment.end) for moment in values]
    windows = np.asarray(values, dtype=np.float64)
    if windows.size == 0:
        return windows.reshape(0, 2)
    if windows.ndim == 0 or windows.shape[-1] != 2:
        raise ValueError(f"windows need (start, end) on their last axis, got shape {windows.shape}")
    if not np.isfinite(windows).all():
        raise ValueError("windows must hold finite seconds, got a NaN or an infinity")
    if (windows[..., 1] < windows[..., 0]).any():
        raise ValueError("a window must not end before it starts")
    return windows


def _iou(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    overlap = np.minimum(a[..., 1], b[..., 1]) - np.maximum(a[..., 0], b[..., 0])
    overlap = np.maximum(overlap, 0.0)
    union = (a[..., 1] - a[..., 0]) + (b[..., 1] - b[..., 0]) - overlap
    # Two windows without length have no union: they count as not overlapping instead of as 0/0.
    return overlap / np.where(union > 0, union, 1.0)


def temporal_iou(a: ArrayLike | Moment, b: ArrayLike | Moment) -> NDArray[np.float64]:
    """Intersection over union of windows, pair by pair.

    a, b: one window (start, end), a Moment, or arrays [..., 2] that broadcast against each other.
    Returns float64 in [0, 1] of the broadcast shape (one number for two single windows); windows whose union
    has no length give 0. Raises ValueError for windows that are not finite or end before they start.
    """
    return _iou(_windows(a), _windows(b))[()]


def iou_matrix(a: ArrayLike | Sequence[Moment], b: ArrayLike | Sequence[Moment]) -> NDArray[np.float64]:
    """Temporal IoU of every window of a [N, 2] with every window of b [M, 2]: float64 [N, M]."""
    first, second = _windows(a), _windows(b)
    if first.ndim != 2 or second.ndim != 2:
        raise ValueError(f"iou_matrix compares two lists of windows, got shapes {first.shape} and {second.shape}")
    return _iou(first[:, None], second[None, :])


def suppress(windows: NDArray[np.float64], *, iou: float, top: int | None = None) -> NDArray[np.intp]:
    """Greedy non-maximum suppression over windows [N, 2] that come best first.

    Returns the kept indices in the given order: a window goes when its IoU with one kept before it is above
    `iou`, so 0 keeps only windows that do not overlap and 1 keeps all. Stops after `top` of them.
    Costs O(N) per kept window.
    """
    if not 0.0 <= iou <= 1.0:
        raise ValueError(f"iou must be in [0, 1], got {iou}")
    if top is not None and top < 1:
        raise ValueError(f"top must be at least 1, got {top}")
    left = np.arange(len(windows))
    kept: list[int] = []
    while left.size and (top is None or len(kept) < top):
        best, left = left[0], left[1:]
        kept.append(int(best))
        left = left[_iou(windows[best], windows[left]) <= iou]
    return np.asarray(kept, dtype=np.intp)


def nms(moments: Sequence[Moment], iou: float, *, top: int | None = None) -> list[Moment]:
    """The best moments by score that overlap each other by at most `iou`, best first.

    Equal scores go to the earlier start, then to the longer moment. Raises ValueError for iou outside [0, 1].
    """
    ranked = sorted(moments, key=lambda moment: (-moment.score, moment.start, -moment.end))
    return [ranked[index] for index in suppress(_windows(ranked), iou=iou, top=top)]


def recall_at(
    predictions: Sequence[Sequence[Moment]],
    truth: Sequence[Sequence[tuple[float, float]]],
    *,
    k: int,
    iou: float,
) -> float:
    """R@k at a temporal IoU: the share of queries that one of their first k answers gets right.

    predictions: per query its moments, best first, in the given order (as lighthouse and Moment-DETR do).
    truth: per query its windows in seconds; reaching any one of them counts, and "reaching" is IoU >= `iou`.
    Returns a number in [0, 1]; a query without predictions counts as missed. Raises ValueError for lists of
    unequal or no length, a query without ground truth, k < 1 and an iou outside (0, 1].
    """
    if len(predictions) != len(truth):
        raise ValueError(f"got predictions for {len(predictions)} queries but truth for {len(truth)}")
    if not truth:
        raise ValueError("recall over no queries is undefined: the list is empty")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if not 0.0 < iou <= 1.0:
        raise ValueError(f"iou must be in (0, 1], got {iou}")
    found = 0
    for index, (moments, windows) in enumerate(zip(predictions, truth, strict=True)):
        if not len(windows):
            raise ValueError(f"query {index} has no ground truth window")
        matrix = iou_matrix(list(moments[:k]), np.asarray(windows, dtype=np.float64))
        found += bool((matrix >= iou).any())
    return found / len(truth)
