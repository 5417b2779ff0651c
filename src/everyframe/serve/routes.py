"""The operations of the API that read: search, videos, their media, status."""

from __future__ import annotations

import os
import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.responses import JSONResponse

from everyframe.library import Collection, Filter, VideoRecord
from everyframe.serve.answers import (
    CurveAnswer,
    IndexAnswer,
    PreviewAnswer,
    Problem,
    SearchAnswer,
    StatusAnswer,
    VideoAnswer,
    VideosAnswer,
)
from everyframe.serve.errors import BadRequest, NotFound, TooLarge, WrongKind
from everyframe.serve.media import FileAnswer, Opened, media_type
from everyframe.serve.requests import Image, InCollection, Level, Like, Texts, Wanted, conditions, wanted
from everyframe.serve.searching import (
    Options,
    collection_answer,
    collection_of,
    curve,
    nothing,
    search,
    vectors_of,
    video_answer,
)
from everyframe.serve.service import Service
from everyframe.serve.sniff import HEAD, PICTURE_SENTENCE, picture_demuxer, video_container
from everyframe.serve.uploads import read_file_field
from everyframe.version import package_version

MOST_IMAGE_BYTES = 10 * 10**6
router = APIRouter()


def service_of(request: Request) -> Service:
    """The service that the application was made with."""
    service: Service = request.app.state.service
    return service


def problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    """Answers that an operation may give besides its own, for the OpenAPI document."""
    return {code: {"model": Problem} for code in codes}


Serving = Annotated[Service, Depends(service_of)]
Video = Annotated[str, Path(description="Id of a video.", pattern=r"^[0-9]{1,19}$")]
Asked = Annotated[Wanted, Depends(wanted)]
Where = Annotated[Filter | None, Depends(conditions)]
_BYTES = {"schema": {"type": "string", "format": "binary"}}


async def options(
    where: Where,
    top: Annotated[int, Query(description="Moments at most.", ge=1, le=200)] = 10,
    per_video: Annotated[int, Query(description="Moments of one video at most.", ge=1, le=100)] = 3,
    level: Annotated[Level, Query(description="What is found: moments, clips, or whole videos.")] = "moment",
) -> Options:
    return Options(top=top, per_video=per_video, level=level, where=where)


Chosen = Annotated[Options, Depends(options)]


@router.get("/api/search", responses=problems(404, 410, 422, 503), tags=["search"])
async def find(service: Serving, asked: Asked, chosen: Chosen) -> SearchAnswer:
    """The best moments for texts, for frames like one of a video, for a picture, or for several of these together."""
    return await search(service, asked, chosen)


@router.post(
    "/api/search/image",
    responses=problems(404, 408, 410, 413, 415, 422, 503),
    tags=["search"],
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "properties": {"image": {"type": "string", "format": "binary"}},
                        "required": ["image"],
                    }
                }
            },
        }
    },
)
async def find_by_image(request: Request, service: Serving, asked: Asked, chosen: Chosen) -> SearchAnswer:
    """The best moments for a picture: PNG, JPEG, WebP, GIF or BMP, at most 10 MB and 50 million pixels."""
    started = time.perf_counter()
    data = bytearray()

    async def keep(_: str, piece: bytes) -> None:
        data.extend(piece)
        if len(data) > MOST_IMAGE_BYTES:
            raise TooLarge("the image is larger than the 10 MB that are taken")

    await read_file_field(request, "image", keep)
    demuxer = picture_demuxer(bytes(data[:HEAD]))
    if demuxer is None:
        raise WrongKind(PICTURE_SENTENCE)
    collection = await collection_of(service, asked)
    if collection is None:
        return nothing(started)
    pixels = await service.pictures.read(bytes(data), demuxer)
    image = await service.vectors.image(collection, pixels, bytes(data))
    return await search(service, asked, chosen, image, started)


@router.get("/api/videos", responses=problems(422, 503), tags=["videos"])
async def list_videos(
    service: Serving,
    offset: Annotated[int, Query(ge=0, le=10**9)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    q: Annotated[str, Query(description="Part of the name.", max_length=500)] = "",
    collection: InCollection = None,
) -> VideosAnswer:
    """Videos, the ones added last first."""

    def read() -> VideosAnswer:
        chosen = _named(service, collection)
        part = q.strip().casefold()
        records = [record for record in service.view().videos.values() if part in record.name.casefold()]
        if chosen is not None:
            records = [record for record in records if record.collection == chosen.id]
        records.sort(key=lambda record: (record.added, record.id), reverse=True)
        page = records[offset : offset + limit]
        return VideosAnswer(videos=[video_answer(record) for record in page], total=len(records))

    return await service.in_search(read)


def _named(service: Service, collection: str | None) -> Collection | None:
    if not collection:
        return None
    try:
        return service.collection(collection)
    except ValueError as error:
        raise BadRequest(str(error)) from error


async def record_of(video: Video, service: Serving) -> VideoRecord:
    """Raises NotFound."""
    record = await service.in_search(lambda: service.video(video))
    if record is None:
        raise NotFound(f"there is no video {video}")
    return record


Record = Annotated[VideoRecord, Depends(record_of)]


@router.get("/api/videos/{video}", responses=problems(404, 422, 503), tags=["videos"])
async def one_video(service: Serving, record: Record) -> VideoAnswer:
    """A video."""
    return await service.on_disk(lambda: video_answer(record))


@router.delete("/api/videos/{video}", status_code=204, responses=problems(404, 422, 503), tags=["videos"])
async def remove_video(service: Serving, record: Record) -> Response:
    """Take a video out of the library; its file stays, unless it was uploaded here."""
    await service.in_writer(lambda: service.remove(record))
    return Response(status_code=204)


@router.get("/api/videos/{video}/curve", responses=problems(404, 410, 422, 503), tags=["videos"])
async def similarity(
    service: Serving,
    record: Record,
    q: Texts = None,
    like: Like = None,
    image: Image = None,
    points: Annotated[int, Query(description="Points of the curve at most.", ge=2, le=20_000)] = 2000,
) -> CurveAnswer:
    """How like the query a video is over time, and its moments."""
    asked = await wanted(q=q, like=like, image=image, collection=record.collection)
    if asked.is_empty:
        raise BadRequest("the query is empty; say what to look for, as q=TEXT")
    collection = await service.in_search(lambda: service.collection(record.collection))
    if collection is None:
        raise NotFound(f"there is no video {record.id}")
    found = await vectors_of(service, asked, collection, None)
    return await service.in_search(lambda: curve(service, record, found.query, points))


@router.get(
    "/api/videos/{video}/thumbnail",
    response_class=Response,
    responses={**problems(404, 422, 503), 200: {"content": {"image/jpeg": _BYTES}}},
    tags=["videos"],
)
async def thumbnail(
    service: Serving, record: Record, t: Annotated[float, Query(description="Seconds.", ge=0, le=1e9)] = 0.0
) -> Response:
    """The picture nearest to a time."""
    jpeg = await service.in_search(lambda: service.thumbnail(record.id, t))
    if jpeg is None:
        raise NotFound(f"there are no pictures of {record.name}")
    return Response(jpeg, media_type="image/jpeg", headers={"cache-control": "private, max-age=31536000, immutable"})


@router.head("/media/{video}", include_in_schema=False)
@router.get(
    "/media/{video}",
    response_class=Response,
    responses={
        **problems(404, 416, 422, 503),
        200: {"content": {"video/*": _BYTES}},
        206: {"description": "A part", "content": {"video/*": _BYTES}},
        304: {"description": "Not modified"},
    },
    tags=["media"],
)
async def media(service: Serving, record: Record) -> Response:
    """The file of a video, or the range of it that is asked for."""
    opened = await _open(service, record)
    return FileAnswer(opened, kind=media_type(record.container, record.name), name=record.name, pool=service.disk)


@router.head("/media/{video}/preview", include_in_schema=False)
@router.get(
    "/media/{video}/preview",
    response_class=Response,
    responses={
        **problems(404, 409, 415, 416, 422, 429, 503),
        200: {"content": {"video/mp4": _BYTES}},
        202: {"model": PreviewAnswer, "description": "It is being made; ask again"},
        206: {"description": "A part", "content": {"video/mp4": _BYTES}},
        304: {"description": "Not modified"},
    },
    tags=["media"],
)
async def preview(service: Serving, record: Record) -> Response:
    """The video as H.264 and AAC, at most 720 lines, for browsers that cannot play the file."""
    opened = await _open(service, record)
    try:
        head = await service.on_disk(lambda: os.pread(opened.handle, HEAD, 0))
    finally:
        os.close(opened.handle)
    fingerprint = str(record.fingerprint)
    ready = await service.on_disk(lambda: service.previews.open(fingerprint))
    if ready is not None:
        return FileAnswer(ready, kind="video/mp4", name=f"{record.name}.mp4", pool=service.disk)
    container = video_container(head)
    if container is None:
        raise WrongKind(f"{record.name} is not of a kind that is converted here")
    progress = service.previews.make(fingerprint, record.path, container.demuxer)
    return JSONResponse(
        {"progress": progress}, status_code=202, headers={"retry-after": "1", "cache-control": "no-store"}
    )


async def _open(service: Service, record: VideoRecord) -> Opened:
    return await service.on_disk(lambda: service.files.open(record.path, record.size_bytes, record.fingerprint))


@router.get("/api/status", responses=problems(503), tags=["status"])
async def status(service: Serving) -> StatusAnswer:
    """What there is to search, and what can be done."""

    def read() -> StatusAnswer:
        view, default = service.view(), service.collection(None)
        records = view.videos.values()
        index = None
        if default is not None:
            state = service.index_state(default)
            index = IndexAnswer(kind=state.kind, frames=state.frames, indexed=state.indexed, building=state.building)
        model = None if default is None else default.model.get("id")
        return StatusAnswer(
            videos=len(records),
            frames=sum(record.num_frames for record in records),
            hours=round(sum(record.end - record.start for record in records) / 3600, 3),
            index=index,
            model=model if isinstance(model, str) else service.settings.model,
            collections=[collection_answer(each, default) for each in view.collections],
            version=package_version(),
            can_add=service.can_add,
            max_upload=service.settings.max_upload,
            token=service.settings.token is not None,
        )

    return await service.in_search(read)
