"""The synthetic world: what it says of a video against the pixels it draws."""

import copy
import itertools
import json
import math

import numpy as np
import pytest

from everyframe.synthetic import (
    COLOURS,
    PATTERNS,
    SHAPES,
    SIZES,
    SPLITS,
    STYLES,
    Entity,
    SyntheticVideo,
    moving_share,
    synthesize,
)

SMALL = {"size": (128, 96)}
ENTITIES = [Entity(*words) for words in itertools.product(COLOURS, PATTERNS, SHAPES, ["medium"])]


def without(video, index):
    """The same video without one of its objects."""
    other = copy.copy(video)
    other._actors = [actor for number, actor in enumerate(video._actors) if number != index]
    return other


# --- seeds and frames ------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", [None, *SPLITS])
def test_a_seed_decides_everything(style):
    one, same, other = (SyntheticVideo(seed, seconds=30, style=style, **SMALL) for seed in (5, 5, 6))
    assert one.events == same.events
    assert (one.style, one.cuts, one.name) == (same.style, same.cuts, "synthetic-00005")
    for t in (0.0, 7.3, 29.9):
        assert np.array_equal(one.frame(t), same.frame(t))
        assert not np.array_equal(one.frame(t), other.frame(t))
    assert one.events != other.events


@pytest.mark.parametrize(("size", "seconds", "fps", "count"), [((64, 48), 1.5, 4, 6), ((47, 61), 2, 2.5, 5)])
def test_frames_have_the_asked_size_and_number(size, seconds, fps, count):
    video = SyntheticVideo(1, seconds=seconds, fps=fps, size=size)
    frames = list(video.frames())
    assert len(frames) == count
    for index, frame in enumerate(frames):
        assert frame.dtype == np.uint8
        assert frame.shape == (size[1], size[0], 3)
        assert np.array_equal(frame, video.frame(index / fps))
        assert frame.std() > 5


def test_cuts_change_the_picture():
    video = next(v for v in (SyntheticVideo(s, seconds=60, style="still", **SMALL) for s in range(9)) if v.cuts)
    assert all(b - a >= 6 for a, b in itertools.pairwise([0, *video.cuts, 60]))
    for cut in video.cuts:
        before, after, later = (video.frame(t).astype(float) for t in (cut - 0.01, cut, cut + 0.01))
        assert video.background(cut - 0.01) != video.background(cut)
        assert np.abs(after - before).mean() > 4 * np.abs(later - after).mean()


# --- events ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seed", "style"), list(enumerate(SPLITS)))
def test_objects_are_in_the_picture_exactly_during_their_events(seed, style):
    video = SyntheticVideo(seed, seconds=40, style=style)
    assert len(video.events) >= 4
    for index, event in enumerate(video.events):
        assert event.end - event.start >= 4
        gone = without(video, index)
        entity = video._actors[index].entity
        inside = [event.start, event.start + 0.5, (event.start + event.end) / 2, event.end - 0.001]
        outside = [t for t in (event.start - 0.001, event.end, event.end + 0.5) if 0 <= t < 40]
        for t in inside:
            assert entity in video.visible(t)
            drawn = (video.frame(t) != gone.frame(t)).any(axis=2)
            assert drawn.sum() > 60, f"{event} at {t}: {drawn.sum()} pixels"
        for t in outside:
            assert entity not in video.visible(t)
            assert np.array_equal(video.frame(t), gone.frame(t))


def test_an_object_has_its_colour_size_and_place():
    """The pixels that an object changes: their number is its area, their mean its colour."""
    area = {"square": (2 * 0.82) ** 2, "circle": math.pi * 0.95**2}  # at radius 1
    measured = 0
    for seed in range(20):
        video = SyntheticVideo(seed, seconds=40, style="still")
        for actor in video._actors:
            t = (actor.start + actor.end) / 2
            alone = copy.copy(video)
            alone._actors = [actor]
            alone._shots = [shot for shot in video._shots if shot.start <= t < shot.end]
            if actor.entity.pattern != "plain" or actor.entity.shape not in area or alone._shots[0].pole:
                continue
            picture = alone.frame(t).astype(float)
            drawn = (picture != without(alone, 0).frame(t)).any(axis=2)
            assert drawn.sum() == pytest.approx(area[actor.entity.shape] * (actor.radius * 192) ** 2, rel=0.1)
            rows, columns = np.nonzero(drawn)
            x, y = actor.position(t)
            assert columns.mean() + 0.5 == pytest.approx(128 + 192 * x, abs=1)
            assert rows.mean() + 0.5 == pytest.approx(96 + 192 * y, abs=1)
            # The light changes by at most 5 % in this style; noise and soft edges add a little.
            assert picture[drawn].mean(axis=0) == pytest.approx(COLOURS[actor.entity.colour], rel=0.08, abs=12)
            measured += 1
    assert measured >= 5


@pytest.mark.parametrize("combinations", ["any", "seen", "unseen"])
@pytest.mark.parametrize("seconds", [60, 240, 900])
def test_captions_name_one_object_each(seconds, combinations):
    """Also in a video long enough to run out of colours and shapes."""
    for seed in range(3 if seconds == 60 else 1):
        video = SyntheticVideo(seed, seconds=seconds, combinations=combinations, size=(32, 24))
        pairs = [
            tuple(word for word in event.caption.split() if word in COLOURS or word in SHAPES) for event in video.events
        ]
        assert all(len(pair) == 2 for pair in pairs)
        assert len(set(pairs)) == len(pairs) == len(video._actors)
        for event, actor in zip(video.events, video._actors, strict=True):
            words = {actor.entity.colour, actor.entity.shape, actor.entity.pattern, actor.entity.size, "a", "an"}
            assert set(event.caption.split()) <= words
            assert (event.start, event.end) == (actor.start, actor.end)
        assert [event.start for event in video.events] == sorted(event.start for event in video.events)
        assert len(video.events) > (6 if seconds == 60 else 20)


def test_at_most_three_objects_at_a_time():
    video = SyntheticVideo(4, seconds=120, size=(32, 24))
    counts = [len(video.visible(t)) for t in np.linspace(0, 119.9, 400)]
    assert max(counts) == 3
    assert min(counts) <= 1
    for t in np.linspace(0, 119.9, 40):
        names = [entity.caption() for entity in video.visible(t)]
        background = video.background(t)
        assert video.caption(t) == (" and ".join(names) + f" over {background}" if names else background)


@pytest.mark.parametrize(
    ("words", "options", "expected"),
    [
        (("red", "plain", "circle", "medium"), {}, "a red circle"),
        (("orange", "striped", "star", "medium"), {}, "an orange striped star"),
        (("orange", "striped", "star", "small"), {}, "a small orange striped star"),
        (("blue", "dotted", "moon", "large"), {"pattern": False}, "a large blue moon"),
        (("blue", "dotted", "moon", "large"), {"size": False}, "a blue dotted moon"),
    ],
)
def test_captions_read_well(words, options, expected):
    assert Entity(*words).caption(**options) == expected


# --- held-out combinations -------------------------------------------------------------------------------


def test_about_a_sixth_of_the_combinations_is_held_out():
    held_out = [entity for entity in ENTITIES if entity.is_held_out]
    assert len(ENTITIES) == 256
    assert len(held_out) == 44
    assert len(held_out) / 256 == pytest.approx(1 / 6, abs=0.01)
    assert all(Entity(e.colour, e.pattern, e.shape, size).is_held_out for e in held_out for size in SIZES)


@pytest.mark.parametrize("pair", [("colour", "shape"), ("colour", "pattern"), ("pattern", "shape")])
def test_training_shows_every_pair(pair):
    def pairs(entities):
        return {tuple(getattr(entity, name) for name in pair) for entity in entities}

    assert pairs(entity for entity in ENTITIES if not entity.is_held_out) == pairs(ENTITIES)


@pytest.mark.parametrize(("combinations", "expected"), [("seen", {False}), ("unseen", {True}), ("any", {True, False})])
def test_videos_respect_the_combinations(combinations, expected):
    videos = [SyntheticVideo(s, seconds=60, combinations=combinations, size=(32, 24)) for s in range(6)]
    assert {actor.entity.is_held_out for video in videos for actor in video._actors} == expected


# --- motion ----------------------------------------------------------------------------------------------


def test_moving_share_equals_loops():
    frames = np.random.default_rng(0).integers(60, 100, (3, 32, 44, 3), dtype=np.uint8)
    frames[1, 8:16, 6:22] += 40  # the crop begins at column 6
    frames[2] = frames[1]
    frames[2, 31, 37] = 255  # one pixel of 64: +2 on average
    luma = frames.astype(float) @ [0.299, 0.587, 0.114]
    moved = []
    for time in (1, 2):
        for row in range(4):
            for column in range(4):
                change = 0.0
                for y in range(8):
                    for x in range(8):
                        place = row * 8 + y, 6 + column * 8 + x
                        change += (luma[(time, *place)] - luma[(time - 1, *place)]) / 64
                moved.append(abs(change) > 8)
    assert sum(moved[:16]) == 2
    assert moving_share(frames, size=32, patch=8) == pytest.approx(sum(moved) / 32)


def test_moving_share_of_known_pictures():
    still = np.full((4, 48, 64, 3), 90, np.uint8)
    assert moving_share(still) == 0.0
    blinking = still.copy()
    blinking[1::2] += 9
    assert moving_share(blinking) == 1.0
    assert moving_share(blinking, levels=10) == 0.0
    half = np.full((2, 224, 224, 3), 90, np.uint8)
    half[1, :, :112] = 120
    assert moving_share(half) == 0.5


def test_styles_span_still_to_fast():
    share = {}
    for style in STYLES:
        videos = [SyntheticVideo(seed, seconds=30, style=style, **SMALL) for seed in range(4)]
        share[style] = float(np.mean([video.moving_share(samples=8) for video in videos]))
    assert share["still"] < share["handheld"] < share["pan"] < share["action"]
    assert share["still"] < 0.05
    assert 0.6 < share["action"] <= 1


# --- files -----------------------------------------------------------------------------------------------


def test_synthesize_writes_videos_and_annotations(tmp_path):
    from everyframe.video import probe, sample_frames

    videos = list(synthesize(tmp_path, videos=4, seconds=8, seed=2, fps=6, size=(64, 48)))
    assert [video.style for video in videos] == list(STYLES)
    names = [f"synthetic-{number:05d}" for number in (2000, 2001, 2002, 2003)]
    files = {f"{name}.mp4" for name in names} | {"annotations.jsonl", "videos.jsonl"}
    assert {file.name for file in tmp_path.iterdir()} == files
    for video in videos:
        file = tmp_path / f"{video.name}.mp4"
        info = probe(file)
        assert (info.width, info.height) == (64, 48)
        assert info.duration_seconds == pytest.approx(8, abs=0.01)
        samples = list(sample_frames(file, fps=3))
        assert len(samples) == 24
        for sample in samples[::6]:
            shown, drawn = sample.pixels.astype(float), video.frame(sample.time).astype(float)
            errors = [np.abs(shown - other).mean() for other in (drawn, drawn[::-1], drawn[:, ::-1], drawn[..., ::-1])]
            assert errors[0] < 8  # a lossy codec, chroma at half size
            assert errors[0] < 0.7 * min(errors[1:])  # upright, not mirrored, red is red
    rows = [json.loads(line) for line in (tmp_path / "annotations.jsonl").read_text().splitlines()]
    assert [row["qid"] for row in rows] == list(range(len(rows)))
    expected = [(video.name, event) for video in videos for event in video.events]
    assert len(rows) == len(expected) > 4
    for row, (name, event) in zip(rows, expected, strict=True):
        assert list(row) == ["qid", "query", "duration", "vid", "relevant_windows"]
        assert (row["vid"], row["query"], row["duration"]) == (name, event.caption, 8.0)
        assert row["relevant_windows"] == [[pytest.approx(event.start, abs=6e-4), pytest.approx(event.end, abs=6e-4)]]
    facts = [json.loads(line) for line in (tmp_path / "videos.jsonl").read_text().splitlines()]
    assert [fact["vid"] for fact in facts] == names
    assert [fact["style"] for fact in facts] == list(STYLES)
    assert facts[0]["moving_share"] < facts[3]["moving_share"]


# --- errors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seconds": 0}, "seconds and fps must be finite and > 0, got 0"),
        ({"seconds": -1}, "seconds and fps"),
        ({"seconds": float("nan")}, "seconds and fps"),
        ({"seconds": float("inf")}, "seconds and fps"),
        ({"fps": 0}, "seconds and fps"),
        ({"size": (0, 48)}, r"size must be \(width, height\) in pixels, got \(0, 48\)"),
        ({"style": "shaky"}, "style must be one of still, handheld, pan, action, lecture, .*, got 'shaky'"),
        ({"combinations": "both"}, "combinations must be seen, unseen or any, got 'both'"),
    ],
)
def test_bad_arguments_raise(options, message):
    with pytest.raises(ValueError, match=message):
        SyntheticVideo(1, **options)


def test_no_videos_raise(tmp_path):
    with pytest.raises(ValueError, match="videos must be at least 1, got 0"):
        list(synthesize(tmp_path / "out", videos=0))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("shape", [(1, 8, 8, 3), (8, 8, 3), (0, 8, 8, 3)])
def test_moving_share_of_too_little_raises(shape):
    with pytest.raises(ValueError, match="needs at least 2 frames"):
        moving_share(np.zeros(shape, np.uint8))
