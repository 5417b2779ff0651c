"""What P-features cost nothing: copies of the I-feature, or points between two I-features. And what is lost by any.

The baselines every interleaved encoder has to beat. Both need the I-features alone; they take dense features
here because whoever compares has those, and look only at the rows of I-frames.
T frames, D width of the joint space, N P-frames after each I-frame.
"""

from __future__ import annotations

import numpy as np

from everyframe.encoders.plan import check_interleave


def copy_features(features: np.ndarray, interleave: int) -> np.ndarray:
    """Every P-frame gets its I-frame's feature: float [T, D] -> float32 [T, D]."""
    rows = _check(features, interleave)
    return features[rows - rows % (interleave + 1)].astype(np.float32)


def interpolate_features(features: np.ndarray, times: np.ndarray, interleave: int) -> np.ndarray:
    """P-frames lie between the I-features around them, by time, then back on the unit sphere.

    features float [T, D], times float64 [T] seconds -> float32 [T, D]. After the last I-frame there is nothing to
    go towards, so its feature is copied. A group can only be finished when the next I-frame is known.
    """
    rows = _check(features, interleave)
    if len(times) != len(features):
        raise ValueError(f"times must be one per feature, got {len(times)} for {len(features)}")
    step = interleave + 1
    before = rows - rows % step
    after = np.where(before + step < len(rows), before + step, before)
    span = times[after] - times[before]
    share = np.divide(times[rows] - times[before], span, out=np.zeros(len(rows)), where=span > 0)[:, None]
    mixed = (1 - share) * features[before] + share * features[after]
    norms = np.linalg.norm(mixed, axis=1, keepdims=True)
    return (mixed / np.maximum(norms, 1e-12)).astype(np.float32)


def fidelity(features: np.ndarray, dense: np.ndarray) -> np.ndarray:
    """Cosine of each frame's feature with its dense one: float [T, D], no row 0 -> float64 [T].

    Exactly 1 where the rows are equal, and never more.
    """
    own, full = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in map(np.float64, (features, dense)))
    return 1.0 - ((own - full) ** 2).sum(1) / 2


def _check(features: np.ndarray, interleave: int) -> np.ndarray:
    check_interleave(interleave)
    if features.ndim != 2:
        raise ValueError(f"features must be [T, D], got shape {list(features.shape)}")
    return np.arange(len(features))
