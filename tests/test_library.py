"""The library's tables: what goes in comes back, who is who, files in and out, and what is wrong is said."""

import dataclasses
import os
import shutil
import threading
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest

import library_cases as cases
from everyframe.features import FeaturesError, VideoFeatures
from everyframe.library import (
    Filter,
    Library,
    LibraryError,
    Thumbnail,
    UnusableVideoError,
    VideoRecord,
    collection_key,
    is_library,
    make_thumbnails,
)
from everyframe.library import store as store_module
from everyframe.library.filters import allowed
from everyframe.video import VideoError, sample_frames, write_video
from everyframe.video.identity import identity
from library_cases import equal, tiny

pytest.importorskip("lancedb")

VIDEOS = Path(__file__).parents[1] / "../shared/data/videos"
needs_videos = pytest.mark.skipif(not VIDEOS.is_dir(), reason="the real videos are not here")


@pytest.fixture
def library(tmp_path):
    with Library(tmp_path / "my library #1 (é), 100%20") as opened:
        yield opened


# --- in and out --------------------------------------------------------------------------------------------


def test_nothing_is_made_before_the_first_video(library):
    assert not library.exists() and not is_library(library.path)
    assert library.videos() == [] and library.collections() == [] and library.history() == []
    assert library.stats().num_videos == library.stats().bytes_on_disk == 0
    with pytest.raises(LibraryError, match=r"holds no videos yet; add some first"):
        library.collection()
    with pytest.raises(LibraryError, match=r"holds no library yet; add some videos first"):
        library.remove("a.mp4")
    assert not os.path.exists(library.path)
    library.add(tiny())
    assert library.exists() and is_library(library.path)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("clips", [False, True])
def test_what_goes_in_comes_back(library, dtype, clips):
    feats = tiny(clips=clips, motion_source="codec", damage=["a gap"], start=1.0)
    feats = dataclasses.replace(feats, embeddings=feats.embeddings.astype(dtype), end_seconds=123.5)
    added = library.add(feats)
    assert added.status == "added" and 0 < added.id < 2**63
    back = library.features(added.id)
    assert back.embeddings.dtype == np.float16 and equal(back, feats)
    assert back.video == feats.video and back.model == feats.model
    assert back.settings == {**feats.settings, "stored_dtype": "float16"}
    record = library.video("/videos/a.mp4")
    assert record.provenance["settings"]["damage"] == ["a gap"]
    assert library.roles(record.id) == feats.roles
    assert library.collection().of_clips is clips
    assert library.collection().label == (
        "tiny · reuse adaptive · 10 s clips" if clips else "tiny · reuse adaptive · 3 fps"
    )


def test_a_record_tells_what_is_known(library, tmp_path):
    file = tmp_path / "holiday.mp4"
    file.write_bytes(bytes(1000))
    os.utime(file, (1e9, 1e9))
    feats = tiny(file, 40)
    before = datetime.now(timezone.utc)
    library.add(feats)
    (record,) = library.videos()
    assert (record.name, record.path, record.fingerprint) == ("holiday.mp4", str(file), f"fp-{file}")
    assert (record.start, record.last, record.end) == (0.0, feats.times[-1], feats.frame_ends[-1])
    assert (record.width, record.height, record.fps, record.codec, record.container) == (64, 48, 25.0, "h264", "mp4")
    assert (record.num_frames, record.size_bytes, record.duration) == (40, 1000, pytest.approx(40 / 3))
    assert record.date == datetime.fromtimestamp(1e9, timezone.utc)  # when the file was changed
    assert before <= record.added <= datetime.now(timezone.utc)
    assert record.available
    rows = feats.embeddings.astype(np.float16).astype(np.float64)
    mean = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).mean(axis=0)
    np.testing.assert_allclose(record.mean, mean, atol=1e-6)
    # Under the moving average of search every row counts 1 / (rows around it) in each of these rows.
    near = np.abs(feats.times[:, None] - feats.times) <= 1.0 + 1e-6
    weights = (near / near.sum(axis=1, keepdims=True)).mean(axis=0)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(record.smoothed_mean, weights @ unit, atol=1e-6)
    file.unlink()
    assert not library.video(record.id).available


def test_provenance_of_any_kind_is_kept(library):
    video = {"path": "x", "duration_seconds": "long", "width": 1.5, "fps": True, "size_bytes": None, "codec": 7}
    feats = VideoFeatures(times=[0.5], embeddings=np.ones((1, 4), np.float32), roles="I", video={"path": "x"})
    library.add(feats)
    odd = dataclasses.replace(tiny("y"), video={**video, "path": "y", "duration_seconds": None})
    library.add(odd)
    assert library.features("y").video == odd.video
    record = library.video("y")
    assert (record.width, record.fps, record.codec, record.duration) == (None, None, None, None)
    assert library.features("x").model == {} and library.video("x").provenance["settings"] == {}
    assert {each.label for each in library.collections()} == {"unknown model", "tiny · reuse adaptive · 3 fps"}


@pytest.mark.parametrize(
    ("feats", "message"),
    [
        (tiny(frames=0), r"/videos/a.mp4 has no frames to search"),
        (dataclasses.replace(tiny(), video={}), r'video\["path"\] is missing'),
        (dataclasses.replace(tiny(), embeddings=np.zeros((12, 4), np.float32)), r"a.mp4: frame 0 .* is all zeros"),
        (dataclasses.replace(tiny(), embeddings=np.full((12, 4), 1e-9, np.float32)), "is all zeros .* in float16"),
        (dataclasses.replace(tiny(), embeddings=np.full((12, 4), 1e9, np.float32)), "finite.* in float16; normalise"),
    ],
)
def test_features_that_cannot_be_stored_are_refused(library, feats, message):
    with pytest.raises(UnusableVideoError, match=message):
        library.add(feats)
    assert not library.exists()


# --- who is who --------------------------------------------------------------------------------------------


def of_file(path, *, fps=3.0, **settings):
    """Features as of a file: those of two files differ exactly if the files do."""
    facts = identity(path)
    feats = tiny("of a file", fps=fps, seed=int(facts["fingerprint"], 16), **settings)
    return dataclasses.replace(feats, video={**feats.video, **facts, "path": str(path)})


def test_the_same_video_again(library, tmp_path):
    here, there = tmp_path / "a.mp4", tmp_path / "b.mp4"
    here.write_bytes(b"A")
    first = library.add(of_file(here))
    assert library.add(of_file(here, version="another")) == dataclasses.replace(first, status="unchanged")
    # A copy of a file that is still there, then the same copy when the original is gone.
    shutil.copy(here, there)
    copy = of_file(there)
    assert library.add(copy) == dataclasses.replace(first, status="unchanged")
    assert library.video(first.id).path == str(here)
    here.unlink()
    assert library.add(copy) == dataclasses.replace(first, status="moved")
    assert library.video(first.id).path == str(there) and library.video("b.mp4").id == first.id
    assert library.features(first.id).video["path"] == str(there)
    # The file was overwritten: other bytes, same path.
    second = library.add(tiny(there, 7, fingerprint="B"))
    assert second.status == "replaced" and second.id != first.id
    assert [record.id for record in library.videos()] == [second.id]
    # Read anew from the same bytes.
    third = library.add(tiny(there, 8, fingerprint="B"))
    assert third.status == "replaced"
    assert equal(library.features(third.id), tiny(there, 8, fingerprint="B"))
    with pytest.raises(LibraryError, match=f"holds no video {second.id}"):
        library.video(second.id)
    cases.check_no_remains(library.path)


def test_moved_over_another_video(library, tmp_path):
    """A file renamed to the name of another one that the library knows: that one is no more."""
    old, name = tmp_path / "old.mp4", tmp_path / "name.mp4"
    moved = library.add(tiny(old, fingerprint="A"))
    library.add(tiny(name, 9, fingerprint="B"))
    feats = dataclasses.replace(tiny(old, fingerprint="A"), video=tiny(name, fingerprint="A").video)
    assert library.add(feats) == dataclasses.replace(moved, status="moved")
    assert [(record.id, record.path) for record in library.videos()] == [(moved.id, str(name))]
    cases.check_no_remains(library.path)


@pytest.mark.parametrize("order", ["renamed first", "renamed last", "one batch", "one batch, renamed last"])
def test_a_name_that_was_given_to_another_video(library, tmp_path, order):
    """a.mp4 is renamed to b.mp4, and another video takes its name: both are there, whichever comes first."""
    old, renamed = tmp_path / "a.mp4", tmp_path / "b.mp4"
    old.write_bytes(b"A")
    first = library.add(of_file(old))
    old.rename(renamed)
    old.write_bytes(b"another")
    items = [of_file(renamed), of_file(old)]
    if order.endswith("last"):
        items.reverse()
    done = list(library.add_all(items)) if "batch" in order else [library.add(item) for item in items]
    assert [each.status for each in done] == (["replaced", "added"] if order.endswith("last") else ["moved", "added"])
    assert {record.path for record in library.videos()} == {str(old), str(renamed)}
    for added, item in zip(done, items, strict=True):
        assert equal(library.features(added.id), item) and library.video(added.id).path == item.video["path"]
    assert order.endswith("last") or done[0].id == first.id
    cases.check_no_remains(library.path)


def test_names_that_are_exchanged_in_one_batch(library, tmp_path):
    """The library has them under each other's names."""
    a, b = tmp_path / "a.mp4", tmp_path / "b.mp4"
    a.write_bytes(b"A")
    b.write_bytes(b"BB")
    list(library.add_all([of_file(a), of_file(b)]))
    a.rename(tmp_path / "c")
    b.rename(a)
    (tmp_path / "c").rename(b)
    items = [of_file(b), of_file(a)]
    done = list(library.add_all(items))
    assert len(library.videos()) == 2
    assert all(equal(library.features(each.id), item) for each, item in zip(done, items, strict=True))
    cases.check_no_remains(library.path)


def test_indexing_where_a_name_was_given_to_another_video(library, tmp_path, light):
    """What was renamed is found again, not encoded, and stays when the video that has its name now is added."""
    from everyframe.encoders import DenseEncoder
    from everyframe.indexing import Indexer
    from everyframe.pipeline import Sampling

    for number, name in enumerate(["a.mp4", "b.mp4", "c.mp4", "d.mp4"]):
        a_video(tmp_path / name, seconds=1.0 + number / 10)
    indexer = Indexer(library, DenseEncoder(light), Sampling(fps=1.0), thumbnails=False)
    places = [tmp_path / name for name in ("a.mp4", "b.mp4", "c.mp4")]
    assert indexer.sort(places) == ([], places)
    ids = [each.video for each in indexer.encode(places)]
    a, b, c, d, e = (tmp_path / name for name in ("a.mp4", "b.mp4", "c.mp4", "d.mp4", "e.mp4"))
    a.rename(e)  # and its name goes to another, b and c change names
    d.rename(a)
    b.rename(d)
    c.rename(b)
    d.rename(c)
    settled, rest = indexer.sort([a, b, c, e])
    assert {(Path(each.source).name, each.status, each.video) for each in settled} == {
        ("e.mp4", "moved", ids[0]),
        ("c.mp4", "moved", ids[1]),
        ("b.mp4", "moved", ids[2]),
    }
    assert rest == [a] and [each.status for each in indexer.encode(rest)] == ["added"]
    assert {record.path: record.fingerprint for record in library.videos()} == {
        str(path): identity(path)["fingerprint"] for path in (a, b, c, e)
    }
    assert [each.status for each in indexer.sort([a, b, c, e])[0]] == ["skipped"] * 4
    # One at a time: the renamed one alone is seen first.
    e.rename(d)
    shutil.copy(b, e)
    settled, rest = indexer.sort([d])
    assert [(each.status, each.video) for each in settled] == [("moved", ids[0])] and not rest


def test_without_a_fingerprint_the_path_counts(library):
    feats = dataclasses.replace(tiny(), video={"path": "s3://bucket/a.mp4"})
    first = library.add(feats)
    assert library.add(feats).status == "unchanged"
    assert library.add(dataclasses.replace(tiny(seed=1), video={"path": "s3://bucket/a.mp4"})).status == "replaced"
    assert library.add(dataclasses.replace(feats, video={"path": "s3://bucket/b.mp4"})).status == "added"
    assert len(library.videos()) == 2 and first.id not in {record.id for record in library.videos()}


def test_collections_keep_models_and_settings_apart(library):
    library.add(tiny())
    same = [
        {"fps": 3},
        {"version": "2", "gflops_share": 0.3, "start": None, "damage": ["x"], "stored_dtype": "float16"},
        {"slice_seconds": [0, 5]},
    ]
    for number, settings in enumerate(same):
        library.add(tiny(f"/videos/{number}.mp4", **settings))
    other_id = tiny("/videos/id.mp4")
    library.add(dataclasses.replace(other_id, model={**other_id.model, "id": "folder/of/tiny", "dtype": "bfloat16"}))
    assert len(library.collections()) == 1 and library.collection().num_videos == 5
    assert library.features("/videos/id.mp4").model["dtype"] == "bfloat16"
    library.add(tiny(fps=1.0))
    library.add(tiny(tolerance=3.0))
    library.add(tiny(dim=8))
    other = tiny()
    library.add(dataclasses.replace(other, model={**other.model, "weights_sha256": "beef"}))
    library.add(tiny(clips=True))
    found = library.collections()
    assert len(found) == 6 and len(library.videos()) == 10
    assert [each.num_videos for each in found] == [5, 1, 1, 1, 1, 1]
    with pytest.raises(LibraryError, match=r"several collections; say which with collection=: tiny · reuse .*1 fps"):
        library.collection()
    by_label = library.collection("tiny · reuse adaptive · 1 fps")
    assert by_label == library.collection(by_label.id) == library.collection(by_label.id[:7])
    with pytest.raises(LibraryError, match="means several collections"):
        library.collection("tiny · reuse adaptive · 3 fps")
    with pytest.raises(LibraryError, match=r"holds no collection dense; it holds tiny"):
        library.collection("dense")
    assert [record.path for record in library.videos(by_label.id)] == ["/videos/a.mp4"]
    with pytest.raises(LibraryError, match=r"a.mp4 is in several collections"):
        library.video("a.mp4")
    assert library.video("a.mp4", by_label.id).collection == by_label.id
    assert library.add(tiny(fps=1.0), collection=by_label.label).status == "unchanged"
    with pytest.raises(LibraryError, match=r"belongs to the collection tiny .* not to dense"):
        library.add(tiny(), collection="dense")
    feats = tiny(fps=1.0)
    assert collection_key(feats.model, feats.settings, feats.dim).id == by_label.id


def test_many_at_once_share_commits(library):
    results = list(library.add_all(tiny(f"/videos/{number}.mp4", 3, seed=number) for number in range(60)))
    assert [each.status for each in results] == ["added"] * 60
    assert len({each.id for each in results}) == 60
    assert len(library.history()) <= 1 + 3 * 3  # made; then groups by number or time, each in few commits
    assert all(equal(library.features(each.id), tiny(f"/videos/{n}.mp4", 3, seed=n)) for n, each in enumerate(results))
    twice = [tiny("/videos/0.mp4", 3, seed=90), (tiny("/videos/0.mp4", 3, seed=91), [Thumbnail(1.0, b"x")])]
    assert [each.status for each in library.add_all(twice)] == ["replaced", "replaced"]
    assert equal(library.features("/videos/0.mp4"), twice[1][0])
    assert library.thumbnails("/videos/0.mp4") == [1.0]
    cases.check_no_remains(library.path)


def test_an_error_among_many_keeps_what_came_before(library):
    def items():
        yield tiny("/videos/1.mp4")
        yield tiny("/videos/2.mp4")
        raise RuntimeError("the source broke off")

    stored = []
    with pytest.raises(RuntimeError, match="the source broke off"):
        stored.extend(iter_collect(library.add_all(items()), stored))
    assert [record.id for record in library.videos()] == [each.id for each in stored] and len(stored) == 2
    with pytest.raises(UnusableVideoError, match="no frames"):
        list(library.add_all([tiny("/videos/3.mp4"), tiny(frames=0)]))
    assert len(library.videos()) == 3


def iter_collect(iterator, into):
    for item in iterator:
        into.append(item)
    return []


def test_small_fragments_are_joined(library, monkeypatch):
    monkeypatch.setattr("everyframe.library.writing._SMALL_FRAGMENTS", 4)
    for number in range(6):
        library.add(tiny(f"/videos/{number}.mp4", 3))
    (name,) = (folder.stem for folder in Path(library.path).glob("frames_*.lance"))
    table = library._store.connection.open_table(name)
    assert table.stats()["fragment_stats"]["num_fragments"] <= 2
    with library._store.indexing():  # an index is being built: rows stay where they are
        for number in range(6):
            library.add(tiny(f"/videos/more-{number}.mp4", 3))
    table.checkout_latest()
    assert table.stats()["fragment_stats"]["num_fragments"] > 4
    assert all(library.features(record.id).num_frames == 3 for record in library.videos())


def test_removing(library):
    ids = [library.add(tiny(f"/{folder}/a.mp4"), thumbnails=[Thumbnail(0, b"x")]).id for folder in "xyz"]
    library.add(tiny("/x/a.mp4", fps=1.0))
    library.add(tiny("/x/only.mp4"))
    with pytest.raises(LibraryError, match=r"3 videos are named a.mp4; give the path of one, such as /x/a.mp4"):
        library.remove("a.mp4")
    with pytest.raises(LibraryError, match=r"holds no video /nowhere/b.mp4"):
        library.remove(ids[0], "/nowhere/b.mp4")
    assert len(library.videos()) == 5 and library.remove() == 0
    assert library.remove(ids[1], "only.mp4") == 2
    assert library.remove("/x/a.mp4") == 2  # of both collections
    assert library.remove(str(ids[2])) == 1
    assert library.videos() == [] and library.collections() == []
    assert {name: len(rows) for name, rows in cases.below(library.path).items() if name[0] in "ftv"} == {
        "thumbnails": 0,
        "videos": 0,
        **{name: 0 for name in cases.below(library.path) if name.startswith("frames_")},
    }
    assert library.add(tiny("/x/a.mp4")).id not in ids


# --- states and versions -----------------------------------------------------------------------------------


def test_readers_see_changes_of_others_and_only_whole_ones(library, monkeypatch):
    library.add(tiny())
    other = Library(library.path)
    first = other._store.snapshot()
    assert other._store.snapshot() is first
    library.add(tiny("/videos/b.mp4"))
    second = other._store.snapshot()
    assert second is not first and len(second.videos) == 2 and len(first.videos) == 1
    # A snapshot stays whole when its video goes.
    record = first.videos[min(first.videos)]
    library.remove(record.id)
    assert len(first.frames(record.collection).search().where(f"video = {record.id}").to_arrow()) == record.num_frames
    assert first.facts([record.id], ["roles"])[record.id]["roles"] == tiny().roles


@pytest.mark.parametrize("when", ["before the frames", "after the frames"])
def test_a_writer_between_two_looks(library, monkeypatch, when):
    """What is seen is the state of one moment, and whole: a video that is just replaced is always there."""
    list(library.add_all([tiny("/videos/a.mp4"), tiny("/videos/b.mp4"), tiny("/videos/c.mp4", fps=1.0)]))
    other = Library(library.path)
    other.videos()
    library.add(tiny("/videos/d.mp4"))  # there is something to look at
    real, busy = store_module.Store._open, []

    def between(self, name):
        looked = name == "videos" if when == "after the frames" else name.startswith("frames_")
        if looked and self is other._store and not busy:
            busy.append(True)
            for seed in (1, 2):
                library.add(tiny("/videos/a.mp4", seed=seed))
                library.add(tiny("/videos/c.mp4", fps=1.0, seed=seed))
                library.add(tiny("/videos/e.mp4", fps=2.0, seed=seed))  # of a new collection
            library.remove("b.mp4")
        return real(self, name)

    monkeypatch.setattr(store_module.Store, "_open", between)
    seen = other._store.snapshot()
    assert busy
    names = sorted(record.name for record in seen.videos.values())
    assert names == ["a.mp4", "b.mp4", "c.mp4", "d.mp4"] or when == "before the frames"
    assert len(set(names)) == len(names) and {"a.mp4", "c.mp4", "d.mp4"} <= set(names)
    for record in seen.videos.values():
        assert seen.frames(record.collection).count_rows(f"video = {record.id}") == record.num_frames
    later = {record.id: record for record in other.videos()}
    assert {record.name for record in later.values()} == {"a.mp4", "c.mp4", "d.mp4", "e.mp4"}
    assert later == {record.id: record for record in Library(library.path).videos()}


def test_only_new_videos_are_read_again(library, monkeypatch, tmp_path):
    """What a record was made of once is not read a second time; a new path is."""
    file = tmp_path / "a.mp4"
    file.write_bytes(b"a")
    library.add(of_file(file))
    before = library.video("a.mp4")
    file.rename(tmp_path / "b.mp4")
    assert library.add(of_file(tmp_path / "b.mp4")).status == "moved"
    library.add(tiny("/videos/c.mp4"))
    after = library.video("b.mp4")
    assert after == dataclasses.replace(before, path=str(tmp_path / "b.mp4"), name="b.mp4")
    assert after.mean is before.mean
    assert library.videos() == Library(library.path).videos()
    monkeypatch.setattr("everyframe.library.snapshots._MOST_LISTED", 2)
    other = Library(library.path)
    assert other.videos() == library.videos()
    list(library.add_all(tiny(f"/videos/{number}.mp4", 2) for number in range(5)))
    assert other.videos() == library.videos() == Library(library.path).videos()


def test_the_past_can_be_read(library):
    first = library.add(tiny(seed=1), thumbnails=[Thumbnail(0.0, b"then")])
    library.add(tiny("/videos/b.mp4", fps=1.0))
    moment = datetime.now(timezone.utc)
    library.add(tiny(seed=2))
    library.remove("b.mp4")
    library.compact()
    past = Library(library.path, as_of=moment)
    assert {record.name for record in past.videos()} == {"a.mp4", "b.mp4"} and len(past.collections()) == 2
    assert equal(past.features(first.id), tiny(seed=1)) and past.thumbnail(first.id, 9).jpeg == b"then"
    assert past.stats().num_thumbnails == 1 and library.stats().num_thumbnails == 0
    for change in (lambda: past.add(tiny()), past.refresh, past.compact, past.vacuum, lambda: past.remove("a.mp4")):
        with pytest.raises(LibraryError, match=r"is open as it was at .*; open it without as_of to change it"):
            change()
    assert library.stats().num_versions == len(library.history())
    times = [when for when, _ in library.history()]
    assert times == sorted(times) and times[0] < moment < times[-1] and times[0].tzinfo is not None
    with pytest.raises(LibraryError, match=r"goes back to .* UTC only"):
        Library(library.path, as_of=times[0] - timedelta(seconds=1)).videos()
    # Freed: the old rows go, what is there now stays, and the past ends now.
    assert library.vacuum() == 0
    before = library.stats().bytes_on_disk
    freed = library.vacuum(timedelta(0))
    assert freed > 0 and library.stats().bytes_on_disk < before
    assert equal(library.features("a.mp4"), tiny(seed=2))
    with pytest.raises(LibraryError, match="goes back to"):
        Library(library.path, as_of=moment).videos()
    with pytest.raises(LibraryError, match="vacuum has removed it"):
        past.features(first.id)
    with pytest.raises(LibraryError, match="must not be negative"):
        library.vacuum(timedelta(days=-1))


def test_a_read_that_vacuum_overtakes_is_repeated(library):
    library.add(tiny(seed=1))
    library.add(tiny("/videos/b.mp4"))
    reader = Library(library.path)
    stale = reader._store.snapshot()
    library.add(tiny(seed=2))
    library.compact()
    library.vacuum(timedelta(0))
    answers = iter([stale])
    real = reader._store.snapshot
    reader._store.snapshot = lambda: next(answers, None) or real()
    assert equal(reader.features("a.mp4"), tiny(seed=2))


@pytest.mark.parametrize("read", ["curve", "frame", "roles"])
def test_what_is_read_of_a_video_is_of_one_snapshot(library, read):
    """A replacement that comes after the video was looked up: what is there now is read."""
    library.add(tiny(seed=1))
    reader = Library(library.path)
    stale = reader._store.snapshot()
    library.add(tiny(seed=2, frames=9))
    library.compact()
    library.vacuum(timedelta(0))
    answers = iter([stale])
    real = reader._store.snapshot
    reader._store.snapshot = lambda: next(answers, None) or real()
    new = tiny(seed=2, frames=9)
    query = new.embeddings[4]
    if read == "curve":
        times, scores = reader.curve("a.mp4", query)
        np.testing.assert_array_equal(times, new.times)
        np.testing.assert_allclose(scores, new.embeddings @ query, atol=2e-3)
    elif read == "frame":
        np.testing.assert_allclose(reader.frame("a.mp4", new.times[4]), query, atol=2e-3)
    else:
        assert reader.roles("a.mp4") == new.roles


@pytest.mark.parametrize("lost", ["time > 2", "time >= 0"])
def test_missing_rows_are_told(library, tmp_path, lost):
    library.add(tiny())
    library.add(tiny("/videos/b.mp4"))
    bad = library.video("a.mp4")
    library._store.table("frames_" + bad.collection).delete(f"video = {bad.id} AND {lost}")
    reads = (library.features, lambda id: library.curve(id, np.ones(cases.DIM)), lambda id: library.frame(id, 1.0))
    for read in reads:
        with pytest.raises(LibraryError, match=r"lacks frames of a.mp4: it is damaged; restore the library"):
            read(bad.id)
    failures = []
    assert [path.name for path in library.export(tmp_path / "out", failures=failures)] == ["b.npz"]
    assert [path for path, _ in failures] == ["/videos/a.mp4"]


def test_old_versions_go_when_fragments_are_joined(library, monkeypatch):
    monkeypatch.setattr("everyframe.library.writing._SMALL_FRAGMENTS", 4)
    for number in range(8):
        library.add(tiny(f"/videos/{number}.mp4", 3))
    assert library.stats().num_versions == len(library.history()) > 12  # all are younger than that
    monkeypatch.setattr("everyframe.library.writing.KEPT", timedelta(milliseconds=1))
    for number in range(8, 16):
        library.add(tiny(f"/videos/{number}.mp4", 3))
    assert library.stats().num_versions == len(library.history()) < 12
    assert len(library.videos()) == 16 and all(library.features(record.id) for record in library.videos())


def test_the_thumbnails_get_an_index(library, monkeypatch):
    monkeypatch.setattr("everyframe.library.index._SCALAR_FRAMES", 20)
    monkeypatch.setattr("everyframe.library.index._MOST_UNINDEXED", 10)
    pictures = [Thumbnail(float(number), b"%d" % number) for number in range(15)]
    library.refresh()
    library.add(tiny(), thumbnails=pictures)
    library.refresh()
    assert not library._store.table("thumbnails").list_indices()
    for name in ("b", "c"):
        library.add(tiny(f"/videos/{name}.mp4"), thumbnails=pictures)
        library.refresh()
        (index,) = library._store.table("thumbnails").list_indices()
        assert index.columns == ["video"] and index.num_unindexed_rows == 0
        assert library.thumbnail(f"{name}.mp4", 7.2) == pictures[7]


def test_vacuum_removes_what_killed_writers_left(library):
    library.add(tiny())
    left = next(Path(library.path).glob("frames_*.lance")) / "data/left-by-a-killed-writer.lance"
    left.write_bytes(bytes(5000))
    assert library.vacuum(timedelta(0)) >= 5000 and not left.exists()


def test_another_format(library, monkeypatch):
    library.add(tiny())
    about = library._store.connection.open_table("about")
    about.update(where="key = 'version'", values={"value": "2"})
    with pytest.raises(LibraryError, match=r"has format 2, written by everyframe .*this everyframe reads format 1"):
        Library(library.path).videos()
    with pytest.raises(LibraryError, match=r"has format 2"):
        Library(library.path).add(tiny())
    about.update(where="key = 'version'", values={"value": "0"})
    with pytest.raises(LibraryError, match=r"has format 0, which this everyframe can no longer migrate"):
        Library(library.path).videos()
    steps = []

    def rename(connection):
        steps.append(connection.open_table("videos").count_rows())
        connection.open_table("videos").update(values={"codec": "migrated"})
        if len(steps) == 1:
            raise OSError("no space left on device")

    monkeypatch.setitem(store_module.MIGRATIONS, 0, rename)
    with pytest.raises(LibraryError, match="cannot be migrated from format 0: the disk is full"):
        Library(library.path).videos()
    assert [record.codec for record in Library(library.path).videos()] == ["migrated"]
    assert steps == [1, 1] and Library(library.path).add(tiny()).status == "unchanged"
    about.update(where="key = 'format'", values={"value": "cookbook"})
    with pytest.raises(LibraryError, match="is no everyframe library"):
        Library(library.path).videos()


def test_two_that_open_an_old_library_migrate_it_once(library, monkeypatch):
    """The second has read the old number already, and waits for the first."""
    library.add(tiny())
    library._store.connection.open_table("about").update(where="key = 'version'", values={"value": "0"})
    steps, waiting, errors = [], [], []
    real = store_module.Store.lock

    def lock(self):
        waiting.append(self)
        return real(self)

    def step(connection):
        steps.append(connection)
        deadline = time.monotonic() + 20
        while len(waiting) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)

    def read():
        try:
            assert len(Library(library.path).videos()) == 1
        except BaseException as error:
            errors.append(error)

    monkeypatch.setattr(store_module.Store, "lock", lock)
    monkeypatch.setitem(store_module.MIGRATIONS, 0, step)
    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and len(steps) == 1 and len(waiting) == 2


def test_paths_that_are_literal_or_relative(tmp_path, monkeypatch):
    here = tmp_path / "Work [x]"
    here.mkdir()
    monkeypatch.chdir(here)
    paths = {"a": "/v/[2024] trip/a [1].mp4", "b": "/v/[2024] trip/b.mp4", "c": f"{here}/sub/c.mp4"}
    paths["d"] = "http://host/v/d.mp4"
    facts = dict.fromkeys(field.name for field in dataclasses.fields(VideoRecord)) | {"duration": 1.0}
    records = [
        VideoRecord(**facts | {"path": path, "name": path if name == "d" else path.rpartition("/")[2], "codec": name})
        for name, path in paths.items()
    ]
    for pattern, wanted in {
        "/v/[2024] trip": "ab",
        "/v/[2024] Trip/": "ab",
        "A [1].mp4": "a",
        "/V/[2024] trip/b.mp4": "b",
        "/v/[2024] tri": "",
        "sub": "c",
        "./sub/../sub/": "c",
        "../Work [x]/sub/c.mp4": "c",
        ".": "c",
        "http://host/v": "d",
        "http://host/*": "d",
        "*.mp4": "abcd",
    }.items():
        found = allowed(records, Filter(paths=(pattern,)))
        assert "".join(record.codec for record in found) == wanted, pattern


# --- what is wrong -----------------------------------------------------------------------------------------


def test_a_place_that_is_no_library(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    assert Library(folder).videos() == []
    for name in ("writer.lock", "everyframe.jsonl", ".hidden"):
        (folder / name).touch()
    (folder / "uploads").mkdir()
    assert not Library(folder).exists()
    (folder / "cat.jpg").touch()
    for act in (Library(folder).videos, Library(folder).exists, lambda: Library(folder).add(tiny())):
        with pytest.raises(LibraryError, match=rf"{folder} is no library: it holds other things \(cat.jpg\)"):
            act()
    with pytest.raises(LibraryError, match="is a file; a library is a folder"):
        Library(folder / "cat.jpg").add(tiny())
    (folder / "cat.jpg").unlink()
    assert Library(folder).add(tiny()).status == "added"
    (folder / "cat.jpg").touch()  # put beside the tables later: no harm
    assert len(Library(folder).videos()) == 1


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        ("truncate", "cannot be read: its files are damaged"),
        ("overwrite", "damaged"),
        ("delete data", "cannot be read: its files are damaged or incomplete"),
        ("delete frames", "its table frames_[0-9a-f]+ is missing or damaged; restore it from a copy"),
        ("delete manifests of videos", "its table videos is missing or damaged"),
        ("delete about", "its table about is missing or damaged; restore it from a copy"),
        ("truncate videos", "damaged"),
        ("overwrite manifests", "damaged"),
    ],
)
def test_damaged_tables(library, harm, message):
    library.add(tiny(frames=2000))
    library.close()
    place = Path(library.path)
    (frames,) = place.glob("frames_*.lance")
    data = next((frames / "data").iterdir())
    videos = place / "videos.lance"
    if harm == "truncate":
        os.truncate(data, data.stat().st_size // 2)
    elif harm == "overwrite":
        data.write_bytes(b"\x00" * 1000 + os.urandom(data.stat().st_size - 1000))
    elif harm == "delete data":
        data.unlink()
    elif harm == "delete frames":
        shutil.rmtree(frames)
    elif harm == "delete manifests of videos":
        shutil.rmtree(videos / "_versions")
    elif harm == "delete about":
        shutil.rmtree(place / "about.lance")
    elif harm == "truncate videos":
        for file in (videos / "data").iterdir():
            os.truncate(file, 100)
    else:
        for file in (frames / "_versions").glob("*.manifest"):
            file.write_bytes(os.urandom(500))
    with pytest.raises(LibraryError, match=message) as caught:
        Library(place).features("a.mp4")
    assert "\n" not in str(caught.value) and ".rs" not in str(caught.value)


def test_changed_rows_do_not_pass_as_features(library):
    """One bit in the middle of the embeddings: the file is sound to LanceDB, but not what was stored."""
    library.add(tiny(frames=2000))
    library.close()
    (data,) = next(Path(library.path).glob("frames_*.lance")).glob("data/*")
    content = bytearray(data.read_bytes())
    row = tiny(frames=2000).embeddings[1000].astype(np.float16).tobytes()
    place = bytes(content).index(row)
    content[place] ^= 1
    data.write_bytes(content)
    with pytest.raises(LibraryError, match="does not match its checksum: its frames are damaged; remove the video"):
        library.features("a.mp4")
    assert library.remove("a.mp4") == 1 and library.add(tiny(frames=2000)).status == "added"
    assert equal(library.features("a.mp4"), tiny(frames=2000))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": ""}, "needs a folder or an address"),
        ({"lock_seconds": -1}, "lock_seconds must be"),
        ({"cache_bytes": 10}, "cache_bytes must be at least 1 MiB"),
    ],
)
def test_bad_options(tmp_path, options, message):
    with pytest.raises(LibraryError, match=message):
        Library(**{"path": tmp_path, **options})


def test_addresses(tmp_path):
    """file:// is a folder; memory:// goes all the way of an object store but for the network."""
    with Library(f"file://{tmp_path}/library") as local:
        local.add(tiny())
        assert local.path == f"{tmp_path}/library" and len(Library(tmp_path / "library").videos()) == 1
    assert is_library("s3://bucket/library") and is_library(f"file://{tmp_path}/library")
    library = Library("memory://library")
    assert not library.exists() and library.videos() == []
    library.add(tiny(), thumbnails=[Thumbnail(0.0, b"x")])
    assert library.add(tiny(seed=1)).status == "replaced"
    assert list(library.add_all([tiny("/videos/b.mp4"), tiny("/videos/c.mp4")]))
    assert equal(library.features("a.mp4"), tiny(seed=1)) and library.remove("b.mp4") == 1
    library.compact()
    assert library.stats().num_videos == 2 and library.stats().bytes_on_disk is None
    # Without locks, what is being added now may be another writer's.
    store = library._store
    store.table("videos").update(where="name = 'c.mp4'", values={"state": "adding"})
    library.add(tiny("/videos/d.mp4"))
    assert store.table("videos").count_rows() == 3 and len(library.videos()) == 2
    long_ago = datetime.now(timezone.utc) - timedelta(hours=2)
    store.table("videos").update(where="name = 'c.mp4'", values={"added": long_ago})
    library.add(tiny("/videos/e.mp4"))
    assert store.table("videos").count_rows() == 3


def test_an_object_store_that_does_not_answer():
    nowhere = {"endpoint": "http://127.0.0.1:9", "allow_http": "true", "region": "us-east-1", "client_max_retries": "0"}
    secrets = {"aws_access_key_id": "x", "aws_secret_access_key": "y"}
    with pytest.raises(LibraryError, match=r"^s3://no-bucket/x cannot be opened: the object store does not answer"):
        Library("s3://no-bucket/x", storage_options={**nowhere, **secrets}).videos()
    with pytest.raises(LibraryError, match="no such kind of address; use a folder, s3"):
        Library("ftp://host/x").add(tiny())


# --- thumbnails --------------------------------------------------------------------------------------------


def test_thumbnails_are_kept_with_their_video(library):
    pictures = [Thumbnail(number * 2.5, b"picture %d" % number) for number in range(5)]
    added = library.add(tiny(), thumbnails=pictures[:0])
    assert library.thumbnails(added.id) == [] and library.thumbnail(added.id, 1.0) is None
    assert library.add(tiny(), thumbnails=reversed(pictures)).status == "unchanged"  # but now there are some
    library.add(tiny(), thumbnails=[Thumbnail(9.0, b"more")])
    assert library.thumbnails("a.mp4") == [0.0, 2.5, 5.0, 7.5, 10.0]
    assert library.thumbnail("a.mp4", 3.6) == pictures[1]
    assert library.thumbnail("a.mp4", -5) == pictures[0] and library.thumbnail("a.mp4", 99.0) == pictures[4]
    library.add(tiny(seed=3), thumbnails=[Thumbnail(1 / 3, b"other")])
    assert library.thumbnails("a.mp4") == [1 / 3] and library.thumbnail("a.mp4", 0).jpeg == b"other"
    library.remove("a.mp4")
    assert library.stats().num_thumbnails == 0


def a_video(path, *, seconds=9.0, size=(48, 64), keyframe_every=None, fps=10):
    """A video whose frame k has brightness 2k, so that a picture says when it is from."""
    height, width = size
    frames = (np.full((height, width, 3), 2 * number, np.uint8) for number in range(int(seconds * fps)))
    options = {"preset": "ultrafast", "sc_threshold": "0"}
    write_video(path, frames, fps=fps, keyframe_every=keyframe_every, crf=10, options=options)
    return path


def pixels_of(jpeg):
    import io

    from PIL import Image

    with Image.open(io.BytesIO(jpeg)) as image:
        assert image.format == "JPEG"
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("keyframe_every", [15, 500])
def test_thumbnails_are_of_the_times_they_say(tmp_path, keyframe_every):
    """From key frames every 1.5 s, and from a video that has but one."""
    path = a_video(tmp_path / "a.mp4", keyframe_every=keyframe_every)
    found = make_thumbnails(path, every=2.0)
    times = [each.time for each in found]
    assert times == ([0.0, 3.0, 4.5, 6.0] if keyframe_every == 15 else [0.0, 2.0, 4.0, 6.0, 8.0])
    for each in found:
        picture = pixels_of(each.jpeg)
        assert picture.shape == (48, 64, 3)  # no larger than the video
        assert abs(float(picture.mean()) - 2 * round(each.time * 10)) < 4
    few = make_thumbnails(path, every=1.0, most=3, width=32)
    assert 2 <= len(few) <= 3 and pixels_of(few[0].jpeg).shape == (24, 32, 3)


def test_thumbnails_of_what_is_damaged(tmp_path):
    path = a_video(tmp_path / "a.mkv", keyframe_every=10)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    found = make_thumbnails(path)
    assert found and max(each.time for each in found) < 8
    path.write_bytes(b"not a video" * 100)
    with pytest.raises(VideoError, match="not a video"):
        make_thumbnails(path)
    with pytest.raises(VideoError, match="no such file"):
        make_thumbnails(tmp_path / "nowhere.mp4")
    for options in ({"every": 0}, {"most": 0}, {"width": 3}):
        with pytest.raises(ValueError, match="must be"):
            make_thumbnails(path, **options)


def test_thumbnails_of_a_folder_of_images(tmp_path):
    from everyframe.video import write_image

    for number in range(12):
        write_image(tmp_path / f"{number}.png", np.full((40, 60, 3), 20 * number, np.uint8))
    found = make_thumbnails(tmp_path, every=1.0, image_fps=3.0)
    assert [each.time for each in found] == [0.0, 1.0, 2.0, 3.0]
    assert abs(float(pixels_of(found[2].jpeg).mean()) - 120) < 4


@needs_videos
@pytest.mark.parametrize(
    "name", ["video_90.mov", "anamorphic.mp4", "nasa_13013.mp4", "vid1.mp4", "corrupted.mp4", "v_GGSY1Qvo990.mp4"]
)
def test_thumbnails_of_real_videos(name):
    """Upright, with square pixels, and of exactly the time of a frame: compared with a full decode."""
    with sample_frames(VIDEOS / name, None, on_damage="skip") as frames:
        info = frames.info
        full = {frame.time: frame.pixels for frame in frames}
    found = make_thumbnails(VIDEOS / name)
    assert found and found[0].time == min(full)
    for each in found:
        picture, frame = pixels_of(each.jpeg), full[each.time]
        assert abs(picture.shape[1] / picture.shape[0] - info.width / info.height) < 0.03
        small = shrink(frame, picture.shape[:2])
        assert np.abs(small - picture).mean() < 0.25 * max(small.std(), 16), each.time


def shrink(picture, size):
    """The mean of the pixels that each small one covers."""
    height, width = size
    rows = np.arange(height + 1) * picture.shape[0] // height
    columns = np.arange(width + 1) * picture.shape[1] // width
    sums = np.add.reduceat(np.add.reduceat(picture.astype(float), rows[:-1], axis=0), columns[:-1], axis=1)
    return sums / (np.diff(rows)[:, None, None] * np.diff(columns)[None, :, None])


# --- files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["npz", "npy", "h5", "parquet"])
def test_export_and_import(library, tmp_path, format):
    originals = {f"/videos/{number}.mp4": tiny(f"/videos/{number}.mp4", 5 + number) for number in range(3)}
    list(library.add_all(originals.values()))
    paths = library.export(tmp_path / "out", format=format)
    assert [path.name for path in paths] == [f"{number}.{format}" for number in range(3)]
    for path in paths:
        feats = VideoFeatures.load(path)
        assert equal(feats, originals[feats.video["path"]])
        assert feats.model == originals[feats.video["path"]].model
    assert library.export(tmp_path / "out", format=format) == paths  # its own files are written again
    other = Library(tmp_path / "other")
    results = list(other.import_files([tmp_path / "out"]))
    assert [(each.file, each.added.status, each.error) for each in results] == [(path, "added", None) for path in paths]
    assert all(equal(other.features(path), feats) for path, feats in originals.items())
    assert [each.added.status for each in other.import_files(paths[0])] == ["unchanged"]


def test_export_names_never_collide(library, tmp_path):
    names = ["x/a.mp4", "y/a.mp4", "x/b.mp4", "x/b.mkv", "c", "d.mp4.mkv", "d.mp4", "d.avi", "E.mp4", "e.mov"]
    names += ["..mp4", "é\n:*?.mp4", "l" * 250 + ".mp4", "s3://bucket/remote.mp4"]
    feats = [tiny(name if "://" in name else f"/{name}") for name in names]
    list(library.add_all([*feats, tiny("/c", fps=1.0)]))
    paths = library.export(tmp_path / "out")
    assert len({str(path).casefold() for path in paths}) == len(names) + 1
    assert all(path.parent == tmp_path / "out" and len(path.name.encode()) < 250 for path in paths)
    found = {path.name: VideoFeatures.load(path).video["path"] for path in paths}
    assert (
        found["b.mp4.npz"] == "/x/b.mp4"
        and found["b.mkv.npz"] == "/x/b.mkv"
        and found["remote.npz"] == feats[-1].video["path"]
    )
    assert sorted(found.values()) == sorted([each.video["path"] for each in feats] + ["/c"])


def test_export_of_some_and_what_is_in_the_way(library, tmp_path):
    ids = [library.add(tiny(f"/videos/{name}.mp4")).id for name in "abc"]
    library.add(tiny("/videos/a.mp4", fps=1.0))
    one_fps = library.collection("tiny · reuse adaptive · 1 fps").id
    assert [path.name for path in library.export(tmp_path / "one", collection=one_fps)] == ["a.npz"]
    assert len(library.export(tmp_path / "two", videos=[ids[1], "c.mp4", "/videos/c.mp4"])) == 2
    (tmp_path / "one/a.npz").write_bytes((tmp_path / "two/c.npz").read_bytes())
    with pytest.raises(LibraryError, match=r"a.npz holds the features of /videos/c.mp4; choose another folder"):
        library.export(tmp_path / "one", videos=[ids[0]])
    np.savez(tmp_path / "one/b.npz", work=np.zeros(3))
    failures = []
    done = library.export(tmp_path / "one", videos=ids, failures=failures)
    assert [path.name for path in done] == ["c.npz"]
    assert [path for path, _ in failures] == ["/videos/a.mp4", "/videos/b.mp4"]
    assert "is not overwritten" in str(failures[1][1])
    with pytest.raises(LibraryError, match="format must be one of npz, npy, h5, parquet, got 'csv'"):
        library.export(tmp_path / "one", format="csv")
    with pytest.raises(LibraryError, match="holds no video nobody"):
        library.export(tmp_path / "one", videos=["nobody"])
    (tmp_path / "file").touch()
    with pytest.raises(LibraryError, match=r"/videos/a.mp4 cannot be exported"):
        library.export(tmp_path / "file", videos=[ids[0]])


def test_import_goes_on_past_files_that_cannot_be_used(library, tmp_path):
    for number in (1, 2, 4):
        tiny(f"/videos/{number}.mp4").save(tmp_path / f"{number}.npz")
    (tmp_path / "2.npz").write_bytes((tmp_path / "2.npz").read_bytes()[:99])
    tiny("/videos/3.mp4", 0).save(tmp_path / "3.npz")
    results = list(library.import_files([tmp_path]))
    assert [each.file.name for each in results] == ["1.npz", "2.npz", "3.npz", "4.npz"]
    assert [each.added and each.added.status for each in results] == ["added", None, None, "added"]
    assert "2.npz is damaged" in results[1].error
    assert results[2].error.startswith(str(tmp_path / "3.npz")) and "no frames" in results[2].error
    with pytest.raises(FeaturesError, match=r"5.npz does not exist"):
        library.import_files([tmp_path / "5.npz"])


def test_moved_files_are_found_again(library, tmp_path):
    """By size and content, whatever the new name; copies and files of the same size are told apart."""
    old, new = tmp_path / "old", tmp_path / "new" / "deep"
    old.mkdir()
    new.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c", "images"):
        if name == "images":
            (old / name).mkdir()
            for number in range(3):
                (old / name / f"{number}.png").write_bytes(rng.bytes(100 + number))
        else:
            (old / f"{name}.mp4").write_bytes(rng.bytes(300_000))
    for file in sorted(old.iterdir()):
        for fps in (3.0, 1.0):
            feats = tiny(file, fps=fps)
            library.add(dataclasses.replace(feats, video={**feats.video, **identity(file)}))
    (old / "a.mp4").rename(new / "renamed.mkv")
    (old / "b.mp4").rename(new / "b.mp4")
    (old / "images").rename(new / "pictures")
    shutil.copy(old / "c.mp4", new / "copy of c.mp4")
    (new / "decoy.mp4").write_bytes(rng.bytes(300_000))
    found = library.relink([tmp_path / "new"])
    assert sorted((record.name, Path(path).name) for record, path in found) == sorted(
        2 * [("a.mp4", "renamed.mkv"), ("b.mp4", "b.mp4"), ("images", "pictures")]
    )
    assert all(record.available for record in library.videos())
    assert {record.name for record in library.videos()} == {"renamed.mkv", "b.mp4", "c.mp4", "pictures"}
    assert library.relink([new]) == []
    (new / "b.mp4").rename(tmp_path / "b.mp4")
    assert len(library.relink(tmp_path / "b.mp4")) == 2  # a file named, not a folder
    (tmp_path / "b.mp4").unlink()
    assert library.relink([tmp_path]) == []
    with pytest.raises(LibraryError, match="does not exist; name files, or folders to look for"):
        library.relink([tmp_path / "nowhere"])


def test_moved_files_whose_old_names_are_in_use(library, tmp_path, monkeypatch):
    """Exchanged names, a chain of them, and one that took the place of a video that is nowhere now."""
    names = ["a", "b", "c", "d", "e"]
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes(bytes([number]) * 50)  # all of one size
        os.utime(tmp_path / name, (1e9 + number, 1e9 + number))
        library.add(of_file(tmp_path / name))
    (tmp_path / "a").rename(tmp_path / "x")
    (tmp_path / "b").rename(tmp_path / "a")
    (tmp_path / "x").rename(tmp_path / "b")
    (tmp_path / "c").rename(tmp_path / "f")
    (tmp_path / "d").rename(tmp_path / "c")
    (tmp_path / "d").write_bytes(b"another")
    shutil.copy(tmp_path / "a", tmp_path / "e")  # a second file of what was b, over e
    found = library.relink([tmp_path])
    assert {(record.name, Path(path).name) for record, path in found} == {
        ("a", "b"),
        ("b", "a"),
        ("c", "f"),
        ("d", "c"),
    }
    for record in library.videos():
        if record.name != "e":
            assert identity(record.path)["fingerprint"] == record.fingerprint
    assert library.relink([tmp_path]) == []


def test_a_file_that_cannot_be_read_does_not_end_the_search_for_others(library, tmp_path, monkeypatch):
    from everyframe.library import moved

    (tmp_path / "a").write_bytes(b"a video")
    library.add(of_file(tmp_path / "a"))
    (tmp_path / "a").rename(tmp_path / "z")
    (tmp_path / "bad").write_bytes(b"VIDEO !")
    real = moved.identity

    def identity_of(file):
        if Path(file).name == "bad":
            raise PermissionError(13, "Permission denied", str(file))
        return real(file)

    monkeypatch.setattr(moved, "identity", identity_of)
    with pytest.warns(UserWarning, match="bad was not searched: Permission denied"):
        found = library.relink([tmp_path])
    assert [Path(path).name for _, path in found] == ["z"]


def test_threads_may_share_a_library(library):
    """Three threads add and read through one object."""
    errors = []

    def work(number):
        try:
            for turn in range(3):
                library.add(tiny(f"/videos/{number}.mp4", 4, seed=turn))
                assert equal(library.features(f"/videos/{number}.mp4"), tiny(f"/videos/{number}.mp4", 4, seed=turn))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and len(library.videos()) == 3
    cases.check_no_remains(library.path)
