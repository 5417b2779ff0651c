"""Videos converted for browsers that cannot play the originals: made when asked for, kept while there is room."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from collections import OrderedDict
from pathlib import Path

from everyframe.serve.children import Child, ChildError
from everyframe.serve.errors import Conflict, TooMany
from everyframe.serve.files import Workplace
from everyframe.serve.media import Opened
from everyframe.serve.settings import Limits

_SUFFIX = ".mp4"
_FORGET_SECONDS = 600.0
_WAITING = 8
_REMEMBERED = 1000


class Previews:
    """A folder of previews by the fingerprint of their video, and the child process that makes them, one at a time."""

    def __init__(self, place: Workplace, *, most_bytes: int, limits: Limits, stall_seconds: float) -> None:
        self._place = place
        self._folder = place.previews
        self._most_bytes = most_bytes
        self._limits = limits
        self._stall = stall_seconds
        self._slot = asyncio.Semaphore(1)
        self._making: dict[str, asyncio.Task[None]] = {}
        self._progress: dict[str, float] = {}
        self._failed: OrderedDict[str, tuple[float, str]] = OrderedDict()

    def open(self, fingerprint: str) -> Opened | None:
        """The preview, if there is one."""
        try:
            handle = os.open(self._file(fingerprint), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        facts = os.fstat(handle)
        with contextlib.suppress(OSError):
            os.utime(handle)  # what was watched last is kept longest
        return Opened(handle, facts.st_size, 0.0, f'"{fingerprint}-{facts.st_size}-{facts.st_ino}"')

    def make(self, fingerprint: str, source: str, demuxer: str) -> float:
        """See that it is being made; how far that is, 0 to 1. Raises Conflict, TooMany."""
        failed = self._failed.get(fingerprint)
        if failed is not None and time.monotonic() - failed[0] < _FORGET_SECONDS:
            raise Conflict(failed[1])
        if fingerprint not in self._making:
            if len(self._making) >= _WAITING:
                raise TooMany("many videos are being converted already; try again later")
            self._making[fingerprint] = asyncio.ensure_future(self._make(fingerprint, source, demuxer))
        return self._progress.get(fingerprint, 0.0)

    def remove(self, fingerprint: str) -> None:
        """Forget the preview of a video."""
        self._file(fingerprint).unlink(missing_ok=True)

    async def close(self) -> None:
        """Stop what is being made."""
        for task in list(self._making.values()):
            task.cancel()
        await asyncio.gather(*self._making.values(), return_exceptions=True)

    def _file(self, fingerprint: str) -> Path:
        return self._folder / f"{fingerprint}{_SUFFIX}"

    async def _make(self, fingerprint: str, source: str, demuxer: str) -> None:
        try:
            async with self._slot:
                await self._convert(fingerprint, source, demuxer)
        except (ChildError, OSError) as error:
            name = Path(source).name
            reason = str(error).replace(source, name)
            self._failed[fingerprint] = (time.monotonic(), reason if name in reason else f"{name}: {reason}")
            while len(self._failed) > _REMEMBERED:
                self._failed.popitem(last=False)
        finally:
            self._making.pop(fingerprint, None)
            self._progress.pop(fingerprint, None)

    async def _convert(self, fingerprint: str, source: str, demuxer: str) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._make_room()
        folder = self._place.new_folder()
        made = folder / "preview.mp4"
        child = await Child.start("preview", {"source": source, "out": str(made), "demuxer": demuxer}, self._limits)
        try:
            async for message in child.answers(self._stall):
                seconds, duration = message.get("seconds"), message.get("duration")
                if isinstance(seconds, float) and isinstance(duration, float) and duration > 0:
                    self._progress[fingerprint] = max(0.0, min(0.99, seconds / duration))
            os.replace(made, self._file(fingerprint))
        finally:
            await asyncio.shield(child.close())
            shutil.rmtree(folder, ignore_errors=True)

    def _make_room(self) -> None:
        """Remove what was not watched for longest, until a quarter of the room is free."""
        files = [(file, file.stat()) for file in self._folder.glob(f"*{_SUFFIX}")]
        total = sum(facts.st_size for _, facts in files)
        for file, facts in sorted(files, key=lambda each: each[1].st_mtime):
            if total <= 0.75 * self._most_bytes:
                return
            file.unlink(missing_ok=True)
            total -= facts.st_size
