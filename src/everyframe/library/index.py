"""The index of a collection's frames: when one is due, how it is made, and what state it is in.

Up to `INDEX_FRAMES` frames every search looks at all of them. Above, an IVF_RQ index (RaBitQ: a few bits per dimension)
finds those that may be nearest, and their stored vectors rank them exactly. New frames are searched beside the index
until `refresh` takes them in.

Building reads a fixed version of the table and ends in one commit. Until then, and if it is killed, the old index
stays; what is added meanwhile is not in the new one yet. So builds do not take the lock of writers, only `index.lock`:
moving rows to other files while an index is built would make the build worthless.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from everyframe.extras import require
from everyframe.library import schema
from everyframe.library.errors import LibraryError, LockedError, translated
from everyframe.library.reading import EMBEDDING
from everyframe.library.records import Collection

if TYPE_CHECKING:
    from everyframe.library.store import Store

IndexKind = Literal["exact", "IVF_RQ", "IVF_SQ"]

INDEX_FRAMES = 100_000
"""From so many frames on a collection gets an index."""

# From so many rows on, frames or thumbnails, which of them are of a video is looked up.
_SCALAR_FRAMES = 20_000
# Rows beside the index are compared one by one, which for so many takes about as long as the index does.
_MOST_UNINDEXED = 20_000
# An index describes the rows it was made of; with many times as many, or many parts added to it, it is made anew.
_REBUILD_GROWTH, _MOST_SEGMENTS = 4, 16
# Of a dimension in the index; the most with which it stays that small, and is cached whole, but never fewer than two:
# with one, the cosines of texts, which differ little, are lost in its noise (docs/library.md).
_MOST_BITS, _FEWEST_BITS, _INDEX_BYTES = 4, 2, 768 << 20
_NAME = "embedding_"  # and the number of rows it was made of
_ITERATIONS = 10  # of k-means; 50, the default, find no better partitions and take twice as long
_TRIES = 3
# How long `refresh(wait=True)` waits for another process that builds.
_WAIT_SECONDS = 24 * 3600.0
_FOREVER = timedelta(days=36500)


@dataclass(frozen=True, kw_only=True)
class IndexState:
    """frames: what can be searched in a collection. indexed: how many of them the index has; the others are compared
    one by one. kind: "exact" without an index (IVF_SQ: for a dim that 8 does not divide). building: is someone building
    or compacting in this library now? On an object store that is known of this process alone. due: would `refresh`
    build, or take new frames in?
    """

    frames: int
    indexed: int
    kind: IndexKind
    building: bool
    due: bool


def vector_index(table: Any) -> Any:
    """LanceDB's description of the newest index of the embeddings, or None."""
    with translated(table.name, "read"):
        found = [index for index in table.list_indices() if list(index.columns) == [EMBEDDING]]
    return max(found, key=lambda index: index.created_at, default=None)


def index_state(store: Store, collection: Collection, *, building: bool = False) -> IndexState:
    """The state of a collection's index. building: whether this process builds."""
    table = store.table(schema.FRAMES + collection.id)
    index, due = vector_index(table), _due(table) is not None
    indexed = 0
    kind: IndexKind = "exact"
    if index is not None:
        indexed = min(int(index.num_indexed_rows), collection.num_frames)
        kind = "IVF_RQ" if "RQ" in index.index_type.upper() else "IVF_SQ"
    return IndexState(
        frames=collection.num_frames, indexed=indexed, kind=kind, building=building or _in_progress(store), due=due
    )


def _in_progress(store: Store) -> bool:
    """Does some process hold index.lock? A shared lock asks, so that those who ask do not see each other."""
    if not store.is_local:
        return False
    try:
        handle = os.open(Path(store.path, "index.lock"), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


class Refresher:
    """Brings the indexes of a store's collections up to date, here or in a thread; one at a time."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._mutex = threading.Lock()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def building(self) -> bool:
        """Is the thread at work?"""
        return self._thread is not None and self._thread.is_alive()

    def refresh(self, *, wait: bool = True) -> None:
        """Build and extend what is due: nothing, most of the time, and then it costs milliseconds.

        wait=False: in a thread, unless it is at work already or another process is; an error in it is raised by the
        next `refresh` or `close`. Killed at any moment it leaves the index as it was. Raises LibraryError for a view
        of the past.
        """
        self._store.check_present()
        with self._mutex:
            self._raise()
            if wait:
                self._join()
                self._run(_WAIT_SECONDS)
            elif not self.building:
                self._thread = threading.Thread(target=self._guarded, name="everyframe-index", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Wait for the thread. Raises its error."""
        with self._mutex:
            self._join()

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _guarded(self) -> None:
        try:
            with contextlib.suppress(LockedError):  # another process is at it
                self._run(0.05)  # longer than a look of `index_state` takes
        except BaseException as error:
            self._error = error

    def _run(self, seconds: float) -> None:
        collections = self._store.snapshot().collections
        tables = [schema.THUMBNAILS] if collections else []
        for name in [*tables, *(schema.FRAMES + each for each in collections)]:
            while _due(self._store.table(name)) is not None:
                with self._store.indexing(seconds):
                    self._step(name)

    def _step(self, name: str) -> None:
        """What a table needs next; again where the commit of a writer came between."""
        for left in reversed(range(_TRIES)):
            table = self._store.table(name)
            step = _due(table)
            if step is None:
                return
            try:
                with translated(self._store.path, "indexed"):
                    _take(table, step)
                return
            except LibraryError as error:
                if not left or "conflict" not in str(error.__cause__).lower():
                    raise


Step = Literal["videos", "build", "extend", "drop"]


def _due(table: Any) -> Step | None:
    """What a table of frames, or that of thumbnails, needs next."""
    with translated(table.name, "read"):
        frames = table.count_rows()
        indexes = list(table.list_indices())
    of_videos = [index for index in indexes if list(index.columns) == ["video"]]
    if frames >= _SCALAR_FRAMES and not of_videos:
        return "videos"
    if EMBEDDING not in table.schema.names:
        return "extend" if of_videos and of_videos[0].num_unindexed_rows > _MOST_UNINDEXED else None
    of_vectors = [index for index in indexes if list(index.columns) == [EMBEDDING]]
    if not of_vectors:
        return "build" if frames >= INDEX_FRAMES else None
    if len(of_vectors) > 1:
        return "drop"
    index = of_vectors[0]
    if frames > _REBUILD_GROWTH * _rows_when_built(index.name) or index.num_segments > _MOST_SEGMENTS:
        return "build"
    return "extend" if index.num_unindexed_rows > _MOST_UNINDEXED else None


def _rows_when_built(name: str) -> int:
    digits = name.removeprefix(_NAME)
    return max(int(digits), INDEX_FRAMES) if digits.isdecimal() else INDEX_FRAMES


def _bits(frames: int, dim: int) -> int:
    for bits in range(_MOST_BITS, _FEWEST_BITS, -1):
        if frames * (dim * bits // 8 + 24) <= _INDEX_BYTES:
            return bits
    return _FEWEST_BITS


def _take(table: Any, step: Step) -> None:
    indexes = require("lancedb.index", extra="library")
    if step == "videos":
        table.create_index("video", config=indexes.BTree())
    elif step == "build":
        dim = table.schema.field(EMBEDDING).type.list_size
        frames, options = table.count_rows(), {"distance_type": "cosine", "max_iterations": _ITERATIONS}
        if dim % 8 == 0:
            config = indexes.IvfRq(num_bits=_bits(frames, dim), **options)
        else:  # RaBitQ takes no other dims
            config = indexes.IvfSq(**options)
        # A new name, so that the old index stays until the new one is there; "drop" removes it then.
        table.create_index(EMBEDDING, config=config, name=f"{_NAME}{frames}")
    elif step == "extend":
        table.optimize(cleanup_older_than=_FOREVER)
    else:
        newest = vector_index(table).name
        for index in table.list_indices():
            if list(index.columns) == [EMBEDDING] and index.name != newest:
                table.drop_index(index.name)
