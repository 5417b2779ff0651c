"""The server's side of its child processes: start one with limits, hear it, end it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import os
import signal
import struct
import sys
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import numpy as np

from everyframe.serve.settings import Limits

LOG = logging.getLogger("everyframe.serve")
_LINE = 1 << 16
_LAST_WORDS = 20
_SIGNALS = {
    signal.SIGKILL: "it was killed (by hand, or by the system because memory ran out)",
    signal.SIGXCPU: "it took more processor time than it may",
    signal.SIGSEGV: "the decoder crashed on this file",
    signal.SIGABRT: "the decoder gave up on this file",
    signal.SIGBUS: "the decoder crashed on this file",
    signal.SIGILL: "the decoder crashed on this file",
    signal.SIGFPE: "the decoder crashed on this file",
}


class ChildError(Exception):
    """What became of a child that did not finish, as one sentence."""


class Child:
    """A process of `everyframe.serve.worker` in a group of its own. Make it with `start`, end it with `close`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._said: deque[bytes] = deque(maxlen=_LAST_WORDS)
        self._listening = asyncio.ensure_future(self._listen())

    @classmethod
    async def start(cls, kind: str, task: dict[str, Any], limits: Limits) -> Child:
        """Raises ChildError where the system starts no more processes."""
        command = [sys.executable, "-m", "everyframe.serve.worker", kind, json.dumps(dataclasses.asdict(limits))]
        pipe = asyncio.subprocess.PIPE
        try:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True, limit=_LINE
            )
        except OSError as error:
            raise ChildError(f"no process can be started ({error.strerror or error})") from error
        child = cls(process)
        await child.write(json.dumps(task).encode() + b"\n")
        return child

    @property
    def pid(self) -> int:
        return self._process.pid

    async def write(self, data: bytes) -> None:
        """Where the child is gone already, its answer says so, not this."""
        stdin = self._process.stdin
        if stdin is not None:
            with contextlib.suppress(ConnectionError):
                stdin.write(data)
                await stdin.drain()

    async def answer(self, seconds: float) -> dict[str, Any]:
        """The next thing it says. Raises ChildError where it fails, dies, or says nothing for so long."""
        out = self._process.stdout
        if out is None:
            raise RuntimeError("a child without a pipe")
        try:
            line = await asyncio.wait_for(out.readline(), seconds)
        except asyncio.TimeoutError:
            raise ChildError(f"it made no progress for {seconds:g} seconds and was ended") from None
        except ValueError:
            raise ChildError("it said more than it should") from None
        if not line:
            raise ChildError(await self._why())
        try:
            message = json.loads(line)
        except ValueError:
            message = None
        if not isinstance(message, dict):
            raise ChildError("it said something that makes no sense")
        if "error" in message:
            raise ChildError(str(message["error"])[:1000])
        return message

    async def answers(self, seconds: float) -> AsyncIterator[dict[str, Any]]:
        """What it says until it is done."""
        while True:
            message = await self.answer(seconds)
            yield message
            if "done" in message:
                return

    async def read(self, size: int, seconds: float) -> bytes:
        """That many bytes. Raises ChildError."""
        out = self._process.stdout
        if out is None:
            raise RuntimeError("a child without a pipe")
        try:
            return await asyncio.wait_for(out.readexactly(size), seconds)
        except (asyncio.TimeoutError, asyncio.IncompleteReadError):
            raise ChildError("it did not answer") from None

    async def close(self) -> None:
        """End it and whatever it started, and wait until it is gone."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()
        await self._listening

    async def _why(self) -> str:
        """It ended without a word of its own."""
        code = await self._process.wait()
        await self._listening
        LOG.warning("a child process ended with %s: %s", code, b"".join(self._said).decode("utf-8", "replace")[-2000:])
        if code < 0:
            return _SIGNALS.get(signal.Signals(-code), f"it ended by {signal.Signals(-code).name}")
        return f"its process ended with code {code}"

    async def _listen(self) -> None:
        err = self._process.stderr
        while err is not None and (chunk := await err.read(4096)):
            self._said.append(chunk)


class PictureReader:
    """Reads pictures of strangers, each in a process of its own, of which one is kept ready: starting takes long."""

    def __init__(self, limits: Limits, seconds: float = 20.0) -> None:
        self._limits = limits
        self._seconds = seconds
        self._spare: asyncio.Task[Child] | None = None
        self._at_once = asyncio.Semaphore(2)

    async def read(self, data: bytes, demuxer: str) -> np.ndarray:
        """uint8 [H, W, 3] RGB. Raises ChildError where the picture cannot be read."""
        async with self._at_once:
            child = await self._ready()
            try:
                body = demuxer.encode() + b"\n" + data
                await child.write(struct.pack(">Q", len(body)) + body)
                async for message in child.answers(self._seconds):
                    if "done" in message:
                        height, width = int(message["done"]["height"]), int(message["done"]["width"])
                        break
                if not 0 < height * width <= 1 << 24:
                    raise ChildError("it said something that makes no sense")
                pixels = np.frombuffer(await child.read(3 * height * width, self._seconds), np.uint8)
                return pixels.reshape(height, width, 3)
            finally:
                await child.close()

    async def close(self) -> None:
        """End the one that is ready."""
        if self._spare is not None:
            with contextlib.suppress(ChildError):
                await (await self._spare).close()

    async def _ready(self) -> Child:
        spare, self._spare = self._spare, asyncio.ensure_future(Child.start("picture", {}, self._limits))
        if spare is not None:
            with contextlib.suppress(ChildError):
                return await spare
        return await Child.start("picture", {}, self._limits)
