"""Features as webdataset shards: tars that are read as a stream, from anywhere, by `everyframe.features.stream` too."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from everyframe.feature_files import sealed
from everyframe.features import FeaturesError, VideoFeatures, check_same_space, space_of
from everyframe.features.shards import Indexed, Shard, key_of, read_index, read_shard, shard_name
from everyframe.features.sources import find_named, is_address, is_shard, load_source

Progress = Callable[[int, int], None]
"""(sources done, of how many)"""
_Named = tuple[str, str, Callable[[], VideoFeatures]]
"""(name of the video, what messages call it, its features)"""


@dataclass(frozen=True, kw_only=True)
class ExportedShards:
    """What one call wrote. shards: their files. videos, frames: in them. there: videos that were there before, whole.

    failures: (feature file or video, why it was left out).
    """

    folder: Path
    shards: tuple[Path, ...]
    videos: int
    frames: int
    there: int
    dim: int | None
    failures: tuple[tuple[str, str], ...]


def export_shards(
    features: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    shard_bytes: int = 256 << 20,
    dtype: Literal["float32", "float16"] | None = None,
    collection: str | None = None,
    progress: Progress | None = None,
) -> ExportedShards:
    """Write features to `out` as features-000000.tar, features-000001.tar, ...; see `everyframe.features.shards`.

    features: feature files, shards, folders, patterns and addresses of such, and folders of libraries. A video is named
        after its feature file, from the given folder on (of a pattern: the folder before its first wildcard), or as in
        its shard or library.
    shard_bytes: a shard that has reached them is done. dtype: of the embeddings; by default as stored.
    collection: of a library that has several; an id or a label.

    A shard appears whole or not at all. What is in `out` already is passed over, so a killed export goes on, and one
    can be added to. A source that cannot be used is in `failures` and the rest goes on: unreadable, of another model
    than the first, of a name that came before. Raises ValueError for bad arguments and a folder that holds other
    files; FeaturesError where `out` cannot be written, or a shard in it cannot be read.
    """
    if shard_bytes < 1:
        raise ValueError(f"shard_bytes must be at least 1, got {shard_bytes}")
    if dtype not in (None, "float32", "float16"):
        raise ValueError(f"dtype must be float32 or float16, got {dtype!r}")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", os.fspath(out)):
        raise ValueError(f"{out} is an address; export to a folder, and copy its shards there")
    given = [features] if isinstance(features, (str, os.PathLike)) else list(features)
    failures: list[tuple[str, str]] = []

    def fail(name: str, error: ValueError) -> None:
        failures.append((name, str(error) if name in str(error) else f"{name}: {error}"))

    with _Shards(Path(out), shard_bytes) as shards:
        groups = [group for path in given for group in _groups(path, collection, fail)]
        for number, group in enumerate(groups, 1):
            for name, source, load in group(fail):
                try:
                    feats = _cast(load(), dtype)
                    new = shards.is_new(name, feats)
                except ValueError as error:  # of features and of libraries
                    fail(source, error)
                else:
                    if new:
                        shards.add(name, feats)
            if progress is not None:
                progress(number, len(groups))
        return shards.finish(tuple(failures))


_Fail = Callable[[str, ValueError], None]
_Group = Callable[[_Fail], Iterator[_Named]]


def _groups(path: str | os.PathLike[str], collection: str | None, fail: _Fail) -> list[_Group]:
    """What a given path stands for, file by file; nothing is read yet."""
    from everyframe.library import is_library

    text = os.fspath(path)
    try:
        if not is_address(text) and is_library(place := os.path.expanduser(text)):
            return [lambda fail: _of_library(place, collection, fail)]
        sources = find_named(text)
    except ValueError as error:
        fail(text, error)
        return []
    return [_of_shard(source) if is_shard(source) else _of_file(source, inside) for source, inside in sources]


def _of_file(source: str, inside: str) -> _Group:
    def named(fail: _Fail) -> Iterator[_Named]:
        yield os.path.splitext(inside)[0], source, lambda: load_source(source)

    return named


def _of_shard(source: str) -> _Group:
    def named(fail: _Fail) -> Iterator[_Named]:
        for key, feats in read_shard(source, failed=lambda error: fail(source, error)):
            yield key, f"{source}#{key}", lambda feats=feats: feats  # type: ignore[misc]

    return named


def _of_library(path: str, wanted: str | None, fail: _Fail) -> Iterator[_Named]:
    from everyframe.library import Library, LibraryError
    from everyframe.library.transfer import output_names

    with Library(path) as library:
        try:
            collection = library.collection(wanted).id
            records = library.videos(collection)
        except LibraryError as error:
            fail(path, error)
            return
        for record, name in zip(records, output_names(records, Path(), ""), strict=True):
            yield str(name), record.path, lambda video=record.id: library.features(video, collection)  # type: ignore[misc]


def _cast(features: VideoFeatures, dtype: str | None) -> VideoFeatures:
    if dtype is None or features.embeddings.dtype == np.dtype(dtype):
        return features
    with np.errstate(over="ignore"):  # told of here
        cast = features.embeddings.astype(dtype)
    if not np.isfinite(cast).all():
        raise FeaturesError(f"the features hold values too large for {dtype}; export them as float32")
    return replace(features, embeddings=cast, settings={**features.settings, "stored_dtype": dtype})


class _Shards:
    """The shards of a folder: those that are there, and the one that grows."""

    def __init__(self, folder: Path, shard_bytes: int) -> None:
        self._folder, self._shard_bytes = folder, shard_bytes
        self._there: dict[str, Indexed] = {}
        self._names: set[str] = set()
        self._space: dict[str, Any] | None = None
        self._shard: Shard | None = None
        self._next = 0
        self._written: list[Path] = []
        self._videos = self._frames = self._passed = 0
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder} is a file; give a folder for the export (--out)")
        for file in sorted(folder.iterdir()) if folder.is_dir() else ():
            if not file.name.startswith("."):  # what a killed process left half written
                self._take(file)

    def __enter__(self) -> _Shards:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shard is not None:
            self._shard.close()

    def is_new(self, name: str, features: VideoFeatures) -> bool:
        """Is it to be written? Not where it is there. Raises FeaturesError where it cannot be with the others."""
        if self._space is None:
            self._space = {**space_of(features), "video": f"the first video ({name})"}
        check_same_space(self._space, features)
        if name in self._names:
            raise FeaturesError(f"the name {name} came before, and each is written once; rename a file")
        there = self._there.get(key_of(name))
        if there is not None:
            if there.sha256 != sealed(features.header(), features.times, features.embeddings)["sha256"]:
                raise FeaturesError(
                    f"{self._folder} holds other features named {name}; rename the file, or choose another --out"
                )
            self._passed += 1
        self._names.add(name)
        return there is None

    def add(self, name: str, features: VideoFeatures) -> None:
        """Raises FeaturesError where nothing can be written."""
        if self._shard is None:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._shard = Shard(spool_folder=self._folder)  # where there is room, or none for the export either
            except OSError as error:
                raise FeaturesError(f"{self._folder} cannot be written ({error.strerror or error})") from error
        self._shard.add(name, features, note={"path": features.video.get("path")})
        self._videos += 1
        self._frames += features.num_frames
        if self._shard.size >= self._shard_bytes:
            self._save()

    def finish(self, failures: tuple[tuple[str, str], ...]) -> ExportedShards:
        """Write the last shard and say what was done."""
        if self._shard is not None:
            self._save()
        return ExportedShards(
            folder=self._folder,
            shards=tuple(self._written),
            videos=self._videos,
            frames=self._frames,
            there=self._passed,
            dim=None if self._space is None else int(self._space["dim"]),
            failures=failures,
        )

    def _save(self) -> None:
        shard, self._shard = self._shard, None
        if shard is not None:
            with shard:
                self._written.append(shard.save(self._folder / shard_name(self._next)))
            self._next += 1

    def _take(self, shard: Path) -> None:
        number = re.fullmatch(r"features-(\d+)\.tar", shard.name)
        if number is None:
            raise ValueError(f"{self._folder} holds {shard.name}, which is no such shard; choose another --out")
        self._next = max(self._next, int(number[1]) + 1)
        self._there.update((video.key, video) for video in read_index(shard))
        if self._space is None:
            _, features = next(read_shard(shard))
            self._space = {**space_of(features), "video": f"the first video of {shard}"}
