"""The tables of a library on disk or in an object store: opened, and read as one consistent state.

Two rules make reading safe beside a writer. A video exists when its row in `videos` says "ready", and that row
changes in one commit, after all its frames are there and before any of them goes. And a `Snapshot` pairs a version of
`videos` with versions of the frames tables that hold every row of every video in it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everyframe.extras import require
from everyframe.library import schema
from everyframe.library.errors import LibraryError, translated
from everyframe.library.locking import locked
from everyframe.library.migrations import MIGRATIONS
from everyframe.library.snapshots import Snapshot, assemble, empty, read_collections, read_records, turn_back

if TYPE_CHECKING:
    from everyframe.library.writing import Writer

# What may lie beside the tables: locks, the journal of `everyframe index`, what `everyframe serve` keeps.
_BESIDE = frozenset({"writer.lock", "index.lock", "everyframe.jsonl", "uploads", "previews"})
_LOOKS = 5  # at a library that changes at that moment
_MOST_REMEMBERED = 10_000


class Store:
    """A library's tables. Several threads may use one store; a process that forks must open its own."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        storage_options: dict[str, str] | None = None,
        as_of: datetime | None = None,
        cache_bytes: int = 1 << 31,
        lock_seconds: float = 60.0,
    ) -> None:
        text = os.fspath(path) if isinstance(path, os.PathLike) else path
        if not isinstance(text, str) or not text:
            raise LibraryError(f"a library needs a folder or an address, got {path!r}")
        if text.startswith("file://"):
            text = text.removeprefix("file://")
        if not lock_seconds >= 0:
            raise LibraryError(f"lock_seconds must be a number of seconds >= 0, got {lock_seconds}")
        if cache_bytes < 1 << 20:
            raise LibraryError(f"cache_bytes must be at least 1 MiB, got {cache_bytes}")
        self.is_local = "://" not in text
        self.path = os.path.abspath(os.path.expanduser(text)) if self.is_local else text.rstrip("/")
        if as_of is not None and not isinstance(as_of, datetime):
            raise TypeError(f"as_of must be a datetime, got {as_of!r}; datetime.fromisoformat makes one of a text")
        if as_of is not None and as_of.tzinfo is None:
            as_of = as_of.replace(tzinfo=timezone.utc)
        self.as_of = as_of
        self.lock_seconds = lock_seconds
        self.storage_options = storage_options
        self._cache_bytes = cache_bytes
        self._mutex = threading.RLock()
        self._connection: Any = None
        self._handles: dict[str, Any] = {}
        self._snapshot: Snapshot | None = None
        self._checked = False
        self._times: tuple[int, dict[int, list[float]]] = (0, {})
        self._empty = empty(self.path)

    # --- opening -----------------------------------------------------------------------------------------

    @property
    def connection(self) -> Any:
        """The LanceDB connection. Connecting makes the folder: ask `exists` first, or be about to write."""
        with self._mutex:
            if self._connection is None:
                # Lance logs a line to stderr for much that is no trouble; set before it is first imported.
                os.environ.setdefault("LANCEDB_LOG", "error")
                # Else a scan of all frames holds several files' worth of rows; it is no faster for that.
                os.environ.setdefault("LANCE_DEFAULT_FRAGMENT_READAHEAD", "1")
                lancedb = require("lancedb", extra="library")
                index_bytes = self._cache_bytes * 7 // 8
                session = lancedb.Session(
                    index_cache_size_bytes=index_bytes, metadata_cache_size_bytes=self._cache_bytes - index_bytes
                )
                with translated(self.path, "opened"):
                    self._connection = lancedb.connect(self.path, storage_options=self.storage_options, session=session)
            return self._connection

    def close(self) -> None:
        """Let go of tables and caches; the store opens them again when it is used again."""
        with self._mutex:
            self._connection, self._handles, self._snapshot, self._checked = None, {}, None, False

    def exists(self) -> bool:
        """Is there a library? Raises LibraryError for a folder that holds other things, and for a damaged library."""
        if self.is_local:
            folder = Path(self.path)
            if not folder.exists():
                return False
            if not folder.is_dir():
                raise LibraryError(f"{self.path} is a file; a library is a folder")
            with translated(self.path, "opened"):
                names = {entry.name for entry in os.scandir(folder) if not entry.name.startswith(".")} - _BESIDE
            if not names:
                return False
            foreign = sorted(name for name in names if not _is_ours(name))
            if foreign and f"{schema.ABOUT}.lance" not in names:
                raise LibraryError(
                    f"{self.path} is no library: it holds other things ({foreign[0]}); name a new or an empty folder"
                )
        if self._open(schema.ABOUT) is not None:
            return True
        videos = self._open(schema.VIDEOS)
        if videos is not None:
            with translated(self.path, "read"):
                begun = videos.count_rows() > 0
            if begun:
                raise LibraryError(
                    f"{self.path} cannot be opened: its table about is missing or damaged; restore it from a copy"
                )
        return False  # its making was interrupted before anything was added

    def _open(self, name: str) -> Any:
        """A new handle of a table, which stays at the version it has now; None where there is no such table."""
        with translated(f"{self.path}: table {name}", "opened"):
            try:
                return self.connection.open_table(name)
            except ValueError as error:
                if "was not found" in str(error):
                    return None
                raise

    def table(self, name: str) -> Any:
        """A new handle of a table that must be there, at its latest version until it is used to write."""
        table = self._open(name)
        if table is None:
            raise LibraryError(
                f"{self.path} cannot be read: its table {name} is missing or damaged; restore it from a copy, or "
                "index the videos into a new library"
            )
        return table

    def _latest(self, name: str) -> Any:
        """A handle that is kept, at the latest version."""
        table = self._handles.get(name)
        if table is None:
            table = self._handles[name] = self.table(name)
        else:
            with translated(f"{self.path}: table {name}", "read"):
                table.checkout_latest()
        return table

    def check_version(self) -> None:
        """Migrate a library of an older format. Raises LibraryError for one of a newer."""
        if self._checked:
            return
        if self._format() < schema.VERSION:
            self._migrate()
        self._checked = True

    def _format(self) -> int:
        """The library's format, which this everyframe reads or can migrate."""
        with translated(self.path, "read"):
            rows = self.table(schema.ABOUT).search().to_arrow().to_pylist()
        about = {row["key"]: row["value"] for row in rows}
        version = about.get("version", "")
        if about.get("format") != schema.FORMAT or not version.isdecimal():
            raise LibraryError(f"{self.path} is no everyframe library: its table about says {about}")
        if int(version) > schema.VERSION:
            raise LibraryError(
                f"{self.path} has format {version}, written by everyframe {about.get('everyframe', '?')}; "
                f"this everyframe reads format {schema.VERSION}: upgrade it (pip install --upgrade everyframe)"
            )
        return int(version)

    def _migrate(self) -> None:
        with self.lock():
            for step in range(self._format(), schema.VERSION):  # read anew: another process may have done it by now
                if step not in MIGRATIONS:
                    raise LibraryError(
                        f"{self.path} has format {step}, which this everyframe can no longer migrate; "
                        "export it with the version that wrote it and import it here"
                    )
                with translated(self.path, f"migrated from format {step}"):
                    MIGRATIONS[step](self.connection)
                    self.table(schema.ABOUT).update(where="key = 'version'", values={"value": str(step + 1)})

    # --- reading -----------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """The library as it is now; the same object as long as nothing changes."""
        with self._mutex:
            if self._snapshot is None:
                if not self.exists():
                    return self._empty
                self.check_version()
            elif self.as_of is not None:
                return self._snapshot
            self._snapshot = self._read() if self.as_of is None else self._read_past(self.as_of)
            return self._snapshot

    def frames(self, collection_id: str) -> Any:
        """The frames table of the present snapshot, see `Snapshot.frames`."""
        return self.snapshot().frames(collection_id)

    def _read(self) -> Snapshot:
        """Frames tables are opened between two looks at `videos`; what it was at that moment is all there in them.

        A video's frames are added before it is ready, and are deleted after it was removed. Where `videos` did not
        change between the looks, that moment is known; else the frames tell.
        """
        old = self._snapshot or self._empty
        before = self._latest(schema.VIDEOS).version
        if before == old.version and all(
            self._latest(schema.FRAMES + name).version == version for name, version in old.table_versions.items()
        ):
            return old
        for _ in range(_LOOKS):
            collections = read_collections(self.path, self.table(schema.COLLECTIONS))
            tables = {name: self._open(schema.FRAMES + name) for name in collections}
            table = self.table(schema.VIDEOS)
            if table.version == before or turn_back(self.path, table, before, tables):
                same = table.version == old.version
                videos = old.videos if same else read_records(self.path, table, collections, old.videos)
                return assemble(self.path, table, videos, collections, tables)
            before = self.table(schema.VIDEOS).version  # not one moment's state, across several collections
        raise LibraryError(f"{self.path} is changing too fast to be read; try again")

    def _read_past(self, moment: datetime) -> Snapshot:
        """As it was then. The order of commits is the order of their times, so the rule of `_read` holds."""
        videos = self._at(schema.VIDEOS, moment)
        if videos is None:
            first = self.history()[0][0]
            raise LibraryError(f"{self.path} goes back to {first:%Y-%m-%d %H:%M:%S} UTC only, not to {moment}")
        collections = read_collections(self.path, self.table(schema.COLLECTIONS))
        records = read_records(self.path, videos, collections)
        used = {record.collection for record in records.values()}
        tables = {name: self._at(schema.FRAMES + name, moment) for name in sorted(used)}
        if missing := [name for name, table in tables.items() if table is None]:
            raise LibraryError(f"{self.path}: the frames of collection {missing[0]} at {moment} are no longer kept")
        return assemble(self.path, videos, records, collections, tables)

    def _at(self, name: str, moment: datetime) -> Any:
        table = self.table(name)
        with translated(self.path, "read"):
            versions = [entry["version"] for entry in table.list_versions() if _utc(entry["timestamp"]) <= moment]
            if not versions:
                return None
            table.checkout(max(versions))
        return table

    def size_on_disk(self) -> int | None:
        """Bytes of all files of a local folder's tables, old versions included."""
        if not self.is_local:
            return None
        total = 0
        for entry in os.scandir(self.path):
            if _is_ours(entry.name):
                for folder, _, names in os.walk(entry.path):
                    total += sum(_size(os.path.join(folder, name)) for name in names)
        return total

    def count_versions(self) -> int:
        """Of `videos` that are kept; of a local folder without opening them."""
        versions = Path(self.path, f"{schema.VIDEOS}.lance", "_versions")
        if not self.is_local:
            return len(self.history())
        return sum(entry.name.endswith(".manifest") for entry in os.scandir(versions)) if versions.is_dir() else 0

    def count_thumbnails(self) -> int:
        """Of all videos, those that are being added or removed included."""
        table = self._open(schema.THUMBNAILS) if self.as_of is None else self._at(schema.THUMBNAILS, self.as_of)
        with translated(self.path, "read"):
            return int(table.count_rows()) if table is not None else 0

    def forget(self) -> None:
        """Read anew: versions that are held may have gone."""
        with self._mutex:
            self._snapshot, self._handles = None, {}

    def thumbnail_times(self, video: int) -> list[float]:
        """Seconds of a video's thumbnails, in order; remembered until some video's change."""
        table = self._thumbnails()
        if table is None:
            return []
        version, known = self._times
        if version != table.version or len(known) > _MOST_REMEMBERED:
            version, known = self._times = (table.version, {})
        if video not in known:
            with translated(self.path, "read"):
                rows = table.search().where(f"video = {int(video)}").select(["time"]).to_arrow()
            known[video] = sorted(rows["time"].to_pylist())
        return known[video]

    def thumbnail(self, video: int, seconds: float) -> bytes | None:
        """The JPEG of exactly this time."""
        table = self._thumbnails()
        with translated(self.path, "read"):
            query = table.search().where(f"video = {int(video)} AND time = {seconds!r}").select(["jpeg"])
            rows = query.to_arrow()["jpeg"].to_pylist()
        return rows[0] if rows else None

    def _thumbnails(self) -> Any:
        with self._mutex:
            return self._latest(schema.THUMBNAILS) if self.as_of is None else self._at(schema.THUMBNAILS, self.as_of)

    def history(self) -> list[tuple[datetime, int]]:
        """When `videos` changed, and the version it got; oldest first, as far as versions are kept."""
        if not self.exists():
            return []
        with translated(self.path, "read"):
            versions = self.table(schema.VIDEOS).list_versions()
        return sorted((_utc(entry["timestamp"]), int(entry["version"])) for entry in versions)

    # --- writing -----------------------------------------------------------------------------------------

    def check_present(self) -> None:
        """Raises LibraryError for a view of the past, which cannot be changed."""
        if self.as_of is not None:
            raise LibraryError(f"{self.path} is open as it was at {self.as_of}; open it without as_of to change it")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only writer of a local folder. An object store has no locks: there commits decide."""
        if not self.is_local:
            yield
            return
        with translated(self.path, "written"):
            os.makedirs(self.path, exist_ok=True)
        with locked(Path(self.path, "writer.lock"), self.lock_seconds, self.path):
            yield

    @contextmanager
    def indexing(self, seconds: float | None = None) -> Iterator[None]:
        """Be the only one that builds indexes or moves rows to other files, in a local folder.

        seconds: how long to wait, `lock_seconds` by default. Taken after `lock` where both are.
        """
        if not self.is_local:
            yield
            return
        wait = self.lock_seconds if seconds is None else seconds
        with locked(Path(self.path, "index.lock"), wait, f"the index of {self.path}"):
            yield

    @contextmanager
    def writing(self, *, create: bool = False) -> Iterator[Writer]:
        """Be the writer: locked, made if wanted, what killed writers left cleared away.

        Raises LibraryError for a view of the past, a folder that holds other things, a library that is not there
        (without `create`), and while another process writes.
        """
        from everyframe.library.writing import Writer

        self.check_present()
        if self.exists():
            self.check_version()
        elif not create:
            raise LibraryError(f"{self.path} holds no library yet; add some videos first")
        with self.lock():
            writer = Writer(self)
            writer.begin()
            yield writer


def _is_ours(name: str) -> bool:
    stem, dot, suffix = name.rpartition(".")
    tables = (schema.ABOUT, schema.COLLECTIONS, schema.VIDEOS, schema.THUMBNAILS)
    return bool(dot) and suffix == "lance" and (stem in tables or stem.startswith(schema.FRAMES))


def _size(file: str) -> int:
    """Bytes, 0 of a file that a writer has just removed."""
    try:
        return os.stat(file).st_size
    except FileNotFoundError:
        return 0


def _utc(naive: datetime) -> datetime:
    """LanceDB gives times of versions in local time, without saying so."""
    return naive.astimezone(timezone.utc)
