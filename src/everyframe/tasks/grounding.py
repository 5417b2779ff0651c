"""Zero-shot temporal grounding: where in a video is what the query describes?

The curve of cosine similarities between every frame and the query is smoothed and cut at a level; what lies
above is an answer. This follows the zero-shot evaluation of ResidualViT (simple moving average over 5 s,
"watershed" with threshold 1.0); how nested answers are ranked is our own rule.

The rule. s(t), the cosine averaged over `smooth` seconds, is cut at mean + (threshold - 1) * |mean|, the mean
being that of s: threshold x mean where it is positive, and where it is negative a larger threshold stays the
stricter one. Every maximal run of frames at or above this base level is a proposal, scored by its highest s.
Raising the level to the highest s in 32 equal steps makes runs shrink and split: these are the nested
proposals, dropped when shorter than smooth / 2, finer than the curve can tell.

For each peak, its widest run and those longer than a quarter of it come first, by score and then from low
levels to high; narrower ones come after all of these, once more for every halving, so that one high peak
does not take all places. A moment that overlaps a chosen one by more than `overlap` is passed over; the first
`top` are sorted by score. The best answer is thus always the base run with the highest peak (the earlier of
equals).
"""

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from everyframe.features import VideoFeatures, as_array
from everyframe.spans import Moment, suppress

Method = Literal["watershed", "contrast", "whole"]
METHODS: tuple[Method, ...] = ("watershed", "contrast", "whole")

# Levels between the base and the top of the curve. On simulated curves 8, 16 and 32 levels give R@5 within
# three points of each other, so more would only cost time.
_LEVELS = 32
# Cosines closer than this are equal: it keeps a constant curve from falling below its own mean by rounding.
_COSINE_EPSILON = 1e-7
# Times such as 1/3 s are not exact in float64, and a frame on the edge belongs to the window.
_TIME_EPSILON = 1e-6


def ground(
    feats: VideoFeatures,
    query: Any,
    *,
    top: int = 5,
    smooth: float = 5.0,
    threshold: float = 1.0,
    method: Method = "watershed",
    overlap: float = 0.5,
) -> list[Moment]:
    """The moments of a video that answer a query, best first.

    feats: features of one video. query: [dim], array or tensor; normalised here, as are the frames.
    top: how many moments at most. overlap: the largest IoU two of them may have.

    "watershed": runs of the smoothed curve above a level, told in full at the top of this module; `smooth` is
    in seconds, and a threshold that no frame reaches gives an empty list.
    "contrast": windows from 2% of the frames on, growing by half, scored by the mean cosine inside minus the
    mean outside; neither smoothed nor cut. "whole": the whole video, scored by its mean cosine, which is the
    floor to print beside any method.

    Returns moments within [times[0], frame_ends[-1]] in seconds; none for features without frames. Raises
    ValueError for a query of the wrong shape and parameters out of range, FeaturesError for a frame of zeros.
    """
    if not isinstance(feats, VideoFeatures):
        raise TypeError(f"feats must be VideoFeatures, got {type(feats).__name__}; use VideoFeatures.load(path)")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if top < 1:
        raise ValueError(f"top must be at least 1, got {top}")
    if not 0 <= overlap <= 1:
        raise ValueError(f"overlap must be in [0, 1], got {overlap}")
    if not math.isfinite(threshold):
        raise ValueError(f"threshold must be a finite number, got {threshold}")
    _check_smooth(smooth)
    curve = similarity(feats, query)
    if not len(curve):
        return []
    starts, ends = feats.times, feats.frame_ends
    if method == "whole":
        return [Moment(starts[0], ends[-1], curve.mean(dtype=np.float64))]
    if method == "contrast":
        first, past, scores = _contrast(curve)
        order = np.lexsort((past, first, -scores))
    else:
        curve = _moving_average(curve, starts, smooth)
        first, past, peak, level = _watershed(curve, threshold)
        lasting = (level == 0) | (ends[past - 1] - starts[first] >= smooth / 2)
        first, past, peak, level = first[lasting], past[lasting], peak[lasting], level[lasting]
        scores = curve[peak]
        order = _preference(past - first, peak, level, -scores)
    windows = np.stack([starts[first], ends[past - 1]], axis=1)
    chosen = order[suppress(windows[order], iou=overlap, top=top)]
    chosen = chosen[np.argsort(-scores[chosen], kind="stable")]
    return [Moment(windows[index, 0], windows[index, 1], scores[index]) for index in chosen]


def similarity(feats: VideoFeatures, query: Any) -> NDArray[np.float32]:
    """Cosine of every frame with the query: float32 [T] in [-1, 1].

    query: [dim], array or tensor of any length but zero. Raises ValueError for a query that is not one finite
    vector of the features' dim, FeaturesError for a frame of zeros.
    """
    if isinstance(query, str):
        raise TypeError(f"query must be a vector, got {query!r}; encode it: model.encode_text([...])[0]")
    vector = as_array(query).astype(np.float32)
    if vector.ndim != 1:
        raise ValueError(
            f"query must be one vector [{feats.dim}], got shape {list(vector.shape)}; "
            "pass one row of what encode_text returned"
        )
    if len(vector) != feats.dim:
        raise ValueError(
            f"query has {len(vector)} dimensions but the features have {feats.dim}; "
            f"encode the query with the model of the features ({feats.model.get('id', 'not recorded')})"
        )
    length = float(np.linalg.norm(vector))
    if not math.isfinite(length) or length == 0:
        raise ValueError("query must be a finite vector that is not all zeros")
    vector /= length
    products = np.empty(feats.num_frames, dtype=np.float32)
    for start in range(0, feats.num_frames, 8192):  # blocks: float16 widens without a second copy
        products[start : start + 8192] = feats.embeddings[start : start + 8192].astype(np.float32, copy=False) @ vector
    return np.clip(products / feats.norms, -1.0, 1.0)


def smoothed_similarity(feats: VideoFeatures, query: Any, *, smooth: float = 5.0) -> NDArray[np.float32]:
    """`similarity` under a simple moving average over `smooth` seconds: float32 [T].

    Frame k becomes the mean over the frames within smooth / 2 seconds of it, edges included: 15 frames for
    5 s at 3 frames/s. Near the ends of the video the frames that exist are averaged; 0 changes nothing.
    """
    _check_smooth(smooth)
    return _moving_average(similarity(feats, query), feats.times, smooth)


def _check_smooth(smooth: float) -> None:
    if not (math.isfinite(smooth) and smooth >= 0):
        raise ValueError(f"smooth must be a number of seconds >= 0, got {smooth}")


def _moving_average(curve: NDArray[np.float32], times: NDArray[np.float64], smooth: float) -> NDArray[np.float32]:
    reach = smooth / 2 + _TIME_EPSILON
    first = np.searchsorted(times, times - reach, side="left")
    past = np.searchsorted(times, times + reach, side="right")
    sums = np.concatenate([[0.0], np.cumsum(curve, dtype=np.float64)])
    # Back to float32: the rounding of the running sum goes, so equal windows have equal averages again.
    return ((sums[past] - sums[first]) / (past - first)).astype(np.float32)


_Frames = NDArray[np.intp]


def _watershed(curve: NDArray[np.float32], threshold: float) -> tuple[_Frames, _Frames, _Frames, _Frames]:
    """All runs [first, past) at each level of the ladder, with the frame of their peak and their level."""
    mean = float(curve.mean(dtype=np.float64))
    base = mean + (threshold - 1.0) * abs(mean)
    height = max(float(curve.max()) - base, 0.0)
    frames = np.arange(len(curve))
    order = np.argsort(-curve, kind="stable")
    place = np.empty_like(order)
    place[order] = frames  # 0 is the highest frame, the earlier of equals: a run's peak is its smallest place
    runs: list[NDArray[np.intp]] = []
    for level in range(_LEVELS):
        above = curve >= base + height * level / _LEVELS - _COSINE_EPSILON
        edges = np.diff(above.astype(np.int8), prepend=0, append=0)
        first, past = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
        if not len(first):
            break
        best = np.minimum.reduceat(np.where(above, place, len(curve)), first)
        runs.append(np.stack([first, past, order[best], np.full_like(first, level)]))
    first, past, peak, levels = np.concatenate([np.empty((4, 0), dtype=np.intp), *runs], axis=1)
    return first, past, peak, levels


def _preference(length: _Frames, peak: _Frames, level: _Frames, cost: NDArray[np.float32]) -> _Frames:
    """Order of the watershed's proposals by the rule above; cost: minus the score, small comes first."""
    _, group = np.unique(peak, return_inverse=True)
    widest = np.zeros(len(length), dtype=np.intp)
    np.maximum.at(widest, group, length)
    halvings = np.floor(np.log2(widest[group] / length))
    return np.lexsort((level, peak, cost, np.maximum(halvings - 1, 0)))


def _contrast(curve: NDArray[np.float32]) -> tuple[_Frames, _Frames, NDArray[np.float64]]:
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
    return np.concatenate(firsts), np.concatenate(pasts), np.concatenate(scores)
