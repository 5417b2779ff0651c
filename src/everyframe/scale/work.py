"""What travels between the driver and the workers: plain values, small but for pixels and features."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from everyframe.pipeline.segments import Segment

FailureKind = Literal["missing", "unreachable", "video", "crash", "hang", "memory", "encode", "lost", "output"]
"""Why a video or a segment gave no features.

missing   the list names what is not there, or may not be read
unreachable   the network or the store that holds it did not answer
video     it is there and cannot be decoded (see `VideoError`): trying again changes nothing
crash     the decoder's process died
hang      the decoder said nothing for too long
memory    the decoder took more memory than it may
encode    the model failed on it
lost      a worker or a node died with it
output    the features could not be written
"""
PERMANENT: frozenset[FailureKind] = frozenset({"missing", "video"})


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A video that was lost, and why, in one sentence that names it."""

    source: str
    kind: FailureKind
    message: str
    attempts: int = 1


@dataclass(frozen=True, kw_only=True)
class Task:
    """A segment to be read. key: the video's, see `manifest.video_key`; attempt: 1 for the first."""

    key: str
    source: str
    segment: Segment
    attempt: int = 1


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one decoding may take. seconds: without a sign of progress; memory_bytes: of its process."""

    seconds: float = 120.0
    memory_bytes: int = 4 << 30

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise ValueError(f"decode_timeout must be a number of seconds > 0, got {self.seconds}")
        if self.memory_bytes < 1 << 28:
            raise ValueError(f"decode_memory must be at least 256 MiB, got {self.memory_bytes} bytes")


@dataclass(frozen=True, kw_only=True)
class Stages:
    """How many workers each stage may have, and what one of them takes.

    decoders, encoders: (fewest, most) actors; None for most leaves it to what the cluster has. cpus_per_encoder and
    gpus_per_encoder: None takes a GPU where the cluster has any, else two CPUs, or as many as its largest node has.
    """

    decoders: tuple[int, int | None] = (1, None)
    encoders: tuple[int, int | None] = (1, None)
    cpus_per_decoder: float = 1.0
    cpus_per_encoder: float | None = None
    gpus_per_encoder: float | None = None

    def __post_init__(self) -> None:
        for name in ("decoders", "encoders"):
            fewest, most = getattr(self, name)
            if fewest < 1 or (most is not None and most < fewest):
                raise ValueError(f"{name} must be (fewest, most) with 1 <= fewest <= most, got {(fewest, most)}")
        for name in ("cpus_per_decoder", "cpus_per_encoder", "gpus_per_encoder"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name} must be 0 or more, got {value}")


@dataclass(frozen=True, kw_only=True)
class Price:
    """What a CPU and a GPU cost per hour, in euros."""

    cpu_hour: float = 0.0
    gpu_hour: float = 0.0

    def __post_init__(self) -> None:
        for name in ("cpu_hour", "gpu_hour"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a price of 0 euros or more, got {value}")


@dataclass(kw_only=True)
class Usage:
    """What the cluster had while the run lasted, summed over time, in hours."""

    cpu_hours: float = 0.0
    gpu_hours: float = 0.0
    node_hours: float = 0.0
    wall_seconds: float = 0.0
    by_stage: dict[str, float] = field(default_factory=dict)
    """Seconds that decoding, encoding, gathering and writing took, summed over workers."""
