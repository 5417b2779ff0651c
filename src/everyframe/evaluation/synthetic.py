"""ResidualViT's ablation on held-out synthetic videos, for any model that understands their captions.

Every video is rendered, decoded and preprocessed once; each variant then encodes it, and what is kept is its time,
the fidelity of every frame and the overlap of every query's first answer with the truth. The figures come from
`Ablation` (`summary.py`).
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from everyframe.backbone import Model, ModelError
from everyframe.encoders import DenseEncoder
from everyframe.encoders.baselines import fidelity
from everyframe.evaluation.summary import SMOOTH, Ablation, VideoResult
from everyframe.evaluation.variants import (
    Frames,
    Place,
    Sweep,
    Tokenizers,
    Variant,
    main_methods,
    places,
    read_tokenizers,
)
from everyframe.features import VideoFeatures
from everyframe.pipeline import Sampling, read_window
from everyframe.spans import temporal_iou
from everyframe.synthetic import Combinations, synthesize
from everyframe.tasks.grounding import ground
from everyframe.version import package_version

LAST_SEED = 999  # the videos of set 1000 would have seeds that the bundled model was trained on
_DONE = "complete.json"


@dataclass(frozen=True, kw_only=True)
class Video:
    """A rendered video: its file, how it moves, and what is to be found in it: (caption, start, end) in seconds."""

    file: Path
    style: str
    events: tuple[tuple[str, float, float], ...]


def evaluate_synthetic(
    model: Model,
    *,
    residuals: Sequence[str] = ("auto",),
    seeds: int = 3,
    videos: int = 24,
    seed: int = 901,
    seconds: float = 60.0,
    fps: float = 3.0,
    sweep: Sweep | None = None,
    work: str | Path | None = None,
    workers: int = 1,
    say: Callable[[str], None] | None = None,
    after_set: Callable[[Ablation], None] | None = None,
) -> Ablation:
    """Compare dense, ResidualViT in its variants, copying and interpolating on `seeds` sets of `videos` videos.

    residuals: "auto" (the tokenizer that ships with the model), "none", or NAME=FILE; files of one NAME are pooled,
        the first name is the A of every table.
    seed: set k holds what `synthesize(seed=seed + k, combinations="unseen")` renders; seconds of each video; fps:
        frames sampled per second.
    sweep: which settings are tried.
    work: where videos are rendered, and found again by the next call; None means a folder that is thrown away.
    workers: processes that render. say: told what is going on. after_set: given what is known after every set.
    Raises ValueError for bad arguments and FileNotFoundError for a missing tokenizer before anything is rendered,
    ModelError for a model without a text tower.
    """
    _check(seeds, videos, seed, seconds, workers)
    sampling = Sampling(fps=fps)
    if model.text is None:
        raise ModelError(f"{model.name} has no text tower, so nothing can be looked for: evaluate a CLIP or SigLIP")
    say = say or _silent
    sweep = sweep or Sweep()
    tokenizers, notes = read_tokenizers(model, residuals)
    for note in notes:
        say(note)
    settings = {"seeds": seeds, "videos": videos, "seed": seed, "seconds": seconds, "fps": sampling.fps}
    ablation = _nothing_measured(model, tokenizers, notes, sweep, settings)
    runner = _Runner(model, ablation.places, sweep, sampling.fps)
    with work_folder(work) as folder:
        for number in range(seeds):
            started = time.monotonic()
            rendered = rendered_videos(
                folder / f"set-{seed + number}", videos=videos, seconds=seconds, seed=seed + number, workers=workers
            )
            if not any(video.events for video in rendered):
                raise ValueError(f"nothing happens in {seconds:g} s of video; use at least 20 seconds")
            say(f"set {number + 1} of {seeds}: {videos} videos ready after {time.monotonic() - started:.0f} s")
            for video in rendered:
                ablation.add(number, runner.run(video))
            say(f"set {number + 1} of {seeds}: measured after {time.monotonic() - started:.0f} s")
            if after_set is not None:
                after_set(ablation)
    return ablation


def _nothing_measured(
    model: Model, tokenizers: Tokenizers, notes: Sequence[str], sweep: Sweep, settings: dict[str, Any]
) -> Ablation:
    """What is going to be measured, and with what."""
    return Ablation(
        places=tuple(places(model, tokenizers, sweep)),
        sweep=sweep,
        model={"id": model.name, "weights_sha256": model.weights_sha256},
        settings={
            **settings,
            "threads": torch.get_num_threads(),
            "device": model.device.type,
            "dtype": model.precision,
        },
        residuals={
            name: [{"fingerprint": file.fingerprint, **file.facts} for file in files]
            for name, files in tokenizers.items()
        },
        notes=tuple(notes),
        version=package_version(),
    )


def rendered_videos(
    folder: Path,
    *,
    videos: int,
    seconds: float,
    seed: int,
    workers: int = 1,
    combinations: Combinations = "unseen",
) -> list[Video]:
    """The videos of one set, rendered into `folder` unless an earlier call finished the same set there."""
    wanted: dict[str, Any] = {"videos": videos, "seconds": seconds, "seed": seed, "version": package_version()}
    if combinations != "unseen":
        wanted["combinations"] = combinations
    done = folder / _DONE
    if not (done.is_file() and json.loads(done.read_text(encoding="utf-8")) == wanted):
        done.unlink(missing_ok=True)
        for _ in synthesize(
            folder, videos=videos, seconds=seconds, seed=seed, combinations=combinations, workers=workers
        ):
            pass
        done.write_text(json.dumps(wanted), encoding="utf-8")
    events: dict[str, list[tuple[str, float, float]]] = {}
    for line in _lines(folder / "annotations.jsonl"):
        events.setdefault(line["vid"], []).append((line["query"], *line["relevant_windows"][0]))
    return [
        Video(file=folder / f"{line['vid']}.mp4", style=line["style"], events=tuple(events.get(line["vid"], ())))
        for line in _lines(folder / "videos.jsonl")
    ]


class _Runner:
    """Decodes a video once and has every variant encode it."""

    def __init__(self, model: Model, lines: Sequence[Place], sweep: Sweep, fps: float) -> None:
        self._model = model
        self._dense = DenseEncoder(model)
        self._variants = {place.variant.name: place.variant for place in lines}
        self._main = {place.variant.name for place in main_methods(lines, sweep)}
        self._smooths = sorted({*sweep.smooths, SMOOTH})
        self._fps = fps
        self._warm = False

    def run(self, video: Video) -> VideoResult:
        window = read_window(video.file, self._model, fps=self._fps)
        if not self._warm:  # the first pass pays for allocations
            self._dense.encode(window.pixels)
            self._warm = True
        started = time.perf_counter()
        dense = self._dense.encode(window.pixels).cpu().numpy()
        dense_seconds = time.perf_counter() - started
        frames = Frames(**vars(window), dense=dense)
        texts = [caption for caption, _, _ in video.events]
        queries = self._model.encode_text(texts).cpu().numpy() if texts else np.empty((0, self._model.dim))
        result = VideoResult(name=video.file.stem, style=video.style, queries=len(texts))
        for name, variant in self._variants.items():
            full_seconds = dense_seconds * variant.full_share(len(window.times))
            smooths = self._smooths if name in self._main else [SMOOTH]
            for encode in variant.encodes:
                started = time.perf_counter()
                features = encode(frames)
                took = time.perf_counter() - started + full_seconds
                found = self._ground(features, frames, variant, queries, video, smooths)
                result.add(name, seconds=took, fidelity=fidelity(features, dense), overlaps=found)
        return result

    def _ground(
        self,
        features: np.ndarray,
        frames: Frames,
        variant: Variant,
        queries: np.ndarray,
        video: Video,
        smooths: Sequence[float],
    ) -> dict[float, np.ndarray]:
        """IoU of every query's first answer with the truth, by smoothing window: float64 [queries]."""
        feats = VideoFeatures(
            times=frames.times,
            embeddings=features,
            roles=variant.roles(len(frames.times)),
            end_seconds=frames.end_seconds,
            settings={"fps": self._fps},
        )
        found: dict[float, np.ndarray] = {}
        for smooth in smooths:
            overlaps = np.zeros(len(queries))
            for row, (query, (_, start, end)) in enumerate(zip(queries, video.events, strict=True)):
                for moment in ground(feats, query, top=1, smooth=smooth):
                    overlaps[row] = temporal_iou(moment, (start, end))
            found[smooth] = overlaps
        return found


def _check(seeds: int, videos: int, seed: int, seconds: float, workers: int) -> None:
    for name, value in (("seeds", seeds), ("videos", videos), ("seed", seed), ("workers", workers)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not 0 < seconds < float("inf"):
        raise ValueError(f"seconds must be finite and > 0, got {seconds}")
    if seed + seeds - 1 > LAST_SEED or videos > 1000:
        raise ValueError(
            f"sets must keep to seeds up to {LAST_SEED} and 1000 videos each, got {videos} videos of seeds {seed} to "
            f"{seed + seeds - 1}: the bundled model was trained on videos beyond them"
        )


@contextmanager
def work_folder(work: str | Path | None) -> Iterator[Path]:
    """The folder, or one that is thrown away after the block."""
    if work is not None:
        yield Path(work)
        return
    folder = Path(tempfile.mkdtemp(prefix="everyframe-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _silent(text: str) -> None:
    pass
