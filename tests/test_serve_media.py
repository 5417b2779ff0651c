"""Files through the server: the right bytes of the right file, and of no other; previews; pictures of strangers."""

import io
import os
import time
from fractions import Fraction
from pathlib import Path

import av
import httpx
import numpy as np
import pytest
from PIL import Image, ImageOps

import everyframe as ef
from everyframe.library import Library
from everyframe.serve.errors import NotFound
from everyframe.serve.media import KnownFiles, media_type, playable
from everyframe.serve.ranges import Span, Unsatisfiable, etag_matches, parse_range, still_current
from everyframe.video import VideoError, probe, sample_frames, write_video
from everyframe.video.identity import identity
from everyframe.video.still import read_still
from everyframe.video.transcode import make_preview
from serve_cases import in_process, made_library, shared

# --- ranges ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("bytes=0-0", (0, 1)),
        ("bytes=0-499", (0, 500)),
        ("bytes=500-", (500, 1000)),
        ("bytes=-1", (999, 1000)),
        ("bytes=-5000", (0, 1000)),
        ("bytes=990-5000", (990, 1000)),
        ("BYTES = 1-2", None),  # no space before the sign
        ("Bytes=1-2", (1, 3)),
        ("bytes=999-", (999, 1000)),
        ("bytes=1000-", "unsatisfiable"),
        ("bytes=5000-6000", "unsatisfiable"),
        ("bytes=-0", "unsatisfiable"),
        ("bytes=5-2", None),
        ("bytes=", None),
        ("bytes=-", None),
        ("bytes=a-b", None),
        ("bytes=0-1,4-5", None),  # several: the whole file
        ("items=0-5", None),
        ("bytes=" + "9" * 200 + "-", None),
    ],
)
def test_parse_range(header, expected):
    """The examples of RFC 9110, section 14.1.2, and what clients make of them, for 1000 bytes."""
    if expected == "unsatisfiable":
        with pytest.raises(Unsatisfiable):
            parse_range(header, 1000)
    else:
        assert parse_range(header, 1000) == (None if expected is None else Span(*expected))


def test_validators():
    assert etag_matches('"a", W/"b"', '"a"', strong=False) and etag_matches('W/"a"', '"a"', strong=False)
    assert etag_matches("*", '"a"', strong=False) and not etag_matches('W/"a"', '"a"', strong=True)
    assert still_current(None, '"a"', "date") and still_current('"a"', '"a"', "date")
    assert not still_current('W/"a"', '"a"', "date") and not still_current('"b"', '"a"', "date")
    assert still_current("Sat, 01 Jan 2022 00:00:00 GMT", '"a"', "Sat, 01 Jan 2022 00:00:00 GMT")
    assert not still_current("Sat, 01 Jan 2022 00:00:01 GMT", '"a"', "Sat, 01 Jan 2022 00:00:00 GMT")


# --- only the recorded file ------------------------------------------------------------------------------


@pytest.fixture
def known(tmp_path):
    """A file larger than both hashed ends, and what a library records of it."""
    path = tmp_path / "video.mp4"
    path.write_bytes(np.random.default_rng(0).bytes(700_000))
    facts = identity(path)
    return path, facts["size_bytes"], facts["fingerprint"]


@pytest.mark.parametrize("size", [1, 1000, 1 << 18, 3 << 18, (3 << 18) + 1, 2_000_000])
def test_fingerprint_is_that_of_the_library(tmp_path, size):
    path = tmp_path / "x"
    data = bytearray(np.random.default_rng(size).bytes(size))
    path.write_bytes(data)
    known, files = identity(path)["fingerprint"], KnownFiles()
    opened = files.open(str(path), size, known)
    os.close(opened.handle)
    assert opened.etag == f'"{known}"'
    data[size * 7 // 8 - (1 << 18) * 3 // 4 if size > 3 << 18 else size // 2] ^= 1  # the last of the pieces between
    path.write_bytes(data)
    with pytest.raises(NotFound):
        files.open(str(path), size, known)


def test_only_the_recorded_content_is_opened(known):
    path, size, fingerprint = known
    files, original = KnownFiles(), path.read_bytes()
    opened = files.open(str(path), size, fingerprint)
    assert os.pread(opened.handle, size, 0) == original and opened.etag == f'"{fingerprint}"'
    os.close(opened.handle)

    def refused(part="moved or changed"):
        with pytest.raises(NotFound, match=part):
            files.open(str(path), size, fingerprint)

    changed = bytearray(original)
    changed[100] ^= 1
    path.write_bytes(changed)  # same size, after it was known
    refused()
    path.write_bytes(original + b"x")
    refused()
    path.unlink()
    refused()
    path.symlink_to("/etc/passwd")
    refused("symbolic link")
    path.unlink()
    target = path.with_name("other.mp4")
    target.write_bytes(original)
    path.symlink_to(target)  # even to the same content
    refused("symbolic link")
    path.unlink()
    os.mkfifo(path)  # opening must not wait for a writer
    refused()
    path.unlink()
    path.mkdir()
    refused()
    path.rmdir()
    os.link(target, path)
    os.close(files.open(str(path), size, fingerprint).handle)  # back again


def test_what_is_no_file_is_not_opened():
    for path, size, fingerprint in (("https://x/y.mp4", 5, "a"), ("/etc/passwd", None, "a"), ("/etc/passwd", 5, None)):
        with pytest.raises(NotFound):
            KnownFiles().open(path, size, fingerprint)
    with pytest.raises(NotFound):
        KnownFiles().open("a\x00b", 5, "a")


@pytest.mark.parametrize(
    ("codec", "container", "name", "plays"),
    [
        ("h264", "mov,mp4,m4a,3gp,3g2,mj2", "a.mp4", True),
        ("h264", "mov,mp4,m4a,3gp,3g2,mj2", "a.mov", True),
        ("av1", "mov,mp4,m4a,3gp,3g2,mj2", "a.mp4", True),
        ("vp9", "matroska,webm", "a.webm", True),
        ("vp8", "matroska,webm", "a.WEBM", True),
        ("h264", "matroska,webm", "a.mkv", False),
        ("hevc", "mov,mp4,m4a,3gp,3g2,mj2", "a.mp4", False),
        ("mpeg4", "avi", "a.avi", False),
        ("h264", "mpegts", "a.ts", False),
        (None, None, "a", False),
    ],
)
def test_playable(codec, container, name, plays):
    assert playable(codec, container, name) is plays
    assert media_type(container, name).startswith(("video/", "application/octet-stream"))


# --- over HTTP -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """moving.avi is nothing that browsers play: MPEG-4 part 2 in AVI; its grey level says which frame it is."""
    folder = tmp_path_factory.mktemp("media")
    frames = (np.full((48, 64, 3), 20 + 2 * k, np.uint8) for k in range(100))
    write_video(folder / "moving.avi", frames, fps=10, codec="mpeg4", options={"b": "1000k"})
    return folder


@pytest.fixture(scope="module")
def archive(videos):
    """The shared library, with one video more as long as this module needs it."""
    _, archive = shared()
    encoder = ef.ReuseEncoder(ef.load("bundled", device="cpu"), plan="adaptive")
    with Library(archive) as library:
        added = library.add(ef.encode_video(videos / "moving.avi", encoder))
        yield archive
        library.remove(added.id)


@pytest.fixture(scope="module")
def api():
    with httpx.Client(base_url=shared()[0].url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def ids(archive):
    with Library(archive) as library:
        return {record.name: str(record.id) for record in library.videos()}


def test_media_answers_ranges(api, archive, ids):
    with Library(archive) as library:
        path = Path(library.video(int(ids["synthetic-31000.mp4"])).path)
    data, url = path.read_bytes(), f"/media/{ids['synthetic-31000.mp4']}"
    whole = api.get(url)
    assert whole.status_code == 200 and whole.content == data
    assert whole.headers["accept-ranges"] == "bytes" and whole.headers["content-type"] == "video/mp4"
    assert whole.headers["content-length"] == str(len(data)) and "content-range" not in whole.headers
    head = api.head(url)
    assert head.status_code == 200 and head.content == b""
    same = ("content-length", "etag", "last-modified", "content-type", "accept-ranges", "content-disposition")
    assert all(head.headers[name] == whole.headers[name] for name in same)
    size = len(data)
    for header, first, last in (("bytes=0-99", 0, 99), ("bytes=-50", size - 50, size - 1), ("bytes=7-", 7, size - 1)):
        part = api.get(url, headers={"range": header})
        assert part.status_code == 206 and part.content == data[first : last + 1]
        assert part.headers["content-range"] == f"bytes {first}-{last}/{size}"
        assert part.headers["content-length"] == str(last - first + 1)
    beyond = api.get(url, headers={"range": f"bytes={size}-"})
    assert beyond.status_code == 416 and beyond.headers["content-range"] == f"bytes */{size}"
    assert api.get(url, headers={"range": "bytes=0-1,5-6"}).content == data
    assert api.head(url, headers={"range": "bytes=0-1"}).status_code == 200  # ranges are of GET alone
    etag = whole.headers["etag"]
    assert api.get(url, headers={"if-none-match": etag}).status_code == 304
    assert api.get(url, headers={"range": "bytes=0-1", "if-range": etag}).status_code == 206
    assert api.get(url, headers={"range": "bytes=0-1", "if-range": '"old"'}).content == data
    assert api.get(url, headers={"range": "bytes=0-1", "if-range": whole.headers["last-modified"]}).status_code == 206


def test_media_is_gone_when_the_file_is(api, archive, ids, videos):
    url, path = f"/media/{ids['moving.avi']}", videos / "moving.avi"
    elsewhere = path.rename(path.with_name("elsewhere.avi"))
    try:
        for put in (None, lambda: path.symlink_to("/etc/passwd"), lambda: path.symlink_to(elsewhere)):
            if put is not None:
                put()
            answer = api.get(url)
            assert answer.status_code == 404 and "root:" not in answer.text
            assert api.get(f"{url}/preview").status_code == 404
            path.unlink(missing_ok=True)
        assert not api.get(f"/api/videos/{ids['moving.avi']}").json()["available"]
    finally:
        elsewhere.rename(path)
    assert api.get(url).status_code == 200


def test_a_preview_is_made_once_and_shows_the_same(api, archive, ids, tmp_path):
    url = f"/media/{ids['moving.avi']}/preview"
    assert not api.get(f"/api/videos/{ids['moving.avi']}").json()["playable"]
    deadline = time.monotonic() + 60
    while (answer := api.get(url, headers={"range": "bytes=0-0"})).status_code == 202:
        assert 0 <= answer.json()["progress"] <= 1 and time.monotonic() < deadline
        time.sleep(0.05)
    assert answer.status_code == 206 and len(answer.content) == 1
    whole = api.get(url)
    assert whole.headers["content-type"] == "video/mp4" and api.head(url).headers["etag"] == whole.headers["etag"]
    assert whole.content in [file.read_bytes() for file in (archive / "previews").iterdir()]
    (tmp_path / "preview.mp4").write_bytes(whole.content)
    info = probe(tmp_path / "preview.mp4", scan=True)
    assert (info.codec, info.width, info.height, info.num_frames_from_content) == ("h264", 64, 48, 100)
    assert info.start_seconds == 0 and info.duration_seconds == pytest.approx(10, abs=0.11)
    levels = [sample.pixels.mean() for sample in sample_frames(tmp_path / "preview.mp4", 10.0, motion=False)]
    np.testing.assert_allclose(levels, 20 + 2 * np.arange(100), atol=3)


def test_previews_keep_to_their_room(archive, ids, tmp_path):
    """The one that was watched longest ago goes; a video that cannot be converted says so."""
    with in_process(made_library(tmp_path), preview_bytes=400_000) as api:
        folder = tmp_path / "archive" / "previews"
        folder.mkdir()
        for age in range(4):
            (folder / f"{age}.mp4").write_bytes(bytes(100_000))
            os.utime(folder / f"{age}.mp4", (1000 - age, 1000 - age))
        video = api.get("/api/videos").json()["videos"][0]["video"]
        deadline = time.monotonic() + 60
        while api.get(f"/media/{video}/preview").status_code == 202:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert {file.name for file in folder.glob("?.mp4")} == {"0.mp4", "1.mp4", "2.mp4"}
        assert len(list(folder.iterdir())) == 4


# --- what a preview is -----------------------------------------------------------------------------------


def with_sound(path, *, seconds=3, delay=1.0, rotate=None):
    """A video that begins `delay` seconds after its sound: a tone of 440 Hz, left louder than right."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=10)
        video.width, video.height, video.pix_fmt = 96, 48, "yuv420p"
        sound = container.add_stream("mp2" if path.suffix == ".ts" else "aac", rate=44100)
        sound.layout = "stereo"
        tone = np.sin(2 * np.pi * 440 * np.arange(int(seconds * 44100)) / 44100)
        samples = (np.stack([tone, tone / 4]) * 20000).astype(np.int16)
        for start in range(0, samples.shape[1] - 1151, 1152):
            frame = av.AudioFrame.from_ndarray(
                samples[:, start : start + 1152].T.reshape(1, -1).copy(), "s16", "stereo"
            )
            frame.sample_rate, frame.pts, frame.time_base = 44100, start, Fraction(1, 44100)
            container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
        for number in range(int((seconds - delay) * 10)):
            pixels = np.full((48, 96, 3), 30 + 5 * number, np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number + round(10 * delay), Fraction(1, 10)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    return path


@pytest.mark.parametrize("suffix", [".mkv", ".ts"])
def test_a_preview_keeps_times_and_sound(tmp_path, suffix):
    source = with_sound(tmp_path / f"x{suffix}")
    make_preview(source, tmp_path / "out.mp4")
    before = list(sample_frames(source, 5.0, motion=False))
    after = list(sample_frames(tmp_path / "out.mp4", 5.0, motion=False))
    assert before[0].time == pytest.approx(after[0].time, abs=0.03)
    np.testing.assert_allclose([s.time for s in after], [s.time for s in before], atol=0.03)
    np.testing.assert_allclose([s.pixels.mean() for s in after], [s.pixels.mean() for s in before], atol=4)
    with av.open(str(tmp_path / "out.mp4")) as container:
        track = container.streams.best("audio")
        assert track.codec_context.name == "aac" and float(track.duration * track.time_base) == pytest.approx(
            3, abs=0.1
        )
        samples = np.concatenate([frame.to_ndarray() for frame in container.decode(track)], axis=1)
    spectrum = np.abs(np.fft.rfft(samples[0, 4800:52800]))
    assert spectrum.argmax() == pytest.approx(440, abs=2)
    assert np.abs(samples[1]).mean() == pytest.approx(np.abs(samples[0]).mean() / 4, rel=0.2)


def test_a_preview_is_small_and_upright(tmp_path):
    """1920 x 1080 turned by its display matrix, and one of odd size."""
    frames = np.zeros((3, 1080, 1920, 3), np.uint8)
    frames[:, :, :200] = 255  # a white strip on the left, which a clockwise turn puts on top
    write_video(tmp_path / "large.mp4", frames, fps=10, options={"preset": "ultrafast"})
    turned = tmp_path / "turned.mp4"
    turned.write_bytes(turn_clockwise((tmp_path / "large.mp4").read_bytes()))
    assert probe(turned).rotation == 90
    make_preview(turned, tmp_path / "out.mp4")
    info = probe(tmp_path / "out.mp4")
    assert (info.width, info.height, info.rotation) == (720, 1280, 0)
    pixels = next(iter(sample_frames(tmp_path / "out.mp4", 10.0, motion=False))).pixels
    assert pixels[:100].mean() > 240 and pixels[200:].mean() < 15
    write_video(tmp_path / "odd.mkv", frames[:, :51, :77], fps=10, codec="ffv1", pixel_format="bgr0")
    make_preview(tmp_path / "odd.mkv", tmp_path / "odd.mp4")
    assert (probe(tmp_path / "odd.mp4").width, probe(tmp_path / "odd.mp4").height) in ((76, 50), (76, 52), (78, 52))


def turn_clockwise(data):
    """The file with another matrix in its track header: 90 degrees clockwise."""
    at = data.index(b"tkhd") + 4 + 40
    fixed = [0, 1 << 16, 0, (1 << 32) - (1 << 16), 0, 0, 0, 0, 1 << 30]
    return data[:at] + b"".join(each.to_bytes(4, "big") for each in fixed) + data[at + 36 :]


def test_a_preview_of_nothing_raises_and_leaves_nothing(tmp_path):
    (tmp_path / "x.mp4").write_bytes(b"no video")
    with pytest.raises(VideoError, match=r"x\.mp4"):
        make_preview(tmp_path / "x.mp4", tmp_path / "out.mp4")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.mp4"]


# --- pictures --------------------------------------------------------------------------------------------

PICTURE = np.kron(np.random.default_rng(0).integers(0, 255, (6, 10, 3), np.uint8), np.ones((16, 16, 1), np.uint8))


def saved(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@pytest.mark.parametrize("format", ["PNG", "GIF", "BMP", "TIFF"])
def test_read_still_equals_pillow(format):
    data = saved(Image.fromarray(PICTURE), format)
    np.testing.assert_array_equal(read_still(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_read_still_turns_photos_upright(format, orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    smooth = Image.fromarray(PICTURE).resize((160, 96), Image.Resampling.BICUBIC)
    data = saved(smooth, format, exif=exif, quality=95)
    wanted = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    got = read_still(data)
    assert got.shape == wanted.shape and np.abs(got.astype(int) - wanted).mean() < 5


def test_read_still_puts_what_is_transparent_on_white():
    alpha = np.zeros((96, 160, 1), np.uint8)
    alpha[:, 80:] = 128
    got = read_still(saved(Image.fromarray(np.concatenate([PICTURE, alpha], axis=2)), "PNG"))
    assert (got[:, :80] == 255).all()
    np.testing.assert_allclose(got[:, 80:], PICTURE[:, 80:] * (128 / 255) + 127, atol=1)


def test_read_still_bounds_sizes(tmp_path):
    data = saved(Image.new("RGB", (3000, 2000), (10, 200, 30)), "PNG")
    with pytest.raises(VideoError, match="3000 x 2000 pixels, more than the 5 million"):
        read_still(data, most_pixels=5_000_000)
    small = read_still(data, shrink_to=60_000)
    assert small.shape == (200, 300, 3) and np.abs(small.astype(int) - (10, 200, 30)).max() <= 1
    (tmp_path / "x.png").write_bytes(data[:100])
    for bad, part in ((b"", "not a picture"), (b"text", "not a picture"), (tmp_path / "x.png", "x.png"),
                      (tmp_path / "missing.png", "no such picture")):  # fmt: skip
        with pytest.raises(VideoError, match=part):
            read_still(bad)
