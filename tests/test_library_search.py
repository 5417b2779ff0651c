"""Search in a library finds what search over its features finds: in memory, read in batches, and looked up."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import datetime, timezone

import numpy as np
import pytest

from everyframe.features import VideoFeatures, is_of_clips
from everyframe.library import Filter, Library, LibraryError
from everyframe.library import index as indexing
from everyframe.library import lookup as looking
from everyframe.library import search as searching
from everyframe.tasks import retrieval

pytest.importorskip("lancedb")

DIM = 16
WAYS = ("memory", "batches", "lookup")


def scenes(path, frames, rng, *, kind="regular", dim=DIM, **settings):
    """Features of a made-up video of scenes, with its own kind of times."""
    times = np.arange(frames) / 3
    if kind == "variable":
        times = rng.uniform(0, 3) + np.cumsum(rng.uniform(0.1, 0.7, frames))
    elif kind == "25 fps":
        times = np.round(times / 0.04) * 0.04
    elif kind == "gap":
        times = times + np.where(np.arange(frames) > frames // 2, 30.0, 0.0)
    lengths = 1 + rng.lognormal(3, 0.7, frames).astype(int)
    scene = np.repeat(np.arange(frames), lengths)[:frames]
    rows = rng.standard_normal((frames, dim))[scene] + 0.3 * rng.standard_normal((frames, dim))
    rows[:, 0] += (-5 if kind == "negative" else 3) * rng.uniform(0.8, 1.2)
    if kind == "still":
        rows = np.repeat(rows[:1], frames, axis=0)
    return VideoFeatures(
        times=times,
        embeddings=rows.astype(np.float16),
        roles="I" * frames,
        video={"path": path, "duration_seconds": float(times[-1]) + 0.3, "fingerprint": path},
        model={"id": "tiny"},
        settings={"fps": 3.0, **settings},
    )


KINDS = ("regular", "variable", "25 fps", "gap", "still", "negative")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    rng = np.random.default_rng(0)
    lengths = [1, 2, 7, 40, 300, 900]
    videos = [
        scenes(f"/v/{number}.mp4", lengths[number % 6 if number < 6 else (number * 5) % 6], rng, kind=KINDS[number % 6])
        for number in range(24)
    ]
    with Library(tmp_path_factory.mktemp("library") / "lib") as library:
        assert len(list(library.add_all(videos))) == 24
        yield library


@pytest.fixture(scope="module")
def stored(library):
    return [library.features(video.id) for video in library.videos()]


@pytest.fixture
def way(request, monkeypatch):
    """Take one way of searching, whatever the size."""
    take(monkeypatch, request.param)
    return request.param


def take(monkeypatch, way):
    if way != "memory":
        monkeypatch.setattr(searching, "_MEMORY_BYTES", 0)
    if way == "lookup":
        monkeypatch.setattr(searching, "_FEW_FRAMES", 0)
        monkeypatch.setattr(searching, "vector_index", lambda table: "there is one")


def queries(count, dim=DIM, seed=1):
    rng = np.random.default_rng(seed)
    found = rng.standard_normal((count, dim))
    found[::2, 0] += 4  # what all frames share
    return found


def check_same(hits, expected):
    assert len(hits) == len(expected)
    for hit, truth in zip(hits, expected, strict=True):
        assert hit.video == truth.video
        assert (hit.start, hit.end) == pytest.approx((truth.start, truth.end), abs=1e-6)
        assert hit.score == pytest.approx(truth.score, abs=1e-4)


OPTIONS = [
    {},
    {"top": 1},
    {"top": 40, "per_video": 10},
    {"per_video": 1},
    {"smooth": 0.0, "shortest": 0.0},
    {"smooth": 5.0},
    {"threshold": 1.2},
    {"threshold": 0.9, "shortest": 8.0},
    {"level": "video"},
]


@pytest.mark.parametrize("way", WAYS, indirect=True)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_hits_are_those_of_search_over_the_features(library, stored, way, options):
    for query in queries(6):
        expected = retrieval.search(stored, query, **options)
        check_same(library.search(query, **options), expected)
        check_same(library.search(query, **options, exact=True), expected)


def test_few_near_frames_lead_to_the_same_hits(library, stored, monkeypatch):
    take(monkeypatch, "lookup")
    monkeypatch.setattr(looking, "_FEWEST", 8)
    monkeypatch.setattr(looking, "_EACH", 4)
    monkeypatch.setattr(looking, "_ROUNDS", 12)
    monkeypatch.setattr(looking, "_FIRST_SECONDS", 1.0)
    monkeypatch.setattr(looking, "_READS_AT_ONCE", 2)
    for query in queries(6, seed=2):
        check_same(library.search(query), retrieval.search(stored, query))


def test_peaks_are_where_the_smoothed_curve_is_highest(library, monkeypatch):
    from everyframe.tasks.grounding import smoothed_similarity

    query = queries(1)[0]
    for way in WAYS:
        take(monkeypatch, way)
        for hit in library.search(query):
            feats = library.features(hit.id)
            curve = smoothed_similarity(feats, query, smooth=2.0)
            assert hit.start - 1 <= hit.peak < hit.end + 1
            assert curve[np.flatnonzero(feats.times == hit.peak)[0]] == pytest.approx(hit.score, abs=1e-5)
        for hit in library.search(query, level="video", top=30):
            times, scores = library.curve(hit.id, query)
            assert scores[np.flatnonzero(times == hit.peak)[0]] == pytest.approx(scores.max(), abs=1e-4)


@pytest.mark.parametrize("way", WAYS, indirect=True)
def test_clips(tmp_path, way):
    rng = np.random.default_rng(3)
    clips = [scenes(f"/c/{number}.mp4", 5 + number, rng, clip_seconds=10.0) for number in range(12)]
    with Library(tmp_path / "lib") as library:
        list(library.add_all(clips))
        stored = [library.features(video.id) for video in library.videos()]
        assert all(is_of_clips(feats) for feats in stored)
        for query in queries(4):
            for options in ({"level": "clip"}, {}, {"per_video": 1, "top": 20}, {"level": "video"}):
                check_same(library.search(query, **options), retrieval.search(stored, query, **options))


@pytest.mark.parametrize("way", WAYS, indirect=True)
def test_ties_keep_the_order_of_the_videos(tmp_path, way):
    one = scenes("x", 300, np.random.default_rng(4))
    with Library(tmp_path / "lib") as library:
        for name in (3, 1, 2):
            path = f"/v/{name}.mp4"
            library.add(replace(one, video={**one.video, "path": path, "fingerprint": path}))
        hits = library.search(queries(1)[0], top=3, per_video=1)
    assert [hit.video for hit in hits] == ["/v/3.mp4", "/v/1.mp4", "/v/2.mp4"]
    assert len({hit.score for hit in hits}) == 1


@pytest.mark.parametrize("way", WAYS, indirect=True)
def test_filters_limit_the_videos(library, stored, way, monkeypatch):
    query = queries(1)[0]
    ids = {video.path: video.id for video in library.videos()}
    chosen = [f"/v/{number}.mp4" for number in (4, 5, 11, 17)]
    few = [feats for feats in stored if feats.video["path"] in chosen]
    by_ids = Filter(ids=tuple(ids[path] for path in chosen))
    check_same(library.search(query, where=by_ids), retrieval.search(few, query))
    check_same(library.search(query, where=Filter(paths=("/v/1?.mp4",))), retrieval.search(stored[10:20], query))
    check_same(
        library.search(query, where=Filter(min_seconds=90.0)),
        retrieval.search([feats for feats in stored if feats.video["duration_seconds"] >= 90], query),
    )
    assert library.search(query, where=Filter(before=datetime(1990, 1, 1, tzinfo=timezone.utc))) == []
    monkeypatch.setattr(looking, "MOST_LISTED", 1)  # too many to be listed: frames of the others are passed over
    most = Filter(ids=tuple(video.id for video in library.videos()[:20]))
    check_same(library.search(query, where=most), retrieval.search(stored[:20], query))


def test_videos_that_may_not_be_found_and_score_higher_hide_no_other(tmp_path, monkeypatch):
    """As with 10,000 videos on both sides of a filter: neither side can be listed at once."""
    rng = np.random.default_rng(3)
    videos = [scenes(f"/{side}/{number}.mp4", 60, rng) for number in range(6) for side in ("far", "near")]
    query = np.zeros(DIM)
    query[1] = 1
    for feats in videos[1::2]:
        feats.embeddings[:, 1] += 9
    for name, value in (("MOST_LISTED", 2), ("_FEWEST", 8), ("_EACH", 1), ("_ROUNDS", 2)):
        monkeypatch.setattr(looking, name, value)
    take(monkeypatch, "lookup")
    with Library(tmp_path / "lib") as library:
        assert len(list(library.add_all(videos))) == 12
        hits = library.search(query, top=3, per_video=1, where=Filter(paths=("/far/*",)))
        stored = [library.features(feats.video["path"]) for feats in videos[::2]]
        check_same(hits, retrieval.search(stored, query, top=3, per_video=1))


@pytest.mark.parametrize("way", WAYS, indirect=True)
def test_rows_of_other_videos_and_videos_in_two_files(tmp_path, way):
    """Rows that belong to no video that is ready, and a video whose rows compaction has cut in two."""
    rng = np.random.default_rng(5)
    with Library(tmp_path / "lib") as library:
        list(library.add_all(scenes(f"/v/{number}.mp4", 200, rng) for number in range(6)))
        stored = [library.features(video.id) for video in library.videos()]
        query = stored[2].embeddings[100].astype(np.float32)
        expected = retrieval.search(stored, query)
        table = library._store.table("frames_" + library.collection().id)
        rows = table.search().where(f"video = {expected_id(library, stored[2])}").to_arrow()
        foreign = rows.set_column(0, "video", [np.full(len(rows), 77)])
        table.add(foreign.cast(table.schema))
        table.delete(f"video = {expected_id(library, stored[2])} AND time >= 35")
        late = np.flatnonzero(rows["time"].to_numpy() >= 35)
        table.add(rows.take(late))
        check_same(library.search(query), expected)
        times, _ = library.curve(expected_id(library, stored[2]), query)
        assert np.array_equal(times, stored[2].times)


def expected_id(library, feats):
    return library.video(feats.video["path"]).id


def test_curve_and_frame(library, stored):
    from everyframe.tasks.grounding import similarity

    query = queries(1)[0]
    for video, feats in zip(library.videos(), stored, strict=True):
        times, scores = library.curve(video.id, query)
        assert np.array_equal(times, feats.times) and times.dtype == np.float64
        np.testing.assert_allclose(scores, similarity(feats, query), atol=1e-6)
    feats = stored[5]
    vector = library.frame(library.videos()[5].id, float(feats.times[3]) + 0.01)
    np.testing.assert_allclose(vector, feats.normalised()[3], atol=1e-6)
    assert library.search(vector, top=1)[0].id == library.videos()[5].id


def test_bad_arguments(library):
    query = queries(1)[0]
    for options in ({"top": 0}, {"per_video": 0}, {"shortest": -1.0}, {"smooth": -1.0}, {"threshold": np.nan}):
        with pytest.raises(ValueError, match=next(iter(options))):
            library.search(query, **options)
    with pytest.raises(ValueError, match="level must be one of"):
        library.search(query, level="frame")
    with pytest.raises(LibraryError, match="there are no clips"):
        library.search(query, level="clip")
    with pytest.raises(ValueError, match=r"2 dimensions but the features have 16.*model of the features \(tiny\)"):
        library.search(query[:2])
    with pytest.raises(TypeError, match="encode it"):
        library.search("a red circle")
    for bad in (np.zeros(DIM), np.full(DIM, np.nan)):
        with pytest.raises(ValueError, match="not all zeros"):
            library.search(bad)
    with pytest.raises(ValueError, match="finite"):
        library.frame(library.videos()[0].id, np.nan)
    for seconds in (-9.0, 1e6):
        with pytest.raises(ValueError, match=r"has frames from .* s, not at"):
            library.frame(library.videos()[5].id, seconds)
    with pytest.raises(TypeError, match="top must be a whole number, got '2'"):
        library.search(query, top="2")
    with pytest.raises(TypeError, match="features are added, not str"):
        library.add("movie.mp4")
    with pytest.raises(TypeError, match="as_of must be a datetime"):
        Library(library.path, as_of="2026-11-21")
    with pytest.raises(LibraryError, match="needs a folder or an address, got None"):
        Library(None)


def test_missing_rows_are_said(tmp_path, monkeypatch):
    with Library(tmp_path / "lib") as library:
        library.add(scenes("/v/a.mp4", 100, np.random.default_rng(6)))
        library._store.table("frames_" + library.collection().id).delete("time > 20")
        for way in WAYS:
            take(monkeypatch, way)
            with pytest.raises(LibraryError, match=r"lacks frames of a\.mp4"):
                library.search(queries(1)[0], exact=True)


# --- the index -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """12,000 frames of 64 dimensions, with an index."""
    rng = np.random.default_rng(7)
    folder = tmp_path_factory.mktemp("large") / "lib"
    with pytest.MonkeyPatch.context() as patch, Library(folder) as library:
        small_sizes(patch)
        list(library.add_all(scenes(f"/v/{number}.mp4", 600, rng, dim=64) for number in range(20)))
        state = library.index_state()
        assert (state.kind, state.indexed, state.due, state.building) == ("exact", 0, True, False)
        library.refresh(wait=True)
        yield library


def small_sizes(patch):
    patch.setattr(indexing, "INDEX_FRAMES", 5000)
    patch.setattr(indexing, "_SCALAR_FRAMES", 3000)
    patch.setattr(indexing, "_MOST_UNINDEXED", 500)
    patch.setattr(searching, "_FEW_FRAMES", 100)


def test_index_finds_the_moments(large, monkeypatch):
    small_sizes(monkeypatch)
    state = large.index_state()
    assert (state.kind, state.frames, state.indexed, state.due) == ("IVF_RQ", 12_000, 12_000, False)
    monkeypatch.setattr(looking, "_FEWEST", 256)
    same = total = 0
    for query in queries(20, 64):
        exact = {(hit.id, hit.start, hit.end, round(hit.score, 4)) for hit in large.search(query, exact=True)}
        same += len(exact & {(h.id, h.start, h.end, round(h.score, 4)) for h in large.search(query)})
        total += len(exact)
    assert total == 200 and same >= 196


def test_frames_beside_the_index_are_found_and_taken_in(large, monkeypatch):
    small_sizes(monkeypatch)
    late = scenes("/v/late.mp4", 300, np.random.default_rng(8), dim=64)
    added = large.add(late)
    query = late.embeddings[150].astype(np.float32)
    assert large.search(query, top=1)[0].id == added.id
    state = large.index_state()
    assert (state.frames, state.indexed, state.due) == (12_300, 12_000, False)
    more = large.add(scenes("/v/more.mp4", 300, np.random.default_rng(9), dim=64))
    assert large.index_state().due
    large.refresh(wait=True)
    assert large.index_state().indexed == 12_600
    assert large.search(query, top=1)[0].id == added.id
    large.remove(added.id, more.id)
    assert added.id not in {hit.id for hit in large.search(query, top=50)}


def test_growth_makes_a_new_index_and_removal_of_all_leaves_an_empty_library(tmp_path, monkeypatch):
    small_sizes(monkeypatch)
    monkeypatch.setattr(indexing, "INDEX_FRAMES", 1000)
    monkeypatch.setattr(indexing, "_REBUILD_GROWTH", 2)
    rng = np.random.default_rng(10)
    with Library(tmp_path / "lib") as library:
        for first, name in ((0, "embedding_1200"), (2, "embedding_3600")):
            list(library.add_all(scenes(f"/v/{first}{number}.mp4", 600, rng) for number in range(first + 2)))
            library.refresh()
            assert index_names(library) == {name}
            assert library.index_state().indexed == int(name.removeprefix("embedding_"))
        collection = library.collection()
        library.remove(*[video.id for video in library.videos()])
        library.refresh()
        assert searching.Searcher(library._store).search(collection, queries(1)[0]) == []
        library.add(scenes("/v/new.mp4", 50, rng))
        assert library.search(queries(1)[0])[0].video == "/v/new.mp4"


def test_dims_that_rabitq_does_not_take(tmp_path, monkeypatch):
    small_sizes(monkeypatch)
    monkeypatch.setattr(indexing, "INDEX_FRAMES", 1000)
    rng = np.random.default_rng(11)
    with Library(tmp_path / "lib") as library:
        list(library.add_all(scenes(f"/v/{number}.mp4", 400, rng, dim=20) for number in range(4)))
        library.refresh()
        assert library.index_state().kind == "IVF_SQ"
        query = queries(1, 20)[0]
        check_same(library.search(query), library.search(query, exact=True))


def test_searching_and_adding_go_on_while_an_index_is_built(large, monkeypatch):
    small_sizes(monkeypatch)
    release, entered = threading.Event(), threading.Event()
    take_step = indexing._take

    def slowly(table, step):
        entered.set()
        assert release.wait(30)
        take_step(table, step)

    monkeypatch.setattr(indexing, "_take", slowly)
    monkeypatch.setattr(indexing, "_REBUILD_GROWTH", 1)
    monkeypatch.setattr(indexing, "_rows_when_built", lambda name: 10 if name == "embedding_12000" else 10**9)
    query = queries(1, 64)[0]
    before = large.search(query)
    large.refresh(wait=False)
    assert entered.wait(30)
    state = large.index_state()
    assert state.building and state.kind == "IVF_RQ"
    assert large.search(query) == before
    meanwhile = large.add(scenes("/v/meanwhile.mp4", 100, np.random.default_rng(12), dim=64))
    large.refresh(wait=False)  # one is at it already: nothing happens
    release.set()
    large.refresh(wait=True)
    assert not large.index_state().building
    large.remove(meanwhile.id)
    assert {(h.id, h.start) for h in large.search(query)} == {(h.id, h.start) for h in before}


def test_error_in_the_background_is_raised_by_close(tmp_path, monkeypatch):
    small_sizes(monkeypatch)
    monkeypatch.setattr(indexing, "INDEX_FRAMES", 100)

    def fail(table, step):
        raise OSError(28, "No space left on device")

    library = Library(tmp_path / "lib")
    library.add(scenes("/v/a.mp4", 200, np.random.default_rng(13)))
    monkeypatch.setattr(indexing, "_take", fail)
    library.refresh(wait=False)
    with pytest.raises(LibraryError, match="cannot be indexed: the disk is full"):
        library.close()


BUILDER = """
import sys
from everyframe.library import Library, index
index.INDEX_FRAMES, index._rows_when_built = 5000, lambda name: 10
library = Library(sys.argv[1])
index._take = lambda table, step, take=index._take: (print("building", flush=True), take(table, step))
library.refresh()
print("done", flush=True)
"""


def test_killed_build_leaves_the_index_as_it_was(large, monkeypatch):
    small_sizes(monkeypatch)
    query = queries(1, 64)[0]
    before = large.search(query, exact=True)
    check_same(large.search(query), before)
    names = index_names(large)
    for delay in (0.0, 0.1):
        child = subprocess.Popen([sys.executable, "-c", BUILDER, large.path], stdout=subprocess.PIPE, text=True)
        assert child.stdout.readline() == "building\n"
        assert large.index_state().building  # seen from another process
        time.sleep(delay)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
        now = index_names(large)
        assert now >= names or len(now) == 1  # a build that came to its end before the kill has dropped the old one
        if not delay:
            assert index_names(large) == names
        state = large.index_state()
        assert (state.kind, state.indexed, state.building) == ("IVF_RQ", state.frames, False)
        check_same(large.search(query), before)
    large.refresh()
    assert len(index_names(large)) == 1 and not large.index_state().due


def index_names(library):
    indexes = library._store.table("frames_" + library.collection().id).list_indices()
    return {index.name for index in indexes if "embedding" in index.columns}
