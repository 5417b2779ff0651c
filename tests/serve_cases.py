"""A real server in a process of its own, for tests of the API and of the page."""

from __future__ import annotations

import atexit
import functools
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PATIENCE = 60


@functools.cache
def rendered() -> Path:
    """A folder with two short synthetic videos, made once per process: synthetic-31000.mp4 and -31001.mp4."""
    from everyframe.synthetic import synthesize

    folder = Path(tempfile.mkdtemp(prefix="everyframe-serve-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    list(synthesize(folder, videos=2, seconds=12, seed=31, fps=8, size=(160, 120)))
    return folder


@functools.cache
def _library() -> Path:
    import everyframe as ef
    from everyframe.library import Library, make_thumbnails

    folder = Path(tempfile.mkdtemp(prefix="everyframe-serve-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    encoder = ef.ReuseEncoder(ef.load("bundled", device="cpu"), plan="adaptive")
    with Library(folder / "archive") as library:
        for video in sorted(rendered().glob("*.mp4")):
            library.add(ef.encode_video(video, encoder), thumbnails=make_thumbnails(video))
    return folder / "archive"


def made_library(folder: Path) -> Path:
    """A library of its own in `folder` that holds the two videos, encoded with the bundled model."""
    return Path(shutil.copytree(_library(), folder / "archive"))


@dataclass
class Server:
    """url: without a slash at the end. errors: lines of standard error so far."""

    url: str
    process: subprocess.Popen[str]
    errors: list[str] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.url.partition("://")[2].partition(":")[2].partition("/")[0])

    def children(self) -> list[int]:
        """Process ids of its child processes."""
        text = ""
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            text += (task / "children").read_text() + " "
        return [int(pid) for pid in text.split()]

    def stop(self, how: signal.Signals = signal.SIGINT) -> int:
        """Its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.process.wait(PATIENCE)


def start(library: str | Path, *options: str, threads: int = 1) -> Server:
    """`everyframe serve --library LIBRARY --port 0 OPTIONS`, when it answers. Raises AssertionError if it does not."""
    command = [sys.executable, "-m", "everyframe.cli", "serve", "--library", str(library), "--port", "0", *options]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )
    lines: queue.Queue[str | None] = queue.Queue()
    errors: list[str] = []

    def read_out() -> None:
        for line in process.stdout or ():
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read_out, daemon=True).start()
    threading.Thread(target=lambda: errors.extend(process.stderr or ()), daemon=True).start()
    try:
        line = lines.get(timeout=PATIENCE)
    except queue.Empty:
        process.kill()
        raise AssertionError(f"the server said nothing for {PATIENCE} s: {errors}") from None
    if line is None or not line.startswith("everyframe serve: http"):
        process.wait(PATIENCE)
        raise AssertionError(f"the server did not start: {line} {errors}")
    return Server(line.strip().partition(": ")[2], process, errors)


@contextmanager
def running(library: str | Path, *options: str, threads: int = 1) -> Iterator[Server]:
    """The same for the length of a block."""
    server = start(library, *options, threads=threads)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait(PATIENCE)


@functools.cache
def shared() -> tuple[Server, Path]:
    """One server, and its library, for all modules that only read: starting one takes seconds."""
    folder = Path(tempfile.mkdtemp(prefix="everyframe-serve-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    archive = made_library(folder)
    server = start(archive)
    atexit.register(server.process.kill)
    return server, archive


@contextmanager
def in_process(library: str | Path, **settings: Any) -> Iterator[Any]:
    """A client of the same application in this process: for what needs no process of its own."""
    from starlette.testclient import TestClient

    from everyframe.serve import Settings
    from everyframe.serve.app import create_app

    app, _ = create_app(Settings(library=str(library), **settings))
    with TestClient(app, base_url="http://127.0.0.1") as client:
        yield client
