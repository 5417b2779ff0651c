"""Read an export back as its trainer would, and map annotated windows to rows."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from everyframe.exports.record import Record
from everyframe.exports.targets import Query, Target, find_target
from everyframe.extras import require

_EPSILON = 1e-6
_EXAMPLES = 5


@dataclass(frozen=True, kw_only=True)
class Mapped:
    """Rows [first, past) whose time lies in the window [start, end) of a query."""

    query: str
    video: str
    start: float
    end: float
    first: int
    past: int


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What the windows meet. Every window is counted once: on_rows + between_rows + outside + empty + without_features.

    on_rows: at least one row's time lies in it. between_rows: inside the video, but shorter than a row and between two.
    outside: begins after the last row or ends before the first. empty: ends where or before it starts.
    without_features: of `missing` videos. beyond_end: of those on rows, how many end more than a row after the last.
    durations: videos whose annotated duration and rows differ by more than a row, as (id, annotated, exported).
    failures: (video, what is wrong with its file). misnamed: missing ids that are there with or without a v_.
    examples: the first windows mapped.
    """

    videos: int
    windows: int
    on_rows: int
    between_rows: int
    outside: int
    empty: int
    without_features: int
    beyond_end: int
    missing: tuple[str, ...]
    misnamed: tuple[str, ...]
    durations: tuple[tuple[str, float, float], ...]
    failures: tuple[tuple[str, str], ...]
    examples: tuple[Mapped, ...]


def verify(target: str, out: str | os.PathLike[str], queries: Sequence[Query]) -> Verified:
    """Check the export in `out`: every file it recorded, and every window of the queries.

    Row times follow from the settings of the export; of a target that spreads rows over a video, from the annotated
    duration. Raises FeaturesError where there is no export, ValueError where it is of another target.
    """
    kind = find_target(target)
    record = Record.read(Path(out) / kind.folder)
    if record.header.get("target") != target:
        raise ValueError(f"{record.folder} holds an export to {record.header.get('target')}, not to {target}")
    rows, failures = _count_rows(record, kind)
    tally = _Tally(record, kind, rows)
    for query in queries:
        tally.add(query)
    missing = tuple(dict.fromkeys(query.video for query in queries if query.video not in rows))
    swapped = {f"v_{video}" for video in rows} | {video[2:] for video in rows if video.startswith("v_")}
    return Verified(
        videos=len(rows),
        windows=sum(len(query.windows) for query in queries),
        **tally.counts,
        missing=missing,
        misnamed=tuple(video for video in missing if video in swapped),
        durations=tuple(tally.durations.values()),
        failures=failures,
        examples=tuple(tally.examples),
    )


def _count_rows(record: Record, kind: Target) -> tuple[dict[str, int], tuple[tuple[str, str], ...]]:
    """Rows of every sound file by id, and what is wrong with the others."""
    shapes = _h5_shapes(record) if kind.layout == "h5" else None
    rows: dict[str, int] = {}
    failures: list[tuple[str, str]] = []
    for video, entry in record.entries.items():
        try:
            shape = _shape(record, kind, entry) if shapes is None else shapes[entry["file"]]
        except (OSError, ValueError, KeyError) as error:
            failures.append((video, f"{record.folder / entry['file']} cannot be read back ({error}); export it again"))
            continue
        if (shape[0], shape[-1]) == (entry["rows"], record.header["dim"]):
            rows[video] = shape[0]
        else:
            failures.append(
                (
                    video,
                    f"{record.folder / entry['file']} has shape {list(shape)}, the record says {entry['rows']} rows of "
                    f"{record.header['dim']}; export it again",
                )
            )
    return rows, tuple(failures)


def _shape(record: Record, kind: Target, entry: dict[str, Any]) -> tuple[int, ...]:
    path = record.folder / entry["file"]
    if kind.layout == "npz":
        with np.load(path, allow_pickle=False) as arrays:
            return tuple(arrays[kind.key].shape)
    return tuple(np.load(path, mmap_mode="r", allow_pickle=False).shape)


def _h5_shapes(record: Record) -> dict[str, tuple[int, ...]]:
    h5py = require("h5py", extra="h5")
    with h5py.File(record.folder / record.header["file"], "r") as file:
        return {name: tuple(dataset.shape) for name, dataset in file.items()}


class _Tally:
    """Counts windows; one query at a time."""

    def __init__(self, record: Record, kind: Target, rows: dict[str, int]) -> None:
        self._record, self._kind, self._rows = record, kind, rows
        self.counts = dict.fromkeys(
            ("on_rows", "between_rows", "outside", "empty", "without_features", "beyond_end"), 0
        )
        self.durations: dict[str, tuple[str, float, float]] = {}
        self.examples: list[Mapped] = []

    def add(self, query: Query) -> None:
        count = self._rows.get(query.video)
        if count is None:
            self.counts["without_features"] += len(query.windows)
            return
        rate = self._rate(query, count)
        exported = self._record.entries[query.video]["duration_seconds"]
        if query.duration is not None and abs(query.duration - exported) > max(1 / rate, _EPSILON):
            self.durations[query.video] = (query.video, query.duration, exported)
        for start, end in query.windows:
            self._window(query, start, end, count, rate)

    def _rate(self, query: Query, count: int) -> float:
        """Rows per second as the trainer sees them."""
        if self._kind.spread:
            return count / (query.duration or self._record.entries[query.video]["duration_seconds"])
        return float(self._record.header["rate"])

    def _window(self, query: Query, start: float, end: float, count: int, rate: float) -> None:
        if end <= start:
            self.counts["empty"] += 1
            return
        if end <= 0 or start >= count / rate:
            self.counts["outside"] += 1
            return
        shift = 0.5 if self._record.header["phase"] == "middle" else 0.0
        first = max(0, math.ceil(start * rate - shift - _EPSILON))
        past = min(count, math.ceil(end * rate - shift - _EPSILON))
        if first >= past:
            self.counts["between_rows"] += 1
            return
        self.counts["on_rows"] += 1
        self.counts["beyond_end"] += end > (count + 1) / rate + _EPSILON
        if len(self.examples) < _EXAMPLES:
            found = Mapped(query=query.id, video=query.video, start=start, end=end, first=first, past=past)
            self.examples.append(found)
