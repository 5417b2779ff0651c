"""Small features, libraries and looks below their surface, for the tests of the library; and writers to be killed.

As a program (`python library_cases.py`) it is a process that never touches a library itself, and forks a fresh writer
for every line it reads: {"do": NAME of a function below, ...arguments}. It answers with the writer's process id.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from everyframe.features import VideoFeatures

DIM = 16


def tiny(path="/videos/a.mp4", frames=12, *, seed=0, dim=DIM, fps=3.0, fingerprint=None, clips=False, **settings):
    """Features of a made-up video: random unit rows, true provenance keys."""
    rows = np.random.default_rng([seed, frames, len(str(path))]).standard_normal((frames, dim)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    step = 10.0 if clips else 1 / fps
    rate = {"clip_seconds": 10.0, "frames": 12} if clips else {"fps": fps}
    return VideoFeatures(
        times=np.arange(frames) * step,
        embeddings=rows,
        roles="".join("IPPC"[number % 4] for number in range(frames)),
        video={
            "path": str(path),
            "duration_seconds": frames * step,
            "width": 64,
            "height": 48,
            "fps": 25.0,
            "codec": "h264",
            "container": "mp4",
            "fingerprint": fingerprint or f"fp-{path}",
            "size_bytes": 1000,
        },
        model={"id": "tiny", "weights_sha256": "cafe", "dim": dim, "normalised": True, "dtype": "float32"},
        settings={
            "encoder": "reuse",
            "plan": "adaptive",
            "tolerance": 2.0,
            **rate,
            "stored_dtype": "float32",
            **settings,
        },
    )


def equal(feats, added):
    """Are these the features that were added, in float16?"""
    return (
        np.array_equal(feats.times, added.times)
        and np.array_equal(feats.embeddings, added.embeddings.astype(np.float16))
        and feats.roles == added.roles
        and feats.end_seconds == added.end_seconds
    )


def below(path):
    """What the tables hold, read with LanceDB alone: {table: list of rows}."""
    import lancedb

    connection = lancedb.connect(path)
    names = [folder.name.removesuffix(".lance") for folder in Path(path).glob("*.lance")]
    return {name: connection.open_table(name).search().to_arrow().to_pylist() for name in names}


def check_no_remains(path):
    """Every row belongs to a ready video, and every ready video has all of its rows."""
    tables = below(path)
    videos = tables.get("videos", [])
    assert {row["state"] for row in videos} <= {"ready"}
    for name, rows in tables.items():
        if name.startswith("frames_") or name == "thumbnails":
            assert {row["video"] for row in rows} <= {row["id"] for row in videos}, name
    for video in videos:
        times = [row["time"] for row in tables["frames_" + video["collection"]] if row["video"] == video["id"]]
        assert len(times) == video["num_frames"] and times == sorted(times)


# --- writers to be killed ----------------------------------------------------------------------------------


class Writers:
    """Starts writers, each in a process of its own, in a tenth of a second."""

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, do, **arguments):
        """Returns the process id of a process that calls the function `do` of this module."""
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def run(self, do, **arguments):
        """The same, and how it ended: an exit status, or minus the signal that killed it."""
        return self.wait(self.start(do, **arguments))

    def wait(self, writer):
        """How the one with this process id ended."""
        self._process.stdin.write(json.dumps({"do": "wait", "writer": writer}) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self):
        self._process.stdin.close()
        self._process.wait(timeout=60)


def main():
    import pyarrow  # noqa: F401, imported once for all
    from lancedb.background_loop import LOOP

    import everyframe.library  # noqa: F401

    # Its one thread ends before the first fork, and starts anew in each child.
    LOOP.loop.call_soon_threadsafe(LOOP.loop.stop)
    LOOP.thread.join()
    if len(os.listdir("/proc/self/task")) != 1:
        print("warning: this process has several threads and forks", file=sys.stderr)
    warnings.simplefilter("ignore", RuntimeWarning)  # LanceDB's on any fork
    for line in sys.stdin:
        order = json.loads(line)
        do = order.pop("do")
        if do == "wait":
            status = os.waitstatus_to_exitcode(os.waitpid(order["writer"], 0)[1])
            print(status, flush=True)
            continue
        child = os.fork()
        if not child:
            code = 1
            try:
                globals()[do](**order)
                code = 0
            finally:
                os._exit(code)
        print(child, flush=True)


@contextmanager
def _dying_after(commits):
    """Kill this process when so many commits are done: the whole of every write to a table counts one."""
    from lancedb.db import LanceDBConnection
    from lancedb.merge import LanceMergeInsertBuilder
    from lancedb.table import LanceTable

    left = [commits]

    def counted(method):
        def call(*args, **keywords):
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return method(*args, **keywords)

        return call

    for owner, names in (
        (LanceTable, ("add", "delete", "optimize")),
        (LanceDBConnection, ("create_table",)),
        (LanceMergeInsertBuilder, ("execute",)),
    ):
        for name in names:
            setattr(owner, name, counted(getattr(owner, name)))
    yield


def replace_and_die(path, commits):
    """Replace a video, with a thumbnail, in a library that may not be there yet; die after so many commits."""
    from everyframe.library import Library, Thumbnail

    with _dying_after(commits):
        Library(path).add(tiny(seed=2, frames=9), thumbnails=[Thumbnail(0.0, b"new")])


def remove_and_die(path, commits):
    from everyframe.library import Library

    with _dying_after(commits):
        Library(path).remove("/videos/a.mp4")


def add_many(path, seed, log):
    """Add, and now and then replace, videos one after the other; a line in `log` when one is stored."""
    from everyframe.library import Library, Thumbnail

    library = Library(path)
    with open(log, "a") as told:
        for number in range(10_000):
            name, version = f"/videos/{number % 7}.mp4", seed * 10_000 + number
            library.add(tiny(name, 30, seed=version), thumbnails=[Thumbnail(0.0, b"%d" % version)])
            told.write(f"{name} {version}\n")
            told.flush()


def churn(path, rounds):
    """Add, replace, remove and compact."""
    from everyframe.library import Library

    library = Library(path)
    for number in range(rounds):
        names = [f"/videos/{number % 5}-{each}.mp4" for each in range(3)]
        list(library.add_all(tiny(name, 20, seed=number) for name in names))
        if number % 3 == 2:
            library.remove(names[0])
        if number % 4 == 3:
            library.compact()


def read_until(path, stop):
    """Read videos and features until the file `stop` is there; fails where one is not whole."""
    from everyframe.library import Library

    library = Library(path)
    count, seen = 0, set()
    while not os.path.exists(stop):
        count += read_once(library, seen)
    if not count:
        raise SystemExit("nothing was read")


def read_once(library, seen):
    """Read every video that is there now; how many. seen: names so far; what `churn` never removes must stay."""
    from everyframe.library import LibraryError

    count, records = 0, library.videos()
    names = [record.name for record in records]
    assert len(set(names)) == len(names), names
    assert not {name for name in seen if not name.endswith("-0.mp4")} - set(names), names
    seen.update(names)
    for record in records:
        try:
            feats = library.features(record.id)
        except LibraryError as error:
            if "holds no video" not in str(error):  # it has just been replaced
                raise
            continue
        assert feats.num_frames == record.num_frames
        assert feats.video["path"] == record.path
        count += 1
    return count


def hold_lock(path, seconds, ready):
    """Be the writer for a while."""
    from everyframe.library.store import Store

    with Store(path).writing(create=True):
        Path(ready).touch()
        time.sleep(seconds)


def add_with_small_files(path, limit):
    """Add a video where no file may be larger than `limit` bytes; the error goes to a file beside the library."""
    from everyframe.library import Library, LibraryError

    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        Library(path).add(tiny("/videos/large.mp4", 4000, seed=5, dim=DIM))
    except LibraryError as error:
        Path(path + ".error").write_text(str(error))


def add_as_nobody(path):
    """Add a video as a user who may not write there."""
    from everyframe.library import Library, LibraryError

    os.setuid(65534)
    library = Library(path)
    count = len(library.videos())
    try:
        library.add(tiny("/videos/other.mp4"))
    except LibraryError as error:
        print(count, error, file=sys.stderr)
        raise SystemExit(7) from error


if __name__ == "__main__":
    main()
