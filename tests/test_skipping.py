"""Pictures that nobody looks at are not decoded, and all else is as if they were: compared with a full decode."""

from __future__ import annotations

import random
import warnings
import zlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest

from everyframe.video import SampledVideo, TargetRange, VideoError, sample_frames
from everyframe.video.decode import Decoder
from everyframe.video.foresight import FLUSH, Foresight, UnforeseenError
from everyframe.video.packets import Role, Roles
from everyframe.video.shown import Picture

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "videos"
INTERLACED = 1 << 18 | 1 << 29  # interlaced DCT and motion estimation: what makes an H.264 encoder flag its frames
X265 = "log-level=none:pools=1:frame-threads=1:keyint=30:"
FILES: dict[str, tuple[str, str, dict[str, str]]] = {
    "h264.mp4": ("libx264", "steady", {"bf": "3", "g": "40"}),
    "plain.mp4": ("libx264", "steady", {"bf": "0", "g": "30"}),
    "long.mkv": ("libx264", "vfr", {"bf": "8", "g": "250", "x264-params": "b-pyramid=strict"}),
    "open.mp4": ("libx264", "steady", {"x264-params": "open-gop=1:bframes=3:keyint=30:scenecut=0"}),
    "refresh.mkv": ("libx264", "steady", {"x264-params": "intra-refresh=1:keyint=40:bframes=2"}),
    "broadcast.ts": ("libx264", "gap", {"bf": "2", "g": "24", "x264-params": "repeat-headers=1:aud=1"}),
    "fields.mp4": ("libx264", "steady", {"g": "40", "x264-params": "tff=1"}),
    "open265.mp4": ("libx265", "steady", {"preset": "ultrafast", "x265-params": X265 + "bframes=4:b-pyramid=1"}),
    "closed265.ts": ("libx265", "gap", {"preset": "ultrafast", "x265-params": X265 + "open-gop=0:bframes=2"}),
    "layers265.mkv": ("libx265", "vfr", {"preset": "ultrafast", "x265-params": X265 + "bframes=4:temporal-layers=1"}),
    "old.ts": ("mpeg2video", "steady", {"bf": "2", "g": "12"}),
    "older.mp4": ("mpeg4", "steady", {"bf": "2", "g": "40"}),
    "older.avi": ("mpeg4", "steady", {"bf": "2", "g": "40"}),
    "web.webm": ("libvpx-vp9", "vfr", {"deadline": "realtime", "cpu-used": "8", "g": "30"}),
    "intra.mov": ("mjpeg", "steady", {}),
}
SKIPPING = sorted(set(FILES) - {"fields.mp4"})
NUMBER, RATE = 170, 20


def pictures(count: int) -> Iterator[np.ndarray]:
    """A camera that moves over noise, and another place every 50 pictures."""
    rng = np.random.default_rng(0)
    for index in range(count):
        if index % 50 == 0:
            place = np.kron(rng.integers(0, 255, (6, 40, 3)).astype(np.uint8), np.ones((8, 8, 1), np.uint8))
        left = 3 * (index % 50)
        yield np.ascontiguousarray(place[:, left : left + 64])


def write(path: Path, codec: str, kind: str, options: dict[str, str], *, begin: int = 0, count: int = NUMBER) -> Path:
    """Pictures at a steady rate ("steady"), at any times ("vfr"), or with a pause in the middle ("gap")."""
    clock, rng = Fraction(1, RATE), random.Random(3)
    times = [begin + index + (60 if kind == "gap" and index > 90 else 0) for index in range(count)]
    if kind == "vfr":
        clock = Fraction(1, 1000)
        for index in range(1, count):
            times[index] = times[index - 1] + rng.choice([20, 40, 90, 150])
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE, options=options)
        stream.width, stream.height = 64, 48
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.time_base = stream.time_base = clock
        if "tff" in str(options):
            stream.codec_context.flags |= INTERLACED
        for when, picture in zip(times, pictures(count), strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = when, clock
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("skipping")
    made = {}
    for name, (codec, kind, options) in FILES.items():
        if codec in av.codecs_available:
            made[name] = write(folder / name, codec, kind, options)
    return made


def outcome(source: Any, fps: float, **options: Any) -> tuple[Any, SampledVideo | None]:
    """All that a sampling says of a video, or why it could not be read."""
    try:
        with warnings.catch_warnings(), sample_frames(source, fps, **options) as sampled:
            warnings.simplefilter("ignore")
            found = [
                (sample.time, zlib.crc32(sample.pixels.tobytes()), sample.duration, sample.target, sample.picture_type)
                for sample in sampled
            ]
    except VideoError as error:
        return str(error), None
    facts = (sampled.last_end_seconds, sampled.num_frames_decoded, sampled.damage, sampled.head, sampled.tail)
    return (found, facts), sampled


def check(monkeypatch: pytest.MonkeyPatch, source: Any, fps: float, **options: Any) -> int:
    """The outcome is that of a full decode; how many pictures were left out."""
    with monkeypatch.context() as patched:
        patched.setattr(Decoder, "foresee", lambda self, watch: None)
        expected, full = outcome(source, fps, **options)
    got, sampled = outcome(source, fps, **options)
    assert got == expected
    if sampled is None or full is None:
        return 0
    assert full.num_frames_left_out == 0
    return sampled.num_frames_left_out


@pytest.mark.parametrize("name", sorted(FILES))
def test_the_outcome_is_that_of_a_full_decode(files, name, monkeypatch):
    if name not in files:
        pytest.skip("no encoder for it")
    rng = random.Random(name)
    left_out = [check(monkeypatch, files[name], fps, threads=1) for fps in (0.2, 3)]
    assert (left_out[0] > 40) == (name in SKIPPING), left_out
    assert left_out[0] >= left_out[1]
    for fps in (1, 7.3):
        start = rng.choice([None, 2.31, 4.0])
        end = rng.choice([None, 5.5, 6.02])
        check(monkeypatch, files[name], fps, start=start, end=end, threads=rng.choice([2, 4]))
        first = rng.randrange(5)
        targets = TargetRange(first=first, stop=rng.choice([None, first + 1, first + 6]), beyond=rng.choice([0, 1]))
        check(monkeypatch, files[name], fps, targets=targets, on_damage="skip", threads=1)


@pytest.mark.parametrize("name", ["h264.mp4", "open265.mp4"])
def test_pictures_that_nobody_refers_to_are_not_decoded(files, name):
    """FFmpeg's own rule says which: at 3 per second about all of them are left out but those that are wanted."""
    if name not in files:
        pytest.skip("no encoder for it")
    with av.open(str(files[name])) as container:
        container.streams.video[0].codec_context.skip_frame = "NONREF"
        unused = NUMBER - sum(1 for _ in container.decode(video=0))
    before = Decoder.pictures
    _, sampled = outcome(files[name], 3, threads=1)
    decoded = Decoder.pictures - before
    assert decoded == NUMBER - sampled.num_frames_left_out
    assert 0.7 * unused < sampled.num_frames_left_out
    with sample_frames(files[name], None) as every:
        assert len(list(every)) == NUMBER and every.num_frames_left_out == 0
    with sample_frames(files[name], 1, motion=True) as moving:
        assert list(moving) and moving.num_frames_left_out == 0


def test_bytes_and_file_objects_skip_but_streams_do_not(files, monkeypatch):
    data = files["h264.mp4"].read_bytes()
    assert check(monkeypatch, data, 0.5) > 40

    class Stream:
        """A file that cannot be rewound; Matroska can be read so."""

        def __init__(self, data: bytes) -> None:
            self._data = memoryview(data)

        def read(self, size: int) -> bytes:
            part, self._data = self._data[:size], self._data[size:]
            return bytes(part)

    streamed, sampled = outcome(Stream(files["long.mkv"].read_bytes()), 0.5)
    assert sampled.num_frames_left_out == 0
    assert streamed[0] == outcome(files["long.mkv"], 0.5)[0][0]


# ----------------------------------------------------------------------------------------------------- odd files


def test_packets_that_show_nothing_are_no_pictures(tmp_path, monkeypatch):
    """As two-pass VP8 encoders write them; here the bit that says "show it" is taken from some."""
    if "libvpx" not in av.codecs_available:
        pytest.skip("no encoder for it")
    options = {"deadline": "realtime", "cpu-used": "8", "g": "30"}
    whole, some = write(tmp_path / "whole.webm", "libvpx", "steady", options), tmp_path / "some.webm"
    assert check(monkeypatch, whole, 0.2) > 40
    with av.open(str(whole)) as source, av.open(str(some), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if not packet.size:
                continue
            data = bytearray(bytes(packet))
            if number in (47, 95, 143, NUMBER - 1):
                data[0] &= ~0x10
            copy = av.Packet(bytes(data))
            copy.pts, copy.dts, copy.duration = packet.pts, packet.dts, packet.duration
            copy.time_base, copy.stream, copy.is_keyframe = packet.time_base, stream, packet.is_keyframe
            target.mux(copy)
    for fps in (0.2, 0.5, 3):
        assert check(monkeypatch, some, fps, threads=1) == 0


def test_a_clock_that_starts_again(files, tmp_path, monkeypatch):
    whole = files["broadcast.ts"].read_bytes()
    (tmp_path / "joined.ts").write_bytes(whole + whole)
    (tmp_path / "midway.ts").write_bytes(whole[len(whole) // 188 // 3 * 188 :])
    for name in ("joined.ts", "midway.ts"):
        for fps in (0.3, 3):
            check(monkeypatch, tmp_path / name, fps, on_damage="skip", threads=1)


def test_another_size_on_the_way(tmp_path, monkeypatch):
    first = write(tmp_path / "a.ts", "libx264", "steady", {"g": "20"}, count=80)
    second = tmp_path / "b.ts"
    with av.open(str(second), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"g": "20"})
        stream.width, stream.height, stream.pix_fmt = 96, 80, "yuv420p"
        for index in range(80):
            frame = av.VideoFrame.from_ndarray(np.full((80, 96, 3), index, np.uint8), format="rgb24")
            frame.pts, frame.time_base = 100 + index, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    (tmp_path / "joined.ts").write_bytes(first.read_bytes() + second.read_bytes())
    for fps in (0.5, 3):
        check(monkeypatch, tmp_path / "joined.ts", fps, on_damage="skip", threads=1)


@pytest.mark.parametrize("name", ["h264.mp4", "long.mkv", "broadcast.ts", "old.ts"])
@pytest.mark.parametrize("share", [0.97, 0.6])
@pytest.mark.parametrize("on_damage", ["raise", "skip"])
def test_a_file_cut_short_is_reported_as_ever(files, tmp_path, name, share, on_damage, monkeypatch):
    whole = files[name].read_bytes()
    cut = tmp_path / name
    cut.write_bytes(whole[: int(len(whole) * share)])
    for fps in (0.2, 3):
        check(monkeypatch, cut, fps, on_damage=on_damage, threads=1)


def _spoiled(source: Path, target: Path, pts: int) -> Path:
    """A copy whose packet of this time has other bytes after its header."""
    data = source.read_bytes()
    with av.open(str(source)) as container:
        packet = next(packet for packet in container.demux(video=0) if packet.pts == pts)
        start, end = packet.pos + min(20, packet.size // 2), packet.pos + packet.size
    target.write_bytes(data[:start] + bytes(255 - value for value in data[start:end]) + data[end:])
    return target


def test_damage_is_noticed_in_what_is_decoded(tmp_path, monkeypatch):
    """Of pictures that nobody needs it is not looked for; any other damage is listed as a full decode lists it."""
    source = write(tmp_path / "a.mp4", "libx264", "steady", {"bf": "3", "g": "40", "x264-params": "b-adapt=0"})
    with av.open(str(source)) as container:
        stream = container.streams.video[0]
        roles = Roles("h264", stream.codec_context.extradata)
        packets = [(packet.pts, roles.of(packet)) for packet in container.demux(stream) if packet.size]
        ticks = round(1 / stream.time_base / RATE)
    unused = [pts for pts, role in packets if role.disposable and 45 < pts // ticks < 140]
    used = [pts for pts, role in packets if not role.disposable and 50 < pts // ticks < 60]
    wanted = {20 * k for k in range(9)}
    unseen = next(pts for pts in unused if pts // ticks not in wanted)
    spoiled = _spoiled(source, tmp_path / "unseen.mp4", unseen)
    clean, spotless = outcome(source, 1, threads=1)
    got, sampled = outcome(spoiled, 1, threads=1)
    assert not isinstance(got, str), got
    assert got[0] == clean[0] and sampled.num_frames_left_out == spotless.num_frames_left_out
    spoiled = _spoiled(source, tmp_path / "seen.mp4", used[0])
    assert check(monkeypatch, spoiled, 1, on_damage="skip", threads=1) == 0
    with pytest.raises(VideoError, match="--keep-partial"):
        list(sample_frames(spoiled, 1, threads=1))
    everything, _ = outcome(tmp_path / "unseen.mp4", 20, on_damage="skip", threads=1)
    assert everything[1][2], "where every picture is wanted it is noticed"


REAL = ["nasa_13013.mp4", "vfr.mp4", "flipping_a_pancake.mkv", "v_ZNVhz7ctTq0.mp4", "vid1.mp4", "corrupted.mp4"]


@pytest.mark.parametrize("name", REAL)
def test_real_videos(name, monkeypatch):
    if not (SHARED / name).is_file():
        pytest.skip("no shared videos here")
    damaged = name == "corrupted.mp4"
    if not damaged:  # at this rate its damage lies in what nobody needs
        assert check(monkeypatch, SHARED / name, 0.2, on_damage="skip") > 0
    assert (check(monkeypatch, SHARED / name, 3, on_damage="skip") == 0) == damaged


# -------------------------------------------------------------------------------------------- packets, foresight


@pytest.mark.parametrize("name", ["h264.mp4", "open.mp4", "open265.mp4", "closed265.ts", "old.ts", "older.mp4"])
def test_roles_are_those_that_ffmpeg_sees(files, name):
    if name not in files:
        pytest.skip("no encoder for it")
    with av.open(str(files[name])) as container:
        stream = container.streams.video[0]
        stream.codec_context.skip_frame = "NONREF"
        shown = {frame.pts for frame in container.decode(stream)}
    with av.open(str(files[name])) as container:
        context = container.streams.video[0].codec_context
        roles = Roles(context.codec.canonical_name, context.extradata)
        packets = [(packet, roles.of(packet)) for packet in container.demux(video=0) if packet.size]
    assert {packet.pts for packet, role in packets if not role.disposable} == shown
    assert packets[0][1].restarts and all(packet.is_keyframe for packet, role in packets if role.restarts)


def test_sublayers_may_be_referred_to_from_above(files):
    """x265 with temporal layers: only the highest layer is not needed by anybody."""
    if "layers265.mkv" not in files:
        pytest.skip("no encoder for it")
    with av.open(str(files["layers265.mkv"])) as container:
        context = container.streams.video[0].codec_context
        roles = Roles("hevc", context.extradata)
        unused = [bytes(packet) for packet in container.demux(video=0) if packet.size and roles.of(packet).disposable]
    assert unused
    unknown = Roles("hevc", None)
    assert not any(unknown.of(packet).disposable for packet in unused)


@pytest.mark.parametrize("codec", ["h264", "hevc", "mpeg2video", "mpeg4", "vp9", "theora"])
@pytest.mark.parametrize("header", [None, b"", b"\1", b"\1" * 30, b"\0\0\1"])
def test_what_makes_no_sense_is_needed(codec, header):
    class Bytes(bytes):
        is_keyframe = False

    roles = Roles(codec, header)
    rng = random.Random(1)
    for size in (0, 1, 2, 5, 60):
        role = roles.of(Bytes(rng.randbytes(size)))
        assert not role.disposable and not role.restarts
    assert roles.supported == (codec != "theora")


class _All:
    """Needs the pictures at these times."""

    def __init__(self, *times: int) -> None:
        self.times, self.held, self.done = times, None, False

    def see(self, picture: Picture) -> bool:
        held, self.held = self.held, picture
        return held is not None and held.time in self.times

    def last(self) -> bool:
        return False


class _Fixed:
    """Roles that packets name themselves."""

    def of(self, packet: Any) -> Role:
        return packet.role

    def is_news(self, role: Role) -> bool:
        return bool(role.parameters)


def packet(pts: int, role: Role | None = None, **fields: Any) -> SimpleNamespace:
    known = {"pts": pts, "dts": None, "duration": 1, "is_discard": False, "role": role or Role(), **fields}
    return SimpleNamespace(has_sidedata=lambda kind: False, **known)


def foresight(*needed: int) -> Foresight:
    return Foresight(_All(*needed), _Fixed(), ticks=1, shift=0, step=1, last=-1)  # type: ignore[arg-type]


def sent(plan: Foresight, packets: list[SimpleNamespace]) -> list[Any]:
    """Times of the packets to decode before it is known that none follows; -1: flush."""
    found = []
    for each in packets:
        found += [-1 if one is FLUSH else one.pts for one in plan.add(each, None)]
    return found


KEY = Role(restarts=True, closed=True)
OPEN = Role(restarts=True, flush=True)
UNUSED = Role(disposable=True)


def test_what_waits_is_sent_with_what_needs_it():
    group = [packet(0, KEY), packet(4), packet(2), packet(1, UNUSED), packet(3, UNUSED), packet(8), packet(6)]
    rest = [packet(10 + k) for k in range(25)]
    assert sent(foresight(3), group + rest) == [0, 4, 2, 3]
    assert sent(foresight(0), group + rest) == [0]
    assert sent(foresight(6), group + rest) == [0, 4, 2, 8, 6]
    assert sent(foresight(), group + rest) == []


def test_groups_that_nobody_needs_are_left_out():
    groups = [packet(k, KEY if k % 10 == 0 else None) for k in range(60)]
    assert sent(foresight(12, 34), groups) == [10, 11, 12, 30, 31, 32, 33, 34]
    plan = foresight(12)
    assert sent(plan, groups[:35]) == [10, 11, 12]
    # The end of a file is decoded from where that can begin: 30. Unless the container tells that it is whole.
    assert [each.pts for each in plan.finish(to_the_end=True)] == [30, 31, 32, 33, 34]
    plan = foresight(12, 33)
    assert sent(plan, groups[:35]) == [10, 11, 12]
    assert [each.pts for each in plan.finish(to_the_end=False)] == [30, 31, 32, 33]
    assert [picture.time for picture in plan.left_out()] == list(range(10))


def test_what_is_shown_before_an_open_group_needs_the_one_before_it():
    before, after = [packet(k, KEY if k == 0 else None) for k in range(6)], [packet(k) for k in range(9, 40)]
    opened = [packet(8, OPEN), packet(6), packet(7, UNUSED)]
    assert sent(foresight(7), before + opened + after) == [0, 1, 2, 3, 4, 5, 8, 6, 7]
    assert sent(foresight(9), before + opened + after) == [-1, 8, 9]
    assert sent(foresight(1, 8), before + opened + after) == [0, 1, -1, 8]


@pytest.mark.parametrize(
    "bad",
    [
        packet(None),  # type: ignore[arg-type]
        packet(40, dts=3),
        packet(40, Role(parameters=(b"new",))),
        packet(2),
    ],
)
def test_the_unforeseen_raises(bad):
    plan = foresight(12)
    assert sent(plan, [packet(0, KEY, dts=5), *(packet(k) for k in range(1, 35))]) == list(range(13))
    with pytest.raises(UnforeseenError):
        sent(plan, [bad])
    with pytest.raises(UnforeseenError):
        plan.matched(1, 1)  # 0 comes first
    assert plan.matched(0, 1).time == 0
    with pytest.raises(UnforeseenError):
        plan.matched(1, 2)  # it was announced to last 1


def test_few_packets_wait():
    plan = foresight()
    assert sent(plan, [packet(0, KEY), *(packet(k) for k in range(1, 400))]) == []
    assert sent(plan, [packet(k) for k in range(400, 1200)])
