"""Run any iterator ahead of its consumer, in one background thread with a bounded queue."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Generic, TypeVar

T = TypeVar("T")
Label = TypeVar("Label", str, int)

_ITEM, _ERROR, _END = "item", "error", "end"
_POLL_SECONDS = 0.05
_JOIN_SECONDS = 10.0


class Ahead(Generic[T], Iterator[T]):
    """What `decode_ahead` returns: the same items in the same order, plus `close()`.

    The thread holds no reference to this object, so dropping it without `close()` also ends the thread.
    """

    def __init__(self, iterable: Iterable[T], depth: int):
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        self._queue: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=depth)
        self._stop = threading.Event()
        self._finished = False
        self._thread = threading.Thread(
            target=_produce, args=(iterable, self._queue, self._stop), name="everyframe-decode", daemon=True
        )
        self._thread.start()

    def __iter__(self) -> Ahead[T]:
        return self

    def __next__(self) -> T:
        if self._finished:
            raise StopIteration
        kind, value = self._get()
        if kind == _ITEM:
            return value
        self.close()
        if kind == _ERROR:
            raise value
        raise StopIteration

    def _get(self) -> tuple[str, Any]:
        while True:
            try:
                # A timeout rather than a plain get(): Ctrl-C must arrive on every platform.
                return self._queue.get(timeout=1.0)
            except queue.Empty:
                if not self._thread.is_alive() and self._queue.empty():
                    return _END, None

    def close(self) -> None:
        """Stop the thread and wait for it; the iterator's own `close()` has run when this returns."""
        self._finished = True
        self._stop.set()
        # A producer inside a blocking read (a network source) must not hang its consumer for ever.
        if self._thread is not threading.current_thread():
            self._thread.join(timeout=_JOIN_SECONDS)

    def __enter__(self) -> Ahead[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # Only signals: a finaliser that joins could wait on a thread that waits on the garbage collector.
        stop = getattr(self, "_stop", None)
        if stop is not None:
            stop.set()


def decode_ahead(iterator: Iterable[T], depth: int) -> Ahead[T]:
    """Consume `iterator` in a background thread that keeps at most `depth` items waiting.

    Items arrive in order. An exception raised by the iterator is raised here, where its next item would have
    been. When the consumer stops early (break, an exception, Ctrl-C) call `close()`, use it as a context
    manager, or just drop it: the thread ends after the item it is working on and closes the iterator.

    Raises: ValueError for a depth below 1.
    """
    return Ahead(iterator, depth)


def _produce(iterable: Iterable[Any], out: queue.Queue[tuple[str, Any]], stop: threading.Event) -> None:
    last: tuple[str, Any] = (_END, None)
    try:
        for item in iterable:
            if not put(out, (_ITEM, item), stop):
                break
    except BaseException as error:  # whatever it is belongs to the consumer, who raises it again
        last = (_ERROR, error)
    try:
        close = getattr(iterable, "close", None)
        if close is not None:
            close()
    except BaseException as error:
        last = (_ERROR, error) if last[0] == _END else last
    put(out, last, stop)


def put(out: queue.Queue[tuple[Label, Any]], entry: tuple[Label, Any], stop: threading.Event) -> bool:
    """Queue one entry of a thread that reads ahead; False when its consumer has gone."""
    while not stop.is_set():
        try:
            out.put(entry, timeout=_POLL_SECONDS)
        except queue.Full:
            continue
        return True
    return False
