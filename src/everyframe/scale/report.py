"""What a run came to: counts, failures by reason, hours, rates and what it cost."""

from __future__ import annotations

import json
import threading
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from typing import Any, get_args

from everyframe.scale.events import (
    ChunkDone,
    Event,
    Finished,
    Listener,
    Nodes,
    RoundStarted,
    SegmentFailed,
    Started,
    VideoDone,
    VideoStatus,
    Written,
)
from everyframe.scale.work import Failure, FailureKind, Price, Usage
from everyframe.version import package_version

STATUSES: tuple[VideoStatus, ...] = get_args(VideoStatus)
LOST = ("failed", "quarantined")
STAGES = ("decode", "encode", "gather", "write")


@dataclass(frozen=True, kw_only=True)
class Report:
    """What became of a run.

    videos: by status; "skipped" and "adopted" were done before, "duplicate" has the content of another one. One
    that was done, and whose features were lost before they came into a shard, counts as done and as failed.
    duplicates: paths that were listed more than once, which are counted nowhere else. missing: of the failed ones
    those that are not there. failures: videos that were lost, in the order in which they were given up. damaged: what
    partial videos lack, as far as the driver says.
    frames, hours: of the features that became durable in this run, and of their video. encoded_frames, i_frames,
    encoded_hours: what was computed for that, which is less where an interrupted run had begun, more where videos were
    given up. tries_failed: of segments, by kind; retries: those that were tried again.
    stage_seconds: of work, summed over workers. warnings: what went wrong beside the videos.
    """

    run: str
    version: str
    started: str
    finished: str
    interrupted: bool = False
    listed: int = 0
    duplicates: int = 0
    missing: int = 0
    videos: dict[str, int] = field(default_factory=dict)
    failures: tuple[Failure, ...] = ()
    damaged: tuple[Failure, ...] = ()
    tries_failed: dict[str, int] = field(default_factory=dict)
    retries: int = 0
    rounds: int = 0
    frames: int = 0
    hours: float = 0.0
    encoded_frames: int = 0
    i_frames: int = 0
    encoded_hours: float = 0.0
    stage_seconds: dict[str, float] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)
    price: Price = field(default_factory=Price)
    cluster: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def file_name(self) -> str:
        """Of the report, below OUT/.everyframe."""
        return f"report-{self.run}.json"

    @property
    def good(self) -> bool:
        """Every video that was asked for has its features."""
        return not self.failures and not self.interrupted

    @property
    def failures_by_kind(self) -> dict[FailureKind, tuple[Failure, ...]]:
        """Most frequent first."""
        counts = Counter(failure.kind for failure in self.failures)
        return {
            kind: tuple(failure for failure in self.failures if failure.kind == kind)
            for kind, _ in counts.most_common()
        }

    @property
    def frames_per_second(self) -> float | None:
        """Encoded, by the clock; None where nothing was."""
        return self._per_second(self.encoded_frames)

    @property
    def times_realtime(self) -> float | None:
        """Seconds of video that were encoded per second by the clock; None where none were."""
        return self._per_second(self.encoded_hours * 3600)

    @property
    def cost(self) -> float:
        """Euros, for what the cluster had while the run lasted, busy or not."""
        return self.usage.cpu_hours * self.price.cpu_hour + self.usage.gpu_hours * self.price.gpu_hour

    @property
    def cost_per_hour(self) -> float | None:
        """Euros per hour of video encoded; None where none was."""
        return self.cost / self.encoded_hours if self.encoded_hours else None

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON has it; with what follows from it, for whoever reads the file."""
        return {
            **asdict(self),
            "good": self.good,
            "failures_by_kind": {kind: len(failures) for kind, failures in self.failures_by_kind.items()},
            "frames_per_second": self.frames_per_second,
            "times_realtime": self.times_realtime,
            "cost_euros": self.cost,
            "cost_euros_per_hour": self.cost_per_hour,
        }

    def to_json(self) -> str:
        """Of `as_dict`; ends with a line feed. Paths that are no UTF-8 are escaped."""
        text = json.dumps(self.as_dict(), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
        return text.encode("utf-8", "backslashreplace").decode()

    def _per_second(self, amount: float) -> float | None:
        return amount / self.usage.wall_seconds if amount and self.usage.wall_seconds else None


class ReportBuilder:
    """Makes a `Report` of the events of a run; a `Listener`. run: its name, as far as known before the first event."""

    def __init__(self, *, run: str = "", price: Price | None = None) -> None:
        self._report = Report(
            run=run,
            version=package_version(),
            started=_now(),
            finished="",
            videos=dict.fromkeys(STATUSES, 0),
            stage_seconds=dict.fromkeys(STAGES, 0.0),
            price=price or Price(),
        )
        self._videos: Counter[str] = Counter()
        self._tries: Counter[str] = Counter()
        self._work: defaultdict[str, float] = defaultdict(float)  # seconds by stage; sums of `Report` by name
        self._failures: list[Failure] = []
        self._damaged: list[Failure] = []
        self._warnings: list[str] = []

    def __call__(self, event: Event) -> None:
        count = self._work
        if isinstance(event, ChunkDone):
            count["encoded_frames"] += event.frames
            count["i_frames"] += event.i_frames
            count["encoded_seconds"] += event.seconds
            count["decode"] += event.decode_seconds
            count["encode"] += event.encode_seconds
        elif isinstance(event, VideoDone):
            self._video(event)
        elif isinstance(event, SegmentFailed):
            self._tries[event.kind] += 1
            count["retries"] += event.again
        elif isinstance(event, Written):
            count["write"] += event.seconds
        elif isinstance(event, RoundStarted):
            count["rounds"] = max(count["rounds"], event.number)
        elif isinstance(event, Started):
            self._videos["skipped"] += event.skipped
            self._report = replace(
                self._report,
                run=event.run,
                listed=event.listed,
                duplicates=event.duplicates,
                cluster=dict(event.cluster),
            )
        elif isinstance(event, Nodes):
            self._report = replace(self._report, cluster={**self._report.cluster, **asdict(event)})
        elif isinstance(event, Finished):
            self._report = replace(
                self._report, finished=_now(), interrupted=event.interrupted, usage=replace(event.usage)
            )

    def warn(self, text: str) -> None:
        """Something went wrong that no video is to blame for."""
        self._warnings.append(text)

    def report(self) -> Report:
        """As of now; once the run is over, its report."""
        count = self._work
        by_stage = self._report.usage.by_stage
        return replace(
            self._report,
            finished=self._report.finished or _now(),
            videos={**dict.fromkeys(STATUSES, 0), **self._videos},
            missing=sum(failure.kind == "missing" for failure in self._failures),
            failures=tuple(self._failures),
            damaged=tuple(self._damaged),
            tries_failed=dict(self._tries),
            retries=int(count["retries"]),
            rounds=int(count["rounds"]),
            frames=int(count["frames"]),
            hours=count["seconds"] / 3600,
            encoded_frames=int(count["encoded_frames"]),
            i_frames=int(count["i_frames"]),
            encoded_hours=count["encoded_seconds"] / 3600,
            stage_seconds={stage: by_stage.get(stage, count[stage]) for stage in (*STAGES, *by_stage)},
            warnings=tuple(self._warnings),
        )

    def _video(self, event: VideoDone) -> None:
        self._videos[event.status] += 1
        if event.status in ("done", "partial"):
            self._work["frames"] += event.frames
            self._work["seconds"] += event.seconds
        if event.failure is not None:
            (self._failures if event.status in LOST else self._damaged).append(event.failure)


class Audience:
    """Passes each event on to all listeners, one event at a time, from whatever thread it comes; a `Listener`.

    A listener that raises is warned about and hears no more: a full disk below a log ends no run. report: is told of
    it, if given. faults: what it was told.
    """

    def __init__(self, listeners: Iterable[Listener], report: ReportBuilder | None = None) -> None:
        self._listeners = list(listeners)
        self._report = report
        self.faults: list[str] = []
        self._lock = threading.RLock()

    def __call__(self, event: Event) -> None:
        with self._lock:
            for listener in tuple(self._listeners):
                try:
                    listener(event)
                except Exception as error:  # whatever it is, the features count
                    self._listeners.remove(listener)
                    name = getattr(listener, "__name__", type(listener).__name__)
                    text = f"{name} hears no more of this run ({type(error).__name__}: {error})"
                    self.faults.append(text)
                    if self._report is not None:
                        self._report.warn(text)
                    warnings.warn(text, stacklevel=2)


def _now() -> str:
    """ISO 8601, UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
