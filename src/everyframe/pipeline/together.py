"""Several files read at a time, each in a thread of its own, for one consumer."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from everyframe.video.ahead import put

S = TypeVar("S")
T = TypeVar("T")

_JOIN_SECONDS = 10.0
_END = -1  # in place of a source's number: a thread has ended, with the error that ended it, or None


class Together(Generic[T], Iterator[tuple[int, T]]):
    """What `read_together` returns: pairs of a source's number and its next item, plus `close()`.

    The threads hold no reference to this object, so dropping it without `close()` ends them, too.
    """

    def __init__(
        self, sources: Sequence[S], items_of: Callable[[S], Iterable[T]], *, files: int, items_ahead: int
    ) -> None:
        if files < 1:
            raise ValueError(f"files must be at least 1, got {files}")
        count = max(1, min(files, len(sources)))
        self._queue: queue.Queue[tuple[int, Any]] = queue.Queue(maxsize=items_ahead * count)
        self._stop = threading.Event()
        self._running = count
        turns = itertools.count()  # its next() is one step of the interpreter: no two threads get the same number
        arguments = (sources, items_of, turns, self._queue, self._stop)
        self._threads = [
            threading.Thread(target=_read, args=arguments, name=f"everyframe-decode-{number}", daemon=True)
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def __iter__(self) -> Together[T]:
        return self

    def __next__(self) -> tuple[int, T]:
        while self._running:
            try:
                # A timeout rather than a plain get(): Ctrl-C must arrive on every platform.
                number, item = self._queue.get(timeout=1.0)
            except queue.Empty:
                continue
            if number != _END:
                return number, item
            self._running -= 1
            if item is not None:
                self.close()
                raise item
        self.close()
        raise StopIteration

    def close(self) -> None:
        """Stop the threads and wait for them; what they were reading is closed when this returns."""
        self._running = 0
        self._stop.set()
        # A thread inside a blocking read (a network source) must not hang its consumer for ever.
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(timeout=_JOIN_SECONDS)

    def __del__(self) -> None:
        # Only signals: a finaliser that joins could wait on a thread that waits on the garbage collector.
        stop = getattr(self, "_stop", None)
        if stop is not None:
            stop.set()


def read_together(
    sources: Sequence[S], items_of: Callable[[S], Iterable[T]], *, files: int, items_ahead: int
) -> Together[T]:
    """The items of every source, of up to `files` sources at a time; at most `items_ahead * files` items wait in all.

    Sources are begun in order. The items of one come in order; those of several come as they are ready. A source is
    begun when another is read to its end, whether or not its items have been taken. An exception of `items_of` is
    raised here, and ends everything. When the consumer stops early call `close()`, or just drop this.

    Raises ValueError for `files` below 1.
    """
    return Together(sources, items_of, files=files, items_ahead=items_ahead)


def _read(
    sources: Sequence[Any],
    items_of: Callable[[Any], Iterable[Any]],
    turns: Iterator[int],
    out: queue.Queue[tuple[int, Any]],
    stop: threading.Event,
) -> None:
    error: BaseException | None = None
    try:
        for number in turns:
            if number >= len(sources) or stop.is_set():
                break
            _read_one(number, items_of(sources[number]), out, stop)
    except BaseException as broken:  # whatever it is belongs to the consumer, who raises it again
        error = broken
    put(out, (_END, error), stop)


def _read_one(number: int, items: Iterable[Any], out: queue.Queue[tuple[int, Any]], stop: threading.Event) -> None:
    try:
        for item in items:
            if not put(out, (number, item), stop):
                return
    finally:
        close = getattr(items, "close", None)
        if close is not None:
            close()
