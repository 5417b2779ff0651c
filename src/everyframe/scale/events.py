"""What the driver tells whoever listens: the terminal, the metrics, the log. Each event is a plain frozen value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from everyframe.scale.work import Failure, FailureKind, Usage

VideoStatus = Literal["done", "partial", "skipped", "adopted", "duplicate", "failed", "quarantined"]


@dataclass(frozen=True, kw_only=True)
class Probing:
    """So many of the listed videos were looked at, before any work; told first of all, and every few seconds."""

    run: str
    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Started:
    """Work is known: what was listed, and what is left of it. seconds: of video still to do, as far as known."""

    run: str
    listed: int
    duplicates: int
    missing: int
    skipped: int
    videos: int
    segments: int
    seconds: float
    cluster: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RoundStarted:
    """The next pass over what is left. number: from 1 on."""

    number: int
    segments: int


@dataclass(frozen=True, kw_only=True)
class ChunkDone:
    """An encode call's part for one chunk came back. seconds: of video; the others: of work, on one worker."""

    source: str
    frames: int
    i_frames: int
    seconds: float
    decode_seconds: float
    encode_seconds: float
    node: str


@dataclass(frozen=True, kw_only=True)
class SegmentFailed:
    """A segment gave no features; it is tried again, or its video is given up."""

    source: str
    segment: tuple[int, int | None]
    kind: FailureKind
    message: str
    attempt: int
    again: bool


@dataclass(frozen=True, kw_only=True)
class VideoDone:
    """What became of a video. seconds: of video."""

    source: str
    key: str | None
    status: VideoStatus
    output: str | None = None
    frames: int = 0
    seconds: float = 0.0
    failure: Failure | None = None


@dataclass(frozen=True, kw_only=True)
class Written:
    """Features of so many videos are durable, and the manifest says so."""

    videos: int
    frames: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """What the cluster has now; sent when it changes."""

    nodes: int
    cpus: float
    gpus: float
    decoders: int
    encoders: int


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The run is over. interrupted: by Ctrl-C or an error; what is durable stays."""

    usage: Usage
    interrupted: bool = False


Event = Probing | Started | RoundStarted | ChunkDone | SegmentFailed | VideoDone | Written | Nodes | Finished
Listener = Callable[[Event], None]
