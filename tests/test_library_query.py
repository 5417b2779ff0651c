"""Texts that say what to leave out, queries of several vectors, and which videos a search may look at."""

from datetime import datetime, timedelta, timezone

import numpy as np
import pytest
import torch

from everyframe.library import Filter, LibraryError, Query, TextQuery, parse_query
from everyframe.library.filters import allowed
from everyframe.library.query import direction
from everyframe.library.records import VideoRecord


@pytest.mark.parametrize(
    ("text", "positive", "negative"),
    [
        ("beach -people", ["beach"], ["people"]),
        ('beach -people -"two dogs"', ["beach"], ["people", "two dogs"]),
        ('-"two  dogs" a wide   beach', ["a wide beach"], ["two dogs"]),
        ("a well-known man - walking", ["a well-known man - walking"], []),
        ("the -ing form, e-mail and 3-4 cats", ["the form, e-mail and 3-4 cats"], ["ing"]),
        ('a sign that says "exit"', ['a sign that says "exit"'], []),
        ('beach -"two dogs', ["beach"], ["two dogs"]),
        ("beach \u2212people \u2013dogs", ["beach"], ["people", "dogs"]),
        ("beach -\u201ctwo dogs\u201d", ["beach"], ["two dogs"]),
        ("--help", ["--help"], []),
        ("-people", [], ["people"]),
        ('beach -""', ["beach"], []),
        ("  ", [], []),
        ("\u6d77\u8fb9 -\u4eba", ["\u6d77\u8fb9"], ["\u4eba"]),
    ],
)
def test_parse_query(text, positive, negative):
    assert parse_query(text) == TextQuery(tuple(positive), tuple(negative))


def test_several_texts_combine_and_long_ones_take_no_time():
    assert parse_query("a beach -people", "", "sunset -sun") == TextQuery(("a beach", "sunset"), ("people", "sun"))
    words = parse_query("word -no " * 10_000)
    assert len(words.negative) == 10_000 and words.positive == (("word " * 10_000).strip(),)


def test_score_is_the_mean_cosine_to_positives_minus_that_to_negatives():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((50, 12)).astype(np.float16)
    positive, negative = rng.standard_normal((2, 12)) * 3, rng.standard_normal((3, 12))
    unit = rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    cosines = [unit @ (np.asarray(each) / np.linalg.norm(each)) for each in (*positive, *negative)]
    for weight in (0.0, 0.5, 2.0):
        found = direction(Query(tuple(positive), tuple(torch.tensor(negative)), weight), 12, "tiny")
        expected = np.mean(cosines[:2], axis=0) - weight * np.mean(cosines[2:], axis=0)
        np.testing.assert_allclose(found.scores(rows), expected, atol=1e-6)
        assert np.linalg.norm(found.unit) == pytest.approx(1)
        assert found.mean_score(unit.mean(axis=0).astype(np.float32)) == pytest.approx(expected.mean(), abs=1e-6)
    alone = direction(Query((positive[0],)), 12, "tiny")
    np.testing.assert_allclose(alone.scores(rows), direction(positive[0], 12, "tiny").scores(rows), atol=1e-6)


def test_queries_that_cannot_be():
    one = np.eye(4)[0]
    with pytest.raises(ValueError, match="something to look for"):
        Query(())
    with pytest.raises(ValueError, match="negative_weight"):
        Query((one,), (one,), -1.0)
    with pytest.raises(ValueError, match="cancel each other"):
        direction(Query((one,), (one,), 1.0), 4, "tiny")
    with pytest.raises(ValueError, match="5 dimensions but the features have 4"):
        direction(Query((one,), (np.ones(5),)), 4, "tiny")
    with pytest.raises(ValueError, match=r"one vector \[4\], got shape \[1, 4\]"):
        direction(Query((one[None],)), 4, "tiny")
    with pytest.raises(TypeError, match="encode it"):
        direction(Query(("a beach",)), 4, "tiny")


DAY = datetime(2024, 5, 1, tzinfo=timezone.utc)


def record(number, path, *, days=0, duration=60.0):
    empty = np.zeros(4, np.float32)
    return VideoRecord(
        id=number, collection="c", path=path, name=path.rpartition("/")[2], fingerprint=None, size_bytes=None,
        duration=duration, start=0.0, end=30.0, last=29.0, codec=None, container=None, width=None, height=None,
        fps=None, num_frames=90, added=DAY, date=DAY + timedelta(days=days), mean=empty, smoothed_mean=empty, own="{}",
        shared={},
    )  # fmt: skip


VIDEOS = [
    record(1, "/archive/2023/Beach.mp4", days=-300),
    record(2, "/archive/2024/city.mkv", duration=600.0),
    record(3, "/archive/2024/old/beach 2.mkv", days=3, duration=None),
    record(4, "/home/b.mp4", days=10, duration=5.0),
]


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({}, [1, 2, 3, 4]),
        ({"paths": ("*.mp4",)}, [1, 4]),
        ({"paths": ("beach*",)}, [1, 3]),
        ({"paths": ("/archive/2024",)}, [2, 3]),
        ({"paths": ("2024/",)}, [2, 3]),
        ({"paths": ("/archive/*/[bc]*.mkv", "b.mp4")}, [2, 3, 4]),
        ({"paths": ("beach",)}, []),
        ({"after": DAY}, [2, 3, 4]),
        ({"after": datetime(2024, 5, 1), "before": datetime(2024, 5, 5)}, [2, 3]),
        ({"before": datetime(2024, 5, 1, 2, tzinfo=timezone(timedelta(hours=2)))}, [1]),
        ({"min_seconds": 30.0, "max_seconds": 60.0}, [1, 3]),
        ({"ids": (4, 2, 99)}, [2, 4]),
        ({"ids": (4, 2), "max_seconds": 10.0, "paths": ("*",)}, [4]),
    ],
    ids=str,
)
def test_filters(conditions, expected):
    assert [video.id for video in allowed(VIDEOS, Filter(**conditions))] == expected


def test_no_filter_is_all_and_impossible_ones_raise():
    assert allowed(VIDEOS, None) == VIDEOS
    for conditions, message in (
        ({"min_seconds": 9.0, "max_seconds": 1.0}, "no video is longer"),
        ({"after": DAY, "before": DAY}, "swap them"),
        ({"min_seconds": float("nan")}, "min_seconds"),
        ({"paths": "*.mp4"}, "tuple of patterns"),
    ):
        with pytest.raises(LibraryError, match=message):
            Filter(**conditions)
