"""The decoding side: which frames of a video are wanted, and their way to the encoder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from everyframe.backbone import Model
from everyframe.encoders import Encoder
from everyframe.pipeline.clips import cut_clips
from everyframe.pipeline.resume import identity, source_name
from everyframe.pipeline.sampling import ClipSampling, Sampling
from everyframe.pipeline.window import Chunk, planned, preprocessed
from everyframe.video import SampledVideo, Source, VideoError

_LONGER = 3


@dataclass
class Finished:
    """After a video's last chunk: what is known of it, or why it broke off."""

    video: dict[str, Any] = field(default_factory=dict)
    motion_source: str | None = None
    end_seconds: float | None = None
    damage: list[str] = field(default_factory=list)
    error: VideoError | None = None


def read_chunks(source: Source, encoder: Encoder, sampling: Sampling | ClipSampling) -> Iterator[Chunk | Finished]:
    """Chunks of whole groups with their plans, about `batch_size` frames each, then exactly one `Finished`.

    Of clips the chunks hold `batch_size`. Small chunks let the encoder start early: until the first is full, nothing
    overlaps.
    """
    try:
        with sampling.open(source, motion=encoder.needs_motion) as sampled:
            parts = preprocessed(sampled, encoder.model, motion=encoder.needs_motion)
            if isinstance(sampling, ClipSampling):
                yield from cut_clips(parts, sampled, sampling, encoder.batch_size)
            else:
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


def _video_facts(source: Source, sampled: SampledVideo, sampling: Sampling | ClipSampling) -> dict[str, Any]:
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
