"""The worker's side of the process that decodes for it: start it, hear it, end it, and say what became of it.

One child reads many segments. It is ended, and the next one started when it is needed, once it crashed, hung or took
too much memory. It never outlives its worker: it notices that its input ends, and on Linux the system ends it even
where Python gets no turn (see `everyframe.processes`).
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar, cast

from everyframe.pipeline import ClipSampling, Sampling
from everyframe.pipeline.decoding import Finished
from everyframe.pipeline.segments import Segment
from everyframe.scale import child
from everyframe.scale.shipping import Payload
from everyframe.scale.wire import Ended, PackedChunk
from everyframe.scale.work import FailureKind, Limits
from everyframe.video import VideoError
from everyframe.video.errors import MissingVideoError, UnreachableError

T = TypeVar("T")
_START_SECONDS = 300.0  # importing torch from a disk that a whole cluster reads
_END_SECONDS = 10.0
_LOOK_SECONDS = 0.2
_LAST_WORDS = 4096
_FIRST_BYTES = 1 << 24  # of an answer that announces more; so many again once these are there
_NONSENSE = "the decoder's process said something that makes no sense"
_CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE}
_VIDEO_ERRORS = {"video": VideoError, "missing": MissingVideoError, "unreachable": UnreachableError}


class Poisoned(Exception):
    """Reading a video took its process down, or had to be ended. kind: "crash", "hang" or "memory"."""

    def __init__(self, kind: FailureKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


class ChildNotStarted(RuntimeError):
    """No process to decode in can be started here: the machine or its settings are at fault, not a video."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What the header says of a video, and which one it is (see `everyframe.video.identity`)."""

    duration_seconds: float | None
    fps: float | None
    identity: dict[str, Any] = field(default_factory=dict)


class DecodeChild:
    """Reads videos in a process of its own, one after the other. Close it when done.

    planning: what `ship` made, or None to probe only. threads: of the decoder, and of resizing. The process is started
    at once; raises ChildNotStarted where that fails.
    """

    def __init__(self, planning: Payload | None, limits: Limits, *, threads: int = 1) -> None:
        data = planning() if callable(planning) else planning
        self._planning = None if data is None else bytes(data)
        self._limits = limits
        self._threads = threads
        self._process: _Process | None = None
        self._ready()

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return None if self._process is None else self._process.pid

    def read(self, source: str, sampling: Sampling | ClipSampling, segment: Segment) -> Iterator[PackedChunk | Ended]:
        """The chunks of a segment as they are decoded, then exactly one `Ended`.

        Raises VideoError where the video cannot be read, as `read_segment` reports it, Poisoned where its decoder
        crashed, hung or took too much memory, ChildNotStarted where the last such left none and no other can start.
        """
        for tag, head, body in self._asked(child.FINISHED, "read", source, sampling, segment):
            if tag == child.CHUNK:
                yield self._understood(source, lambda: PackedChunk(head=head, pixels=body).check())  # noqa: B023
            else:
                yield self._understood(source, lambda: _ended(json.loads(head)))  # noqa: B023

    def probe(self, source: str) -> Probe:
        """What is known of a video before it is read. Raises as `read`."""
        ((_, head, _),) = self._asked(child.FACTS, "probe", source)
        return self._understood(source, lambda: Probe(**json.loads(head)))

    def close(self) -> None:
        """End the process, whatever it is doing, and wait until it is gone."""
        process, self._process = self._process, None
        if process is not None:
            process.end()

    def __enter__(self) -> DecodeChild:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_process", None) is not None:
            self.close()

    def _ready(self) -> _Process:
        """The process, a new one where the last is gone: it may have been killed while nobody asked it anything.

        Also where it has grown over many videos to half of what it may take: the next is not to blame for that.
        """
        if self._process is not None and not self._process.is_fit:
            self.close()
        if self._process is None:
            process = _Process(self._limits, self._threads)
            try:
                process.ask(("start", self._planning))
                process.answer(_START_SECONDS)
                process.bytes_at_first = child.own_memory(process.pid)
            except _EndedError as error:
                process.end()
                limit = _gibibytes(self._limits.memory_bytes)
                raise ChildNotStarted(
                    f"no process to decode in can be started: {error.message} (it may take {limit} of memory)"
                ) from error
            except BaseException:
                process.end()
                raise
            self._process = process
        return self._process

    def _asked(self, last: bytes, *request: Any) -> Iterator[tuple[bytes, bytearray, bytearray]]:
        """Its answers up to the one with the tag `last`."""
        process, source, over = self._ready(), request[1], False
        try:
            process.ask(request)
            while not over:
                tag, head, body = process.answer(self._limits.seconds)
                if tag == child.ERROR:
                    kind, message = self._understood(source, lambda: _said(json.loads(head)))  # noqa: B023
                    over = kind != "memory"
                    raise self._error(source, kind, message)
                if tag != last and (tag, last) != (child.CHUNK, child.FINISHED):
                    raise _EndedError("crash", _NONSENSE)
                over = tag == last
                yield tag, head, body
        except _EndedError as error:
            raise self._error(source, error.kind, error.message) from error
        finally:
            if not over:  # it is gone, or in the middle of something that nobody waits for
                self.close()

    def _understood(self, source: str, read: Callable[[], T]) -> T:
        """What the process said; one whose memory is in a mess may say anything."""
        try:
            return read()
        except (ValueError, KeyError, TypeError) as error:
            self.close()
            raise Poisoned("crash", f"{source}: {_NONSENSE} ({error})") from error

    def _error(self, source: str, kind: str, message: str) -> Exception:
        if kind in _VIDEO_ERRORS:
            return _VIDEO_ERRORS[kind](message)
        if kind == "memory":
            limit = _gibibytes(self._limits.memory_bytes)
            return Poisoned("memory", f"{source}: decoding it takes more than the {limit} of memory that it may take")
        if kind == "unforeseen":
            return Poisoned("crash", f"{source}: cannot be read ({message})")
        return Poisoned(cast(FailureKind, kind), f"{source}: {message}")


class _EndedError(Exception):
    """The process is gone, or is to be ended."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


class _Process:
    """One process and its pipes."""

    def __init__(self, limits: Limits, threads: int) -> None:
        self._limits = limits
        terms = {"parent": os.getpid(), "memory_bytes": limits.memory_bytes, "threads": threads}
        command = [sys.executable, "-c", "from everyframe.scale.child import main; main()", json.dumps(terms)]
        try:
            self._popen = _starter(os.getpid()).submit(_start, command, _environment(threads)).result()
        except OSError as error:
            raise ChildNotStarted(f"no process can be started here ({error.strerror or error})") from error
        self.pid = self._popen.pid
        self._in, self._out, self._err = (
            cast(Any, pipe).fileno() for pipe in (self._popen.stdin, self._popen.stdout, self._popen.stderr)
        )
        for pipe in (self._in, self._out, self._err):
            os.set_blocking(pipe, False)
        self._poll = select.poll()
        self._poll.register(self._out, select.POLLIN)
        self._poll.register(self._err, select.POLLIN)
        self.bytes_at_first = 0
        self._unsent = memoryview(b"")
        self._said, self._source = b"", ""
        self._heard = time.monotonic()
        self._looked = 0.0

    @property
    def is_fit(self) -> bool:
        """Is it there, and not too large already?"""
        most = (self.bytes_at_first + self._limits.memory_bytes) / 2
        return self._popen.poll() is None and child.own_memory(self.pid) <= most

    def ask(self, request: tuple[Any, ...]) -> None:
        """It is sent while `answer` waits. What it said of earlier ones no longer counts."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._err, 1 << 20)
        self._said, self._source = b"", "" if request[0] == "start" else str(request[1])
        body = pickle.dumps(request)
        self._unsent = memoryview(child.REQUEST.pack(len(body)) + body)
        self._poll.register(self._in, select.POLLOUT)

    def answer(self, seconds: float) -> tuple[bytes, bytearray, bytearray]:
        """Its next frame that is not just a sign of life. Raises _EndedError after so many seconds without any."""
        self._heard = time.monotonic()  # while nobody listened it could not say anything
        while True:
            tag, head, body = child.FRAME.unpack(self._receive(child.FRAME.size, seconds))
            if head + body > self._limits.memory_bytes:  # it never had as much
                raise _EndedError("crash", _NONSENSE)
            parts = self._receive(head, seconds), self._receive(body, seconds)
            if tag != child.BEAT:
                return tag, *parts

    def end(self) -> None:
        self._popen.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # one that waits for a dead disk goes when that answers
            self._popen.wait(_END_SECONDS)
        for pipe in (self._popen.stdin, self._popen.stdout, self._popen.stderr):
            with contextlib.suppress(OSError):  # what was not sent
                cast(Any, pipe).close()

    def _receive(self, size: int, seconds: float) -> bytearray:
        received, filled = bytearray(min(size, _FIRST_BYTES)), 0
        while filled < size:
            if not self._turn(seconds):
                continue
            if filled == len(received):
                received += bytes(min(size - filled, filled))
            with memoryview(received) as view:
                count = os.readv(self._out, [view[filled:]])
            if not count:
                raise self._why()
            filled += count
        return received

    def _turn(self, seconds: float) -> bool:
        """Send, listen to errors, look at the memory; is there something to receive?"""
        ready = dict(self._poll.poll(1000 * _LOOK_SECONDS))
        now = time.monotonic()
        if self._in in ready:
            self._send()
        if self._err in ready:
            self._listen()
        if now - self._looked >= _LOOK_SECONDS:
            self._looked = now
            if child.own_memory(self.pid) > self._limits.memory_bytes:
                raise _EndedError("memory", "it took more memory than it may take")
        if self._out in ready:
            self._heard = now
        elif now - self._heard > seconds:
            raise _EndedError("hang", f"the decoder made no progress for {seconds:g} s and was ended")
        return self._out in ready

    def _send(self) -> None:
        try:
            self._unsent = self._unsent[os.write(self._in, self._unsent) :]
        except BlockingIOError:
            return
        except OSError:  # it is gone, and the end of its answers says so
            self._unsent = memoryview(b"")
        if not self._unsent:
            self._poll.unregister(self._in)

    def _listen(self) -> None:
        try:
            words = os.read(self._err, 1 << 16)
        except BlockingIOError:
            return
        if not words:
            self._poll.unregister(self._err)
        self._said = (self._said + words)[-_LAST_WORDS:]

    def _why(self) -> _EndedError:
        """Its answers ended without the last one."""
        try:
            self._popen.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            return _EndedError("crash", "the decoder's process fell silent")
        with contextlib.suppress(OSError):
            self._said = (self._said + os.read(self._err, 1 << 20))[-_LAST_WORDS:]
        words = self._said.decode("utf-8", "replace").strip()
        last = words.splitlines()[-1][:200] if words else ""
        code, more = self._popen.returncode, f": {last}" if last else ""
        if child.says_no_memory(words, self._source):
            return _EndedError("memory", f"it took more memory than it may take{more}")
        if -code in _CRASHES:
            return _EndedError("crash", f"the decoder crashed ({signal.Signals(-code).name}){more}")
        if code == -signal.SIGKILL:
            return _EndedError(
                "crash", "the decoder's process was killed (by hand, or by the system because memory ran out)"
            )
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
        return _EndedError("crash", f"the decoder's process ended {how}{more}")


def _ended(facts: dict[str, Any]) -> Ended:
    return Ended(finished=Finished(**facts["finished"]), warnings=[str(each) for each in facts["warnings"]])


def _said(facts: dict[str, Any]) -> tuple[str, str]:
    if facts["kind"] not in (*_VIDEO_ERRORS, "memory", "unforeseen"):
        raise ValueError(f"kind {facts['kind']!r}")
    return facts["kind"], str(facts["message"])


@cache
def _starter(pid: int) -> ThreadPoolExecutor:
    """The system ends a child with the *thread* that started it, and those that a worker is called from come and go."""
    return ThreadPoolExecutor(1, "decode-child")


def _start(command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True, env=environment, bufsize=0
    )


def _environment(threads: int) -> dict[str, str]:
    """Finds what this process finds, and sees no GPU."""
    path = os.pathsep.join(place for place in sys.path if place)
    count = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    return {**os.environ, **count, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}


def _gibibytes(count: int) -> str:
    return f"{count / (1 << 30):.3g} GiB"
