"""What a running server holds: the library, the models, the jobs; and the threads that block so that it does not."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from everyframe.features import VideoFeatures
from everyframe.library import Collection, Library, LibraryError, Thumbnail, VideoRecord
from everyframe.serve.children import PictureReader
from everyframe.serve.encoding import Reading
from everyframe.serve.errors import NoModel, Overloaded
from everyframe.serve.files import Workplace
from everyframe.serve.jobs import Jobs, Work
from everyframe.serve.media import KnownFiles
from everyframe.serve.previews import Previews
from everyframe.serve.settings import Limits, Settings, memory_for_jobs
from everyframe.serve.vectors import Vectors
from everyframe.serve.worker import FEATURES, load_thumbnails

if TYPE_CHECKING:
    from everyframe.library import IndexState

T = TypeVar("T")
LOG = logging.getLogger("everyframe.serve")
_GB = 10**9
_WAITING_SEARCHES = 500
_PICTURE_BYTES = 64 * 10**6
_KEPT_TIMES = 20_000
_INDEX_SECONDS = 2.0
_VIEW_SECONDS = 0.5


@dataclass(frozen=True)
class View:
    """The library at one time. videos: by id, in the order they were added."""

    collections: tuple[Collection, ...]
    videos: dict[int, VideoRecord]
    read_at: float


class Service:
    """Made when the server starts, closed when it ends. Coroutines run in one event loop, all else in threads."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.library = Library(settings.library)
        if self.library.exists() and settings.collection is not None:  # raises for a folder that holds other things
            self.library.collection(settings.collection)
        self.place = Workplace(self.library.path, is_local=settings.is_local)
        self.files = KnownFiles()
        self.disk = ThreadPoolExecutor(8, thread_name_prefix="disk")
        self._searching = ThreadPoolExecutor(settings.search_threads, thread_name_prefix="search")
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._waiting = 0
        self._times: OrderedDict[int, list[float]] = OrderedDict()
        self._pictures = _Pictures(_PICTURE_BYTES)
        self._index: tuple[float, str, IndexState | None] = (0.0, "", None)
        self._view: View | None = None
        self._answers: OrderedDict[Hashable, Any] = OrderedDict()
        self._answers_of: tuple[Collection, ...] = ()
        self._view_lock = threading.Lock()

        self.vectors = Vectors(model=settings.model, device=settings.device, remembered=settings.query_cache)
        self.pictures = PictureReader(Limits(memory_bytes=_GB, cpu_seconds=20, file_bytes=0))
        self.previews = Previews(
            self.place,
            most_bytes=settings.preview_bytes,
            limits=Limits(memory_bytes=3 * _GB, cpu_seconds=24 * 3600, file_bytes=settings.preview_bytes // 2),
            stall_seconds=settings.stall_seconds,
        )
        self.jobs = Jobs(
            add=self._add,
            remove=self.remove_folder,
            limits=Limits(memory_bytes=memory_for_jobs(), cpu_seconds=48 * 3600, file_bytes=20 * _GB),
            at_once=settings.jobs_at_once,
            waiting=settings.jobs_waiting,
            stall_seconds=settings.stall_seconds,
        )
        self._first_load: asyncio.Future[None] | None = None

    async def start(self) -> None:
        """Clear away what a killed server left, and begin to load the model of the first query."""
        if self.settings.is_local:
            await self.on_disk(self.place.sweep)
        self._first_load = asyncio.ensure_future(self._load_first())

    def stop_watching(self) -> None:
        """End streams of events, which would go on as long as their jobs."""
        self.jobs.stopping = True

    async def close(self) -> None:
        """End children and threads. What is being written to the library is written to its end."""
        if self._first_load is not None:
            self._first_load.cancel()
        await self.jobs.close()
        await self.previews.close()
        await self.pictures.close()
        self.vectors.close()
        for pool in (self._searching, self._writing, self.disk):
            pool.shutdown(wait=True, cancel_futures=True)
        self.library.close()
        self.place.close()

    # --- threads -----------------------------------------------------------------------------------------

    async def in_search(self, call: Callable[[], T]) -> T:
        """Read from the library. Raises Overloaded."""
        if self._waiting >= _WAITING_SEARCHES:
            raise Overloaded("the server has more requests than it can answer; try again")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._searching, call)
        finally:
            self._waiting -= 1

    async def in_writer(self, call: Callable[[], T]) -> T:
        """Write to the library; one thing after the other."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._writing, call)
        finally:
            self.changed()

    async def on_disk(self, call: Callable[[], T]) -> T:
        """Anything else that waits for a disk."""
        return await asyncio.get_running_loop().run_in_executor(self.disk, call)

    # --- the library -------------------------------------------------------------------------------------

    def view(self) -> View:
        """What the library holds, or held less than half a second ago: looking takes milliseconds of a processor."""
        with self._view_lock:
            if self._view is None or time.monotonic() - self._view.read_at > _VIEW_SECONDS:
                read_at = time.monotonic()
                videos = {record.id: record for record in self.library.videos()}
                collections = tuple(self.library.collections())
                self._view = View(collections, videos, read_at)
                # The library gives the same objects for as long as nothing changes in it.
                if list(map(id, collections)) != list(map(id, self._answers_of)):
                    self._answers.clear()
                    self._answers_of = collections
            return self._view

    def answer(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` gives, remembered while the library stays as it is."""
        self.view()
        with self._view_lock:
            answers, known = self._answers_of, self._answers.get(key)
        if known is not None:
            return known  # type: ignore[no-any-return]
        made = make()
        with self._view_lock:
            if answers is self._answers_of and self.settings.answer_cache:
                self._answers[key] = made
                while len(self._answers) > self.settings.answer_cache:
                    self._answers.popitem(last=False)
        return made

    def changed(self) -> None:
        """What is written here is seen at once."""
        with self._view_lock:
            self._view = None

    def collection(self, wanted: str | None) -> Collection | None:
        """The one asked for, or that of --collection, or the one with the most frames; None where there is none yet.

        Raises LibraryError where none is called so.
        """
        found = self.view().collections
        wanted = wanted or (self.settings.collection if found else None)
        if wanted:
            return next((each for each in found if each.id == wanted), None) or self.library.collection(wanted)
        return max(found, key=lambda each: each.num_frames, default=None)

    def video(self, id: str) -> VideoRecord | None:
        """The video with this id."""
        record = self.view().videos.get(int(id))
        if record is None:  # it may have come just now
            self.changed()
            record = self.view().videos.get(int(id))
        return record

    def thumbnail_times(self, id: int) -> list[float]:
        """When the thumbnails of a video are; they never change."""
        known = self._times.get(id)
        if known is None:
            known = self._times[id] = self.library.thumbnails(id)
            while len(self._times) > _KEPT_TIMES:
                self._times.popitem(last=False)
        return known

    def thumbnail(self, id: int, seconds: float) -> bytes | None:
        """The JPEG nearest to that time."""
        times = self.thumbnail_times(id)
        if not times:
            return None
        nearest = min(times, key=lambda time: abs(time - seconds))
        return self._pictures.get((id, nearest), lambda: self._read_thumbnail(id, nearest))

    def _read_thumbnail(self, id: int, seconds: float) -> bytes | None:
        found = self.library.thumbnail(id, seconds)
        return None if found is None else found.jpeg

    def index_state(self, collection: Collection) -> IndexState:
        """Not older than two seconds."""
        read_at, id, state = self._index
        if state is None or id != collection.id or time.monotonic() - read_at > _INDEX_SECONDS:
            state = self.library.index_state(collection.id)
            self._index = (time.monotonic(), collection.id, state)
        return state

    def remove(self, record: VideoRecord) -> None:
        """The video, its preview, and its file where that was uploaded here."""
        self.library.remove(record.id)
        if record.fingerprint is not None:
            self.previews.remove(record.fingerprint)
        if self.place.owns(record.path) and not any(each.path == record.path for each in self.library.videos()):
            Path(record.path).unlink(missing_ok=True)

    # --- adding ------------------------------------------------------------------------------------------

    @property
    def can_add(self) -> bool:
        """Can videos be added here?"""
        if not self.settings.is_local:
            return bool(self.settings.videos)
        place = next(each for each in (self.place.root, *self.place.root.parents) if each.exists())
        return os.access(place, os.W_OK)

    def reading(self) -> Reading:
        """How a video that is added now is read."""
        settings, collection = self.settings, self.collection(None)
        facts = {"id": settings.model or "openai/clip-vit-base-patch16"} if collection is None else collection.model
        shared = Reading(facts=facts, model=settings.model, device=settings.device, fps=settings.fps)
        if settings.encoder is not None or collection is None:
            return replace(shared, name=settings.encoder or "reuse")
        own = dict(collection.settings)
        return replace(shared, settings=own if settings.fps is None else {**own, "fps": settings.fps})

    def known_video(self, identity: dict[str, object]) -> VideoRecord | None:
        """The video of the collection that is added to with the same content."""
        collection, fingerprint = self.collection(None), identity.get("fingerprint")
        if collection is None or fingerprint is None:
            return None
        same = (record for record in self.view().videos.values() if record.fingerprint == fingerprint)
        return next((record for record in same if record.collection == collection.id), None)

    def take_place(self, record: VideoRecord, upload: Path, name: str) -> None:
        """The file of a video is gone; an upload of the same content is its file from now on."""
        path = self.place.keep(upload, name)
        feats = self.library.features(record.id)
        added = self.library.add(replace(feats, video={**feats.video, "path": str(path)}))
        if added.status != "moved":  # it came back meanwhile
            path.unlink(missing_ok=True)

    async def _add(self, work: Work) -> int:
        return await self.in_writer(lambda: self._add_now(work))

    def _add_now(self, work: Work) -> int:
        """An upload is moved to where it stays before the library names it: never a video without a file."""
        feats = VideoFeatures.load(work.folder / FEATURES)
        pictures = [Thumbnail(time, jpeg) for time, jpeg in load_thumbnails(work.folder)]
        uploaded = work.source.parent == work.folder
        path = self.place.keep(work.source, work.name) if uploaded else work.source
        try:
            added = self.library.add(replace(feats, video={**feats.video, "path": str(path)}), thumbnails=pictures)
        except BaseException:
            if uploaded:
                path.unlink(missing_ok=True)
            raise
        if uploaded and added.status == "unchanged":
            path.unlink(missing_ok=True)
        self.library.refresh(wait=False)
        return added.id

    async def remove_folder(self, folder: Path) -> None:
        """With all that is in it."""
        await self.on_disk(lambda: shutil.rmtree(folder, ignore_errors=True))

    async def _load_first(self) -> None:
        """The model of the first query, before it comes."""
        with contextlib.suppress(NoModel, LibraryError):
            collection = await self.in_search(lambda: self.collection(None))
            if collection is not None:
                await self.vectors.load(collection)


class _Pictures:
    """Thumbnails by what they are of, up to so many bytes."""

    def __init__(self, most_bytes: int) -> None:
        self._most, self._bytes = most_bytes, 0
        self._kept: OrderedDict[tuple[int, float], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[int, float], read: Callable[[], bytes | None]) -> bytes | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        jpeg = read()
        if jpeg is not None:
            with self._lock:
                self._bytes += len(jpeg) - len(self._kept.pop(key, b""))
                self._kept[key] = jpeg
                while self._bytes > self._most:
                    self._bytes -= len(self._kept.popitem(last=False)[1])
        return jpeg
