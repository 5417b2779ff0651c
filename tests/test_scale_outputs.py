"""What a run leaves: places, the manifest, parts of long videos, and the features. Writers here are really killed."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import time
import traceback
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import everyframe as ef
import library_cases
from everyframe.features import VideoFeatures
from everyframe.features.shards import read_index, read_shard
from everyframe.pipeline import Sampling, provenance_of
from everyframe.pipeline.decoding import Finished
from everyframe.pipeline.segments import Segment, SegmentFeatures
from everyframe.scale.listing import Listed
from everyframe.scale.manifest import Attempt, Entry, Manifest, key_of, same_video, video_key
from everyframe.scale.places import OutputError, open_place
from everyframe.scale.sinks import FORMATS, Item, open_sink
from everyframe.scale.staging import Staging
from everyframe.scale.work import Failure
from everyframe.video import write_video
from everyframe.video.identity import identity
from object_store import s3_server

# --- writers to be killed ----------------------------------------------------------------------------------


class Writers:
    """Starts processes that call functions of this module, forked from one that has imported it: in milliseconds."""

    def __init__(self, forks):
        self._orders, theirs = forks.Pipe()
        self._parent = forks.Process(target=_fork_on_order, args=(theirs,))
        self._parent.start()

    def start(self, do, *arguments):
        """The process id of a process that calls do(*arguments)."""
        self._orders.send((do.__name__, arguments))
        return self._orders.recv()

    def wait(self, writer):
        """How it ended: an exit status, or minus the signal that killed it."""
        self._orders.send((None, writer))
        return self._orders.recv()

    def run(self, do, *arguments):
        return self.wait(self.start(do, *arguments))

    def kill(self, writer):
        os.kill(writer, signal.SIGKILL)
        assert self.wait(writer) == -signal.SIGKILL

    def close(self):
        self._orders.close()
        self._parent.join()


def _fork_on_order(orders):
    while True:
        try:
            do, arguments = orders.recv()
        except EOFError:
            return
        if do is None:
            orders.send(os.waitstatus_to_exitcode(os.waitpid(arguments, 0)[1]))
            continue
        child = os.fork()
        if not child:
            status = 1
            try:
                globals()[do](*arguments)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        orders.send(child)


@pytest.fixture(scope="module")
def writers(forks):
    started = Writers(forks)
    yield started
    started.close()


# --- places ------------------------------------------------------------------------------------------------

_numbers = itertools.count()


@pytest.fixture(scope="module")
def store():
    """A client of a real S3 server that has one bucket, "bucket"."""
    pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    with s3_server() as client:
        client.create_bucket(Bucket="bucket")
        yield client


@pytest.fixture(params=["folder", "s3", "memory"])
def out(request, tmp_path):
    """The address of an output that is not there yet."""
    if request.param == "folder":
        return str(tmp_path / "out")
    if request.param == "s3":
        request.getfixturevalue("store")
        return f"s3://bucket/out-{next(_numbers)}"
    pytest.importorskip("fsspec")
    return f"memory://out-{next(_numbers)}"


def test_a_place_holds_whole_files(out, tmp_path):
    place = open_place(out)
    assert place.names() == [] and not place.exists("a.bin")
    place.write("a.bin", b"one")
    place.write("deep/er/b.bin", b"two")
    place.write("a.bin", b"three")
    with place.scratch() as folder:
        (folder / "c").write_bytes(b"x" * 100_000)
        place.publish(folder / "c", "deep/c.bin")
        assert not (folder / "c").exists()
    assert not folder.exists()
    place.write(".everyframe/manifest/m", b"m")
    again = open_place(out)
    assert again.names() == ["a.bin", "deep/c.bin", "deep/er/b.bin"]
    assert again.sizes("deep") == {"deep/c.bin": 100_000, "deep/er/b.bin": 3}
    assert again.names(".everyframe") == [".everyframe/manifest/m"] and again.names("nowhere") == []
    assert again.exists("deep/c.bin") and not again.exists("deep")
    assert again.read("a.bin") == b"three" and again.read_many(["deep/er/b.bin"]) == {"deep/er/b.bin": b"two"}
    assert again.read_many(["a.bin", "deep/er/b.bin"]) == {"a.bin": b"three", "deep/er/b.bin": b"two"}
    with pytest.raises(FileNotFoundError):
        again.read("b.bin")
    again.delete(["a.bin", "never.bin"])
    assert place.names() == ["deep/c.bin", "deep/er/b.bin"] and not place.exists("a.bin")
    for name in ("../a", "/a", "", "a/../../b"):
        with pytest.raises(ValueError, match="relative"):
            place.write(name, b"")


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """And then the name is: no power cut leaves a half one, or takes what `write` had returned from."""
    place, steps = open_place(tmp_path), []
    (tmp_path / "deep").mkdir()
    fsync, rename = os.fsync, os.replace

    def flushed(handle):
        steps.append(("flush", os.fstat(handle).st_ino))
        fsync(handle)

    def renamed(old, new):
        steps.append(("rename", os.stat(old).st_ino))
        rename(old, new)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", renamed)
    place.write("deep/a.bin", b"content")
    with place.scratch() as folder:
        (folder / "b").write_bytes(b"content")
        place.publish(folder / "b", "deep/b.bin")
    for name in ("a.bin", "b.bin"):
        file = os.stat(tmp_path / "deep" / name).st_ino
        own = [step for step, inode in steps if inode == file]
        assert own[0] == "flush" and own[-1] == "rename"
        last = steps.index(("rename", file), steps.index(("flush", file)) + len(own) - 1)
        assert steps[last + 1] == ("flush", os.stat(tmp_path / "deep").st_ino)


def test_a_listing_is_whole_whatever_goes_away_meanwhile(tmp_path, monkeypatch):
    place = open_place(tmp_path)
    names = [f"{number:03d}.bin" for number in range(20)]
    for name in names:
        place.write(name, b"x")
    scan = os.scandir

    @contextmanager
    def scan_slowly(folder):
        with scan(folder) as entries:
            found = list(entries)
        place.delete(["007.bin"])
        yield found

    monkeypatch.setattr(os, "scandir", scan_slowly)
    assert place.names() == [name for name in names if name != "007.bin"]


def test_places_that_cannot_be_used(store, tmp_path, monkeypatch):
    import s3fs

    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match=r"file.* cannot be written: a file is in the way of a folder"):
        open_place(tmp_path / "file" / "out")
    with pytest.raises(OutputError, match=r"s3://no-such-bucket/out.* there is no such bucket; check the address"):
        open_place("s3://no-such-bucket/out")
    with pytest.raises(ValueError, match="sftp:// is none of these"):
        open_place("sftp://host/out")
    with pytest.raises(ValueError, match="folder or an address"):
        open_place("")
    with monkeypatch.context() as patch:
        patch.delenv("AWS_ACCESS_KEY_ID")
        patch.delenv("AWS_SECRET_ACCESS_KEY")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        patch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
        s3fs.S3FileSystem.clear_instance_cache()
        with pytest.raises(OutputError, match="no credentials were found; set them in the environment"):
            open_place("s3://bucket/out")
        s3fs.S3FileSystem.clear_instance_cache()


def test_an_output_needs_the_package_of_its_store():
    try:
        import gcsfs  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match=r"everyframe\[gcs\]"):
            open_place("gs://bucket/out")


@contextmanager
def _disk(folder: Path, size: str):
    folder.mkdir()
    if (
        os.geteuid()
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True
        ).returncode
    ):
        pytest.skip("only root may mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_read_only_disk(tmp_path):
    with _disk(tmp_path / "disk", "1m") as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(OutputError, match="it is on a read-only file system"):
            open_place(disk / "out")


# --- keys --------------------------------------------------------------------------------------------------


def test_a_key_is_of_content_and_settings(light, tmp_path):
    video = tmp_path / "clip.mp4"
    write_video(video, np.random.default_rng(0).integers(0, 255, (20, 64, 96, 3), dtype=np.uint8), fps=10)
    encoder, sampling = ef.ReuseEncoder(light), Sampling(fps=3)
    key = video_key(str(video), identity(video), provenance_of(encoder, sampling, "float32"))
    assert key_of(ef.encode_video(video, encoder, fps=3.0)) == key
    copy = tmp_path / "copy.mp4"
    shutil.copy(video, copy)
    assert key_of(ef.encode_video(str(copy), encoder, fps=3.0)) == key
    for other in (
        video_key(str(video), identity(video), provenance_of(encoder, Sampling(fps=2.0), "float32")),
        video_key(str(video), identity(video), provenance_of(encoder, sampling, "float16")),
        video_key(str(video), identity(video), provenance_of(ef.DenseEncoder(light), sampling, "float32")),
    ):
        assert other != key and same_video(other, key)
    facts = provenance_of(encoder, sampling, "float32")
    foreign = {**facts, "model": {**facts["model"], "weights_sha256": "other"}}
    assert video_key(str(video), identity(video), foreign) != key
    later = {**facts, "settings": {**facts["settings"], "version": "99"}}
    assert video_key(str(video), identity(video), later) == key
    with open(copy, "ab") as file:
        file.write(b"more")
    assert not same_video(video_key(str(copy), identity(copy), facts), key)
    addresses = [video_key(f"http://host/{name}", {}, facts) for name in "aab"]
    assert addresses[0] == addresses[1] != addresses[2]


# --- the manifest ------------------------------------------------------------------------------------------


def entry(number: int, status="done", **more) -> Entry:
    names = {"source": f"/videos/{number}.mp4", "name": f"{number}"}
    outputs = {"output": f"{number}.npz", "frames": 10} if status in ("done", "partial") else {}
    return Entry(key=_key(number), status=status, **{**names, **outputs, **more})


def _key(number: int) -> str:
    return f"{number:024x}-0123456789ab"


def test_a_manifest_says_again_what_was_recorded(out):
    place = open_place(out)
    first = entry(1, seconds=1.5, i_frames=3, attempts=2)
    odd = entry(4, source="/videos/ü \udcff\n\"'.mp4", status="failed", kind="video", message="it is\nbroken")
    copy = Entry(key=_key(1), source="/videos/copy.mp4", name="copy", status="duplicate", output="1.npz")
    tries = [Attempt(key=_key(3), segment=(0, 90), kind="crash", message="died"),
             Attempt(key=_key(3), segment=(90, None), kind="hang", message="said nothing")]  # fmt: skip
    with Manifest(place, run="one") as manifest:
        manifest.record([first, entry(2, "failed", kind="crash", message="no")], tries)
        manifest.record([copy, odd])
        manifest.record([])
        held = manifest.get(_key(1))
    for run in ("two", "three"):  # the second time from a joined file
        with Manifest(place, run=run) as manifest:
            assert manifest.get(_key(1)) == held == dataclasses.replace(first, run="one")
            assert len(manifest) == 3 and manifest.get(_key(9)) is None
            assert manifest.get(_key(4)) == dataclasses.replace(odd, run="one")
            assert [each.source for each in manifest.entries()][-1] == "/videos/copy.mp4"
            assert manifest.attempts(_key(3)) == [dataclasses.replace(each, run="one") for each in tries]
            assert manifest.attempts(_key(1)) == []
    with Manifest(place, run="four") as manifest:
        manifest.record([entry(2), entry(3, "quarantined", kind="hang")])
        assert manifest.attempts(_key(3)) == []
    with Manifest(place) as manifest:
        assert manifest.get(_key(2)).status == "done" and manifest.get(_key(2)).run == "four"
        assert manifest.forget_failures() == 2  # 3 and 4
    with Manifest(place) as manifest:
        assert manifest.get(_key(3)) is None and len(manifest) == 2
        assert sum(each.status == "duplicate" for each in manifest.entries()) == 1
    assert len(place.names(".everyframe/manifest")) == 1


@pytest.mark.parametrize(
    ("made", "keep_partial", "settled"),
    [
        (entry(1), False, True),
        (entry(1, "partial", keep_partial=True), True, True),
        (entry(1, "partial", keep_partial=True), False, False),
        (entry(1, "failed", kind="video"), False, True),
        (entry(1, "failed", kind="video"), True, False),
        (entry(1, "failed", kind="video", keep_partial=True), True, True),
        (entry(1, "failed", kind="video", version="0.0.1"), False, False),
        (entry(1, "failed", kind="output"), False, False),  # it says nothing of the video
        (entry(1, "quarantined", kind="crash"), False, True),
    ],
)
def test_what_settles_a_video(tmp_path, made, keep_partial, settled):
    with Manifest(open_place(tmp_path)) as manifest:
        assert manifest.settled(made.key, keep_partial=keep_partial) is None
        manifest.record([made])
        assert (manifest.settled(made.key, keep_partial=keep_partial) is not None) == settled


def test_outputs_are_told_without_decoding(tmp_path):
    outputs = ["plain.npz", 'with "quotes".npz', "ümlaut.npz", 'text "output":"x.npz', "back\\slash.npz"]
    with Manifest(open_place(tmp_path)) as manifest:
        text = 'says "output":"other.npz"'
        manifest.record([entry(number, output=output, source=text) for number, output in enumerate(outputs)])
        manifest.record([entry(7, "failed", message=text), entry(0, output="plain.npz")])
        assert manifest.outputs() == [(_key(number), outputs[number]) for number in (1, 2, 3, 4, 0)]


def test_many_records_stay_few_files(tmp_path, monkeypatch):
    monkeypatch.setattr("everyframe.scale.manifest._MOST_FILES", 8)
    place, kept = open_place(tmp_path), {}
    with Manifest(place) as manifest:
        for number in range(40):
            made = entry(number % 28, frames=number)
            manifest.record([made], [Attempt(key=_key(1000 + number), segment=(0, None), kind="crash", message="")])
            kept[made.key] = number
            assert len(place.names(".everyframe/manifest")) < 12
    with Manifest(place) as manifest:
        assert {each.key: each.frames for each in manifest.entries()} == kept
        assert all(len(manifest.attempts(_key(1000 + number))) == 1 for number in range(40))


def test_damage_is_no_less_work_done(out):
    place = open_place(out)
    with Manifest(place) as manifest:
        manifest.record([entry(1), entry(2)])
    (name,) = place.names(".everyframe/manifest")
    whole = place.read(name)
    header, _, body = whole.partition(b"\n")
    newer = json.dumps({**json.loads(header), "version": 9}).encode() + b"\n" + body
    for broken, message in (
        (whole[:-30], "damaged"),
        (header + b"\n", "damaged"),
        (whole.replace(b"1.mp4", b"7.mp4"), "damaged"),
        (newer, "format version 9, this everyframe reads 1; upgrade"),
        (b"", "not a file of a manifest"),
        (b'{"key": "a"}\n', "not a file of a manifest"),
    ):
        place.write(name, broken)
        with pytest.raises(OutputError, match=message) as error:
            Manifest(place)
        assert name in str(error.value)
    place.delete([name])
    place.write(".everyframe/manifest/notes.txt", b"mine")
    with pytest.raises(OutputError, match=r"notes\.txt is not a file of a manifest: move it away"):
        Manifest(place)


def test_a_second_driver_is_refused(writers, tmp_path):
    place = open_place(tmp_path / "out")
    holder = writers.start(_hold, place.address, str(tmp_path / "ready"))
    while not (tmp_path / "ready").exists():
        time.sleep(0.005)
    with pytest.raises(OutputError, match=f"is being written to by another run, process {holder}; wait"):
        Manifest(place)
    writers.kill(holder)
    with Manifest(place) as manifest:
        assert len(manifest) == 1
        with pytest.raises(OutputError, match=str(os.getpid())):  # in one process, too
            Manifest(place)
    Manifest(place).close()


def _hold(out, ready):
    manifest = Manifest(open_place(out))
    manifest.record([entry(1)])
    Path(ready).touch()
    time.sleep(600)


def test_two_drivers_of_an_object_store_lose_nothing(store, monkeypatch):
    """There are no locks: each joins the files of both, and neither overwrites."""
    monkeypatch.setattr("everyframe.scale.manifest._MOST_FILES", 8)
    place = open_place("s3://bucket/two")
    with Manifest(place) as before:
        before.record([entry(1000)])
    one, two = Manifest(place), Manifest(place)
    for number in range(0, 24, 2):
        one.record([entry(number)])
        two.record([entry(number + 1)])
    with Manifest(place) as both:
        assert len(both) == 25


# --- killed ------------------------------------------------------------------------------------------------


def test_a_manifest_whose_writer_is_killed(writers, tmp_path):
    """At random moments, 6 times: what `record` had returned from is there, and nothing is half there."""
    out, log = tmp_path / "out", tmp_path / "log"
    log.touch()
    random.seed(3)
    for _ in range(6):
        before = len(log.read_text().splitlines())
        writer = writers.start(_record_for_ever, str(out), str(log))
        while len(log.read_text().splitlines()) < before + 5:
            time.sleep(0.002)
        time.sleep(random.uniform(0, 0.08))
        writers.kill(writer)
        told = [int(line) for line in log.read_text().splitlines()]
        with Manifest(open_place(out)) as manifest:
            there = {int(each.key.partition("-")[0], 16): each for each in manifest.entries()}
            assert set(told) <= set(there) and len(there) <= len(told) + 12
            assert sorted(there) == list(range(len(there)))  # each record all or nothing, and in order
            assert all(manifest.attempts(_key(10**6 + number)) for number in told)
        log.write_text("".join(f"{number}\n" for number in sorted(there)))
    assert not list(out.rglob("*.part")) and len(there) >= 30


def _record_for_ever(out, log):
    with Manifest(open_place(out)) as manifest, open(log, "a") as file:
        number = len(manifest)
        while True:
            attempt = Attempt(key=_key(10**6 + number), segment=(0, None), kind="crash", message="")
            manifest.record([entry(number)], [attempt])
            file.write(f"{number}\n")
            file.flush()
            number += 1


LISTED = [Listed(source=f"/videos/{number}.mp4", name=f"cats/{number}") for number in range(7)]
FACTS = {"model": library_cases.tiny().model, "settings": library_cases.tiny().settings}


def features(listed: Listed, frames: int = 12, **settings) -> VideoFeatures:
    return library_cases.tiny(listed.source, frames, seed=int(Path(listed.source).stem), **settings)


def drive(out, format, steps=None, log=None, *, keep_partial=False, videos=None):
    """A driver as small as can be, in writes of two videos. The names it wrote, and all entries."""
    if steps is not None:
        _die_before(steps)
    place, written = open_place(out), []
    with Manifest(place, run="drive") as manifest:
        options = {"manifest": manifest, "provenance": FACTS, "keep_partial": keep_partial, "shard_bytes": 9000}
        sink = open_sink(place, format, **options)
        todo = []
        for listed in LISTED:
            feats = (videos or {}).get(listed.name) or features(listed)
            item = Item(key=key_of(feats), listed=listed, features=feats)
            known = manifest.settled(item.key, keep_partial=keep_partial)
            if known and sink.has(known):
                continue
            adopted = sink.adopt(item.key, listed)
            if isinstance(adopted, Entry):
                manifest.record([adopted])
            elif adopted is None:
                todo.append(item)
        for first in range(0, len(todo), 2):
            receipt = sink.write(todo[first : first + 2])
            assert receipt.error is None and not receipt.failures
            assert [each.name for each in receipt.entries] == [each.listed.name for each in todo[first : first + 2]]
            written += [each.name for each in receipt.entries]
            if log is not None:
                with open(log, "a") as file:
                    file.writelines(f"{each.name}\n" for each in receipt.entries)
        last = sink.close()
        assert last.error is None and not last.failures
        return written, list(manifest.entries())


def _die_before(steps: int) -> None:
    """Kill this process before the step of this number: a flush, a rename, a removal."""
    left = itertools.count(steps, -1)

    def counted(step):
        def call(*args, **keywords):
            if not next(left):
                os.kill(os.getpid(), signal.SIGKILL)
            return step(*args, **keywords)

        return call

    os.fsync, os.replace, Path.unlink = counted(os.fsync), counted(os.replace), counted(Path.unlink)


def check_once(out, format, entries):
    """Every video is in the output once, whole, and the manifest says where."""
    assert sorted(each.name for each in entries) == sorted(each.name for each in LISTED)
    assert {each.status for each in entries} == {"done"}
    by_output = {each.output: each for each in entries}
    place = open_place(out)
    if format == "webdataset":
        assert place.names(".everyframe/pending") == []
        found = [(f"{name}#{key}", feats) for name in place.names() for key, feats in read_shard(f"{out}/{name}")]
        assert len(place.names()) >= 2
    else:
        found = [(name, VideoFeatures.load(Path(out, name))) for name in place.names()]
    assert sorted(name for name, _ in found) == sorted(by_output)
    for name, feats in found:
        expected = features(Listed(source=by_output[name].source, name=""))
        assert np.array_equal(feats.embeddings, expected.embeddings) and key_of(feats) == by_output[name].key
    litter = [file for file in Path(out).rglob("*") if file.suffix == ".part" or "scratch" in file.parts]
    assert not [file for file in litter if ".everyframe" in file.parts and file.is_file()]


@pytest.mark.parametrize("format", ["npz", "webdataset"])
def test_a_writer_killed_before_any_step(writers, tmp_path, format):
    """Killed at a step, run again: every video once, and none that was told of is written again."""
    died = 0
    for steps in itertools.chain(range(0, 12, 2), range(12, 1000, 11)):
        out, log = tmp_path / f"out{steps}", tmp_path / f"log{steps}"
        log.touch()
        status = writers.run(drive, str(out), format, steps, str(log))
        assert status in (0, -signal.SIGKILL)
        told = log.read_text().splitlines()
        written, entries = drive(str(out), format)
        check_once(str(out), format, entries)
        assert not set(told) & set(written)
        assert drive(str(out), format) == ([], entries)
        if status == 0:
            break
        died += 1
    assert died > 6 and len(told) == len(LISTED) and not written


@pytest.mark.parametrize("format", ["npz", "npy"])
def test_a_writer_killed_while_it_overwrites_files(writers, tmp_path, format):
    """By those of other settings. Then the first settings are asked for again: no file passes for what it was."""
    slow = {each.name: features(each, fps=1.0) for each in LISTED[:3]}
    drive(tmp_path / "first", format)
    died = wrong = 0
    for steps in range(0, 1000, 3):
        out = tmp_path / f"out{steps}"
        shutil.copytree(tmp_path / "first", out)
        status = writers.run(_drive_slow, str(out), format, steps)
        if status == 0:
            break
        assert status == -signal.SIGKILL
        died += 1
        wrong += any(
            key_of(VideoFeatures.load(out / f"{name}.{format}")) == key_of(feats)
            for name, feats in slow.items()
            if (out / f"{name}.{format}").exists() and _is_whole(out / f"{name}.{format}")
        )
        _, entries = drive(str(out), format)
        by_key = {each.key: each for each in entries if each.status == "done"}
        for each in LISTED:
            feats = VideoFeatures.load(out / f"{each.name}.{format}")
            assert key_of(feats) == key_of(features(each)) and by_key[key_of(feats)].output == f"{each.name}.{format}"
            assert np.array_equal(feats.times, features(each).times)
    assert died > 4 and wrong


def _drive_slow(out, format, steps):
    videos = {each.name: features(each, fps=1.0) for each in LISTED[:3]}
    drive(out, format, steps, videos=videos)


def _is_whole(file):
    try:
        VideoFeatures.load(file)
    except ef.FeaturesError:
        return False
    return True


@pytest.mark.parametrize(
    ("out", "format"),
    [(out, "npy") for out in ("s3", "memory")]
    + [("s3", "webdataset")]
    + [("folder", format) for format in ("npz", "npy", "h5", "parquet", "webdataset", "library")],
    indirect=["out"],
)
def test_every_sink_takes_each_video_once(out, format):
    for package in {"h5": ["h5py"], "parquet": ["pyarrow"], "library": ["lancedb"]}.get(format, []):
        pytest.importorskip(package)
    written, entries = drive(out, format)
    assert sorted(written) == sorted(each.name for each in LISTED)
    assert [(each.frames, each.i_frames, each.seconds) for each in entries] == [(12, 3, 4.0)] * len(LISTED)
    place = open_place(out)
    assert drive(out, format) == ([], entries)
    moved_away = place.names(".everyframe/manifest")
    place.delete(moved_away)
    again, found = drive(out, format)  # from the outputs alone
    key, times = (lambda each: each.key), ("when", "attempts")
    plain = [dataclasses.replace(each, **dict.fromkeys(times)) for each in sorted(entries, key=key)]
    assert not again and [dataclasses.replace(each, **dict.fromkeys(times)) for each in sorted(found, key=key)] == plain
    if format in ("npz", "npy", "h5", "parquet"):
        names = [f"cats/{number}.{format}" for number in range(len(LISTED))]
        pairs = [f"{name}.json" for name in names] if format == "npy" else []
        assert place.names() == sorted(names + pairs)
        place.delete(names[2:4])
        again, _ = drive(out, format)
        assert again == ["cats/2", "cats/3"]  # what was removed is made again
        other, _ = drive(out, "npz" if format != "npz" else "npy")
        assert len(other) == len(LISTED)


def test_files_are_those_of_save(tmp_path):
    drive(tmp_path / "out", "npz")
    features(LISTED[3]).save(tmp_path / "3.npz")
    assert (tmp_path / "out/cats/3.npz").read_bytes() == (tmp_path / "3.npz").read_bytes()


def test_what_is_in_the_way_of_a_file(out, tmp_path):
    place = open_place(out)
    mine = Path(tmp_path / "mine.npz")
    np.savez(mine, a=np.zeros(3))
    foreign, names = mine.read_bytes(), [each.name for each in LISTED]
    place.write("cats/0.npz", foreign)  # somebody's own
    place.write("cats/1.npz", mine.read_bytes()[:99])  # as of ours that was cut short
    for number, feats in ((2, features(LISTED[5])), (3, features(LISTED[3], note="other")), (4, features(LISTED[4]))):
        file = feats.save(tmp_path / f"{number}.npz")
        place.write(f"cats/{number}.npz", file.read_bytes())
    with Manifest(place) as manifest:
        sink = open_sink(place, "npz", manifest=manifest, provenance=FACTS)
        found = [sink.adopt(key_of(features(each)), each) for each in LISTED]
        bad = sink.adopt(_key(1), Listed(source="/videos/x.mp4", name="../x"))
    assert [type(each) for each in found] == [Failure, type(None), Failure, type(None), Entry, type(None), type(None)]
    assert "not an everyframe features file; it is not overwritten: move it away" in found[0].message
    assert "holds the features of /videos/5.mp4; choose another --out" in found[2].message
    assert found[0].kind == found[2].kind == bad.kind == "output" and "without '..'" in bad.message
    written, _ = drive(out, "npz")
    assert written == [names[1], names[3], names[5], names[6]] and place.read("cats/0.npz") == foreign


def test_a_file_that_was_overwritten_is_no_longer_there(tmp_path):
    """By a run with other settings, or after the video had changed for a while."""
    slow = {each.name: features(each, fps=1.0) for each in LISTED}
    changed = {LISTED[0].name: library_cases.tiny(LISTED[0].source, fingerprint="changed")}
    for videos, count in ((None, 7), (slow, 7), (slow, 0), (None, 7), (changed, 1), (None, 1), (None, 0), (slow, 7)):
        written, _ = drive(tmp_path, "npz", videos=videos)
        assert len(written) == count
        for each in LISTED:
            wanted = (videos or {}).get(each.name) or features(each)
            assert key_of(VideoFeatures.load(tmp_path / f"{each.name}.npz")) == key_of(wanted)


def test_parts_of_damaged_videos(tmp_path):
    broken = features(LISTED[1], damage=["no frames from 2 to 4 s"])
    videos = {LISTED[1].name: broken}
    written, entries = drive(tmp_path / "out", "npz", keep_partial=True, videos=videos)
    (part,) = [each for each in entries if each.status == "partial"]
    assert len(written) == len(LISTED) and (part.name, part.message) == (LISTED[1].name, "no frames from 2 to 4 s")
    assert drive(tmp_path / "out", "npz", keep_partial=True, videos=videos)[0] == []
    assert drive(tmp_path / "out", "npz")[0] == [LISTED[1].name]  # now the whole is wanted
    drive(tmp_path / "tar", "webdataset", keep_partial=True, videos=videos)
    place = open_place(tmp_path / "tar")
    with Manifest(place) as manifest:
        sink = open_sink(place, "webdataset", manifest=manifest, provenance=FACTS)
        refused = sink.adopt(key_of(broken), LISTED[1])
    assert isinstance(refused, Failure) and "a tar cannot be changed; choose another --out" in refused.message


def test_shards_are_read_by_webdataset(tmp_path):
    wds = pytest.importorskip("webdataset")
    drive(tmp_path / "out", "webdataset")
    shards = sorted(map(str, (tmp_path / "out").glob("*.tar")))
    assert [Path(shard).name for shard in shards] == [f"features-{number:06d}.tar" for number in range(len(shards))]
    samples = list(wds.WebDataset(shards, shardshuffle=False, empty_check=False).decode())
    assert sorted(sample["__key__"] for sample in samples) == [f"cats/{number}" for number in range(len(LISTED))]
    for sample in samples:
        expected = features(Listed(source=sample["json"]["video"]["path"], name=""))
        assert np.array_equal(sample["npy"], expected.embeddings)
        assert np.array_equal(sample["times.npy"], expected.times)


def test_a_shard_that_was_removed_is_made_again_under_another_number(tmp_path):
    _, entries = drive(tmp_path / "out", "webdataset")
    last = max(each.output for each in entries).partition("#")[0]
    lost = {each.name for each in entries if each.output.startswith(last)}
    (tmp_path / "out" / last).unlink()
    again, entries = drive(tmp_path / "out", "webdataset")
    assert set(again) == lost and not (tmp_path / "out" / last).exists()
    check_once(str(tmp_path / "out"), "webdataset", entries)


def test_shards_hold_one_kind_of_features(tmp_path):
    drive(tmp_path / "out", "webdataset")
    place = open_place(tmp_path / "out")
    other = {**FACTS, "settings": {**FACTS["settings"], "fps": 1.0}}
    for with_manifest in (True, False):
        if not with_manifest:
            place.delete(place.names(".everyframe/manifest"))
        with Manifest(place) as manifest, pytest.raises(OutputError, match=r"other settings or .*choose another --out"):
            open_sink(place, "webdataset", manifest=manifest, provenance=other)
    place.write("features-000100.tar", b"x" * 10240)
    with Manifest(place) as manifest, pytest.raises(OutputError, match=r"000100\.tar is no shard .*move it away"):
        open_sink(place, "webdataset", manifest=manifest, provenance=FACTS)


def test_damage_to_what_waits_for_its_shard(tmp_path):
    place = open_place(tmp_path)
    items = [Item(key=key_of(features(each)), listed=each, features=features(each)) for each in LISTED]
    with Manifest(place) as manifest:
        sink = open_sink(place, "webdataset", manifest=manifest, provenance=FACTS)
        assert len(sink.write(items).entries) == len(LISTED)
        place.write(f".everyframe/pending/{items[2].key}.pending", b"damaged")
        receipt = sink.close()
        assert [each.source for each in receipt.failures.values()] == [LISTED[2].source] and receipt.error is None
        assert "were damaged before they were in a shard; run again" in receipt.failures[items[2].key].message
    written, entries = drive(tmp_path, "webdataset")
    assert written == [LISTED[2].name]
    check_once(str(tmp_path), "webdataset", entries)


def test_a_shard_that_somebody_else_made_is_not_overwritten(tmp_path):
    place = open_place(tmp_path)
    items = [Item(key=key_of(features(each)), listed=each, features=features(each)) for each in LISTED]
    with Manifest(place) as manifest:
        sink = open_sink(place, "webdataset", manifest=manifest, provenance=FACTS)
        sink.write(items)
        place.write("features-000000.tar", b"of another driver")
        assert sink.close().error is None
        assert {each.output.partition("#")[0] for each in manifest.entries()} == {"features-000001.tar"}
    assert place.read("features-000000.tar") == b"of another driver"


def test_what_waits_for_a_shard_is_looked_at_when_it_fills_one(tmp_path, monkeypatch):
    """Not at each write, of all that waits: that is quadratic in the videos of a shard."""
    place, asked = open_place(tmp_path), []
    with Manifest(place) as manifest:
        sink = open_sink(place, "webdataset", manifest=manifest, provenance=FACTS)
        get = manifest.get
        monkeypatch.setattr(manifest, "get", lambda key: (asked.append(key), get(key))[1])
        for number in range(20):
            listed = Listed(source=f"/videos/{number}.mp4", name=str(number))
            sink.write([Item(key=key_of(features(listed)), listed=listed, features=features(listed))])
        assert len(asked) <= 20
        assert sink.close().error is None and len(read_index(tmp_path / "features-000000.tar")) == 20


def test_same_names_in_two_runs(tmp_path):
    """Names are unique in a run alone; a tar takes both."""
    place = open_place(tmp_path)
    two = [Listed(source=f"/{folder}/1.mp4", name="1") for folder in "ab"]
    with Manifest(place) as manifest:
        sink = open_sink(place, "webdataset", manifest=manifest, provenance=FACTS)
        for each in two:
            sink.write([Item(key=key_of(features(each)), listed=each, features=features(each))])
        assert sink.close().error is None
        outputs = [each.output for each in manifest.entries()]
    keys = [f"features-000000.tar#{each.key}" for each in read_index(tmp_path / "features-000000.tar")]
    assert sorted(outputs) == sorted(keys) and len(set(keys)) == 2


def test_unknown_formats():
    place = open_place("memory://formats")
    assert "npz" in FORMATS
    with Manifest(place) as manifest, pytest.raises(ValueError, match=r"format must be one of npz, .*, library, got"):
        open_sink(place, "csv", manifest=manifest, provenance=FACTS)


# --- what goes wrong while writing -------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["npz", "webdataset", "library"])
def test_a_full_disk(tmp_path, format):
    """What was written before counts and is recorded; then the run is told to stop."""
    if format == "library":
        pytest.importorskip("lancedb")
    with _disk(tmp_path / "disk", "1m") as disk:
        place = open_place(disk / "out")
        videos = [features(each, frames=8000 if format == "library" else 2000) for each in LISTED]  # 128 kB, or 256 kB
        items = [
            Item(key=key_of(feats), listed=each, features=feats) for each, feats in zip(LISTED, videos, strict=True)
        ]
        with Manifest(place) as manifest:
            sink = open_sink(place, format, manifest=manifest, provenance=FACTS)
            stored = []
            for first in range(0, 7, 2):
                receipt = sink.write(items[first : first + 2])
                stored += receipt.entries
                if receipt.error:
                    break
            error = receipt.error or sink.close().error
            assert isinstance(error, OutputError) and "disk is full" in str(error)
            assert len(stored) >= 2 and not receipt.failures
        subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)
        with Manifest(place) as manifest:
            assert {each.key for each in stored} <= {each.key for each in manifest.entries()}
            sink = open_sink(place, format, manifest=manifest, provenance=FACTS)
            assert all(sink.has(manifest.get(each.key)) for each in stored)
            left = [each for each in items if manifest.get(each.key) is None]
            left = [each for each in left if sink.adopt(each.key, each.listed) is None]
            assert not sink.write(left).failures and sink.close().error is None


def test_a_video_that_cannot_be_written_stops_no_other(tmp_path):
    place = open_place(tmp_path)
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats/1.npz").mkdir()
    long = Listed(source="/videos/9.mp4", name="x" * 300)
    items = [Item(key=key_of(features(each)), listed=each, features=features(each)) for each in (*LISTED, long)]
    with Manifest(place) as manifest:
        receipt = open_sink(place, "npz", manifest=manifest, provenance=FACTS).write(items)
        assert len(manifest) == 6
    assert len(receipt.entries) == 6 and receipt.error is None
    assert [each.source for each in receipt.failures.values()] == ["/videos/1.mp4", "/videos/9.mp4"]
    assert {each.kind for each in receipt.failures.values()} == {"output"}


def test_a_place_that_is_gone(store):
    store.create_bucket(Bucket="short-lived")
    place = open_place("s3://short-lived/out")
    with Manifest(place) as manifest:
        sink = open_sink(place, "npz", manifest=manifest, provenance=FACTS)
        store.delete_bucket(Bucket="short-lived")
        items = [Item(key=key_of(features(each)), listed=each, features=features(each)) for each in LISTED]
        receipt = sink.write(items)
    assert isinstance(receipt.error, OutputError) and "there is no such bucket" in str(receipt.error)
    assert not receipt.entries


# --- libraries ---------------------------------------------------------------------------------------------


def test_a_library_is_searched(tmp_path):
    pytest.importorskip("lancedb")
    drive(tmp_path / "out", "library")
    with ef.Library(tmp_path / "out") as library:
        assert library.stats().num_videos == len(LISTED) and library.stats().num_thumbnails == 0
        wanted = features(LISTED[4])
        hit = library.search(wanted.embeddings[6], top=1)[0]
        assert hit.video == LISTED[4].source and hit.start <= wanted.times[6] < hit.end
        library.remove(LISTED[2].source)
    assert drive(tmp_path / "out", "library")[0] == [LISTED[2].name]


def test_a_library_that_is_killed_has_each_video_once(writers, tmp_path):
    pytest.importorskip("lancedb")
    random.seed(5)
    for _ in range(2):
        writer = writers.start(drive, str(tmp_path / "out"), "library")
        time.sleep(random.uniform(0.3, 1.5))
        os.kill(writer, signal.SIGKILL)
        writers.wait(writer)
    _, entries = drive(tmp_path / "out", "library")
    with ef.Library(tmp_path / "out") as library:
        records = library.videos()
        assert sorted(record.path for record in records) == sorted(each.source for each in LISTED)
        assert {f"#{record.id}" for record in records} == {each.output for each in entries}
        for record in records:
            assert library_cases.equal(library.features(record.id), features(Listed(source=record.path, name="")))


def test_a_library_refuses_one_video_and_takes_the_rest(tmp_path):
    pytest.importorskip("lancedb")
    place = open_place(tmp_path / "out")
    empty = features(LISTED[2]).slice(100, 200)
    videos = [empty if each is LISTED[2] else features(each) for each in LISTED]
    items = [Item(key=key_of(feats), listed=each, features=feats) for each, feats in zip(LISTED, videos, strict=True)]
    with Manifest(place) as manifest:
        receipt = open_sink(place, "library", manifest=manifest, provenance=FACTS).write(items)
        assert len(manifest) == 6
    assert [each.source for each in receipt.failures.values()] == [LISTED[2].source] and receipt.error is None
    assert "has no frames" in receipt.failures[items[2].key].message
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").write_text("mine")
    place = open_place(tmp_path / "other")
    with Manifest(place) as manifest, pytest.raises(OutputError, match="is no library: it holds other things"):
        open_sink(place, "library", manifest=manifest, provenance=FACTS)


# --- parts of long videos ----------------------------------------------------------------------------------


def part(first: int, stop: int | None, frames: int) -> SegmentFeatures:
    rng = np.random.default_rng(first)
    finished = Finished(video={"path": "/v.mp4", "duration_seconds": 9.5}, motion_source="codec", end_seconds=9.5)
    return SegmentFeatures(
        segment=Segment(first, stop),
        times=np.arange(first, first + frames) / 3,
        embeddings=rng.standard_normal((frames, 8)).astype(np.float32),
        roles="IPC"[:frames] + "P" * (frames - 3),
        macs=1.25e9,
        finished=finished,
    )


def same_part(one: SegmentFeatures, two: SegmentFeatures) -> bool:
    arrays = [(one.times, two.times), (one.embeddings, two.embeddings)]
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in arrays) and (
        (one.segment, one.roles, one.macs, one.finished) == (two.segment, two.roles, two.macs, two.finished)
    )


def test_parts_are_kept_until_they_are_dropped(out):
    place, parts = open_place(out), [part(90, 180, 90), part(0, 90, 90), part(180, None, 7), part(900, 990, 0)]
    staging = Staging(place)
    for each in parts:
        staging.save("a", each)
    staging.save("b", parts[0])
    for again in (staging, Staging(place)):
        assert again.have("a") == {each.segment for each in parts} and again.have("nobody") == set()
        read = list(again.load("a"))
        assert [each.segment.first for each in read] == [0, 90, 180, 900] and again.damaged == []
        assert all(
            same_part(*pair) for pair in zip(read, sorted(parts, key=lambda each: each.segment.first), strict=True)
        )
    again.drop(["a", "nobody"])
    assert again.have("a") == set() and Staging(place).have("b") == {Segment(90, 180)}
    again = Staging(place)
    assert again.keep_only(lambda key: key != "b") == 1
    assert place.names(".everyframe") == []


def test_damaged_parts_count_as_not_there(out):
    place = open_place(out)
    staging = Staging(place)
    for first in (0, 90, 180):
        staging.save("a", part(first, first + 90, 90))
    names = place.names(".everyframe/parts")
    whole = place.read(names[0])
    for broken in (
        whole[:100],
        whole[:-200],
        b"",
        whole.replace(np.float64(1 / 3).tobytes(), np.float64(2.5).tobytes()),
    ):
        assert broken != whole
        place.write(names[0], broken)
        again = Staging(place)
        assert again.have("a") == {Segment(90, 180), Segment(180, 270)} and again.damaged == [names[0]]
        assert [each.segment.first for each in again.load("a")] == [90, 180]
    place.write(".everyframe/parts/a/notes.txt", b"")
    assert Staging(place).damaged == [".everyframe/parts/a/notes.txt"]
    with pytest.raises(ValueError, match="could not be read"):
        staging.save("a", dataclasses.replace(part(0, 90, 90), finished=Finished(error=ef.VideoError("broken"))))


def test_parts_of_another_version_count_as_not_there(tmp_path, monkeypatch):
    """Else a video would be joined from what several versions made, and say that the last one made it."""
    staging = Staging(open_place(tmp_path))
    staging.save("a", part(0, 90, 90))
    with monkeypatch.context() as patch:
        patch.setattr("everyframe.scale.staging.versions", lambda: {"everyframe": "99", "torch": "2", "av": "14"})
        later = Staging(open_place(tmp_path))
        assert later.have("a") == set() and len(later.damaged) == 1
        later.save("a", part(0, 90, 90))
        assert Staging(open_place(tmp_path)).have("a") == {Segment(0, 90)}
    assert Staging(open_place(tmp_path)).have("a") == set()


def test_parts_of_another_split_are_dropped(tmp_path):
    staging = Staging(open_place(tmp_path))
    for first in (0, 90, 180):
        staging.save("a", part(first, first + 90, 90))
    staging.drop_others("a", [Segment(0, 90), Segment(90, None)])
    assert staging.have("a") == Staging(open_place(tmp_path)).have("a") == {Segment(0, 90)}
