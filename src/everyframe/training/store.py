"""Clips as training wants them: the P-frames' bytes, the teacher's features and the captions' features.

Decoding four frames and running the full transformer on them costs several times the training step itself, and
neither changes from epoch to epoch. So each clip is decoded once and its bytes and features kept on disk.
n clips, F frames each, K = F - 1 P-frames, S image side, D width of the joint space.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from everyframe.backbone import Model
from everyframe.encoders import DenseEncoder
from everyframe.training.data import Clip, Clips
from everyframe.training.errors import TrainingError
from everyframe.video import VideoError

_MISSING, _READY, _FAILED = 0, 1, 2
_MAX_REPLACEMENTS = 50


@dataclass(frozen=True)
class Batch:
    """One process's part of a batch of b clips."""

    frames: Tensor
    """uint8 [b, K, 3, S, S]: P-frames, packed (`model.unpack`)."""
    teacher: Tensor
    """float32 [b, F, D]: the full transformer's features, unit rows."""
    texts: Tensor | None
    """float32 [b, D]: features of the captions, unit rows; None without captions."""
    names: list[str]


@dataclass(frozen=True)
class _Ready:
    frames: np.ndarray
    teacher: np.ndarray
    text: np.ndarray | None
    name: str


class ClipStore:
    """Reads clips in threads ahead of their use; keeps what they become in `folder`, or (None) nothing.

    pool: the indices that may take the place of a clip that cannot be read. seed: decides where clips start, the
    same in every epoch with a folder, else anew in each. on_failure: told of every such clip once.
    """

    def __init__(
        self,
        model: Model,
        clips: Clips,
        *,
        pool: np.ndarray,
        seed: int,
        folder: Path | None,
        with_texts: bool,
        on_failure: Callable[[str], None],
        workers: int | None = None,
    ) -> None:
        self._model, self._clips, self._pool, self._seed = model, clips, pool, seed
        self._with_texts, self._on_failure = with_texts, on_failure
        self._teacher = DenseEncoder(model)
        self._threads = ThreadPoolExecutor(workers or min(os.cpu_count() or 1, 16))
        self._ahead: dict[tuple[int, int], Future[tuple[Clip, Tensor]]] = {}
        self._failed: set[tuple[int, int]] = set()
        self._kept = None if folder is None else _Kept(model, clips, folder, seed, with_texts)

    def prefetch(self, indices: Sequence[int], epoch: int) -> None:
        """Start to decode these clips, unless they are there."""
        epoch = 0 if self._kept is not None else epoch
        for index in indices:
            key = (int(index), epoch)
            if key in self._ahead or key in self._failed:
                continue
            if self._kept is None or self._kept.state[key[0]] == _MISSING:
                self._ahead[key] = self._threads.submit(self._decode, *key)

    def batch(self, indices: Sequence[int], epoch: int) -> Batch:
        """These clips; one that cannot be read is replaced by another, chosen from the seed.

        Raises TrainingError when nothing that can be read is found.
        """
        epoch = 0 if self._kept is not None else epoch
        wanted = [int(index) for index in indices]
        ready: dict[int, _Ready] = {}
        for attempt in range(_MAX_REPLACEMENTS):
            self._read({index for index in wanted if index not in ready}, epoch, ready)
            missing = [place for place, index in enumerate(wanted) if index not in ready]
            if not missing:
                break
            for place in missing:
                rng = np.random.default_rng([self._seed, epoch, wanted[place], attempt])
                wanted[place] = int(rng.choice(self._pool))
        else:
            raise TrainingError(
                f"{len(missing)} clips of a batch cannot be read, nor any of {_MAX_REPLACEMENTS} tried in place of "
                "each; failures.txt lists why: check the videos with everyframe info"
            )
        rows = [ready[index] for index in wanted]
        texts = [row.text for row in rows if row.text is not None]
        return Batch(
            frames=torch.from_numpy(np.stack([row.frames for row in rows])),
            teacher=torch.from_numpy(np.stack([row.teacher for row in rows])).to(self._model.device),
            texts=torch.from_numpy(np.stack(texts)).to(self._model.device) if self._with_texts else None,
            names=[row.name for row in rows],
        )

    def close(self) -> None:
        """Stop reading ahead. What was kept stays."""
        self._threads.shutdown(cancel_futures=True)

    def _read(self, indices: set[int], epoch: int, ready: dict[int, _Ready]) -> None:
        """Put what can be read of `indices` into `ready`; the teacher reads all new ones together."""
        kept = self._kept
        for index in sorted(indices):
            if kept is not None and kept.state[index] == _READY:
                ready[index] = kept.get(index, self._clips.video(index))
        new = [index for index in sorted(indices) if index not in ready and (index, epoch) not in self._failed]
        self.prefetch([index for index in new if kept is None or kept.state[index] == _MISSING], epoch)
        decoded: list[tuple[int, Clip, Tensor]] = []
        for index in new:
            future = self._ahead.pop((index, epoch), None)
            if future is None:
                continue  # kept as failed by an earlier run
            try:
                decoded.append((index, *future.result()))
            except VideoError as error:
                self._on_failure(str(error))
                self._failed.add((index, epoch))
                if kept is not None:
                    kept.state[index] = _FAILED
        if not decoded:
            return
        count = self._clips.frames
        texts: list[Any] = [None] * len(decoded)
        if self._with_texts:
            texts = list(encode_texts(self._model, [clip.caption or "" for _, clip, _ in decoded]).cpu().numpy())
        # As bytes until they are read: as numbers a batch of 2048 clips would take 5 GB.
        together = max(1, self._teacher.batch_size // count)
        for first in range(0, len(decoded), together):
            some = decoded[first : first + together]
            pixels = self._model.unpack(torch.cat([packed for *_, packed in some]).to(self._model.device))
            teacher = self._teacher.encode(pixels).cpu().numpy().reshape(len(some), count, -1)
            for (index, clip, packed), features, text in zip(some, teacher, texts[first:], strict=False):
                # Frame 0 is the I-frame: once the teacher has read it, its pixels are of no use.
                ready[index] = _Ready(packed[1:].numpy(), features, text, clip.name)
        if kept is not None:
            kept.put({index: ready[index] for index, *_ in decoded})

    def _decode(self, index: int, epoch: int) -> tuple[Clip, Tensor]:
        clip = self._clips.load(index, self._seed + epoch)
        return clip, self._model.pack(self._model.preprocess(clip.frames))


class _Kept:
    """The arrays on disk, by clip. A clip counts only once its state says so, so a killed run loses nothing."""

    def __init__(self, model: Model, clips: Clips, folder: Path, seed: int, with_texts: bool) -> None:
        self.folder = folder
        identity = {
            "clips": clips.fingerprint,
            "model": model.weights_sha256,
            "dtype": str(model.dtype),
            "seed": seed,
            "texts": with_texts,
        }
        note = folder / "clips.json"
        if not note.is_file() or json.loads(note.read_text(encoding="utf-8")) != identity:
            shutil.rmtree(folder, ignore_errors=True)
        new = not note.is_file()
        folder.mkdir(parents=True, exist_ok=True)
        needed, free = bytes_per_clip(model, clips.frames) * len(clips), shutil.disk_usage(folder).free
        if new and needed > free:  # a full disk under a memory map is not an error but the end of the process
            raise TrainingError(
                f"{folder}: keeping the clips while it runs may take {needed / 2**30:.1f} GiB, and "
                f"{free / 2**30:.1f} GiB are free; use --fresh, which keeps none, or another --out"
            )
        side, count = model.image_size, len(clips)

        def array(name: str, dtype: Any, *shape: int) -> np.ndarray:
            file = folder / f"{name}.npy"
            if new:
                return np.lib.format.open_memmap(file, "w+", dtype, (count, *shape))
            return np.lib.format.open_memmap(file, "r+")

        self.frames = array("frames", np.uint8, clips.frames - 1, 3, side, side)
        self.teacher = array("teacher", np.float32, clips.frames, model.dim)
        self.texts = array("texts", np.float32, model.dim) if with_texts else None
        self.state = array("state", np.uint8)
        if new:
            note.write_text(json.dumps(identity), encoding="utf-8")

    def get(self, index: int, name: str) -> _Ready:
        text = None if self.texts is None else np.array(self.texts[index])
        return _Ready(np.array(self.frames[index]), np.array(self.teacher[index]), text, name)

    def put(self, clips: dict[int, _Ready]) -> None:
        for index, clip in clips.items():
            self.frames[index], self.teacher[index] = clip.frames, clip.teacher
            if self.texts is not None:
                self.texts[index] = clip.text
        # All or none: the last bits of the teacher's features depend on what it read together, and a resumed
        # run must read the same together again.
        self.state[list(clips)] = _READY


def encode_texts(model: Model, texts: Sequence[str]) -> Tensor:
    """`model.encode_text`, with one warning for all texts that are longer than the model's context."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        features = model.encode_text(texts)
    cut = [each for each in caught if " was cut to the model's " in str(each.message)]
    for each in caught:
        if each not in cut:
            warnings.warn(each.message, each.category, stacklevel=2)
    if cut:
        more = f"; so were {len(cut) - 1} more of {len(texts)}" if len(cut) > 1 else ""
        warnings.warn(f"{cut[0].message}{more}", UserWarning, stacklevel=2)
    return features


def bytes_per_clip(model: Model, frames: int) -> int:
    """What one clip takes on disk."""
    return (frames - 1) * 3 * model.image_size**2 + 4 * (frames + 1) * model.dim
