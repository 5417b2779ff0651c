"""What a residual tokenizer is worth on videos it was not fitted to, measured as it will be used."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from everyframe.backbone import Model
from everyframe.encoders import DenseEncoder, ResidualTokenizer, ResidualViT
from everyframe.encoders.baselines import copy_features, fidelity, interpolate_features
from everyframe.training.data import Clips
from everyframe.training.errors import TrainingError
from everyframe.video import VideoError


def split(clips: Clips, *, share: float = 0.05, most: int = 64, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Clips to train on and clips held out, as indices; no second of any video is in both.

    Whole videos are held out where there are at least 8. Of fewer, the last tenth of the clips of each video (at
    least one of all), so that even one long video will do; clips that reach into those are left out of both. Where
    that leaves less than half of the clips, the video with the fewest is held out whole instead.

    Raises TrainingError for a single clip, and for one video of which every clip reaches into the last.
    """
    if len(clips) < 2:
        raise TrainingError("there is only one clip, and one must be held out: give more or longer videos")
    numbers = video_numbers(clips)
    videos, sizes = np.unique(numbers, return_counts=True)
    if len(videos) >= 8:
        order = np.random.default_rng([seed, 31]).permutation(len(videos))
        return _whole(numbers, videos[order[: min(max(2, round(share * len(videos))), most)]])
    parts = [sorted(np.flatnonzero(numbers == video).tolist(), key=clips.start) for video in videos]
    counts = [len(part) // 10 for part in parts]
    if not any(counts):
        counts[int(sizes.argmax())] = 1
    training: list[int] = []
    held_out: list[int] = []
    for part, count in zip(parts, counts, strict=True):
        held = part[len(part) - count :]
        # Clips are sorted by their start, and windows go on from there, so only this one border matters.
        border = clips.start(held[0]) if held else math.inf
        training += [index for index in part[: len(part) - count] if clips.end(index) <= border]
        held_out += held
    if 2 * len(training) < len(clips) and len(videos) > 1:
        return _whole(numbers, videos[[sizes.argmin()]])
    if not training:
        raise TrainingError(
            f"all {len(clips)} clips are of one video and reach into the last of them, so that none can be held out: "
            "give more videos, or a table with the start and end of each clip"
        )
    return np.array(sorted(training)), np.array(sorted(held_out))


def video_numbers(clips: Clips) -> np.ndarray:
    """int64 [n]: the number of each clip's video."""
    return np.fromiter((clips.video_number(index) for index in range(len(clips))), np.int64, len(clips))


def _whole(numbers: np.ndarray, videos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    held_out = np.isin(numbers, videos)
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


@dataclass(frozen=True)
class _Window:
    pixels: Tensor
    motion: Tensor | None
    dense: Tensor


class HeldOut:
    """Windows of held-out videos at `fps`, two groups and an I-frame long, and what they are encoded to.

    `scores` gives the cosine of P-features to the dense ones, mean and 5th percentile: with the tokenizer, without
    any, and for the baselines that cost nothing, copy and interpolate.
    """

    def __init__(
        self,
        model: Model,
        clips: Clips,
        indices: np.ndarray,
        *,
        interleave: int,
        drop: float,
        select: str,
        fps: float,
        most: int,
        seed: int,
        on_failure: Callable[[str], None] = lambda message: None,
    ) -> None:
        self._without = ResidualViT(model, interleave, drop, select, None)
        self._options = (model, interleave, drop, select)
        self._windows: list[_Window] = []
        self.baselines: dict[str, np.ndarray] = {}
        dense = DenseEncoder(model)
        order = np.random.default_rng([seed, 37]).permutation(indices)
        short = 0
        seconds = (2 * interleave + 3) / fps
        parts: dict[str, list[np.ndarray]] = {"without": [], "copy": [], "interpolate": []}
        for index in order:
            if len(self._windows) == most:
                break
            try:
                frames, maps, times = clips.window(int(index), seconds=seconds, fps=fps, motion=select == "motion")
            except VideoError as error:
                on_failure(str(error))  # another takes its place
                continue
            if len(frames) < 2:
                short += 1
                continue
            pixels = model.preprocess(frames)
            motion = None if maps is None else model.preprocess_motion(np.stack(maps), frames.shape[1:3])
            window = _Window(pixels, motion, dense.encode(pixels))
            self._windows.append(window)
            features = window.dense.cpu().numpy()
            parts["without"].append(self._cosines(self._without, window))
            parts["copy"].append(self._compare(copy_features(features, interleave), features))
            parts["interpolate"].append(self._compare(interpolate_features(features, times, interleave), features))
        if not self._windows and short:
            raise TrainingError(
                f"each of the {short} held-out windows that can be read shows less than 2 frames in {seconds:.3g} s, "
                f"at {fps:g} per second: give longer videos, or another --fps"
            )
        if not self._windows:
            raise TrainingError("none of the held-out clips can be read; check the videos with everyframe info")
        self.baselines = {name: np.concatenate(values) for name, values in parts.items()}

    def __len__(self) -> int:
        return len(self._windows)

    def scores(self, tokenizer: ResidualTokenizer) -> dict[str, float]:
        """Mean and 5th percentile ("_p5") of the cosines of each way."""
        encoder = ResidualViT(*self._options, tokenizer)
        cosines = {
            "with": np.concatenate([self._cosines(encoder, window) for window in self._windows]),
            **self.baselines,
        }
        result = {name: float(values.mean()) for name, values in cosines.items()}
        return result | {f"{name}_p5": float(np.percentile(values, 5)) for name, values in cosines.items()}

    def _cosines(self, encoder: ResidualViT, window: _Window) -> np.ndarray:
        features = encoder.encode(window.pixels, window.motion)
        return self._compare(features.cpu().numpy(), window.dense.cpu().numpy())

    def _compare(self, features: np.ndarray, dense: np.ndarray) -> np.ndarray:
        """Cosines of the P-frames' rows."""
        rows = np.array([place for place, role in enumerate(self._without.roles(len(dense))) if role == "P"])
        return fidelity(features[rows], dense[rows])
