"""From videos to features: decoding runs ahead in a thread, the encoder gets whole groups in batches.

One thread decodes, resizes, normalises and plans; the caller's thread encodes and writes. The queue between them
holds a few chunks of preprocessed frames, so memory grows neither with a video's length nor with their number,
and the next file is being opened while the last one is still being encoded.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeVar

from everyframe.encoders import Encoder, TempMe
from everyframe.encoders.dense import full_frame_macs
from everyframe.features import FeaturesError, VideoFeatures
from everyframe.pipeline.clips import ClipEncoder, driven, frames_of
from everyframe.pipeline.decoding import Finished, model_facts, read_chunks
from everyframe.pipeline.gather import AllFeatures, Gatherer, PlanAndIFeatures
from everyframe.pipeline.recipe import RECIPE_SUFFIX, Recipe
from everyframe.pipeline.resume import Journal, is_done, source_name
from everyframe.pipeline.sampling import ClipSampling, Sampling
from everyframe.pipeline.window import Chunk, last_end
from everyframe.version import package_version
from everyframe.video import Source, VideoError, decode_ahead
from everyframe.video.errors import UnreachableError

T = TypeVar("T")
Status = Literal["done", "partial", "skipped", "failed"]
Progress = Callable[[str, int, float], None]  # source's name, frames encoded so far, seconds of video so far

_CHUNKS_AHEAD = 2


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one video in a batch. `error` says why it failed, or what a partial one lost.

    num_frames: of features, which are those of clips with TempMe. gflops_per_frame, gflops_share: of a video encoded
    now, what it took and as a share of dense.
    """

    source: str
    output: Path | None
    status: Status
    num_frames: int = 0
    seconds: float = 0.0
    error: str | None = None
    gflops_per_frame: float | None = None
    gflops_share: float | None = None


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
    _check_encoder(encoder)
    _check_recipe(encoder)
    return _encode(source, encoder, sampling, dtype, progress, PlanAndIFeatures)


def _encode(
    source: Source,
    encoder: Encoder,
    sampling: Sampling | ClipSampling,
    dtype: str,
    progress: Progress | None,
    gather: Callable[[Encoder, str], Gatherer[T]],
) -> T:
    _check_dtype(dtype)
    _check_encoder(encoder)
    ahead = decode_ahead(read_chunks(source, encoder, sampling), _CHUNKS_AHEAD)
    try:
        report = partial(progress or _silent, source_name(source))
        return _consume(ahead, encoder, sampling, dtype, report, gather(encoder, dtype))
    finally:
        ahead.close()


def encode_videos(
    sources: Sequence[tuple[str | Path, Path]],
    encoder: Encoder | TempMe,
    *,
    sampling: Sampling | ClipSampling,
    dtype: str = "float32",
    progress: Progress | None = None,
    journal_file: Path | None = None,
    retry_failed: bool = False,
    recipe: bool = False,
) -> Iterator[Outcome]:
    """Encode many videos to feature files; one `Outcome` per video, in order. A bad video never stops the rest.

    sources: (video, output file) pairs. An output that already holds the same video with the same model and
    settings is skipped; one that is damaged or was made with others is made anew; one that everyframe did not
    write is left alone, and the video fails. Outputs appear whole or not at all.
    journal_file: where outcomes are appended; a file that could not be read before, and has not changed, is not
    tried again unless `retry_failed`.
    sampling: for TempMe a `ClipSampling`, for all other encoders a `Sampling`.
    recipe: write recipes (see `encode_recipe`) instead of features, to output files named NAME.recipe.npz.
    Raises ValueError for bad arguments before any work.
    """
    _check_dtype(dtype)
    _check_encoder(encoder)
    if recipe:
        _check_recipe(encoder)
    for _, output in sources if recipe else ():
        if not output.name.endswith(RECIPE_SUFFIX):
            raise ValueError(f"{output}: a recipe must be named NAME{RECIPE_SUFFIX}, to be told from features")
    work = _Work(driven(encoder, sampling), sampling, dtype, Journal(journal_file), retry_failed, recipe)
    return _encode_each(sources, work, progress or _silent)


def encode_each(
    sources: Sequence[str | Path],
    encoder: Encoder | TempMe,
    *,
    sampling: Sampling | ClipSampling,
    dtype: str = "float32",
    progress: Progress | None = None,
) -> Iterator[VideoFeatures | VideoError]:
    """The features of many videos, one item per video in order, without files; for one that cannot be read, why.

    Decoding runs ahead into the next video, as in `encode_videos`, whose arguments these are. One video's features
    are in memory at a time. Raises ValueError for bad arguments before any work.
    """
    _check_dtype(dtype)
    _check_encoder(encoder)
    work = _Work(driven(encoder, sampling), sampling, dtype, Journal(None), False, False)
    return _features_of_each(sources, work, progress or _silent)


def _features_of_each(
    sources: Sequence[str | Path], work: _Work, progress: Progress
) -> Iterator[VideoFeatures | VideoError]:
    ahead = decode_ahead(chain.from_iterable(map(work.chunks, sources)), _CHUNKS_AHEAD)
    try:
        for source in sources:
            gatherer = AllFeatures(work.encoder, work.dtype)
            try:
                report = partial(progress, str(source))
                yield _consume(ahead, work.encoder, work.sampling, work.dtype, report, gatherer)
            except VideoError as error:
                yield error
    finally:
        ahead.close()


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
            if cause not in ("output", "way"):  # a full disk says nothing about the video, nor does the network
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
    sampling: Sampling | ClipSampling
    dtype: str
    journal: Journal
    retry_failed: bool
    recipe: bool

    @property
    def journal_settings(self) -> dict[str, Any]:
        return {**self.sampling.settings, "keep_partial": self.sampling.keep_partial, "version": package_version()}

    def items(self, sources: Iterable[tuple[str | Path, Path]]) -> Iterator[Chunk | Finished | Outcome]:
        """For each video either an `Outcome`, when there is nothing to do, or its chunks and a `Finished`."""
        for source, output in sources:
            outcome = self._settled(source, output)
            if outcome is not None:
                yield outcome
                continue
            yield from self.chunks(source)

    def chunks(self, source: str | Path) -> Iterator[Chunk | Finished]:
        """The chunks of one video and a `Finished`, whatever happens."""
        try:
            yield from read_chunks(source, self.encoder, self.sampling)
        except Exception as error:  # unforeseen; ending here would leave the videos after it without an answer
            yield Finished(error=VideoError(f"{source}: cannot be read ({type(error).__name__}: {error})"))

    def _settled(self, source: str | Path, output: Path) -> Outcome | None:
        facts = provenance_of(self.encoder, self.sampling, self.dtype)
        wanted = {
            "model": {key: facts["model"][key] for key in ("weights_sha256", "dtype", "preprocess")},
            "settings": {key: value for key, value in facts["settings"].items() if key != "version"},
        }
        try:
            load = Recipe.load if self.recipe else VideoFeatures.load
            frames = is_done(source, output, wanted, keep_partial=self.sampling.keep_partial, load=load)
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
) -> tuple[Outcome, Literal["video", "way", "output"] | None]:
    """One video of a batch; with a failure, whether its cause was the video, the way to it or the output."""
    gather = PlanAndIFeatures if work.recipe else AllFeatures
    gatherer: Gatherer[Recipe | VideoFeatures] = gather(work.encoder, work.dtype)
    try:
        feats = _consume(items, work.encoder, work.sampling, work.dtype, report, gatherer)
    except VideoError as error:
        failed = Outcome(source=source, output=output, status="failed", error=str(error))
        return failed, "way" if isinstance(error, UnreachableError) else "video"
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        feats.save(output)
    except (FeaturesError, OSError) as error:
        return Outcome(source=source, output=output, status="failed", error=str(error)), "output"
    damage = feats.settings.get("damage")
    kept = f"{feats.num_frames} {'clips' if isinstance(work.sampling, ClipSampling) else 'frames'}"
    outcome = Outcome(
        source=source,
        output=output,
        status="partial" if damage else "done",
        num_frames=feats.num_frames,
        seconds=float(feats.frame_ends[-1] - feats.times[0]),
        error=f"{source}: kept {kept}; {'; '.join(damage)}" if damage else None,
        gflops_per_frame=feats.settings["gflops_per_frame"],
        gflops_share=feats.settings["gflops_share"],
    )
    return outcome, None


# --- encoding side ---------------------------------------------------------------------------------------


def provenance_of(
    encoder: Encoder | TempMe, sampling: Sampling | ClipSampling, dtype: str
) -> dict[Literal["model", "settings"], dict[str, Any]]:
    """What features will say of their model and settings, as far as it is the same for every video."""
    settings = {**encoder.settings, **sampling.settings, "stored_dtype": dtype, "version": package_version()}
    return {"model": model_facts(encoder.model), "settings": settings}


def _consume(
    ahead: Iterator[Any],
    encoder: Encoder,
    sampling: Sampling | ClipSampling,
    dtype: str,
    report: Callable[[int, float], None],
    gatherer: Gatherer[T],
) -> T:
    """Encode the chunks of one video up to its `Finished`."""
    rows, last, macs = 0, 0.0, 0.0
    each = encoder.frames if isinstance(encoder, ClipEncoder) else 1
    for item in ahead:
        if isinstance(item, Finished):
            if item.error is not None:
                raise item.error
            provenance = facts_of(item, encoder, sampling, dtype, rows=rows, last=last, macs=macs)
            end = provenance["end_seconds"]
            report(rows * each, last if end is None else end)
            return gatherer.finish(provenance)
        features, count = encoder.encode_planned(item.pixels, item.plan), len(item.times)
        gatherer.add(item.times, item.plan[:count], features[:count].cpu().numpy())
        rows, last = rows + count, item.times[-1]
        macs += sum(encoder.plan_macs(item.plan, "all").values())
        report(rows * each, last)
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


def _check_dtype(dtype: str) -> None:
    if dtype not in ("float32", "float16"):
        raise ValueError(f'dtype of stored embeddings must be "float32" or "float16", got {dtype!r}')


def _check_encoder(encoder: object) -> None:
    if not hasattr(encoder, "needs_motion"):
        raise TypeError(
            f"encoder must be one such as ResidualViT(model) or DenseEncoder(model), got {type(encoder).__name__}"
        )


def _check_recipe(encoder: Encoder | TempMe) -> None:
    if isinstance(encoder, TempMe):
        raise ValueError("a recipe keeps the features of I-frames, and TempMe gives features of clips; keep features")
    if encoder.looks_ahead:
        raise ValueError("a recipe's chunks stand alone and cannot look ahead; use two_sided=False, or keep features")


def _silent(name: str, num_frames: int, seconds: float) -> None:
    pass
