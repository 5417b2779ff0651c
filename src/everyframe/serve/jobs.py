"""Videos that are being added: a queue, a child process for each, its progress, and what became of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from everyframe.serve.children import Child, ChildError
from everyframe.serve.encoding import Reading
from everyframe.serve.errors import Conflict, TooMany
from everyframe.serve.settings import Limits

LOG = logging.getLogger("everyframe.serve")
State = Literal["queued", "encoding", "adding", "done", "failed", "cancelled"]
FINAL = ("done", "failed", "cancelled")

_KEPT = 200
_WAKE_SECONDS = 1.0
_STILL_HERE_SECONDS = 10.0
_THROTTLE_SECONDS = 0.1
# How much longer than else it may say nothing: while a model is fetched, while thumbnails of a long video are made.
_LONGER_TO_START = 5
_LONGER_FOR_PICTURES = 5


@dataclass(kw_only=True)
class Work:
    """One video to add. source: the file. folder: for what the child writes; the job's own, removed after it.

    demuxer: FFmpeg's name of the only reader that may open it.
    """

    name: str
    source: Path
    folder: Path
    demuxer: str
    reading: Reading


@dataclass(kw_only=True, eq=False)
class Job:
    """What is known of one video that is being added. seconds of duration are encoded, as frames."""

    id: str
    name: str
    state: State = "queued"
    frames: int = 0
    seconds: float = 0.0
    duration: float | None = None
    error: str | None = None
    video: int | None = None
    pid: int | None = None
    folder: Path | None = None
    task: asyncio.Task[None] | None = field(default=None, repr=False)
    changed: asyncio.Event = field(default_factory=asyncio.Event, repr=False)

    @property
    def final(self) -> bool:
        return self.state in FINAL

    @property
    def progress(self) -> float:
        """0 to 1; encoding is nearly all of it."""
        if self.state in ("adding", "done"):
            return 1.0 if self.state == "done" else 0.98
        return min(0.96, 0.96 * self.seconds / self.duration) if self.duration else 0.0

    def set(self, **fields: Any) -> None:
        """Change it, and wake whoever watches."""
        for name, value in fields.items():
            setattr(self, name, value)
        waiting, self.changed = self.changed, asyncio.Event()
        waiting.set()


Add = Callable[[Work], Awaitable[int]]
"""Puts what a child made of a video into the library; its id there. What it raises is the job's error."""


class Jobs:
    """The queue. remove: takes away a job's folder, whatever happened."""

    def __init__(
        self,
        *,
        add: Add,
        remove: Callable[[Path], Awaitable[None]],
        limits: Limits,
        at_once: int,
        waiting: int,
        stall_seconds: float,
    ) -> None:
        self._add, self._remove, self._limits = add, remove, limits
        self._slots = asyncio.Semaphore(at_once)
        self._most = at_once + waiting
        self._stall = stall_seconds
        self._jobs: dict[str, Job] = {}
        self.stopping = False

    def check_room(self) -> None:
        """Raises TooMany: ask before two gigabytes are uploaded."""
        if sum(not job.final for job in self._jobs.values()) >= self._most:
            raise TooMany(f"{self._most} videos are being added already; try again when some are done")

    def submit(self, work: Work) -> Job:
        """Raises TooMany."""
        self.check_room()
        job = Job(id=secrets.token_hex(8), name=work.name, folder=work.folder)
        self._remember(job)
        job.task = asyncio.ensure_future(self._run(job, work))
        return job

    def settled(self, name: str, video: int) -> Job:
        """A job with nothing to do: the library has the video."""
        job = Job(id=secrets.token_hex(8), name=name, state="done", video=video)
        self._remember(job)
        return job

    def list(self) -> list[Job]:
        """Newest first."""
        return list(self._jobs.values())[::-1]

    def find(self, id: str) -> Job | None:
        return self._jobs.get(id)

    async def cancel(self, job: Job) -> None:
        """End it; a finished one is forgotten. Raises Conflict while the library is being written to."""
        if job.final:
            self._jobs.pop(job.id, None)
            return
        if job.state == "adding":
            raise Conflict(f"{job.name} is just being added to the library; remove it from there when it is")
        await self._end(job)

    async def watch(self, job: Job) -> AsyncIterator[Job | None]:
        """The job whenever it changed, at last in its final state; None now and then while nothing happens."""
        told = time.monotonic()
        while not self.stopping:
            event = job.changed
            yield job
            if job.final and event is job.changed:
                return
            await asyncio.sleep(_THROTTLE_SECONDS)
            while event is job.changed and not self.stopping:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(event.wait(), _WAKE_SECONDS)
                if event is job.changed and time.monotonic() - told >= _STILL_HERE_SECONDS:
                    told = time.monotonic()
                    yield None

    async def close(self) -> None:
        """End all of them."""
        self.stopping = True
        for job in self._jobs.values():
            await self._end(job)

    def _remember(self, job: Job) -> None:
        self._jobs[job.id] = job
        old = [each for each in self._jobs.values() if each.final]
        for each in old[: max(0, len(self._jobs) - _KEPT)]:
            del self._jobs[each.id]

    async def _end(self, job: Job) -> None:
        """Cancel it, or wait where it is too late for that."""
        if job.task is None:
            return
        if job.state != "adding":
            job.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([job.task])
        if not job.final and job.folder is not None:  # cancelled before it took its first step
            job.set(state="cancelled", error="cancelled")
            await self._remove(job.folder)

    async def _run(self, job: Job, work: Work) -> None:
        try:
            async with self._slots:
                job.set(state="encoding")
                await self._encode(job, work)
                job.set(state="adding")
                # From here on to the end: half added is what nobody wants.
                video = await asyncio.shield(asyncio.ensure_future(self._add(work)))
            job.set(state="done", video=video)
        except asyncio.CancelledError:
            job.set(state="cancelled", error="cancelled")
        except Exception as error:
            if not isinstance(error, (ChildError, ValueError, OSError)):
                LOG.exception("adding %s", work.name)
            job.set(state="failed", error=_sentence(work, error))
        finally:
            await self._remove(work.folder)

    async def _encode(self, job: Job, work: Work) -> None:
        task = {
            "source": str(work.source),
            "folder": str(work.folder),
            "demuxer": work.demuxer,
            "reading": vars(work.reading),
        }
        child = await Child.start("encode", task, self._limits)
        try:
            job.set(pid=child.pid)
            patience = _LONGER_TO_START * self._stall
            while True:
                message = await child.answer(patience)
                job.set(**_progress(message))
                if "loaded" in message:
                    patience = self._stall
                if "pictures" in message:
                    patience = _LONGER_FOR_PICTURES * self._stall
                if "done" in message:
                    return
        finally:
            job.set(pid=None)
            await asyncio.shield(child.close())


def _progress(message: dict[str, Any]) -> dict[str, Any]:
    """What a child says of its progress, taken with care: it read a stranger's file."""
    known: dict[str, Any] = {}
    for key, kind in (("frames", int), ("seconds", float), ("duration", float)):
        value = message.get(key)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e12:
            known[key] = kind(value)
    return known


def _sentence(work: Work, error: Exception) -> str:
    """Why it failed, without the places where the server keeps things."""
    if not isinstance(error, (ChildError, ValueError, OSError)):
        return f"{work.name} could not be added; the server's log says why"
    text = str(error).partition("; --keep-partial")[0].replace(f"{work.folder}/", "")
    text = text.replace(str(work.source), work.name)
    return text if work.name in text else f"{work.name}: {text}"
