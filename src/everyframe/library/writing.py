"""Changing a library: one commit on `videos`, what belongs to it written before, what it replaced cleared after.

    add       the row as "adding"; its frames and thumbnails; then in one commit "ready", and what it replaces "removed"
    remove    in one commit "removed"; then thumbnails, frames and the row are deleted
    recover   the next writer deletes all that is "adding" or "removed": a killed writer left it

So whatever moment a writer dies at, readers see the old state or the new one, and its remains do not last.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from everyframe.extras import require
from everyframe.library import schema
from everyframe.library.errors import LibraryError, LockedError, translated
from everyframe.library.records import Added, AddStatus
from everyframe.version import package_version

if TYPE_CHECKING:
    from everyframe.library.store import Store

# Without locks an unfinished addition may be another writer's, at work now; after so long it is nobody's.
_ABANDONED = timedelta(hours=1)
# Each commit of a table of many small fragments lists them all; from here on they are joined.
_SMALL_FRAGMENTS = 128
_INDEX_THUMBNAILS = 20_000
_FOREVER = timedelta(days=36500)
KEPT = timedelta(days=7)
"""Versions of the past that are older go by and by, when small fragments are joined; so as_of reaches back so far."""

# `Batches` commit after so many rows, videos or seconds, whichever comes first.
_GROUP_FRAMES = 1 << 16
_GROUP_VIDEOS = 500
_GROUP_SECONDS = 2.0

T = TypeVar("T")


@dataclass(frozen=True)
class _Existing:
    """What the library has of a video that is added."""

    id: int
    path: str
    fingerprint: str | None
    content: str


@dataclass(frozen=True)
class _Plan:
    """What is to be done about one addition."""

    prepared: schema.Prepared
    id: int
    status: AddStatus
    removes: tuple[int, ...] = ()


class Writer:
    """The one writer of a library, between `Store.writing`'s begin and end."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._path = store.path

    def begin(self) -> None:
        """Make the tables where there are none, and clear away what killed writers left."""
        if not self._store.exists():
            self._create()
        self._store.check_version()
        self._recover()

    def _create(self) -> None:
        for name in (schema.COLLECTIONS, schema.VIDEOS, schema.THUMBNAILS):
            self._make_table(name, schema.table_schema(name))
        # Last and with its rows in one commit: with `about` a library is complete.
        pa = require("pyarrow", extra="library")
        about = {
            "format": schema.FORMAT,
            "version": str(schema.VERSION),
            "created": datetime.now(timezone.utc).isoformat(),
            "everyframe": package_version(),
        }
        rows = pa.table({"key": list(about), "value": list(about.values())}, schema=schema.table_schema(schema.ABOUT))
        with translated(self._path, "made"):
            self._store.connection.create_table(schema.ABOUT, rows)

    def _make_table(self, name: str, columns: Any) -> None:
        with translated(self._path, "made"):
            self._store.connection.create_table(name, schema=columns, exist_ok=True)

    def _recover(self) -> None:
        table = self._store.table(schema.VIDEOS)
        with translated(self._path, "read"):
            query = table.search().where(f"state != '{schema.READY}'")
            left = query.select(["id", "collection", "added"]).to_arrow().to_pylist()
        if not self._store.is_local:
            recent = datetime.now(timezone.utc) - _ABANDONED
            left = [row for row in left if row["added"] < recent]
        self._clear({row["id"]: row["collection"] for row in left})

    # --- adding ------------------------------------------------------------------------------------------

    def add(self, group: Sequence[schema.Prepared]) -> list[Added]:
        """All of a group or nothing. No two of them may be the same video of one collection."""
        self._make_collections(group)
        plans = self._plan(group)
        fresh = [plan for plan in plans if plan.status in ("added", "replaced")]
        if fresh:
            self._write_rows(fresh)
        changes = self._changes(plans)
        removed = {number: plan.prepared.key.id for plan in plans for number in plan.removes}
        if changes:
            self._commit(changes | {number: {"state": schema.REMOVED} for number in removed})
        for plan in plans:
            if plan.status not in ("added", "replaced") and plan.prepared.thumbnails:
                self._add_missing_thumbnails(plan)
        self._clear(removed)
        self._join_fragments({plan.prepared.key.id for plan in fresh})
        return [Added(plan.id, plan.status) for plan in plans]

    def _make_collections(self, group: Sequence[schema.Prepared]) -> None:
        keys = {each.key.id: each.key for each in group}
        table = self._store.table(schema.COLLECTIONS)
        with translated(self._path, "read"):
            known = set(table.search().select(["id"]).to_arrow()["id"].to_pylist())
        for name, key in keys.items():
            # Before the row: a collection that is known has its table.
            self._make_table(schema.FRAMES + name, schema.table_schema(schema.FRAMES, key.dim))
        pa = require("pyarrow", extra="library")
        rows = [
            {
                "id": key.id,
                "label": key.label,
                "model": json.dumps(key.model),
                "settings": json.dumps(key.settings),
                "dim": key.dim,
                "created": datetime.now(timezone.utc),
            }
            for key in keys.values()
            if key.id not in known
        ]
        if rows:
            with translated(self._path, "written"):
                table.add(pa.Table.from_pylist(rows, schema=schema.table_schema(schema.COLLECTIONS)))

    def _plan(self, group: Sequence[schema.Prepared]) -> list[_Plan]:
        plans = []
        for name in dict.fromkeys(each.key.id for each in group):
            members = [each for each in group if each.key.id == name]
            existing = self._existing(name, members)
            for each in members:  # as one after the other, though they share a commit
                plans.append(_plan_one(each, existing))
                existing = _after(plans[-1], existing)
        order = {id(each): place for place, each in enumerate(group)}
        return sorted(plans, key=lambda plan: order[id(plan.prepared)])

    def _existing(self, collection: str, group: Sequence[schema.Prepared]) -> list[_Existing]:
        """Ready videos of the collection with the path or the fingerprint of one of the group."""
        conditions = []
        for kind in ("path", "fingerprint"):
            values = sorted({value for each in group for key, value in each.names if key == kind})
            if values:
                conditions.append(f"{kind} IN ({', '.join(_quoted(value) for value in values)})")
        where = f"state = '{schema.READY}' AND collection = {_quoted(collection)} AND ({' OR '.join(conditions)})"
        table = self._store.table(schema.VIDEOS)
        with translated(self._path, "read"):
            query = table.search().where(where).select(["id", "path", "fingerprint", "content", "added"])
            rows = sorted(query.to_arrow().to_pylist(), key=lambda row: row["added"])
        return [_Existing(row["id"], row["path"], row["fingerprint"], row["content"]) for row in rows]

    def _write_rows(self, plans: Sequence[_Plan]) -> None:
        pa = require("pyarrow", extra="library")
        models = self._models({plan.prepared.key.id for plan in plans})
        rows = []
        for plan in plans:
            row = plan.prepared.row
            own = schema.without_shared_model(row["provenance"], models[row["collection"]])
            rows.append({**row, "id": plan.id, "state": schema.ADDING, "provenance": own})
        columns = schema.table_schema(schema.VIDEOS)
        with translated(self._path, "written"):
            self._store.table(schema.VIDEOS).add(pa.Table.from_pylist(rows, schema=columns))
            for name in dict.fromkeys(plan.prepared.key.id for plan in plans):
                members = [plan for plan in plans if plan.prepared.key.id == name]
                frames = [schema.frame_rows(plan.id, plan.prepared.features) for plan in members]
                self._store.table(schema.FRAMES + name).add(pa.concat_tables(frames))
            pictures = [schema.thumbnail_rows(plan.id, plan.prepared.thumbnails) for plan in plans]
            if any(len(each) for each in pictures):
                self._store.table(schema.THUMBNAILS).add(pa.concat_tables(pictures))

    def _models(self, collections: set[str]) -> dict[str, dict[str, Any]]:
        """The model facts that the rows of a collection share."""
        with translated(self._path, "read"):
            rows = self._store.table(schema.COLLECTIONS).search().select(["id", "model"]).to_arrow().to_pylist()
        return {row["id"]: json.loads(row["model"]) for row in rows if row["id"] in collections}

    def _changes(self, plans: Sequence[_Plan]) -> dict[int, dict[str, Any]]:
        changes: dict[int, dict[str, Any]] = {}
        for plan in plans:
            row = plan.prepared.row
            if plan.status in ("added", "replaced"):
                changes[plan.id] = {"state": schema.READY}
            elif plan.status == "moved":
                changes[plan.id] = {"path": row["path"], "name": row["name"]}
        return changes

    def _commit(self, changes: dict[int, dict[str, Any]]) -> None:
        """Change columns of rows of `videos`, all in one commit."""
        pa = require("pyarrow", extra="library")
        table = self._store.table(schema.VIDEOS)
        columns = ["id", "state", "path", "name"]
        with translated(self._path, "written"):
            query = table.search().where(f"id IN ({', '.join(map(str, changes))})").select(columns)
            rows = [{**row, **changes[row["id"]]} for row in query.to_arrow().to_pylist()]
            fields = pa.schema([table.schema.field(name) for name in columns])
            merge = table.merge_insert("id").when_matched_update_all()
            done = merge.execute(pa.Table.from_pylist(rows, schema=fields))
        if done.num_updated_rows != len(changes):
            raise LibraryError(
                f"{self._path}: another writer removed what was being added; several writers of one object store "
                "must not run for longer than an hour each"
            )

    def _add_missing_thumbnails(self, plan: _Plan) -> None:
        table = self._store.table(schema.THUMBNAILS)
        with translated(self._path, "written"):
            if not table.count_rows(f"video = {plan.id}"):
                table.add(schema.thumbnail_rows(plan.id, plan.prepared.thumbnails))

    # --- changing and removing ---------------------------------------------------------------------------

    def move(self, paths: dict[int, tuple[str, str]]) -> None:
        """Give videos other paths and names, in one commit."""
        if paths:
            self._commit({number: {"path": path, "name": name} for number, (path, name) in paths.items()})

    def remove(self, videos: dict[int, str]) -> None:
        """Remove videos, {id: collection}, in one commit."""
        if videos:
            self._commit({number: {"state": schema.REMOVED} for number in videos})
            self._clear(videos)

    def _clear(self, videos: dict[int, str]) -> None:
        """Delete what is left of videos, their rows last: as long as these are there, it can be done again."""
        if not videos:
            return
        numbers = ", ".join(map(str, videos))
        with translated(self._path, "written"):
            self._store.table(schema.THUMBNAILS).delete(f"video IN ({numbers})")
            for name in sorted(set(videos.values())):
                own = ", ".join(str(number) for number, collection in videos.items() if collection == name)
                self._store.table(schema.FRAMES + name).delete(f"video IN ({own})")
            self._store.table(schema.VIDEOS).delete(f"id IN ({numbers})")

    # --- housekeeping ------------------------------------------------------------------------------------

    def _join_fragments(self, collections: Iterable[str]) -> None:
        for name in (schema.VIDEOS, schema.THUMBNAILS, *(schema.FRAMES + each for each in collections)):
            table = self._store.table(name)
            with translated(self._path, "read"):
                many = table.stats()["fragment_stats"]["num_small_fragments"] > _SMALL_FRAGMENTS
            if many:
                # Where an index is being built the rows stay where they are; the next addition looks again.
                with suppress(LockedError), self._store.indexing(0.0), translated(self._path, "written"):
                    table.optimize(cleanup_older_than=KEPT)

    def compact(self) -> None:
        """Join small files, drop deleted rows from them, bring indexes up to date. Old versions stay."""
        with self._store.indexing():
            for name in self._names():
                table = self._store.table(name)
                with translated(self._path, "compacted"):
                    table.optimize(cleanup_older_than=_FOREVER)
            pictures = self._store.table(schema.THUMBNAILS)
            with translated(self._path, "compacted"):
                if pictures.count_rows() >= _INDEX_THUMBNAILS and not list(pictures.list_indices()):
                    btree = require("lancedb.index", extra="library").BTree()
                    pictures.create_index("video", config=btree)

    def vacuum(self, older_than: timedelta) -> int:
        """Remove versions that are older, and files that no version needs; returns the bytes freed."""
        with self._store.indexing():
            names = self._names()
            # Nobody else writes or builds now, so a file without a version is one that a killed process left.
            unverified = self._store.is_local
            with translated(self._path, "vacuumed"), ThreadPoolExecutor(1) as pool:
                work = self._prune(names, max(older_than, timedelta(milliseconds=1)), unverified)
                return pool.submit(asyncio.run, work).result()  # there may be a running loop here

    async def _prune(self, names: Sequence[str], older_than: timedelta, unverified: bool) -> int:
        """LanceDB tells what it freed in its asynchronous interface alone."""
        lancedb = require("lancedb", extra="library")
        connection = await lancedb.connect_async(self._path, storage_options=self._store.storage_options)
        freed = 0
        for name in names:
            table = await connection.open_table(name)
            done = await table.optimize(cleanup_older_than=older_than, delete_unverified=unverified)
            freed += done.prune.bytes_removed
        return freed

    def _names(self) -> list[str]:
        with translated(self._path, "read"):
            rows = self._store.table(schema.COLLECTIONS).search().select(["id"]).to_arrow()
        frames = [schema.FRAMES + name for name in rows["id"].to_pylist()]
        return [schema.ABOUT, schema.COLLECTIONS, schema.VIDEOS, schema.THUMBNAILS, *frames]


class Batches(Generic[T]):
    """Additions gathered until they are worth a commit. What it is given that is no addition it passes on, in order."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._group: list[schema.Prepared] = []
        self._begun = 0.0

    def run(self, items: Iterable[schema.Prepared | T]) -> Iterator[Added | T]:
        """One result per item. An error of the iterable comes after what it gave before is stored."""
        try:
            for item in items:
                if not isinstance(item, schema.Prepared):
                    yield from self._write()
                    yield item
                    continue
                if self._group and not self._fits(item):
                    yield from self._write()
                if not self._group:
                    self._begun = time.monotonic()
                self._group.append(item)
        except Exception:
            yield from self._write()
            raise
        yield from self._write()

    def _fits(self, more: schema.Prepared) -> bool:
        group = self._group
        frames = sum(each.features.num_frames for each in group) + more.features.num_frames
        waited = time.monotonic() - self._begun
        if frames > _GROUP_FRAMES or len(group) >= _GROUP_VIDEOS or waited > _GROUP_SECONDS:
            return False
        names = {name for each in group if each.key.id == more.key.id for name in each.names}
        return not names & more.names  # two of one video: the second replaces the first

    def _write(self) -> list[Added]:
        if not self._group:
            return []
        group, self._group = self._group, []
        with self._store.writing(create=True) as writer:
            return writer.add(group)


def _plan_one(prepared: schema.Prepared, existing: Sequence[_Existing]) -> _Plan:
    """The same video has the same path and bytes; else the same bytes; else, overwritten, the same path."""
    from everyframe.library.moved import is_gone  # loads what decodes

    path, fingerprint = prepared.path, prepared.row["fingerprint"]
    here = next((each for each in existing if each.path == path), None)
    match, gone, removes = here, None, []
    if fingerprint and (here is None or (here.fingerprint and here.fingerprint != fingerprint)):
        copies = [each for each in existing if each.fingerprint == fingerprint]
        gone = next((each for each in copies if is_gone(each.path, fingerprint)), None)
        if here is None:
            match = gone or next(iter(copies), None)
        elif gone is not None:  # moved over another video, which is no more
            match, removes = gone, [here.id]
    if match is None:
        return _Plan(prepared, _new_id(), "added")
    if match.content != prepared.row["content"]:
        return _Plan(prepared, _new_id(), "replaced", (match.id, *removes))
    return _Plan(prepared, match.id, "moved" if match is gone else "unchanged", tuple(removes))


def _after(plan: _Plan, existing: Sequence[_Existing]) -> list[_Existing]:
    """What is left for the next of a group: a video that was replaced is no more, one that moved has its new path."""
    rest = [each for each in existing if each.id not in plan.removes]
    if plan.status == "moved":
        rest = [replace(each, path=plan.prepared.path) if each.id == plan.id else each for each in rest]
    return rest


def _new_id() -> int:
    """Positive, below 2^63, and never one that was used: 63 random bits."""
    return secrets.randbits(63) or 1


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
