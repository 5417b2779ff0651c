"""What a residual tokenizer is worth on videos it was not fitted to, measured as it will be used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from everyframe.backbone import Model
from everyframe.encoders import DenseEncoder, ResidualTokenizer, ResidualViT
from everyframe.encoders.baselines import copy_features, interpolate_features
from everyframe.training.data import Clips
from everyframe.training.errors import TrainingError
from everyframe.video import VideoError


def split(clips: Clips, *, share: float = 0.05, most: int = 64, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Clips to train on and clips held out, as indices.

    Whole videos are held out where there are at least 8; of fewer, the last tenth of the clips of each video (at
    least one of all), so that even one long video will do. Raises TrainingError for a single clip.
    """
    if len(clips) < 2:
        raise TrainingError("there is only one clip, and one must be held out: give more or longer videos")
    videos: dict[str, list[int]] = {}
    for index in range(len(clips)):
        videos.setdefault(clips.video(index), []).append(index)
    names = sorted(videos)
    if len(names) >= 8:
        order = np.random.default_rng([seed, 31]).permutation(len(names))
        chosen = [names[place] for place in order[: min(max(2, round(share * len(names))), most)]]
        held = [index for name in chosen for index in videos[name]]
    else:
        parts = [sorted(videos[name], key=clips.start) for name in names]
        held = [index for part in parts for index in part[len(part) - len(part) // 10 :]]
        held = held or [max(parts, key=len)[-1]]
    held_out = np.array(sorted(held))
    return np.setdiff1d(np.arange(len(clips)), held_out), held_out


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
                continue
            pixels = model.preprocess(frames)
            motion = None if maps is None else model.preprocess_motion(np.stack(maps), frames.shape[1:3])
            window = _Window(pixels, motion, dense.encode(pixels))
            self._windows.append(window)
            features = window.dense.cpu().numpy()
            parts["without"].append(self._cosines(self._without, window))
            parts["copy"].append(self._compare(copy_features(features, interleave), features))
            parts["interpolate"].append(self._compare(interpolate_features(features, times, interleave), features))
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
        with torch.no_grad():
            features = encoder.encode(window.pixels, window.motion)
        return self._compare(features.cpu().numpy(), window.dense.cpu().numpy())

    def _compare(self, features: np.ndarray, dense: np.ndarray) -> np.ndarray:
        """Cosines of the P-frames' rows."""
        rows = np.array([place for place, role in enumerate(self._without.roles(len(dense))) if role == "P"])
        return (features[rows] * dense[rows]).sum(1)
