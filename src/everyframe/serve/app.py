"""The application: its routes, what becomes of errors, the page."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from everyframe.features import FeaturesError
from everyframe.library import LibraryError
from everyframe.serve import routes, routes_jobs
from everyframe.serve.children import ChildError
from everyframe.serve.errors import Refused
from everyframe.serve.files import is_full
from everyframe.serve.routes import MOST_IMAGE_BYTES, problems
from everyframe.serve.security import App, Guard, Rules, allowed_hosts, unforeseen
from everyframe.serve.service import Service
from everyframe.serve.settings import Settings
from everyframe.version import package_version

LOG = logging.getLogger("everyframe.serve")
STATIC = Path(str(resources.files("everyframe.serve") / "static"))
_AROUND_FILE = 1 << 16  # bytes of a multipart body around its file
_WRITTEN = {
    "like": "the id of a video and seconds, such as 1234@56.7",
    "image": "the id that a search by image answered",
    "after": "a date, such as 2025-03-31",
    "before": "a date, such as 2025-03-31",
    "video": "the id of a video, as /api/videos lists them",
    "job": "the id of a job, as /api/jobs lists them",
}
"""What a parameter looks like that has to match a pattern."""


def create_app(settings: Settings, *, port: int = 0) -> tuple[App, Service]:
    """The ASGI application, behind its guard, and what it runs on; `port` is the one it is reached at.

    Raises LibraryError for a folder that holds something else than a library.
    """
    service = Service(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.close()

    app = FastAPI(
        title="everyframe",
        version=package_version(),
        summary="Search an archive of videos by what happens in them.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        responses=problems(400, 401, 403),
        separate_input_output_schemas=False,
    )
    app.state.service = service
    app.include_router(routes.router)
    app.include_router(routes_jobs.router)
    _add_page(app)
    _add_handlers(app)
    if settings.token is not None:
        _declare_token(app)
    hosts, addresses = allowed_hosts(settings.host, settings.allow_hosts)
    rules = Rules(
        hosts=hosts,
        addresses=addresses,
        token=settings.token,
        cookie=f"everyframe-{port}",
        bodies={
            "/api/search/image": MOST_IMAGE_BYTES + _AROUND_FILE,
            "/api/encode": settings.max_upload + _AROUND_FILE,
        },
    )
    return Guard(app, rules), service  # type: ignore[arg-type]


def _add_page(app: FastAPI) -> None:
    """Static files are asked for anew each time, which costs a 304: a new version must not meet an old script."""
    fresh = {"cache-control": "no-cache"}

    class Static(StaticFiles):
        def file_response(self, *arguments: Any, **options: Any) -> Response:
            answer = super().file_response(*arguments, **options)
            answer.headers["cache-control"] = "no-cache"
            return answer

    app.mount("/static", Static(directory=STATIC), name="static")

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(STATIC / "index.html", headers=fresh)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> FileResponse:
        return FileResponse(STATIC / "docs.html", headers=fresh)

    @app.get("/favicon.ico", include_in_schema=False)
    async def icon() -> FileResponse:
        return FileResponse(STATIC / "icon.svg", media_type="image/svg+xml", headers=fresh)


def _add_handlers(app: FastAPI) -> None:
    """Every error is one sentence; what nobody foresaw goes through to the guard, which logs it."""

    def say(status: int, sentence: str, **headers: str) -> JSONResponse:
        return JSONResponse({"detail": sentence}, status_code=status, headers=headers)

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> JSONResponse:
        return say(error.status, str(error))

    @app.exception_handler(ChildError)
    async def unreadable(_: Request, error: ChildError) -> JSONResponse:
        return say(422, f"the image cannot be read: {str(error).removeprefix('<bytes>: ')}")

    @app.exception_handler(LibraryError)
    @app.exception_handler(FeaturesError)
    async def broken(_: Request, error: ValueError) -> JSONResponse:
        LOG.warning("%s", error)
        return say(507 if "disk is full" in str(error) else 503, str(error))

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, __: ClientDisconnect) -> JSONResponse:
        return say(400, "the connection was closed")  # to nobody

    @app.exception_handler(OSError)
    async def system(_: Request, error: OSError) -> JSONResponse:
        if not is_full(error):
            raise error
        return say(507, "the server's disk is full")

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"][1:]) or str(first["loc"][0])
        if first["type"] == "string_pattern_mismatch" and name in _WRITTEN:
            return say(422, f"{name}: {str(first['input'])[:100]!r} is not {_WRITTEN[name]}")
        reason = str(first["msg"])
        return say(422, f"{name}: {reason[:1].lower()}{reason[1:]}")

    @app.exception_handler(Exception)
    async def unknown(request: Request, _: Exception) -> JSONResponse:
        return say(500, unforeseen(request.scope["everyframe.request_id"]), connection="close")

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        sentences = {404: f"there is nothing at {request.url.path}", 405: f"{request.method} is not possible here"}
        return say(error.status_code, sentences.get(error.status_code, str(error.detail)), **(error.headers or {}))


def _declare_token(app: FastAPI) -> None:
    """In the OpenAPI document."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        document = plain()
        schemes = {"token": {"type": "http", "scheme": "bearer"}}
        document.setdefault("components", {})["securitySchemes"] = schemes
        document["security"] = [{"token": []}]
        return document

    app.openapi = openapi  # type: ignore[method-assign]
