"""Features of any size for a PyTorch DataLoader: shuffled, in windows, and each sample once over all workers and ranks.

Files and shards are dealt out whole, in an order that changes with the epoch; the few that are left over when they do
not come out even are read by several workers, each of which takes other videos. Samples of some sources at a time go
through a buffer that hands them out at random.
"""

from __future__ import annotations

import gc
import itertools
import math
import os
import random
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from everyframe.features.shards import read_shard
from everyframe.features.sources import find_sources, is_shard, load_source
from everyframe.features.video_features import (
    FeaturesError,
    VideoFeatures,
    check_same_space,
    is_of_clips,
    space_of,
)

_EPSILON = 1e-6  # seconds; presentation times are rationals stored in float64
_MOST_WORKERS = 1024
Item = TypeVar("Item")
_Dealt = tuple[str, tuple[int, int]]
"""A source, and which of its videos: (k, n) takes every n-th from the k-th on."""


@dataclass(frozen=True, kw_only=True)
class StreamSettings:
    """See `stream`."""

    window: float | None = None
    stride: float | None = None
    shuffle: int = 1000
    buffer_bytes: int = 1 << 30
    at_once: int = 4
    seed: int = 0
    epochs: int | None = 1
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    header: bool = False
    on_error: Literal["raise", "skip"] = "raise"

    def __post_init__(self) -> None:
        if self.stride is not None and self.window is None:
            raise ValueError("stride has no meaning without window, which says how long a sample is")
        for name in ("window", "stride"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a positive number of seconds, got {value}")
        for name, least in (("shuffle", 0), ("buffer_bytes", 1), ("at_once", 1), ("seed", 0), ("epochs", 1)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < least):
                raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
        if self.dtype not in ("float32", "float16", "bfloat16"):
            raise ValueError(f"dtype must be float32, float16 or bfloat16, got {self.dtype!r}")
        if self.on_error not in ("raise", "skip"):
            raise ValueError(f'on_error must be "raise" or "skip", got {self.on_error!r}')


def stream(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    window: float | None = None,
    stride: float | None = None,
    shuffle: int = 1000,
    buffer_bytes: int = 1 << 30,
    at_once: int = 4,
    seed: int = 0,
    epochs: int | None = 1,
    dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    header: bool = False,
    on_error: Literal["raise", "skip"] = "raise",
    rank: int | None = None,
    world_size: int | None = None,
) -> FeatureStream:
    """An IterableDataset of the features in files and shards, to be given to a `torch.utils.data.DataLoader`.

    paths: feature files, `.tar` shards, folders of either, patterns, addresses; see `sources.find_sources`.
    window: seconds of video per sample, a new one every `stride` seconds (default: window); None takes whole videos.
        Windows lie at k * stride of the video's own time. The last is the first that reaches the video's end, and may
        be shorter; those without a frame are left out.
    shuffle: samples that a worker holds to draw from, at most `buffer_bytes` of them; 0 keeps the order of the paths.
    at_once: sources that a worker reads by turns where it shuffles; a long video then does not fill whole batches.
        Memory of a worker: the buffer, and one video of each of these.
    seed: with the epoch (`FeatureStream.set_epoch`) it decides the order; the same on all ranks.
    epochs: passes that one iteration makes, each in another order; None never ends, for training by steps (but for a
        worker that no epoch gives anything, where there are more of them than videos).
    dtype: of the embeddings. header: samples have the provenance of their video, too.
    on_error: "skip" passes over what is damaged, with a warning, and counts it (`FeatureStream.skipped`).
    rank, world_size: of this process among those that share the samples; by default those of torch.distributed, or
        the variables RANK and WORLD_SIZE. All need the same number of workers.

    A sample is a dict: embeddings [T, dim], times float64 [T] in seconds of the whole video, roles (one letter per
    frame), video (path as recorded), start and end (seconds, float), and header (dict) if asked for.
    `everyframe.features.collate` makes batches of them. Videos without frames give no sample. Ranks can get different
    numbers of samples: where that matters, train by steps with epochs=None.

    Raises FeaturesError for paths that hold nothing readable, and while iterating for damaged files and for features of
    different models; ValueError for arguments out of range; ImportError for a missing package.
    """
    settings = StreamSettings(
        window=window,
        stride=stride,
        shuffle=shuffle,
        buffer_bytes=buffer_bytes,
        at_once=at_once,
        seed=seed,
        epochs=epochs,
        dtype=dtype,
        header=header,
        on_error=on_error,
    )
    return FeatureStream(find_sources(paths), settings, rank=rank, world_size=world_size)


class FeatureStream(IterableDataset[dict[str, Any]]):
    """What `stream` gives. sources: files and shards, in the order in which they are dealt out without shuffling.

    dim: width of the embeddings. It and the model come from the first source that can be read, which is read at once:
    all others are compared with it.
    """

    def __init__(
        self,
        sources: Sequence[str],
        settings: StreamSettings,
        *,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        if (rank is None) != (world_size is None):
            raise ValueError("rank and world_size belong together: give both, or neither")
        if rank is not None and world_size is not None and not 0 <= rank < world_size:
            raise ValueError(f"rank must be in [0, world_size), got {rank} of {world_size}")
        self.sources = list(sources)
        self.settings = settings
        self._ranks_given = None if rank is None or world_size is None else (rank, world_size)
        self._ranks = (0, 1)
        self._ranks = self._find_ranks()
        # Shared, so that workers that live on see a new epoch, and this process what they pass over.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._skipped = torch.zeros(1 + _MOST_WORKERS, dtype=torch.int64).share_memory_()
        first = self._first()
        self._space, self._clips = space_of(first), is_of_clips(first)
        self.dim = first.dim

    @property
    def epoch(self) -> int:
        """The number of the next pass, which decides its order."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Begin the next iteration with this pass, on all ranks alike; call it before iterating over the loader."""
        if epoch < 0:
            raise ValueError(f"epoch must be 0 or more, got {epoch}")
        self._epoch.fill_(epoch)

    @property
    def skipped(self) -> int:
        """What was passed over so far with on_error="skip", in all workers of this process: files, videos of a shard,
        or the rest of a shard that is cut short."""
        return int(self._skipped.sum())

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info is not None else (0, 1)
        if info is not None and not gc.get_freeze_count():
            # A fork inherits its parent's garbage, whose finalizers (another loader's: "can only test a child process")
            # would run here, within whatever reads then: under Python 3.11.7 they broke the parser of an npy header.
            gc.freeze()
        rank, world_size = self._find_ranks()
        consumer, consumers = rank * workers + worker, world_size * workers
        first = self.epoch
        passes = itertools.count(first) if self.settings.epochs is None else range(first, first + self.settings.epochs)
        giving: _Dealt | None = None
        for epoch in passes:
            empty = True
            for sample in self._one_pass(epoch, consumer, consumers):
                empty = False
                yield self._sample(sample)
            if empty and self.settings.epochs is None:
                giving = self._what_gives(giving, consumer, consumers)
                if giving is None:
                    return

    def __getstate__(self) -> dict[str, Any]:
        # On its way to a worker that is not a fork, where torch.distributed knows nothing.
        return {**self.__dict__, "_ranks": self._find_ranks()}

    def _find_ranks(self) -> tuple[int, int]:
        if self._ranks_given is not None:
            return self._ranks_given
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        if get_worker_info() is None and "RANK" in os.environ and "WORLD_SIZE" in os.environ:
            return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        return self._ranks

    def _one_pass(self, epoch: int, consumer: int, consumers: int) -> Iterator[_Held]:
        settings = self.settings
        order: Iterable[int] = range(len(self.sources))
        if settings.shuffle:
            order = np.random.default_rng([settings.seed, epoch]).permutation(len(self.sources))
        dealt = deal([self.sources[int(index)] for index in order], consumer, consumers)
        opened = (self._samples(source, share) for source, share in dealt)
        rng = random.Random(f"{settings.seed}/{epoch}/{consumer}")
        samples = by_turns(opened, settings.at_once if settings.shuffle else 1, rng)
        return shuffled(samples, settings.shuffle, settings.buffer_bytes, rng)

    def _what_gives(self, before: _Dealt | None, consumer: int, consumers: int) -> _Dealt | None:
        """A source, and a share of it, that gives samples and falls to this consumer in some epoch; None without any.

        An epoch that left it empty tells nothing of the next where there are more workers than sources: it then gets
        the same share of another source. Only what no epoch can fill may end, and must: it would be waited for.
        before: the answer to the last call, which is looked at first.
        """
        if not self.settings.shuffle:  # every epoch is dealt alike
            return None
        shares = dict.fromkeys(share for _, share in deal(self.sources, consumer, consumers))
        possible = itertools.product(self.sources, shares)
        for dealt in possible if before is None else itertools.chain([before], possible):
            if next(self._samples(*dealt), None) is not None:
                return dealt
        return None

    def _samples(self, source: str, share: tuple[int, int]) -> Iterator[_Held]:
        for name, features in self._videos(source, share, self._failed):
            try:
                check_same_space(self._space, features)
                if self._clips != is_of_clips(features):
                    raise FeaturesError("features of frames and of clips cannot be mixed; stream them separately")
            except FeaturesError as error:  # never skipped: these are the wrong features, not damaged ones
                raise FeaturesError(f"{name}: {error}") from error
            yield from self._of_video(name, features)

    def _of_video(self, name: str, features: VideoFeatures) -> Iterator[_Held]:
        if not features.num_frames:
            return
        video = str(features.video.get("path", name))
        header = None
        if self.settings.header:
            header = {key: value for key, value in features.header().items() if key != "roles"}
        if self.settings.window is None:
            start, end = float(features.times[0]), float(features.frame_ends[-1])
            yield _Held(video, start, end, features.times, features.embeddings, features.roles, header)
            return
        stride = self.settings.stride or self.settings.window
        for start, end, first, past in windows(features, self.settings.window, stride):
            rows = slice(first, past)
            # Copies: a view in the buffer would keep the whole video.
            times, embeddings = features.times[rows].copy(), features.embeddings[rows].copy()
            yield _Held(video, start, end, times, embeddings, features.roles[rows], header)

    def _videos(self, source: str, share: tuple[int, int], failed: Any) -> Iterator[tuple[str, VideoFeatures]]:
        if is_shard(source):
            for key, features in read_shard(source, share=share, failed=failed):
                yield f"{source}#{key}", features
        elif share[0] == 0:
            try:
                features = load_source(source)
            except FeaturesError as error:
                failed(error)
            else:
                yield source, features

    def _failed(self, error: FeaturesError) -> None:
        if self.settings.on_error == "raise":
            raise error
        info = get_worker_info()
        self._skipped[0 if info is None else 1 + info.id % _MOST_WORKERS] += 1
        warnings.warn(f"{error}; passed over", UserWarning, stacklevel=2)

    def _first(self) -> VideoFeatures:
        """The first features there are; in "skip" the first that can be read."""
        errors: list[FeaturesError] = []

        def failed(error: FeaturesError) -> None:
            if self.settings.on_error == "raise":
                raise error
            errors.append(error)

        for source in self.sources:
            for _, features in self._videos(source, (0, 1), failed):
                return features
        if not errors:
            raise FeaturesError("there are no features to stream: no paths were given, or shards without videos")
        raise FeaturesError(f"no source can be read, the first because: {errors[0]}") from errors[0]

    def _sample(self, held: _Held) -> dict[str, Any]:
        sample: dict[str, Any] = {
            "embeddings": torch.from_numpy(held.embeddings).to(getattr(torch, self.settings.dtype)),
            "times": torch.from_numpy(held.times),
            "roles": held.roles,
            "video": held.video,
            "start": held.start,
            "end": held.end,
        }
        if held.header is not None:
            sample["header"] = held.header
        return sample


class _Held(NamedTuple):
    """A sample in the buffer: as stored, since float16 takes half."""

    video: str
    start: float
    end: float
    times: NDArray[np.float64]
    embeddings: NDArray[Any]
    roles: str
    header: dict[str, Any] | None

    @property
    def size(self) -> int:
        return self.times.nbytes + self.embeddings.nbytes


def deal(sources: Sequence[str], consumer: int, consumers: int) -> Iterator[_Dealt]:
    """The sources of one consumer, each with (k, n): of its videos it takes every n-th, from the k-th on.

    Every consumer gets as many whole sources; those left over are shared by all of them.
    """
    even = len(sources) // consumers * consumers
    for source in sources[consumer:even:consumers]:
        yield source, (0, 1)
    if left := len(sources) - even:
        place, turn = consumer % left, consumer // left
        yield sources[even + place], (turn, -(-(consumers - place) // left))


def by_turns(sources: Iterable[Iterator[Item]], at_once: int, rng: random.Random) -> Iterator[Item]:
    """All items, each from one of `at_once` sources picked at random; a source that ends makes room for the next."""
    waiting = iter(sources)
    opened = list(itertools.islice(waiting, at_once))
    while opened:
        which = rng.randrange(len(opened)) if len(opened) > 1 else 0
        try:
            yield next(opened[which])
        except StopIteration:
            del opened[which]
            opened.extend(itertools.islice(waiting, 1))


def shuffled(samples: Iterable[_Held], most: int, most_bytes: int, rng: random.Random) -> Iterator[_Held]:
    """All samples, drawn at random from at most `most` that are held at a time, and at most so many bytes of them."""
    held: list[_Held] = []
    size = 0
    for sample in samples:
        held.append(sample)
        size += sample.size
        while len(held) > most or (size > most_bytes and len(held) > 1):
            drawn = _draw(held, rng)
            size -= drawn.size
            yield drawn
    while held:
        yield _draw(held, rng)


def _draw(held: list[Item], rng: random.Random) -> Item:
    which = rng.randrange(len(held)) if len(held) > 1 else 0
    held[which], held[-1] = held[-1], held[which]
    return held.pop()


def windows(features: VideoFeatures, seconds: float, stride: float) -> Iterator[tuple[float, float, int, int]]:
    """(start, end, first row, row past the last) of each window of `seconds` at k * stride that has frames.

    They begin where the first frame is; the last is the first that reaches the end of the video, and ends there.
    """
    times, end = features.times, float(features.frame_ends[-1])
    number = math.floor((times[0] + _EPSILON) / stride)
    while (start := number * stride) < end - _EPSILON:
        first, past = (int(row) for row in np.searchsorted(times, np.array([start, start + seconds]) - _EPSILON))
        if past > first:
            yield start, min(start + seconds, end), first, past
        if start + seconds >= end - _EPSILON or first == len(times):
            return
        number += 1
        if past == first:  # over a gap in one step
            number = max(number, math.floor((times[first] - seconds) / stride))


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch of samples of `stream`, padded with zeros to the longest; for DataLoader(collate_fn=...).

    embeddings [B, T, dim], times float64 [B, T], mask bool [B, T] (True where there is a frame), lengths int64 [B],
    start and end float64 [B], in seconds; roles, video and header (where samples have one) are lists.
    """
    if not samples:
        raise ValueError("a batch needs at least one sample")
    lengths = torch.tensor([len(sample["times"]) for sample in samples])
    pad = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
    batch: dict[str, Any] = {name: pad([sample[name] for sample in samples]) for name in ("embeddings", "times")}
    batch["mask"] = torch.arange(int(lengths.max()))[None, :] < lengths[:, None]
    batch["lengths"] = lengths
    for name in ("start", "end"):
        batch[name] = torch.tensor([sample[name] for sample in samples], dtype=torch.float64)
    for name in ("roles", "video", "header"):
        if name in samples[0]:
            batch[name] = [sample[name] for sample in samples]
    return batch
