"""Rows of a table of frames: the nearest to a query, those beside them, all of a video, all of a small table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everyframe.library.errors import LibraryError, translated
from everyframe.library.query import Direction
from everyframe.library.records import VideoRecord

EMBEDDING = "embedding"
_BATCH_ROWS = 8192
# LanceDB computes distances of float16 rows to about this.
DISTANCE_EPSILON = 1e-5
# How far the search in an index looks, see docs/library.md: so many parts of it, and so many rows, at least, that are
# ranked again by their stored vectors, exactly.
_PARTS, _RANKED_AGAIN = 80, 1000
# One more for each so many frames: indexes of many have fewer bits, and are less sure of the order.
_FRAMES_FOR_ONE = 2500


@dataclass(frozen=True, kw_only=True)
class Near:
    """The rows nearest to a query, best first.

    video, row: int64 [n], row being their place in the table; time: float64 [n], seconds; score: float32 [n].
    bound: no row that was searched and is not here scores higher, as far as the index can tell.
    """

    video: NDArray[np.int64]
    row: NDArray[np.int64]
    time: NDArray[np.float64]
    score: NDArray[np.float32]
    bound: float

    def only(self, keep: NDArray[np.bool_]) -> Near:
        """Some of them."""
        return Near(
            video=self.video[keep], row=self.row[keep], time=self.time[keep], score=self.score[keep], bound=self.bound
        )


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows in the order of the table: video, row int64 [n]; time float64 [n], seconds; score float32 [n]."""

    video: NDArray[np.int64]
    row: NDArray[np.int64]
    time: NDArray[np.float64]
    score: NDArray[np.float32]

    def between(self, first: int, past: int) -> Rows:
        """Those whose place in the table is in [first, past)."""
        here = slice(*np.searchsorted(self.row, [first, past]))
        return Rows(video=self.video[here], row=self.row[here], time=self.time[here], score=self.score[here])


class ScoredRows:
    """Rows of a table with their scores for one query, each read once."""

    def __init__(self, table: Any, direction: Direction) -> None:
        self._table, self._direction = table, direction
        self._asked = np.empty(0, np.int64)
        self._rows = Rows(
            video=np.empty(0, np.int64),
            row=np.empty(0, np.int64),
            time=np.empty(0),
            score=np.empty(0, np.float32),
        )

    def at(self, places: NDArray[np.int64]) -> Rows:
        """All rows that were read so far, among them those at these places; where there is none, none."""
        asked = np.union1d(self._asked, places)
        missing = np.setdiff1d(asked, self._asked, assume_unique=True)
        if len(missing):
            self._asked = asked
            video, row, time, embedding = rows_at(self._table, missing)
            known = self._rows
            rows = np.concatenate([known.row, row])
            order = np.argsort(rows, kind="stable")
            self._rows = Rows(
                video=np.concatenate([known.video, video])[order],
                row=rows[order],
                time=np.concatenate([known.time, time])[order],
                score=np.concatenate([known.score, self._direction.scores(embedding)])[order],
            )
        return self._rows


def nearest(table: Any, direction: Direction, count: int, *, where: str | None = None, among: int = 0) -> Near:
    """Up to `count` rows; where: a condition that they have to meet. among: how many rows the table has, about."""
    again = max(_RANKED_AGAIN, among // _FRAMES_FOR_ONE)
    query = (
        table.search(direction.unit, vector_column_name=EMBEDDING)
        .distance_type("cosine")
        .select(["video", "time", "_distance"])  # not without _distance: Lance logs a line for every query
        .with_row_id(True)
        .limit(count)
        .nprobes(_PARTS)
        .maximum_nprobes(0)  # more parts where a condition leaves too few rows in these
        .refine_factor(-(-again // count))
    )
    if where is not None:
        query = query.where(where, prefilter=True)
    with translated(table.name, "searched"):
        found = query.to_arrow()
    score = ((1.0 - column(found, "_distance")) * direction.length).astype(np.float32)
    full = len(score) == count
    return Near(
        video=column(found, "video"),
        row=column(found, "_rowid").astype(np.int64),
        time=column(found, "time"),
        score=score,
        bound=float(score.min()) + DISTANCE_EPSILON * direction.length if full else -np.inf,
    )


def rows_at(
    table: Any, places: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.float16]]:
    """(video [n], row [n], time [n], embedding [n, dim]) of the rows at these places; where there is none, none."""
    with translated(table.name, "read"):
        query = table.take_row_ids(places[places >= 0].tolist()).select(["video", "time", EMBEDDING])
        found = query.with_row_id().to_arrow()
    return column(found, "video"), column(found, "_rowid").astype(np.int64), column(found, "time"), _matrix(found)


def times_of(table: Any, video: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(times float64 [T] in seconds, places in the table int64 [T]) of a video's rows, in time order."""
    with translated(table.name, "read"):
        found = table.search().where(condition([video])).select(["time"]).with_row_id(True).to_arrow()
    times, places = column(found, "time"), column(found, "_rowid").astype(np.int64)
    order = np.argsort(times, kind="stable")
    return times[order], places[order]


def condition(videos: Iterable[int], *, inside: bool = True) -> str:
    """SQL for rows of these videos, or of all others; at least one video."""
    return f"video {'IN' if inside else 'NOT IN'} ({','.join(str(int(video)) for video in videos)})"


def batches(table: Any, where: str | None = None) -> Iterator[tuple[NDArray, NDArray, NDArray]]:
    """(video int64 [n], time float64 [n], embedding float16 [n, dim]) of all rows, or those that meet a condition."""
    query = table.search().select(["video", "time", EMBEDDING])
    if where is not None:
        query = query.where(where)
    with translated(table.name, "read"):
        for batch in query.to_batches(_BATCH_ROWS):
            yield column(batch, "video"), column(batch, "time"), _matrix(batch)


def curves(
    table: Any, videos: Sequence[VideoRecord], direction: Direction, *, all_of_table: bool = False
) -> Iterator[tuple[VideoRecord, NDArray[np.float64], NDArray[np.float32]]]:
    """(video, times [T], scores [T]) of each of these videos, in any order; a few thousand embeddings are in memory.

    all_of_table: read all rows and leave out those of others, which is faster for most of a table.
    """
    if not videos:
        return
    missing = {video.id: video for video in videos}
    parts: dict[int, list[tuple[NDArray[np.float64], NDArray[np.float32]]]] = {}
    where = None if all_of_table else condition(missing)
    for video, time, embedding in batches(table, where):
        for name, rows in runs_of_videos(video):
            record = missing.get(name)
            if record is None:
                continue
            mine = parts.setdefault(record.id, [])
            mine.append((time[rows].copy(), direction.scores(embedding[rows])))
            if sum(len(each) for each, _ in mine) >= record.num_frames:
                del missing[record.id], parts[record.id]
                times, scores = (np.concatenate(each) for each in zip(*mine, strict=True))
                order = np.argsort(times, kind="stable")
                yield record, times[order], scores[order]
    for record in missing.values():
        raise incomplete(table, record)


@dataclass(frozen=True, kw_only=True)
class InMemory:
    """All of a table: unit rows float32 [n, dim], times float64 [n] in seconds, and where each video's rows are."""

    rows: NDArray[np.float32]
    times: NDArray[np.float64]
    places: dict[int, slice]

    @staticmethod
    def read(table: Any) -> InMemory:
        """Of a table that fits."""
        with translated(table.name, "read"):
            total = table.count_rows()
        rows = np.empty((total, table.schema.field(EMBEDDING).type.list_size), np.float32)
        times, videos = np.empty(total), np.empty(total, np.int64)
        past = 0
        for video, time, embedding in batches(table):
            here = slice(past, past := past + len(video))
            rows[here], times[here], videos[here] = embedding, time, video
            rows[here] /= np.sqrt(np.einsum("td,td->t", rows[here], rows[here]))[:, None]
        stretches = list(runs_of_videos(videos))
        places = dict(stretches)
        if len(places) < len(stretches) or any((np.diff(times[place]) < 0).any() for place in places.values()):
            order = np.lexsort((times, videos))
            rows, times, places = rows[order], times[order], dict(runs_of_videos(videos[order]))
        return InMemory(rows=rows, times=times, places=places)

    def scores(self, direction: Direction) -> NDArray[np.float32]:
        """float32 [n]."""
        return direction.scaled(self.rows @ direction.unit)


def column(found: Any, name: str) -> NDArray[Any]:
    """Of an Arrow table or record batch, as an array."""
    return found.column(name).to_numpy()


def runs_of_videos(video: NDArray[np.int64]) -> Iterator[tuple[int, slice]]:
    """(video, rows) for each stretch of rows of one video."""
    bounds = [*np.flatnonzero(np.diff(video, prepend=video[:1] - 1)), len(video)]
    for first, past in pairwise(bounds):
        yield int(video[first]), slice(int(first), int(past))


def incomplete(table: Any, record: VideoRecord) -> LibraryError:
    """The error for a video of which rows are missing."""
    return LibraryError(
        f"table {table.name} lacks frames of {record.name}: it is damaged; restore the library from a copy, or remove "
        "the video and add it again"
    )


def _matrix(found: Any) -> NDArray[np.float16]:
    values = found.column(EMBEDDING)
    if hasattr(values, "combine_chunks"):
        values = values.combine_chunks()
    return values.flatten().to_numpy(zero_copy_only=False).reshape(-1, values.type.list_size)
