"""Search: planted moments are found in order, provenance is checked, unreadable files are reported."""

import gc
import weakref

import numpy as np
import pytest
import torch

from everyframe.features import FeaturesError, VideoFeatures
from everyframe.spans import temporal_iou
from everyframe.tasks.retrieval import Hit, load_folder, search

QUERY = np.array([2.0, 0.0, 0.0])


def make(path="a.mp4", *spans, num_frames=180, model="tiny"):
    """60 s at 3 frames/s with cosine 0.2, and the given cosine in each (start, end, cosine) in seconds."""
    curve = np.full(num_frames, 0.2)
    for start, end, cosine in spans:
        curve[round(start * 3) : round(end * 3)] = cosine
    rows = np.stack([curve, np.sqrt(1 - curve**2), np.zeros_like(curve)], axis=1).astype(np.float32)
    return VideoFeatures(
        times=np.arange(num_frames) / 3,
        embeddings=rows,
        roles="I" * num_frames,
        video={"path": path, "duration_seconds": num_frames / 3},
        model={"id": model},
    )


VIDEOS = [
    make("a.mp4", (5, 15, 0.30), (40, 50, 0.40)),
    make("b.mp4", (20, 30, 0.35)),
    make("c.mp4"),
    make("d.mp4", (0, 8, 0.25)),
]


def test_best_moments_over_all_videos():
    hits = search(VIDEOS, QUERY, top=4)
    assert [hit.video for hit in hits] == ["a.mp4", "b.mp4", "a.mp4", "d.mp4"]
    for hit, truth in zip(hits, [(40, 50), (20, 30), (5, 15), (0, 8)], strict=True):
        assert temporal_iou((hit.start, hit.end), truth) > 0.75
    assert [hit.score for hit in hits] == pytest.approx([0.40, 0.35, 0.30, 0.25], abs=1e-5)
    assert search(VIDEOS, torch.tensor(QUERY), top=2) == hits[:2]
    assert isinstance(hits[0], Hit)


def test_per_video_and_ties_keep_the_order_of_videos():
    assert [hit.video for hit in search(VIDEOS, QUERY, per_video=1)] == ["a.mp4", "b.mp4", "d.mp4", "c.mp4"]
    same = [make(f"{k}.mp4", (10, 20, 0.3)) for k in (3, 1, 2)]
    assert [hit.video for hit in search(same, QUERY, top=3)] == ["3.mp4", "1.mp4", "2.mp4"]
    assert [hit.video for hit in search(same, QUERY, top=2)] == ["3.mp4", "1.mp4"]


def test_hits_of_one_video_do_not_overlap_and_last_a_while():
    rng = np.random.default_rng(0)
    spans = [(s, s + 0.34, rng.uniform(0.3, 0.6)) for s in rng.uniform(0, 59.5, 40)]
    hits = search([make("a.mp4", *spans)], QUERY, top=50, per_video=50, smooth=0)
    assert len(hits) > 5
    for index, hit in enumerate(hits):
        assert hit.end - hit.start >= 2 - 1e-9
        assert 0 <= hit.start < hit.end <= 60
        for other in hits[:index]:
            assert min(hit.end, other.end) <= max(hit.start, other.start)


@pytest.mark.parametrize(
    ("span", "expected"), [((30, 30.4), (29.1667, 31.1667)), ((0, 0.4), (0, 2)), ((59.7, 60), (58, 60))]
)
def test_short_moments_grow_within_the_video(span, expected):
    hit = search([make("a.mp4", (*span, 0.9))], QUERY, smooth=0)[0]
    assert (hit.start, hit.end) == pytest.approx(expected, abs=1e-3)


def test_video_shorter_than_the_shortest_moment_and_without_frames():
    (hit,) = search([make("a.mp4", num_frames=3), make("b.mp4", num_frames=0)], QUERY)
    assert (hit.start, hit.end) == (0.0, 1.0)
    assert search([], QUERY) == []


def test_mixed_models_raise():
    with pytest.raises(FeaturesError, match=r"model id is 'tiny' for a\.mp4 but 'other' for x\.mp4"):
        search([*VIDEOS, make("x.mp4", model="other")], QUERY)


def test_unnamed_video_and_wrong_arguments_raise():
    with pytest.raises(FeaturesError, match="which video"):
        search([make(None)], QUERY)
    with pytest.raises(ValueError, match="query has 2 dimensions"):
        search(VIDEOS, np.ones(2))
    for options in ({"top": 0}, {"per_video": 0}, {"shortest": -1.0}, {"smooth": -1.0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            search(VIDEOS, QUERY, **options)


@pytest.fixture
def young_heap():
    """The cycle collector looks at what is made from now on only: with what earlier tests left it takes a second."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def test_search_streams(young_heap):
    alive: list[weakref.ref] = []

    def videos():
        for k in range(5):
            gc.collect()
            assert sum(ref() is not None for ref in alive) <= 1  # at most the one the caller still holds
            feats = make(f"{k}.mp4", (10, 20, 0.3))
            alive.append(weakref.ref(feats))
            yield feats
            del feats

    assert len(search(videos(), QUERY, top=5, per_video=1)) == 5


def test_load_folder_reads_all_formats_below_it_in_order(tmp_path):
    (tmp_path / "sub").mkdir()
    for name, feats in zip(("a.npz", "b.npy", "c.h5", "sub/d.parquet"), VIDEOS, strict=True):
        feats.save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not features")
    loaded = list(load_folder(tmp_path))
    assert [feats.video["path"] for feats in loaded] == ["a.mp4", "b.mp4", "c.mp4", "d.mp4"]
    assert search(load_folder(tmp_path), QUERY) == search(VIDEOS, QUERY)


def test_load_folder_reports_what_it_cannot_read(tmp_path):
    for name in ("a.npz", "b.npz", "c.npz"):
        VIDEOS[0].save(tmp_path / name)
    (tmp_path / "b.npz").write_bytes(b"PK nonsense")
    failures = []
    assert len(list(load_folder(tmp_path, failures=failures))) == 2
    ((path, error),) = failures
    assert path == tmp_path / "b.npz"
    assert "b.npz is damaged" in str(error)
    with pytest.raises(FeaturesError, match=r"b\.npz is damaged"):
        list(load_folder(tmp_path))


def test_recipes_are_no_features(tmp_path):
    (tmp_path / "b.recipe.npz").write_bytes(b"anything")
    with pytest.raises(FeaturesError, match="holds recipes alone; everyframe restore makes features"):
        load_folder(tmp_path)
    VIDEOS[0].save(tmp_path / "a.npz")
    assert [feats.video["path"] for feats in load_folder(tmp_path)] == ["a.mp4"]


def test_load_folder_without_features_raises_at_once(tmp_path):
    with pytest.raises(FeaturesError, match="holds no features"):
        load_folder(tmp_path)
    with pytest.raises(FeaturesError, match="not a folder"):
        load_folder(tmp_path / "missing")
