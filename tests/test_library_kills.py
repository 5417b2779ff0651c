"""Writers that are really killed, other processes that read meanwhile, disks that are full."""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import library_cases as cases
from everyframe.library import Library, LibraryError, LockedError, Thumbnail

pytest.importorskip("lancedb")


@pytest.fixture(scope="module")
def writers():
    started = cases.Writers()
    yield started
    started.close()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A library with two videos, of which a.mp4 has a thumbnail."""
    path = tmp_path_factory.mktemp("base") / "library"
    with Library(path) as library:
        library.add(cases.tiny(), thumbnails=[Thumbnail(0.0, b"old")])
        library.add(cases.tiny("/videos/b.mp4", 5))
    return path


OLD, NEW = cases.tiny(), cases.tiny(seed=2, frames=9)


@pytest.mark.parametrize("do", ["replace_and_die", "remove_and_die"])
def test_killed_between_any_two_commits(writers, base, tmp_path, do):
    """The video is the old one or the new one (or gone), whole, whatever the commit the writer died before."""
    seen = []
    for commits in range(20):
        path = tmp_path / str(commits)
        shutil.copytree(base, path)
        status = writers.run(do, path=str(path), commits=commits)
        assert status in (0, -signal.SIGKILL)
        with Library(path) as library:
            seen.append(_state(library))
            assert cases.equal(library.features("/videos/b.mp4"), cases.tiny("/videos/b.mp4", 5))
            library.add(cases.tiny("/videos/c.mp4"))
            assert _state(library) == seen[-1]
            assert len(library.videos()) == 2 + (seen[-1] != "gone")
        cases.check_no_remains(path)
        if status == 0:
            break
    assert status == 0
    after = "new" if do == "replace_and_die" else "gone"
    assert seen[0] == "old" and seen[-1] == after
    assert seen == sorted(seen, key=["old", after].index)  # it changes once


def _state(library):
    paths = [record.path for record in library.videos()]
    if "/videos/a.mp4" not in paths:
        return "gone"
    feats = library.features("/videos/a.mp4")
    thumbnail = library.thumbnail("/videos/a.mp4", 0.0)
    assert thumbnail is not None
    if cases.equal(feats, OLD):
        assert thumbnail.jpeg == b"old"
        return "old"
    assert cases.equal(feats, NEW) and thumbnail.jpeg == b"new"
    return "new"


def test_killed_while_the_library_is_made(writers, tmp_path):
    for commits in range(20):
        path = tmp_path / str(commits)
        status = writers.run("replace_and_die", path=str(path), commits=commits)
        with Library(path) as library:
            there = library.videos()
            assert len(there) == (1 if status == 0 else len(there)) <= 1
            library.add(cases.tiny("/videos/c.mp4"))
            assert len(library.videos()) == len(there) + 1
            assert all(library.features(record.id).num_frames == record.num_frames for record in library.videos())
        cases.check_no_remains(path)
        if status == 0:
            break
    assert status == 0 and commits > 5


def test_killed_at_random_moments(writers, tmp_path):
    """What was reported as stored is there with the same rows; what was not is there whole or not at all."""
    path = tmp_path / "library"
    delays, known = random.Random(7), {}
    for seed in range(4):
        log = tmp_path / f"log-{seed}"
        child = writers.start("add_many", path=str(path), seed=seed, log=str(log))
        while _lines(log) < 2:
            time.sleep(0.005)
        time.sleep(delays.uniform(0.0, 0.15))
        os.kill(child, signal.SIGKILL)
        assert writers.wait(child) == -signal.SIGKILL
        told = [line.split() for line in log.read_text().splitlines()]
        known |= {name: int(version) for name, version in told}
        following = int(told[-1][1]) + 1  # may have been stored, but not reported
        with Library(path) as library:
            there = {record.path: record for record in library.videos()}
            there.pop("/videos/after.mp4", None)
            assert set(known) <= set(there)
            for name, record in there.items():
                feats = library.features(record.id)
                found = [
                    version
                    for version in (known.get(name), following)
                    if version is not None and cases.equal(feats, cases.tiny(name, 30, seed=version))
                ]
                assert len(found) == 1, name
                assert library.thumbnail(record.id, 0.0).jpeg == b"%d" % found[0]
                known[name] = found[0]
            library.add(cases.tiny("/videos/after.mp4", 4))
        cases.check_no_remains(path)


def _lines(file):
    return len(file.read_text().splitlines()) if file.exists() else 0


def test_reading_beside_a_writer(writers, tmp_path):
    """Two threads and a process read everything, again and again, while one adds, replaces, removes and compacts."""
    path, stop = str(tmp_path / "library"), tmp_path / "stop"
    Library(path).add(cases.tiny())
    reader = writers.start("read_until", path=path, stop=str(stop))
    errors, counts, shared = [], [0, 0], Library(path)

    def read(number):
        seen = set()
        try:
            while not stop.exists():
                counts[number] += cases.read_once(shared, seen)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    try:
        assert writers.run("churn", path=path, rounds=9) == 0
    finally:
        stop.touch()
        for thread in threads:
            thread.join()
    assert not errors
    assert min(counts) > 0
    assert writers.wait(reader) == 0
    cases.check_no_remains(path)


def test_a_second_writer_waits_and_then_names_the_first(writers, tmp_path):
    path, ready = tmp_path / "library", tmp_path / "ready"
    child = writers.start("hold_lock", path=str(path), seconds=1.0, ready=str(ready))
    while not ready.exists():
        time.sleep(0.01)
    with pytest.raises(LockedError, match=rf"{path} is being written to by process {child} \(waited 0.1 s\)"):
        Library(path, lock_seconds=0.1).add(cases.tiny())
    assert Library(path).videos() == []  # readers do not wait
    assert Library(path, lock_seconds=30).add(cases.tiny()).status == "added"
    assert writers.wait(child) == 0


# --- disks -------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path):
    """A real file system of 6 MB; skips where this user may not mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=6m", "everyframe-test", str(place)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no permission to mount a file system")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk(disk):
    path = disk / "library"
    with Library(path) as library:
        library.add(cases.tiny())
        filler = disk / "filler"
        with pytest.raises(OSError, match="No space left"), filler.open("wb") as file:
            while True:
                file.write(bytes(1 << 16))
                file.flush()
        filler.write_bytes(filler.read_bytes()[: -(40 << 10)])
        large = cases.tiny("/videos/large.mp4", 6000)
        for _ in range(2):
            with pytest.raises(LibraryError, match=rf"{path} cannot be written: the disk is full"):
                library.add(large)
        assert [record.path for record in library.videos()] == ["/videos/a.mp4"]
        assert cases.equal(library.features("/videos/a.mp4"), cases.tiny())
        filler.unlink()
        assert library.add(large).status == "added"
        assert cases.equal(library.features("/videos/large.mp4"), large)
    cases.check_no_remains(path)


def test_a_disk_that_is_read_only(disk):
    path = disk / "library"
    Library(path).add(cases.tiny())
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    library = Library(path)
    assert cases.equal(library.features("/videos/a.mp4"), cases.tiny())
    with pytest.raises(LibraryError, match=rf"{path} cannot be written: permission denied"):
        library.add(cases.tiny("/videos/b.mp4"))
    assert len(library.videos()) == 1


def test_a_file_larger_than_the_system_allows(writers, tmp_path):
    """The kernel refuses the write in the middle of it, as a full disk does."""
    path = tmp_path / "library"
    with Library(path) as library:
        library.add(cases.tiny())
        assert writers.run("add_with_small_files", path=str(path), limit=60_000) == 0
        assert "a file would be larger than the system allows" in Path(f"{path}.error").read_text()
        assert len(library.videos()) == 1
        library.add(cases.tiny("/videos/b.mp4"))
        assert len(library.videos()) == 2
    cases.check_no_remains(path)


def test_importing_the_library_loads_nothing_heavy():
    code = "import sys, everyframe.library; print({'torch', 'av', 'lancedb', 'pyarrow'} & set(sys.modules) or 'none')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["none"]
