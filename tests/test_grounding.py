"""Grounding: the curve against scipy and loops, the watershed against a naive re-statement of its rule."""

import math
import time

import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter1d

from everyframe.features import FeaturesError, VideoFeatures
from everyframe.spans import Moment, temporal_iou
from everyframe.tasks.grounding import METHODS, ground, ground_many, similarities, similarity, smoothed_similarity

QUERY = np.array([1.0, 0.0, 0.0])


def from_curve(curve, times=None, **video):
    """Features whose cosine with QUERY is exactly the given curve."""
    curve = np.asarray(curve, dtype=np.float64)
    rows = np.stack([curve, np.sqrt(1 - curve**2), np.zeros_like(curve)], axis=1).astype(np.float32)
    times = np.arange(len(curve)) / 3 if times is None else times
    return VideoFeatures(times=times, embeddings=rows, roles="I" * len(curve), video=video)


def bumps(num_frames, *spans, low=0.2, high=0.3):
    curve = np.full(num_frames, low)
    for (start, end), add in spans:
        curve[start:end] = high + add
    return curve


def test_similarity_is_the_cosine():
    rng = np.random.default_rng(0)
    rows, query = rng.normal(size=(9, 5)) * 40, rng.normal(size=5) * 0.01
    expected = [float(np.dot(row, query)) / math.sqrt(sum(row**2)) / math.sqrt(sum(query**2)) for row in rows]
    for dtype, tolerance in ((np.float32, 1e-6), (np.float16, 2e-3)):
        feats = VideoFeatures(times=np.arange(9), embeddings=rows.astype(dtype), roles="I" * 9)
        curve = similarity(feats, query)
        assert curve.dtype == np.float32
        np.testing.assert_allclose(curve, expected, atol=tolerance)
        tensor = torch.tensor(query, dtype=torch.float32, requires_grad=True)
        np.testing.assert_allclose(similarity(feats, tensor), curve, atol=1e-7)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (np.ones(4), "4 dimensions but the features have 3; encode the query with the model"),
        (np.ones((1, 3)), r"one vector \[3\], got shape \[1, 3\]"),
        (np.zeros(3), "not all zeros"),
        (np.array([1, np.nan, 0]), "finite"),
    ],
)
def test_wrong_queries_raise(query, message):
    with pytest.raises(ValueError, match=message):
        ground(from_curve([0.1, 0.2]), query)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top": 0}, "top"),
        ({"smooth": -1}, "smooth"),
        ({"smooth": np.nan}, "smooth"),
        ({"threshold": np.inf}, "threshold"),
        ({"method": "otsu"}, "watershed, contrast, whole"),
        ({"overlap": 2.0}, "overlap"),
    ],
)
def test_wrong_options_raise(options, message):
    with pytest.raises(ValueError, match=message):
        ground(from_curve([0.1, 0.2]), QUERY, **options)


def test_frame_of_zeros_raises():
    feats = VideoFeatures(times=[0, 1], embeddings=np.array([[1, 0, 0], [0, 0, 0]], "f4"), roles="II")
    with pytest.raises(FeaturesError, match="frame 1"):
        ground(feats, QUERY)


def test_smoothing_is_15_frames_at_3_per_second():
    rng = np.random.default_rng(1)
    curve = rng.uniform(0.1, 0.4, 200)
    smoothed = smoothed_similarity(from_curve(curve), QUERY)
    np.testing.assert_allclose(smoothed[7:-7], uniform_filter1d(curve, 15)[7:-7], atol=1e-6)
    for k in (0, 3, 6, 195, 199):  # at the borders only the frames that exist
        np.testing.assert_allclose(smoothed[k], curve[max(0, k - 7) : k + 8].mean(), atol=1e-6)
    np.testing.assert_array_equal(
        smoothed_similarity(from_curve(curve), QUERY, smooth=0), similarity(from_curve(curve), QUERY)
    )


@pytest.mark.parametrize("smooth", [0.5, 2.0, 5.0, 100.0])
def test_smoothing_follows_irregular_times(smooth):
    rng = np.random.default_rng(2)
    times = np.cumsum(rng.choice([0.04, 0.33, 1.5], 120))
    curve = rng.uniform(-0.2, 0.4, 120)
    expected = [np.mean([c for c, u in zip(curve, times, strict=True) if abs(u - t) <= smooth / 2]) for t in times]
    np.testing.assert_allclose(smoothed_similarity(from_curve(curve, times), QUERY, smooth=smooth), expected, atol=1e-6)


def naive_watershed(curve, starts, ends, *, smooth, threshold, top, overlap):
    """The rule as the module's docstring tells it, run by run."""
    mean = sum(map(float, curve)) / len(curve)
    base = mean + (threshold - 1) * abs(mean)
    runs = []
    for level in range(32):
        cut = base + max(float(max(curve)) - base, 0) * level / 32
        k = 0
        while k < len(curve):
            first = k
            while k < len(curve) and curve[k] >= cut - 1e-7:
                k += 1
            if k > first:
                peak = max(range(first, k), key=lambda i: (curve[i], -i))
                if level == 0 or ends[k - 1] - starts[first] >= smooth / 2:
                    runs.append((first, k, peak, level))
            k += 1
    widest = {}
    for first, past, peak, _ in runs:
        widest[peak] = max(widest.get(peak, 0), past - first)

    def preference(run):
        first, past, peak, level = run
        halvings = 0
        while (past - first) * 2 ** (halvings + 1) <= widest[peak]:
            halvings += 1
        return max(halvings - 1, 0), -curve[peak], peak, level

    chosen = []
    for first, past, peak, _ in sorted(runs, key=preference):
        moment = Moment(starts[first], ends[past - 1], curve[peak])
        if len(chosen) < top and all(temporal_iou(moment, other) <= overlap for other in chosen):
            chosen.append(moment)
    return sorted(chosen, key=lambda moment: -moment.score)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    ("smooth", "threshold", "overlap"), [(5.0, 1.0, 0.5), (0.0, 1.0, 0.0), (2.0, 1.1, 0.7), (1.0, 0.5, 1.0)]
)
def test_watershed_equals_naive(seed, smooth, threshold, overlap):
    rng = np.random.default_rng(seed)
    num_frames = int(rng.integers(2, 150))
    times = np.cumsum(rng.uniform(0.05, 0.6, num_frames))
    curve = np.clip(rng.normal(0.0, 0.04, num_frames).cumsum() + rng.uniform(-0.5, 0.5), -0.99, 0.99)
    curve = np.round(curve, 1) if seed % 2 else curve  # plateaus and ties
    feats = from_curve(curve, times, duration_seconds=times[-1] + 0.2)
    options = {"smooth": smooth, "threshold": threshold, "top": 6, "overlap": overlap}
    smoothed = smoothed_similarity(feats, QUERY, smooth=smooth)
    assert ground(feats, QUERY, **options) == naive_watershed(smoothed, times, feats.frame_ends, **options)


def test_finds_a_planted_moment_to_the_frame():
    feats = from_curve(bumps(90, ((30, 54), 0)), duration_seconds=30.0)
    (best,) = ground(feats, QUERY, top=1, smooth=0)
    assert (best.start, best.end) == (10.0, 18.0)
    assert best.score == pytest.approx(0.3)
    smooth = ground(feats, QUERY, top=1)[0]
    assert temporal_iou(smooth, (10, 18)) > 0.7


def test_first_is_the_base_run_with_the_highest_peak_then_others_then_nested():
    curve = bumps(180, ((20, 60), 0.0), ((100, 130), 0.1))
    curve[110:116] = 0.5  # a peak inside the second bump
    moments = ground(from_curve(curve), QUERY, smooth=0, top=5)
    spans = [(round(m.start * 3), round(m.end * 3)) for m in moments]
    # 0.2 lies below the mean, so both bumps are base runs; (110, 116) shares the peak of the run it lies in.
    assert spans == [(100, 130), (110, 116), (20, 60)]
    assert [m.score for m in moments] == pytest.approx([0.5, 0.5, 0.3])


def test_one_peak_does_not_take_all_places():
    curve = np.full(600, 0.2)
    for k in range(200):  # one long cone whose every level is a narrower run
        curve[100 + k : 500 - k] = 0.25 + 0.25 * k / 200
    curve[540:560] = 0.4
    top = ground(from_curve(curve), QUERY, smooth=1.0, top=3)
    assert temporal_iou(top[-1], (180, 560 / 3)) > 0.8
    narrow = ground(from_curve(curve), QUERY, smooth=1.0, top=5)
    assert [m.score for m in narrow] == sorted((m.score for m in narrow), reverse=True)
    assert len(narrow) == 5


def test_threshold_keeps_its_meaning_below_zero():
    curve = bumps(60, ((20, 30), 0), low=-0.4, high=-0.1)
    for threshold in (0.9, 1.0, 1.2):
        moment = ground(from_curve(curve), QUERY, smooth=0, top=1, threshold=threshold)[0]
        assert (moment.start, moment.end) == pytest.approx((20 / 3, 10.0))
    loose = ground(from_curve(curve), QUERY, smooth=0, top=1, threshold=0.5)[0]
    assert (loose.start, loose.end) == (0.0, 20.0)
    assert ground(from_curve(curve), QUERY, smooth=0, threshold=3.0) == []


@pytest.mark.parametrize("method", METHODS)
def test_small_and_constant_features(method):
    empty = VideoFeatures(times=[], embeddings=np.zeros((0, 3), "f4"), roles="")
    assert ground(empty, QUERY, method=method) == []
    one = ground(from_curve([0.25], duration_seconds=4.0), QUERY, method=method)
    assert [(m.start, m.end) for m in one] == [(0.0, 4.0)]
    for value in (0.1, 0.237, -0.3, 0.0):
        moments = ground(from_curve(np.full(50, value)), QUERY, method=method)
        assert moments
        if method != "contrast":
            assert [(m.start, m.end) for m in moments] == [(0.0, pytest.approx(50 / 3))]
            assert moments[0].score == pytest.approx(value, abs=1e-6)


def test_end_is_the_frame_end_and_never_behind_the_video():
    curve = bumps(31, ((20, 31), 0))
    assert ground(from_curve(curve, duration_seconds=10.1), QUERY, smooth=0)[0].end == 10.1
    assert ground(from_curve(curve), QUERY, smooth=0)[0].end == pytest.approx(31 / 3)


def test_contrast_equals_naive_and_finds_the_moment():
    curve = bumps(100, ((40, 60), 0)) + np.random.default_rng(0).normal(0, 0.01, 100)
    best = ground(from_curve(curve), QUERY, method="contrast")[0]
    first, past = round(best.start * 3), round(best.end * 3)
    assert temporal_iou((first, past), (40, 60)) > 0.6
    outside = np.r_[curve[:first], curve[past:]]
    assert best.score == pytest.approx(curve[first:past].mean() - outside.mean(), abs=1e-6)
    lengths = [2, 3, 4, 7, 10, 15, 23, 34, 51, 77]
    scores = [
        curve[s : s + n].mean() - np.r_[curve[:s], curve[s + n :]].mean()
        for n in lengths
        for s in range(0, 100 - n + 1, max(1, n // 8))
    ]
    assert best.score == pytest.approx(max(scores), abs=1e-6)


def naive_half_height(feats, smooth, top, overlap):
    """The rule as `half_height` tells it, with every run [f, p) tried around the top of every peak."""
    times, ends = feats.times, feats.frame_ends
    cosines = similarity(feats, QUERY)
    cut, height = (smoothed_similarity(feats, QUERY, smooth=seconds) for seconds in (1.0, 2.0))
    mean, free, found = float(np.mean(cut, dtype=np.float64)), set(range(len(times))), []

    def average(frame):
        near = [float(cosines[k]) for k in free if abs(times[k] - times[frame]) <= smooth / 2 + 1e-6]
        return np.float32(sum(near) / len(near))

    def area(low, high, level):
        return sum(float(cut[k]) - level for k in range(low, high))

    for _ in range(top):
        ranking = {k: average(k) for k in free}
        peak = max(free, key=lambda k: (ranking[k], -k), default=None)
        if peak is None or (found and ranking[peak] <= mean):
            break
        start = max((k + 1 for k in range(peak) if k not in free), default=0)
        stop = min((k for k in range(peak, len(times)) if k not in free), default=len(times))
        near = [k for k in range(start, stop) if abs(times[k] - times[peak]) <= smooth / 2 + 1e-6]
        highest = max(near, key=lambda k: (height[k], -k))
        runs = []
        for share in (0.5, 0.25, 0.75):
            level = mean + share * max(float(height[highest]) - mean, 0) - 1e-7
            # On each side: the first of the longest sums, of those before the sum falls below zero.
            sides = []
            for step, bound in ((-1, start - 1), (1, stop)):
                sums, total = [], 0.0
                for k in range(highest, bound, step):
                    total += float(cut[k]) - level
                    if sums and total < 0:
                        break
                    sums.append(total)
                sides.append(sums.index(max(sums)))
            runs.append((highest - sides[0], highest + sides[1] + 1))
            assert area(*runs[-1], level) >= area(highest, highest + 1, level) - 1e-9
        known = [other for other, _ in found]
        found += [(run, ranking[peak]) for run in dict.fromkeys(runs) if run not in known]
        free -= set(range(*runs[0])) | {peak}
    chosen = []
    for (first, past), score in found:
        moment = Moment(times[first], ends[past - 1], score)
        if len(chosen) < top and all(temporal_iou(moment, other) <= overlap for other in chosen):
            chosen.append(moment)
    return sorted(chosen, key=lambda moment: -moment.score)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("smooth", "top", "overlap"), [(5.0, 5, 0.5), (2.0, 10, 0.3), (0.0, 3, 1.0)])
def test_half_height_equals_naive(seed, smooth, top, overlap):
    rng = np.random.default_rng(seed)
    num_frames = int(rng.integers(2, 120))
    times = np.cumsum(rng.uniform(0.05, 0.6, num_frames))
    curve = np.clip(rng.normal(0.0, 0.04, num_frames).cumsum() + rng.uniform(-0.5, 0.5), -0.99, 0.99)
    curve = np.round(curve, 1) if seed % 2 else curve  # plateaus and ties
    feats = from_curve(curve, times, duration_seconds=times[-1] + 0.2)
    found = ground(feats, QUERY, method="half-height", smooth=smooth, top=top, overlap=overlap)
    assert found == naive_half_height(feats, smooth, top, overlap)


def test_half_height_keeps_the_edges_of_an_event_and_forgets_single_frames():
    curve = bumps(180, ((60, 90), 0.0), ((130, 142), -0.04)) + np.random.default_rng(0).normal(0, 0.003, 180)
    curve[75] = 0.15
    first, second = ground(from_curve(curve), QUERY, method="half-height", top=2, overlap=0.1)
    assert temporal_iou(first, (20, 30)) > 0.93 and temporal_iou(second, (130 / 3, 142 / 3)) > 0.8
    assert temporal_iou(ground(from_curve(curve), QUERY, top=1)[0], (20, 30)) < 0.9  # the 5 s average blurs it


def test_many_queries_at_once_are_each_of_them():
    rng = np.random.default_rng(0)
    feats = VideoFeatures(times=np.arange(90) / 3, embeddings=rng.normal(size=(90, 8)).astype("f4"), roles="I" * 90)
    queries = rng.normal(size=(130, 8)) * rng.uniform(0.1, 10, (130, 1))  # more than are taken at once
    curves = similarities(feats, torch.tensor(queries))
    assert curves.shape == (130, 90)
    np.testing.assert_allclose(curves, [similarity(feats, query) for query in queries], atol=1e-6)
    for method in METHODS:
        many = ground_many(feats, queries, method=method, top=3)
        for moments, query in zip(many, queries, strict=True):
            alone = ground(feats, query, method=method, top=3)
            assert [(m.start, m.end) for m in moments] == [(m.start, m.end) for m in alone]
            assert [m.score for m in moments] == pytest.approx([m.score for m in alone], abs=1e-6)
    assert ground_many(feats, np.empty((0, 8))) == []
    empty = VideoFeatures(times=[], embeddings=np.zeros((0, 8), "f4"), roles="")
    assert ground_many(empty, queries[:2]) == [[], []]
    with pytest.raises(ValueError, match=r"queries must be vectors \[Q, 8\], got shape \[8\]"):
        ground_many(feats, queries[0])
    with pytest.raises(ValueError, match="not all zeros"):
        ground_many(feats, np.zeros((2, 8)))


def test_whole_is_one_moment_with_the_mean():
    curve = np.random.default_rng(0).uniform(0, 0.4, 40)
    (moment,) = ground(from_curve(curve), QUERY, method="whole")
    assert (moment.start, moment.end) == (0.0, pytest.approx(40 / 3))
    assert moment.score == pytest.approx(curve.mean(), abs=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_ten_hours_take_a_fraction_of_a_second(method):
    rng = np.random.default_rng(0)
    num_frames = 36_000 * 3
    feats = VideoFeatures(
        times=np.arange(num_frames) / 3,
        embeddings=rng.standard_normal((num_frames, 256), dtype=np.float32),
        roles="I" * num_frames,
    )
    start = time.perf_counter()
    assert ground(feats, rng.normal(size=256), method=method)
    assert time.perf_counter() - start < 1.0  # 0.1 s on one idle core; room for a busy machine
