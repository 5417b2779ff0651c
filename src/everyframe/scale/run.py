"""The driver: what is listed becomes features, each video once, whatever dies on the way.

Order of a run. The list is read here; the cluster is reached, and its nodes must have the same versions; every video
is probed on the cluster, so that its key (content and settings) is known; what the manifest has, or the output, is left
alone; the rest is split into segments and read and encoded in passes. A pass takes what waits; what does not come back
from it waits again. What comes back is gathered by key, segment and chunk, so whatever Ray ran twice counts once.

What died is not to blame. Ray starts dead workers again, here and on other nodes, and repeats their tasks. What it
gives up is "lost" and tried again, alone; only after more tries than for any other failure is a video quarantined for
it. A pass in which nothing comes for `stall_seconds` (or a shorter time after a node went away, since what waits for
the place of a dead worker may wait for ever) is ended, and a new one begins with what the cluster has then. Of the
segments that were under way in a pass that stalled though all nodes were there, each counts a "hang". After
`_MOST_FRUITLESS` passes in a row without a single feature the run ends with ClusterError.

The driver may be killed at any moment: the next run finds all that was durable, whole videos in the output, encoded
segments of long ones in the staging area, and encodes the rest.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import secrets
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import numpy as np

from everyframe.extras import require
from everyframe.pipeline import ClipSampling, Sampling
from everyframe.pipeline.encode import provenance_of
from everyframe.pipeline.segments import Segment, join, split
from everyframe.scale import rows
from everyframe.scale.cluster import Cluster, ClusterError, Pools
from everyframe.scale.events import (
    ChunkDone,
    Finished,
    RoundStarted,
    SegmentFailed,
    Started,
    VideoDone,
    VideoStatus,
    Written,
)
from everyframe.scale.flow import PassLost, Recipe, block_bytes
from everyframe.scale.gather import Gather, Lost, Whole
from everyframe.scale.listing import Listed, Listing
from everyframe.scale.manifest import Attempt, Entry, Manifest, video_key
from everyframe.scale.places import STATE, Place
from everyframe.scale.probing import Prober
from everyframe.scale.rows import Closed, EncodedChunk, Probed
from everyframe.scale.session import TAKE_SECONDS, Session, last_line
from everyframe.scale.shipping import Shipped
from everyframe.scale.sinks import Sink
from everyframe.scale.staging import Staging
from everyframe.scale.work import PERMANENT, Failure, Limits, Stages, Task
from everyframe.scale.work_list import Video, WorkList, limit, resumed
from everyframe.scale.writer import Batch, Durable, Misfit, Part, Stopped, Unmade, Writer

if TYPE_CHECKING:
    from everyframe.encoders import Encoder
    from everyframe.scale.events import Listener
    from everyframe.scale.report import Report

logger = logging.getLogger("everyframe.scale")

_MOST_FRUITLESS = 3
_NOT_KEPT = ("missing", "unreachable", "output")  # what may be well the next time is looked for again
_FEW = 16  # segments that are left: then it may be they, and not the cluster, why nothing comes


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run is asked for; encoder as the pipeline drives it. See `scale.encode`."""

    encoder: Encoder
    sampling: Sampling | ClipSampling
    dtype: str
    stages: Stages
    limits: Limits
    attempts: int
    segment_seconds: float
    stall_seconds: float
    provenance: dict[Any, dict[str, Any]] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "provenance", provenance_of(self.encoder, self.sampling, self.dtype))

    @property
    def rate(self) -> float:
        """Features per second of video."""
        sampling = self.sampling
        return sampling.fps if isinstance(sampling, Sampling) else 1.0 / sampling.clip_seconds


@dataclass(frozen=True, kw_only=True)
class Output:
    """Where a run writes. All of it belongs together, and is closed with the manifest, which holds the lock."""

    place: Place
    manifest: Manifest
    staging: Staging
    sink: Sink


def new_run() -> str:
    """A name for a run, which sorts by time."""
    return f"{datetime.now(timezone.utc):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does; only the main thread can ask for that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Run:
    """One run of the driver, in the caller's thread. tell: hears all events, from that thread."""

    def __init__(
        self,
        name: str,
        plan: Plan,
        listing: Listing,
        output: Output,
        cluster: Cluster,
        shipped: Shipped,
        tell: Listener,
    ) -> None:
        self._name, self._plan, self._listing, self._output = name, plan, listing, output
        self._shipped, self._tell = shipped, tell
        self._session = Session(cluster, plan.stages, plan.limits, plan.stall_seconds, tell)
        calls = plan.rate / plan.encoder.batch_size
        self._work = WorkList(calls, plan.rate)
        self._gather = Gather(plan.encoder.dim)
        join_with = functools.partial(join, encoder=plan.encoder, sampling=plan.sampling, dtype=plan.dtype)
        self._writer = Writer(output.staging, output.sink, join_with)
        self._attempts: list[Attempt] = []
        self._entries: list[Entry] = []
        self._progress_at = 0.0
        self._features = 0  # segments of this pass that are whole
        self._blamed = 0  # and tries in it that failed
        self._held = 0.0  # seconds that the writer had no room
        self._full: Any = None

    def run(self) -> bool:
        """All of it; True where it was interrupted. Raises ClusterError, OutputError."""
        interrupted, ended_well = False, False
        try:
            self._session.begin()
            prober = Prober(self._session, self._plan.attempts, run=self._name)
            self._begin(prober.probe([each.source for each in self._listing.videos]))
            self._passes()
            ended_well = True
        except KeyboardInterrupt:
            interrupted = True
        finally:
            try:
                self._end()
            finally:
                self._tell(Finished(usage=self._session.usage, interrupted=not ended_well))
        return interrupted

    # --- before the work -----------------------------------------------------------------------------------

    def _begin(self, probed: dict[str, Probed]) -> None:
        """Decide on each video, and tell of those that are decided."""
        told: list[VideoDone] = []
        adopted: dict[str, Entry] = {}
        skipped = 0
        for failure in self._listing.missing:
            told.append(VideoDone(source=failure.source, key=None, status="failed", failure=failure))
        for listed in self._listing.videos:
            facts = probed[listed.source]
            key = video_key(listed.source, facts.identity, self._plan.provenance)
            first = self._work.get(key)
            if first is not None:
                first.twins.append(listed)
                continue
            if key in adopted:
                told.append(self._copy(key, listed, adopted[key]))
                continue
            settled = self._settled(key, listed, facts, adopted)
            if settled is None:
                self._work.add(self._video(key, listed, facts))
            elif settled.status == "skipped" and self._is_new_copy(key, listed):
                told.append(self._copy(key, listed, self._output.manifest.get(key)))
            elif settled.status == "skipped":
                skipped += 1
            else:
                told.append(settled)
        self._record()
        self._output.staging.keep_only(lambda key: self._output.manifest.settled(key) is None)
        videos = list(self._work.videos())
        missing = sum(event.failure is not None and event.failure.kind == "missing" for event in told)
        self._tell(
            Started(
                run=self._name,
                listed=len(self._listing.videos) + len(self._listing.missing) + len(self._listing.duplicates),
                duplicates=len(self._listing.duplicates),
                missing=missing,
                skipped=skipped,
                videos=len(videos),
                segments=sum(len(video.left) for video in videos),
                seconds=sum(video.seconds_of(each, self._plan.rate) for video in videos for each in video.left),
                cluster=self._session.facts(),
            )
        )
        if self._session.nodes is not None:
            self._tell(self._session.nodes)
        for event in told:
            self._tell(event)
        for video in videos:
            if not video.left:  # the last run was ended between its last part and its output
                self._hand_over(Part(key=video.key, listed=video.listed, features=None, only=False, last=True))

    def _settled(self, key: str, listed: Listed, probed: Probed, found: dict[str, Entry]) -> VideoDone | None:
        """What is decided of a video already; None where there is work to do. found: takes what is adopted."""
        manifest, sink = self._output.manifest, self._output.sink
        keep_partial = self._plan.sampling.keep_partial
        entry = manifest.settled(key, keep_partial=keep_partial)
        if entry is not None and entry.status in ("failed", "quarantined"):
            message = f"{entry.message} (as in an earlier run; --retry-failed tries again)"
            return self._given_up(key, listed, _failure_of(entry, listed.source, message))
        if entry is not None and sink.has(entry):
            return VideoDone(source=listed.source, key=key, status="skipped", output=entry.output)
        if probed.failure is not None:
            return self._given_up(key, listed, probed.failure, record=True)
        adopted = sink.adopt(key, listed)
        if isinstance(adopted, Failure):
            return self._given_up(key, listed, adopted, record=True)
        if adopted is None:
            return None
        self._entries.append(adopted)
        found[key] = adopted
        return replace(_done(adopted, "adopted"), source=listed.source)

    def _video(self, key: str, listed: Listed, probed: Probed) -> Video:
        seconds = probed.duration_seconds
        segments = set(split(seconds, self._plan.encoder, self._plan.sampling, self._plan.segment_seconds))
        have = self._output.staging.have(key)
        if not have <= segments:  # the last run was asked for segments of another length, or for other batches
            segments = set(resumed(segments, have))
            self._output.staging.drop_others(key, segments)
        left = segments - have
        rate = self._plan.rate
        if isinstance(self._plan.sampling, Sampling) and probed.fps:
            rate = min(rate, probed.fps)
        video = Video(key, listed, seconds=seconds or 0.0, rate=rate, segments=segments, left=left)
        for attempt in self._output.manifest.attempts(key):
            segment = Segment(*attempt.segment)
            if segment in left:
                video.failed(segment, attempt.kind)  # type: ignore[arg-type]
        return video

    def _is_new_copy(self, key: str, listed: Listed) -> bool:
        entry = self._output.manifest.get(key)
        copy = entry is not None and entry.source != listed.source
        return copy and not self._output.manifest.is_duplicate(key, listed.source)

    def _copy(self, key: str, listed: Listed, entry: Entry | None) -> VideoDone:
        """Record that a video has the content of another one."""
        if entry is None:
            raise RuntimeError("a copy is one of a video that is done")
        copy = replace(entry, source=listed.source, name=listed.name, status="duplicate", run="")
        self._entries.append(copy)
        return VideoDone(source=listed.source, key=key, status="duplicate", output=entry.output)

    # --- the work ------------------------------------------------------------------------------------------

    def _passes(self) -> None:
        number = fruitless = 0
        error: str | None = None
        while True:
            if not self._work:
                self._writer.flush()  # what does not fit together comes back
                self._drain()
                if not self._work:
                    return
            number += 1
            pools = self._session.pools()
            groups = self._work.groups(self._session.cpus())
            tasks = [task for group in groups for task in group]
            self._tell(RoundStarted(number=number, segments=len(tasks)))
            self._features, self._blamed, few = 0, 0, len(tasks) <= _FEW
            error = self._one_pass(groups, tasks, pools) or error
            self._record()
            fruitless = 0 if self._features else fruitless + 1
            # Where all that is left fails, and is counted, that comes to an end by itself.
            if fruitless >= _MOST_FRUITLESS and not (few and self._blamed):
                reason = f"; the last error: {last_line(error)}" if error else ""
                raise ClusterError(f"the cluster gave no features in {fruitless} passes{reason}")

    def _one_pass(self, groups: list[list[Task]], tasks: list[Task], pools: Pools) -> str | None:
        """One pass over these tasks; what went wrong with it, if anything."""
        self._gather.expect(tasks)
        error, stalled = None, False
        self._progress_at = time.monotonic()
        with self._session.flow() as flow:
            try:
                flow.encode(groups, self._recipe(), pools)
                while True:
                    answer = flow.take(TAKE_SECONDS)
                    self._session.workers = answer.workers
                    self._take(answer.tables)
                    self._drain()
                    self._tick()
                    if answer.ended:
                        error = answer.error
                        break
                    if self._session.is_stalled(self._progress_at):
                        stalled, error = True, "nothing came for too long"
                        break
            except PassLost as lost:
                error = str(lost)
        self._session.refuse_versions(error)
        self._settle_missing(error, stalled)
        return error

    def _recipe(self) -> Recipe:
        ray: Any = require("ray", extra="scale")
        if self._full is None:  # kept: it goes to the cluster once
            self._full = ray.put(np.frombuffer(self._shipped.full, np.uint8))
        return Recipe(
            planning=self._shipped.planning,
            full=[self._full],
            sampling=self._plan.sampling,
            limits=self._plan.limits,
            block_bytes=block_bytes(self._plan.encoder),
        )

    def _take(self, tables: Sequence[Any]) -> None:
        began, self._held = time.monotonic(), 0.0
        for result in (each for table in tables for each in rows.results(table)):
            if isinstance(result, EncodedChunk) and self._gather.is_news(result):
                self._tell_chunk(result)
            outcome = self._gather.add(result)
            self._progress_at = time.monotonic()
            if isinstance(result, Closed):
                for warning in result.warnings:
                    logger.warning("%s", warning)
            if isinstance(outcome, Whole):
                self._features += 1
                self._pass_on(outcome)
            elif isinstance(outcome, Lost):
                self._lost(outcome.task, outcome.failure)
        self._session.usage.by_stage["gather"] += time.monotonic() - began - self._held

    def _pass_on(self, whole: Whole) -> None:
        """To the writer; while it has no room, nothing more is taken from the cluster."""
        video = self._work.get(whole.task.key)
        if video is None or whole.task.segment not in video.left:
            return
        video.left.discard(whole.task.segment)
        part = Part(
            key=video.key,
            listed=video.listed,
            features=whole.features,
            only=len(video.segments) == 1,
            last=not video.left,
            attempts=video.attempts,
        )
        self._hand_over(part)
        self._progress_at = time.monotonic()

    def _hand_over(self, part: Part) -> None:
        began = time.monotonic()
        while not self._writer.put(part, TAKE_SECONDS):
            self._drain()
            self._tick()
        self._held += time.monotonic() - began

    def _lost(self, task: Task, failure: Failure) -> None:
        """A try at a segment came to nothing: it is tried again, or its video is given up."""
        video = self._work.get(task.key)
        if video is None or task.segment not in video.left:
            return
        self._blamed += 1
        again = video.failed(task.segment, failure.kind) < limit(failure.kind, self._plan.attempts)
        bounds = (task.segment.first, task.segment.stop)
        self._tell(
            SegmentFailed(
                source=video.listed.source,
                segment=bounds,
                kind=failure.kind,
                message=failure.message,
                attempt=task.attempt,
                again=again,
            )
        )
        if again:
            facts = {"kind": failure.kind, "message": failure.message, "run": self._name}
            self._attempts.append(Attempt(key=task.key, segment=bounds, **facts))
            self._work.again(video, task.segment)
        else:
            self._give_up(video, replace(failure, attempts=task.attempt))

    def _settle_missing(self, error: str | None, stalled: bool) -> None:
        """What was expected of a pass and did not come."""
        missing = self._gather.missing()
        if not missing:
            return
        # Under way in a pass that broke off were those of which something had come, or else the first.
        workers = max(sum(self._session.workers), 1)
        begun = {task for task, came in missing if came} or {task for task, _ in missing[:workers]}
        blameless = self._session.lost_node
        put_back = []
        for task, _ in missing:
            self._gather.forget(task)
            if error is None:
                message = f"{task.source}: the workers that read and encoded it died, or Ray gave its data up"
                self._lost(task, Failure(source=task.source, kind="lost", message=message))
            elif stalled and not blameless and task in begun:
                message = f"{task.source}: nothing came of it for {self._plan.stall_seconds:.0f} s"
                self._lost(task, Failure(source=task.source, kind="hang", message=message))
            else:
                put_back.append(task)
        self._work.put_back(put_back)

    def _give_up(self, video: Video, failure: Failure) -> None:
        self._work.drop(video.key)
        self._gather.drop(video.key, video.segments)
        for listed in (video.listed, *video.twins):
            own = failure if listed is video.listed else replace(failure, source=listed.source)
            self._tell(self._given_up(video.key, listed, own, record=listed is video.listed, seconds=video.seconds))

    def _given_up(
        self, key: str, listed: Listed, failure: Failure, *, record: bool = False, seconds: float = 0.0
    ) -> VideoDone:
        status: VideoStatus = "failed" if failure.kind in PERMANENT or failure.kind == "output" else "quarantined"
        if record and failure.kind not in _NOT_KEPT:
            entry = Entry(
                key=key,
                source=listed.source,
                name=listed.name,
                status=status,  # type: ignore[arg-type]
                attempts=failure.attempts,
                kind=failure.kind,
                message=failure.message,
                keep_partial=self._plan.sampling.keep_partial,
            )
            self._entries.append(entry)
        return VideoDone(source=listed.source, key=key, status=status, seconds=seconds, failure=failure)

    # --- what the writer says ------------------------------------------------------------------------------

    def _drain(self) -> None:
        for outcome in self._writer.outcomes():
            if isinstance(outcome, Durable):
                self._durable(outcome.entry)
            elif isinstance(outcome, Batch):
                self._tell(Written(videos=outcome.videos, frames=outcome.frames, seconds=outcome.seconds))
            elif isinstance(outcome, Stopped):
                raise outcome.error
            elif isinstance(outcome, Unmade):  # it was counted as done; the report is to say that it is not
                failure = outcome.failure
                self._tell(VideoDone(source=failure.source, key=outcome.key, status="failed", failure=failure))
            elif (video := self._work.get(outcome.key)) is None:
                continue
            elif isinstance(outcome, Misfit):
                logger.warning("%s is read in one piece: %s", video.listed.source, outcome.message)
                self._gather.drop(video.key, video.segments)
                self._work.whole(video)
            else:
                self._give_up(video, outcome.failure)

    def _durable(self, entry: Entry) -> None:
        video = self._work.drop(entry.key)
        done = _done(entry, "partial" if entry.status == "partial" else "done")
        if entry.status == "partial":
            message = f"{entry.source}: {entry.message}"
            done = replace(done, failure=Failure(source=entry.source, kind="video", message=message))
        self._tell(done)
        for twin in video.twins if video is not None else ():
            self._tell(self._copy(entry.key, twin, entry))

    # --- all the time --------------------------------------------------------------------------------------

    def _tick(self) -> None:
        if self._session.tick():
            self._record()

    def _record(self) -> None:
        if self._entries or self._attempts:
            entries, attempts, self._entries, self._attempts = self._entries, self._attempts, [], []
            self._output.manifest.record(entries, attempts)

    def _end(self) -> None:
        """All that is whole becomes durable, and all that is known is recorded."""
        try:
            self._writer.flush(close=True)
        finally:
            self._session.close()  # now, since the cluster was held, and is to be paid for, until here
        failed = None
        try:
            self._drain()
        except Exception as error:  # an output that cannot be used: what can be said is said first
            failed = error
        self._record()
        if failed is not None:
            raise failed

    def _tell_chunk(self, chunk: EncodedChunk) -> None:
        video = self._work.get(chunk.task.key)
        rate = video.rate if video is not None else self._plan.rate
        self._tell(
            ChunkDone(
                source=chunk.task.source,
                frames=len(chunk.times),
                i_frames=chunk.roles.count("I"),
                seconds=len(chunk.times) / rate,
                decode_seconds=chunk.decode_seconds,
                encode_seconds=chunk.encode_seconds,
                node=chunk.encode_node,
            )
        )


def write_report(place: Place, report: Report) -> None:
    """OUT/.everyframe/report-RUN.json. Raises OutputError."""
    place.write(f"{STATE}/{report.file_name}", report.to_json().encode())


def _done(entry: Entry, status: VideoStatus) -> VideoDone:
    return VideoDone(
        source=entry.source,
        key=entry.key,
        status=status,
        output=entry.output,
        frames=entry.frames,
        seconds=entry.seconds,
    )


def _failure_of(entry: Entry, source: str, message: str) -> Failure:
    kind: Any = entry.kind or "video"
    return Failure(source=source, kind=kind, message=message, attempts=entry.attempts)
