"""Long videos read and encoded in segments: joined they are what one piece gives, or they are refused."""

from __future__ import annotations

import dataclasses
import json
import random
import tracemalloc
import warnings
import zlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

import everyframe as ef
from everyframe.backbone import Model
from everyframe.encoders import Encoder
from everyframe.pipeline import Sampling, encode_videos, frames_of
from everyframe.pipeline.clips import driven
from everyframe.pipeline.decoding import Finished, read_chunks
from everyframe.pipeline.sampling import ClipSampling
from everyframe.pipeline.segments import (
    WHOLE,
    Segment,
    SegmentFeatures,
    SegmentsError,
    join,
    merged_damage,
    read_segment,
    segment_frames,
    split,
)
from everyframe.video import SampledVideo, TargetRange, VideoError, probe, sample_frames, write_video

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "videos"
SECONDS, RATE = 16, 12

ENCODERS = {
    "dense": lambda model: ef.DenseEncoder(model, batch_size=4),
    "residual": lambda model: ef.ResidualViT(model, batch_size=7),
    "residual random": lambda model: ef.ResidualViT(model, 2, select="random", batch_size=6),
    "residual differences": lambda model: ef.ResidualViT(model, 5, select="residual", batch_size=4),
    "reuse": lambda model: ef.ReuseEncoder(model, batch_size=8),
    "reuse motion": lambda model: ef.ReuseEncoder(model, 3, select="motion", batch_size=8),
    "two-sided": lambda model: ef.ReuseEncoder(model, two_sided=True, batch_size=4),
    "two-sided, full calls": lambda model: ef.ReuseEncoder(model, 2, two_sided=True, batch_size=3),
    "residual cuts": lambda model: ef.ResidualViT(model, 6, plan="cuts", batch_size=4),
    "adaptive": lambda model: ef.ReuseEncoder(model, plan="adaptive", batch_size=4),
    "adaptive two-sided": lambda model: ef.ReuseEncoder(model, plan="adaptive", two_sided=True, batch_size=4),
}
FIXED = [name for name in ENCODERS if "cuts" not in name and "adaptive" not in name]
DECIDED = [name for name in ENCODERS if name not in FIXED]


def pictures(count: int, seed: int = 0) -> Iterator[np.ndarray]:
    """A camera that moves over noise, and another place every 50 pictures."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        if index % 50 == 0:
            coarse = rng.integers(0, 255, (12, 60, 3)).astype(np.uint8)
            place = np.kron(coarse, np.ones((8, 8, 1), np.uint8))
        left = 3 * (index % 50)
        yield np.ascontiguousarray(place[:, left : left + 128])


def write(path: Path, times: list[int], *, rotation: int = 0, **options: str) -> Path:
    """Pictures shown at these milliseconds."""
    clock = Fraction(1, 1000)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "veryfast", **options})
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        stream.codec_context.time_base = stream.time_base = clock
        if rotation:
            stream.set_display_rotation(rotation)
        for when, picture in zip(times, pictures(len(times)), strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = when, clock
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("segments")
    rng = random.Random(3)
    steady = [round(1000 * k / RATE) for k in range(SECONDS * RATE)]
    uneven = [0]
    while uneven[-1] < 1000 * SECONDS:
        uneven.append(uneven[-1] + rng.choice([20, 40, 90, 150, 400]))
    gap = [when + 5300 * (when > 7000) for when in steady]
    made = {
        "mp4": write(folder / "steady.mp4", steady, bf="3", g="40"),
        "open": write(folder / "open.mp4", steady, **{"x264-params": "open-gop=1:bframes=3:keyint=30:scenecut=0"}),
        "refresh": write(folder / "refresh.mkv", steady, **{"x264-params": "intra-refresh=1:keyint=40:bframes=2"}),
        "ts": write(folder / "steady.ts", steady, bf="2", g="24"),
        "vfr": write(folder / "vfr.mkv", uneven, bf="3", g="30"),
        "gap": write(folder / "gap.mkv", gap, bf="3", g="30"),
        "turned": write(folder / "turned.mp4", steady, rotation=90, g="24"),
        "short": write(folder / "short.mp4", steady[:20], g="12"),
        "mpeg2": folder / "old.mpg",
        "vp9": folder / "web.webm",
    }
    write_video(made["mpeg2"], pictures(120), fps=25, codec="mpeg2video", keyframe_every=12, options={"bf": "2"})
    options = {"deadline": "realtime", "cpu-used": "8"}
    write_video(made["vp9"], pictures(96), fps=12, codec="libvpx-vp9", keyframe_every=24, options=options)
    return made


# --- sampling in ranges of targets -----------------------------------------------------------------------


Row = tuple[float, int, int | None, int, str | None]


def rows(file: Path, fps: float, targets: TargetRange | None = None, **options: Any) -> tuple[list[Row], SampledVideo]:
    with sample_frames(file, fps, targets=targets, **options) as sampled:
        found = [
            (
                sample.time,
                zlib.crc32(sample.pixels.tobytes()),
                sample.target,
                0 if sample.motion is None else zlib.crc32(sample.motion.tobytes()),
                sample.motion_source,
            )
            for sample in sampled
        ]
    return found, sampled


def check_ranges(file: Path, fps: float, stops: list[int], **options: Any) -> None:
    """Ranges that follow each other give each sample of the whole once: times, pixels, motion, and the seams agree."""
    whole, sampled = rows(file, fps, on_fewer="accept", **options)
    found: list[Row] = []
    first, tail = 0, None
    for stop in [*stops, None]:
        part, read = rows(file, fps, TargetRange(first=first, stop=stop), **options)
        assert all(first <= row[2] and (stop is None or row[2] < stop) for row in part)
        assert read.head == tail
        assert read.motion_source in (None, sampled.motion_source)
        expected = whole[len(found) : len(found) + len(part)]
        assert [row[:3] for row in part] == [row[:3] for row in expected]
        assert part[1:] == expected[1:]  # motion too, but that of the first
        found, first, tail = found + part, stop, read.tail
    assert len(found) == len(whole)
    assert (read.last_end_seconds, read.damage) == (sampled.last_end_seconds, sampled.damage)


@pytest.mark.parametrize("name", ["mp4", "open", "refresh", "ts", "vfr", "gap", "turned", "short", "mpeg2", "vp9"])
@pytest.mark.parametrize("seed", range(3))
def test_each_frame_is_in_one_range(files: dict[str, Path], name: str, seed: int) -> None:
    rng = random.Random(f"{name} {seed}")
    fps = rng.choice([0.5, 1, 2, 3, 7.3, 12, 25, 60])
    start, end = rng.choice([(None, None), (None, 9.7), (2.31, None), (1.0, 12.02)])
    total = round(fps * (end or SECONDS + 6)) + 3
    stops = sorted(rng.sample(range(1, total), min(rng.choice([1, 2, 5]), total - 1)))
    if name == "short":
        start = None
    check_ranges(files[name], fps, stops, start=start, end=end, motion=rng.random() < 0.6)


def test_every_target_its_own_range(files: dict[str, Path]) -> None:
    check_ranges(files["vfr"], 2.0, list(range(1, 40)), motion=True)
    check_ranges(files["gap"], 1.0, list(range(1, 24)))


REAL_NAMES = ["nasa_13013.mp4", "vfr.mp4", "flipping_a_pancake.mkv", "video_90.mov", "av1_video.mkv", "h265_10bits.mp4"]


@pytest.mark.parametrize("name", REAL_NAMES)
def test_real_videos_in_ranges(name: str) -> None:
    if not (REAL / name).is_file():
        pytest.skip("no shared videos here")
    check_ranges(REAL / name, 3, [5, 6, 17], motion=True)
    check_ranges(REAL / name, 12, [41])


def test_a_range_past_the_end_is_empty(files: dict[str, Path]) -> None:
    part, read = rows(files["mp4"], 3, TargetRange(first=1000, stop=None))
    assert part == [] and read.head is None and read.last_end_seconds == pytest.approx(SECONDS, abs=0.1)
    with pytest.raises(VideoError, match="no frame from 20 s on"):
        rows(files["mp4"], 3, TargetRange(first=0, stop=6), start=20)


def test_frames_beyond_a_range_are_read_too(files: dict[str, Path]) -> None:
    whole = rows(files["gap"], 1)[0]
    part = rows(files["gap"], 1, TargetRange(first=2, stop=6, beyond=2))[0]
    assert [row[0] for row in part] == [row[0] for row in whole if row[2] >= 2][: len(part)]
    assert sum(row[2] >= 6 for row in part) == 2


@pytest.mark.parametrize("bad", [{"first": -1}, {"first": 3, "stop": 3}, {"stop": 2, "beyond": -1}])
def test_bad_ranges_raise(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="0 <= first < stop"):
        TargetRange(**bad)


def test_ranges_need_a_rate(files: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="fps=None gives every frame"):
        sample_frames(files["mp4"], None, targets=TargetRange(first=2))


# --- splitting -------------------------------------------------------------------------------------------


def test_segments_are_whole_chunks(light: Model) -> None:
    for name, group, chunk in [("residual", 3, 6), ("two-sided", 6, 12), ("residual differences", 6, 6)]:
        encoder = ENCODERS[name](light)
        assert encoder.group_size == group
        for seconds in (0.1, 5, 100):
            frames = segment_frames(encoder, Sampling(fps=3), seconds)
            assert frames % chunk == 0 and abs(frames - 3 * seconds) <= max(chunk / 2, chunk - 3 * seconds)


def test_split_covers_the_video(light: Model) -> None:
    encoder = ef.DenseEncoder(light, batch_size=10)
    assert split(100, encoder, Sampling(fps=1), 30) == [Segment(0, 30), Segment(30, 60), Segment(60, None)]
    assert split(46, encoder, Sampling(fps=1), 30) == [Segment(0, 30), Segment(30, None)]
    assert split(44, encoder, Sampling(fps=1), 30) == [WHOLE]
    assert split(100, encoder, Sampling(fps=1, start=40), 30) == [Segment(0, 30), Segment(30, None)]
    assert split(100, encoder, Sampling(fps=1, end=44.0), 30) == [WHOLE]
    for duration in (None, 0.0, -1.0, float("nan"), 1e9):
        assert split(duration, encoder, Sampling(fps=1), 30) == [WHOLE]
    assert split(100, encoder, Sampling(start=200), 30) == [WHOLE]
    for seconds in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="seconds > 0"):
            split(100, encoder, Sampling(), seconds)


def test_segments_sort_by_time() -> None:
    ordered = [Segment(0, 10), Segment(0, 20), WHOLE, Segment(10, 20), Segment(10, None)]
    assert sorted(random.Random(0).sample(ordered, 5)) == ordered


def test_clips_are_not_split(light: Model, files: dict[str, Path]) -> None:
    tempme = ef.TempMe(light, r=0, clips={}, remove_cross=0, remove_intra=0)
    sampling = ClipSampling(clip_seconds=5, frames=frames_of(tempme))
    encoder = driven(tempme, sampling)
    assert split(1000, encoder, sampling, 60) == [WHOLE]
    with pytest.raises(ValueError, match="clips are cut from whole videos"):
        list(read_segment(files["mp4"], encoder, sampling, Segment(0, 6)))
    joined = join([encoded(files["mp4"], encoder, sampling, WHOLE)], encoder, sampling, "float32")
    check_same(joined, ef.encode_video(files["mp4"], tempme, clip_seconds=5))


# --- reading, encoding, joining --------------------------------------------------------------------------


def encoded(source: Path, encoder: Encoder, sampling: Sampling | ClipSampling, segment: Segment) -> SegmentFeatures:
    """A segment's features, as a worker makes them; what it tells of itself has travelled as JSON."""
    times: list[float] = []
    parts = [np.empty((0, encoder.dim), np.float32)]
    roles, macs = "", 0.0
    for item in read_segment(source, encoder, sampling, segment):
        if isinstance(item, Finished):
            if item.error is not None:
                raise item.error
            finished = Finished(**json.loads(json.dumps(dataclasses.asdict(item))))
            continue
        assert item.plan.roles[0] == "I"
        count = len(item.times)
        times += item.times
        parts.append(encoder.encode_planned(item.pixels, item.plan)[:count].numpy())
        roles += item.plan.roles[:count]
        macs += sum(encoder.plan_macs(item.plan, "all").values())
    return SegmentFeatures(
        segment=segment,
        times=np.array(times),
        embeddings=np.concatenate(parts),
        roles=roles,
        macs=macs,
        finished=finished,
    )


def in_segments(
    source: Path, encoder: Encoder, sampling: Sampling, seconds: float, dtype: str = "float32"
) -> tuple[ef.VideoFeatures, list[Segment]]:
    """Segments encoded in any order, then joined."""
    segments = split(probe(source).duration_seconds, encoder, sampling, seconds)
    shuffled = random.Random(0).sample(segments, len(segments))
    done = {segment: encoded(source, encoder, sampling, segment) for segment in shuffled}
    return join((done[segment] for segment in segments), encoder, sampling, dtype), segments


def check_same(found: ef.VideoFeatures, expected: ef.VideoFeatures) -> None:
    """Bit for bit."""
    np.testing.assert_array_equal(found.times, expected.times)
    assert found.roles == expected.roles
    np.testing.assert_array_equal(found.embeddings, expected.embeddings)
    for part in ("video", "model", "settings", "end_seconds"):
        assert getattr(found, part) == getattr(expected, part)


@pytest.mark.parametrize("name", FIXED)
def test_fixed_plans_are_exactly_those_of_one_piece(
    light: Model, files: dict[str, Path], tmp_path: Path, name: str
) -> None:
    encoder, file = ENCODERS[name](light), files["mp4"]
    expected = ef.encode_video(file, encoder, fps=6)
    found, segments = in_segments(file, encoder, Sampling(fps=6), 4)
    assert len(segments) == 4
    check_same(found, expected)
    contents = [feats.save(tmp_path / f"{k}.npz").read_bytes() for k, feats in enumerate((found, expected))]
    assert contents[0] == contents[1]


@pytest.mark.parametrize("kind", ["open", "refresh", "ts", "turned"])
def test_containers_and_codecs_give_the_same_features(light: Model, files: dict[str, Path], kind: str) -> None:
    encoder = ENCODERS["two-sided"](light)
    found, segments = in_segments(files[kind], encoder, Sampling(fps=6), 6)
    assert len(segments) == 3
    check_same(found, ef.encode_video(files[kind], encoder, fps=6))


@pytest.mark.parametrize(
    ("kind", "fps", "start", "end", "dtype"),
    [("mp4", 3, 1.2, 14.05, "float32"), ("ts", 4, None, 13.9, "float16"), ("mp4", 6, 5.0, None, "float16")],
)
def test_limits(
    light: Model, files: dict[str, Path], kind: str, fps: float, start: float | None, end: float | None, dtype: str
) -> None:
    encoder = ENCODERS["residual"](light)
    found, segments = in_segments(files[kind], encoder, Sampling(fps=fps, start=start, end=end), 3, dtype)
    assert len(segments) > 2
    check_same(found, ef.encode_video(files[kind], encoder, fps=fps, start=start, end=end, dtype=dtype))


def test_a_short_video_is_one_segment(light: Model, files: dict[str, Path]) -> None:
    encoder = ENCODERS["residual"](light)
    found, segments = in_segments(files["short"], encoder, Sampling(fps=6), 10)
    assert segments == [WHOLE]
    check_same(found, ef.encode_video(files["short"], encoder, fps=6))


@pytest.mark.parametrize("seed", range(4))
def test_any_segments_of_any_encoder_hold_each_frame_once(light: Model, files: dict[str, Path], seed: int) -> None:
    """Of fixed plans all of whose targets have a frame of their own the features are those of one piece."""
    rng = random.Random(seed)
    for name in rng.sample(list(ENCODERS), 3):
        encoder, kind = ENCODERS[name](light), rng.choice(["mp4", "ts", "vfr", "gap"])
        fps, seconds = rng.choice([2, 3, 5, 12, 20]), rng.choice([1, 2, 3.3, 5])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # more frames are asked for than there are
            expected = ef.encode_video(files[kind], encoder, fps=fps)
        found, segments = in_segments(files[kind], encoder, Sampling(fps=fps), seconds)
        np.testing.assert_array_equal(found.times, expected.times)
        assert (found.video, found.end_seconds) == (expected.video, expected.end_seconds)
        np.testing.assert_allclose(np.linalg.norm(found.embeddings, axis=1), 1, atol=1e-5)
        if "segments" not in found.settings:
            assert name in FIXED
            assert found.roles == expected.roles and found.settings == expected.settings
            np.testing.assert_allclose(found.embeddings, expected.embeddings, atol=1e-6)
            if encoder.group_size > 1 and kind in ("mp4", "ts"):
                check_same(found, expected)
        else:
            assert len(segments) > 1
            begun = [int(np.flatnonzero(found.times == when)[0]) for when in found.settings["segments"]]
            assert all(found.roles[row] == "I" for row in begun)


@pytest.mark.parametrize("name", DECIDED)
def test_plans_that_the_content_decides_begin_anew(light: Model, files: dict[str, Path], name: str) -> None:
    encoder, sampling = ENCODERS[name](light), Sampling(fps=6)
    found, segments = in_segments(files["mp4"], encoder, sampling, 4)
    expected = ef.encode_video(files["mp4"], encoder, fps=6)
    np.testing.assert_array_equal(found.times, expected.times)
    starts = [segment.first for segment in segments[1:]]
    assert found.settings["segments"] == [found.times[row] for row in starts]
    assert {**found.settings, "segments": None, "gflops_per_frame": None, "gflops_share": None} == {
        **expected.settings,
        "segments": None,
        "gflops_per_frame": None,
        "gflops_share": None,
    }
    # Within a segment the plan is that of a video that begins there.
    for segment in segments:
        part = encoded(files["mp4"], encoder, sampling, segment)
        stop = len(found.times) if segment.stop is None else segment.stop
        assert part.roles == found.roles[segment.first : stop]
        np.testing.assert_array_equal(part.embeddings, found.embeddings[segment.first : stop])
    first = segments[0].stop
    assert found.roles[:first] == expected.roles[:first]
    # An I-frame more per segment, at most, as long as nothing else changes; the features are as good.
    dense = ef.encode_video(files["mp4"], ENCODERS["dense"](light), fps=6)
    fidelity = [(feats.embeddings * dense.embeddings).sum(1).mean() for feats in (found, expected)]
    assert fidelity[0] > fidelity[1] - 0.01


def test_features_from_segments_count_as_done(light: Model, files: dict[str, Path], tmp_path: Path) -> None:
    """A later run in one piece does not encode them again, whatever their plan."""
    encoder, output = ENCODERS["adaptive"](light), tmp_path / "steady.npz"
    in_segments(files["mp4"], encoder, Sampling(fps=2), 4)[0].save(output)
    [outcome] = encode_videos([(files["mp4"], output)], encoder, sampling=Sampling(fps=2))
    assert outcome.status == "skipped"


def test_frames_missing_before_a_segment_are_recorded(light: Model, files: dict[str, Path]) -> None:
    """Behind a gap frames have other numbers than targets, so segments begin groups of their own."""
    encoder = ENCODERS["residual"](light)
    found, _ = in_segments(files["gap"], encoder, Sampling(fps=3), 4)
    expected = ef.encode_video(files["gap"], encoder, fps=3)
    np.testing.assert_array_equal(found.times, expected.times)
    assert len(found.settings["segments"]) >= 2
    before = int(np.searchsorted(found.times, 7))
    assert found.roles[:before] == expected.roles[:before]
    dense = in_segments(files["gap"], ENCODERS["dense"](light), Sampling(fps=3), 4)[0]
    assert "segments" not in dense.settings
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_allclose(
            dense.embeddings, ef.encode_video(files["gap"], ENCODERS["dense"](light), fps=3).embeddings, atol=1e-6
        )


def test_more_fps_than_the_video_has(light: Model, files: dict[str, Path]) -> None:
    encoder = ENCODERS["reuse"](light)
    found, _ = in_segments(files["mp4"], encoder, Sampling(fps=29), 2)  # and no warning of a part
    with pytest.warns(UserWarning, match="each is given once"):
        expected = ef.encode_video(files["mp4"], encoder, fps=29)
    np.testing.assert_array_equal(found.times, expected.times)
    assert len(found.settings["segments"]) > 3


def test_a_segment_of_one_piece_is_read_chunks(light: Model, files: dict[str, Path]) -> None:
    encoder = ENCODERS["residual"](light)
    whole = list(read_chunks(files["short"], encoder, Sampling(fps=6)))
    parts = list(read_segment(files["short"], encoder, Sampling(fps=6), WHOLE))
    assert [part.times for part in parts[:-1]] == [chunk.times for chunk in whole[:-1]]
    assert parts[-1] == whole[-1] and parts[-1].head is None is parts[-1].tail


def test_a_segment_must_begin_where_an_i_frame_may_be(light: Model, files: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="multiple of 3, got 4"):
        list(read_segment(files["mp4"], ENCODERS["residual"](light), Sampling(), Segment(4, None)))


def test_what_cannot_be_read_is_a_finished_with_its_error(light: Model, tmp_path: Path) -> None:
    missing = tmp_path / "nothing.mp4"
    [finished] = list(read_segment(missing, ENCODERS["dense"](light), Sampling(), Segment(4, 8)))
    assert isinstance(finished, Finished) and "no such file" in str(finished.error)
    part = blank(Segment(0, None), [], finished)
    with pytest.raises(VideoError, match="no such file"):
        join([part], ENCODERS["dense"](light), Sampling(), "float32")


# --- what does not fit -----------------------------------------------------------------------------------


def blank(segment: Segment, times: list[float], finished: Finished, dim: int = 24) -> SegmentFeatures:
    return SegmentFeatures(
        segment=segment,
        times=np.array(times),
        embeddings=np.ones((len(times), dim), np.float32),
        roles="I" * len(times),
        macs=1e6 * len(times),
        finished=finished,
    )


SEAMS = [[0.9, 1.0, 400, 7], [1.9, 2.0, 800, 8]]


def three(**changes: Any) -> list[SegmentFeatures]:
    """Segments that fit together, one of them with changes to its `Finished` or its times."""
    number, times = changes.pop("number", 1), changes.pop("times", None)
    video = {"path": "a.mp4", "duration_seconds": 3.0, "fingerprint": "abc"}
    parts = []
    for k in range(3):
        head = SEAMS[k - 1] if k else None
        tail = SEAMS[k] if k < 2 else None
        finished = Finished(video=dict(video), end_seconds=float(k + 1), head=head, tail=tail, motion_source="codec")
        own = [float(k), k + 0.5]
        if k == number:
            finished, own = dataclasses.replace(finished, **changes), own if times is None else times
        parts.append(blank(Segment(2 * k, 2 * k + 2 if k < 2 else None), own, finished))
    return parts


def test_segments_that_fit(light: Model) -> None:
    feats = join(three(), ef.DenseEncoder(light), Sampling(fps=2), "float32")
    assert feats.times.tolist() == [0, 0.5, 1, 1.5, 2, 2.5] and feats.end_seconds == 3.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": [0.9, 1.0, 400, 9]}, "seeking to target 2 does not lead where"),
        ({"head": [0.9, 1.0, 401, 7]}, "in one piece"),
        ({"head": [0.8, 1.0, 400, 7]}, "in one piece"),
        ({"head": None}, "in one piece"),
        ({"tail": [1.9, 2.1, 800, 8]}, "seeking to target 4"),
        ({"times": [0.4, 1.5]}, "begins at 0.400 s, not after 0.500 s"),
        ({"times": [0.5, 1.5]}, "begins at 0.500 s, not after 0.500 s"),
        ({"video": {"path": "a.mp4", "duration_seconds": 3.0, "fingerprint": "xyz"}}, "the file changed"),
        ({"motion_source": "luma"}, "motion in different ways"),
    ],
)
def test_segments_that_do_not_fit_are_refused(light: Model, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SegmentsError, match=message):
        join(three(**changes), ef.DenseEncoder(light), Sampling(fps=2), "float32")


def test_all_segments_are_needed_in_order(light: Model) -> None:
    parts, encoder = three(), ef.DenseEncoder(light)
    for wrong in ([], parts[1:], parts[:2], [parts[0], parts[2]], parts[::-1], [*parts, parts[2]]):
        with pytest.raises(SegmentsError, match="pass all of them, in order"):
            join(wrong, encoder, Sampling(fps=2), "float32")
    with pytest.raises(SegmentsError, match="no frame in any"):
        join([blank(WHOLE, [], Finished(video={"path": "a.mp4"}))], encoder, Sampling(), "float32")


def concatenated(folder: Path, *names: Path) -> Path:
    file = folder / f"joined{names[0].suffix}"
    file.write_bytes(b"".join(name.read_bytes() for name in names))
    return file


@pytest.mark.parametrize("kind", ["ts", "mpeg2"])
def test_a_clock_that_starts_again_is_noticed(light: Model, files: dict[str, Path], tmp_path: Path, kind: str) -> None:
    """The same recording twice in a file: seeking finds the wrong one, with the same pictures at the same times."""
    file = concatenated(tmp_path, files[kind], files[kind])
    encoder, sampling = ENCODERS["dense"](light), Sampling(fps=4, keep_partial=True)
    refused = 0
    for seconds in (1, 2):
        try:
            found, segments = in_segments(file, encoder, sampling, seconds)
        except SegmentsError:
            refused += 1
            continue
        expected = ef.encode_video(file, encoder, fps=4, keep_partial=True)
        assert len(segments) > 1
        np.testing.assert_array_equal(found.times, expected.times)
    assert refused


def test_damage_in_the_middle(light: Model, files: dict[str, Path], tmp_path: Path) -> None:
    """Some segment refuses what one piece refuses. What is kept is the same too, or it does not fit and says so."""
    encoder, tally = ENCODERS["dense"](light), {"unnoticed": 0, "same": 0, "refused": 0}
    for seed in range(8):
        rng, kind = random.Random(seed), ("mp4", "vfr")[seed % 2]
        data = bytearray(files[kind].read_bytes())
        first = int(len(data) * rng.uniform(0.15, 0.75))
        data[first : first + 300] = bytes(255 - value for value in data[first : first + 300])
        file = tmp_path / f"damaged{files[kind].suffix}"
        file.write_bytes(data)
        expected = ef.encode_video(file, encoder, fps=2, keep_partial=True)
        if "damage" not in expected.settings:
            tally["unnoticed"] += 1
            continue
        with pytest.raises(VideoError, match="--keep-partial"):
            in_segments(file, encoder, Sampling(fps=2), 3)
        try:
            found, segments = in_segments(file, encoder, Sampling(fps=2, keep_partial=True), 3)
        except SegmentsError:
            tally["refused"] += 1
            continue
        tally["same"] += 1
        assert len(segments) > 3 and found.settings["damage"]
        np.testing.assert_array_equal(found.times, expected.times)
    assert tally["same"] >= 2, tally


def test_a_file_that_was_cut_off_is_as_long_as_it_is(light: Model, tmp_path: Path) -> None:
    """Its header promises more: segments behind its end are empty, and know that."""
    file = tmp_path / "cut.mp4"
    noise = np.random.default_rng(0).integers(0, 255, (120, 48, 64, 3), dtype=np.uint8)
    with av.open(str(file), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=10, options={"g": "20", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for picture in noise:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 55 // 100])
    encoder, sampling = ENCODERS["dense"](light), Sampling(fps=2, keep_partial=True)
    expected = ef.encode_video(file, encoder, fps=2, keep_partial=True)
    found, segments = in_segments(file, encoder, sampling, 2)
    assert len(segments) == 6
    check_same(found, expected)
    with pytest.raises(VideoError, match="--keep-partial"):
        in_segments(file, encoder, Sampling(fps=2), 2)


def test_damage_seen_from_two_segments_is_listed_once() -> None:
    assert merged_damage([["a", "b", "b"], ["b", "c"], ["b", "b", "c", "d"]]) == ["a", "b", "b", "c", "d"]
    many = [[f"near {k} s" for k in range(100)] + ["and 7 more places"], ["near 5 s", "last"]]
    assert merged_damage(many) == [*many[0][:100], "and 8 more places"]
    assert merged_damage([]) == []


def test_joining_holds_one_copy_and_one_segment(light: Model) -> None:
    """Ten hours at 3 per second with features as wide as ViT-L's would be 330 MB; here 6 segments of 8 MB."""
    dim, count = 512, 4096

    def parts() -> Iterator[SegmentFeatures]:
        for k in range(6):
            first, stop = count * k, count * (k + 1) if k < 5 else None
            seams = [[float(edge), edge + 0.5, 1, 1] for edge in (first, count * (k + 1))]
            finished = Finished(
                video={"path": "a"}, head=seams[0] if k else None, tail=seams[1] if k < 5 else None, end_seconds=1e9
            )
            yield blank(Segment(first, stop), [float(first + row) for row in range(count)], finished, dim=dim)

    class Wide(ef.DenseEncoder):
        dim = 512

    encoder = Wide(light)
    tracemalloc.start()
    feats = join(parts(), encoder, Sampling(), "float32")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    one = 4 * dim * count
    assert feats.embeddings.nbytes == 6 * one
    assert peak < (6 * 1.25 + 1 + 2) * one  # the result while it grows, a segment, and numbers and masks
