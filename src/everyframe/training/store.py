"""Clips as training wants them: the P-frames' bytes, the teacher's features and the captions' features.

Decoding four frames and running the full transformer on them costs several times the training step itself, and
neither changes from epoch to epoch. So each clip is decoded once and its bytes and features kept on disk.
n clips, F frames each, K = F - 1 P-frames, S image side, D width of the joint space.
"""

from __future__ import annotations

import json
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

from everyframe import cpu
from everyframe.backbone import Model
from everyframe.encoders import DenseEncoder
from everyframe.training.data import Clips, clip_name
from everyframe.training.errors import TrainingError
from everyframe.video import VideoError

Place = tuple[int, int]
"""A clip's index and the epoch in which it is wanted."""

_MISSING, _READY, _FAILED = 0, 1, 2
_MAX_REPLACEMENTS = 50
_LAYOUT = 2  # of the arrays on disk, and how starts are drawn; files of another one are made anew


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
class _Decoded:
    packed: Tensor
    """uint8 [F, 3, S, S]"""
    caption: str
    seconds: float


@dataclass(frozen=True)
class _Ready:
    frames: np.ndarray
    teacher: np.ndarray
    text: np.ndarray | None
    seconds: float


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
        self._threads = ThreadPoolExecutor(workers or min(cpu.count(), 16))
        self._ahead: dict[Place, Future[_Decoded]] = {}
        self._failed: set[Place] = set()
        self._kept = None if folder is None else _Kept(model, clips, folder, seed, with_texts)

    def prefetch(self, places: Sequence[Place]) -> None:
        """Start to decode these clips, unless they are there."""
        for place in self._keys(places):
            if place in self._ahead or place in self._failed:
                continue
            if self._kept is None or self._kept.state[place[0]] == _MISSING:
                self._ahead[place] = self._threads.submit(self._decode, *place)

    def batch(self, places: Sequence[Place]) -> Batch:
        """These clips; one that cannot be read is replaced by another, chosen from the seed.

        Raises TrainingError when nothing that can be read is found.
        """
        wanted = self._keys(places)
        ready: dict[Place, _Ready] = {}
        for attempt in range(_MAX_REPLACEMENTS):
            self._read({place for place in wanted if place not in ready}, ready)
            missing = [row for row, place in enumerate(wanted) if place not in ready]
            if not missing:
                break
            for row in missing:
                index, epoch = wanted[row]
                rng = np.random.default_rng([self._seed, epoch, index, attempt])
                wanted[row] = int(rng.choice(self._pool)), epoch
        else:
            raise TrainingError(
                f"{len(missing)} clips of a batch cannot be read, nor any of {_MAX_REPLACEMENTS} tried in place of "
                "each; failures.txt lists why: check the videos with everyframe info"
            )
        rows = [ready[place] for place in wanted]
        texts = [row.text for row in rows if row.text is not None]
        return Batch(
            frames=torch.from_numpy(np.stack([row.frames for row in rows])),
            teacher=torch.from_numpy(np.stack([row.teacher for row in rows])).to(self._model.device),
            texts=torch.from_numpy(np.stack(texts)).to(self._model.device) if self._with_texts else None,
            names=[clip_name(self._clips.video(place[0]), ready[place].seconds) for place in wanted],
        )

    def close(self) -> None:
        """Stop reading ahead. What was kept stays."""
        self._threads.shutdown(cancel_futures=True)

    def _keys(self, places: Sequence[Place]) -> list[Place]:
        """Where clips are kept, every epoch is the first."""
        return [(int(index), int(epoch) if self._kept is None else 0) for index, epoch in places]

    def _read(self, places: set[Place], ready: dict[Place, _Ready]) -> None:
        """Put what can be read of `places` into `ready`; the teacher reads all new ones together."""
        kept = self._kept
        for place in sorted(places):
            if kept is not None and kept.state[place[0]] == _READY:
                ready[place] = kept.get(place[0])
        new = [place for place in sorted(places) if place not in ready and place not in self._failed]
        self.prefetch(new)
        decoded: list[tuple[Place, _Decoded]] = []
        for place in new:
            future = self._ahead.pop(place, None)
            if future is None:
                continue  # kept as failed by an earlier run
            try:
                decoded.append((place, future.result()))
            except VideoError as error:
                self._on_failure(str(error))
                self._failed.add(place)
                if kept is not None:
                    kept.state[place[0]] = _FAILED
        if not decoded:
            return
        count = self._clips.frames
        texts: list[Any] = [None] * len(decoded)
        if self._with_texts:
            texts = list(encode_texts(self._model, [clip.caption for _, clip in decoded]).cpu().numpy())
        # As bytes until they are read: as numbers a batch of 2048 clips would take 5 GB.
        together = max(1, self._teacher.batch_size // count)
        for first in range(0, len(decoded), together):
            some = decoded[first : first + together]
            pixels = self._model.unpack(torch.cat([clip.packed for _, clip in some]).to(self._model.device))
            teacher = self._teacher.encode(pixels).cpu().numpy().reshape(len(some), count, -1)
            for (place, clip), features, text in zip(some, teacher, texts[first:], strict=False):
                # Frame 0 is the I-frame: once the teacher has read it, its pixels are of no use.
                ready[place] = _Ready(clip.packed[1:].numpy(), features, text, clip.seconds)
        if kept is not None:
            kept.put({place[0]: ready[place] for place, _ in decoded})

    def _decode(self, index: int, epoch: int) -> _Decoded:
        clip = self._clips.load(index, clip_seed(self._seed, epoch, index))
        # Its frames end here: those of a 1080p clip are 25 MB, and two batches are on their way at any time.
        return _Decoded(self._model.pack(self._model.preprocess(clip.frames)), clip.caption or "", clip.seconds)


def clip_seed(seed: int, epoch: int, index: int) -> int:
    """What a clip's start is drawn from: other seeds and epochs never share it but by chance."""
    return int(np.random.SeedSequence([seed, epoch, index]).generate_state(1, np.uint64)[0])


class _Kept:
    """The arrays on disk, by clip. A clip counts only once its state says so, and that is written after the clip has
    reached the disk: neither a killed process nor a power failure leaves half a clip that counts.
    """

    def __init__(self, model: Model, clips: Clips, folder: Path, seed: int, with_texts: bool) -> None:
        self.folder = folder
        identity = {
            "layout": _LAYOUT,
            "clips": clips.fingerprint,
            "model": model.weights_sha256,
            "dtype": model.precision,
            "seed": seed,
            "texts": with_texts,
        }
        note = folder / "clips.json"
        if folder.exists() and (not note.is_file() or json.loads(note.read_text(encoding="utf-8")) != identity):
            shutil.rmtree(folder)  # an error ends the run: what stays would be taken for clips of this one
        new = not note.is_file()
        folder.mkdir(parents=True, exist_ok=True)
        needed, free = bytes_per_clip(model, clips.frames) * len(clips), shutil.disk_usage(folder).free
        if new and needed > free:  # a full disk under a memory map is not an error but the end of the process
            raise TrainingError(
                f"{folder}: keeping the clips while it runs may take {needed / 2**30:.1f} GiB, and "
                f"{free / 2**30:.1f} GiB are free; use --fresh, which keeps none, or another --out"
            )
        side, count = model.image_size, len(clips)

        def array(name: str, dtype: Any, *shape: int) -> np.memmap:
            file = folder / f"{name}.npy"
            if new:
                return np.lib.format.open_memmap(file, "w+", dtype, (count, *shape))
            return np.lib.format.open_memmap(file, "r+")

        self.frames = array("frames", np.uint8, clips.frames - 1, 3, side, side)
        self.teacher = array("teacher", np.float32, clips.frames, model.dim)
        self.texts = array("texts", np.float32, model.dim) if with_texts else None
        self.seconds = array("seconds", np.float64)
        self.state = array("state", np.uint8)
        if new:
            note.write_text(json.dumps(identity), encoding="utf-8")

    def get(self, index: int) -> _Ready:
        text = None if self.texts is None else np.array(self.texts[index])
        return _Ready(np.array(self.frames[index]), np.array(self.teacher[index]), text, float(self.seconds[index]))

    def put(self, clips: dict[int, _Ready]) -> None:
        for index, clip in clips.items():
            self.frames[index], self.teacher[index], self.seconds[index] = clip.frames, clip.teacher, clip.seconds
            if self.texts is not None:
                self.texts[index] = clip.text
        for values in (self.frames, self.teacher, self.texts, self.seconds):
            if values is not None:
                values.flush()
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
