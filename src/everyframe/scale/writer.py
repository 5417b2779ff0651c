"""The writing side of the driver: parts of long videos into staging, whole videos into the output, in one thread.

A video is durable, then the manifest says so, then its parts are removed; killed in between, the next run goes on.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from everyframe.pipeline.segments import SegmentFeatures, SegmentsError
from everyframe.scale.keys import video_part
from everyframe.scale.manifest import Entry
from everyframe.scale.sinks import Item, Receipt, Sink
from everyframe.scale.staging import Staging
from everyframe.scale.work import Failure, FailureKind
from everyframe.video import VideoError

if TYPE_CHECKING:
    from everyframe.features import VideoFeatures
    from everyframe.scale.listing import Listed

_WAITING = 32  # segments that are whole and not yet written; a full queue holds up the driver, and it the cluster
_BATCH_VIDEOS = 64
_BATCH_BYTES = 64 << 20
_LINGER_SECONDS = 1.0  # fewer, larger commits


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """A segment that is whole. only: it is all of its video; last: with it, all others of its video are there.

    features: None for a video whose parts were all there before.
    """

    key: str
    listed: Listed
    features: SegmentFeatures | None
    only: bool
    last: bool
    attempts: int = 1


@dataclass(frozen=True, kw_only=True)
class Durable:
    """A video is in the output, and in the manifest."""

    entry: Entry


@dataclass(frozen=True, kw_only=True)
class GivenUp:
    """A video that has no place in the output, or no features after all."""

    key: str
    failure: Failure


@dataclass(frozen=True, kw_only=True)
class Unmade:
    """A video that was durable before, maybe in an earlier run, and whose features are lost."""

    key: str
    failure: Failure


@dataclass(frozen=True, kw_only=True)
class Misfit:
    """Segments that do not fit together: the video is to be read in one piece."""

    key: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Batch:
    """So much was written. seconds: that it took."""

    videos: int
    frames: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Stopped:
    """The output cannot be used any more; nothing is written after this."""

    error: Exception


Outcome = Durable | GivenUp | Unmade | Misfit | Batch | Stopped


@dataclass(frozen=True)
class _Ask:
    """Write what waits (and close the sink), then say so."""

    close: bool
    done: threading.Event = field(default_factory=threading.Event)


class Writer:
    """Takes parts, and says what became of their videos. join_with: `pipeline.segments.join` but for the parts."""

    def __init__(
        self, staging: Staging, sink: Sink, join_with: Callable[[Iterator[SegmentFeatures]], VideoFeatures]
    ) -> None:
        self._staging, self._sink, self._join = staging, sink, join_with
        self._jobs: queue.Queue[Part | _Ask] = queue.Queue(_WAITING)
        self._outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._batch: list[Item] = []
        self._changed: set[str] = set()
        self._since = 0.0
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name="everyframe-writer", daemon=True)
        self._thread.start()

    def put(self, part: Part, seconds: float) -> bool:
        """Hand a part over; False where there is no room for it within so many seconds."""
        try:
            self._jobs.put(part, timeout=seconds)
        except queue.Full:
            return False
        return True

    def outcomes(self) -> Iterator[Outcome]:
        """What became of videos since the last call."""
        while True:
            try:
                yield self._outcomes.get_nowait()
            except queue.Empty:
                return

    def flush(self, *, close: bool = False) -> None:
        """Return once all that was handed over is durable, or has failed. close: nothing more comes."""
        ask = _Ask(close)
        self._jobs.put(ask)
        ask.done.wait()

    # --- the thread --------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            linger = self._since + _LINGER_SECONDS - time.monotonic() if self._batch else None
            try:
                job = self._jobs.get(timeout=None if linger is None else max(linger, 0.0))
            except queue.Empty:
                self._safely(self._write)
                continue
            if isinstance(job, Part):
                self._safely(lambda part=job: self._take(part))  # type: ignore[misc]
                continue
            self._safely(self._write)
            if job.close:
                self._safely(self._close)
            job.done.set()
            if job.close:
                return

    def _safely(self, step: Callable[[], None]) -> None:
        if self._stopped:
            return
        try:
            step()
        except Exception as error:  # the driver ends the run with it
            self._stopped = True
            self._outcomes.put(Stopped(error=error))

    def _take(self, part: Part) -> None:
        if part.key in self._changed:
            return
        if part.features is not None and not _is_of(part.key, part.features):
            self._changed.add(part.key)
            source = part.listed.source
            why = f"{source}: it was changed or removed while the run was at work, so it has no features yet; run again"
            self._give_up(part, "output", why)
            return
        if part.features is not None and not part.only:
            self._staging.save(part.key, part.features)
        if not part.last:
            return
        try:
            alone = part.features if part.only else None
            features = self._join(self._staging.load(part.key) if alone is None else iter([alone]))
        except SegmentsError as error:
            if part.only:  # it was read in one piece
                self._give_up(part, "video", str(error))
                return
            self._staging.drop([part.key])
            self._outcomes.put(Misfit(key=part.key, message=str(error)))
            return
        except VideoError as error:
            self._give_up(part, "video", str(error))
            return
        self._batch.append(Item(key=part.key, listed=part.listed, features=features, attempts=part.attempts))
        if len(self._batch) == 1:
            self._since = time.monotonic()
        size = sum(item.features.embeddings.nbytes for item in self._batch)
        if len(self._batch) >= _BATCH_VIDEOS or size >= _BATCH_BYTES:
            self._write()

    def _give_up(self, part: Part, kind: FailureKind, message: str) -> None:
        failure = Failure(source=part.listed.source, kind=kind, message=message, attempts=part.attempts)
        self._outcomes.put(GivenUp(key=part.key, failure=failure))

    def _write(self) -> None:
        if not self._batch:
            return
        batch, self._batch = self._batch, []
        began = time.monotonic()
        receipt = self._sink.write(batch)
        self._staging.drop([entry.key for entry in receipt.entries])
        self._tell(receipt, batch, time.monotonic() - began)

    def _close(self) -> None:
        began = time.monotonic()
        self._tell(self._sink.close(), [], time.monotonic() - began)

    def _tell(self, receipt: Receipt, batch: list[Item], seconds: float) -> None:
        asked = {item.key for item in batch}
        for entry in receipt.entries:
            self._outcomes.put(Durable(entry=entry))
        for key, failure in receipt.failures.items():
            kind = GivenUp if key in asked else Unmade
            self._outcomes.put(kind(key=key, failure=failure))
        frames = sum(entry.frames for entry in receipt.entries)
        self._outcomes.put(Batch(videos=len(receipt.entries), frames=frames, seconds=seconds))
        if receipt.error is not None:
            raise receipt.error


def _is_of(key: str, part: SegmentFeatures) -> bool:
    """Was this read from the very video that was probed for the key? A file may be replaced in between."""
    facts = part.finished.video
    return key.startswith(f"{video_part(str(facts.get('path', '')), facts)}-")
