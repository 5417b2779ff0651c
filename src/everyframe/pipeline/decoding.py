"""The decoding side: which frames of a video are wanted, and their way to the encoder."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from everyframe.backbone import Model
from everyframe.encoders import Encoder
from everyframe.pipeline.resume import identity, source_name
from everyframe.pipeline.window import Chunk, planned, preprocessed
from everyframe.video import SampledVideo, Source, VideoError, sample_frames

_LONGER = 3


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Which frames to encode: `fps` frames per second of [start, end) seconds; None means no limit.

    keep_partial: keep what a damaged file still gives instead of refusing it.
    """

    fps: float = 3.0
    start: float | None = None
    end: float | None = None
    keep_partial: bool = False

    def __post_init__(self) -> None:
        for name in ("fps", "start", "end"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
                raise TypeError(f"{name} must be a number, got {value!r}")
        if not (math.isfinite(self.fps) and self.fps > 0):
            raise ValueError(f"fps must be > 0, got {self.fps}")
        if self.start is not None and not (math.isfinite(self.start) and self.start >= 0):
            raise ValueError(f"start must be a number of seconds >= 0, got {self.start}")
        if self.end is not None and not self.end > (self.start or 0.0):
            raise ValueError(f"end must lie after the start ({self.start or 0.0} s), got {self.end}")

    @property
    def settings(self) -> dict[str, Any]:
        return {"fps": self.fps, "start": self.start, "end": self.end}


@dataclass
class Finished:
    """After a video's last chunk: what is known of it, or why it broke off."""

    video: dict[str, Any] = field(default_factory=dict)
    motion_source: str | None = None
    end_seconds: float | None = None
    damage: list[str] = field(default_factory=list)
    error: VideoError | None = None


def read_chunks(source: Source, encoder: Encoder, sampling: Sampling) -> Iterator[Chunk | Finished]:
    """Chunks of whole groups with their plans, about `batch_size` frames each, then exactly one `Finished`.

    Small chunks let the encoder start early: until the first is full, nothing overlaps.
    """
    try:
        sampled = sample_frames(
            source,
            sampling.fps,
            start=sampling.start,
            end=sampling.end,
            motion=encoder.needs_motion,
            on_damage="skip" if sampling.keep_partial else "raise",
        )
        with sampled:
            parts = preprocessed(sampled, encoder.model, motion=encoder.needs_motion)
            # The I-frame that a call looks ahead to is computed again in the next: longer chunks make it rarer.
            size = encoder.batch_size * (_LONGER if encoder.looks_ahead else 1)
            yield from planned(parts, encoder.planner(), size, look_ahead=encoder.looks_ahead)
            video = _video_facts(source, sampled, sampling)
    except VideoError as error:
        yield Finished(error=error)
        return
    yield Finished(
        video=video,
        motion_source=sampled.motion_source,
        end_seconds=sampled.last_end_seconds,
        damage=list(sampled.damage),
    )


def _video_facts(source: Source, sampled: SampledVideo, sampling: Sampling) -> dict[str, Any]:
    info = sampled.info
    read_to_its_end = sampling.end is None  # then what was there counts, not what the header said
    facts: dict[str, Any] = {
        "path": source_name(source),
        "duration_seconds": sampled.last_end_seconds if read_to_its_end else info.duration_seconds,
        "width": info.width,
        "height": info.height,
        "fps": info.average_fps,
        "codec": info.codec,
        "container": info.container,
        "rotation": info.rotation,
    }
    facts.update(identity(source))
    return facts


def model_facts(model: Model) -> dict[str, Any]:
    """What tells the model's features from those of others, for provenance."""
    return {
        "id": model.name,
        "family": model.family,
        "dim": model.dim,
        "weights_sha256": model.weights_sha256,
        "dtype": str(model.dtype).removeprefix("torch."),
        "projected": model.text is not None or model.vision.config.projection,
        "normalised": True,
        "preprocess": model.preprocess_settings,
    }
