"""What comes back from the cluster, in any order and maybe twice, becomes segments that are whole.

Chunks are known by their segment and number, segments by their video and their try: what Ray ran twice, and what comes
late of a try that was given up, is taken once or not at all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from everyframe.pipeline.segments import Segment, SegmentFeatures
from everyframe.scale.rows import Closed, EncodedChunk
from everyframe.scale.work import Failure, Task


@dataclass(frozen=True, kw_only=True, eq=False)
class Whole:
    """All of a segment is there."""

    task: Task
    features: SegmentFeatures


@dataclass(frozen=True, kw_only=True)
class Lost:
    """A try at a segment came to nothing."""

    task: Task
    failure: Failure


@dataclass
class _Open:
    task: Task
    chunks: dict[int, EncodedChunk] = field(default_factory=dict)
    closed: Closed | None = None


class Gather:
    """Segments under way. In memory are the chunks of those that are not whole yet: of as many as are being read."""

    def __init__(self, dim: int) -> None:
        self._dim = dim
        self._open: dict[tuple[str, Segment], _Open] = {}
        self._counted: dict[tuple[str, Segment], set[int]] = {}

    def expect(self, tasks: Iterable[Task]) -> None:
        """These are under way from now on; what had come of earlier tries at them is forgotten."""
        for task in tasks:
            self._open[task.key, task.segment] = _Open(task)

    def missing(self) -> list[tuple[Task, bool]]:
        """Tasks that were expected and are neither whole nor lost; and whether something had come of them."""
        return [(each.task, bool(each.chunks or each.closed)) for each in self._open.values()]

    def forget(self, task: Task) -> None:
        """Take nothing more of it."""
        self._open.pop((task.key, task.segment), None)

    def drop(self, key: str, segments: Iterable[Segment]) -> None:
        """Nothing more is to be done for this video."""
        for segment in segments:
            self._open.pop((key, segment), None)
            self._counted.pop((key, segment), None)

    def add(self, result: EncodedChunk | Closed) -> Whole | Lost | None:
        """Take what came; says so when it makes a segment whole, or ends a try at it."""
        place = result.task.key, result.task.segment
        found = self._open.get(place)
        if found is None or found.task.attempt != result.task.attempt:
            return None
        if isinstance(result, EncodedChunk):
            found.chunks.setdefault(result.number, result)
        elif result.failure is not None:
            del self._open[place]
            return Lost(task=found.task, failure=result.failure)
        elif found.closed is None:
            found.closed = result
        if found.closed is None or len(found.chunks) < (found.closed.chunks or 0):
            return None
        del self._open[place]
        self._counted.pop(place, None)
        return Whole(task=found.task, features=_joined(found, self._dim))

    def is_news(self, chunk: EncodedChunk) -> bool:
        """Did this part of the video come for the first time, in whatever try? Ask before `add`; asking counts it."""
        place = chunk.task.key, chunk.task.segment
        found = self._open.get(place)
        if found is None or found.task.attempt != chunk.task.attempt:
            return False
        counted = self._counted.setdefault(place, set())
        news = chunk.number not in counted
        counted.add(chunk.number)
        return news


def _joined(segment: _Open, dim: int) -> SegmentFeatures:
    chunks = [chunk for _, chunk in sorted(segment.chunks.items())]
    if segment.closed is None or segment.closed.finished is None:
        raise RuntimeError("a segment is closed by what its reading ended with")
    return SegmentFeatures(
        segment=segment.task.segment,
        times=np.concatenate([np.empty(0, np.float64), *(chunk.times for chunk in chunks)]),
        embeddings=np.concatenate([np.empty((0, dim), np.float32), *(chunk.embeddings for chunk in chunks)]),
        roles="".join(chunk.roles for chunk in chunks),
        macs=float(sum(chunk.macs for chunk in chunks)),
        finished=segment.closed.finished,
    )
