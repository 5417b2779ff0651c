"""The process that decodes for a worker: `python -c "from everyframe.scale.child import main; main()" TERMS`.

A broken file can crash a decoder, hang it, or make it take all memory. Here it does so alone. The process takes limits
on itself before it loads anything, reads requests on standard input (pickled: they come from its parent), and answers
in frames on standard output: a tag, the sizes of two parts, and these. It ends with its input or its parent.

It says that it is alive only where pictures are being decoded, so a decoder that turns in circles counts as hung.
"""

from __future__ import annotations

import json
import os
import pickle
import queue
import resource
import signal
import struct
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any

from everyframe.processes import end_with_parent, take_no_more

if TYPE_CHECKING:
    from everyframe.encoders import Encoder
    from everyframe.scale.wire import Buffer

FRAME = struct.Struct(">cIQ")
"""A tag and the bytes of the two parts that follow."""
READY, BEAT, CHUNK, FINISHED, FACTS, ERROR = b"R", b"B", b"C", b"F", b"P", b"E"
REQUEST = struct.Struct(">Q")
BEAT_SECONDS = 0.5
NO_MEMORY = (
    "Cannot allocate memory",
    "not enough memory",
    "can't allocate memory",
    "bad_alloc",
    "MemoryError",
    "Memory allocation",
)
"""What libraries say where they get no more: FFmpeg, torch (both), C++, Python, OpenBLAS."""

_MOST_WARNINGS = 20


def main() -> None:
    """Entry point of the child. TERMS: parent (process id), memory_bytes, threads."""
    terms = json.loads(sys.argv[1])
    end_with_parent(terms["parent"])
    take_no_more(memory_bytes=terms["memory_bytes"])
    os.umask(0o077)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver, which ends its workers
    answers = _Answers(os.fdopen(os.dup(1), "wb", buffering=0))
    os.dup2(2, 1)  # what libraries print is no answer
    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_read_requests, args=(sys.stdin.buffer, requests), daemon=True).start()
    try:
        _Reader(answers, terms["threads"]).serve(iter(requests.get, None))
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # an orderly end would wait for the thread that reads


class _Answers:
    """Frames to the parent, from two threads."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._lock = threading.Lock()

    def send(self, tag: bytes, head: Buffer = b"", body: Buffer = b"") -> None:
        with self._lock:
            for part in (FRAME.pack(tag, len(head), len(body)), head, body):
                view = memoryview(part)
                while view:
                    view = view[self._file.write(view) :]

    def fail(self, kind: str, message: str) -> None:
        self.send(ERROR, json.dumps({"kind": kind, "message": message}).encode())


class _Reader:
    """Does what it is asked, one request after the other."""

    def __init__(self, answers: _Answers, threads: int) -> None:
        self._answers = answers
        self._threads = threads
        self._encoder: Encoder | None = None
        self._busy = threading.Event()

    def serve(self, requests: Iterator[tuple[Any, ...]]) -> None:
        """The first request is ("start", planning or None)."""
        _, planning = next(requests)
        self._start(planning)
        self._answers.send(READY)
        threading.Thread(target=self._beat, daemon=True).start()
        for name, *arguments in requests:
            self._busy.set()
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("default")
                self._answer(name, arguments, said)
            self._busy.clear()

    def _start(self, planning: bytes | None) -> None:
        import everyframe.video.identity
        from everyframe.video.opening import limit_threads

        limit_threads(self._threads)
        if planning is not None:
            import everyframe.pipeline.segments
            import everyframe.scale.wire  # noqa: F401
            from everyframe.scale.shipping import arrive

            self._encoder = arrive(planning, threads=self._threads)

    def _answer(self, name: str, arguments: list[Any], said: list[warnings.WarningMessage]) -> None:
        from everyframe.video import VideoError
        from everyframe.video.errors import MissingVideoError, UnreachableError

        source = arguments[0]
        try:
            if name == "read":
                _, sampling, segment = arguments
                self._read(source, sampling, segment, said)
            else:
                self._probe(source)
        except Exception as error:
            if _is_memory(error, source):
                self._answers.fail("memory", str(error))
                os._exit(1)  # whatever it was in the middle of
            if isinstance(error, VideoError):
                missing, unreachable = isinstance(error, MissingVideoError), isinstance(error, UnreachableError)
                kind = "missing" if missing else "unreachable" if unreachable else "video"
                self._answers.fail(kind, str(error))
            else:
                traceback.print_exc()
                self._answers.fail("unforeseen", f"{type(error).__name__}: {error}")

    def _read(self, source: str, sampling: Any, segment: Any, said: list[warnings.WarningMessage]) -> None:
        from everyframe.pipeline.decoding import Finished
        from everyframe.pipeline.segments import read_segment
        from everyframe.scale.wire import PackedChunk, finished_facts

        if self._encoder is None:
            raise RuntimeError("this process was started to probe")
        began = time.monotonic()
        for item in read_segment(source, self._encoder, sampling, segment):
            if isinstance(item, Finished):
                if item.error is not None:
                    raise item.error
                _check_memory(item.damage, source)
                facts = {"finished": finished_facts(item), "warnings": _sentences(said)}
                self._answers.send(FINISHED, json.dumps(facts).encode())
                return
            chunk = PackedChunk.of(item, self._encoder.model, time.monotonic() - began)
            self._answers.send(CHUNK, chunk.head, chunk.pixels)
            began = time.monotonic()
        raise RuntimeError("its reading ended without an end")

    def _probe(self, source: str) -> None:
        from everyframe.video import probe
        from everyframe.video.identity import identity

        info = probe(source)
        facts = {
            "duration_seconds": info.duration_seconds,
            "fps": info.average_fps,
            "identity": identity(source, required=True),
        }
        self._answers.send(FACTS, json.dumps(facts).encode())

    def _beat(self) -> None:
        from everyframe.video.decode import Decoder

        last = -1
        while True:
            time.sleep(BEAT_SECONDS)
            if self._busy.is_set() and Decoder.pictures != last:
                last = Decoder.pictures
                self._answers.send(BEAT)


class _NoMemoryError(Exception):
    pass


def says_no_memory(text: str, source: str) -> bool:
    """Does what was said of a source mean that memory ran out? Its name, or an image's in it, may hold such words."""
    if not any(words in text for words in NO_MEMORY):
        return False
    names = [source, os.path.abspath(source), source.partition("://")[2] or source]
    if os.path.isdir(source):
        names += [name for name in os.listdir(source) if any(words in name for words in NO_MEMORY)]
    for name in names:
        text = text.replace(name, "")
    return any(words in text for words in NO_MEMORY)


def _is_memory(error: BaseException | None, source: str) -> bool:
    """Also where FFmpeg had none, and what called it took that for a damaged file."""
    while error is not None:
        if isinstance(error, (MemoryError, _NoMemoryError)) or says_no_memory(str(error), source):
            return True
        error = error.__cause__
    return False


def _check_memory(damage: list[str], source: str) -> None:
    for message in damage:
        if says_no_memory(message, source):
            raise _NoMemoryError(message)


def _sentences(said: list[warnings.WarningMessage]) -> list[str]:
    own = [str(each.message) for each in said if issubclass(each.category, UserWarning)]
    return list(dict.fromkeys(own))[:_MOST_WARNINGS]


def _read_requests(file: IO[bytes], requests: queue.SimpleQueue[Any]) -> None:
    while len(size := file.read(REQUEST.size)) == REQUEST.size:
        body = file.read(REQUEST.unpack(size)[0])
        requests.put(pickle.loads(body))
    os.kill(os.getpid(), signal.SIGKILL)  # the other end is gone, and with it whoever asked


def own_memory(pid: int) -> int:
    """Bytes of memory that a process alone holds (Linux; 0 elsewhere, and for one that is gone)."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            _, resident, shared = (int(pages) for pages in file.read().split()[:3])
    except (OSError, ValueError):
        return 0
    return (resident - shared) * resource.getpagesize()
