"""Run the application: a socket, signals, one line that says where."""

from __future__ import annotations

import logging
import secrets
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from everyframe.serve.app import create_app
from everyframe.serve.service import Service
from everyframe.serve.settings import Settings

_HEADER_BYTES = 1 << 18  # a query of 10,000 words gets a sentence, not a closed connection
_HEADER_SECONDS = 20.0
_CONNECTIONS = 1000
_GOODBYE_SECONDS = 2


def run(settings: Settings, *, started: Callable[[str], None]) -> None:
    """Serve until Ctrl-C or SIGTERM. started: called with the address once it answers.

    Raises LibraryError for a folder that is no library, OSError where the port cannot be had.
    """
    made_up = settings.token is None and settings.open_to_others
    if made_up:
        settings = replace(settings, token=secrets.token_urlsafe(24))
    listener = _listen(settings)
    _log_to_stderr()
    try:
        port = listener.getsockname()[1]
        app, service = create_app(settings, port=port)
        address = _address(settings, port, show_token=made_up)
        config = uvicorn.Config(
            app,  # type: ignore[arg-type]
            http=_PatientNoMore,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            h11_max_incomplete_event_size=_HEADER_BYTES,
            limit_concurrency=_CONNECTIONS,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=_GOODBYE_SECONDS,
        )
        for name in ("uvicorn", "python_multipart"):  # what strangers send wrongly is not this log's business
            logging.getLogger(name).setLevel(logging.CRITICAL)
        server = _Server(config, service, lambda: started(address))
        before = {each: signal.signal(each, _ignore) for each in (signal.SIGINT, signal.SIGTERM)}
        try:
            server.run(sockets=[listener])
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)
    finally:
        listener.close()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, service: Service, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._service = service
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()

    def handle_exit(self, sig: int, frame: Any) -> None:
        self._service.stop_watching()  # streams of events would be waited for
        super().handle_exit(sig, frame)


class _PatientNoMore(H11Protocol):
    """Closes connections on which a request does not get complete: each would be kept open for nothing."""

    _deadline: Any = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Between the first byte of a request's head and its last a clock runs."""
        if self.conn.their_state is not h11.IDLE:
            self._forget()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(_HEADER_SECONDS, self._give_up)

    def _forget(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._deadline = None
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.close()


def _listen(settings: Settings) -> socket.socket:
    host = settings.host
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, settings.port), family=family, backlog=1024)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"cannot listen on {host} port {settings.port} ({reason}); choose another with --port") from error


def _address(settings: Settings, port: int, *, show_token: bool) -> str:
    """Where a browser finds it; with the token where that was made up, so that one click is enough."""
    host = socket.gethostname() if settings.host in ("0.0.0.0", "::") else settings.host
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    return f"{address}/?token={settings.token}" if show_token else address


def _ignore(*_: Any) -> None:
    """The server takes these signals while it runs; what comes before and after must not be a traceback."""


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("everyframe serve: %(message)s"))
    logging.getLogger("everyframe.serve").addHandler(handler)
