"""Clips for training: which frames they hold, from files, shards and tables, and what is wrong with those."""

from __future__ import annotations

import io
import json
import math
import pickle
import tarfile
import warnings
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from everyframe.synthetic import synthesize
from everyframe.training.data import load_window, open_clips
from everyframe.training.shards import MemberFile, index_shard
from everyframe.training.tables import read_table
from everyframe.video import NoVideosError, VideoError, probe, sample_frames, write_video

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "videos"
FPS = 10


def write_numbered(path: Path, count: int, *, fps: float = FPS, options: dict[str, str] | None = None) -> Path:
    """A video whose frame k says k: its upper half is grey level 20 + 7 (k % 30), its lower half 20 + 7 (k // 30)."""
    frames = []
    for index in range(count):
        pixels = np.full((32, 32, 3), 20 + 7 * (index % 30), np.uint8)
        pixels[16:] = 20 + 7 * (index // 30)
        frames.append(pixels)
    write_video(path, frames, fps=fps, crf=1, keyframe_every=20, options={"preset": "ultrafast", **(options or {})})
    return path


def numbers(frames: np.ndarray) -> list[int]:
    upper, lower = (np.round((np.median(half, axis=(1, 2, 3)) - 20) / 7) for half in (frames[:, :14], frames[:, 18:]))
    return [int(number) for number in lower * 30 + upper]


def pack(path: Path, members: dict[str, bytes | Path], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            data = content.read_bytes() if isinstance(content, Path) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture(scope="module")
def long(tmp_path_factory) -> Path:
    """20 s at 10 frames per second."""
    return write_numbered(tmp_path_factory.mktemp("long") / "long.mp4", 200)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """a: 9 s, b: 5 s, sub/c: 6 s."""
    place = tmp_path_factory.mktemp("videos")
    (place / "sub").mkdir()
    write_numbered(place / "a.mp4", 90)
    write_numbered(place / "b.mp4", 50)
    write_numbered(place / "sub" / "c.mp4", 60)
    return place


def table(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


# ---------------------------------------------------------------------------------------------- which frames


def test_clips_follow_the_windows_of_a_long_video(long):
    clips = open_clips(long)
    assert len(clips) == 5
    assert not clips.captioned
    assert [clips.start(index) for index in range(5)] == pytest.approx([0, 4, 8, 12, 16])
    seen = set()
    for index in range(5):
        for seed in range(20):
            clip = clips.load(index, seed)
            assert clip.frames.shape == (4, 32, 32, 3)
            assert clip.frames.dtype == np.uint8
            assert clip.caption is None
            shown = numbers(clip.frames)
            assert np.diff(shown).tolist() == [FPS] * 3 or shown[-1] == 40 * index + 39  # the last serves what is left
            assert 40 * index <= shown[0]
            assert shown[-1] < 40 * (index + 1)
            assert clip.name == f"{long} at {shown[0] / FPS:.2f} s"
            seen.update(shown)
    assert len(seen) > 160  # over the seeds nearly all of the 200 frames: the windows leave no gaps


def test_remainder_widens_the_windows(folder):
    clips = open_clips(folder / "a.mp4")  # 9 s: two windows of 4.5 s
    assert [clips.start(index) for index in range(len(clips))] == pytest.approx([0, 4.5])
    first = [numbers(clips.load(1, seed).frames)[0] for seed in range(30)]
    assert min(first) >= 45
    assert max(first) >= 56
    clips = open_clips(folder / "a.mp4", frames=3, rate=2.0)
    assert len(clips) == 6
    assert np.diff(numbers(clips.load(3, 1).frames)).tolist() == [5, 5]


@pytest.mark.parametrize(("count", "steps"), [(34, {10}), (20, {5}), (8, {2}), (6, {1, 2}), (4, {1})])
def test_short_video_has_a_shorter_step(tmp_path, count, steps):
    clips = open_clips(write_numbered(tmp_path / "short.mp4", count))
    assert len(clips) == 1
    for seed in range(8):
        shown = numbers(clips.load(0, seed).frames)
        assert set(np.diff(shown)) <= steps
        assert shown[-1] < count


def test_sparse_video_has_a_longer_step(tmp_path):
    path = write_numbered(tmp_path / "slides.mp4", 10, fps=0.5)
    clips = open_clips(path)
    assert all(np.diff(numbers(clips.load(0, seed).frames)).tolist() == [1, 1, 1] for seed in range(5))


def test_irregular_times_still_fill_a_clip(tmp_path):
    """Ten frames within one second, a pause of eight, ten frames more: no target falls into the pause."""
    path = tmp_path / "pause.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height = stream.width = 32
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for place, when in enumerate([*range(0, 1000, 100), *range(9000, 10000, 100)]):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 20 + 7 * place, np.uint8), format="rgb24")
            frame.pts, frame.time_base = when, stream.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    clips = open_clips(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for index in range(len(clips)):
            assert clips.load(index, 0).frames.shape[0] == 4


@pytest.mark.parametrize(("suffix", "codec", "sound"), [("flv", "flv", "libmp3lame"), ("h264", "libx264", None)])
def test_length_that_the_header_does_not_tell(tmp_path, suffix, codec, sound):
    """Six seconds of picture: under 25 s of sound, which is all the header counts, and as a raw stream."""
    path = tmp_path / f"v.{suffix}"
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=10)
        video.width = video.height = 32
        video.pix_fmt = "yuv420p"
        audio = container.add_stream(sound, rate=44100) if sound else None
        for index in range(60):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 20 + 3 * index, np.uint8), format="rgb24")
            frame.pts = index
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if audio is not None:
            size = audio.codec_context.frame_size
            for index in range(25 * 44100 // size):
                frame = av.AudioFrame.from_ndarray(np.zeros((2, size), np.float32), format="fltp", layout="stereo")
                frame.sample_rate, frame.pts = 44100, index * size
                container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
    packed = pack(tmp_path / "s.tar", {path.name: path})
    for clips in (open_clips(path), open_clips(packed)):
        assert len(clips) == 1
        for seed in range(6):
            levels = clips.load(0, seed).frames[:, 8, 8].mean(axis=1)
            assert (np.diff(levels) > 3).all()


def test_damaged_end_still_gives_clips(tmp_path, long):
    """The header says 20 s; the pictures of the last third are zeros."""
    data = bytearray(long.read_bytes())
    begin, end = data.index(b"mdat"), data.index(b"moov") - 4
    middle = begin + (end - begin) * 2 // 3
    data[middle:end] = bytes(end - middle)
    clips = open_clips(pack(tmp_path / "s.tar", {"key.mp4": bytes(data)}))
    for seed in range(12):
        frames = clips.load(0, seed).frames
        assert len(frames) == 4
        assert max(numbers(frames)) < 150


def test_same_index_and_seed_give_the_same_clip(folder):
    clips, again = open_clips(folder), open_clips(folder)
    other = pickle.loads(pickle.dumps(clips))
    assert clips.fingerprint == again.fingerprint == other.fingerprint
    assert len(clips.fingerprint) == 16
    int(clips.fingerprint, 16)
    for index in range(len(clips)):
        frames = clips.load(index, 5).frames
        assert np.array_equal(frames, again.load(index, 5).frames)
        assert np.array_equal(frames, other.load(index, 5).frames)
    assert len({clips.load(0, seed).name for seed in range(8)}) > 3
    with pytest.raises(IndexError, match="clips, counted from 0; got index"):
        clips.load(len(clips), 0)


def test_fingerprint_tells_data_apart_and_not_its_folder(tmp_path, folder):
    captions = table(tmp_path / "c.csv", "video,caption", "a,one", "b,two", "c,three")
    others = table(tmp_path / "d.csv", "video,caption", "a,one", "b,two", "c,four")
    kinds = [
        open_clips(folder),
        open_clips(folder, frames=3),
        open_clips(folder, rate=2.0),
        open_clips([folder / "a.mp4", folder / "b.mp4"]),
        open_clips(folder, captions),
        open_clips(folder, others),
    ]
    assert len({clips.fingerprint for clips in kinds}) == len(kinds)
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("a.mp4", "b.mp4"):
        (moved / name).write_bytes((folder / name).read_bytes())
    assert open_clips(moved).fingerprint == kinds[3].fingerprint


# ------------------------------------------------------------------------------------------------- windows


def test_window_gives_consecutive_samples(long):
    frames, motion, times = load_window(long, start=6.0, seconds=3.0, fps=5.0, motion=True)
    assert numbers(frames) == list(range(60, 90, 2))
    assert times.dtype == np.float64
    assert times == pytest.approx(np.arange(6, 9, 0.2))
    assert len(motion) == 15
    assert {(each.shape, each.dtype) for each in motion} == {((4, 4), np.dtype(np.float32))}
    assert not motion[0].any()
    same = list(sample_frames(long, 5.0, start=6.0, end=9.0, motion=True))
    assert all(np.array_equal(a, b.motion) for a, b in zip(motion[1:], same[1:], strict=True))
    clips = open_clips(long)
    again, none, when = clips.window(2, seconds=1.0, fps=5.0, motion=False)
    assert none is None
    assert numbers(again) == [80, 82, 84, 86, 88]
    assert when[0] == 8.0
    assert len(load_window(long, start=19.0, seconds=60.0, fps=2.0, motion=False)[2]) == 2
    with pytest.raises(VideoError, match="no frame from 30 s"):
        load_window(long, start=30.0, seconds=1.0, fps=2.0, motion=False)


# -------------------------------------------------------------------------------------------------- shards


@pytest.mark.parametrize("flags", ["", "faststart"])
def test_member_of_a_tar_reads_as_its_file(tmp_path, long, flags):
    """mp4 with its index at the end (as written) and in front."""
    video = write_numbered(tmp_path / "v.mp4", 60)
    if flags:
        video = tmp_path / "front.mp4"
        with av.open(str(tmp_path / "v.mp4")) as old, av.open(str(video), "w", options={"movflags": flags}) as new:
            stream = new.add_stream_from_template(old.streams.video[0])
            for packet in old.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    new.mux(packet)
    data = video.read_bytes()
    assert (data.index(b"moov") < data.index(b"mdat")) == bool(flags)
    shard = pack(tmp_path / "s.tar", {"x/0.mp4": long, "x/1.mp4": video, "x/1.txt": b"hello"})
    (_, (name, offset, size, caption)), damage = index_shard(shard)
    assert (name, caption, damage) == ("x/1.mp4", "hello", None)
    with pickle.loads(pickle.dumps(MemberFile(shard, offset, size, "s.tar/x/1.mp4"))) as file:
        assert file.read() == data
        assert (file.seek(-10, 2), file.read(100), file.read(1)) == (size - 10, data[-10:], b"")
        assert file.seek(5) == file.tell() == 5
        assert file.read(3) == data[5:8]
        with pytest.raises(ValueError, match="before the beginning"):
            file.seek(-1)
        file.seek(0)
        assert probe(file).duration_seconds == 6.0
        frames, _, times = load_window(file, start=3.0, seconds=2.0, fps=5.0, motion=True)
    assert numbers(frames) == list(range(30, 50, 2))
    assert times[-1] == pytest.approx(4.8)


def test_shards_give_one_captioned_clip_per_video(tmp_path, folder):
    a, b, c = folder / "a.mp4", folder / "b.mp4", folder / "sub" / "c.mp4"
    (tmp_path / "shards").mkdir()
    first = pack(
        tmp_path / "shards" / "000.tar",
        {
            "1.mp4": a,
            "1.txt": "\ufeff a  dog\nruns ".encode(),
            "2.mp4": b,
            "2.json": json.dumps({"caption": "a cat", "text": "no"}).encode(),
            "._2.mp4": b"resource fork",
        },
    )
    pack(
        tmp_path / "shards" / "001.tar",
        {"x/3.txt": b"a bird", "x/3.json": b'{"text": "not this"}', "x/3.video.mp4": c, "x/notes.md": b"?"},
    )
    many = open_clips(tmp_path / "shards")
    assert many.captioned
    assert [many.video(index) for index in range(3)] == [
        f"{first}/1.mp4",
        f"{first}/2.mp4",
        str(tmp_path / "shards" / "001.tar" / "x" / "3.video.mp4"),
    ]
    assert [many.load(index, 0).caption for index in range(3)] == ["a dog runs", "a cat", "a bird"]
    assert {many.start(index) for index in range(3)} == {0.0}
    firsts = [numbers(many.load(0, seed).frames)[0] for seed in range(40)]
    assert min(firsts) <= 5
    assert max(firsts) >= 55  # anywhere in the 9 s that leaves room for 3 s more
    place = str(tmp_path / "shards")
    for named in (f"{place}/{{000..001}}.tar", f"{place}/*.tar", [first, f"{place}/{{001,000}}.tar"]):
        assert open_clips(named).fingerprint == many.fingerprint
    other = pickle.loads(pickle.dumps(many))
    assert np.array_equal(other.load(2, 3).frames, many.load(2, 3).frames)


def test_a_dot_in_a_name_gives_no_caption_to_another_video(tmp_path, folder):
    a = folder / "a.mp4"
    members = {"clip_12.5.mp4": a, "clip_12.7.mp4": a, "clip_12.7.txt": b"seven", "8.raw.mp4": a, "8.txt": b"eight"}
    found, _ = index_shard(pack(tmp_path / "s.tar", members))
    assert {name: caption for name, _, _, caption in found} == {
        "clip_12.5.mp4": "",
        "clip_12.7.mp4": "seven",
        "8.raw.mp4": "eight",
    }
    two = {"9.mp4": a, "9.1.txt": b"one", "9.2.txt": b"two"}
    assert index_shard(pack(tmp_path / "t.tar", two))[0][0][3] == ""


def test_shards_without_some_or_any_captions(tmp_path, folder):
    a = folder / "a.mp4"
    members = {"1.mp4": a, "1.txt": b"x", "2.mp4": a, "2.txt": b" \n", "3.mp4": a, "3.json": b"{"}
    message = r"captions are missing for 2 of 3 videos \(first: 2.mp4\): these are left out"
    some = pack(tmp_path / "some.tar", members)
    with pytest.warns(UserWarning, match=message):
        clips = open_clips(some)
    assert (len(clips), clips.captioned, clips.load(0, 0).caption) == (1, True, "x")
    none = open_clips(pack(tmp_path / "none.tar", {"1.mp4": a, "1.json": b'{"width": 32}'}))
    assert (len(none), none.captioned, none.load(0, 0).caption) == (1, False, None)


def test_captions_of_a_table_apply_to_shards(tmp_path, folder):
    shard = pack(tmp_path / "s.tar", {"k/1.mp4": folder / "a.mp4", "k/1.txt": b"old", "k/2.mp4": folder / "b.mp4"})
    clips = open_clips(shard, table(tmp_path / "c.tsv", "vid\tquery", "k/2\ttwo", "1.mp4\tone"))
    assert [clips.load(index, 0).caption for index in range(2)] == ["two", "one"]


def test_shards_that_cannot_be_used(tmp_path, folder):
    a = folder / "a.mp4"
    good = pack(tmp_path / "good.tar", {"1.mp4": a, "2.mp4": a})
    cut = tmp_path / "cut.tar"
    cut.write_bytes(good.read_bytes()[: a.stat().st_size + 5000])
    packed = pack(tmp_path / "packed.tar.gz", {"1.mp4": a}, mode="w:gz")
    secret = tmp_path / "secret.tar"
    secret.write_bytes(packed.read_bytes())
    text = pack(tmp_path / "text.tar", {"1.txt": b"hello"})
    junk = tmp_path / "junk.tar"
    junk.write_bytes(b"no tar at all" * 100)
    empty = tmp_path / "empty.tar"
    empty.write_bytes(b"")
    for path, message in [
        (cut, "cut.tar: this tar is cut short or damaged after 1 videos"),
        (packed, "packed.tar.gz: is compressed"),
        (secret, "secret.tar: is compressed with gzip"),
        (text, "text.tar: this tar holds no video"),
        (junk, "junk.tar: not a tar file"),
        (empty, "empty.tar: not a tar file"),
        (tmp_path / "{1..2}.tar", "1.tar: of the range in braces, there is no such file"),
        (tmp_path / "gone.tar", "gone.tar: no such file"),
    ]:
        with pytest.raises(VideoError, match=message):
            open_clips(path)
    with pytest.raises(ValueError, match=r"\{2\.\.1\}\.tar counts backwards"):
        open_clips(tmp_path / "{2..1}.tar")
    failures: list[VideoError] = []
    clips = open_clips([cut, secret, text, good], failures=failures)
    assert [clips.video(index).removeprefix(str(tmp_path)) for index in range(len(clips))] == [
        "/cut.tar/1.mp4",
        "/good.tar/1.mp4",
        "/good.tar/2.mp4",
    ]
    assert len(failures) == 3
    with pytest.raises(VideoError, match=r"none of the 2 videos and places can be used; the first: .*secret"):
        open_clips([secret, text], failures=[])
    with pytest.raises(ValueError, match="videos mixes tar files"):
        open_clips([good, a])
    (tmp_path / "both").mkdir()
    (tmp_path / "both" / "a.mp4").write_bytes(a.read_bytes())
    (tmp_path / "both" / "a.tar").write_bytes(good.read_bytes())
    with pytest.raises(ValueError, match="holds both tar files and videos"):
        open_clips(tmp_path / "both")
    good.unlink()
    with pytest.raises(VideoError, match=r"good.tar/1.mp4: cannot be read"):
        clips.load(1, 0)


def test_member_that_is_no_video_raises_when_loaded(tmp_path):
    clips = open_clips(pack(tmp_path / "s.tar", {"1.mp4": b"junk" * 100}))
    with pytest.raises(VideoError, match=r"s.tar/1.mp4: not a video"):
        clips.load(0, 0)


# -------------------------------------------------------------------------------------------------- tables


def test_table_rows_are_clips(tmp_path, folder):
    captions = table(
        tmp_path / "captions.csv",
        "Path,start,end,Caption",
        'a.mp4,2,6,"one, with a comma"',
        f"{folder}/sub/c.mp4,,,two",
        "sub/c,1.5,,three",
        "a,0,0.8,four",
        "b,,,five",
    )
    clips = open_clips(folder, captions)
    assert clips.captioned
    assert [clips.load(index, 1).caption for index in range(5)] == ["one, with a comma", "two", "three", "four", "five"]
    assert [Path(clips.video(index)).name for index in range(5)] == ["a.mp4", "c.mp4", "c.mp4", "a.mp4", "b.mp4"]
    assert [clips.start(index) for index in range(5)] == [2.0, 0.0, 1.5, 0.0, 0.0]
    assert [clips.end(index) for index in range(5)] == [6.0, math.inf, math.inf, 0.8, math.inf]
    numbered = [clips.video_number(index) for index in range(5)]
    assert numbered[0] == numbered[3] and numbered[1] == numbered[2] and len(set(numbered)) == 3
    for index, low, high in [(0, 20, 60), (2, 15, 60), (3, 0, 8)]:
        for seed in range(8):
            shown = numbers(clips.load(index, seed).frames)
            assert low <= shown[0] < shown[-1] < high
    assert len(set(np.diff(numbers(clips.load(3, 0).frames)))) <= 2


def test_table_kinds_hold_the_same_rows(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [
        {"vid": "a", "sentence": "é one", "start": 1.0, "end": 2.5},
        {"vid": "b", "sentence": "two", "start": None, "end": None},
    ]
    parquet.write_table(pyarrow.Table.from_pylist([{**row, "more": 1} for row in rows]), tmp_path / "t.parquet")
    table(tmp_path / "t.csv", "vid,sentence,start,end", "a,é one,1.0,2.5", "b,two,,")
    table(tmp_path / "t.tsv", "sentence\tvid\tstart\tend", "é one\ta\t1.0\t2.5", "two\tb\t\t")
    table(tmp_path / "t.jsonl", *map(json.dumps, rows))
    for suffix in ("parquet", "csv", "tsv", "jsonl"):
        assert str(list(read_table(tmp_path / f"t.{suffix}"))) == str(
            [("a", "é one", 1.0, 2.5), ("b", "two", 0.0, float("nan"))]
        )
    lighthouse = {"qid": 3, "query": "q", "vid": "v", "duration": 9, "relevant_windows": [[0, 2], [4, 6.5]]}
    table(tmp_path / "l.jsonl", json.dumps(lighthouse), "", json.dumps({"video": "w", "caption": ["x", "y"]}))
    assert [row[:3] for row in read_table(tmp_path / "l.jsonl")] == [
        ("v", "q", 0.0),
        ("v", "q", 4.0),
        ("w", "x", 0.0),
        ("w", "y", 0.0),
    ]
    webvid = table(tmp_path / "w.csv", "videoid,contentUrl,duration,page_dir,name", "12,https://x,PT00H,1_5,A man runs")
    assert [row[:2] for row in read_table(webvid)] == [("12", "A man runs")]


def test_annotations_of_synthetic_videos_are_a_table(tmp_path):
    worlds = list(synthesize(tmp_path, videos=2, seconds=8, seed=3, size=(64, 48)))
    events = [(world.name, event) for world in worlds for event in world.events]
    clips = open_clips(tmp_path, tmp_path / "annotations.jsonl")
    assert len(clips) == len(events)
    for index, (name, event) in enumerate(events):
        clip = clips.load(index, 0)
        second = float(clip.name.split()[-2])
        assert clip.caption == event.caption
        assert clips.video(index) == str(tmp_path / f"{name}.mp4")
        assert event.start - 0.01 <= second < event.end


def test_table_warns_once_of_each_kind_of_gap(tmp_path, folder):
    captions = table(tmp_path / "c.csv", "video,text", "a,one", "b,  ", "nope,three", "c,", "nix.mp4,four")
    with pytest.warns(UserWarning) as caught:
        clips = open_clips(folder, captions)
    assert sorted(str(each.message) for each in caught) == [
        f"{captions}: 2 of 5 rows name videos that are not there (first: 'nope'): these are left out",
        "captions are missing for 2 of 3 videos (first: b.mp4): these are left out",
    ]
    assert {each.filename for each in caught} == {__file__}
    assert [clips.load(index, 0).caption for index in range(len(clips))] == ["one"]


def test_nan_is_blank_in_start_and_end(tmp_path):
    path = table(tmp_path / "c.csv", "video,caption,start,end", "a,x,nan,NaN", "nan,y,1,nan")
    assert [str(row) for row in read_table(path)] == ["('a', 'x', 0.0, nan)", "('nan', 'y', 1.0, nan)"]
    path = table(tmp_path / "c.jsonl", '{"video": "a", "caption": "x", "start": NaN, "end": 2}')
    assert list(read_table(path)) == [("a", "x", 0.0, 2.0)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.csv", "video,caption\nx,one\ny.mp4,two\n", "c.csv: names no video that is there: it says 'x', 'y.mp4';"),
        ("c.csv", "video,caption\nelsewhere/a.mp4,one\n/abs/b.mp4,two\n", "it says 'elsewhere/a.mp4', '/abs/b.mp4'"),
        ("c.csv", "video,caption\na,\nb, \n", "c.csv: has no caption for any of the 3 videos"),
        ("c.csv", "clip,caption\na,x\n", r"no column names the video; call it .* or vid \(found: caption, clip\)"),
        ("c.csv", "video,title\na,x\n", "no column names the caption; call it caption, text"),
        ("c.csv", "", "c.csv: holds no rows of captions"),
        ("c.csv", "video,caption\n", "c.csv: holds no rows of captions"),
        ("c.csv", "video,caption,start,end\na,x,5,2\n", "c.csv, row 1: start and end must be seconds"),
        ("c.csv", "video,caption,start\na,x,soon\n", "row 1: start and end must be seconds"),
        ("c.csv", b"video,caption\na,caf\xe9\n", "cannot be read as a table in UTF-8"),
        ("c.jsonl", '{"video": "a", "caption": "x"}\n{oops\n', "c.jsonl, row 2: is not JSON"),
        ("c.jsonl", "[1]\n", "row 1: must be a JSON object, got list"),
        ("c.jsonl", '{"vid": "a", "query": "x", "relevant_windows": [3]}\n', "row 1: start and end must be"),
        ("c.parquet", "junk", "c.parquet: not a readable Parquet file"),
        ("c.xlsx", "junk", "c.xlsx: captions must be a .csv, .tsv, .jsonl or .parquet file"),
        ("c.csv", None, "c.csv: no such file of captions"),
    ],
)  # fmt: skip
def test_table_that_cannot_be_used_raises(tmp_path, folder, name, content, message):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        open_clips(folder, tmp_path / name)


def test_ambiguous_name_raises_and_a_path_settles_it(tmp_path, folder):
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "0.mp4").write_bytes((folder / "b.mp4").read_bytes())
    with pytest.raises(ValueError, match=r"'0' may mean .*test/0.mp4 or .*train/0.mp4; give more of the path"):
        open_clips(tmp_path, table(tmp_path / "c.csv", "video,caption", "0,x"))
    clips = open_clips(tmp_path, table(tmp_path / "c.csv", "video,caption", "train/0.mp4,x", "./test/0,y"))
    assert [Path(clips.video(index)).parent.name for index in range(2)] == ["train", "test"]


# ------------------------------------------------------------------------------------------------- bad input


def test_unusable_videos_are_reported_and_the_rest_goes_on(tmp_path, folder):
    (tmp_path / "junk.mp4").write_bytes(b"junk" * 50)
    (tmp_path / "good.mp4").write_bytes((folder / "b.mp4").read_bytes())
    write_numbered(tmp_path / "tiny.mp4", 3)
    failures: list[VideoError] = []
    clips = open_clips([tmp_path, tmp_path / "gone.mp4"], failures=failures)
    assert {clips.video(index) for index in range(len(clips))} == {str(tmp_path / "good.mp4")}
    said = "\n".join(map(str, failures))
    assert len(failures) == 3
    assert "junk.mp4: not a video" in said
    assert "tiny.mp4: has 3 frames and a clip needs 4; leave it out or ask for fewer frames per clip" in said
    assert "gone.mp4: no such file" in said
    assert len(open_clips(tmp_path / "tiny.mp4", frames=3)) == 1
    for path in ("junk.mp4", "tiny.mp4"):
        for collect in (None, []):
            with pytest.raises(VideoError, match=path):
                open_clips(tmp_path / path, failures=collect)


def test_nothing_to_train_on_raises(tmp_path, folder):
    for collect in (None, []):
        with pytest.raises(NoVideosError, match="no video in this folder"):
            open_clips(tmp_path, failures=collect)
    with pytest.raises(NoVideosError, match="no video given"):
        open_clips([])
    with pytest.raises(ValueError, match="frames must be at least 1, got 0"):
        open_clips(folder, frames=0)
    with pytest.raises(ValueError, match="rate must be a number of frames per second > 0, got nan"):
        open_clips(folder, rate=float("nan"))


def test_segment_beyond_the_end_raises_when_loaded(tmp_path, folder):
    clips = open_clips(folder / "b.mp4", table(tmp_path / "c.csv", "video,caption,start,end", "b,x,7,9", "b,y,4,9"))
    with pytest.raises(VideoError, match=r"b.mp4: the clip should start at 7 s but the video ends at 5.00 s"):
        clips.load(0, 0)
    assert min(numbers(clips.load(1, 0).frames)) >= 40
    few = open_clips(folder / "b.mp4", table(tmp_path / "d.csv", "video,caption,start,end", "b,x,1,1.2"))
    with pytest.raises(VideoError, match=r"b.mp4: from 1.00 to 1.20 s it has 2 frames and a clip needs 4"):
        few.load(0, 0)


def test_folder_of_images_is_a_video(tmp_path, folder):
    from everyframe.video import write_image

    for index in range(12):
        write_image(tmp_path / f"frame_{index:03d}.png", np.full((32, 32, 3), 20 + 7 * index, np.uint8))
    clips = open_clips(tmp_path)
    assert len(clips) == 3
    assert clips.load(1, 0).frames[:, 0, 0, 0].tolist() == [20 + 7 * index for index in range(4, 8)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of more features per second than there are images, say
        frames, _, times = clips.window(1, seconds=2.5, fps=3.0, motion=False)
    assert times.tolist() == [4.0, 5.0, 6.0]
    assert frames[:, 0, 0, 0].tolist() == [20 + 7 * index for index in range(4, 7)]
    assert clips.window(1, seconds=4, fps=0.5, motion=False)[2].tolist() == [4.0, 6.0]


def test_real_videos_give_clips_from_files_and_from_a_shard(tmp_path):
    if not SHARED.is_dir():
        pytest.skip("needs the real videos in ../shared/data")
    failures: list[VideoError] = []
    clips = open_clips(SHARED, failures=failures)
    assert sorted(Path(str(error).partition(":")[0]).name for error in failures) == [
        "video_0.mov",
        "video_270.mov",
        "video_90.mov",
    ]
    for name in ("corrupted.mp4", "vfr.mp4", "vid1.mp4", "flipping_a_pancake.mkv"):
        index = next(i for i in range(len(clips)) if clips.video(i).endswith(name))
        assert len(clips.load(index, 0).frames) == 4
    packed = open_clips(pack(tmp_path / "s.tar", {"v.mp4": SHARED / "vfr.mp4", "n.mp4": SHARED / "nasa_13013.mp4"}))
    for index, name in enumerate(("vfr.mp4", "nasa_13013.mp4")):
        clip = packed.load(index, 4)
        second = float(clip.name.split()[-2])
        shown = list(sample_frames(SHARED / name, None, start=second - 0.006, end=second + 0.006))
        assert np.array_equal(shown[0].pixels, clip.frames[0])
