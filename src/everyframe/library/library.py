"""`Library`: the archive. Videos are added as features; moments are found in all of them at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from everyframe.features import FeaturesError, VideoFeatures
from everyframe.library import schema
from everyframe.library.errors import LibraryError, translated
from everyframe.library.filters import Filter, allowed
from everyframe.library.index import IndexState, Refresher, index_state
from everyframe.library.naming import choose_collection, find_video, one_video
from everyframe.library.reading import incomplete
from everyframe.library.records import Added, Collection, LibraryStats, Thumbnail, VideoRecord
from everyframe.library.search import ArchiveHit, Searcher
from everyframe.library.snapshots import Snapshot
from everyframe.library.store import Store
from everyframe.library.transfer import Imported, check_format, export_files, import_files
from everyframe.library.writing import KEPT, Batches
from everyframe.tasks.retrieval import Level

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")


class Library:
    """An archive of features in a folder (or s3://, gs://), made when the first video is added.

    as_of: a time; the library as it was then, to read only. cache_bytes: memory for indexes and what is known of the
    tables. lock_seconds: how long to wait for another writer.

    Any number of processes and threads may read while one writes; what they see is always whole. Other writers of a
    local folder wait. Methods raise LibraryError where the library cannot be read or written, or does not hold what
    is asked for.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        storage_options: dict[str, str] | None = None,
        as_of: datetime | None = None,
        cache_bytes: int = 1 << 31,
        lock_seconds: float = 60.0,
    ) -> None:
        self._store = Store(
            path,
            storage_options=storage_options,
            as_of=as_of,
            cache_bytes=cache_bytes,
            lock_seconds=lock_seconds,
        )
        self._searcher = Searcher(self._store)
        self._refresher = Refresher(self._store)

    def __repr__(self) -> str:
        return f"Library({self.path!r})"

    @property
    def path(self) -> str:
        """The folder (absolute) or the address."""
        return self._store.path

    def exists(self) -> bool:
        """Is there a library? Raises LibraryError for a folder that holds other things."""
        return self._store.exists()

    def close(self) -> None:
        """Wait for a background `refresh`, let go of open files and caches. Raises what the refresh raised."""
        try:
            self._refresher.close()
        finally:
            self._searcher.close()
            self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- adding and removing -----------------------------------------------------------------------------

    def add(
        self, feats: VideoFeatures, *, thumbnails: Sequence[Thumbnail] = (), collection: str | None = None
    ) -> Added:
        """Add the features of one video, stored as float16, or replace those of the same video in the same collection.

        The same video is one with the same fingerprint, else with the same path. Which collection features belong to
        follows from how they were made; `collection`, an id or a label, only makes sure that it is this one.
        When this returns, the video is stored whole; however it ends before, the library is as it was.

        Raises UnusableVideoError for features that say no path, have no frames, a row of zeros, or values that
        float16 cannot hold; LibraryError when the library cannot be written (full disk, no permission, another writer).
        """
        prepared = schema.prepare(feats, thumbnails)
        if collection is not None and collection not in (prepared.key.id, prepared.key.label):
            raise LibraryError(
                f"{prepared.path} belongs to the collection {prepared.key.label} ({prepared.key.id}), "
                f"not to {collection}; encode it as those are"
            )
        with self._store.writing(create=True) as writer:
            return writer.add([prepared])[0]

    def add_all(self, items: Iterable[VideoFeatures | tuple[VideoFeatures, Sequence[Thumbnail]]]) -> Iterator[Added]:
        """`add` for many: each is reported, in order, when it is stored; many small ones share a commit.

        An iterator; nothing happens until it is read. A killed run keeps all that were reported.
        Raises as `add` does; what was given before is stored then.
        """
        pairs = ((item, ()) if isinstance(item, VideoFeatures) else item for item in items)
        return Batches[Added](self._store).run(schema.prepare(feats, thumbnails) for feats, thumbnails in pairs)

    def remove(self, *videos: int | str) -> int:
        """Remove videos, given by id, path or name, from every collection; returns how many went, 0 for none given.

        Raises LibraryError, and removes nothing, where one of them is not there or a name means several.
        """
        if not videos:
            return 0
        with self._store.writing() as writer:
            snapshot = self._store.snapshot()
            found = {record.id: record.collection for each in videos for record in find_video(snapshot, each)}
            writer.remove(found)
        return len(found)

    # --- what is there -----------------------------------------------------------------------------------

    def collections(self) -> list[Collection]:
        """The collections that hold videos, oldest first."""
        return list(self._store.snapshot().collections.values())

    def collection(self, wanted: str | None = None) -> Collection:
        """The one with this id, beginning of an id, or label; without `wanted` the only one there is.

        Raises LibraryError, naming them, where there are several, and where none fits.
        """
        return choose_collection(self._store.snapshot(), wanted)

    def videos(self, collection: str | None = None, where: Filter | None = None) -> list[VideoRecord]:
        """All videos, or those of one collection, that a `Filter` lets through; in the order they were added."""
        records = self._records(self._store.snapshot(), collection)
        return records if where is None else allowed(records, where)

    def _records(self, snapshot: Snapshot, collection: str | None) -> list[VideoRecord]:
        if collection is None:
            return list(snapshot.videos.values())
        return snapshot.by_collection(choose_collection(snapshot, collection).id)

    def video(self, wanted: int | str, collection: str | None = None) -> VideoRecord:
        """The video with this id, path or name. Raises LibraryError where there is none, or more than one."""
        return one_video(self._store.snapshot(), wanted, collection)

    def find(self, wanted: int | str, collection: str | None = None) -> list[VideoRecord]:
        """`video`, for one that may be in several collections: its record in each. Raises LibraryError for none."""
        return find_video(self._store.snapshot(), wanted, collection)

    def features(self, video: int | str, collection: str | None = None) -> VideoFeatures:
        """What was added, with float16 embeddings and its whole provenance; `video["path"]` is where it was last seen.

        Raises LibraryError where the video is not there, or its rows do not have the hash they were stored with.
        """
        return self._of_video(video, collection, self._read_features)

    def _of_video(self, video: int | str, collection: str | None, read: Callable[[Snapshot, VideoRecord], T], /) -> T:
        """What `read` gives for a video, both of one snapshot; of a newer one where that fails."""
        snapshot = self._store.snapshot()
        while True:
            record = one_video(snapshot, video, collection)
            try:
                return read(snapshot, record)
            except LibraryError:
                # Someone may have removed old versions under our hands; what is there now can be read.
                later = self._store.snapshot()
                if later is snapshot:
                    raise
                snapshot = later

    def _read_features(self, snapshot: Snapshot, record: VideoRecord) -> VideoFeatures:
        table = snapshot.frames(record.collection)
        with translated(f"{record.path} in {self.path}", "read"):
            query = table.search().where(f"video = {record.id}").select(["time", "embedding"])
            rows = query.limit(record.num_frames + 1).to_arrow()
            if len(rows) != record.num_frames:
                raise incomplete(table, record)
            times = rows["time"].to_numpy()
            dim = snapshot.collections[record.collection].dim
            values = rows["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, dim)
            facts = snapshot.facts([record.id], ["roles", "content"])[record.id]
            order = np.argsort(times, kind="stable")
        damaged = LibraryError(
            f"{record.path} in {self.path} does not match its checksum: its frames are damaged; "
            "remove the video and add it again"
        )
        try:
            feats = VideoFeatures(
                times=times[order], embeddings=values[order], roles=facts["roles"], **record.provenance
            )
        except FeaturesError as error:
            raise damaged from error
        if schema.content_hash(feats) != facts["content"]:
            raise damaged
        return feats

    def roles(self, video: int | str, collection: str | None = None) -> str:
        """What the encoder did to each frame, a letter each, see `VideoFeatures.roles`."""

        def read(snapshot: Snapshot, record: VideoRecord) -> str:
            return str(snapshot.facts([record.id], ["roles"])[record.id]["roles"])

        return self._of_video(video, collection, read)

    def thumbnails(self, video: int | str, collection: str | None = None) -> list[float]:
        """Seconds of the thumbnails that are stored of a video, in order."""
        record = self.video(video, collection)
        return list(self._store.thumbnail_times(record.id))

    def thumbnail(self, video: int | str, seconds: float, collection: str | None = None) -> Thumbnail | None:
        """The stored thumbnail nearest to a time; None where the video has none."""
        record = self.video(video, collection)
        times = self._store.thumbnail_times(record.id)
        if not times:
            return None
        nearest = min(times, key=lambda time: abs(time - seconds))
        jpeg = self._store.thumbnail(record.id, nearest)
        return None if jpeg is None else Thumbnail(nearest, jpeg)  # None: it has just been removed

    def stats(self) -> LibraryStats:
        """How much there is of everything."""
        snapshot = self._store.snapshot()
        records = snapshot.videos.values()
        exists = snapshot.version != 0
        return LibraryStats(
            num_videos=len(records),
            num_frames=sum(record.num_frames for record in records),
            seconds=sum(record.end - record.start for record in records),
            num_thumbnails=self._store.count_thumbnails() if exists else 0,
            num_versions=self._store.count_versions(),
            bytes_on_disk=self._store.size_on_disk() if exists else 0,
            collections=tuple(snapshot.collections.values()),
        )

    def history(self) -> list[tuple[datetime, int]]:
        """When videos came or went (UTC), and the version since then; oldest first, as far back as `as_of` can go."""
        return self._store.history()

    # --- searching ---------------------------------------------------------------------------------------

    def search(
        self,
        query: Any,
        *,
        top: int = 10,
        collection: str | None = None,
        level: Level = "moment",
        per_video: int = 3,
        smooth: float = 2.0,
        threshold: float = 1.0,
        shortest: float = 2.0,
        where: Filter | None = None,
        exact: bool = False,
    ) -> list[ArchiveHit]:
        """The best moments, clips or videos for a query, highest score first, as `Searcher.search` tells.

        query: [dim] array or tensor, or a `Query` of several. collection: id or label, where there are several.
        """
        return self._searcher.search(
            self.collection(collection),
            query,
            top=top,
            level=level,
            per_video=per_video,
            smooth=smooth,
            threshold=threshold,
            shortest=shortest,
            where=where,
            exact=exact,
        )

    def curve(
        self, video: int | str, query: Any, collection: str | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """(times [T] in seconds, cosines [T]) of every frame of a video with a query."""
        return self._of_video(video, collection, lambda snapshot, record: self._searcher.curve(snapshot, record, query))

    def frame(self, video: int | str, seconds: float, collection: str | None = None) -> NDArray[np.float32]:
        """float32 [dim], the frame nearest to a time: a query for others like it."""
        return self._of_video(
            video, collection, lambda snapshot, record: self._searcher.frame(snapshot, record, seconds)
        )

    def index_state(self, collection: str | None = None) -> IndexState:
        """How far the index of a collection covers its frames."""
        return index_state(self._store, self.collection(collection), building=self._refresher.building)

    def refresh(self, *, wait: bool = True) -> None:
        """Bring files and indexes up to date where that is due; after many additions, before many searches.

        wait: with False in a background thread; its error is raised by `close` or the next `refresh`.
        """
        self._refresher.refresh(wait=wait)

    # --- files -------------------------------------------------------------------------------------------

    def import_files(self, paths: Iterable[str | os.PathLike[str]]) -> Iterator[Imported]:
        """Add the videos of feature files, or folders of them; one result per file, those that fail with the reason.

        Raises FeaturesError at once for a path that is not there or a folder without feature files, LibraryError when
        the library cannot be written.
        """
        return import_files(self._store, [paths] if isinstance(paths, (str, os.PathLike)) else paths)

    def export(
        self,
        out: str | os.PathLike[str],
        *,
        format: str = "npz",
        videos: Iterable[int | str] | None = None,
        collection: str | None = None,
        failures: list[tuple[str, LibraryError]] | None = None,
    ) -> list[Path]:
        """Write features to files below a folder: "npz", "npy", "h5" or "parquet", named after the videos.

        videos: ids, paths or names; all by default. failures: collects (path of the video, error) for those that
        cannot be exported, so that the others are; without it the first such error is raised. A file that holds
        something else than this video's features is not overwritten. Raises LibraryError, ImportError where the
        format's package is missing.
        """
        check_format(format)
        snapshot = self._store.snapshot()
        if videos is None:
            records = self._records(snapshot, collection)
        else:
            found = {record.id: record for each in videos for record in find_video(snapshot, each, collection)}
            records = list(found.values())

        def features() -> Iterator[VideoFeatures | LibraryError]:
            for record in records:
                try:
                    yield self._read_features(snapshot, record)
                except LibraryError as error:
                    yield error

        return export_files(records, features(), out, format=format, failures=failures)

    def relink(self, paths: Iterable[str | os.PathLike[str]]) -> list[tuple[VideoRecord, str]]:
        """Find videos whose files are gone, by size and fingerprint, among files or below folders; keep the new paths.

        Returns (the video as it was recorded, its new path). Raises LibraryError for a path that is not there.
        """
        from everyframe.library.moved import find_moved  # decodes nothing, but loads what does

        places = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
        found = find_moved(self.videos(), places)
        if found:
            with self._store.writing() as writer:
                there = self._store.snapshot().videos
                writer.move({each.id: (path, os.path.basename(path)) for each, path in found if each.id in there})
        return found

    # --- housekeeping ------------------------------------------------------------------------------------

    def compact(self) -> None:
        """Join the small files that many additions leave, and drop removed rows from them; `vacuum` frees the space."""
        with self._store.writing() as writer:
            writer.compact()

    def vacuum(self, older_than: timedelta = KEPT) -> int:
        """Remove the files of past versions that are older, and of killed writers; returns the bytes freed.

        Searches that began longer ago fail, and `as_of` goes back no further.
        """
        if older_than < timedelta(0):
            raise LibraryError(f"older_than must not be negative, got {older_than}")
        with self._store.writing() as writer:
            freed = writer.vacuum(older_than)
        self._store.forget()
        return freed
