"""The operations that add videos: by upload or by path, in the background."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request, Response
from fastapi.responses import StreamingResponse

from everyframe.library import VideoRecord
from everyframe.serve.answers import JobAnswer, JobsAnswer, StartedAnswer
from everyframe.serve.errors import BadRequest, Conflict, DiskFull, NotFound, TooLarge, WrongKind
from everyframe.serve.files import is_full, safe_name
from everyframe.serve.jobs import Job, Work
from everyframe.serve.routes import Serving, problems
from everyframe.serve.service import Service
from everyframe.serve.sniff import HEAD, VIDEO_SENTENCE, Container, video_container
from everyframe.serve.uploads import read_file_field
from everyframe.video.identity import identity

_JSON_BYTES = 1 << 16
router = APIRouter(tags=["adding videos"])
_EVENT = {
    "type": "object",
    "properties": {"event": {"type": "string", "enum": ["progress"]}, "data": {"type": "string"}},
    "required": ["event", "data"],
}


@router.post(
    "/api/encode",
    status_code=202,
    responses=problems(403, 404, 408, 413, 415, 422, 429, 503, 507),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "properties": {"file": {"type": "string", "format": "binary"}},
                        "required": ["file"],
                    }
                },
                "application/json": {
                    "schema": {
                        "type": "object",
                        "properties": {"path": {"type": "string", "minLength": 1, "maxLength": 4096}},
                        "required": ["path"],
                        "additionalProperties": False,
                    }
                },
            },
        }
    },
)
async def encode(request: Request, service: Serving) -> StartedAnswer:
    """Add a video: a file that is uploaded, or one below a folder that the server was started with (--videos).

    It is encoded in the background; the job says how far that is.
    """
    if not service.can_add:
        raise Conflict("videos cannot be added here: the library cannot be written to")
    service.jobs.check_room()
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        job = await _uploaded(request, service)
    elif kind == "application/json":
        job = await _named(request, service)
    else:
        raise WrongKind('send the video as multipart/form-data in a field named file, or JSON {"path": "..."}')
    return StartedAnswer(job=job.id, state=job.state, events=_events(job))


async def _uploaded(request: Request, service: Service) -> Job:
    """A job for the file that comes; what is left of it is removed where there is none."""
    if not service.place.keeps_uploads:
        raise Conflict("this library is not on this machine; give a path below the server's --videos folders")
    length = request.headers.get("content-length", "")
    size = int(length) if length.isdecimal() else 0
    await service.on_disk(lambda: service.place.check_room(size))
    folder = await service.on_disk(service.place.new_folder)
    taken = False
    try:
        job, taken = await _received(request, service, folder)
        return job
    except OSError as error:
        if is_full(error):
            raise DiskFull("the server's disk is full") from error
        raise
    finally:
        if not taken:
            await service.remove_folder(folder)


async def _received(request: Request, service: Service, folder: FilePath) -> tuple[Job, bool]:
    """The job, and whether the folder is the job's now. Raises WrongKind as soon as the first bytes are there."""
    upload = _Upload(service, folder / "upload")
    try:
        name = await read_file_field(request, "file", upload.write)
    finally:
        await upload.close()
    container = upload.container()
    name = safe_name(name, container)
    source = folder / name
    await service.on_disk(lambda: os.rename(folder / "upload", source))
    known = await service.on_disk(lambda: identity(source))
    found = await service.in_search(lambda: _known(service, known))
    if found is not None:
        return await _again(service, found, source, name), False
    reading = await service.in_search(service.reading)
    work = Work(name=name, source=source, folder=folder, demuxer=container.demuxer, reading=reading)
    return service.jobs.submit(work), True


class _Upload:
    """A file that grows; its first bytes are looked at before any more are taken."""

    def __init__(self, service: Service, path: FilePath) -> None:
        self._service, self._path = service, path
        self._head = b""
        self._file: Any = None

    async def write(self, name: str, piece: bytes) -> None:
        if len(self._head) < HEAD:
            self._head += piece[: HEAD - len(self._head)]
            if len(self._head) == HEAD:
                self.container()
        if self._file is None:
            self._file = await self._service.on_disk(lambda: self._path.open("xb"))
        await self._service.on_disk(lambda: self._file.write(piece))

    def container(self) -> Container:
        """Raises WrongKind."""
        found = video_container(self._head)
        if found is None:
            raise WrongKind(f"the file {VIDEO_SENTENCE}")
        return found

    async def close(self) -> None:
        if self._file is not None:
            await self._service.on_disk(self._file.close)


async def _named(request: Request, service: Service) -> Job:
    """A file below one of the folders that the server was told of."""
    text = b""
    async for chunk in request.stream():
        text += chunk
        if len(text) > _JSON_BYTES:
            raise TooLarge("the path is longer than any")
    try:
        body = json.loads(text)
    except ValueError as error:
        raise BadRequest("the body is not JSON") from error
    path = body.get("path") if isinstance(body, dict) and set(body) == {"path"} else None
    if not isinstance(path, str) or not path:
        raise BadRequest('the body must be JSON {"path": "..."}')
    source, container = await service.on_disk(lambda: _inside(service, path))
    known = await service.on_disk(lambda: identity(source))
    found = await service.in_search(lambda: _known(service, known))
    if found is not None and os.path.exists(found.path):
        return service.jobs.settled(source.name, found.id)
    reading = await service.in_search(service.reading)
    folder = await service.on_disk(service.place.new_folder)
    work = Work(name=source.name, source=source, folder=folder, demuxer=container.demuxer, reading=reading)
    return service.jobs.submit(work)


def _inside(service: Service, path: str) -> tuple[FilePath, Container]:
    """The real file, if it is a video below one of the folders. Raises NotFound, WrongKind."""
    outside = NotFound("there is no such file below the folders that this server was started with (--videos)")
    try:
        for folder in service.settings.videos:
            root = os.path.realpath(folder)
            real = os.path.realpath(os.path.join(root, path))
            if os.path.commonpath([root, real]) != root:
                continue
            handle = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                if not stat.S_ISREG(os.fstat(handle).st_mode):
                    raise outside
                container = video_container(os.pread(handle, HEAD, 0))
            finally:
                os.close(handle)
            if container is None:
                raise WrongKind(f"{FilePath(real).name} {VIDEO_SENTENCE}")
            return FilePath(real), container
    except (OSError, ValueError) as error:  # ValueError: a NUL byte, say
        raise outside from error
    raise outside


def _known(service: Service, identity: dict[str, Any]) -> VideoRecord | None:
    """The same video, read the same way, if the library has it."""
    if service.settings.encoder is not None or service.settings.fps is not None:
        return None
    return service.known_video(identity)


async def _again(service: Service, record: VideoRecord, source: FilePath, name: str) -> Job:
    """A video that the library has: nothing to encode. Where its file is gone, the upload takes its place."""
    if not await service.on_disk(lambda: os.path.exists(record.path)):
        await service.in_writer(lambda: service.take_place(record, source, name))
    return service.jobs.settled(name, record.id)


async def job_of(job: Annotated[str, Path(pattern=r"^[0-9a-f]{16}$")], service: Serving) -> Job:
    """Raises NotFound."""
    found = service.jobs.find(job)
    if found is None:
        raise NotFound(f"there is no job {job}")
    return found


Found = Annotated[Job, Depends(job_of)]


@router.get("/api/jobs")
async def list_jobs(service: Serving) -> JobsAnswer:
    """Videos that are being added, or were lately; newest first."""
    return JobsAnswer(jobs=[job_answer(job) for job in service.jobs.list()])


@router.get("/api/jobs/{job}", responses=problems(404, 422))
async def one_job(job: Found) -> JobAnswer:
    """How far one is."""
    return job_answer(job)


@router.delete("/api/jobs/{job}", status_code=204, responses=problems(404, 409, 422))
async def cancel_job(job: Found, service: Serving) -> Response:
    """Cancel it; one that has ended is forgotten."""
    await service.jobs.cancel(job)
    return Response(status_code=204)


@router.get(
    "/api/jobs/{job}/events",
    response_class=StreamingResponse,
    responses={
        **problems(404, 422),
        200: {
            "description": "Server-sent events named progress, each with what /api/jobs/{job} answers",
            "content": {"text/event-stream": {"schema": _EVENT}},
        },
    },
)
async def events(job: Found, service: Serving) -> StreamingResponse:
    """Its progress as it happens."""

    async def stream() -> AsyncIterator[str]:
        async for known in service.jobs.watch(job):
            if known is None:
                yield ": still here\n\n"  # so that proxies and clients see that it is
            else:
                yield f"event: progress\ndata: {json.dumps(job_answer(known).model_dump())}\n\n"

    return StreamingResponse(stream(), media_type="text/event-stream", headers={"cache-control": "no-store"})


def job_answer(job: Job) -> JobAnswer:
    return JobAnswer(
        job=job.id,
        name=job.name,
        state=job.state,
        frames=job.frames,
        seconds=job.seconds,
        duration=job.duration,
        progress=round(job.progress, 4),
        error=job.error,
        video=None if job.video is None else str(job.video),
        events=_events(job),
    )


def _events(job: Job) -> str:
    return f"/api/jobs/{job.id}/events"
