"""Streams of features: each sample once over all workers and ranks, in an order that seed and epoch decide."""

import gc
import itertools
import os
import pickle
import re
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import everyframe as ef
from everyframe.exports import export_shards
from everyframe.features import FeaturesError, VideoFeatures, collate, stream
from everyframe.features.shards import Shard, read_index
from everyframe.features.streaming import by_turns, deal, windows
from object_store import s3_server
from processes import end_of_ranks, start_ranks

DIM = 4


def make(number, frames=None, fps=2.0, dtype=np.float32, **changes):
    """Features that say who they are: each row holds the number of its video and its own."""
    frames = 3 + 2 * number % 11 if frames is None else frames
    rows = np.zeros((frames, DIM), dtype)
    rows[:, 0], rows[:, 1] = number, np.arange(frames)
    values = {
        "times": np.arange(frames) / fps + 0.01,
        "embeddings": rows,
        "roles": ("IPP" * frames)[:frames],
        "video": {"path": f"v{number}.mp4", "duration_seconds": frames / fps},
        "model": {"id": "tiny", "weights_sha256": "ab"},
        "settings": {"fps": fps},
    }
    return VideoFeatures(**{**values, **changes})


def told(sample):
    """Which rows of which video a sample holds."""
    rows = sample["embeddings"].float()
    assert len(sample["times"]) == len(sample["roles"]) == len(rows)
    assert sample["video"] == f"v{int(rows[0, 0])}.mp4"
    return int(rows[0, 0]), tuple(rows[:, 1].int().tolist())


def alone(samples):
    """Instead of a batch; a function, since workers that are no forks must find it."""
    return samples[0]


def loader(dataset, workers=0, **options):
    context = options.pop("context", "fork") if workers else None
    return DataLoader(
        dataset, batch_size=1, collate_fn=alone, num_workers=workers, multiprocessing_context=context, **options
    )


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The same 23 videos as files of all formats, as one shard, and as shards of four videos."""
    root = tmp_path_factory.mktemp("places")
    for name in ("files", "one", "shards"):
        (root / name).mkdir()
    features = [make(number) for number in range(23)]
    for number, feats in enumerate(features):
        feats.save(root / "files" / f"{number:02d}{('.npz', '.npy', '.h5', '.parquet')[number % 4]}")
    for name, size in (("one", 100), ("shards", 4)):
        for number, first in enumerate(range(0, 23, size)):
            with Shard() as shard:
                for feats in features[first : first + size]:
                    shard.add(str(int(feats.embeddings[0, 0])), feats)
                shard.save(root / name / f"features-{number:06d}.tar")
    return root


WHOLE = Counter((number, tuple(range(3 + 2 * number % 11))) for number in range(23))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than this machine has cores
@pytest.mark.parametrize("kind", ["files", "one", "shards"])
@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_each_sample_once_over_workers_and_ranks(places, kind, world_size, workers):
    parts = []
    for rank in range(world_size):
        dataset = ef.features.stream(places / kind, shuffle=5, rank=rank, world_size=world_size)
        parts.append(Counter(told(sample) for sample in loader(dataset, workers)))
    assert sum(parts, Counter()) == WHOLE
    if kind != "files":
        assert all(len(part) >= 23 // world_size - 4 for part in parts)  # a shard or two are shared, too


@pytest.mark.parametrize(("sources", "consumers"), [(0, 3), (1, 5), (5, 5), (7, 3), (3, 7), (40, 7), (2, 6)])
def test_deal_is_exact_and_even(sources, consumers):
    names = [str(number) for number in range(sources)]
    taken = [(source, share) for consumer in range(consumers) for source, share in deal(names, consumer, consumers)]
    for name in names:
        shares = [share for source, share in taken if source == name]
        assert sorted(shares) == [(turn, len(shares)) for turn in range(len(shares))]
    loads = [sum(1 / of for _, (_, of) in deal(names, consumer, consumers)) for consumer in range(consumers)]
    assert sum(loads) == pytest.approx(sources)
    assert not sources or max(loads) - min(loads) < 1


def as_rank(places, out, before):
    """A rank of a real process group, with workers of its own."""
    import torch.distributed as dist

    place = {"rank": int(os.environ["RANK"]), "world_size": int(os.environ["WORLD_SIZE"])}
    if before:  # the group is all that knows of ranks, and begins after the stream was made
        del os.environ["RANK"], os.environ["WORLD_SIZE"]
    dataset = stream(places / "shards", window=2.0, shuffle=8, seed=3)
    if before:
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{os.environ['MASTER_PORT']}", **place)
    seen = [told(sample) for sample in loader(dataset, 2 - before, context="spawn" if before else "fork")]
    Path(out, f"{place['rank']}.pickle").write_bytes(pickle.dumps(seen))
    if before:
        dist.destroy_process_group()


@pytest.mark.parametrize("before", [False, True], ids=["environment", "process group and spawn"])
def test_each_sample_once_over_processes(places, tmp_path, forks, before):
    assert end_of_ranks(start_ranks(forks, 2, as_rank, places, tmp_path, before)) == [0, 0]
    parts = [pickle.loads((tmp_path / f"{rank}.pickle").read_bytes()) for rank in range(2)]
    alone = Counter(told(sample) for sample in stream(places / "shards", window=2.0))
    assert Counter(itertools.chain(*parts)) == alone
    assert max(alone.values()) == 1
    assert all(parts)


# --- order -------------------------------------------------------------------------------------------------


def order(dataset, **options):
    return [told(sample) for sample in loader(dataset, **options)]


@pytest.mark.parametrize("workers", [0, 2])
def test_order_follows_from_seed_and_epoch(places, workers):
    def orders(seed):
        dataset, found = stream(places / "shards", window=1.5, seed=seed), []
        each = loader(dataset, workers, persistent_workers=workers > 0)  # one loader: workers that live on
        for epoch in (0, 1, 0):
            dataset.set_epoch(epoch)
            found.append([told(sample) for sample in each])
        return found

    first, again, other = orders(0), orders(0), orders(1)
    assert first == again
    assert first[0] == first[2] != first[1]
    assert first[0] != other[0]
    assert len({frozenset(Counter(each).items()) for each in (*first, *other)}) == 1


def test_several_epochs_in_one_iteration(places):
    once = stream(places / "files", shuffle=6)
    passes = []
    for epoch in range(3):
        once.set_epoch(epoch)
        passes.append(order(once))
    assert order(stream(places / "files", shuffle=6, epochs=3)) == passes[0] + passes[1] + passes[2]
    endless = stream(places / "files", shuffle=6, epochs=None)
    assert [told(sample) for sample in itertools.islice(endless, 69)] == passes[0] + passes[1] + passes[2]


def test_an_endless_stream_ends_where_a_worker_has_nothing(tmp_path):
    dataset = stream(make(1).save(tmp_path / "1.npz"), epochs=None, rank=1, world_size=2)
    assert list(dataset) == []
    paths = tars(tmp_path, 1, 1)
    for rank in (4, 5):  # the third video of a shard
        assert list(stream(paths, epochs=None, rank=rank, world_size=6)) == []
        assert list(stream(paths, epochs=None, rank=rank, world_size=6, shuffle=0)) == []


def tars(folder, *sizes):
    """Shards of so many videos; one without frames is in front of each."""
    paths = []
    for number, size in enumerate(sizes):
        with Shard() as shard:
            shard.add("nothing", make(99, 0))
            for video in range(size):
                shard.add(str(video), make(10 * number + video, 2))
            paths.append(shard.save(folder / f"features-{number:06d}.tar"))
    return paths


@pytest.mark.parametrize("sizes", [(1, 9), (0, 4, 1), (3,)])
@pytest.mark.parametrize("world_size", [2, 5, 7])
def test_a_share_that_is_empty_in_one_epoch_is_not_in_all(tmp_path, sizes, world_size):
    """However few the sources: over all ranks every epoch is whole, also with those that never end."""
    paths = tars(tmp_path, *sizes)
    videos = Counter({10 * number + video: 1 for number, size in enumerate(sizes) for video in range(size)})
    one_by_one = []
    for epoch in range(5):
        parts = []
        for rank in range(world_size):
            dataset = stream(paths, rank=rank, world_size=world_size)
            dataset.set_epoch(epoch)
            parts.append([told(sample)[0] for sample in dataset])
        one_by_one.append(parts)
        assert Counter(itertools.chain(*parts)) == videos
    for rank in range(world_size):
        expected = list(itertools.chain(*(parts[rank] for parts in one_by_one)))
        assert [told(each)[0] for each in stream(paths, rank=rank, world_size=world_size, epochs=5)] == expected
        endless = stream(paths, rank=rank, world_size=world_size, epochs=None)
        found = [told(each)[0] for each in itertools.islice(endless, len(expected))]
        assert found == expected


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_with_shares_that_come_and_go(tmp_path):
    paths = tars(tmp_path, 1, 9)
    found = Counter(order(stream(paths, epochs=6), workers=4))
    assert set(found.values()) == {6}
    assert len(found) == 10
    endless = loader(stream(paths, epochs=None), workers=4)
    assert len({told(sample) for sample in itertools.islice(endless, 200)}) == 10


def test_what_is_damaged_for_good_does_not_keep_an_empty_worker(tmp_path):
    """It is passed over again and again, and the worker that has nothing else must end all the same."""
    good, cut = tars(tmp_path, 1, 1)
    cut.write_bytes(cut.read_bytes()[:2000])
    dataset = stream([good, cut], epochs=None, on_error="skip", rank=5, world_size=6)
    with pytest.warns(UserWarning, match="passed over"):
        assert list(dataset) == []


def test_without_shuffling_the_order_is_that_of_the_paths(places):
    assert order(stream(places / "files", shuffle=0)) == list(WHOLE)
    paths = [places / "files" / "04.npz", places / "files" / "02.h5"]
    assert [number for number, _ in order(stream(paths, shuffle=0))] == [4, 2]
    assert [number for number, _ in order(stream(places / "shards", shuffle=0))] == list(range(23))


def test_a_long_video_does_not_fill_batches(tmp_path):
    paths = [make(number, frames=400).save(tmp_path / f"{number}.npz") for number in range(4)]
    numbers = [number for number, _ in order(stream(paths, window=1.0, shuffle=20, at_once=4))]
    assert len(numbers) == 800
    assert min(len(set(numbers[first : first + 40])) for first in range(0, 400, 40)) >= 3


# --- bounds ------------------------------------------------------------------------------------------------


def test_nothing_comes_out_before_its_time(tmp_path):
    path = make(1, frames=600).save(tmp_path / "1.npz")
    for held in (1, 16, 100):
        places = [rows[0] for _, rows in order(stream(path, window=0.5, shuffle=held))]
        ahead = [came - out for out, came in enumerate(places)]
        assert max(ahead) == pytest.approx(held, abs=1) or held == 1
        assert max(ahead) <= held
        assert sorted(places) == list(range(600))


def test_memory_is_that_of_the_buffer(tmp_path):
    size = 2000 * 256 * 4
    for number in range(24):
        rows = np.full((2000, 256), number, np.float32)
        make(number, 2000, embeddings=rows).save(tmp_path / f"{number}.npz")
    for options, most in (
        ({"shuffle": 50, "window": 5.0, "at_once": 1}, 50 * 10 * 264 * 4),
        ({"shuffle": 1000, "buffer_bytes": 3 * size}, 3 * size),
        ({"shuffle": 3}, 3 * size),
    ):
        dataset = stream(tmp_path, **options)
        tracemalloc.start()
        count = sum(1 for _ in dataset)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count == (24 * 200 if "window" in options else 24)
        assert peak < most + (4 if "at_once" not in options else 1) * 4.5 * size  # a file is read, then taken apart


# --- windows -----------------------------------------------------------------------------------------------


def naive_windows(times, end, seconds, stride):
    """Every k from the first frame's on, by going through all frames; the last is the first that reaches the end."""
    found, number = [], 0
    while (number + 1) * stride <= times[0] + 1e-6:
        number += 1
    while number * stride < end - 1e-6:
        start = number * stride
        rows = [row for row, time in enumerate(times) if start - 1e-6 <= time < start + seconds - 1e-6]
        if rows:
            found.append((start, min(start + seconds, end), rows[0], rows[-1] + 1))
        if start + seconds >= end - 1e-6:
            break
        number += 1
    return found


def test_windows_equal_a_naive_loop():
    rng = np.random.default_rng(0)
    for _ in range(300):
        frames = int(rng.integers(1, 40))
        fps = float(rng.choice([0.5, 1, 3, 25, 30000 / 1001]))
        steps = rng.choice([1, 1, 1, 2, 50], frames)
        times = (np.cumsum(steps) + float(rng.choice([-1, 0, 7, 200]))) / fps
        feats = make(0, frames, times=times, video={}, settings={"fps": fps})
        seconds, stride = (float(rng.choice([0.1, 1 / 3, 1, 2, 7.5, 60])) for _ in range(2))
        expected = naive_windows(times.tolist(), float(feats.frame_ends[-1]), seconds, stride)
        found = list(windows(feats, seconds, stride))
        np.testing.assert_allclose(np.array(found).reshape(-1, 4), np.array(expected).reshape(-1, 4), atol=1e-9)
        covered = {row for _, _, first, past in expected for row in range(first, past)}
        assert stride > seconds or covered == set(range(frames))


def test_windows_of_a_known_video(tmp_path):
    path = make(5, frames=9, times=np.arange(9) / 2, video={"path": "v5.mp4", "duration_seconds": 4.5}).save(
        tmp_path / "5.npz"
    )
    found = [(s["start"], s["end"], s["times"].tolist()) for s in stream(path, window=2.0, stride=1.0, shuffle=0)]
    assert found == [
        (0.0, 2.0, [0.0, 0.5, 1.0, 1.5]),
        (1.0, 3.0, [1.0, 1.5, 2.0, 2.5]),
        (2.0, 4.0, [2.0, 2.5, 3.0, 3.5]),
        (3.0, 4.5, [3.0, 3.5, 4.0]),
    ]


def test_a_gap_of_years_takes_no_time():
    times = np.array([0.0, 1.0, 1e9])
    feats = make(1, 3, times=times, video={})
    assert [first for _, _, first, _ in windows(feats, 1.0, 0.5)] == [0, 1, 1, 2, 2]


# --- samples and batches -----------------------------------------------------------------------------------


def test_samples_hold_what_was_stored(tmp_path):
    rng = np.random.default_rng(0)
    feats = make(3, 7, embeddings=rng.normal(size=(7, DIM)).astype(np.float16), end_seconds=9.0)
    path = feats.save(tmp_path / "3.npz")
    (sample,) = stream(path)
    assert sample.keys() == {"embeddings", "times", "roles", "video", "start", "end"}
    assert (sample["roles"], sample["video"], sample["start"], sample["end"]) == ("IPPIPPI", "v3.mp4", 0.01, 9.0)
    assert sample["embeddings"].dtype == torch.float32
    np.testing.assert_array_equal(sample["embeddings"].numpy(), feats.embeddings)
    assert sample["times"].dtype == torch.float64
    np.testing.assert_array_equal(sample["times"].numpy(), feats.times)
    (sample,) = stream(path, dtype="bfloat16", header=True)
    assert sample["embeddings"].dtype == torch.bfloat16
    assert sample["header"] == {
        "video": feats.video, "model": feats.model, "settings": feats.settings, "end_seconds": 9.0
    }  # fmt: skip
    assert stream(path).dim == DIM


def test_videos_without_frames_give_no_sample(tmp_path):
    make(1, 0).save(tmp_path / "1.npz")
    make(2, 2).save(tmp_path / "2.npz")
    assert order(stream(tmp_path)) == [(2, (0, 1))]
    assert order(stream(tmp_path, window=1.0)) == [(2, (0, 1))]


def test_batches_are_padded(places):
    batches = list(DataLoader(stream(places / "one", shuffle=0), batch_size=8, collate_fn=collate))
    assert [len(batch["video"]) for batch in batches] == [8, 8, 7]
    for batch in batches:
        size, longest = len(batch["video"]), int(batch["lengths"].max())
        assert batch["embeddings"].shape == (size, longest, DIM)
        assert batch["times"].shape == batch["mask"].shape == (size, longest)
        assert torch.equal(batch["mask"].sum(1), batch["lengths"])
        for row, (video, length, roles) in enumerate(
            zip(batch["video"], batch["lengths"], batch["roles"], strict=True)
        ):
            assert len(roles) == length
            assert batch["mask"][row, :length].all()
            assert torch.equal(batch["embeddings"][row, :length, 1], torch.arange(float(length)))
            assert (batch["embeddings"][row, :length, 0] == int(re.findall(r"\d+", video)[0])).all()
            assert not batch["embeddings"][row, length:].any()
            assert not batch["times"][row, length:].any()
    with pytest.raises(ValueError, match="at least one sample"):
        collate([])


def test_the_example_of_the_docs_runs(places, tmp_path, monkeypatch):
    text = (Path(__file__).parents[1] / "docs" / "features.md").read_text(encoding="utf-8")
    example = text.partition("<!-- example:stream -->\n```python\n")[2].partition("```")[0]
    (tmp_path / "features").symlink_to(places / "files")
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(example, found)
    assert found["loss"] > 0
    assert found["batch"]["embeddings"].shape[2] == DIM


# --- object stores -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bucket(places):
    """The same videos in a bucket of a real S3 server."""
    pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    with s3_server() as client:
        client.create_bucket(Bucket="bucket")
        for path in places.rglob("*.*"):
            client.upload_file(str(path), "bucket", f"in/{path.relative_to(places)}")
        client.put_object(Bucket="bucket", Key="in/files/.everyframe/parts/x.npz", Body=b"of a run that goes on")
        client.put_object(Bucket="bucket", Key="in/notes/notes.txt", Body=b"no features")
        yield client


@pytest.mark.parametrize(
    "path",
    ["files", "files/", "shards", "shards/*.tar", "shards/features-{000000..000005}.tar", "one/features-000000.tar"],
)
def test_object_stores_give_the_same(bucket, path):
    dataset = stream(f"s3://bucket/in/{path}", shuffle=4)
    assert all(source.startswith("s3://bucket/in/") for source in dataset.sources)
    assert Counter(order(dataset)) == WHOLE


def test_workers_read_object_stores(bucket):
    dataset = stream("s3://bucket/in/shards", shuffle=4)  # opens the first shard here, before workers fork
    assert Counter(order(dataset, workers=2)) == WHOLE


def test_an_object_store_is_exported(bucket, tmp_path):
    made = export_shards(["s3://bucket/in/files/", "s3://bucket/in/gone.npz"], tmp_path)
    assert made.videos == 23
    assert Counter(order(stream(tmp_path))) == WHOLE
    assert read_index(made.shards[0])[1].name == "01"
    assert [name for name, _ in made.failures] == ["s3://bucket/in/gone.npz"]


@pytest.mark.parametrize("given", ["s3://bucket/tree", "s3a://bucket/tree/", "s3://bucket/tree/*/*.npz"])
def test_folders_on_an_object_store_are_kept_in_names(bucket, tmp_path, given):
    for folder in ("p", "q"):
        bucket.upload_file(str(make(ord(folder)).save(tmp_path / "same.npz")), "bucket", f"tree/{folder}/same.npz")
    made = export_shards(given, tmp_path / "out")
    assert made.failures == ()
    assert [video.name for video in read_index(made.shards[0])] == ["p/same", "q/same"]


def test_an_object_by_two_spellings_is_one(bucket):
    paths = ["s3://bucket/in/shards/", "s3a://bucket/in/shards/", "s3a://bucket/in/shards/features-000002.tar"]
    assert stream(paths).sources == stream(paths[0]).sources
    assert all(source.startswith("s3a://") for source in stream(paths[1]).sources)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("bucket/in/gone.npz", r"s3://bucket/in/gone\.npz: no such file"),
        ("bucket/in/gone", "holds no features"),
        ("bucket/in/notes", "holds no features"),
        ("gone/in/a.tar", "s3://gone/in/a.tar: no such"),
        ("gone/in/*.tar", "gone"),
        ("bucket/in", "holds both shards"),
        ("bucket/in/a.tar.gz", "is compressed"),
    ],
)
def test_what_an_object_store_lacks(bucket, path, message):
    with pytest.raises(FeaturesError, match=message):
        stream(f"s3://{path}")


def test_a_damaged_object_is_named_by_its_address(bucket, places):
    data = (places / "one" / "features-000000.tar").read_bytes()
    bucket.put_object(Bucket="bucket", Key="cut.tar", Body=data[:9000])
    with pytest.raises(FeaturesError, match=r"s3://bucket/cut\.tar is cut short"):
        order(stream("s3://bucket/cut.tar"))
    bucket.put_object(Bucket="bucket", Key="cut.npz", Body=b"PK")
    with pytest.raises(FeaturesError, match=r"^s3://bucket/cut\.npz is damaged"):
        stream("s3://bucket/cut.npz")


# --- bad input ---------------------------------------------------------------------------------------------


def test_mixed_features_are_refused_by_name(places, tmp_path):
    other = make(40, model={"id": "other", "weights_sha256": "cd"}).save(tmp_path / "other.npz")
    clips = make(41, settings={"fps": 2.0, "clip_seconds": 3.0}).save(tmp_path / "clips.npz")
    with Shard() as shard:
        shard.add("one", make(1))
        shard.add("two", make(2, 3, embeddings=np.ones((3, DIM + 1), np.float32)))
        wide = shard.save(tmp_path / "wide.tar")
    for path, message in (
        (other, r"other\.npz: features of different origin .* model id is 'tiny' .* but 'other'"),
        (clips, r"clips\.npz: features of frames and of clips cannot be mixed"),
        (wide, r"wide\.tar#two: .* dim is 4"),
    ):
        for workers in (0, 1):
            with pytest.raises(FeaturesError, match=message):
                order(stream([places / "files", path], on_error="skip"), workers=workers)


def test_damage_raises_or_is_counted(places, tmp_path):
    broken = tmp_path / "broken.npz"
    broken.write_bytes(b"PK, but no more")
    cut = tmp_path / "cut.tar"
    cut.write_bytes((places / "one" / "features-000000.tar").read_bytes()[:20000])
    with pytest.raises(FeaturesError, match=r"broken\.npz is damaged"):
        stream([broken, places / "shards"])
    with pytest.raises(FeaturesError, match="no source can be read, the first because"):
        stream(broken, on_error="skip")
    with pytest.raises(FeaturesError, match=r"cut\.tar is cut short or damaged after \d+ videos"):
        order(stream([places / "shards", cut]), workers=1)
    dataset = stream([broken, places / "files", broken, cut], on_error="skip", shuffle=3)
    assert dataset.skipped == 0
    with pytest.warns(UserWarning) as caught:
        found = Counter(order(dataset))
    assert sorted(str(each.message).partition(" is ")[0] for each in caught) == [str(broken), str(cut)]
    assert dataset.skipped == 2
    assert set(found) == set(WHOLE)
    assert max(found.values()) == 2  # what came before the cut
    assert Counter(order(dataset, workers=2, worker_init_fn=quiet)) == found
    assert dataset.skipped == 4


class Finalised:
    """Garbage, as a loader that failed leaves it in its traceback, that tells in which processes it was collected."""

    def __init__(self, told):
        self.told, self.itself = told, self

    def __del__(self):
        with self.told.open("a") as file:
            print(os.getpid(), file=file)


def collect_first(samples):
    gc.collect()
    return samples


def test_a_worker_does_not_finalise_what_its_parent_left(places, tmp_path):
    told = tmp_path / "told.txt"
    gc.collect()
    gc.disable()
    try:
        Finalised(told)
        loader = DataLoader(stream(places / "files"), None, num_workers=2, collate_fn=collect_first)
        assert list(loader)
    finally:
        gc.enable()
    gc.collect()
    assert told.read_text().split() == [str(os.getpid())]


def quiet(worker):
    import warnings

    warnings.simplefilter("ignore")


def test_a_file_that_goes_away_while_streaming(tmp_path):
    for number in range(4):
        make(number).save(tmp_path / f"{number}.npz")
    dataset = stream(tmp_path, shuffle=0)
    (tmp_path / "2.npz").unlink()
    with pytest.raises(FeaturesError, match=r"2\.npz does not exist"):
        order(dataset)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window must be a positive number of seconds, got 0"),
        ({"window": float("nan")}, "window must be"),
        ({"window": 1, "stride": -1}, "stride must be a positive"),
        ({"stride": 1}, "stride has no meaning without window"),
        ({"shuffle": -1}, "shuffle must be a whole number of at least 0"),
        ({"shuffle": 2.5}, "shuffle must be a whole number"),
        ({"at_once": 0}, "at_once must be"),
        ({"epochs": 0}, "epochs must be"),
        ({"dtype": "float64"}, "dtype must be float32, float16 or bfloat16"),
        ({"on_error": "ignore"}, 'on_error must be "raise" or "skip"'),
        ({"rank": 1}, "belong together"),
        ({"rank": 2, "world_size": 2}, r"rank must be in \[0, world_size\)"),
    ],
)
def test_bad_arguments(places, options, message):
    with pytest.raises(ValueError, match=message):
        stream(places / "files", **options)
    with pytest.raises(ValueError, match="epoch must be 0 or more"):
        stream(places / "files").set_epoch(-1)


def test_no_paths_and_no_sources(tmp_path):
    with pytest.raises(FeaturesError, match="holds no features"):
        stream(tmp_path)
    with pytest.raises(FeaturesError, match="no paths"):
        stream([])


def test_by_turns_gives_everything():
    import random

    lists = [list(range(10 * number, 10 * number + number)) for number in range(6)]
    assert sorted(by_turns((iter(each) for each in lists), 3, random.Random(0))) == sorted(itertools.chain(*lists))
