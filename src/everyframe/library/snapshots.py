"""One consistent state of a library, in memory: videos, collections, and the tables that hold their frames."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from everyframe.library import schema
from everyframe.library.errors import LibraryError, translated
from everyframe.library.records import Collection, VideoRecord

_NOT_IN_RECORDS = ("state", "roles", "content", "provenance")
_MOST_LISTED = 1000  # videos in one SQL condition


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """All videos at one moment, and frames tables that hold every row of them. Never changes."""

    place: str
    version: int
    videos: dict[int, VideoRecord]
    collections: dict[str, Collection]
    tables: dict[str, Any] = field(repr=False)
    table_versions: dict[str, int] = field(repr=False)
    table: Any = field(repr=False)
    """`videos` at `version`; None of a library that is not there yet."""

    @cached_property
    def _by_collection(self) -> dict[str, list[VideoRecord]]:
        lists: dict[str, list[VideoRecord]] = {name: [] for name in self.collections}
        for record in self.videos.values():
            lists[record.collection].append(record)
        return lists

    def by_collection(self, collection_id: str) -> list[VideoRecord]:
        """Its videos in the order they were added."""
        return self._by_collection.get(collection_id, [])

    def frames(self, collection_id: str) -> Any:
        """Its LanceDB table of frames, which stays at one version. KeyError for a collection that is not there.

        It may hold rows of videos that are not in `videos`: being added, or removed.
        """
        return self.tables[collection_id]

    def facts(self, videos: Iterable[int], columns: list[str]) -> dict[int, dict[str, Any]]:
        """{id: row} with columns that records leave out ("roles", "content")."""
        numbers = ", ".join(str(int(video)) for video in videos)
        with translated(self.place, "read"):
            rows = ready_rows(self.table, ["id", *columns], f"id IN ({numbers})")
            return {row["id"]: row for row in rows.to_pylist()}


def empty(place: str) -> Snapshot:
    """Of a library that is not there yet."""
    return Snapshot(place=place, version=0, videos={}, collections={}, tables={}, table_versions={}, table=None)


def assemble(
    place: str,
    table: Any,
    videos: dict[int, VideoRecord],
    collections: dict[str, Collection],
    tables: dict[str, Any],
) -> Snapshot:
    """table: `videos` at the version that was read. tables: frames by collection, None where there is none."""
    counts = dict.fromkeys(collections, (0, 0))
    for record in videos.values():
        number, frames = counts[record.collection]
        counts[record.collection] = (number + 1, frames + record.num_frames)
    filled = {
        name: replace(each, num_videos=counts[name][0], num_frames=counts[name][1])
        for name, each in collections.items()
        if counts[name][0]
    }
    if lost := [name for name in filled if tables.get(name) is None]:
        raise LibraryError(
            f"{place} cannot be read: its table {schema.FRAMES}{lost[0]} is missing or damaged; "
            "restore it from a copy, or index the videos into a new library"
        )
    used = {name: tables[name] for name in filled}
    return Snapshot(
        place=place,
        version=table.version,
        videos=videos,
        collections=filled,
        tables=used,
        table_versions={name: each.version for name, each in used.items()},
        table=table,
    )


def read_collections(place: str, table: Any) -> dict[str, Collection]:
    """All collections, oldest first, with nothing counted yet."""
    found = {}
    with translated(place, "read"):
        for row in sorted(table.search().to_arrow().to_pylist(), key=lambda each: each["created"]):
            settings = json.loads(row["settings"])
            found[row["id"]] = Collection(
                id=row["id"],
                label=row["label"],
                model=json.loads(row["model"]),
                settings=settings,
                dim=row["dim"],
                of_clips="clip_seconds" in settings,
                num_videos=0,
                num_frames=0,
            )
    return found


def read_records(
    place: str, table: Any, collections: dict[str, Collection], known: Mapping[int, VideoRecord] | None = None
) -> dict[int, VideoRecord]:
    """All ready videos, in the order they were added.

    known: records of an earlier or later version of the table. Of those only path and name are read, the columns that
    can change.
    """
    known = known or {}
    with translated(place, "read"):
        brief = ready_rows(table, ["id", "path", "name"])
        records, new = [], []
        for number, path, name in zip(*(column.to_pylist() for column in brief.columns), strict=True):
            record = known.get(number)
            if record is None:
                new.append(number)
            else:
                same = record.path == path and record.name == name
                records.append(record if same else replace(record, path=path, name=name))
        if 0 < len(new) <= _MOST_LISTED:
            records += _new_records(table, collections, f"id IN ({', '.join(map(str, new))})")
        elif new:
            records += [each for each in _new_records(table, collections) if each.id not in known]
    records.sort(key=lambda record: (record.added, record.id))
    return {record.id: record for record in records}


def _new_records(table: Any, collections: dict[str, Collection], where: str = "") -> list[VideoRecord]:
    """Of ready videos that meet a condition."""
    shared = {name: {"model": each.model, "settings": each.settings} for name, each in collections.items()}
    names = [*(name for name in table.schema.names if name not in _NOT_IN_RECORDS), "provenance"]
    rows = ready_rows(table, names, where)
    records = []
    for values in zip(*(rows[name].to_pylist() for name in names), strict=True):
        row = dict(zip([*names[:-1], "own"], values, strict=True))
        for name in ("mean", "smoothed_mean"):
            row[name] = np.frombuffer(row[name], "<f4")
        records.append(VideoRecord(**row, shared=shared[row["collection"]]))
    return records


def turn_back(place: str, table: Any, oldest: int, tables: dict[str, Any]) -> bool:
    """Check `videos` out at the newest version, down to `oldest`, of which these frames tables hold every row.

    False where there is none.
    """

    def ready(version: int) -> dict[int, tuple[str, int]]:
        table.checkout(version)
        rows = ready_rows(table, ["id", "collection", "num_frames"])
        return {row["id"]: (row["collection"], row["num_frames"]) for row in rows.to_pylist()}

    newest = table.version
    with translated(place, "read"):
        whole = ready(oldest).keys() & ready(newest).keys()
        for version in range(newest, oldest - 1, -1):
            wanted: dict[str, dict[int, int]] = {}
            for number, (collection, frames) in ready(version).items():
                if number not in whole:
                    wanted.setdefault(collection, {})[number] = frames
            if all(_holds(tables.get(name), frames) for name, frames in wanted.items()):
                return True
    return False


def _holds(table: Any, frames: dict[int, int]) -> bool:
    """Are so many rows of each of these videos in a table?"""
    return table is not None and table.count_rows(f"video IN ({', '.join(map(str, frames))})") == sum(frames.values())


def ready_rows(table: Any, columns: list[str], where: str = "") -> Any:
    """An Arrow table of the columns of ready videos."""
    condition = f"state = '{schema.READY}'" + (f" AND {where}" if where else "")
    return table.search().where(condition).select(columns).to_arrow()
