"""Processes that take turns: each loads and warms up once, then measures when it is told to.

Peak memory is then each one's own, none can warm up another's caches, and a machine that drifts drifts for all.
A process that waits uses no processor. All of them are in memory at once, about 1 GB each.

The side that measures calls `serve`; the side that conducts holds one `Player` each.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from types import TracebackType
from typing import Any


def serve(turn: Callable[[], dict[str, Any]]) -> None:
    """Say that all is ready, then answer each line of the standard input with one turn's result."""
    _say({"ready": True})
    for _ in sys.stdin:
        _say(turn())


def decline(reason: str) -> None:
    """Say instead of `serve` that this cannot be measured here."""
    _say({"skipped": reason})


def _say(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


class Player:
    """One process of `command`. `skipped` says why it declined, None where it is ready. A context manager."""

    def __init__(self, name: str, command: list[str]) -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed in __exit__)
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )
        self.pid = self._process.pid
        self.skipped: str | None = self._answer().get("skipped")

    def turn(self) -> dict[str, Any]:
        """One measurement."""
        if self._process.stdin is None:
            raise RuntimeError(f"{self.name}: the process has no standard input")
        self._process.stdin.write("turn\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        if self._process.stdout is None:
            raise RuntimeError(f"{self.name}: the process has no standard output")
        for line in self._process.stdout:
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        self._process.wait()
        self._errors.seek(0)
        raise RuntimeError(f"{self.name} ended with {self._process.returncode}:\n{self._errors.read()[-3000:]}")

    def __enter__(self) -> Player:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._errors.close()
