"""How far a run is: counts, rates and the time left, from what the driver tells."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from everyframe.scale.events import (
    ChunkDone,
    Event,
    Finished,
    Nodes,
    Probing,
    RoundStarted,
    SegmentFailed,
    Started,
    VideoDone,
    Written,
)
from everyframe.scale.report import LOST

_WINDOW_SECONDS = 180.0  # of which the present rate is the mean
_STEP_SECONDS = 1.0  # between two points of it


@dataclass(frozen=True, kw_only=True)
class StageRate:
    """frames_per_second: of one worker while it works; None where it has not worked. busy: share of its workers."""

    frames_per_second: float | None
    busy: float | None


class Progress:
    """Where a run stands; a `Listener`. Its numbers may be read at any time, from the same thread or another.

    videos, finished: still to do at the start, and how many of them have come to an end. seconds, seconds_done: of
    video, to do at the start and behind us. frames: encoded in this run. probing: how far the look at the videos is.

    The rate of the time left is that of the last three minutes, so that it follows workers that come and go.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._began: float | None = None
        self._ended: float | None = None
        self._open: dict[str, float] = {}  # seconds that are encoded of videos not yet at their end
        self._encoded = self._given_up = 0.0  # seconds of video
        self._points: deque[tuple[float, float, int]] = deque()
        self.videos = self.finished = self.listed = 0
        self.seconds = 0.0
        self.frames = self.i_frames = self.retries = self.round = 0
        self.frames_written = 0
        self.statuses: Counter[str] = Counter()
        self.work_seconds: dict[str, float] = {"decode": 0.0, "encode": 0.0, "write": 0.0}
        self.nodes: Nodes | None = None
        self.probing: Probing | None = None

    def __call__(self, event: Event) -> None:
        if isinstance(event, Started):
            self._start(event)
        elif isinstance(event, ChunkDone):
            self._chunk(event)
        elif isinstance(event, VideoDone):
            self._video(event)
        elif isinstance(event, SegmentFailed):
            self.retries += event.again
        elif isinstance(event, Written):
            self.frames_written += event.frames
            self.work_seconds["write"] += event.seconds
        elif isinstance(event, RoundStarted):
            self.round = event.number
        elif isinstance(event, Nodes):
            self.nodes = event
        elif isinstance(event, Probing):
            self.probing = event
        elif isinstance(event, Finished):
            self._ended = self._now()

    def _start(self, event: Started) -> None:
        self._began = self._now()
        self._points.append((self._began, 0.0, 0))
        self.listed, self.videos, self.seconds = event.listed, event.videos, event.seconds
        self.statuses["skipped"] += event.skipped

    def _chunk(self, event: ChunkDone) -> None:
        self.frames += event.frames
        self.i_frames += event.i_frames
        self._encoded += event.seconds
        self._open[event.source] = self._open.get(event.source, 0.0) + event.seconds
        self.work_seconds["decode"] += event.decode_seconds
        self.work_seconds["encode"] += event.encode_seconds
        now = self._now()
        if not self._points or now - self._points[-1][0] >= _STEP_SECONDS:
            self._points.append((now, self._encoded, self.frames))
        while len(self._points) > 2 and now - self._points[1][0] > _WINDOW_SECONDS:
            self._points.popleft()

    def _video(self, event: VideoDone) -> None:
        self.statuses[event.status] += 1
        here = self._open.pop(event.source, 0.0)
        if event.status in LOST:
            self._given_up += max(event.seconds - here, 0.0)
        # What was settled before the first pass, such as a dead link, was none of the videos to do; nor are copies.
        if event.status in ("done", "partial") or (event.status in LOST and self.round):
            self.finished = min(self.finished + 1, self.videos)

    @property
    def elapsed(self) -> float:
        """Seconds since the work was known, to now or to the end of the run."""
        if self._began is None:
            return 0.0
        return max((self._ended if self._ended is not None else self._now()) - self._began, 1e-6)

    @property
    def seconds_done(self) -> float:
        """Seconds of video behind us."""
        return self._encoded + self._given_up

    @property
    def seconds_left(self) -> float:
        return max(self.seconds - self.seconds_done, 0.0)

    @property
    def times_realtime(self) -> float:
        """Seconds of video per second of late."""
        return self._late(1, self._encoded)

    @property
    def frames_per_second(self) -> float:
        """Of late, all workers together."""
        return self._late(2, self.frames)

    @property
    def eta_seconds(self) -> float | None:
        """Seconds to the end at the present rate; None as long as nothing is known of it."""
        if self._began is None:
            return None
        if self._ended is not None or not self.seconds_left:
            return 0.0
        rate = self.times_realtime
        return self.seconds_left / rate if rate > 0 else None

    def stage(self, name: str) -> StageRate:
        """name: "decode", "encode" or "write", which has one worker, the driver."""
        frames = self.frames_written if name == "write" else self.frames
        worked = self.work_seconds[name]
        workers = 1 if name == "write" else None
        if name != "write" and self.nodes is not None:
            workers = self.nodes.decoders if name == "decode" else self.nodes.encoders
        busy = min(worked / (workers * self.elapsed), 1.0) if workers and self.elapsed else None
        return StageRate(frames_per_second=frames / worked if worked and frames else None, busy=busy)

    def _late(self, column: int, total: float) -> float:
        """Of a column of the points: its rise per second over the window."""
        if self._began is None:
            return 0.0
        now = self._ended if self._ended is not None else self._now()
        first = self._points[0]  # the last one before the window begins, or the start
        return (total - first[column]) / max(now - first[0], 1e-6)
