"""Past one machine: the same features, from a cluster, each video exactly once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from everyframe.encoders import Encoder, TempMe
    from everyframe.pipeline import ClipSampling, Sampling
    from everyframe.scale.events import Listener
    from everyframe.scale.report import Report
    from everyframe.scale.work import Limits, Price, Stages

__all__ = ["ClusterError", "Limits", "Price", "Report", "Stages", "encode"]

_HOMES = {"ClusterError": "cluster", "Limits": "work", "Price": "work", "Report": "report", "Stages": "work"}


def __getattr__(name: str) -> object:
    if name in _HOMES:  # on demand: every process that decodes imports this package, and needs none of them
        from importlib import import_module

        return getattr(import_module(f"everyframe.scale.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def encode(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    encoder: Encoder | TempMe,
    *,
    out: str | os.PathLike[str],
    format: str = "npz",
    cluster: str = "auto",
    fps: float | None = None,
    sampling: Sampling | ClipSampling | None = None,
    dtype: str = "float32",
    stages: Stages | None = None,
    limits: Limits | None = None,
    attempts: int = 3,
    segment_seconds: float = 600.0,
    stall_seconds: float = 900.0,
    retry_failed: bool = False,
    keep_partial: bool = False,
    column: str | None = None,
    id_column: str | None = None,
    price: Price | None = None,
    listeners: Sequence[Listener] = (),
) -> Report:
    """Encode many videos on a Ray cluster; what is there already is left alone. A bad video never stops the rest.

    paths: files, folders, patterns, lists and tables, local or on an object store; see `listing.list_videos` for
        `column` and `id_column`. All nodes must see them under the same names.
    out: a folder or an address, written to by this process alone. format: "npz", "npy", "h5", "parquet",
        "webdataset" (tar shards) or "library". OUT/.everyframe keeps what is done, so that a run that was killed goes
        on where it was; features are durable before that says so.
    cluster: see `cluster.connect`: "auto", "local", "HOST:PORT" or "ray://HOST:PORT"; an initialised Ray is used as it
        is and left running.
    fps: features per second, 3 by default; or sampling, for parts of videos, and clips with TempMe.
    dtype: "float32" or "float16" of what is stored.
    stages: workers and what they take. limits: of one decoding. segment_seconds: longer videos are read by several
        workers, about so much by each.
    attempts: tries of a segment that crashes, hangs or runs out of memory before its video is quarantined; what cannot
        be decoded is not tried again, and what goes down with a worker has a few tries more. retry_failed: try again
        what was given up in earlier runs.
    stall_seconds: without anything from any worker, after which the workers are replaced.
    keep_partial: of a damaged file what can be read.
    listeners: are called with each of `scale.events`, in this thread.

    Features are those of `encode_video`, to the bit for full chunks on the same kind of processor; see `stages`.
    Ctrl-C and SIGTERM end the run in order: the report says `interrupted`. Raises ClusterError for a cluster that
    cannot be reached or used, OutputError for an output that cannot be written, ValueError and TypeError for bad
    arguments, ImportError for missing packages.
    """
    from everyframe.pipeline.clips import driven
    from everyframe.scale.cluster import connect
    from everyframe.scale.listing import list_videos
    from everyframe.scale.manifest import Manifest
    from everyframe.scale.places import open_place
    from everyframe.scale.report import Audience, ReportBuilder
    from everyframe.scale.run import Output, Plan, Run, ended_by_sigterm, new_run, write_report
    from everyframe.scale.shipping import ship
    from everyframe.scale.sinks import open_sink
    from everyframe.scale.staging import Staging
    from everyframe.scale.work import Limits, Stages

    reading = _sampling(encoder, fps, sampling, keep_partial)
    _check(dtype, attempts, segment_seconds, stall_seconds)
    plan = Plan(
        encoder=driven(encoder, reading),
        sampling=reading,
        dtype=dtype,
        stages=stages or Stages(),
        limits=limits or Limits(),
        attempts=attempts,
        segment_seconds=float(segment_seconds),
        stall_seconds=float(stall_seconds),
    )
    shipped = ship(plan.encoder)
    named = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    run = new_run()
    builder = ReportBuilder(run=run, price=price)
    listing = list_videos([os.fspath(path) for path in named], column=column, id_column=id_column)
    if not listing.videos:
        first = f"; the first: {listing.missing[0].message}" if listing.missing else ""
        raise ValueError(f"there is nothing to encode: of what is listed no video is there{first}")
    with connect(cluster) as reached, ended_by_sigterm():  # in this order: Ray sets a handler of its own
        place = open_place(out)
        with Manifest(place, run=run) as manifest:
            if retry_failed:
                manifest.forget_failures()
            asked = {"provenance": plan.provenance, "keep_partial": reading.keep_partial}
            sink = open_sink(place, format, manifest=manifest, **asked)  # type: ignore[arg-type]
            output = Output(place=place, manifest=manifest, staging=Staging(place), sink=sink)
            tell = Audience([builder, *listeners], builder)
            try:
                Run(run, plan, listing, output, reached, shipped, tell).run()
            finally:
                write_report(place, builder.report())
    return builder.report()


def _sampling(
    encoder: Encoder | TempMe, fps: float | None, sampling: Sampling | ClipSampling | None, keep_partial: bool
) -> Sampling | ClipSampling:
    from everyframe.encoders import TempMe
    from everyframe.pipeline import ClipSampling, Sampling, frames_of

    if not hasattr(encoder, "needs_motion") and not isinstance(encoder, TempMe):
        raise TypeError(
            f"encoder must be one such as ResidualViT(model) or DenseEncoder(model), got {type(encoder).__name__}"
        )
    if sampling is not None:
        if fps is not None or keep_partial:
            raise ValueError("give either sampling, which says all, or fps and keep_partial")
        return sampling
    if isinstance(encoder, TempMe):
        if fps is not None:
            raise ValueError("fps has no meaning with TempMe, which reads clips; pass a ClipSampling as sampling")
        return ClipSampling(frames=frames_of(encoder), keep_partial=keep_partial)
    return Sampling(fps=Sampling.fps if fps is None else fps, keep_partial=keep_partial)


def _check(dtype: str, attempts: int, segment_seconds: float, stall_seconds: float) -> None:
    if dtype not in ("float32", "float16"):
        raise ValueError(f'dtype of stored embeddings must be "float32" or "float16", got {dtype!r}')
    if isinstance(attempts, bool) or not isinstance(attempts, int) or attempts < 1:
        raise ValueError(f"attempts must be a whole number >= 1, got {attempts!r}")
    for name, seconds in (("segment_seconds", segment_seconds), ("stall_seconds", stall_seconds)):
        if not seconds > 0:
            raise ValueError(f"{name} must be a number of seconds > 0, got {seconds}")
