"""The decoding side: which frames of a video are wanted, and their way to the encoder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from everyframe.backbone import Model
from everyframe.encoders import Encoder
from everyframe.pipeline.clips import cut_clips
from everyframe.pipeline.resume import identity, source_name
from everyframe.pipeline.sampling import ClipSampling, Sampling
from everyframe.pipeline.uploads import upload_device
from everyframe.pipeline.window import Chunk, planned, preprocessed
from everyframe.video import Sample, SampledVideo, Seam, Source, TargetRange, VideoError

_LONGER = 3


@dataclass
class Finished:
    """After a video's last chunk: what is known of it, or why it broke off. Plain values, but for the error.

    Of a part that was read alone, `head` and `tail` are its seams (see `SampledVideo`).
    """

    video: dict[str, Any] = field(default_factory=dict)
    motion_source: str | None = None
    end_seconds: float | None = None
    damage: list[str] = field(default_factory=list)
    error: VideoError | None = None
    head: Seam | None = None
    tail: Seam | None = None


def read_chunks(
    source: Source, encoder: Encoder, sampling: Sampling | ClipSampling, targets: TargetRange | None = None
) -> Iterator[Chunk | Finished]:
    """Chunks of whole groups with their plans, about `batch_size` frames each, then exactly one `Finished`.

    Of clips the chunks hold `batch_size`. Small chunks let the encoder start early: until the first is full, nothing
    overlaps.
    targets: read only this part of the video, which then begins with an I-frame. Where the encoder looks ahead, the
    last chunk sees the frame after it, if that is an I-frame.
    Raises ValueError for a part of clips, or one that cannot begin with an I-frame.
    """
    try:
        with _opened(source, encoder, sampling, targets) as sampled:
            if isinstance(sampling, ClipSampling):
                parts = preprocessed(sampled, encoder.model, motion=False, device=upload_device(encoder.model))
                yield from cut_clips(parts, sampled, sampling, encoder.batch_size)
            else:
                yield from _frame_chunks(sampled, encoder, targets)
            video = _video_facts(source, sampled, to_its_end=sampling.end is None and _stop(targets) is None)
    except VideoError as error:
        yield Finished(error=error)
        return
    yield Finished(
        video=video,
        motion_source=sampled.motion_source,
        end_seconds=sampled.last_end_seconds,
        damage=list(sampled.damage),
        head=sampled.head,
        tail=sampled.tail,
    )


def frames_per_call(encoder: Encoder) -> int:
    """Frames that one call is given, at most, unless a single group is longer."""
    # The I-frame that a call looks ahead to is computed again in the next: longer chunks make it rarer.
    return encoder.batch_size * (_LONGER if encoder.looks_ahead else 1)


def _opened(
    source: Source, encoder: Encoder, sampling: Sampling | ClipSampling, targets: TargetRange | None
) -> SampledVideo:
    if isinstance(sampling, ClipSampling):
        if targets is not None:
            raise ValueError("clips are cut from whole videos; a part of one cannot be read apart")
        return sampling.open(source, motion=False)
    if targets is not None and targets.stop is not None and encoder.looks_ahead:
        targets = replace(targets, beyond=1)
    return sampling.open(source, motion=encoder.needs_motion, targets=targets)


def _frame_chunks(sampled: SampledVideo, encoder: Encoder, targets: TargetRange | None) -> Iterator[Chunk]:
    planner = encoder.planner(0 if targets is None else targets.first)
    last = _Last(sampled, _stop(targets))
    parts = preprocessed(last, encoder.model, motion=encoder.needs_motion, device=upload_device(encoder.model))
    for chunk in planned(parts, planner, frames_per_call(encoder), look_ahead=encoder.looks_ahead):
        if chunk.times[-1] == last.beyond:
            chunk = _only_seen(chunk)
        if chunk.times:
            yield chunk


class _Last:
    """The samples of a part, and which one is read only to be looked at."""

    def __init__(self, samples: Iterable[Sample], stop: int | None) -> None:
        self._samples, self._stop = samples, stop
        self.beyond: float | None = None

    def __iter__(self) -> Iterator[Sample]:
        for sample in self._samples:
            if self._stop is not None and sample.target is not None and sample.target >= self._stop:
                self.beyond = sample.time
            yield sample


def _only_seen(chunk: Chunk) -> Chunk:
    """Without the feature of the last frame; and without the frame, where it is no I-frame to look at."""
    count = len(chunk.times) - 1
    seen = count + (chunk.plan.roles[-1] == "I")
    return Chunk(chunk.times[:count], chunk.pixels[:seen], chunk.plan[:seen])


def _stop(targets: TargetRange | None) -> int | None:
    return None if targets is None else targets.stop


def _video_facts(source: Source, sampled: SampledVideo, *, to_its_end: bool) -> dict[str, Any]:
    info = sampled.info  # read to its end what was there counts, not what the header said
    facts: dict[str, Any] = {
        "path": source_name(source),
        "duration_seconds": sampled.last_end_seconds if to_its_end else info.duration_seconds,
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
        "dtype": model.precision,
        "projected": model.text is not None or model.vision.config.projection,
        "normalised": True,
        "preprocess": model.preprocess_settings,
    }
