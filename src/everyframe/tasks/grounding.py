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
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from everyframe.features import VideoFeatures, as_array
from everyframe.spans import Moment, suppress
from everyframe.tasks.proposals import Frames, Proposals, contrast, half_height, preference, watershed

Method = Literal["watershed", "contrast", "whole", "half-height"]
METHODS: tuple[Method, ...] = ("watershed", "contrast", "whole", "half-height")

# Of "half-height": averages that are cut, and whose highest value is the height of a peak. Shorter ones are closer to
# short events and worse where cosines are noisy.
_CUT_SECONDS, _HEIGHT_SECONDS = 1.0, 2.0
# As many curves at once are few megabytes, even of a film.
_QUERIES_AT_ONCE = 64
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
    "half-height": the smoothed curve only says where peaks are; around each the curve of 1 s averages is cut half
    way between its height and the mean, so that it needs no threshold and keeps the edges of events. Not published:
    our own, and the best one on synthetic videos (docs/grounding.md).
    "contrast": windows from 2% of the frames on, growing by half, scored by the mean cosine inside minus the
    mean outside; neither smoothed nor cut. "whole": the whole video, scored by its mean cosine, which is the
    floor to print beside any method.

    Returns moments within [times[0], frame_ends[-1]] in seconds; none for features without frames. Raises
    ValueError for a query of the wrong shape and parameters out of range, FeaturesError for a frame of zeros.
    """
    rule = Rule(top=top, smooth=smooth, threshold=threshold, method=method, overlap=overlap)
    _check_features(feats)
    return rule.moments(feats, similarity(feats, query)[None])[0]


def ground_many(
    feats: VideoFeatures,
    queries: Any,
    *,
    top: int = 5,
    smooth: float = 5.0,
    threshold: float = 1.0,
    method: Method = "watershed",
    overlap: float = 0.5,
) -> list[list[Moment]]:
    """`ground` for many queries of one video: queries [Q, dim] -> for each its moments.

    One product of matrices instead of Q passes over the features. Cosines may differ from `ground`'s by rounding.
    """
    rule = Rule(top=top, smooth=smooth, threshold=threshold, method=method, overlap=overlap)
    _check_features(feats)
    vectors = _unit_queries(feats, queries)
    return [
        moments
        for first in range(0, len(vectors), _QUERIES_AT_ONCE)
        for moments in rule.moments(feats, _cosines(feats, vectors[first : first + _QUERIES_AT_ONCE]))
    ]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How moments are cut from curves: the options of `ground`. Raises ValueError for those out of range."""

    top: int = 5
    smooth: float = 5.0
    threshold: float = 1.0
    method: Method = "watershed"
    overlap: float = 0.5

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}")
        if self.top < 1:
            raise ValueError(f"top must be at least 1, got {self.top}")
        if not 0 <= self.overlap <= 1:
            raise ValueError(f"overlap must be in [0, 1], got {self.overlap}")
        if not math.isfinite(self.threshold):
            raise ValueError(f"threshold must be a finite number, got {self.threshold}")
        _check_smooth(self.smooth)

    def moments(self, feats: VideoFeatures, curves: NDArray[np.float32]) -> list[list[Moment]]:
        """curves: cosines [Q, T]."""
        if not feats.num_frames:
            return [[] for _ in curves]
        starts, ends = feats.times, feats.frame_ends
        if self.method == "whole":
            return [[Moment(starts[0], ends[-1], curve.mean(dtype=np.float64))] for curve in curves]
        return [self._choose(*proposals, starts, ends) for proposals in self._proposals(curves, starts, ends)]

    def _proposals(
        self, curves: NDArray[np.float32], starts: NDArray[np.float64], ends: NDArray[np.float64]
    ) -> Iterator[Proposals]:
        """Of each curve, in order of preference: first and past frame, and score."""
        if self.method == "contrast":
            yield from (contrast(curve) for curve in curves)
            return
        if self.method == "half-height":
            window = _averaged(starts, self.smooth)
            cut, height = (moving_average(curves, starts, seconds) for seconds in (_CUT_SECONDS, _HEIGHT_SECONDS))
            for each in zip(curves, cut, height, strict=True):
                yield half_height(*each, window, most=self.top)
            return
        for curve in moving_average(curves, starts, self.smooth):
            first, past, peak, level = watershed(curve, self.threshold)
            lasting = (level == 0) | (ends[past - 1] - starts[first] >= self.smooth / 2)
            first, past, peak, level = first[lasting], past[lasting], peak[lasting], level[lasting]
            order = preference(past - first, peak, level, -curve[peak])
            yield first[order], past[order], curve[peak][order]

    def _choose(
        self,
        first: Frames,
        past: Frames,
        scores: NDArray[np.floating],
        starts: NDArray[np.float64],
        ends: NDArray[np.float64],
    ) -> list[Moment]:
        windows = np.stack([starts[first], ends[past - 1]], axis=1)
        chosen = suppress(windows, iou=self.overlap, top=self.top)
        chosen = chosen[np.argsort(-scores[chosen], kind="stable")]
        return [Moment(windows[index, 0], windows[index, 1], scores[index]) for index in chosen]


def _check_features(feats: object) -> None:
    if not isinstance(feats, VideoFeatures):
        raise TypeError(f"feats must be VideoFeatures, got {type(feats).__name__}; use VideoFeatures.load(path)")


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
    return _cosines(feats, _unit_queries(feats, vector[None]))[0]


def similarities(feats: VideoFeatures, queries: Any) -> NDArray[np.float32]:
    """Cosine of every frame with every query [Q, dim]: float32 [Q, T]. Raises as `similarity` does."""
    return _cosines(feats, _unit_queries(feats, queries))


def _unit_queries(feats: VideoFeatures, queries: Any) -> NDArray[np.float32]:
    vectors = as_array(queries).astype(np.float32)
    if vectors.ndim != 2:
        raise ValueError(f"queries must be vectors [Q, {feats.dim}], got shape {list(vectors.shape)}")
    if vectors.shape[1] != feats.dim:
        raise ValueError(
            f"query has {vectors.shape[1]} dimensions but the features have {feats.dim}; "
            f"encode the query with the model of the features ({feats.model.get('id', 'not recorded')})"
        )
    lengths = np.array([np.linalg.norm(vector) for vector in vectors], dtype=np.float32)[:, None]
    if not np.isfinite(lengths).all() or not lengths.all():
        raise ValueError("query must be a finite vector that is not all zeros")
    return vectors / lengths


def _cosines(feats: VideoFeatures, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """vectors: [Q, dim] of length one -> float32 [Q, T]."""
    products = np.empty((len(vectors), feats.num_frames), dtype=np.float32)
    for start in range(0, feats.num_frames, 8192):  # blocks: float16 widens without a second copy
        block = feats.embeddings[start : start + 8192].astype(np.float32, copy=False)
        if len(vectors) == 1:
            products[0, start : start + 8192] = block @ vectors[0]
        else:
            products[:, start : start + 8192] = vectors @ block.T
    products /= feats.norms
    return np.clip(products, -1.0, 1.0, out=products)


def smoothed_similarity(feats: VideoFeatures, query: Any, *, smooth: float = 5.0) -> NDArray[np.float32]:
    """`similarity` under a simple moving average over `smooth` seconds: float32 [T].

    Frame k becomes the mean over the frames within smooth / 2 seconds of it, edges included: 15 frames for
    5 s at 3 frames/s. Near the ends of the video the frames that exist are averaged; 0 changes nothing.
    """
    _check_smooth(smooth)
    return moving_average(similarity(feats, query)[None], feats.times, smooth)[0]


def _check_smooth(smooth: float) -> None:
    if not (math.isfinite(smooth) and smooth >= 0):
        raise ValueError(f"smooth must be a number of seconds >= 0, got {smooth}")


def moving_average(curves: NDArray[np.float32], times: NDArray[np.float64], smooth: float) -> NDArray[np.float32]:
    """Of curves [Q, T] over times [T] in seconds, as `smoothed_similarity` says: float32 [Q, T]."""
    first, past = _averaged(times, smooth)
    sums = np.zeros((len(curves), len(times) + 1))
    np.cumsum(curves, axis=1, dtype=np.float64, out=sums[:, 1:])
    # Back to float32: the rounding of the running sum goes, so equal windows have equal averages again.
    return ((sums[:, past] - sums[:, first]) / (past - first)).astype(np.float32)


def average_weights(times: NDArray[np.float64], smooth: float) -> NDArray[np.float64]:
    """What each frame contributes to the mean of a curve under the moving average: float64 [T], sum 1.

    Not the same for all: a frame near an end, or between frames further apart than others, is in fewer averages.
    """
    first, past = _averaged(times, smooth)
    share = 1.0 / ((past - first) * max(len(times), 1))
    changes = np.bincount(first, share, len(times) + 1) - np.bincount(past, share, len(times) + 1)
    return np.cumsum(changes)[: len(times)]


def _averaged(times: NDArray[np.float64], smooth: float) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """First and past frame of the window around each frame."""
    reach = smooth / 2 + _TIME_EPSILON
    return np.searchsorted(times, times - reach, side="left"), np.searchsorted(times, times + reach, side="right")
