"""Videos on an object store: a real S3 server, real range requests, and what goes wrong with either."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import s3fs

import everyframe as ef
from command import everyframe
from everyframe.video import NoVideosError, VideoError, opening, sample_frames, write_video
from everyframe.video.errors import MissingVideoError, UnreachableError
from everyframe.video.find import find_remote
from everyframe.video.identity import identity
from everyframe.video.remote import RemoteFile, explain, is_remote, local_path, open_remote
from object_store import SETTINGS, s3_server

SERVER = """
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
server._thread.join()
"""


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video that moves, as MP4 (index at the end) and as Matroska; one of noise, which takes megabytes."""
    folder = tmp_path_factory.mktemp("remote")
    rng = np.random.default_rng(0)
    base = rng.integers(0, 255, (96, 200, 3), dtype=np.uint8)
    frames = [np.ascontiguousarray(base[:, t : t + 96]) for t in range(60)]
    for name in ("moves.mp4", "moves.mkv"):
        write_video(folder / name, frames, fps=10)
    noise = (rng.integers(0, 255, (240, 320, 3), dtype=np.uint8) for _ in range(150))
    write_video(folder / "noise.mp4", noise, fps=25, crf=10, options={"preset": "ultrafast"})
    return folder


@pytest.fixture(scope="module")
def store(clips: Path) -> Iterator[Any]:
    with s3_server() as client:
        client.create_bucket(Bucket="bucket")
        for name in ("moves.mp4", "noise.mp4"):
            client.upload_file(str(clips / name), "bucket", name)
        for key in ("in/moves.mp4", "in/b/clip10.mkv", "in/b/clip2.mkv", "in/[a] *.mp4", "in/.hidden/x.mp4"):
            client.upload_file(str(clips / f"moves{key[-4:]}"), "bucket", key)
        client.upload_file(str(clips / "moves.mp4"), "bucket", "public.mp4", {"ACL": "public-read"})
        client.put_object(Bucket="bucket", Key="in/notes.doc", Body=b"no video")
        client.put_object(Bucket="bucket", Key="empty/", Body=b"")
        yield client


@pytest.fixture
def memory(clips: Path) -> Iterator[Any]:
    """fsspec's file system in memory: the simplest of those that are no object store."""
    files = fsspec.filesystem("memory")
    files.pipe("/moves.mp4", (clips / "moves.mp4").read_bytes())
    yield files
    files.rm("/", recursive=True)


def test_features_of_an_object_are_those_of_the_file(store: Any, memory: Any, clips: Path, light: ef.Model) -> None:
    encoder = ef.ResidualViT(light, interleave=2, residual=None)
    here = ef.encode_video(clips / "moves.mp4", encoder, fps=5)
    for address in ("s3://bucket/moves.mp4", "memory://moves.mp4", f"file://{clips}/moves.mp4"):
        there = ef.encode_video(address, encoder, fps=5)
        np.testing.assert_array_equal(there.embeddings, here.embeddings)
        np.testing.assert_array_equal(there.times, here.times)
        assert there.roles == here.roles
        assert there.settings == here.settings
        assert {**there.video, "path": ""} == {**here.video, "path": ""}
        assert there.video["path"] == address
    facts = ef.probe("s3://bucket/moves.mp4", scan=True)
    assert (facts.num_frames_from_content, facts.duration_seconds) == (60, pytest.approx(6.0))


def test_a_stretch_of_an_object_is_that_of_the_file(store: Any, clips: Path) -> None:
    def pixels(source: Any) -> list[np.ndarray]:
        return [sample.pixels for sample in sample_frames(source, 5, start=3.1, end=4.2, motion=True)]

    there, here = pixels("s3://bucket/noise.mp4"), pixels(clips / "noise.mp4")
    assert len(there) == len(here) == 6
    assert all(np.array_equal(one, other) for one, other in zip(there, here, strict=True))


def test_identity_is_that_of_the_file(store: Any, clips: Path) -> None:
    for name in ("moves.mp4", "noise.mp4"):  # smaller and larger than all that is hashed
        here = identity(clips / name)
        assert here["size_bytes"] == (clips / name).stat().st_size
        assert identity(f"s3://bucket/{name}") == here == identity(f"file://{clips}/{name}")
    for size in (0, 1, (1 << 18) - 1, 1 << 18, (1 << 18) + 1, 1 << 19, (3 << 18) - 1, 3 << 18, (3 << 18) + 1):
        path = clips / "any"
        path.write_bytes(random.Random(size).randbytes(size))
        store.upload_file(str(path), "bucket", "any")
        assert identity("s3://bucket/any") == identity(path), size


def test_identity_asks_for_few_bytes(store: Any, clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    fetch = RemoteFile._fetch

    def counted(file: RemoteFile, start: int, end: int) -> bytes:
        asked.append(end - start)
        return fetch(file, start, end)

    monkeypatch.setattr(RemoteFile, "_fetch", counted)
    assert identity("s3://bucket/noise.mp4") == identity(clips / "noise.mp4")
    assert asked == [1 << 18, *4 * [1 << 16], 1 << 18]


def test_reading_at_a_place_stops_with_the_file(memory: Any) -> None:
    memory.pipe("/small.bin", b"0123456789")
    with open_remote("memory://small.bin") as file:
        assert [file.read_at(*place) for place in ((0, 3), (8, 5), (10, 1), (20, 1))] == [b"012", b"89", b"", b""]
        assert file.tell() == 0


def test_a_file_that_could_not_be_opened_can_be_closed() -> None:
    """As Python does when it lets go of it."""
    file = RemoteFile.__new__(RemoteFile)
    with pytest.raises(MissingVideoError):
        file.__init__("memory://gone.mp4")  # type: ignore[misc]
    file.close()
    assert file.closed


def test_identity_of_what_is_not_there(store: Any, clips: Path) -> None:
    for gone in ("s3://bucket/gone.mp4", clips / "gone.mp4", f"file://{clips}/gone.mp4"):
        assert identity(gone) == {}
        with pytest.raises(MissingVideoError, match=r"gone\.mp4"):
            identity(gone, required=True)
    assert identity("https://example.org/x.mp4", required=True) == {}


def test_an_index_at_the_end_is_read_alone(store: Any, clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = (clips / "noise.mp4").read_bytes()
    assert len(data) > 3_000_000
    assert data.find(b"moov") > len(data) * 0.9
    asked: list[tuple[int, int]] = []
    fetch = s3fs.core._fetch_range

    def counted(fs: Any, bucket: str, key: str, version: Any, start: int, end: int, **rest: Any) -> bytes:
        asked.append((start, end))
        return fetch(fs, bucket, key, version, start, end, **rest)

    monkeypatch.setattr(s3fs.core, "_fetch_range", counted)
    ef.probe("s3://bucket/noise.mp4")
    assert sum(end - start for start, end in asked) < 0.2 * len(data)
    asked.clear()
    with sample_frames("s3://bucket/noise.mp4", 1) as samples:
        assert len(list(samples)) == 6
    assert sum(end - start for start, end in asked) <= len(data)  # nothing twice
    assert len(asked) < 10


def test_reading_anywhere_gives_the_bytes_and_keeps_few(memory: Any) -> None:
    data = random.Random(1).randbytes(30_000_000)
    memory.pipe("/large.bin", data)
    dice = random.Random(2)
    with RemoteFile("memory://large.bin") as file:
        assert file.size == len(data)
        for _ in range(150):
            start, count = dice.randrange(len(data) + 10), dice.choice([1, 1000, 300_000, 3_000_000])
            assert file.seek(start) == start
            assert file.read(count) == data[start : start + count]
            assert file.tell() == start + len(data[start : start + count])
            assert sum(map(len, file._pieces.values())) <= 16 << 20
        assert file.seek(-10, os.SEEK_END) == len(data) - 10
        assert file.read() == data[-10:]
        assert file.read(5) == b""
        with pytest.raises(ValueError, match="before the beginning"):
            file.seek(-1)


@pytest.mark.parametrize(
    ("address", "kind", "said"),
    [
        ("s3://bucket/gone.mp4", MissingVideoError, "no such file; check the address"),
        ("s3://none/gone.mp4", MissingVideoError, "no such bucket"),
        ("s3://bucket/in", VideoError, "is a folder"),
        ("s3://bucket/in/", VideoError, "is a folder"),
        ("s3://bucket", VideoError, "is a bucket"),
        ("s3://", VideoError, "is a bucket"),
        ("s3://bucket/in/notes.doc", VideoError, "not a video"),
        ("memory://gone.mp4", MissingVideoError, "no such file"),
    ],
)
def test_what_is_wrong_with_an_address_is_said(store: Any, address: str, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said) as raised:
        ef.probe(address)
    assert str(raised.value).startswith(f"{address}: ")
    assert not isinstance(raised.value, UnreachableError)


def test_missing_credentials_are_named_and_a_denial(
    store: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        with pytest.raises(MissingVideoError, match=r"moves\.mp4: no credentials .* AWS_ACCESS_KEY_ID .* AWS_PROFILE"):
            ef.probe("s3://bucket/moves.mp4")
        monkeypatch.setitem(fsspec.config.conf, "s3", {"anon": "true"})  # what FSSPEC_S3_ANON=true sets
        s3fs.S3FileSystem.clear_instance_cache()
        with pytest.raises(MissingVideoError, match="access denied"):
            ef.probe("s3://bucket/moves.mp4")
        assert ef.probe("s3://bucket/public.mp4").duration_seconds == 6.0
    finally:
        s3fs.S3FileSystem.clear_instance_cache()


def test_denial_and_errors_of_other_stores() -> None:
    class DefaultCredentialsError(Exception):
        """As google.auth names it."""

    denied = explain("s3://b/x.mp4", PermissionError("Forbidden"))
    assert isinstance(denied, MissingVideoError)
    assert "access denied (Forbidden)" in str(denied)
    assert "GOOGLE_APPLICATION_CREDENTIALS" in str(explain("gs://b/x.mp4", DefaultCredentialsError("none")))
    slow = explain("s3://b/x.mp4", TimeoutError())
    assert isinstance(slow, UnreachableError)
    assert "TimeoutError" in str(slow)
    assert len(str(explain("s3://b/x.mp4", OSError("x" * 10_000)))) < 400


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ImportError, match=r"pip install 'everyframe\[gcs\]'"):
        ef.probe("gs://bucket/x.mp4")


def test_an_object_that_is_replaced_meanwhile(store: Any, clips: Path) -> None:
    store.upload_file(str(clips / "noise.mp4"), "bucket", "changes.mp4")
    with open_remote("s3://bucket/changes.mp4") as file:
        file.read(1000)
        store.upload_file(str(clips / "moves.mp4"), "bucket", "changes.mp4")
        file.seek(2_000_000)
        with pytest.raises(UnreachableError, match="was replaced while it was read"):
            file.read(1000)


def test_a_server_that_dies_is_no_damage(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where damage is passed over: what comes after it is there, and trying again helps."""
    import boto3

    server = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        for name, value in {
            **SETTINGS,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{int(server.stdout.readline())}",
        }.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        s3fs.S3FileSystem.clear_instance_cache()
        client = boto3.client("s3")
        client.create_bucket(Bucket="bucket")
        client.upload_file(str(clips / "noise.mp4"), "bucket", "noise.mp4")
        client.close()
        with sample_frames("s3://bucket/noise.mp4", None, on_damage="skip") as samples:
            next(samples)
            server.send_signal(signal.SIGKILL)
            server.wait()
            with pytest.raises(UnreachableError, match=r"noise\.mp4: cannot be read .* check the address"):
                list(samples)
    finally:
        server.kill()
        server.wait()
        server.stdout.close()  # type: ignore[union-attr]
        s3fs.S3FileSystem.clear_instance_cache()


def test_where_only_files_may_be_opened_addresses_are_refused(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "_only", {"protocol_whitelist": "file"})
    with pytest.raises(VideoError, match="only files are opened here"):
        ef.probe("memory://moves.mp4")


def test_which_addresses_are_whose() -> None:
    for mine in ("s3://b/x", "S3://b/x", "s3a://b/x", "gs://b/x", "abfs://c/x", "simplecache::s3://b/x", "hf://a/b"):
        assert is_remote(mine), mine
    for other in ("https://h/x", "http://h/x", "rtsp://h/x", "file:///x", "/x", "x.mp4", "c:x", Path("/x"), b"x", None):
        assert not is_remote(other), other
    assert local_path("file:///a b/x.mp4") == "/a b/x.mp4"
    assert local_path("/x") is None


def test_find_remote(store: Any) -> None:
    inside = ["s3://bucket/in/[a] *.mp4", "s3://bucket/in/b/clip2.mkv", "s3://bucket/in/b/clip10.mkv"]
    assert find_remote("s3://bucket/in/") == find_remote("s3://bucket/in") == [*inside, "s3://bucket/in/moves.mp4"]
    assert find_remote("s3://bucket/in/b/*.mkv") == inside[1:]
    assert find_remote("s3://bucket/**/clip2.*") == [inside[1]]
    assert find_remote("s3://bucket/in/[a] *.mp4") == [inside[0]]  # a name, not a pattern
    assert find_remote("s3://bucket/gone.mp4") == ["s3://bucket/gone.mp4"]  # nothing is asked
    assert find_remote("s3://bucket/in/notes.doc") == ["s3://bucket/in/notes.doc"]
    assert len(find_remote("s3://bucket")) >= 6
    for nothing in ("s3://bucket/empty/", "s3://bucket/none/", "s3://bucket/*.avi"):
        with pytest.raises(NoVideosError, match="no video there"):
            find_remote(nothing)
    with pytest.raises(MissingVideoError, match="no such bucket"):
        find_remote("s3://none/")


def test_encode_command_reads_a_bucket(
    store: Any, tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["s3://bucket/in/", "s3://bucket/pub*.mp4", "--model", "bundled", "--fps", "1", "--out", tmp_path]
    with monkeypatch.context() as down:
        down.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        down.setenv("AWS_MAX_ATTEMPTS", "1")
        s3fs.S3FileSystem.clear_instance_cache()
        away = everyframe("encode", "s3://bucket/in/moves.mp4", *options[2:])
        assert away.returncode == 1
        assert "check the address, its endpoint, the network" in " ".join(away.stderr.split())
    s3fs.S3FileSystem.clear_instance_cache()
    done = everyframe("encode", *options, "s3://bucket/gone.mp4", "--json")
    assert done.returncode == 1
    assert "s3://bucket/gone.mp4: no such file" in done.stdout
    names = ["[a] *.npz", "b/clip10.npz", "b/clip2.npz", "moves.npz", "public.npz"]
    files = [tmp_path / name for name in names]
    assert sorted(tmp_path.rglob("*.npz")) == files
    assert ef.VideoFeatures.load(files[3]).video["fingerprint"] == identity(clips / "moves.mp4")["fingerprint"]
    before = [file.stat().st_mtime_ns for file in files]
    again = everyframe("encode", *options)
    assert again.returncode == 0, again.stderr
    assert before == [file.stat().st_mtime_ns for file in files]
    nothing = everyframe("encode", "s3://none/clips/", "--out", tmp_path, "--model", "bundled")
    assert nothing.returncode != 0
    assert "no such bucket" in " ".join(nothing.stderr.split())
