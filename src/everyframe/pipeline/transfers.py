"""Chunks on their way to a GPU, while the model computes on the chunk before.

A decoding thread queues everything it does on the GPU (uploads, the resize, what planning looks at) on a stream of its
own. What it hands over carries an event, and the stream of the model waits for that event and no longer. The queue
between the threads holds a few chunks, so that the next one is there, or on its way, while one is computed: there is no
other buffer. Where the model is on the CPU there is no link, and items are handed through.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from everyframe.pipeline.window import Chunk
from everyframe.video import decode_ahead

_END = object()


class Link(Protocol):
    """The way to one device; several threads may send over it."""

    def sending(self) -> AbstractContextManager[Any]:
        """Within it, what this thread asks of the device is queued on the sending stream."""
        ...

    def upload(self, pixels: Tensor) -> Tensor:
        """A copy on the device, underway; pixels that are there already, themselves."""
        ...

    def mark(self) -> Any:
        """The moment at which all that was sent so far has arrived."""
        ...

    def wait(self, mark: Any, pixels: Tensor) -> None:
        """What this thread asks of the device from now on is done after that moment; `pixels` live until it is."""
        ...


class CudaLink:
    """The way to a CUDA device: a stream of high priority, since what is sent is little and the model waits for it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device, priority=-1)

    def sending(self) -> AbstractContextManager[Any]:
        return torch.cuda.stream(self._stream)

    def upload(self, pixels: Tensor) -> Tensor:
        return pixels if pixels.device.type == "cuda" else pixels.pin_memory().to(self._device, non_blocking=True)

    def mark(self) -> torch.cuda.Event:
        return self._stream.record_event()

    def wait(self, mark: torch.cuda.Event, pixels: Tensor) -> None:
        current = torch.cuda.current_stream(self._device)
        current.wait_event(mark)
        pixels.record_stream(current)  # the allocator knows of the sending stream alone


@dataclass
class _Sent:
    """A chunk whose pixels are on the device at the moment `mark`."""

    chunk: Chunk
    mark: Any


def link_to(device: torch.device) -> Link | None:
    """The way to a CUDA device; None for any other."""
    return CudaLink(device) if device.type == "cuda" else None


def sent(items: Iterable[Any], link: Link | None) -> Iterable[Any]:
    """For a decoding thread: the items, made and their chunks sent as they are asked for. What is no chunk passes.

    Closing it, or an error, closes `items`.
    """
    return items if link is None else _send(iter(items), link)


def arrived(item: Any, link: Link | None) -> Any:
    """For the thread of the model: an item of `sent` as it was, its pixels on the device when they are looked at."""
    if link is None or not isinstance(item, _Sent):
        return item
    link.wait(item.mark, item.chunk.pixels)
    return item.chunk


class Arrivals(Iterator[Any]):
    """`decode_ahead` over a link: items in order, chunks with their pixels on its device.

    Errors of `items` are raised where the next item would have been.
    """

    def __init__(self, items: Iterable[Any], depth: int, link: Link) -> None:
        self._link = link
        self._ahead = decode_ahead(sent(items, link), depth)

    def __next__(self) -> Any:
        return arrived(next(self._ahead), self._link)

    def close(self) -> None:
        """Stop the thread and wait for it; it closes `items`."""
        self._ahead.close()


def ahead_on(device: torch.device, items: Iterable[Any], depth: int) -> Any:
    """`decode_ahead`, with chunks brought to `device` where that is a CUDA device."""
    link = link_to(device)
    return decode_ahead(items, depth) if link is None else Arrivals(items, depth, link)


def _send(items: Iterator[Any], link: Link) -> Iterator[Any]:
    try:
        while True:
            with link.sending():
                item = next(items, _END)
                if isinstance(item, Chunk):
                    item = _Sent(replace(item, pixels=link.upload(item.pixels)), link.mark())
            if item is _END:
                return
            yield item
    finally:
        close = getattr(items, "close", None)
        if close is not None:
            close()
