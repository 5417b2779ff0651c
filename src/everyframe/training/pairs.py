"""Captioned videos as fine-tuning reads them: which frames of a video, each decoded once, and what is held out.

F frames of a video, S side of the model's picture, V videos, L tokens of a text.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from everyframe import cpu
from everyframe.backbone import Model
from everyframe.backbone.text import Tokenizer
from everyframe.training.errors import TrainingError
from everyframe.video import VideoError, probe, sample_clip, second_frames

_MISSING, _READY, _FAILED = 0, 1, 2
_LAYOUT = 1  # of the arrays on disk, and which frames are taken; files of another one are made anew
_HELD_OUT, _MOST_HELD_OUT = 0.05, 1000


@dataclass(frozen=True)
class Segment:
    """A video, or the part of it within [start, end) seconds."""

    video: str
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True)
class Pair:
    """A video and one caption of it."""

    video: str | Path
    caption: str
    start: float | None = None
    """First second that the caption is about; None for the beginning."""
    end: float | None = None
    """The second where that ends; None for the end of the video."""

    @property
    def segment(self) -> Segment:
        return Segment(str(self.video), self.start, self.end)


class Pairs:
    """Captioned videos, each video once: `segments` [V], `captions` and the number of each caption's video in `of`."""

    def __init__(self, pairs: Iterable[Pair]) -> None:
        numbers: dict[Segment, int] = {}
        kept = list(pairs)
        self.of = np.array([numbers.setdefault(pair.segment, len(numbers)) for pair in kept], dtype=np.int64)
        self.captions = [" ".join(pair.caption.split()) for pair in kept]
        self.segments = list(numbers)

    def __len__(self) -> int:
        return len(self.captions)

    @property
    def fingerprint(self) -> str:
        """16 hex digits of names, sizes, parts and captions, not of the folder that the videos lie in."""
        digest = hashlib.sha256()
        for segment in self.segments:
            path = Path(segment.video)
            size = path.stat().st_size if path.is_file() else 0
            digest.update(f"{path.name} {size} {segment.start} {segment.end}\n".encode("utf-8", "surrogateescape"))
        digest.update(self.of.tobytes())
        digest.update("\n".join(self.captions).encode("utf-8", "surrogateescape"))
        return digest.hexdigest()[:16]


def usable_pairs(
    pairs: Iterable[Pair | tuple[str | Path, str]], on_failure: Callable[[str], None], *, together: bool = False
) -> list[Pair]:
    """The pairs that have a caption and a video that is there; `on_failure` is told of the others.

    together: pairs 2k and 2k + 1 make a couple, which is kept whole or not at all.

    Raises TypeError for what is neither a Pair nor (video, caption), TrainingError for couples of an odd number.
    """
    kept: list[Pair | None] = []
    there: dict[str, bool] = {}
    for number, given in enumerate(pairs):
        pair = given if isinstance(given, Pair) else _as_pair(given, number)
        video = str(pair.video)
        if video not in there:
            there[video] = os.path.exists(video)
            if not there[video]:
                on_failure(f"{video}: no such file")
        usable = there[video]
        if usable and not pair.caption.strip():
            on_failure(f"{video}: has an empty caption")
            usable = False
        kept.append(pair if usable else None)
    if not together:
        return [pair for pair in kept if pair is not None]
    if len(kept) % 2:
        raise TrainingError(
            f"together (--together) needs an even number of captioned videos, as every two that follow each other make "
            f"a couple, got {len(kept)}: add the partner that is missing, or leave the option out"
        )
    return whole_couples(kept, on_failure)


def whole_couples(pairs: Sequence[Pair | None], on_failure: Callable[[str], None]) -> list[Pair]:
    """The pairs whose partner, 2k of 2k + 1 and the other way round, is not None; `on_failure` is told of the others.

    The last of an odd number has no partner and stays.
    """
    kept: list[Pair] = []
    for number, pair in enumerate(pairs):
        if pair is None:
            continue
        if number ^ 1 < len(pairs) and pairs[number ^ 1] is None:
            on_failure(f"{pair.video}: {pair.caption!r} is left out, as the other of its couple cannot be used")
        else:
            kept.append(pair)
    return kept


def _as_pair(given: Any, number: int) -> Pair:
    if isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], (str, Path)) and isinstance(given[1], str):
        return Pair(*given)
    raise TypeError(f"pairs[{number}] must be (video, caption) or a Pair, got {given!r}")


def hold_out(pairs: Sequence[Pair], seed: int, *, together: bool = False) -> tuple[list[Pair], list[Pair]]:
    """Pairs to train on and pairs to validate with; no video is in both.

    A twentieth of the videos is held out with all captions: at least 8, of fewer than 32 a quarter; at most 1000.
    together: pairs 2k and 2k + 1 are on the same side, next to each other as they were; a few more videos may be held
    out then. Raises TrainingError for fewer than 4 videos and where couples leave nothing to train on, ValueError for
    a negative seed.
    """
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    videos = list(dict.fromkeys(str(pair.video) for pair in pairs))
    if len(videos) < 4:
        raise TrainingError(
            f"{len(videos)} video{'s are' if len(videos) != 1 else ' is'} too few to hold some out: give at least 4, "
            "or captioned videos to validate with (validation, --validation)"
        )
    count = min(max(2, round(_HELD_OUT * len(videos)), min(8, len(videos) // 4)), _MOST_HELD_OUT)
    groups = _inseparable(pairs if together else (), videos)
    held: set[str] = set()
    for number in np.random.default_rng([seed, 31]).permutation(len(groups)):
        if len(held) < count:
            held.update(groups[number])
    if len(held) == len(videos):
        raise TrainingError(
            f"couples tie all {len(videos)} videos to each other, so none can be held out: give captioned videos to "
            "validate with (validation, --validation)"
        )
    return (
        [pair for pair in pairs if str(pair.video) not in held],
        [pair for pair in pairs if str(pair.video) in held],
    )


def _inseparable(coupled: Sequence[Pair], videos: Sequence[str]) -> list[list[str]]:
    """The videos in groups that couples 2k, 2k + 1 tie together; one of its own for each video that is in none."""
    group_of = {video: [video] for video in videos}
    for one, other in zip(coupled[::2], coupled[1::2], strict=False):
        mine, theirs = group_of[str(one.video)], group_of[str(other.video)]
        if mine is not theirs:
            mine += theirs
            group_of |= dict.fromkeys(theirs, mine)
    return list({id(group): group for group in group_of.values()}.values())


def shuffled(count: int, rng: np.random.Generator, *, together: bool = False) -> np.ndarray:
    """int64 [count] 0..count-1 in a random order. together: 2k is always followed by 2k + 1; count is even then."""
    if not together:
        return rng.permutation(count)
    return (2 * rng.permutation(count // 2)[:, None] + np.arange(2)).ravel()


def token_ids(model: Model, captions: Sequence[str], longest: int) -> tuple[Tensor, int]:
    """Token ids int32 [n, L], L <= longest, and how many captions were cut to that.

    As published: what does not fit is dropped, and the last token is the end of the text.
    """
    if model.folder is None or model.text is None:
        raise TrainingError(f"{model.name} has no tokenizer or no text tower")
    tokenizer, config = Tokenizer(model.folder, model.text.config), model.text.config
    longest = min(longest, config.context)
    parts, cut = [], 0
    for first in range(0, len(captions), 4096):
        with warnings.catch_warnings(record=True) as caught:  # one for each text that is longer than the context
            warnings.simplefilter("always")
            ids, _ = tokenizer(captions[first : first + 4096])
        end = int(ids.max()) if config.end_is_highest else int(config.end_token or 0)
        length = (ids == end).int().argmax(dim=1) + 1
        cut += len(caught) if longest == config.context else int((length > longest).sum())
        # What follows the end does not matter in a causal tower: more ends, so that it can be cut off again.
        whole = torch.full((len(ids), longest), end, dtype=torch.int32)
        width = min(longest, ids.shape[1])
        own = torch.arange(width) < (length - 1).clamp(max=longest - 1)[:, None]
        whole[:, :width][own] = ids[:, :width][own].int()
        parts.append(whole)
    whole = torch.cat(parts)
    used = int((whole == whole[:, -1:]).int().argmax(dim=1).max()) + 1
    return whole[:, :used].contiguous(), cut


class FrameStore:
    """The chosen frames of videos as the model takes them, in bytes; decoded in threads ahead of their use.

    folder: where they are kept once decoded; None decodes them anew each time. on_failure: told of every video that
    cannot be read, once. on_short: told of every one that shows fewer than F frames, some of which then repeat.
    """

    def __init__(
        self,
        model: Model,
        segments: Sequence[Segment],
        frames: int,
        *,
        folder: Path | None,
        fingerprint: str,
        on_failure: Callable[[str], None],
        on_short: Callable[[str], None] = lambda video: None,
        workers: int | None = None,
    ) -> None:
        self._model, self._segments, self._frames = model, segments, frames
        self._on_failure, self._on_short = on_failure, on_short
        self._ahead: dict[int, Future[tuple[np.ndarray, bool]]] = {}
        self._failed: set[int] = set()
        self._kept: np.ndarray | None = None
        if folder is not None:
            self._open(folder, fingerprint)
        self._threads = ThreadPoolExecutor(workers or min(cpu.count(), 16))

    def prefetch(self, numbers: Iterable[int]) -> None:
        """Start to decode these videos, unless they are there."""
        for number in numbers:
            known = self._kept is not None and self._state[number] != _MISSING
            if not known and number not in self._ahead and number not in self._failed:
                self._ahead[number] = self._threads.submit(self._decode, number)

    def read(self, numbers: Iterable[int]) -> dict[int, np.ndarray]:
        """uint8 [F, 3, S, S] (`model.unpack`) of those that can be read."""
        wanted = sorted(set(numbers))
        self.prefetch(wanted)
        found: dict[int, np.ndarray] = {}
        new: list[int] = []
        for number in wanted:
            if self._kept is not None and self._state[number] == _READY:
                found[number] = np.array(self._kept[number])
            future = self._ahead.pop(number, None)
            if future is None:
                continue
            try:
                found[number], short = future.result()
            except VideoError as error:
                self._on_failure(str(error))
                self._failed.add(number)
                if self._kept is not None:
                    self._state[number] = _FAILED
                continue
            if short:
                self._on_short(self._segments[number].video)
            new.append(number)
        if self._kept is not None and new:
            for number in new:
                self._kept[number] = found[number]
            self._kept.flush()  # type: ignore[attr-defined]
            self._state[new] = _READY  # only now: a killed process leaves no half of a video that counts
        return found

    def close(self) -> None:
        """Stop reading ahead. What was kept stays."""
        self._threads.shutdown(cancel_futures=True)

    def _decode(self, number: int) -> tuple[np.ndarray, bool]:
        segment = self._segments[number]
        fps = probe(segment.video).average_fps
        clip = sample_clip(
            segment.video,
            self._frames,
            start=segment.start,
            end=segment.end,
            choose=lambda num_frames, count: second_frames(num_frames, count, fps=fps),
        )
        packed = self._model.pack(self._model.preprocess(clip.frames).cpu())
        return packed.numpy(), clip.num_frames < self._frames

    def _open(self, folder: Path, fingerprint: str) -> None:
        side, count = self._model.image_size, len(self._segments)
        shape = (count, self._frames, 3, side, side)
        settings = json.dumps(self._model.preprocess_settings, sort_keys=True)
        identity = {"layout": _LAYOUT, "videos": fingerprint, "shape": list(shape), "preprocess": settings}
        note = folder / "frames.json"
        if folder.exists() and (not note.is_file() or json.loads(note.read_text(encoding="utf-8")) != identity):
            shutil.rmtree(folder)
        new = not note.is_file()
        folder.mkdir(parents=True, exist_ok=True)
        needed, free = math.prod(shape), shutil.disk_usage(folder).free
        if new and needed > free:  # a full disk under a memory map is not an error but the end of the process
            raise TrainingError(
                f"{folder}: keeping the frames while it runs may take {needed / 2**30:.1f} GiB, and "
                f"{free / 2**30:.1f} GiB are free; use --fresh, which keeps none, or another --out"
            )
        mode: Any = "w+" if new else "r+"
        self._kept = np.lib.format.open_memmap(folder / "frames.npy", mode, np.uint8 if new else None, shape)
        self._state = np.lib.format.open_memmap(folder / "state.npy", mode, np.uint8 if new else None, (count,))
        if new:
            note.write_text(json.dumps(identity), encoding="utf-8")
