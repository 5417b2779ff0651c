"""Searches: from what is wanted to vectors, to hits, to what is answered."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise

import numpy as np

from everyframe.features import FeaturesError
from everyframe.library import ArchiveHit, Collection, Filter, LibraryError, Query, VideoRecord
from everyframe.serve.answers import (
    BandAnswer,
    CollectionAnswer,
    CurveAnswer,
    MomentAnswer,
    SearchAnswer,
    ThumbnailAnswer,
    VideoAnswer,
)
from everyframe.serve.errors import BadRequest, Forgotten, NotFound
from everyframe.serve.media import playable
from everyframe.serve.requests import Level, Wanted
from everyframe.serve.service import Service
from everyframe.serve.vectors import ImageVector

_STRIP = 6
_BANDS = 20


@dataclass(frozen=True)
class Found:
    """A query as vectors, and what its maker should know."""

    query: Query
    note: str | None = None
    image: str | None = None


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a search is answered."""

    top: int = 10
    per_video: int = 3
    level: Level = "moment"
    where: Filter | None = field(default=None)


async def vectors_of(service: Service, wanted: Wanted, collection: Collection, given: ImageVector | None) -> Found:
    """The query in a collection. given: the vector of a picture that came with the request.

    Raises NoModel, NotFound, Forgotten.
    """
    known = given
    if known is None and wanted.image is not None:
        known = service.vectors.known_image(wanted.image)
        if known is None:
            raise Forgotten("the server has forgotten this picture; send it again")
        if len(known.vector) != collection.dim:
            raise BadRequest("the picture was sent for another collection; send it again")
    texts = [*wanted.positive, *wanted.negative]
    encoded = await service.vectors.texts(collection, texts) if texts else []
    positive = [each.vector for each in encoded[: len(wanted.positive)]]
    if wanted.like is not None:
        positive.append(await service.in_search(lambda: _frame(service, wanted, collection)))
    if known is not None:
        positive.append(known.vector)
    negative = tuple(each.vector for each in encoded[len(wanted.positive) :])
    cut = any(each.cut for each in encoded)
    note = "The text is longer than the model reads; its end was left out." if cut else None
    return Found(Query(tuple(positive), negative), note, None if known is None else known.id)


def _frame(service: Service, wanted: Wanted, collection: Collection) -> np.ndarray:
    like = wanted.like
    record = None if like is None else service.video(like.video)
    if record is None or like is None:
        raise NotFound(f"there is no video {'' if like is None else like.video}")
    if record.collection != collection.id:
        raise BadRequest(f"{record.name} is not in the collection {collection.label}; search in its own")
    try:
        return np.asarray(service.library.frame(record.id, like.seconds))
    except LibraryError:
        raise
    except ValueError as error:  # a time that the video has not
        raise BadRequest(str(error)) from error


async def collection_of(service: Service, wanted: Wanted) -> Collection | None:
    """The collection to search; None where the library is empty. Raises BadRequest for one that is not there."""

    def choose() -> Collection | None:
        try:
            like = None if wanted.like is None else service.video(wanted.like.video)
            own = None if like is None else like.collection
            return service.collection(wanted.collection or own)
        except LibraryError as error:
            if wanted.collection is not None:
                raise BadRequest(str(error)) from error
            raise

    return await service.in_search(choose)


async def search(
    service: Service,
    wanted: Wanted,
    options: Options,
    given: ImageVector | None = None,
    started: float | None = None,
) -> SearchAnswer:
    """The best moments. given: the vector of a picture that came with the request, which began at `started`.

    Raises BadRequest where nothing is asked for, or the collection has nothing of that kind.
    """
    started = time.perf_counter() if started is None else started
    if wanted.is_empty and given is None:
        raise BadRequest("the query is empty; say what to look for, as q=TEXT")
    collection = await collection_of(service, wanted)
    if collection is None:
        return nothing(started)
    found = await vectors_of(service, wanted, collection, given)

    def look() -> list[MomentAnswer]:
        hits = _hits(service, found.query, collection, options)
        known = [(hit, service.video(str(hit.id))) for hit in hits]
        return [moment_answer(service, hit, record) for hit, record in known if record is not None]

    key = (collection.id, wanted, found.image, options)
    moments = await service.in_search(lambda: service.answer(key, look))
    return SearchAnswer(
        moments=moments,
        took_ms=_since(started),
        note=found.note,
        collection=collection_answer(collection, service.collection(None)),
        image=found.image,
    )


def nothing(started: float) -> SearchAnswer:
    """What a search in an empty library finds."""
    note = "The library is empty; add a video first."
    return SearchAnswer(moments=[], took_ms=_since(started), note=note, collection=None)


def _hits(service: Service, query: Query, collection: Collection, options: Options) -> list[ArchiveHit]:
    if options.level == "clip" and not collection.of_clips:
        raise BadRequest(f"the collection {collection.label} holds frames, not clips; search for moments or videos")
    try:
        return service.library.search(
            query,
            top=options.top,
            collection=collection.id,
            level=options.level,
            per_video=options.per_video,
            where=options.where,
        )
    except (LibraryError, FeaturesError):
        raise
    except ValueError as error:  # a query that cancels itself, say
        raise BadRequest(str(error)) from error


def curve(service: Service, record: VideoRecord, query: Query, points: int) -> CurveAnswer:
    """The similarity over a video at about `points` times, each the highest of its stretch, and the moments."""
    times, scores = service.library.curve(record.id, query)
    roles = service.library.roles(record.id)
    if len(times) > points:
        bounds = np.linspace(0, len(times), points + 1).astype(int)
        kept = np.array([start + int(np.argmax(scores[start:end])) for start, end in pairwise(bounds)])
        times, scores, roles = times[kept], scores[kept], "".join(roles[index] for index in kept)
    hits = service.library.search(
        query, top=_BANDS, per_video=_BANDS, collection=record.collection, where=Filter(ids=(record.id,))
    )
    return CurveAnswer(
        times=[round(float(time), 4) for time in times],
        scores=[round(float(score), 5) for score in scores],
        roles=roles,
        moments=[BandAnswer(start=hit.start, end=hit.end, score=_score(hit.score)) for hit in hits],
        duration=record.duration or record.end,
    )


def moment_answer(service: Service, hit: ArchiveHit, record: VideoRecord) -> MomentAnswer:
    """A hit with its pictures."""
    times = service.thumbnail_times(record.id)
    inside = [time for time in times if hit.start <= time < hit.end]
    inside = inside or ([min(times, key=lambda time: abs(time - hit.peak))] if times else [])
    if len(inside) > _STRIP:
        inside = [inside[round(index)] for index in np.linspace(0, len(inside) - 1, _STRIP)]
    strip = [ThumbnailAnswer(time=time, url=thumbnail_url(record.id, time)) for time in inside]
    best = min(strip, key=lambda each: abs(each.time - hit.peak), default=None)
    return MomentAnswer(
        video=str(record.id),
        name=record.name,
        path=record.path,
        duration=record.duration,
        start=hit.start,
        end=hit.end,
        peak=hit.peak,
        score=_score(hit.score),
        thumbnail=None if best is None else best.url,
        thumbnails=strip,
        playable=playable(record.codec, record.container, record.name),
    )


def video_answer(record: VideoRecord) -> VideoAnswer:
    """A row of the list of videos. Looks whether the file is there."""
    return VideoAnswer(
        video=str(record.id),
        name=record.name,
        path=record.path,
        duration=record.duration,
        start=record.start,
        end=record.end,
        frames=record.num_frames,
        codec=record.codec,
        container=record.container,
        width=record.width,
        height=record.height,
        added=_utc(record.added),
        date=_utc(record.date),
        collection=record.collection,
        playable=playable(record.codec, record.container, record.name),
        available=record.available,
        thumbnail=thumbnail_url(record.id, record.start + (record.end - record.start) / 4),
    )


def collection_answer(collection: Collection, default: Collection | None) -> CollectionAnswer:
    """default: the one that is searched where a request names none."""
    model = collection.model.get("id")
    return CollectionAnswer(
        id=collection.id,
        label=collection.label,
        model=model if isinstance(model, str) else None,
        videos=collection.num_videos,
        frames=collection.num_frames,
        default=default is not None and collection.id == default.id,
    )


def thumbnail_url(id: int, seconds: float) -> str:
    """Of the picture nearest to that time; always the same one, since a video's pictures never change."""
    return f"/api/videos/{id}/thumbnail?t={seconds:.3f}"


def _score(score: float) -> float:
    return round(float(score), 5)


def _since(started: float) -> float:
    return round(1000 * (time.perf_counter() - started), 2)


def _utc(date: datetime) -> str:
    return date.isoformat(timespec="seconds").replace("+00:00", "Z")
