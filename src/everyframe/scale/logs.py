"""A log of a run for machines: a line of JSON per event."""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from everyframe.scale.events import ChunkDone, Event, Probing, SegmentFailed, Started, VideoDone

if TYPE_CHECKING:
    from typing_extensions import Self

LEVELS = ("info", "debug")
_BAD = ("partial", "failed", "quarantined")


class JsonLog:
    """Writes each event as one line, {"time": "2026-05-31T12:00:00.000Z", "level", "event", "run", ...}; a `Listener`.

    target: a file that is continued, or "-" for standard error. level: "debug" adds `ChunkDone`, of which there are
    very many. A line is written at once and whole. Raises ValueError where the file cannot be opened, OSError from a
    line that cannot be written: the run goes on without the log, see `report.Audience`.
    """

    def __init__(self, target: str | Path, *, level: str = "info") -> None:
        if level not in LEVELS:
            raise ValueError(f"the level of the log must be {' or '.join(LEVELS)}, got {level!r}")
        self.target, self.level = str(target), level
        self._run = ""
        self._file: int | None = None
        if self.target == "-":
            return
        try:
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(target, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError as error:
            raise ValueError(
                f"cannot write the log {target}: {error.strerror or error}; choose another file"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __call__(self, event: Event) -> None:
        if isinstance(event, (Probing, Started)):
            self._run = event.run
        if isinstance(event, ChunkDone) and self.level != "debug":
            return
        self._write({**_head(event, self._run), **asdict(event), "run": self._run})

    def note(self, name: str, **fields: Any) -> None:
        """A line about something that is no event of the run."""
        self._write({"time": _now(), "level": "info", "event": name, "run": self._run, **fields})

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _write(self, fields: dict[str, Any]) -> None:
        line = json.dumps(fields, ensure_ascii=False, default=str) + "\n"
        if self.target == "-":
            sys.stderr.write(line)
            sys.stderr.flush()
            return
        if self._file is None:
            raise ValueError(f"the log {self.target} is closed")
        data = line.encode("utf-8", "backslashreplace")
        try:
            done = os.write(self._file, data)
            if done < len(data):  # a disk that is full in the middle of a line says so at the next one
                os.write(self._file, data[done:])
        except OSError as error:
            raise OSError(error.errno, f"the log {self.target} cannot be written: {error.strerror or error}") from error


def _head(event: Event, run: str) -> dict[str, Any]:
    level = "info"
    if isinstance(event, ChunkDone):
        level = "debug"
    elif isinstance(event, SegmentFailed) or (isinstance(event, VideoDone) and event.status in _BAD):
        level = "warning"
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(event).__name__).lower()
    return {"time": _now(), "level": level, "event": name, "run": run}


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
