"""From videos to features: decoding runs ahead in a thread, the encoder gets whole groups in batches.

One thread decodes, resizes and normalises; the caller's thread encodes and writes. The queue between them
holds a few chunks of preprocessed frames, so memory grows neither with a video's length nor with their number,
and the next file is being opened while the last one is still being encoded.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np

from everyframe.encoders import Encoder
from everyframe.features import FeaturesError, VideoFeatures
from everyframe.pipeline.resume import Journal, identity, is_done, source_name
from everyframe.pipeline.window import Chunk, last_end, preprocessed
from everyframe.version import package_version
from everyframe.video import SampledVideo, Source, VideoError, decode_ahead, sample_frames

Status = Literal["done", "partial", "skipped", "failed"]
Progress = Callable[[str, int, float], None]  # source's name, frames encoded so far, seconds of video so far

_CHUNKS_AHEAD = 2


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


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one video in a batch. `error` says why it failed, or what a partial one lost."""

    source: str
    output: Path | None
    status: Status
    num_frames: int = 0
    seconds: float = 0.0
    error: str | None = None


@dataclass
class _Finished:
    """After a video's last chunk: what is known of it, or why it broke off."""

    video: dict[str, Any] = field(default_factory=dict)
    motion_source: str | None = None
    end_seconds: float | None = None
    damage: list[str] = field(default_factory=list)
    error: VideoError | None = None


def encode_video(
    source: Source,
    encoder: Encoder,
    *,
    fps: float = 3.0,
    start: float | None = None,
    end: float | None = None,
    keep_partial: bool = False,
    dtype: str = "float32",
    progress: Progress | None = None,
) -> VideoFeatures:
    """Sample a video at `fps` by presentation time and encode it, streaming.

    source: a file, a folder of images, an address FFmpeg reads, bytes, or a binary file object.
    start, end: seconds; only frames whose time lies in [start, end).
    dtype: "float32" or "float16" of the stored embeddings.
    keep_partial: of a damaged file keep the frames that can be read; the gaps are in settings["damage"].
    Raises VideoError when the video cannot be read or has no frames there, ValueError for bad arguments.
    """
    sampling = Sampling(fps=fps, start=start, end=end, keep_partial=keep_partial)
    _check_dtype(dtype)
    _check_encoder(encoder)
    ahead = decode_ahead(_chunks(source, encoder, sampling), _CHUNKS_AHEAD)
    try:
        return _consume(ahead, encoder, sampling, dtype, partial(progress or _silent, source_name(source)))
    finally:
        ahead.close()


def encode_videos(
    sources: Sequence[tuple[str | Path, Path]],
    encoder: Encoder,
    *,
    sampling: Sampling,
    dtype: str = "float32",
    progress: Progress | None = None,
    journal_file: Path | None = None,
    retry_failed: bool = False,
) -> Iterator[Outcome]:
    """Encode many videos to feature files; one `Outcome` per video, in order. A bad video never stops the rest.

    sources: (video, output file) pairs. An output that already holds the same video with the same model and
    settings is skipped; one that is damaged or was made with others is made anew; one that everyframe did not
    write is left alone, and the video fails. Outputs appear whole or not at all.
    journal_file: where outcomes are appended; a file that could not be read before, and has not changed, is not
    tried again unless `retry_failed`.
    Raises ValueError for bad arguments before any work.
    """
    _check_dtype(dtype)
    _check_encoder(encoder)
    work = _Work(encoder, sampling, dtype, Journal(journal_file), retry_failed)
    return _encode_each(sources, work, progress or _silent)


def _encode_each(sources: Sequence[tuple[str | Path, Path]], work: _Work, progress: Progress) -> Iterator[Outcome]:
    ahead = decode_ahead(work.items(sources), _CHUNKS_AHEAD)
    try:
        for source, output in sources:
            first = next(ahead)
            if isinstance(first, Outcome):
                yield first
                continue
            report = partial(progress, str(source))
            outcome, cause = _encode_to_file(chain([first], ahead), str(source), output, work, report)
            if cause != "output":  # a full disk says nothing about the video
                try:
                    work.journal.add(source, work.journal_settings, outcome.status, outcome.error)
                except OSError as error:  # the features count; without its line a failed file is only tried again
                    warnings.warn(f"{work.journal.path} cannot be written ({error.strerror or error})", stacklevel=2)
            yield outcome
    finally:
        ahead.close()


@dataclass(frozen=True)
class _Work:
    """What a batch does with every video."""

    encoder: Encoder
    sampling: Sampling
    dtype: str
    journal: Journal
    retry_failed: bool

    @property
    def journal_settings(self) -> dict[str, Any]:
        return {**self.sampling.settings, "keep_partial": self.sampling.keep_partial, "version": package_version()}

    def items(self, sources: Iterable[tuple[str | Path, Path]]) -> Iterator[Chunk | _Finished | Outcome]:
        """For each video either an `Outcome`, when there is nothing to do, or its chunks and a `_Finished`."""
        for source, output in sources:
            outcome = self._settled(source, output)
            if outcome is not None:
                yield outcome
                continue
            try:
                yield from _chunks(source, self.encoder, self.sampling)
            except Exception as error:  # unforeseen; ending here would leave the videos after it without an answer
                reason = f"{source}: cannot be read ({type(error).__name__}: {error})"
                yield _Finished(error=VideoError(reason))

    def _settled(self, source: str | Path, output: Path) -> Outcome | None:
        facts = _model_facts(self.encoder)
        wanted = {
            "model": {key: facts[key] for key in ("weights_sha256", "dtype", "preprocess")},
            "settings": {**self.encoder.settings, **self.sampling.settings, "stored_dtype": self.dtype},
        }
        try:
            frames = is_done(source, output, wanted, keep_partial=self.sampling.keep_partial)
            if frames is not None:
                return Outcome(source=str(source), output=output, status="skipped", num_frames=frames)
            failure = None if self.retry_failed else self.journal.failed_before(source, self.journal_settings)
        except (FeaturesError, OSError) as error:
            return Outcome(source=str(source), output=output, status="failed", error=str(error))
        if failure is not None:
            message = f"{failure} (as in an earlier run; --retry-failed tries again)"
            return Outcome(source=str(source), output=output, status="failed", error=message)
        return None


def _encode_to_file(
    items: Iterator[Any], source: str, output: Path, work: _Work, report: Callable[[int, float], None]
) -> tuple[Outcome, Literal["video", "output"] | None]:
    """One video of a batch; with a failure, whether its cause was the video or the output."""
    try:
        feats = _consume(items, work.encoder, work.sampling, work.dtype, report)
    except VideoError as error:
        return Outcome(source=source, output=output, status="failed", error=str(error)), "video"
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        feats.save(output)
    except (FeaturesError, OSError) as error:
        return Outcome(source=source, output=output, status="failed", error=str(error)), "output"
    damage = feats.settings.get("damage")
    outcome = Outcome(
        source=source,
        output=output,
        status="partial" if damage else "done",
        num_frames=feats.num_frames,
        seconds=float(feats.frame_ends[-1] - feats.times[0]),
        error=f"{source}: kept {feats.num_frames} frames; {'; '.join(damage)}" if damage else None,
    )
    return outcome, None


# --- decoding side ---------------------------------------------------------------------------------------


def _chunks(source: Source, encoder: Encoder, sampling: Sampling) -> Iterator[Chunk | _Finished]:
    """Chunks of whole groups, about `batch_size` frames, then exactly one `_Finished`.

    Small chunks let the encoder start early: until the first is full, nothing overlaps.
    """
    per_chunk = encoder.group_size * max(encoder.batch_size // encoder.group_size, 1)
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
            yield from preprocessed(sampled, encoder.model, motion=encoder.needs_motion, per_chunk=per_chunk)
            video = _video_facts(source, sampled, sampling)
    except VideoError as error:
        yield _Finished(error=error)
        return
    yield _Finished(
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


# --- encoding side ---------------------------------------------------------------------------------------


def _consume(
    ahead: Iterator[Any],
    encoder: Encoder,
    sampling: Sampling,
    dtype: str,
    report: Callable[[int, float], None],
) -> VideoFeatures:
    """Encode the chunks of one video up to its `_Finished`."""
    rows = _Rows(encoder.dim, dtype)
    for item in ahead:
        if isinstance(item, _Finished):
            return _features(rows, item, encoder, sampling, dtype)
        features = encoder.encode(item.pixels, item.motion, first_frame=len(rows.times))
        rows.add(item.times, features.cpu().numpy())
        report(len(rows.times), rows.times[-1])
    raise RuntimeError("the decoding thread ended without finishing its video")


class _Rows:
    """Embeddings as they come, in one array that grows in place: of a long video no second copy is ever held."""

    def __init__(self, dim: int, dtype: str) -> None:
        self.times: list[float] = []
        self._array = np.empty((0, dim), dtype)

    def add(self, times: list[float], embeddings: np.ndarray) -> None:
        first = len(self.times)
        self.times += times
        if len(self.times) > len(self._array):
            self._array.resize((max(len(self.times), 5 * len(self._array) // 4), self._array.shape[1]), refcheck=False)
        self._array[first : len(self.times)] = embeddings

    def finish(self) -> np.ndarray:
        """[T, dim], exactly the rows that were added."""
        self._array.resize((len(self.times), self._array.shape[1]), refcheck=False)
        return self._array


def _features(rows: _Rows, finished: _Finished, encoder: Encoder, sampling: Sampling, dtype: str) -> VideoFeatures:
    if finished.error is not None:
        raise finished.error
    settings = {**encoder.settings, **sampling.settings, "stored_dtype": dtype, "version": package_version()}
    if finished.motion_source is not None:
        settings["motion_source"] = finished.motion_source
    if finished.damage:
        settings["damage"] = finished.damage
    return VideoFeatures(
        times=np.array(rows.times, np.float64),
        embeddings=rows.finish(),
        roles=encoder.roles(len(rows.times)),
        video=finished.video,
        model=_model_facts(encoder),
        settings=settings,
        end_seconds=last_end(rows.times[-1], finished.end_seconds, sampling.end),
    )


def _model_facts(encoder: Encoder) -> dict[str, Any]:
    model = encoder.model
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


def _check_dtype(dtype: str) -> None:
    if dtype not in ("float32", "float16"):
        raise ValueError(f'dtype of stored embeddings must be "float32" or "float16", got {dtype!r}')


def _check_encoder(encoder: object) -> None:
    if not hasattr(encoder, "needs_motion"):
        raise TypeError(
            f"encoder must be one such as ResidualViT(model) or DenseEncoder(model), got {type(encoder).__name__}"
        )


def _silent(name: str, num_frames: int, seconds: float) -> None:
    pass
