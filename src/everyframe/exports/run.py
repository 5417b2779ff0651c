"""Write features in a trainer's layout: which videos, under which names, and what is said of the others."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everyframe.exports.configs import Config, config_of
from everyframe.exports.h5 import H5File, h5_name
from everyframe.exports.record import Record
from everyframe.exports.rows import Rows, on_grid, stored_rate, unit
from everyframe.exports.targets import How, Phase, Query, Settings, Target, find_target, settings_of
from everyframe.extras import require
from everyframe.feature_files import write_whole
from everyframe.features import FeaturesError, VideoFeatures, check_same_space, is_of_clips, space_of
from everyframe.tasks.retrieval import feature_paths
from everyframe.video.find import VIDEO_SUFFIXES

Progress = Callable[[int, int], None]
"""(feature files done, of how many)"""
Source = VideoFeatures | str | os.PathLike[str]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What one call wrote.

    folder: where the videos' files lie. rate: rows per second. model: provenance of the features, as recorded.
    videos: what the record holds of each video written now, by the id that annotations use.
    failures: (feature file or video, why it was left out). notes: what else should be known.
    missing: ids that the queries name and the folder lacks. config: what the trainer has to be told.
    """

    target: str
    folder: Path
    rate: float | None = None
    dim: int | None = None
    model: dict[str, Any]
    videos: dict[str, dict[str, Any]]
    failures: tuple[tuple[str, str], ...]
    notes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    config: Config | None = None


def export(
    features: Source | Iterable[Source],
    target: str,
    out: str | os.PathLike[str],
    *,
    queries: Sequence[Query] = (),
    rate: float | None = None,
    phase: Phase | None = None,
    how: How | None = None,
    dtype: str | None = None,
    prefix: str | None = None,
    strip: str | None = None,
    normalise: bool | None = None,
    max_rows: int | None = None,
    progress: Progress | None = None,
) -> Exported:
    """Write features to `out` as the target's trainer reads them, and its configuration beside them.

    features: feature files, folders of them, or VideoFeatures; one video is in memory at a time.
    target: a key of TARGETS. queries: the annotations; they say which videos are missing, and which ids are meant.
    rate, phase, how: rows per second, what a row stands for, and which stored frames make it; see `on_grid`. By
        default the target's rate and phase, "nearest"; a target without a rate takes that of the features, and
        features of clips stand for the middles of theirs.
    dtype: "float32" or "float16". prefix: before every video's name in its file; strip: taken off before that.
    normalise: rows of length 1. max_rows: cut a video after that many.

    A file that cannot be used is in `failures` and the rest goes on: unreadable, of a part of a video, of another
    model or rate than the first, or of an id that came before. Files appear whole or not at all. Raises ValueError
    for bad arguments and for a folder that holds anything but the same export; FeaturesError for a folder without
    features; ImportError where h5py is missing.
    """
    kind = find_target(target)
    settings = settings_of(
        kind,
        rate=rate, phase=phase, how=how, dtype=dtype, prefix=prefix, strip=strip, normalise=normalise,
        max_rows=max_rows,
    )  # fmt: skip
    if max_rows is not None and (kind.spread or kind.name == "opentad"):
        raise ValueError(f"max_rows has no meaning for {target}: it takes the last row for the end of the video")
    if kind.layout == "h5":
        require("h5py", extra="h5")
    sources = list(_sources(features))
    writer = _Writer(kind, settings, Path(out), {query.video for query in queries})
    failures: list[tuple[str, str]] = []
    try:
        for number, source in enumerate(sources, 1):
            name = str(source.video.get("path", "features")) if isinstance(source, VideoFeatures) else str(source)
            try:
                writer.add(name, _load(source))
            except FeaturesError as error:
                failures.append((name, str(error) if name in str(error) else f"{name}: {error}"))
            if progress is not None:
                progress(number, len(sources))
        return writer.finish(queries, tuple(failures))
    finally:
        writer.close()


def _sources(features: Source | Iterable[Source]) -> Iterator[VideoFeatures | Path]:
    given = [features] if isinstance(features, (VideoFeatures, str, os.PathLike)) else features
    for source in given:
        if isinstance(source, VideoFeatures):
            yield source
        elif Path(source).is_dir():
            yield from feature_paths(source)
        else:
            yield Path(source)


def _load(source: VideoFeatures | Path) -> VideoFeatures:
    if isinstance(source, VideoFeatures):
        return source
    if not source.exists():  # a folder, too, may be misspelt
        raise FeaturesError(f"{source} does not exist; check the path, or encode the videos first")
    return VideoFeatures.load(source)


class _Writer:
    """The export as it grows; folder and record begin with the first video that can be used."""

    def __init__(self, target: Target, settings: Settings, out: Path, known: set[str]) -> None:
        self._target, self._settings, self._out, self._known = target, settings, out, known
        self._given_rate = settings.rate
        self._folder = out / target.folder
        self._record: Record | None = None
        self._h5: H5File | None = None
        self._in_h5: dict[str, dict[str, Any]] = {}
        self._space: dict[str, Any] = {}
        self._model: dict[str, Any] = {}
        self._rate: float = 0.0
        self._sources: dict[str, str] = {}
        self._notes: dict[str, int] = {}

    def add(self, source: str, features: VideoFeatures) -> None:
        """Write one video. Raises FeaturesError for one that is left out, ValueError where none can be written."""
        if self._record is not None:
            check_same_space(self._space, features)
        rate = self._rate_for(features)
        video, name = self._names(features)
        if video in self._sources:
            raise FeaturesError(
                f"{source} is of video {video!r}, which {self._sources[video]} is of too: each id is written once; "
                "give the videos different names, or leave one out"
            )
        settings = self._settings if self._record is not None else self._resolved(features, rate)
        rows = on_grid(features, rate, settings.phase or self._target.phase, settings.how)
        values = self._cast(rows.values)
        if self._record is None:
            self._settings = settings
            self._record = self._begin(features)
        before = self._record.entries.get(video, {})
        if before.get("video", features.video["path"]) != features.video["path"]:
            raise FeaturesError(
                f"{self._folder} holds {video!r} already, of another video ({before['video']}); give the videos "
                "different names, or choose another --out"
            )
        self._write(self._record, video, name, values, self._entry(source, features, rows, len(values)))
        self._sources[video] = source

    def finish(self, queries: Sequence[Query], failures: tuple[tuple[str, str], ...]) -> Exported:
        if self._record is None:
            return Exported(target=self._target.name, folder=self._folder, model={}, videos={}, failures=failures)
        if self._h5 is not None:
            self._h5.finish()
            self._record.entries.update(self._in_h5)
            self._record.write()
        entries = self._record.entries
        named = dict.fromkeys(query.video for query in queries)
        missing = tuple(video for video in named if video not in entries)
        config = self._config(longest=max(entry["rows"] for entry in entries.values()), block_list=bool(queries))
        files = {self._out / name: text for name, text in config.files.items()}
        if self._target.name == "vslnet":
            shapes = {video: entry["rows"] for video, entry in entries.items()}
            files[self._folder / "feature_shapes.json"] = json.dumps(shapes)
        if self._target.name == "opentad" and queries:
            files[self._folder / "missing_files.txt"] = "".join(f"{video}\n" for video in missing)
        for path, text in files.items():
            write_whole([(path, text.encode())], path)
        return Exported(
            target=self._target.name,
            folder=self._folder,
            rate=self._rate,
            dim=int(self._space["dim"]),
            model=self._model,
            videos={video: entries[video] for video in self._sources},
            failures=failures,
            notes=tuple(f"{count} video{'s' if count != 1 else ''}: {text}" for text, count in self._notes.items()),
            missing=missing,
            config=config,
        )

    def close(self) -> None:
        """Leave nothing half written."""
        if self._h5 is not None:
            self._h5.close()

    def _resolved(self, features: VideoFeatures, rate: float) -> Settings:
        """The settings with what the first features decide. A clip stands for its middle."""
        phase = self._settings.phase or ("middle" if is_of_clips(features) else self._target.phase)
        return replace(self._settings, rate=rate, phase=phase)

    def _begin(self, features: VideoFeatures) -> Record:
        """Raises ValueError where the folder or the target cannot take this."""
        self._space = {**space_of(features), "video": f"the first video ({features.video.get('path')})"}
        self._model, self._rate = dict(features.model), float(self._settings.rate or 0.0)
        # A rate that the trainer cannot be told is an error now, not after all files.
        self._config(longest=1, block_list=False)
        # A path to the model may differ between machines; its weights say what it is.
        same = ("dim", "model weights_sha256", "model projected", "model preprocess")
        header = {**self._settings.record(), **{key: self._space[key] for key in same}}
        if self._target.layout == "h5":
            header["file"] = h5_name(self._model, f"frames_features_{self._rate:g}fps")
        record = Record.begin(self._folder, header)
        if self._target.layout == "h5":
            self._h5 = H5File(self._folder / header["file"])
        return record

    def _config(self, *, longest: int, block_list: bool) -> Config:
        return config_of(
            self._target,
            self._settings,
            folder=self._folder.absolute(),
            dim=int(self._space["dim"]),
            model=str(self._model.get("id", "?")),
            longest=longest,
            block_list=block_list,
        )

    def _rate_for(self, features: VideoFeatures) -> float:
        stored = stored_rate(features)
        if self._given_rate is not None:
            if stored is not None and self._given_rate > stored + 1e-9:
                self._note(f"encoded at {stored:g} features per second, fewer than {self._given_rate:g}: rows repeat")
            return self._given_rate
        if stored is None:
            raise FeaturesError("the features do not say how many there are per second; pass a rate (--rate)")
        if self._record is not None and abs(stored - self._rate) > 1e-9:
            raise FeaturesError(
                f"encoded at {stored:g} features per second, those before at {self._rate:g}; pass a rate (--rate), "
                "which all are brought to"
            )
        return stored

    def _names(self, features: VideoFeatures) -> tuple[str, str]:
        """The id that annotations use, and the name in the folder."""
        path = features.video.get("path")
        base = os.path.basename(path.rstrip("/")) if isinstance(path, str) else ""
        root, suffix = os.path.splitext(base)
        base = root if suffix.lower() in VIDEO_SUFFIXES else base  # of a folder of images "a_1.0_2.0" nothing goes
        base = base.removeprefix(self._settings.strip)
        if not base:
            raise FeaturesError(
                "the features do not say which video they are of, so it has no name to be written under"
            )
        if not (self._target.bare_ids and base in self._known):  # a few YouTube ids begin with v_ themselves
            base = base.removeprefix(self._settings.prefix)
        name = self._settings.prefix + base
        if self._target.name == "vslnet" and "." in name:
            raise FeaturesError(
                f"VSLNet cuts a name at its first point, so it would not find {name!r}; rename the video"
            )
        return base if self._target.bare_ids else name, name

    def _cast(self, values: NDArray[np.float32]) -> NDArray[Any]:
        settings = self._settings
        if settings.max_rows is not None and len(values) > settings.max_rows:
            self._note(f"cut after {settings.max_rows} rows")
            values = values[: settings.max_rows]
        values = unit(values) if settings.normalise else values
        with np.errstate(over="ignore"):  # told of below
            cast = values.astype(settings.dtype)
        if not np.isfinite(cast).all():
            raise FeaturesError(f"the features hold values too large for {settings.dtype}; export them as float32")
        return cast[:, None, :] if self._target.name == "tfvtg" else cast

    def _entry(self, source: str, features: VideoFeatures, rows: Rows, count: int) -> dict[str, Any]:
        stored = stored_rate(features) or self._rate
        if rows.furthest > 1 / min(self._rate, stored) + 1e-6:
            self._note("have gaps, some rows stand for a frame more than a row away")
        if features.settings.get("damage"):
            self._note("are damaged, the record says which")
        entry = {
            "rows": count,
            "duration_seconds": float(features.frame_ends[-1]),
            "stored_rate": stored_rate(features),
            "furthest_seconds": round(rows.furthest, 6),
            "source": os.path.abspath(source) if os.path.exists(source) else source,
            "video": features.video.get("path"),
            "model": features.model.get("id"),
            "encoder": features.settings.get("encoder"),
            "projected": features.model.get("projected"),
            "normalised": bool(self._settings.normalise or features.model.get("normalised")),
        }
        if features.settings.get("damage"):
            entry["damage"] = features.settings["damage"]
        return entry

    def _write(self, record: Record, video: str, name: str, values: NDArray[Any], facts: dict[str, Any]) -> None:
        if self._h5 is not None:
            self._h5.add(name, values)
            self._in_h5[video] = {"id": video, "file": name, **facts}
            return
        path = self._folder / f"{name}{self._target.suffix}"
        buffer = io.BytesIO()
        if self._target.layout == "npz":
            arrays: dict[str, Any] = {self._target.key: values}
            np.savez(buffer, **arrays)
        else:
            np.save(buffer, values, allow_pickle=False)
        write_whole([(path, buffer.getbuffer())], path)
        record.add({"id": video, "file": path.name, **facts})

    def _note(self, text: str) -> None:
        self._notes[text] = self._notes.get(text, 0) + 1
