"""From videos to features: decoding runs ahead in a thread, the encoder gets whole groups in batches.

One thread decodes, resizes and normalises; the caller's thread encodes and writes. The queue between them
holds a few chunks of preprocessed frames, so memory grows neither with a video's length nor with their number,
and the next file is being opened while the last one is still being encoded.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from everyframe.encoders import Encoder
from everyframe.features import FeaturesError, ForeignFileError, VideoFeatures
from everyframe.video import SampledVideo, Source, VideoError, decode_ahead, sample_frames

Status = Literal["done", "partial", "skipped", "failed"]
Progress = Callable[[str, int, float], None]  # source's name, frames encoded so far, seconds of video so far

_CHUNKS_AHEAD = 2
_RAW_BYTES = 24 << 20  # decoded frames waiting to be preprocessed together


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
class _Chunk:
    """Preprocessed frames of one video, beginning with an I-frame."""

    times: list[float]
    pixels: Tensor
    motion: Tensor | None


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
    start, end: seconds; the times to sample lie in [start, end), the frame nearest to one may lie just outside.
    dtype: "float32" or "float16" of the stored embeddings.
    keep_partial: of a damaged file keep the frames that can be read; the gaps are in settings["damage"].
    Raises VideoError when the video cannot be read or has no frames there, ValueError for bad arguments.
    """
    sampling = Sampling(fps=fps, start=start, end=end, keep_partial=keep_partial)
    _check_dtype(dtype)
    ahead = decode_ahead(_chunks(source, encoder, sampling), _CHUNKS_AHEAD)
    try:
        return _consume(ahead, encoder, sampling, dtype, partial(progress or _silent, _name(source)))
    finally:
        ahead.close()


def encode_videos(
    sources: Sequence[tuple[str | Path, Path]],
    encoder: Encoder,
    *,
    sampling: Sampling,
    dtype: str = "float32",
    progress: Progress | None = None,
) -> Iterator[Outcome]:
    """Encode many videos to feature files; one `Outcome` per video, in order. A bad video never stops the rest.

    sources: (video, output file) pairs. An output that already holds the same video with the same model and
    settings is skipped; one that is damaged or was made with others is made anew; one that everyframe did not
    write is left alone, and the video fails. Outputs appear whole or not at all. Raises ValueError for bad
    arguments before any work.
    """
    _check_dtype(dtype)
    wanted = {**encoder.settings, **sampling.settings, "stored_dtype": dtype}
    keep = sampling.keep_partial
    plan = [(str(source), output, _existing(source, output, encoder, wanted, keep)) for source, output in sources]
    pending = [source for source, _, state in plan if state is None]
    ahead = decode_ahead(_chunks_of_all(pending, encoder, sampling), _CHUNKS_AHEAD)
    try:
        for source, output, state in plan:
            if state is not None:
                yield state
                continue
            try:
                report = partial(progress or _silent, source)
                feats = _consume(ahead, encoder, sampling, dtype, report)
                output.parent.mkdir(parents=True, exist_ok=True)
                feats.save(output)
            except (VideoError, FeaturesError, OSError) as error:
                yield Outcome(source=source, output=output, status="failed", error=str(error))
                continue
            damage = feats.settings.get("damage")
            yield Outcome(
                source=source,
                output=output,
                status="partial" if damage else "done",
                num_frames=feats.num_frames,
                seconds=float(feats.frame_ends[-1] - feats.times[0]),
                error=f"{source}: kept {feats.num_frames} frames; {'; '.join(damage)}" if damage else None,
            )
    finally:
        ahead.close()


def output_paths(
    roots: Iterable[tuple[Path | None, Sequence[str | Path]]], out: Path, suffix: str
) -> list[tuple[str | Path, Path]]:
    """Where each video's features go: the folders below a root are kept, and no two videos share a file.

    roots: (folder that was asked for or None, videos found in it). "a/x.mp4" below a root becomes "a/x.npz";
    where another video would take the same file, the video's own suffix stays ("a/x.mp4.npz"), and where that
    is not enough, a short hash of its folder is added.
    """
    entries: list[tuple[str | Path, Path]] = []
    for root, videos in roots:
        for video in videos:
            path = Path(str(video).rstrip("/").rpartition("/")[2]) if is_address(video) else Path(video)
            inside = root is not None and path.is_relative_to(root) and path != root
            name = Path(os.path.basename(os.path.abspath(path)))  # the folder "." has no name as it stands
            entries.append((video, path.relative_to(root) if inside and root else name))
    plain = [relative.with_suffix(suffix) for _, relative in entries]
    full = [relative.with_name(relative.name + suffix) for _, relative in entries]
    short_count, long_count = Counter(plain), Counter(full)
    paths: list[tuple[str | Path, Path]] = []
    for (video, relative), short, long in zip(entries, plain, full, strict=True):
        # "x.mp4.mkv" leaves "x.mp4.npz" to "x.mp4".
        chosen = long if short_count[short] > 1 or long_count[short] else short
        if long_count[long] > 1:
            digest = hashlib.sha256(str(Path(video).absolute().parent).encode()).hexdigest()[:8]
            chosen = relative.with_name(f"{relative.name}-{digest}{suffix}")
        paths.append((video, out / chosen))
    return paths


# --- decoding side ---------------------------------------------------------------------------------------


def _chunks_of_all(sources: Iterable[str], encoder: Encoder, sampling: Sampling) -> Iterator[_Chunk | _Finished]:
    for source in sources:
        try:
            yield from _chunks(source, encoder, sampling)
        except Exception as error:  # unforeseen; ending here would leave the videos after it without an answer
            reason = f"{source}: cannot be read ({type(error).__name__}: {error})"
            yield _Finished(error=VideoError(reason))


def _chunks(source: Source, encoder: Encoder, sampling: Sampling) -> Iterator[_Chunk | _Finished]:
    """Chunks of whole groups, then exactly one `_Finished`."""
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
            yield from _preprocessed(sampled, encoder)
            video = _video_facts(source, sampled)
    except VideoError as error:
        yield _Finished(error=error)
        return
    yield _Finished(
        video=video,
        motion_source=sampled.motion_source,
        end_seconds=sampled.last_end_seconds,
        damage=list(sampled.damage),
    )


def _preprocessed(sampled: SampledVideo, encoder: Encoder) -> Iterator[_Chunk]:
    """Collect frames, preprocess them a few at a time, hand out whole groups, about 2 x `batch_size` frames."""
    per_chunk = encoder.group_size * max(2 * encoder.batch_size // encoder.group_size, 1)
    times: list[float] = []
    pixels: list[Tensor] = []
    motion: list[Tensor] = []
    raw: list[np.ndarray] = []
    maps: list[np.ndarray] = []

    def flush() -> None:
        if raw:
            frames = np.stack(raw)
            pixels.append(encoder.model.preprocess(frames))
            if encoder.needs_motion:
                motion.append(encoder.model.preprocess_motion(np.stack(maps), frames.shape[1:3]))
            raw.clear()
            maps.clear()

    for sample in sampled:
        times.append(sample.time)
        raw.append(sample.pixels)
        if sample.motion is not None:
            maps.append(sample.motion)
        if len(raw) * sample.pixels.nbytes >= _RAW_BYTES or len(raw) >= 16:
            flush()
        if len(times) == per_chunk:
            flush()
            yield _Chunk(times, torch.cat(pixels), torch.cat(motion) if motion else None)
            times, pixels, motion = [], [], []
    flush()
    if times:
        yield _Chunk(times, torch.cat(pixels), torch.cat(motion) if motion else None)


def _video_facts(source: Source, sampled: SampledVideo) -> dict[str, Any]:
    info = sampled.info
    facts: dict[str, Any] = {
        "path": _name(source),
        "duration_seconds": info.duration_seconds,
        "width": info.width,
        "height": info.height,
        "fps": info.average_fps,
        "codec": info.codec,
        "container": info.container,
        "rotation": info.rotation,
    }
    facts.update(_identity(source))
    return facts


# --- encoding side ---------------------------------------------------------------------------------------


def _consume(
    ahead: Iterator[_Chunk | _Finished],
    encoder: Encoder,
    sampling: Sampling,
    dtype: str,
    report: Callable[[int, float], None],
) -> VideoFeatures:
    """Encode the chunks of one video up to its `_Finished`."""
    times: list[float] = []
    embeddings: list[np.ndarray] = []
    for item in ahead:
        if isinstance(item, _Finished):
            return _features(times, embeddings, item, encoder, sampling, dtype)
        features = encoder.encode(item.pixels, item.motion, first_frame=len(times))
        embeddings.append(features.cpu().numpy().astype(dtype))
        times += item.times
        report(len(times), times[-1])
    raise RuntimeError("the decoding thread ended without finishing its video")


def _features(
    times: list[float],
    embeddings: list[np.ndarray],
    finished: _Finished,
    encoder: Encoder,
    sampling: Sampling,
    dtype: str,
) -> VideoFeatures:
    if finished.error is not None:
        raise finished.error
    settings = {**encoder.settings, **sampling.settings, "stored_dtype": dtype, "version": _version()}
    if finished.motion_source is not None:
        settings["motion_source"] = finished.motion_source
    if finished.damage:
        settings["damage"] = finished.damage
    return VideoFeatures(
        times=np.array(times, np.float64),
        embeddings=np.concatenate(embeddings),
        roles=encoder.roles(len(times)),
        video=finished.video,
        model=_model_facts(encoder),
        settings=settings,
        end_seconds=_last_end(times[-1], finished.end_seconds, sampling.end),
    )


def _last_end(last: float, decoded: float | None, asked: float | None) -> float | None:
    """Where the last frame's interval ends: with the pictures, or where the caller's range does."""
    ends = [end for end in (decoded, asked) if end is not None and end > last]
    return min(ends) if ends else None


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


# --- resuming --------------------------------------------------------------------------------------------


def _existing(
    source: str | Path, output: Path, encoder: Encoder, wanted: dict[str, Any], keep_partial: bool
) -> Outcome | None:
    """The outcome where nothing has to be done for a video, or nothing may be done, else None."""
    if not output.exists():
        return None
    try:
        feats = VideoFeatures.load(output)
    except ForeignFileError as error:  # somebody's own work under that name
        message = f"{error}; it is not overwritten: move it away, or choose another --out for {source}"
        return Outcome(source=str(source), output=output, status="failed", error=message)
    except FeaturesError:
        return None  # cut short: it is made anew
    identity = _identity(source)
    same_video = bool(identity) and all(feats.video.get(key) == value for key, value in identity.items())
    other = feats.video.get("path")
    if not same_video and other != _name(source) and other is not None and Path(other).exists():
        message = f"{output} holds the features of {other}; choose another --out for {source}"
        return Outcome(source=str(source), output=output, status="failed", error=message)
    facts = _model_facts(encoder)
    same_model = all(feats.model.get(key) == facts[key] for key in ("weights_sha256", "dtype", "preprocess"))
    same_settings = all(feats.settings.get(key) == value for key, value in wanted.items())
    complete = keep_partial or not feats.settings.get("damage")
    if same_video and same_model and same_settings and complete:
        return Outcome(source=str(source), output=output, status="skipped", num_frames=feats.num_frames)
    return None


def _identity(source: Source) -> dict[str, Any]:
    """Size and a hash of both ends of a file: enough to notice that it was replaced, cheap on any disk."""
    if isinstance(source, bytes):
        return {"size_bytes": len(source), "fingerprint": hashlib.sha256(source).hexdigest()[:32]}
    if not isinstance(source, (str, Path)) or is_address(source):
        return {}
    path = Path(source)
    if path.is_dir():
        names = sorted(f"{file.name}:{file.stat().st_size}" for file in path.iterdir() if file.is_file())
        return {"size_bytes": None, "fingerprint": hashlib.sha256("\n".join(names).encode()).hexdigest()[:32]}
    if not path.is_file():
        return {}
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(1 << 18))
        file.seek(max(size - (1 << 18), 0))
        digest.update(file.read())
    return {"size_bytes": size, "fingerprint": digest.hexdigest()[:32]}


def _name(source: Source) -> str:
    if isinstance(source, (str, Path)):
        return str(source) if is_address(source) else os.path.abspath(source)
    return "<bytes>"


def is_address(source: object) -> bool:
    """Is it a URL for FFmpeg, not a path?"""
    return isinstance(source, str) and "://" in source


def _check_dtype(dtype: str) -> None:
    if dtype not in ("float32", "float16"):
        raise ValueError(f'dtype of stored embeddings must be "float32" or "float16", got {dtype!r}')


def _silent(name: str, num_frames: int, seconds: float) -> None:
    pass


def _version() -> str:
    try:
        return version("everyframe")
    except PackageNotFoundError:
        return "unknown"
