"""What a manifest holds: what became of videos, and which tries at segments failed; as values and as lines of JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from datetime import datetime, timezone
from typing import Any, Literal

from everyframe.version import package_version

Status = Literal["done", "partial", "failed", "quarantined", "duplicate"]


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """What became of a video.

    key: see `video_key`. source: its path or address. name, output: where its features go below the output (of a
        shard "features-000012.tar#name", of a library "#id"), None where there are none.
    status: "partial" where a damaged video gave some frames; "duplicate" where another source has the same content:
        then `output` is that one's. frames, i_frames: rows, and those encoded in full. seconds: of video.
    kind, message: why it failed, see `work.Failure`. when: UTC. version: of everyframe.
    keep_partial: was what can be read of a damaged video wanted?
    """

    key: str
    source: str
    name: str
    status: Status
    output: str | None = None
    frames: int = 0
    seconds: float = 0.0
    i_frames: int = 0
    attempts: int = 1
    kind: str | None = None
    message: str | None = None
    run: str = ""
    when: str = field(default_factory=_now)
    version: str = field(default_factory=package_version)
    keep_partial: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """A try at a segment, (first, stop), that gave nothing."""

    key: str
    segment: tuple[int, int | None]
    kind: str
    message: str
    run: str = ""
    when: str = field(default_factory=_now)


Record = Entry | Attempt
FAILED = ("failed", "quarantined")
# What a line says only where it is something else; see `line_of`.
_USUAL: dict[type, dict[str, Any]] = {
    kind: {each.name: each.default for each in fields(kind) if each.name not in ("key", "status", "segment", "run")}
    for kind in (Entry, Attempt)
}

_KEY_AT = len('{"key":"')
_OUTPUT = '"output":"'  # nowhere else in a line: within a text its quotes would be escaped
_IS_ENTRY, _IS_DUPLICATE, _IS_ATTEMPT = '","status":"', '","status":"duplicate"', '","segment":'


def line_of(record: Record, run: str) -> str:
    """A line of JSON, as `Records` knows it: the key first, then what tells its kind; defaults are left out.

    run: of a record that names none. Raises ValueError for what is no key.
    """
    second = "segment" if isinstance(record, Attempt) else "status"
    values = {"key": record.key, second: getattr(record, second)}
    for name, usual in _USUAL[type(record)].items():
        value = getattr(record, name)
        if value != usual:
            values[name] = value
    values["run"] = record.run or run
    if not re.fullmatch(r"[\w-]+", record.key, re.ASCII):
        raise ValueError(f"{record.key!r} is no key, see video_key")
    return json.dumps(values, separators=(",", ":"))


def entry_from(line: str) -> Entry:
    """The entry that a line holds."""
    return Entry(**json.loads(line))


def attempt_from(line: str) -> Attempt:
    """The failed try that a line holds."""
    values = json.loads(line)
    return Attempt(**{**values, "segment": tuple(values["segment"])})


@dataclass
class Records:
    """Lines, as they are in files, of which the later ones win. Most are never looked at, so they stay text."""

    entries: dict[str, str] = field(default_factory=dict)
    duplicates: dict[tuple[str, str], str] = field(default_factory=dict)
    attempts: dict[str, list[str]] = field(default_factory=dict)

    def apply(self, lines: Iterable[str]) -> None:
        """Raises ValueError for a line that `line_of` did not make."""
        entries, attempts = self.entries, self.attempts
        for line in lines:
            end = line.index('"', _KEY_AT)
            key = line[_KEY_AT:end]
            if line.startswith(_IS_ATTEMPT, end):
                attempts.setdefault(key, []).append(line)
            elif line.startswith(_IS_DUPLICATE, end):
                self.duplicates[key, json.loads(line)["source"]] = line
            elif line.startswith(_IS_ENTRY, end):
                entries.pop(key, None)  # the latest comes last
                entries[key] = line
                attempts.pop(key, None)
            else:
                raise ValueError(line[:80])

    def lines(self) -> list[str]:
        """Those that count: entries in the order of their last change, duplicates, failed tries."""
        tries = (line for lines in self.attempts.values() for line in lines)
        return [*self.entries.values(), *self.duplicates.values(), *tries]

    def outputs(self) -> Iterator[tuple[str, str]]:
        """(key, output) of each entry that has one, in the order of `entries`; decodes as few lines as it can."""
        for key, line in list(self.entries.items()):
            at = line.find(_OUTPUT)
            if at >= 0:
                text = line[at + len(_OUTPUT) : line.index('"', at + len(_OUTPUT))]
                yield key, json.loads(line)["output"] if "\\" in text else text
