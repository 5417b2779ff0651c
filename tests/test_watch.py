"""everyframe index --watch: what counts as new, changed, complete and gone; and a real process that stays."""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import everyframe as ef
from everyframe.cli import app
from everyframe.cli.index import _find, _Run
from everyframe.indexing import Indexed
from everyframe.library import Library, LibraryError
from everyframe.pipeline.watch import Watch
from everyframe.synthetic import synthesize

OLD = time.time() - 3600


def put(path: Path, content: str = "a video", *, changed: float = OLD) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    os.utime(path, (changed, changed))
    return path


# --- looking ---------------------------------------------------------------------------------------------


def test_a_first_look_takes_what_is_quiet_and_leaves_the_rest(tmp_path: Path) -> None:
    quiet = put(tmp_path / "deep" / "quiet.mp4")
    growing = put(tmp_path / "growing.mkv", changed=time.time())
    watch = Watch([tmp_path])
    assert watch.first(5.0) == [quiet]
    watch.handled(quiet)
    assert watch.look().settled == [growing]  # as it was at the first look


def test_what_grows_is_left_alone_until_it_stops(tmp_path: Path) -> None:
    watch = Watch([tmp_path])
    assert watch.look() == watch.look()  # nothing, and an empty folder is no problem to speak of twice
    film = tmp_path / "film.mp4"
    for length in range(1, 4):
        put(film, "x" * length)
        changes = watch.look()
        assert (changes.settled, changes.pending) == ([], [film])
    assert watch.look().settled == [film]
    assert watch.look().settled == [film]  # until someone says that it was worked on
    watch.handled(film)
    assert (watch.look().settled, watch.look().pending) == ([], [])
    put(film, "xxx", changed=OLD + 1)  # the same size, changed all the same
    assert watch.look().pending == [film]
    assert watch.look().settled == [film]


def test_a_folder_of_images_counts_as_one_video(tmp_path: Path) -> None:
    for number in range(3):
        put(tmp_path / "shots" / f"frame_{number}.png")
    watch = Watch([tmp_path])
    assert watch.first(5.0) == []  # the folder itself was just made
    assert watch.look().settled == [tmp_path / "shots"]
    watch.handled(tmp_path / "shots")
    put(tmp_path / "shots" / "frame_3.png")
    assert watch.look().pending == [tmp_path / "shots"]


def test_files_in_the_library_and_files_that_are_no_videos_do_not_count(tmp_path: Path) -> None:
    put(tmp_path / "archive" / "previews" / "1.mp4")
    put(tmp_path / "notes.txt")
    put(tmp_path / ".hidden.mp4")
    film = put(tmp_path / "film.mp4")
    watch = Watch([tmp_path], leave_out=tmp_path / "archive")
    assert watch.first(5.0) == [film]


def test_what_is_gone_is_told_once_and_at_the_third_look(tmp_path: Path) -> None:
    film, other = put(tmp_path / "film.mp4"), put(tmp_path / "other.mp4")
    elsewhere = tmp_path.parent / "not-watched.mp4"
    known = [film, other, elsewhere]
    watch = Watch([tmp_path])
    assert watch.look(known).gone == []
    film.unlink()
    assert [watch.look(known).gone for _ in range(5)] == [[], [], [film], [], []]
    put(film)
    assert watch.look(known).gone == []
    film.unlink()
    assert [watch.look(known).gone for _ in range(3)] == [[], [], [film]]  # a second time, a second report


@pytest.mark.parametrize("how", ["the folder is gone", "the folder is empty", "lost+found is left"])
def test_a_disk_that_is_not_mounted_makes_nothing_gone(tmp_path: Path, how: str) -> None:
    disk = tmp_path / "disk"
    film = put(disk / "film.mp4")
    watch = Watch([disk])
    watch.first(5.0)
    watch.handled(film)
    shutil.rmtree(disk)
    if how != "the folder is gone":
        disk.mkdir()
    if how == "lost+found is left":
        (disk / "lost+found").mkdir()
        put(disk / ".keep")
    looks = [watch.look([film]) for _ in range(4)]
    assert [look.gone for look in looks] == [[], [], [], []]
    assert "disk" in looks[0].problems[0] and [len(look.problems) for look in looks] == [1, 0, 0, 0]
    put(film)
    assert watch.look([film]) == watch.look([film])
    assert watch.look([film]).settled == []  # it is what it was


def test_a_mount_point_below_the_folder_makes_nothing_gone(tmp_path: Path) -> None:
    videos = [put(tmp_path / disk / "deep" / name) for disk in ("disk1", "disk2") for name in ("a.mp4", "b.mp4")]
    shutil.rmtree(tmp_path / "disk1")
    put(tmp_path / "disk1" / ".keep")
    (tmp_path / "disk2" / "deep" / "a.mp4").unlink()
    watch = Watch([tmp_path])
    looks = [watch.look(videos) for _ in range(4)]
    assert [look.gone for look in looks] == [[], [], [videos[2]], []]
    assert looks[0].problems == [
        f"{tmp_path}/disk1 is empty now; is its disk mounted? the library keeps what was below it"
    ]
    (tmp_path / "disk1" / ".keep").unlink()
    (tmp_path / "disk1").rmdir()  # the folder too: then somebody removed it
    assert [watch.look(videos).gone for _ in range(3)] == [[], [], videos[:2]]


def test_a_folder_that_lost_all_of_several_videos_is_not_believed(tmp_path: Path) -> None:
    videos = [put(tmp_path / "disk" / name) for name in ("a.mp4", "b.mp4")]
    put(tmp_path / "disk" / "readme.txt")
    for video in videos:
        video.unlink()
    watch = Watch([tmp_path, tmp_path / "disk"])
    looks = [watch.look([*videos, put(tmp_path / "c.mp4")]) for _ in range(4)]  # c.mp4 is below the outer folder
    assert [look.gone for look in looks] == [[]] * 4
    assert looks[0].problems[0].startswith(f"none of the 2 videos that the library has of {tmp_path}/disk is there")
    put(videos[0])
    assert [watch.look(videos).gone for _ in range(3)] == [[], [], [videos[1]]]


@pytest.fixture()
def closed() -> Iterator[Path]:
    """A folder with a folder `closed` that has two videos, seen by a user who is not root; set its rights."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for video in ("a.mp4", "b.mp4", "closed/c.mp4", "closed/d.mp4"):
            put(folder / video)
        root = os.geteuid() == 0
        for path in (folder, folder / "closed"):
            os.chown(path, 65534 if root else -1, -1)
        if root:
            os.seteuid(65534)
        try:
            yield folder
        finally:
            if root:
                os.seteuid(0)
            (folder / "closed").chmod(0o700)


@pytest.mark.parametrize("rights", [0o000, 0o400, 0o100])
def test_a_folder_that_may_not_be_read_makes_nothing_gone(closed: Path, rights: int) -> None:
    known = [closed / name for name in ("a.mp4", "b.mp4", "closed/c.mp4", "closed/d.mp4", "closed/gone.mp4")]
    watch = Watch([closed])
    (closed / "closed").chmod(rights)
    looks = [watch.look(known) for _ in range(4)]
    assert [look.gone for look in looks] == [[]] * 4
    assert f"{closed}/closed" in looks[0].problems[0] and "Permission denied" in looks[0].problems[0]
    assert [look.problems for look in looks[1:]] == [[]] * 3
    (closed / "closed").chmod(0o700)
    assert [watch.look(known).gone for _ in range(3)] == [[], [], [known[-1]]]


def test_what_is_gone_waits_for_a_library_that_cannot_be_written(tmp_path: Path) -> None:
    """It is told once, so it must not be forgotten when telling the library fails."""
    asked: list[list[Path]] = []

    class Locked:
        def gone(self, paths: list[Path], *, remove: bool) -> list[Indexed]:
            asked.append(paths)
            if len(asked) == 1:
                raise LibraryError("locked")
            return []

    options = {"remove_missing": True, "quiet": True, "as_json": False, "stays": True}
    run = _Run(Library(tmp_path / "archive"), Locked(), Watch([tmp_path]), **options)  # type: ignore[arg-type]
    with pytest.raises(LibraryError):
        run._take([tmp_path / "a.mp4"])
    run._take([tmp_path / "b.mp4"])
    run._take([])
    assert asked == [[tmp_path / "a.mp4"], [tmp_path / "a.mp4", tmp_path / "b.mp4"]]


def test_addresses_are_not_watched(tmp_path: Path) -> None:
    address, film = "http://localhost/a.mp4", put(tmp_path / "videos" / "film.mp4")
    found = _find([address, str(film.parent)], tmp_path / "archive", may_be_empty=True)
    assert (found.videos, found.watched) == ([address, film], [str(film.parent)])


# --- a process that stays --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three videos of two seconds."""
    folder = tmp_path_factory.mktemp("films")
    made = synthesize(folder, videos=3, seconds=2, fps=12, size=(128, 96), seed=11)
    return [folder / f"{video.name}.mp4" for video in made]


class Watching:
    """A real `everyframe index --watch`, and what it says."""

    def __init__(self, folder: Path, library: Path, *more: str) -> None:
        words = ["index", str(folder), "--library", str(library), "--watch", "--every", "0.6s", "--model", "bundled"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "everyframe.cli", *words, "--json", *more],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            self._lines.put(line)
        self._lines.put("")  # it has ended

    def next(self, timeout: float = 60.0) -> tuple[str, str]:
        """(status, name) of the next video that it tells of."""
        try:
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            line = ""
        if not line:
            self.process.kill()
            pytest.fail(f"nothing more was told; standard error: {self.process.communicate()[1]}")
        facts = json.loads(line)
        return facts["status"], Path(facts["source"]).name

    def told(self) -> list[str]:
        """What else it told of until it ended."""
        return list(iter(self._lines.get, ""))


@pytest.fixture()
def watching(tmp_path: Path, films: list[Path]) -> Iterator[Watching]:
    folder = tmp_path / "videos"
    folder.mkdir()
    shutil.copy2(films[0], folder / "first.mp4")
    os.utime(folder / "first.mp4", (OLD, OLD))
    one = Watching(folder, tmp_path / "archive", "--remove-missing")
    yield one
    one.process.kill()
    one.process.wait()


def test_a_process_adds_what_comes_and_removes_what_goes(watching: Watching, tmp_path: Path, films: list[Path]) -> None:
    """One process through everything, as starting one takes seconds."""
    folder = tmp_path / "videos"
    assert watching.next() == ("added", "first.mp4")

    content = films[1].read_bytes()  # copied slowly: in pieces, with time for several looks in between
    with (folder / "slow.mp4").open("wb") as file:
        for first in range(0, len(content), len(content) // 30):
            file.write(content[first : first + len(content) // 30])
            file.flush()
            time.sleep(0.05)
    assert watching.next() == ("added", "slow.mp4")

    (folder / "broken.mp4").write_bytes(b"no video at all")
    assert watching.next() == ("failed", "broken.mp4")

    (folder / "below").mkdir()
    (folder / "first.mp4").rename(folder / "below" / "moved.mp4")
    assert watching.next() == ("moved", "moved.mp4")

    with ef.Library(tmp_path / "archive") as library:  # while the other process holds it
        before = library.video("slow.mp4")
    shutil.copy2(films[2], folder / "slow.mp4")
    assert watching.next() == ("replaced", "slow.mp4")

    (folder / "slow.mp4").unlink()
    assert watching.next() == ("removed", "slow.mp4")

    watching.process.send_signal(signal.SIGINT)
    assert watching.process.wait(timeout=30) == 0
    errors = watching.process.stderr.read()
    assert "Traceback" not in errors and watching.told() == []
    with ef.Library(tmp_path / "archive") as library:
        (left,) = library.videos()
        assert left.path == str(folder / "below" / "moved.mp4")
        assert library.features(left.id).num_frames == left.num_frames == 6
        assert len(library.thumbnails(left.id)) > 0
    assert before.fingerprint != left.fingerprint


def test_sigterm_ends_it_and_a_misspelt_folder_is_not_waited_for(tmp_path: Path) -> None:
    """In this process: a signal to oneself is as real as any."""
    folder = tmp_path / "empty"
    folder.mkdir()
    before = signal.getsignal(signal.SIGTERM)

    def end() -> None:
        while signal.getsignal(signal.SIGTERM) is before:  # until then it would end the tests
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end, daemon=True).start()
    words = ["index", str(folder), "--library", str(tmp_path / "archive"), "--model", "bundled", "--watch"]
    result = CliRunner().invoke(app, [*words, "--every", "60s"])
    assert (result.exit_code, result.exception) == (0, None), result.output
    assert "watching" in result.output
    assert signal.getsignal(signal.SIGTERM) is before
    missing = CliRunner().invoke(app, ["index", str(tmp_path / "gone"), "--library", str(tmp_path / "a"), "--watch"])
    assert "no such file" in str(missing.exception)
