"""Where a similarity curve may hold an answer: from cosines over time to scored runs of frames.

T frames. A proposal is a run of frames [first, past) with a score; higher is better.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.intp]
Curve = NDArray[np.float32]
Proposals = tuple[Frames, Frames, NDArray[np.floating]]
"""First and past frames, and scores, in order of preference."""

# Levels between the base and the top of the curve. On simulated curves 8, 16 and 32 levels give R@5 within
# three points of each other, so more would only cost time.
_LEVELS = 32
# Of the height of a peak above the mean: where its run is cut, and where the alternatives to it are.
_SHARES = (0.5, 0.25, 0.75)
# Cosines closer than this are equal: it keeps a constant curve from falling below its own mean by rounding.
_COSINE_EPSILON = 1e-7


def watershed(curve: Curve, threshold: float) -> tuple[Frames, Frames, Frames, Frames]:
    """All runs [first, past) at each level of the ladder, with the frame of their peak and their level."""
    base = base_level(float(curve.mean(dtype=np.float64)), threshold)
    height = max(float(curve.max()) - base, 0.0)
    runs: list[Frames] = []
    above = np.arange(len(curve))
    for level in range(_LEVELS):
        # Levels rise, so each looks only at the frames that reached the one before.
        above = above[curve[above] >= base + height * level / _LEVELS - _COSINE_EPSILON]
        if not len(above):
            break
        first, past, peak = runs_of(curve, above)
        runs.append(np.stack([first, past, peak, np.full_like(first, level)]))
    first, past, peak, levels = np.concatenate([np.empty((4, 0), dtype=np.intp), *runs], axis=1)
    return first, past, peak, levels


def base_runs(curve: Curve, threshold: float) -> tuple[Frames, Frames, Frames]:
    """The watershed's runs [first, past) at its first level, each with the frame of its peak."""
    level = base_level(float(curve.mean(dtype=np.float64)), threshold)
    return runs_of(curve, np.flatnonzero(curve >= level - _COSINE_EPSILON))


def base_level(mean: float, threshold: float) -> float:
    """The level at which the watershed begins, for the mean of a smoothed curve."""
    return mean + (threshold - 1.0) * abs(mean)


def runs_of(curve: Curve, above: Frames) -> tuple[Frames, Frames, Frames]:
    """The unbroken runs [first, past) in `above`, increasing frames, each with the frame of its peak."""
    if not len(above):
        return above, above, above
    begin = np.flatnonzero(np.diff(above, prepend=-2) > 1)
    end = np.append(begin[1:], len(above))
    values = curve[above]
    highest = np.maximum.reduceat(values, begin).repeat(end - begin)
    peak = np.minimum.reduceat(np.where(values == highest, above, len(curve)), begin)  # the earlier of equals
    return above[begin], above[end - 1] + 1, peak


def preference(length: Frames, peak: Frames, level: Frames, cost: Curve) -> Frames:
    """Order of the watershed's proposals by the rule above; cost: minus the score, small comes first."""
    _, group = np.unique(peak, return_inverse=True)
    widest = np.zeros(len(length), dtype=np.intp)
    np.maximum.at(widest, group, length)
    halvings = np.floor(np.log2(widest[group] / length))
    return np.lexsort((level, peak, cost, np.maximum(halvings - 1, 0)))


def contrast(curve: Curve) -> Proposals:
    """Windows [first, past) of growing length with mean inside minus mean outside, from a running sum."""
    num_frames = len(curve)
    if num_frames == 1:  # nothing lies outside: the whole video is the only answer
        return np.array([0]), np.array([1]), np.zeros(1)
    sums = np.concatenate([[0.0], np.cumsum(curve, dtype=np.float64)])
    lengths: list[int] = []
    wanted = 0.02 * num_frames
    while round(wanted) < num_frames:
        lengths.append(max(1, round(wanted)))
        wanted *= 1.5
    firsts, pasts, scores = [], [], []
    for length in dict.fromkeys(lengths):
        # An eighth of the length is a fine enough step and keeps ten hours as cheap as a minute.
        first = np.arange(0, num_frames - length + 1, max(1, length // 8))
        inside = sums[first + length] - sums[first]
        outside = (sums[-1] - inside) / (num_frames - length)
        firsts.append(first)
        pasts.append(first + length)
        scores.append(inside / length - outside)
    begin, end, score = np.concatenate(firsts), np.concatenate(pasts), np.concatenate(scores)
    order = np.lexsort((end, begin, -score))
    return begin[order], end[order], score[order]


def half_height(cosines: Curve, curve: Curve, height: Curve, window: tuple[Frames, Frames], *, most: int) -> Proposals:
    """Runs [first, past) around up to `most` peaks, highest first, each cut half way down from its peak to the mean.

    curve, height: the cosines averaged over about 1 and 2 seconds. window: first and past frame around each frame over
    which peaks are averaged; the highest average is the next peak, and the highest value of `height` in its window is
    its top. A run is the one around the top with the most area of `curve` above its level, so that single frames below
    do not end it; a wider and a narrower one, cut at a quarter and at three quarters, follow it. The frames of a run
    are then left out of all averages. Scores are the averages of the peaks.
    """
    mean = float(curve.mean(dtype=np.float64))
    free = np.ones(len(curve), dtype=bool)
    found: dict[tuple[int, int], float] = {}
    for _ in range(most):
        averages = _averages(cosines, free, window)
        peak = int(np.argmax(averages))
        if averages[peak] == -np.inf or (averages[peak] <= mean and found):
            break
        # Runs end at the latest where another one, found before, is.
        taken = np.flatnonzero(~free)
        place = int(np.searchsorted(taken, peak))
        start = int(taken[place - 1]) + 1 if place else 0
        stop = int(taken[place]) if place < len(taken) else len(curve)
        begin = max(start, int(window[0][peak]))
        top = begin + int(np.argmax(height[begin : min(stop, int(window[1][peak]))]))
        rise = max(float(height[top]) - mean, 0.0)
        runs = []
        for share in _SHARES:
            excess = curve[start:stop].astype(np.float64) - (mean + share * rise) + _COSINE_EPSILON
            first, past = _most_area(excess, top - start)
            runs.append((start + first, start + past))
        for run in runs:
            found.setdefault(run, float(averages[peak]))
        free[slice(*runs[0])] = False
        free[peak] = False
    spans = np.array(list(found), dtype=np.intp)
    return spans[:, 0], spans[:, 1], np.array(list(found.values()), dtype=np.float32)


def _averages(cosines: Curve, free: NDArray[np.bool_], window: tuple[Frames, Frames]) -> Curve:
    """Of the free frames in each free frame's window; -inf for others."""
    first, past = window
    sums = np.concatenate([[0.0], np.cumsum(np.where(free, cosines, 0.0), dtype=np.float64)])
    counts = np.concatenate([[0], np.cumsum(free)])
    means = (sums[past] - sums[first]) / np.maximum(counts[past] - counts[first], 1)
    return np.where(free, means, -np.inf).astype(np.float32)


def _most_area(excess: NDArray[np.float64], peak: int) -> tuple[int, int]:
    """The run around `peak` with the largest sum; it grows to a side while the sum from the peak on is not negative."""
    before = _frames_gained(excess[peak::-1])
    return peak - before, peak + 1 + _frames_gained(excess[peak:])


def _frames_gained(excess: NDArray[np.float64]) -> int:
    """How many frames after the first to take for the largest sum, before the sum falls below zero."""
    sums = excess.cumsum()
    below = sums[1:] < 0
    end = 1 + int(np.argmax(below)) if below.any() else len(sums)
    return int(np.argmax(sums[:end]))
