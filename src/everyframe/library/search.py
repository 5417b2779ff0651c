"""Search in a library: moments, clips and videos, cut and ranked as in `everyframe.tasks.retrieval.search`.

Small tables are kept in memory and compared as a whole. Of large ones an index finds the nearest frames, and they lead
to the moments (`everyframe.library.lookup`). What has no index yet is read in batches.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from everyframe.features import nearest_rows
from everyframe.library.errors import LibraryError
from everyframe.library.filters import Filter, allowed
from everyframe.library.hits import ArchiveHit, Best, Question
from everyframe.library.index import vector_index
from everyframe.library.lookup import MOST_LISTED, lookup
from everyframe.library.moments import SMOOTH_SECONDS, MomentRule, Peaked
from everyframe.library.query import direction
from everyframe.library.reading import InMemory, condition, curves, incomplete, nearest, rows_at, times_of
from everyframe.library.records import Collection, VideoRecord
from everyframe.tasks.retrieval import LEVELS, Level

if TYPE_CHECKING:
    from everyframe.library.store import Snapshot, Store

__all__ = ["ArchiveHit", "Searcher"]

# A table whose rows as float32 are below this is kept in memory, unless it has an index.
_MEMORY_BYTES = 256 << 20
# Of an indexed table, so many frames are read and compared rather than looked up.
_FEW_FRAMES = 16_384


class Searcher:
    """Search in the tables of a store. Thread-safe; small tables are kept in memory until they change."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._memory: dict[str, tuple[int, InMemory]] = {}

    def close(self) -> None:
        """Let what is in memory go."""
        with self._lock:
            self._memory.clear()

    def search(
        self,
        collection: Collection,
        query: Any,
        *,
        top: int = 10,
        level: Level = "moment",
        per_video: int = 3,
        smooth: float = SMOOTH_SECONDS,
        threshold: float = 1.0,
        shortest: float = 2.0,
        where: Filter | None = None,
        exact: bool = False,
    ) -> list[ArchiveHit]:
        """The best moments, clips or videos of a collection, as `everyframe.tasks.retrieval.search` defines them.

        query: a vector [dim], or a `Query` of several. where: videos that may be found. exact: compare every frame,
        also where there is an index. Scores are cosines, or what `Query` says.

        With an index, and without exact, a moment can be missing where the index misses all frames near its peak,
        where several thousand frames of other moments score higher than it, or where its frames are less than half as
        dense as those of its video on average. What is found is exact, score and span, either way. A `smooth` other
        than the default reads whole videos, and takes longer.

        Raises ValueError for a query or parameters that do not fit, LibraryError for level="clip" where rows are
        frames.
        """
        if level not in LEVELS:
            raise ValueError(f"level must be one of {', '.join(LEVELS)}, got {level!r}")
        if level == "clip" and not collection.of_clips:
            raise LibraryError(
                f"collection {collection.label} is of frames, and there are no clips to find in it; encode videos with "
                "--encoder tempme, or search for moments or videos"
            )
        snapshot = self._store.snapshot()
        everything = snapshot.by_collection(collection.id)
        videos = [video for video in allowed(everything, where) if video.num_frames]
        found = {video.id for video in videos}
        question = Question(
            table=snapshot.tables.get(collection.id),
            collection=snapshot.collections.get(collection.id, collection),
            videos=videos,
            left_out=[video.id for video in everything if video.id not in found],
            direction=direction(query, collection.dim, str(collection.model.get("id", "not recorded"))),
            rule=MomentRule(
                per_video=1 if level == "video" else per_video, smooth=smooth, threshold=threshold, shortest=shortest
            ),
            top=top,
            of_rows=collection.of_clips,
        )
        if not videos:
            return []
        if level == "video" and not collection.of_clips:
            return _whole_videos(question)
        kept = question.collection
        indexed = vector_index(question.table) is not None
        if not indexed and kept.num_frames * kept.dim * 4 <= _MEMORY_BYTES:
            return _in_memory(question, self._loaded(snapshot, collection.id))
        if exact or not indexed or question.num_frames <= _FEW_FRAMES:
            return _everything(question)
        return lookup(question)

    def _loaded(self, snapshot: Snapshot, collection_id: str) -> InMemory:
        version = snapshot.table_versions[collection_id]
        with self._lock:  # one thread reads, others that need it too wait for it
            known = self._memory.get(collection_id)
            if known is None or known[0] != version:
                self._memory.pop(collection_id, None)
                known = self._memory[collection_id] = (version, InMemory.read(snapshot.tables[collection_id]))
            return known[1]

    def curve(
        self, snapshot: Snapshot, video: VideoRecord, query: Any
    ) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Times of a video's frames, float64 [T] in seconds, and the score of each, float32 [T].

        snapshot: that `video` is in. Raises LibraryError where its rows are not all there.
        """
        collection = snapshot.collections[video.collection]
        asked = direction(query, collection.dim, str(collection.model.get("id", "not recorded")))
        if not video.num_frames:
            return np.empty(0), np.empty(0, dtype=np.float32)
        ((_, times, scores),) = curves(snapshot.tables[video.collection], [video], asked)
        return times, scores

    def frame(self, snapshot: Snapshot, video: VideoRecord, seconds: float) -> NDArray[np.float32]:
        """The vector of the frame nearest in time, float32 [dim] of length one: to search for what looks like it.

        snapshot: that `video` is in. Raises ValueError for a time that is not of the video, LibraryError where its rows
        are not all there.
        """
        if not np.isfinite(seconds):
            raise ValueError(f"seconds must be a finite number, got {seconds}")
        if not video.num_frames:
            raise LibraryError(f"{video.name} has no frames")
        if not video.start - 1.0 <= seconds <= video.end + 1.0:  # players and headers round
            raise ValueError(f"{video.name} has frames from {video.start:g} to {video.end:g} s, not at {seconds:g} s")
        table = snapshot.frames(video.collection)
        times, rows = times_of(table, video.id)
        if len(times) != video.num_frames:
            raise incomplete(table, video)
        place = rows[nearest_rows(times, np.array([seconds]))]
        row = rows_at(table, place)[3][0].astype(np.float32)
        return (row / np.linalg.norm(row)).astype(np.float32)


def _in_memory(question: Question, memory: InMemory) -> list[ArchiveHit]:
    """Videos by their best row, until the next one cannot have an answer."""
    scores = memory.scores(question.direction)
    for video in question.videos:
        place = memory.places.get(video.id, slice(0, 0))
        if place.stop - place.start != video.num_frames:
            raise incomplete(question.table, video)
    peaks = np.array([scores[memory.places[video.id]].max() for video in question.videos])
    best = Best(question)
    for index in np.argsort(-peaks, kind="stable"):
        if best.settled(float(peaks[index])):
            break
        video = question.videos[index]
        place = memory.places[video.id]
        best.put(video, question.answers(video, memory.times[place], scores[place]))
    return best.hits


def _everything(question: Question) -> list[ArchiveHit]:
    """All frames, read once, in batches."""
    best = Best(question)
    most = 2 * question.num_frames > question.collection.num_frames or len(question.videos) > MOST_LISTED
    for video, times, scores in curves(question.table, question.videos, question.direction, all_of_table=most):
        if not best.settled(float(scores.max())):
            best.put(video, question.answers(video, times, scores))
    return best.hits


def _whole_videos(question: Question) -> list[ArchiveHit]:
    """Videos by the mean of their normalised frames; the peak is the best frame."""
    means = np.stack([video.mean for video in question.videos])
    cosines = (means @ question.direction.unit) / np.maximum(np.linalg.norm(means, axis=1), np.finfo(np.float32).tiny)
    scores = question.direction.scaled(cosines)
    chosen = [(question.videos[index], scores[index]) for index in np.argsort(-scores, kind="stable")[: question.top]]
    peaks = _best_frames(question, [video for video, _ in chosen])
    best = Best(question)
    for video, score in chosen:
        best.put(video, [Peaked(video.start, video.end, score, peaks[video.id])])
    return best.hits


def _best_frames(question: Question, videos: list[VideoRecord]) -> dict[int, float]:
    """When the best frame of each video is. Most are among the best of all of them together."""
    peaks: dict[int, float] = {}
    for asked in ([video.id for video in videos], *([video.id] for video in videos)):
        left = [video for video in asked if video not in peaks]
        if left:
            count = 1 if len(left) == 1 else 16 * len(left)
            among = question.collection.num_frames
            near = nearest(question.table, question.direction, count, where=condition(left), among=among)
            for video, time in zip(near.video.tolist(), near.time.tolist(), strict=True):
                peaks.setdefault(video, time)
    return peaks
