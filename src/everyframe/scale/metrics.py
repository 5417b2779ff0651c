"""A run's numbers for Prometheus, over HTTP."""

from __future__ import annotations

import math
from types import TracebackType
from typing import TYPE_CHECKING, Any, get_args

from everyframe.extras import require
from everyframe.scale.events import (
    ChunkDone,
    Event,
    Finished,
    Nodes,
    RoundStarted,
    SegmentFailed,
    Started,
    VideoDone,
    Written,
)
from everyframe.scale.progress import Progress
from everyframe.scale.report import LOST, STATUSES
from everyframe.scale.work import FailureKind
from everyframe.version import package_version

if TYPE_CHECKING:
    from typing_extensions import Self


class Metrics:
    """Counts what the driver tells in a registry of its own; a `Listener`.

    progress: tells the time left; it hears the events by itself.
    Raises ImportError where prometheus_client is missing.
    """

    def __init__(self, progress: Progress) -> None:
        prometheus = require("prometheus_client", extra="scale")
        self.registry = prometheus.CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Any:
            return prometheus.Counter(name, text, labels, namespace="everyframe", registry=self.registry)

        def gauge(name: str, text: str, *labels: str) -> Any:
            return prometheus.Gauge(name, text, labels, namespace="everyframe", registry=self.registry)

        self._videos = counter("videos", "Videos that came to an end, by what became of them.", "status")
        self._failures = counter("video_failures", "Videos that were lost, by reason.", "kind")
        self._tries = counter("segment_failures", "Segments that gave no features, by reason.", "kind")
        self._retries = counter("retries", "Segments that were queued again.")
        self._frames = counter("frames", "Frames encoded.")
        self._i_frames = counter("i_frames", "Frames encoded with a full pass.")
        self._seconds = counter("video_seconds", "Seconds of video encoded.")
        self._written = counter("written_frames", "Frames whose features are durable.")
        self._work = counter("work_seconds", "Seconds of work, summed over workers.", "stage")
        self._nodes = gauge("nodes", "Nodes of the cluster.")
        self._cpus = gauge("cpus", "CPUs of the cluster.")
        self._gpus = gauge("gpus", "GPUs of the cluster.")
        self._workers = gauge("workers", "Workers of a stage.", "stage")
        self._round = gauge("round", "Pass over what is left, from 1 on.")
        self._running = gauge("running", "1 while the run lasts.")
        gauge("videos_left", "Videos still to do.").set_function(lambda: max(progress.videos - progress.finished, 0))
        gauge("video_seconds_left", "Seconds of video still to do.").set_function(lambda: progress.seconds_left)
        gauge("eta_seconds", "Seconds to the end at the present rate; NaN while unknown.").set_function(
            lambda: math.nan if progress.eta_seconds is None else progress.eta_seconds
        )
        self._info = prometheus.Info("run", "Which run this is.", namespace="everyframe", registry=self.registry)
        for status in STATUSES:
            self._videos.labels(status)
        for kind in get_args(FailureKind):
            self._failures.labels(kind)
            self._tries.labels(kind)
        for stage in ("decode", "encode", "write"):
            self._work.labels(stage)

    def __call__(self, event: Event) -> None:
        if isinstance(event, ChunkDone):
            self._frames.inc(event.frames)
            self._i_frames.inc(event.i_frames)
            self._seconds.inc(event.seconds)
            self._work.labels("decode").inc(event.decode_seconds)
            self._work.labels("encode").inc(event.encode_seconds)
        elif isinstance(event, VideoDone):
            self._videos.labels(event.status).inc()
            if event.failure is not None and event.status in LOST:
                self._failures.labels(event.failure.kind).inc()
        elif isinstance(event, SegmentFailed):
            self._tries.labels(event.kind).inc()
            self._retries.inc(int(event.again))
        elif isinstance(event, Written):
            self._written.inc(event.frames)
            self._work.labels("write").inc(event.seconds)
        elif isinstance(event, Nodes):
            self._nodes.set(event.nodes)
            self._cpus.set(event.cpus)
            self._gpus.set(event.gpus)
            self._workers.labels("decode").set(event.decoders)
            self._workers.labels("encode").set(event.encoders)
        elif isinstance(event, RoundStarted):
            self._round.set(event.number)
        elif isinstance(event, Started):
            self._videos.labels("skipped").inc(event.skipped)
            self._info.info({"run": event.run, "version": package_version()})
            self._running.set(1)
        elif isinstance(event, Finished):
            self._running.set(0)


class MetricsServer:
    """Serves `Metrics` at http://host:port/metrics from a thread of its own, while the block runs.

    port: 0 takes a free one, which `port` then names. host: 127.0.0.1 lets only this machine read them.
    Raises ValueError where nothing can listen there.
    """

    def __init__(self, metrics: Metrics, *, port: int, host: str = "127.0.0.1") -> None:
        prometheus = require("prometheus_client", extra="scale")
        if not 0 <= port <= 65535:
            raise ValueError(f"the port of the metrics must lie in 0 to 65535, got {port}")
        try:
            self._server, self._thread = prometheus.start_http_server(port, addr=host, registry=metrics.registry)
        except OSError as error:
            raise ValueError(
                f"the metrics cannot be served at {host}:{port}: {error.strerror or error}; choose another port "
                "(0 takes a free one) or host"
            ) from error
        self.host, self.port = host, int(self._server.server_port)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
