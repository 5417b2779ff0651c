"""Spans: IoU against hand-computed numbers and a loop over milliseconds, NMS against the naive algorithm."""

import numpy as np
import pytest

from everyframe.spans import Moment, iou_matrix, nms, recall_at, suppress, temporal_iou

IOUS = [
    ((0, 10), (0, 10), 1.0),
    ((0, 10), (5, 15), 5 / 15),
    ((0, 10), (2, 4), 0.2),
    ((0, 10), (10, 20), 0.0),  # half-open: touching is not overlapping
    ((0, 1), (5, 6), 0.0),
    ((3, 3), (3, 3), 0.0),  # 0/0
    ((3, 3), (0, 10), 0.0),
    ((-2, 2), (0, 4), 2 / 6),
]


@pytest.mark.parametrize(("a", "b", "expected"), IOUS)
def test_temporal_iou_of_pairs(a, b, expected):
    assert temporal_iou(a, b) == pytest.approx(expected)
    assert temporal_iou(Moment(*b, 0), Moment(*a, 1)) == pytest.approx(expected)


def test_temporal_iou_of_arrays_and_matrix_agree_with_counted_milliseconds():
    rng = np.random.default_rng(0)
    a = np.sort(rng.integers(0, 300, (12, 2)), axis=1)
    b = np.sort(rng.integers(0, 300, (12, 2)), axis=1)
    expected = np.zeros((12, 12))
    for i, (s, e) in enumerate(a):
        for j, (s2, e2) in enumerate(b):
            first, second = set(range(s, e)), set(range(s2, e2))
            expected[i, j] = len(first & second) / max(len(first | second), 1)
    np.testing.assert_allclose(iou_matrix(a, b), expected, atol=1e-12)
    np.testing.assert_allclose(temporal_iou(a, b), np.diag(expected), atol=1e-12)
    np.testing.assert_allclose(temporal_iou(a, b[0]), expected[:, 0], atol=1e-12)
    assert iou_matrix([], b).shape == (0, 12)


@pytest.mark.parametrize(
    ("windows", "message"),
    [([(3, 1)], "before it starts"), ([(0, np.nan)], "finite"), ([1, 2, 3], "last axis"), (3.0, "last axis")],
)
def test_windows_that_are_none_raise(windows, message):
    with pytest.raises(ValueError, match=message):
        temporal_iou(windows, (0, 1))


def test_iou_matrix_of_single_window_raises():
    with pytest.raises(ValueError, match="two lists"):
        iou_matrix((0, 1), [(0, 1)])


def test_moment_is_plain_and_frozen():
    moment = Moment(np.float64(1), np.float32(2.5), np.float64(0.25))
    assert repr(moment) == "Moment(start=1.0, end=2.5, score=0.25)"
    assert moment.duration == 1.5
    with pytest.raises(AttributeError):
        moment.start = 0.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((2, 1, 0), "before it starts"),
        ((np.nan, 1, 0), "start"),
        ((0, np.inf, 0), "end"),
        ((0, 1, np.nan), "score"),
    ],
)
def test_moment_raises(values, message):
    with pytest.raises(ValueError, match=message):
        Moment(*values)


@pytest.mark.parametrize("iou", [0.0, 0.3, 0.7, 1.0])
def test_nms_equals_naive(iou):
    rng = np.random.default_rng(1)
    moments = [Moment(s, s + d, round(v, 1)) for s, d, v in rng.uniform(0, 20, (80, 3))]
    kept: list[Moment] = []
    for moment in sorted(moments, key=lambda m: (-m.score, m.start, -m.end)):
        if all(temporal_iou(moment, other) <= iou for other in kept):
            kept.append(moment)
    assert nms(moments, iou) == kept
    assert nms(moments, iou, top=3) == kept[:3]


def test_nms_breaks_ties_toward_earlier_then_longer():
    moments = [Moment(5, 6, 1), Moment(0, 1, 1), Moment(0, 3, 1), Moment(9, 10, 2)]
    assert nms(moments, 1.0) == [Moment(9, 10, 2), Moment(0, 3, 1), Moment(0, 1, 1), Moment(5, 6, 1)]
    assert nms([], 0.5) == []


@pytest.mark.parametrize(("iou", "top", "message"), [(1.5, None, "iou"), (-0.1, None, "iou"), (0.5, 0, "top")])
def test_suppress_raises(iou, top, message):
    with pytest.raises(ValueError, match=message):
        suppress(np.array([[0.0, 1.0]]), iou=iou, top=top)


def test_recall_by_hand():
    predictions = [
        [Moment(0, 10, 0.9), Moment(20, 30, 0.8)],  # second answer is right
        [Moment(0, 4, 0.9)],  # IoU 0.4 with (0, 10), 1.0 with the other window
        [],  # no answer: missed
    ]
    truth = [[(20, 30)], [(0, 10), (0, 4)], [(0, 1)]]
    assert recall_at(predictions, truth, k=1, iou=0.5) == pytest.approx(1 / 3)
    assert recall_at(predictions, truth, k=2, iou=0.5) == pytest.approx(2 / 3)
    assert recall_at([[Moment(0, 5, 1)]], [[(0, 10)]], k=1, iou=0.5) == 1.0  # >=, not >


@pytest.mark.parametrize(
    ("predictions", "truth", "k", "iou", "message"),
    [
        ([[]], [], 1, 0.5, "1 queries but truth for 0"),
        ([], [], 1, 0.5, "undefined"),
        ([[]], [[(0, 1)]], 0, 0.5, "k must"),
        ([[]], [[(0, 1)]], 1, 0.0, "iou must"),
        ([[]], [[]], 1, 0.5, "query 0"),
    ],
)
def test_recall_raises(predictions, truth, k, iou, message):
    with pytest.raises(ValueError, match=message):
        recall_at(predictions, truth, k=k, iou=iou)
