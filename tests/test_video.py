"""Videos written here with known content and times, and, where present, real files with known oddities."""

from __future__ import annotations

import dataclasses
import gc
import http.server
import io
import itertools
import json
import os
import threading
import time
import warnings
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from everyframe.video import (
    NoVideosError,
    VideoError,
    decode_ahead,
    find_videos,
    probe,
    sample_frames,
    write_image,
    write_video,
)
from everyframe.video.errors import MissingVideoError, UnreachableError
from everyframe.video.identity import identity

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
LEVEL_0, LEVEL_STEP, LEVELS = 30, 7, 30


def level(index: int) -> int:
    """Grey level that says which frame this is (30 frames can be told apart)."""
    return LEVEL_0 + LEVEL_STEP * (index % LEVELS)


def numbered(count: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    return [np.full((height, width, 3), level(index), np.uint8) for index in range(count)]


def number_of(pixels: np.ndarray) -> int:
    return round((float(np.median(pixels)) - LEVEL_0) / LEVEL_STEP)


def encode(path, frames, pts, *, time_base=Fraction(1, 1000), codec="libx264", options=None, **fields) -> Path:
    """Encode frames at explicit times, with extra stream fields (rotation, pixel format, container options)."""
    pixel_format = fields.pop("pixel_format", "yuv420p")
    rotation = fields.pop("rotation", None)
    aspect = fields.pop("aspect", None)
    flags = fields.pop("flags", 0)
    with av.open(str(path), "w", options=fields.pop("container_options", {})) as container:
        stream = container.add_stream(codec, rate=30, options=options or {})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixel_format
        stream.codec_context.time_base = time_base
        stream.time_base = time_base
        stream.codec_context.flags |= flags
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for picture, when in zip(frames, pts, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = when, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def times_of(source, fps=None, **options) -> list[float]:
    return [sample.time for sample in sample_frames(source, fps, **options)]


def nearest(pts: list[float], duration: float, fps: Fraction, start: Fraction = Fraction(0)) -> list[int]:
    """The sampling rule, the slow way: exact, and looking at all frames for each target."""
    exact = [Fraction(when).limit_denominator(90_000) for when in pts]
    finish = exact[-1] + Fraction(duration).limit_denominator(90_000)
    chosen: list[int] = []
    k = 0
    while (target := start + k / fps) < finish:
        k += 1
        best = min(range(len(exact)), key=lambda index: (abs(exact[index] - target), exact[index]))
        if best not in chosen:
            chosen.append(best)
    return chosen


# ---------------------------------------------------------------------------------------------------- sampling


@pytest.mark.parametrize(
    ("suffix", "codec", "pixel_format", "options"),
    [
        ("mp4", "libx264", "yuv420p", {"bf": "3"}),
        ("mkv", "libx264", "yuv420p", {"bf": "3"}),
        ("ts", "libx264", "yuv420p", {"bf": "3"}),
        ("mp4", "libx265", "yuv420p", {"x265-params": "log-level=none:bframes=3"}),
        ("mp4", "libx265", "yuv420p10le", {"x265-params": "log-level=none"}),
        ("webm", "libvpx-vp9", "yuv420p", {"cpu-used": "8", "deadline": "realtime"}),
        ("webm", "libvpx-vp9", "yuva420p", {"cpu-used": "8", "deadline": "realtime"}),
        ("mkv", "libsvtav1", "yuv420p", {"preset": "12"}),
        ("mp4", "mpeg4", "yuv420p", {"bf": "2", "b": "8000000"}),
        ("avi", "mpeg4", "yuv420p", {"b": "8000000"}),
        ("mov", "prores_ks", "yuv422p10le", {}),
        ("mov", "prores_ks", "yuva444p10le", {}),
        ("mkv", "ffv1", "gray", {}),
        ("gif", "gif", "gray", {}),
        ("mp4", "libx264", "gray", {}),
        ("mp4", "libx264rgb", "rgb24", {}),
    ],
)
def test_every_codec_gives_every_frame_in_order(tmp_path, suffix, codec, pixel_format, options):
    if codec not in av.codecs_available:
        pytest.skip(f"no encoder {codec}")
    path = tmp_path / f"clip.{suffix}"
    options = {"qp": "10", **options} if codec == "libx264" else options
    write_video(path, numbered(30), fps=10, codec=codec, pixel_format=pixel_format, options=options)
    samples = list(sample_frames(path, None))
    assert [number_of(sample.pixels) for sample in samples] == list(range(30))
    assert [sample.time for sample in samples] == pytest.approx([k / 10 for k in range(30)], abs=1e-3)
    error = [abs(float(sample.pixels.mean()) - level(k)) for k, sample in enumerate(samples)]
    assert max(error) < 3.5, "grey levels must survive"
    assert samples[0].pixels.shape == (48, 64, 3) and samples[0].pixels.dtype == np.uint8


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="no scheduling policies here")
def test_writing_leaves_the_thread_as_it_was(tmp_path):
    if "libsvtav1" not in av.codecs_available:
        pytest.skip("no encoder libsvtav1")
    before = os.sched_getscheduler(0), os.nice(0)
    write_video(tmp_path / "clip.mkv", numbered(5), fps=10, codec="libsvtav1", options={"preset": "12"})
    assert (os.sched_getscheduler(0), os.nice(0)) == before  # run by root, the encoder itself makes it a real-time one


@pytest.mark.parametrize("fps", [Fraction(1), Fraction(3), Fraction(7), Fraction(1, 2), Fraction(2997, 100)])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_samples_are_the_frames_nearest_to_the_targets(tmp_path, suffix, fps):
    rng = np.random.default_rng(4)
    pts = np.cumsum(rng.integers(10, 240, size=50))
    pts -= pts[0]
    path = encode(tmp_path / f"vfr.{suffix}", numbered(50), pts.tolist(), options={"bf": "2", "qp": "10"})
    every = list(sample_frames(path, None))
    assert [sample.time for sample in every] == pytest.approx((pts / 1000).tolist(), abs=1e-9)
    expected = nearest([sample.time for sample in every], every[-1].duration, fps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if len(expected) == 50 else "error")
        got = list(sample_frames(path, float(fps)))
    assert [number_of(sample.pixels) for sample in got] == [index % LEVELS for index in expected]
    assert [sample.time for sample in got] == [every[index].time for index in expected]


def test_millisecond_clocks_and_exact_clocks_choose_the_same_frames(tmp_path):
    for suffix in ("mp4", "mkv"):
        write_video(tmp_path / f"a.{suffix}", numbered(45), fps=30, options={"qp": "10"})
    chosen = [
        [number_of(sample.pixels) for sample in sample_frames(tmp_path / name, 3.0)] for name in ("a.mp4", "a.mkv")
    ]
    assert chosen == [[0, 10, 20, 0, 10]] * 2


def test_more_fps_than_the_video_has_warns_and_gives_each_frame_once(tmp_path):
    write_video(tmp_path / "a.mp4", numbered(10), fps=5)
    with pytest.warns(UserWarning, match=r"has 10 in 2\.00 s \(5 per second\)"):
        samples = list(sample_frames(tmp_path / "a.mp4", 60))
    assert [number_of(sample.pixels) for sample in samples] == list(range(10))
    with pytest.warns(UserWarning, match=r"has 3 in 0\.50 s \(6 per second\)"):
        samples = list(sample_frames(tmp_path / "a.mp4", 60, start=1.0, end=1.5))
    assert [number_of(sample.pixels) for sample in samples] == [5, 6, 7]


def test_durations_last_until_the_next_frame(tmp_path):
    path = encode(tmp_path / "a.mkv", numbered(4), [0, 100, 400, 450])
    assert [sample.duration for sample in sample_frames(path, None)][:3] == pytest.approx([0.1, 0.3, 0.05])


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "gif", "avi"])
@pytest.mark.parametrize("begin", [0.0, 0.7, 1.95, 3.3])
def test_a_range_gives_the_frames_of_a_full_decode(tmp_path, suffix, begin):
    codec = {"gif": "gif", "avi": "mpeg4"}.get(suffix, "libx264")
    options = {} if codec == "gif" else {"g": "12", "bf": "2"}
    pixel_format = "gray" if codec == "gif" else "yuv420p"
    path = tmp_path / f"a.{suffix}"
    write_video(path, numbered(40), fps=10, codec=codec, options=options, pixel_format=pixel_format)
    everything = {round(sample.time, 6): sample.pixels for sample in sample_frames(path, None)}
    got = list(sample_frames(path, 5, start=begin, end=begin + 0.6))
    inside = [when for when in everything if begin <= when < begin + 0.6]
    wanted = [min(inside, key=lambda when: (round(abs(when - begin - k / 5), 6), when)) for k in range(3)]
    assert [round(sample.time, 6) for sample in got] == wanted
    for sample in got:
        assert np.array_equal(sample.pixels, everything[round(sample.time, 6)])
    assert [round(when, 6) for when in times_of(path, None, start=begin, end=begin + 0.6)] == inside


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"fps": 0}, ValueError, "fps must be > 0, got 0"),
        ({"fps": float("nan")}, ValueError, "fps must be > 0, got nan"),
        ({"start": -1}, VideoError, "start must be"),
        ({"start": 2, "end": 1}, VideoError, "end must be after start"),
        ({"start": 9}, VideoError, r"no frame from 9 s on; the video ends at 1\.00 s"),
        ({"on_damage": "ignore"}, ValueError, "on_damage"),
        ({"threads": 0}, ValueError, "threads"),
    ],
)
def test_bad_arguments_raise(tmp_path, arguments, kind, message):
    write_video(tmp_path / "a.mp4", numbered(10), fps=10)
    with pytest.raises(kind, match=message):
        list(sample_frames(tmp_path / "a.mp4", **arguments))


# ----------------------------------------------------------------------------------------------- time and shape


def test_streams_that_start_late_are_shifted_to_zero(tmp_path):
    path = encode(tmp_path / "a.ts", numbered(10), [90_000 * 20 + 9000 * k for k in range(10)],
                  time_base=Fraction(1, 90_000), options={"bf": "2"})  # fmt: skip
    info = probe(path)
    assert info.start_seconds > 19
    assert times_of(path) == pytest.approx([k / 10 for k in range(10)])


def test_sound_that_starts_before_the_picture_keeps_its_lead(tmp_path):
    path = tmp_path / "a.ts"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=10, options={"bf": "0"})
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream("mp2", rate=48_000)
        for k in range(30):
            block = av.AudioFrame.from_ndarray(np.zeros((1, 2 * 1152), np.int16), format="s16", layout="stereo")
            block.sample_rate, block.pts, block.time_base = 48_000, 1152 * k, Fraction(1, 48_000)
            container.mux(sound.encode(block))
        container.mux(sound.encode(None))
        for k, picture in enumerate(numbered(5)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = k + 4, Fraction(1, 10)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    got = times_of(path)
    assert probe(path).has_audio
    assert got == pytest.approx([0.4 + k / 10 for k in range(5)], abs=0.04)  # MP2's own delay is in the clock


def test_clock_that_jumps_back_still_gives_increasing_times(tmp_path):
    halves = [encode(tmp_path / f"{k}.ts", numbered(10), [100 * i + 5000 * (1 - k) for i in range(10)],
                     options={"bf": "0"}).read_bytes() for k in range(2)]  # fmt: skip
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(halves))
    with sample_frames(joined, None, on_damage="skip") as video:
        samples = list(video)
    assert [number_of(sample.pixels) for sample in samples] == [*range(10), *range(10)]
    assert np.all(np.diff([sample.time for sample in samples]) > 0)


def quadrants(height: int = 48, width: int = 64) -> np.ndarray:
    """Red, green / blue, white: shows any turn or mirroring."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2] = (200, 30, 30)
    picture[: height // 2, width // 2 :] = (30, 200, 30)
    picture[height // 2 :, : width // 2] = (30, 30, 200)
    picture[height // 2 :, width // 2 :] = (220, 220, 220)
    return picture


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_rotation_is_applied_to_pixels_and_motion(tmp_path, degrees):
    frames = []
    for k in range(8):  # noise wanders in the coded picture's left half only
        picture = quadrants()
        picture[16:32, 2 + 2 * k : 18 + 2 * k] = np.random.default_rng(1).integers(0, 255, (16, 16, 3))
        frames.append(picture)
    path = encode(tmp_path / "a.mp4", frames, [100 * k for k in range(8)], rotation=degrees, options={"bf": "0"})
    samples = list(sample_frames(path, None, motion=True))
    info = probe(path)
    # FFmpeg's display rotation counts counterclockwise.
    assert info.rotation == -degrees % 360
    assert (info.width, info.height) == ((48, 64) if degrees % 180 else (64, 48))
    turned = np.rot90(frames[0], k=degrees // 90)
    assert samples[0].pixels.shape == turned.shape == (info.height, info.width, 3)
    corners = np.s_[4 : -4 : info.height - 9, 4 : -4 : info.width - 9]
    assert np.abs(samples[0].pixels[corners].astype(int) - turned[corners]).max() < 12
    motion = np.rot90(samples[4].motion, k=-(degrees // 90))
    assert motion.shape == (6, 8)
    assert motion[2:4, 2:4].min() > 1 and motion[:, 6:].max() < 0.3


def test_mirrored_display_matrix_is_applied(monkeypatch):
    from everyframe.video import opening

    monkeypatch.setattr(opening, "side_data", lambda frame: frame.side_data)

    class Frame:
        width, height = 64, 48
        side_data = {"DISPLAYMATRIX": np.array([-65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30], np.int32).tobytes()}  # noqa: RUF012

    geometry = opening.geometry_of(Frame())
    assert (geometry.mirrored, geometry.quarter_turns) == (True, 0)
    assert np.array_equal(geometry.orient(quadrants()), quadrants()[:, ::-1])


def test_sample_aspect_ratio_is_applied(tmp_path):
    path = encode(tmp_path / "a.mp4", [quadrants()] * 3, [0, 100, 200], aspect=Fraction(4, 3))
    info = probe(path)
    assert (info.width, info.height, info.coded_width) == (85, 48, 64)
    samples = list(sample_frames(path, None, motion=True))
    assert samples[0].pixels.shape == (48, 85, 3) and samples[0].motion.shape == (6, 11)


def test_odd_sizes(tmp_path):
    frames = [np.full((33, 51, 3), level(k), np.uint8) for k in range(5)]
    write_video(tmp_path / "a.mp4", frames, fps=5, pixel_format="yuv444p")
    samples = list(sample_frames(tmp_path / "a.mp4", None, motion=True))
    assert samples[0].pixels.shape == (33, 51, 3) and samples[1].motion.shape == (5, 7)
    with pytest.raises(VideoError, match="51x33 is odd"):
        write_video(tmp_path / "b.mp4", frames, fps=5)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_resolution_change_is_scaled_to_the_first_size(tmp_path):
    parts = []
    for k, (height, width) in enumerate(((48, 64), (96, 128))):
        pts = [9000 * (k * 5 + i) for i in range(5)]
        part = encode(tmp_path / f"{k}.ts", [quadrants(height, width)] * 5, pts,
                      time_base=Fraction(1, 90_000), options={"bf": "0"})  # fmt: skip
        parts.append(part.read_bytes())
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(parts))
    with sample_frames(joined, None, motion=True, on_damage="skip") as video:
        samples = list(video)
    assert len(samples) == 10
    assert {sample.pixels.shape for sample in samples} == {(48, 64, 3)}
    assert {sample.motion.shape for sample in samples} == {(6, 8)}
    assert np.abs(samples[-1].pixels[10, 10].astype(int) - (200, 30, 30)).max() < 12


def test_interlaced_frames_are_deinterlaced(tmp_path):
    frames = []
    for k in range(9):  # two fields, half a step apart: a moving bar is a comb
        picture = np.full((64, 96, 3), 40, np.uint8)
        picture[0::2, 8 * k : 8 * k + 16] = 200
        picture[1::2, 8 * k + 4 : 8 * k + 20] = 200
        frames.append(picture)
    path = encode(tmp_path / "a.mp4", frames, [40 * k for k in range(9)], options={"x264-params": "tff=1", "qp": "8"})
    with av.open(str(path)) as container:
        raw = list(container.decode(video=0))
    if not raw[4].interlaced_frame:
        pytest.skip("this encoder does not flag interlaced frames")
    combed = np.abs(np.diff(raw[4].to_ndarray(format="rgb24").astype(int), axis=0)).mean()
    samples = list(sample_frames(path, None))
    assert len(samples) == len(raw)
    smooth = np.abs(np.diff(samples[4].pixels.astype(int), axis=0)).mean()
    assert smooth < combed / 4
    columns = samples[4].pixels[:, :, 0].mean(axis=0)
    assert 28 <= np.flatnonzero(columns > 120).min() <= 40, "the bar of the right frame"


def test_full_and_limited_range_and_both_matrices(tmp_path):
    colours = [(200, 40, 40), (40, 180, 60), (50, 60, 190), (128, 128, 128), (250, 250, 250), (8, 8, 8)]
    for matrix, full in itertools.product((1, 6), (False, True)):
        red, blue = (0.2126, 0.0722) if matrix == 1 else (0.299, 0.114)
        path = tmp_path / f"{matrix}{full}.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=5, options={"qp": "1"})
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj444p" if full else "yuv444p"
            stream.codec_context.colorspace = matrix
            stream.codec_context.color_range = 2 if full else 1
            for k, (r, g, b) in enumerate(colours):
                luma = red * r + (1 - red - blue) * g + blue * b
                planes = np.array([luma, (b - luma) / (2 - 2 * blue) + 128, (r - luma) / (2 - 2 * red) + 128])
                if not full:
                    planes = (planes - [0, 128, 128]) * np.array([219, 224, 224]) / 255 + [16, 128, 128]
                yuv = np.broadcast_to(np.round(planes)[:, None, None], (3, 48, 64)).astype(np.uint8)
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(yuv), format=stream.pix_fmt)
                frame.colorspace, frame.color_range = matrix, 2 if full else 1
                frame.pts, frame.time_base = k, Fraction(1, 5)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        for sample, colour in zip(sample_frames(path, None), colours, strict=True):
            assert np.abs(sample.pixels.mean(axis=(0, 1)) - colour).max() < 3, (matrix, full, colour)


# ------------------------------------------------------------------------------------------------------ sources


def test_bytes_file_objects_and_paths_give_the_same(tmp_path):
    path = tmp_path / "with:colon.mp4"
    write_video(path, numbered(10), fps=10)
    data = path.read_bytes()
    with open(path, "rb") as file:
        results = [times_of(source, 3) for source in (path, str(path), data, io.BytesIO(data), file)]
    assert results == [results[0]] * 5 and len(results[0]) == 3
    assert probe(data).path == "<bytes>"


def test_folder_of_images_is_a_video(tmp_path):
    for k in (1, 2, 10, 9):
        write_image(tmp_path / f"shot{k}.png", np.full((20, 30, 3), level(k), np.uint8))
    samples = list(sample_frames(tmp_path, 2.0, motion=True))
    assert [number_of(sample.pixels) for sample in samples] == [1, 2, 9, 10]
    assert [sample.time for sample in samples] == [0, 0.5, 1.0, 1.5]
    assert samples[1].motion == pytest.approx(np.full((3, 4), LEVEL_STEP), abs=1)
    assert samples[1].motion_source == "luma"
    assert times_of(tmp_path, 1.0, image_fps=2) == [0.0, 1.0]
    assert times_of(tmp_path, 2.0, start=0.5, end=1.5) == [0.5, 1.0]
    assert probe(tmp_path).codec == "images"
    (tmp_path / "shot3.png").write_bytes(b"not a picture")
    with pytest.raises(VideoError, match=r"shot3\.png"):
        times_of(tmp_path, 2.0)
    with sample_frames(tmp_path, 2.0, on_damage="skip") as video:
        assert len(list(video)) == 4 and len(video.damage) == 1


def test_one_of_several_video_streams_is_chosen_as_ffmpeg_does(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        streams = []
        for width, height in ((32, 32), (96, 64)):
            stream = container.add_stream("libx264", rate=10)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            streams.append(stream)
        for k in range(5):
            for stream in streams:
                frame = av.VideoFrame.from_ndarray(np.full((stream.height, stream.width, 3), 90, np.uint8))
                frame.pts, frame.time_base = k, Fraction(1, 10)
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))
    info = probe(path, scan=True)
    with av.open(str(path)) as container:
        best = container.streams.best("video")
        assert (info.width, info.stream_index, info.num_video_streams) == (best.width, best.index, 2)
    assert info.num_frames_from_content == 5 and info.variable_frame_rate is False


def _sound_only(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        sound = container.add_stream("pcm_s16le", rate=8000)
        block = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        block.sample_rate, block.pts = 8000, 0
        container.mux(sound.encode(block))
        container.mux(sound.encode(None))
    return path


def _no_frames(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        container.start_encoding()
    return path


def test_unreadable_sources_raise_one_clear_sentence(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("hello\n" * 100)
    (tmp_path / "notes.txt").write_text("hello\n" * 100)
    (tmp_path / "folder").mkdir()
    write_video(tmp_path / "whole.mp4", numbered(30), fps=10)
    whole = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "noindex.mp4").write_bytes(whole[: whole.find(b"moov") - 8])
    cases = {
        tmp_path / "nothing.mp4": "no such file",
        tmp_path / "empty.mp4": "empty",
        tmp_path / "text.mp4": "not a video",
        tmp_path / "notes.txt": "text file|not a video",
        tmp_path / "folder": "folder",
        tmp_path / "noindex.mp4": "moov",
        _sound_only(tmp_path / "sound.wav"): "only sound",
        _no_frames(tmp_path / "none.mkv"): "no readable frame|not a video|no video stream",
        "http://127.0.0.1:9/a.mp4": "cannot be opened",
        b"": "not a video",
    }
    for source, message in cases.items():
        for function in (probe, sample_frames):
            with pytest.raises(VideoError, match=message) as caught:
                function(source)
            assert "\n" not in str(caught.value)
    with pytest.raises(TypeError):
        probe(3)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------ streams


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """/WHOLE/name serves a video; /CUT/name half of it, with the length of all; /503/name that status; its address."""
    folder = tmp_path_factory.mktemp("served")
    frames, options = _noise(60), {"movflags": "faststart"}
    encode(folder / "a.mp4", frames, [100 * k for k in range(60)], container_options=options)
    for name in ("a.ts", "a.avi"):
        write_video(folder / name, frames, fps=10)

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *arguments):
            """Quiet."""

        def do_GET(self):
            _, how, name = self.path.split("/")
            if how.isdigit():
                self.send_error(int(how))
                return
            data = b"<html>sorry</html>" * 99 if how == "PAGE" else (folder / name).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if how == "CUT" else data)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


@pytest.mark.parametrize("on_damage", ["raise", "skip"])
@pytest.mark.parametrize("name", ["a.ts", "a.mp4", "a.avi"])
def test_a_connection_that_breaks_is_no_damage(server, name, on_damage):
    with sample_frames(f"{server}/WHOLE/{name}", 2.0, on_damage=on_damage) as video:
        assert len(list(video)) in (12, 13) and not video.damage
    with pytest.raises(UnreachableError, match=rf"/CUT/{name}: did not come to its end .* read it again"):
        times_of(f"{server}/CUT/{name}", on_damage=on_damage)


def test_a_scan_says_that_the_connection_broke(server):
    with pytest.raises(UnreachableError, match="did not come to its end"):
        probe(f"{server}/CUT/a.ts", scan=True)


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        *((f"/{status}/a.ts", MissingVideoError) for status in (400, 401, 403, 404)),
        *((f"/{status}/a.ts", UnreachableError) for status in (408, 429, 500, 503)),
        ("http://127.0.0.1:9/a.ts", UnreachableError),
        ("rtsp://127.0.0.1:9/a", UnreachableError),
        ("/PAGE/a.ts", VideoError),
        ("nothing://x/a.ts", VideoError),
    ],
)
def test_what_may_pass_and_what_does_not(server, address, kind):
    with pytest.raises(VideoError, match=r"cannot be opened .* check the address and the network") as raised:
        probe(server + address if address.startswith("/") else address)
    assert type(raised.value) is kind


# ---------------------------------------------------------------------------------------------------- which video


def test_videos_of_one_size_with_the_same_beginning_and_end_are_told_apart(tmp_path):
    """What is not compressed has one size, whatever it shows."""
    for name, seed in (("a", 1), ("b", 2)):
        rng, black = np.random.default_rng(seed), np.zeros((240, 320, 3), np.uint8)
        frames = [black if k < 10 or k >= 50 else rng.integers(0, 255, black.shape, np.uint8) for k in range(60)]
        write_video(tmp_path / f"{name}.avi", frames, codec="rawvideo", fps=25)
    one, other = (tmp_path / f"{name}.avi" for name in "ab")
    ends = [
        (path.stat().st_size, path.read_bytes()[: 1 << 18], path.read_bytes()[-(1 << 18) :]) for path in (one, other)
    ]
    assert ends[0] == ends[1] and identity(one) != identity(other)
    one.write_bytes(other.read_bytes())
    assert identity(one) == identity(other)


@pytest.mark.parametrize("size", [5000, 3 << 18, (3 << 18) + 1, 10_000_000])
def test_identity_looks_at_both_ends_and_between_them(tmp_path, size):
    path, data = tmp_path / "x", bytearray(size)
    path.write_bytes(data)
    found, end = [identity(path)], 1 << 18
    if size <= 3 * end:
        places = [0, size // 3, size // 2, size - 1]
    else:
        quarters = [end + (size - 2 * end) * (2 * k + 1) // 8 for k in range(4)]
        places = [0, end - 1, *quarters, size - end, size - 1]
    for place in places:
        changed = bytearray(data)
        changed[place] ^= 1
        path.write_bytes(changed)
        found.append(identity(path))
    assert all(each["size_bytes"] == size for each in found)
    assert len({each["fingerprint"] for each in found}) == 1 + len(places)


def bitmap(path: Path, pixels: np.ndarray) -> None:
    """A BMP file of uint8 [H, W, 3], W a multiple of 4: not compressed."""
    height, width, _ = pixels.shape
    numbers = [54 + pixels.size, 0, 54, 40, width, height, 1 | 24 << 16, 0, pixels.size, 0, 0, 0, 0]
    head = b"BM" + b"".join(number.to_bytes(4, "little") for number in numbers)
    path.write_bytes(head + pixels[::-1, :, ::-1].tobytes())


def test_folders_of_images_of_one_size_are_told_apart(tmp_path):
    """With black borders, and the only difference in the last of many."""
    for name, shade in (("a", 90), ("b", 90), ("c", 91)):
        (tmp_path / name).mkdir()
        for k in range(70):
            picture = np.zeros((64, 64, 3), np.uint8)
            picture[16:48] = shade if k == 69 else 50
            bitmap(tmp_path / name / f"{k}.bmp", picture)
    assert probe(tmp_path / "a").num_frames_from_content == 70
    a, b, c = (identity(tmp_path / name) for name in "abc")
    assert a == b != c and a["size_bytes"] is None
    (tmp_path / "b" / "notes.txt").write_text("x")
    assert identity(tmp_path / "b") != a


# ------------------------------------------------------------------------------------------------------- damage


def _noise(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (48, 64, 3), dtype=np.uint8) for _ in range(count)]


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("share", [0.9, 0.5, 0.1])
def test_cut_files_are_noticed_and_their_beginning_kept(tmp_path, suffix, share):
    path = tmp_path / f"a.{suffix}"
    faststart = {"movflags": "faststart"} if suffix == "mp4" else {}
    encode(path, _noise(60), [100 * k for k in range(60)], container_options=faststart)
    assert len(times_of(path)) == 60
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(VideoError, match=f"a.{suffix}: .* s.*--keep-partial"):
        times_of(path)
    with sample_frames(path, None, on_damage="skip") as video:
        got = [sample.time for sample in video]
    assert len(got) == pytest.approx(60 * share, abs=6)
    assert video.damage and got == pytest.approx([k / 10 for k in range(len(got))])


def test_flipped_bytes_are_noticed_with_their_second(tmp_path):
    path = tmp_path / "a.mkv"
    encode(path, _noise(60), [100 * k for k in range(60)], options={"bf": "0", "g": "10"})
    with av.open(str(path)) as container:
        packet = next(packet for packet in container.demux(video=0) if packet.pts == 3200)
        inside = bytes(packet)[40:90]
    data = path.read_bytes()
    at = data.find(inside)
    path.write_bytes(data[:at] + bytes(255 - value for value in inside) + data[at + len(inside) :])
    with sample_frames(path, None, on_damage="skip") as video:
        assert len(list(video)) >= 59
    assert len(video.damage) >= 1
    second = float(video.damage[0].split(" near ")[1].split(" s")[0])
    assert second == pytest.approx(3.2, abs=0.5)
    with pytest.raises(VideoError, match="near 3"):
        times_of(path)


def test_sound_longer_than_the_picture_is_not_damage(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream("pcm_s16le", rate=8000)
        for k, picture in enumerate(numbered(10)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = k, Fraction(1, 10)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        for k in range(5):
            block = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
            block.sample_rate, block.pts, block.time_base = 8000, 8000 * k, Fraction(1, 8000)
            container.mux(sound.encode(block))
        container.mux(sound.encode(None))
    with sample_frames(path, None) as video_samples:
        assert len(list(video_samples)) == 10
    assert video_samples.damage == [] and video_samples.last_end_seconds == pytest.approx(1.0)


def test_closing_early_closes_the_file(tmp_path):
    write_video(tmp_path / "a.mp4", numbered(30), fps=10)
    with open(tmp_path / "a.mp4", "rb") as file, sample_frames(file, None) as video:
        next(video)
    assert list(video) == []


# ------------------------------------------------------------------------------------------------------- motion


def _texture(height: int, width: int, seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).random((height // 4 + 2, width // 4 + 2, 3))
    fine = np.kron(coarse, np.ones((4, 4, 1)))[:height, :width]
    fine = (fine + np.roll(fine, 1, 0) + np.roll(fine, 1, 1) + np.roll(fine, 2, 1)) / 4
    return (40 + 170 * fine).astype(np.uint8)


def _moving_square(velocity: int, count: int = 41) -> list[np.ndarray]:
    background, square = _texture(128, 256, 1), _texture(64, 64, 2)
    frames = []
    noise = np.random.default_rng(3)
    for k in range(count):
        picture = background.astype(float)
        picture[32:96, 8 + velocity * k : 72 + velocity * k] = square
        frames.append(np.clip(picture + noise.normal(0, 4, picture.shape), 0, 255).astype(np.uint8))
    return frames


@pytest.mark.parametrize(
    ("parameters", "tolerance"),
    [
        ("bframes=0:ref=1", 0.05),
        ("bframes=3:b-adapt=0:b-pyramid=none:ref=1", 0.3),
        ("bframes=3:b-adapt=0:b-pyramid=normal:ref=1", 0.3),
        ("", 0.6),  # with several references an encoder may point further back than the nearest
    ],
)
@pytest.mark.parametrize("velocity", [2, 4])
def test_vectors_add_up_to_the_distance_travelled(tmp_path, parameters, tolerance, velocity):
    path = tmp_path / "a.mp4"
    write_video(path, _moving_square(velocity), fps=30, options={"x264-params": parameters}, crf=20)
    with sample_frames(path, 6, motion=True) as video:
        samples = list(video)
    assert video.motion_source == "codec"
    assert samples[0].motion_source is None and not samples[0].motion.any()
    ratios = []
    for before, after in itertools.pairwise(samples):
        frames = round((after.time - before.time) * 30)
        left, right = 8 + velocity * round(after.time * 30), 72 + velocity * round(before.time * 30)
        inside = after.motion[5:11, -(-left // 8) : right // 8]  # covered by the square all the while
        ratios.append(float(np.median(inside)) / (velocity * frames))
        assert after.motion[:3].mean() < 0.3 and after.motion[13:].mean() < 0.3
        assert after.motion.dtype == np.float32 and after.motion.shape == (16, 32)
    assert np.mean(ratios) == pytest.approx(1.0, abs=tolerance)


def test_still_videos_do_not_move_even_at_key_frames(tmp_path):
    rng = np.random.default_rng(0)
    picture = _texture(96, 128, 1).astype(int)
    frames = [np.clip(picture + rng.integers(-3, 4, picture.shape), 0, 255).astype(np.uint8) for _ in range(40)]
    write_video(tmp_path / "a.mp4", frames, fps=10, keyframe_every=7)
    for sample in sample_frames(tmp_path / "a.mp4", 2, motion=True):
        assert sample.motion.mean() < 0.2


def test_new_content_counts_as_moving(tmp_path):
    frames = [_texture(96, 128, 1)] * 15 + [_texture(96, 128, 9)] * 15
    for forced in ({"sc_threshold": "0", "bf": "0"}, {"bf": "0"}):  # the cut as a P picture, and as an I picture
        write_video(tmp_path / "a.mp4", frames, fps=10, options=forced)
        maps = [sample.motion.mean() for sample in sample_frames(tmp_path / "a.mp4", 2, motion=True)]
        assert maps[3] > 3 and max(maps[:3] + maps[4:]) < 0.5


@pytest.mark.parametrize(
    ("suffix", "codec", "source"),
    [
        ("mp4", "mpeg4", "codec"),
        ("ts", "mpeg2video", "codec"),
        ("mp4", "libx265", "luma"),
        ("webm", "libvpx-vp9", "luma"),
        ("mov", "prores_ks", "luma"),
    ],
)
def test_motion_source_is_what_the_decoder_offers(tmp_path, suffix, codec, source):
    path = tmp_path / f"a.{suffix}"
    pixel_format = "yuv422p10le" if codec == "prores_ks" else "yuv420p"
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    frames = _moving_square(4, 21)
    write_video(path, frames, fps=30, codec=codec, pixel_format=pixel_format, options=options)
    samples = list(sample_frames(path, 6, motion=True))
    assert {sample.motion_source for sample in samples[1:]} == {source}
    moving, still = samples[-1].motion[5:11, 8:14], samples[-1].motion[[0, 1, -2, -1]]
    assert moving.mean() > 3 * max(still.mean(), 1)


def test_pictures_are_freed_without_the_cycle_collector(tmp_path):
    write_video(tmp_path / "a.mp4", _moving_square(2, 41), fps=30)
    gc.collect()
    gc.freeze()  # what earlier tests left is not looked through for every picture
    gc.disable()
    try:
        for _ in sample_frames(tmp_path / "a.mp4", 6, motion=True):
            alive = sum(isinstance(thing, av.VideoFrame) for thing in gc.get_objects())
            assert alive <= 8  # the held picture, its neighbours, and what the decoder has just handed over
        assert alive > 0  # the collector does see them
    finally:
        gc.enable()
        gc.unfreeze()


def test_luma_motion_is_the_mean_change_of_grey_levels(tmp_path):
    first, second = (np.full((64, 64, 3), 60, np.uint8) for _ in range(2))
    second[:32, :32] = 100
    write_video(tmp_path / "a.mkv", [first, second], fps=2, codec="ffv1", pixel_format="bgr0")
    motion = list(sample_frames(tmp_path / "a.mkv", None, motion=True))[1].motion
    assert motion[:4, :4] == pytest.approx(np.full((4, 4), 40), abs=6) and motion[5:, 5:].max() < 1


# -------------------------------------------------------------------------------------------------- the helpers


def test_decode_ahead_keeps_order_and_bounds_the_queue():
    made = []

    def source():
        for k in range(20):
            made.append(k)
            yield k

    with decode_ahead(source(), 3) as ahead:
        assert next(ahead) == 0
        time.sleep(0.2)
        assert len(made) <= 1 + 3 + 1
        assert list(ahead) == list(range(1, 20))
    with pytest.raises(ValueError, match="depth"):
        decode_ahead([], 0)


def test_decode_ahead_raises_where_the_error_happened():
    def source():
        yield 1
        raise VideoError("broken")

    ahead = decode_ahead(source(), 5)
    assert next(ahead) == 1
    with pytest.raises(VideoError, match="broken"):
        next(ahead)
    assert list(ahead) == []


@pytest.mark.parametrize("how", ["close", "drop"])
def test_decode_ahead_stops_its_thread_when_the_consumer_stops(how):
    closed = threading.Event()

    def source():
        try:
            yield from itertools.count()
        finally:
            closed.set()

    before = threading.active_count()
    ahead = decode_ahead(source(), 2)
    next(ahead)
    if how == "close":
        ahead.close()
    else:
        del ahead
    assert closed.wait(2)
    deadline = time.monotonic() + 2
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_decode_ahead_of_a_video(tmp_path):
    write_video(tmp_path / "a.mp4", numbered(30), fps=10)
    with decode_ahead(sample_frames(tmp_path / "a.mp4", None), 4) as ahead:
        assert [number_of(sample.pixels) for sample in ahead] == list(range(30))


def test_find_videos(tmp_path, monkeypatch):
    for name in ("b/clip10.mp4", "b/clip2.mkv", "b/.hidden.mp4", "b/notes.md", "a.mov", "c/deep/x.webm"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "shots").mkdir()
    for k in range(3):
        (tmp_path / "shots" / f"{k:03}.jpg").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.txt").write_text("# mine\nb/clip2.mkv\n\na.mov\n")

    def names(*paths):
        return [path.relative_to(tmp_path).as_posix() for path in find_videos(paths)]

    everything = ["a.mov", "b/clip2.mkv", "b/clip10.mp4", "c/deep/x.webm", "shots"]
    assert names(tmp_path) == everything
    assert names(tmp_path / "b/notes.md") == ["b/notes.md"]
    assert names(str(tmp_path / "**/*.m*"), tmp_path / "b") == ["a.mov", "b/clip2.mkv", "b/clip10.mp4"]
    assert names(tmp_path / "list.txt", tmp_path) == ["b/clip2.mkv", "a.mov", "b/clip10.mp4", *everything[3:]]
    for path, message in (("gone.mp4", "no such file"), ("http://x.org/a.mp4", "URL")):
        with pytest.raises(VideoError, match=message):
            find_videos([path])
    for path in (tmp_path / "empty", tmp_path / "*.nothing"):
        with pytest.raises(NoVideosError):
            find_videos([path])
    with pytest.raises(NoVideosError):
        find_videos([])


def test_write_video_is_atomic_and_checks_its_frames(tmp_path):
    def failing():
        yield np.zeros((48, 64, 3), np.uint8)
        raise RuntimeError("no more")

    path = tmp_path / "a.mp4"
    with pytest.raises(RuntimeError):
        write_video(path, failing(), fps=10)
    for frames, message in (
        ([], "no frames"),
        ([np.zeros((48, 64), np.uint8)], "uint8"),
        ([np.zeros((48, 64, 3), np.float32)], "uint8"),
        (numbered(1) + numbered(1, 32, 32), "one size"),
    ):
        with pytest.raises(VideoError, match=message):
            write_video(path, frames, fps=10)
    with pytest.raises(VideoError, match="written"):
        write_video(path, numbered(2), fps=10, codec="nonsense")
    with pytest.raises(ValueError, match="fps"):
        write_video(path, numbered(2), fps=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "tolerance"), [("a.png", 0), ("a.jpg", 8)])
def test_write_image_round_trip(tmp_path, name, tolerance):
    picture = quadrants(33, 51)
    data = write_image(tmp_path / name, picture, quality=95)
    assert (tmp_path / name).read_bytes() == data
    with av.open(io.BytesIO(data)) as container:
        back = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert np.median(np.abs(back.astype(int) - picture)) <= tolerance
    assert len(write_image(None, _texture(64, 64, 0), quality=20)) < len(write_image(None, _texture(64, 64, 0)))
    with pytest.raises(VideoError, match="jpeg or png"):
        write_image(tmp_path / "a.bmp", picture)


def test_probe_scan_tells_variable_rates_and_gaps(tmp_path):
    steady = encode(tmp_path / "a.mkv", numbered(30), [round(k * 100 / 3) for k in range(30)], options={"g": "10"})
    info = probe(steady, scan=True)
    assert info.variable_frame_rate is False and info.num_keyframes == 3
    assert info.duration_from == "content" and info.average_fps_from_content == pytest.approx(30, abs=0.05)
    loose = encode(tmp_path / "b.mkv", numbered(5), [0, 40, 80, 900, 940])
    info = probe(loose, scan=True)
    assert info.variable_frame_rate is True and info.largest_gap_seconds == pytest.approx(0.82)
    assert probe(loose).num_frames_from_content is None
    with pytest.raises(dataclasses.FrozenInstanceError):
        info.width = 3  # type: ignore[misc]


# --------------------------------------------------------------------------------------------------- real files


def real(name: str) -> Path:
    path = SHARED / "videos" / name
    if not path.exists():
        pytest.skip(f"{name} is not here")
    return path


@pytest.mark.parametrize(
    ("name", "frames", "size", "end"),
    [
        ("v_ZNVhz7ctTq0.mp4", 420, (480, 360), 14.0),
        ("v_GGSY1Qvo990.mp4", 355, (320, 240), 18.094),
        ("vid1.mp4", 56, (640, 360), 2.24),
        ("flipping_a_pancake.mkv", 310, (426, 240), 10.333),
        ("unordered.mov", 4, (50, 50), 0.125),
        ("video_90.mov", 3, (320, 568), 0.1),
        ("video_270.mov", 3, (320, 568), 0.1),
        ("video_0.mov", 3, (568, 320), 0.1),
        ("av1_video.mkv", 125, (640, 360), 5.0),
        ("h265_10bits.mp4", 30, (200, 200), 1.0),
        ("vfr.mp4", 205, (480, 270), 13.013),
        ("anamorphic.mp4", 60, (640, 270), 2.002),
        ("nasa_13013.mp4", 390, (480, 270), 13.013),
    ],
)
def test_real_files(name, frames, size, end):
    with sample_frames(real(name), 3.0) as video:
        samples = list(video)
    assert video.damage == [] and video.num_frames_decoded == frames
    assert video.last_end_seconds == pytest.approx(end, abs=0.002)
    assert samples[0].time == 0 and (video.info.width, video.info.height) == size
    assert {sample.pixels.shape for sample in samples} == {(size[1], size[0], 3)}
    assert probe(real(name), scan=True).num_frames_from_content == frames


def test_real_three_per_second():
    got = times_of(real("v_ZNVhz7ctTq0.mp4"), 3.0)
    assert got == pytest.approx([k / 3 for k in range(42)], abs=1e-6)


def test_real_times_equal_ffprobe():
    oracle = SHARED / "annotations" / "nasa_13013.mp4.stream3.all_frames_info.json"
    path = real("nasa_13013.mp4")
    if not oracle.exists():
        pytest.skip("no oracle here")
    listed = json.loads(oracle.read_text())
    rows = listed["frames"] if isinstance(listed, dict) else listed
    expected = [float(row.get("pts_time", row.get("pts_seconds"))) for row in rows]
    assert times_of(path) == pytest.approx(expected, abs=1e-6)


def test_real_corrupt_packet():
    path = real("corrupted.mp4")
    with pytest.raises(VideoError, match=r"corrupted\.mp4.*near 3\.\d+ s.*--keep-partial"):
        times_of(path)
    with sample_frames(path, None, on_damage="skip") as video:
        got = [round(sample.time, 3) for sample in video]
    assert got == [k / 10 for k in range(50) if k != 30]
    assert sum("packet was skipped" in line for line in video.damage) == 1


def test_real_edit_list_seeks_like_a_full_decode():
    everything = {sample.time: sample.pixels for sample in sample_frames(real("vid1.mp4"), None)}
    for sample in sample_frames(real("vid1.mp4"), None, start=0.5, end=0.9):
        assert np.array_equal(sample.pixels, everything[sample.time])


def test_real_full_range_colours():
    with av.open(str(real("bt709_full_range.mp4"))) as container:
        frame = next(container.decode(video=0))
    planes = [
        np.frombuffer(bytes(plane), np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width].astype(float)
        for plane in frame.planes
    ]
    luma, blue, red = planes[0], *(np.kron(plane, np.ones((2, 2))) - 128 for plane in planes[1:])
    r, b = luma + 2 * (1 - 0.2126) * red, luma + 2 * (1 - 0.0722) * blue
    g = (luma - 0.2126 * r - 0.0722 * b) / 0.7152
    expected = np.clip(np.stack([r, g, b], axis=-1), 0, 255)
    got = next(sample_frames(real("bt709_full_range.mp4"), 1.0)).pixels
    assert np.abs(got - expected).mean() < 2
