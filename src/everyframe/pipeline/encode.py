"""From a video to features: decoding runs ahead in a thread, the encoder gets whole groups in batches.

One thread decodes, resizes, normalises and plans; the caller's thread encodes. The queue between them holds a few
chunks of preprocessed frames, so memory does not grow with a video's length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Generic, Literal, TypeVar

from everyframe.encoders import Encoder, TempMe
from everyframe.encoders.dense import full_frame_macs
from everyframe.features import VideoFeatures
from everyframe.pipeline.clips import ClipEncoder, driven, frames_of
from everyframe.pipeline.decoding import Finished, model_facts, read_chunks
from everyframe.pipeline.gather import AllFeatures, Gatherer, PlanAndIFeatures
from everyframe.pipeline.recipe import Recipe
from everyframe.pipeline.resume import source_name
from everyframe.pipeline.sampling import ClipSampling, Sampling
from everyframe.pipeline.transfers import ahead_on
from everyframe.pipeline.window import Chunk, last_end
from everyframe.version import package_version
from everyframe.video import Source

T = TypeVar("T")
Progress = Callable[[str, int, float], None]  # source's name, frames encoded so far, seconds of video so far

CHUNKS_AHEAD = 2
"""Chunks that wait for the encoder, per thread that decodes."""


def encode_video(
    source: Source,
    encoder: Encoder | TempMe,
    *,
    fps: float | None = None,
    clip_seconds: float | None = None,
    frames: int | None = None,
    start: float | None = None,
    end: float | None = None,
    keep_partial: bool = False,
    dtype: str = "float32",
    progress: Progress | None = None,
) -> VideoFeatures:
    """Sample a video at `fps` by presentation time and encode it, streaming; with TempMe, clip by clip.

    source: a file, a folder of images, an address FFmpeg reads, bytes, or a binary file object.
    fps: features per second, 3 by default; not with TempMe.
    clip_seconds, frames: with TempMe alone, seconds of a clip (10 by default) and frames that are read of it (as many
        as the encoder is made for, else 12), see `ClipSampling`. There is one feature per clip; its time is where the
        clip begins.
    start, end: seconds; only frames whose time lies in [start, end).
    dtype: "float32" or "float16" of the stored embeddings.
    keep_partial: of a damaged file keep the frames that can be read; the gaps are in settings["damage"].
    Raises VideoError when the video cannot be read or has no frames there, ValueError for bad arguments.
    """
    limits = {"start": start, "end": end, "keep_partial": keep_partial}
    sampling = _sampling(encoder, fps, clip_seconds, frames, limits)
    return _encode(source, driven(encoder, sampling), sampling, dtype, progress, AllFeatures)


def _sampling(
    encoder: Encoder | TempMe, fps: float | None, clip_seconds: float | None, frames: int | None, limits: dict[str, Any]
) -> Sampling | ClipSampling:
    """What the encoder reads. Raises ValueError for what the other kind of encoder takes."""
    if isinstance(encoder, TempMe):
        if fps is not None:
            raise ValueError("fps has no meaning with TempMe, which reads clips; clip_seconds and frames say which")
        seconds = ClipSampling.clip_seconds if clip_seconds is None else clip_seconds
        return ClipSampling(clip_seconds=seconds, frames=frames_of(encoder) if frames is None else frames, **limits)
    if clip_seconds is not None or frames is not None:
        name = "frames" if clip_seconds is None else "clip_seconds"
        raise ValueError(f"{name} has a meaning with TempMe alone, not with {type(encoder).__name__}; use fps")
    return Sampling(fps=Sampling.fps if fps is None else fps, **limits)


def encode_recipe(
    source: Source,
    encoder: Encoder,
    *,
    fps: float = 3.0,
    start: float | None = None,
    end: float | None = None,
    keep_partial: bool = False,
    dtype: str = "float32",
    progress: Progress | None = None,
) -> Recipe:
    """`encode_video`, but only the plan and the features of I-frames are kept: `restore` gives the others.

    The whole video is encoded all the same. Arguments and errors are those of `encode_video`; dtype is that of the
    features restored.
    """
    sampling = Sampling(fps=fps, start=start, end=end, keep_partial=keep_partial)
    check_encoder(encoder)
    check_recipe(encoder)
    return _encode(source, encoder, sampling, dtype, progress, PlanAndIFeatures)


def _encode(
    source: Source,
    encoder: Encoder,
    sampling: Sampling | ClipSampling,
    dtype: str,
    progress: Progress | None,
    gather: Callable[[Encoder, str], Gatherer[T]],
) -> T:
    check_dtype(dtype)
    check_encoder(encoder)
    ahead = ahead_on(encoder.model.device, read_chunks(source, encoder, sampling), CHUNKS_AHEAD)
    try:
        report = partial(progress or silent, source_name(source))
        return consume(ahead, Encoding(encoder, sampling, dtype, report, gather(encoder, dtype)))
    finally:
        ahead.close()


# --- encoding side ---------------------------------------------------------------------------------------


def provenance_of(
    encoder: Encoder | TempMe, sampling: Sampling | ClipSampling, dtype: str
) -> dict[Literal["model", "settings"], dict[str, Any]]:
    """What features will say of their model and settings, as far as it is the same for every video."""
    settings = {**encoder.settings, **sampling.settings, "stored_dtype": dtype, "version": package_version()}
    return {"model": model_facts(encoder.model), "settings": settings}


class Encoding(Generic[T]):
    """The features of one video as its chunks come. report: told (features so far, seconds so far)."""

    def __init__(
        self,
        encoder: Encoder,
        sampling: Sampling | ClipSampling,
        dtype: str,
        report: Callable[[int, float], None],
        gatherer: Gatherer[T],
    ) -> None:
        self._encoder, self._sampling, self._dtype = encoder, sampling, dtype
        self._report, self._gatherer = report, gatherer
        self._each = encoder.frames if isinstance(encoder, ClipEncoder) else 1
        self._rows, self._last, self._macs = 0, 0.0, 0.0

    def add(self, chunk: Chunk) -> None:
        """Encode the next chunk."""
        features, count = self._encoder.encode_planned(chunk.pixels, chunk.plan), len(chunk.times)
        self._gatherer.add(chunk.times, chunk.plan[:count], features[:count].cpu().numpy())
        self._rows, self._last = self._rows + count, chunk.times[-1]
        self._macs += sum(self._encoder.plan_macs(chunk.plan, "all").values())
        self._report(self._rows * self._each, self._last)

    def finish(self, finished: Finished) -> T:
        """What came of the chunks. Raises the VideoError that broke the video off."""
        if finished.error is not None:
            raise finished.error
        provenance = facts_of(
            finished, self._encoder, self._sampling, self._dtype, rows=self._rows, last=self._last, macs=self._macs
        )
        end = provenance["end_seconds"]
        self._report(self._rows * self._each, self._last if end is None else end)
        return self._gatherer.finish(provenance)


def consume(items: Iterator[Any], encoding: Encoding[T]) -> T:
    """Encode the chunks of one video up to its `Finished`. Raises VideoError where it broke off."""
    for item in items:
        if isinstance(item, Finished):
            return encoding.finish(item)
        encoding.add(item)
    raise RuntimeError("the decoding thread ended without finishing its video")


def facts_of(
    finished: Finished,
    encoder: Encoder,
    sampling: Sampling | ClipSampling,
    dtype: str,
    *,
    rows: int,
    last: float,
    macs: float,
) -> dict[str, Any]:
    """Everything that features say of themselves: video, model, settings and end_seconds.

    rows: features there are, the last one at `last` seconds. macs: what computing them took.
    """
    known = provenance_of(encoder, sampling, dtype)
    settings = {**known["settings"], **_costs(encoder, rows, macs)}
    if finished.motion_source is not None:
        settings["motion_source"] = finished.motion_source
    if finished.damage:
        settings["damage"] = finished.damage
    end = last_end(last, finished.end_seconds, sampling.end)
    return {"video": finished.video, "model": known["model"], "settings": settings, "end_seconds": end}


def _costs(encoder: Encoder, rows: int, macs: float) -> dict[str, float]:
    """What was computed, in 10^9 multiply-accumulates per frame and as a share of dense encoding; the plan decides."""
    if isinstance(encoder, ClipEncoder):
        frames, dense = rows * encoder.frames, rows * encoder.dense_macs()
    else:
        frames, dense = rows, rows * sum(full_frame_macs(encoder.model, "all").values())
    # Rounded, so that the order of additions, which depends on the batch size, leaves no trace.
    return {"gflops_per_frame": float(f"{macs / frames / 1e9:.6g}"), "gflops_share": float(f"{macs / dense:.6g}")}


def check_dtype(dtype: str) -> None:
    if dtype not in ("float32", "float16"):
        raise ValueError(f'dtype of stored embeddings must be "float32" or "float16", got {dtype!r}')


def check_encoder(encoder: object) -> None:
    if not hasattr(encoder, "needs_motion"):
        raise TypeError(
            f"encoder must be one such as ResidualViT(model) or DenseEncoder(model), got {type(encoder).__name__}"
        )


def check_recipe(encoder: Encoder | TempMe) -> None:
    if isinstance(encoder, TempMe):
        raise ValueError("a recipe keeps the features of I-frames, and TempMe gives features of clips; keep features")
    if encoder.looks_ahead:
        raise ValueError("a recipe's chunks stand alone and cannot look ahead; use two_sided=False, or keep features")


def silent(name: str, num_frames: int, seconds: float) -> None:
    pass
