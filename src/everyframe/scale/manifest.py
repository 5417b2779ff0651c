"""What became of every video of an output, in all of its runs: durable, merged, and read in seconds.

`OUT/.everyframe/manifest/` holds files of JSON lines. Each `record` writes one, whole or not at all, since an object
store cannot append; when they are many, the later ones are joined to one that names what it replaces, so that a crash
between its upload and their removal changes nothing. The first line of a file is its header, with the number of lines
and their hash: damage never passes for less work done.

A local output is locked: a second driver is refused. On an object store there are no locks. Two drivers that run there
at once lose none of each other's records, but encode the same videos twice: do not start two.
"""

from __future__ import annotations

import gc
import hashlib
import json
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields
from datetime import datetime, timezone
from pathlib import Path
from threading import RLock
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from everyframe.features import VideoFeatures
from everyframe.library import LibraryError, LockedError
from everyframe.library.locking import locked
from everyframe.pipeline.resume import source_name
from everyframe.scale.places import STATE, OutputError, Place, make_folder, reason_of
from everyframe.version import package_version

if TYPE_CHECKING:
    from typing_extensions import Self

FOLDER = f"{STATE}/manifest"
Status = Literal["done", "partial", "failed", "quarantined", "duplicate"]
FORMAT = "everyframe-manifest"
FORMAT_VERSION = 1
_MOST_FILES = 32
_REMEDY = "move it away; what it recorded is then found again from the outputs, where they allow it, or made again"
# What features say of one video or of the program, not of how they were asked for.
_NOT_ASKED = ("version", "damage", "segments", "motion_source", "gflops_per_frame", "gflops_share")
_MODEL_FACTS = ("weights_sha256", "dtype", "preprocess")


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
_FAILED = ("failed", "quarantined")
# What a line says only where it is something else; see `_line`.
_USUAL: dict[type, dict[str, Any]] = {
    kind: {each.name: each.default for each in fields(kind) if each.name not in ("key", "status", "segment", "run")}
    for kind in (Entry, Attempt)
}


# --- keys --------------------------------------------------------------------------------------------------


def video_key(source: str, identity: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    """Which features of which video: equal for equal content and settings, wherever the video lies.

    identity: `everyframe.video.identity.identity(source)`; where it is empty, as for http://, the address counts.
    provenance: `everyframe.pipeline.provenance_of(...)`: its model's weights and all settings count, the version of
    everyframe does not. The text is "VIDEO-SETTINGS": keys that begin alike are of one video.
    """
    return f"{_video_part(source, identity)}-{settings_part(provenance)}"


def key_of(features: VideoFeatures) -> str:
    """The `video_key` of the video that features were made from, with the settings they were made with."""
    provenance = {"model": features.model, "settings": features.settings}
    return video_key(str(features.video.get("path", "")), features.video, provenance)


def _video_part(source: str, identity: Mapping[str, Any]) -> str:
    if identity.get("fingerprint"):
        return _hash([identity.get("size_bytes"), identity["fingerprint"]])[:24]
    return _hash(source_name(source))[:24]


def settings_part(provenance: Mapping[str, Any]) -> str:
    """The second part of a `video_key`."""
    model = {name: provenance["model"].get(name) for name in _MODEL_FACTS}
    settings = {name: value for name, value in provenance["settings"].items() if name not in _NOT_ASKED}
    return _hash([model, settings])[:12]


def same_video(key: str, other: str) -> bool:
    """Are these keys of one video, whatever the settings?"""
    return key.partition("-")[0] == other.partition("-")[0]


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(_plain_numbers(value), sort_keys=True).encode()).hexdigest()


def _plain_numbers(value: Any) -> Any:
    """3.0 and 3 are one rate; a tuple is what JSON makes of it."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {key: _plain_numbers(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain_numbers(each) for each in value]
    return value


# --- the manifest ------------------------------------------------------------------------------------------


@dataclass
class _State:
    """Lines, as they are in files, of which the later ones win. Most are never looked at, so they stay text."""

    entries: dict[str, str] = field(default_factory=dict)
    duplicates: dict[tuple[str, str], str] = field(default_factory=dict)
    attempts: dict[str, list[str]] = field(default_factory=dict)

    def apply(self, lines: Iterable[str]) -> None:
        """Raises ValueError for a line that `_line` did not make."""
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
        tries = (line for lines in self.attempts.values() for line in lines)
        return [*self.entries.values(), *self.duplicates.values(), *tries]


@dataclass(frozen=True)
class _File:
    name: str
    lines: int


class Manifest:
    """The entries of an output. Any thread may use it.

    place: see `places.open_place`. run: the name of this run, which goes into what `record` is given without one.
    Raises OutputError for a local output that another driver is writing to, naming its process, for a manifest that is
    damaged, foreign, or of another format version, and for a place that cannot be used.
    """

    def __init__(self, place: Place, *, run: str = "") -> None:
        self._place, self.run = place, run
        self._mutex = RLock()
        self._held = ExitStack()
        self._state = _State()
        self._files: list[_File] = []
        self._next = 1
        try:
            if place.is_local:
                _lock(place, self._held)
                place.sweep()
            self._load()
        except BaseException:
            self._held.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let another driver in."""
        self._held.close()

    def __len__(self) -> int:
        return len(self._state.entries)

    def get(self, key: str) -> Entry | None:
        """What is known of a video, as it was last recorded; duplicates apart."""
        line = self._state.entries.get(key)
        return None if line is None else _entry(line)

    def entries(self) -> Iterator[Entry]:
        """All entries, the latest last, then the duplicates."""
        with self._mutex:
            lines = [*self._state.entries.values(), *self._state.duplicates.values()]
        return map(_entry, lines)

    def is_duplicate(self, key: str, source: str) -> bool:
        """Is this source recorded as one of a content that another source gave the features of?"""
        return (key, source) in self._state.duplicates

    def attempts(self, key: str) -> list[Attempt]:
        """The tries at a video's segments that failed, in all runs since its last entry."""
        with self._mutex:
            return [_attempt(line) for line in self._state.attempts.get(key, ())]

    def settled(self, key: str, *, keep_partial: bool = False) -> Entry | None:
        """The entry that says there is nothing to do for this video; None where there is.

        Part of a damaged video settles it only where that is wanted. A failure does, until `forget_failures`, as long
        as the version of everyframe and keep_partial are the same.
        """
        entry = self.get(key)
        if entry is None or entry.status == "done":
            return entry
        if entry.status == "partial":
            return entry if keep_partial else None
        again = entry.version != package_version() or (keep_partial and not entry.keep_partial)
        return None if again else entry

    def record(self, entries: Iterable[Entry], attempts: Iterable[Attempt] = ()) -> None:
        """Add records, all or none of them; durable when it returns. Raises OutputError.

        Entries that failed for kind "output" are passed over: they say nothing of a video.
        """
        given: list[Record] = [*(entry for entry in entries if not _is_of_output(entry)), *attempts]
        lines = [_line(record, self.run) for record in given]
        if not lines:
            return
        with self._mutex:
            self._write(lines, replaces=())
            self._state.apply(lines)
            if len(self._files) > _MOST_FILES:
                self._join(self._worth_joining())

    def forget_failures(self) -> int:
        """Forget the videos that failed or were quarantined, and all failed tries; returns how many videos it were."""
        with self._mutex:
            lost = [key for key, line in self._state.entries.items() if _entry(line).status in _FAILED]
            if lost or self._state.attempts:
                kept = _State(dict(self._state.entries), dict(self._state.duplicates))
                for key in lost:
                    del kept.entries[key]
                self._replace(self._files, kept.lines())
                self._state = kept
            return len(lost)

    # --- files -------------------------------------------------------------------------------------------

    def _load(self) -> None:
        names = self._place.names(FOLDER)
        contents = self._place.read_many(names)
        read: dict[str, list[str]] = {}
        replaced: set[str] = set()
        for name in names:
            where = f"{self._place.address}/{name}"
            header, read[name] = _parse(contents.pop(name), where)
            replaced.update(header.get("replaces", ()))
            self._next = max(self._next, _number(name, where) + 1)
        with _no_collection():
            for name, lines in read.items():
                if name not in replaced:
                    self._apply(self._state, lines, name)
                    self._files.append(_File(name, len(lines)))
        self._place.delete(sorted(replaced.intersection(names)))
        self._join(self._worth_joining(), read)

    def _apply(self, state: _State, lines: Iterable[str], name: str) -> None:
        try:
            state.apply(lines)
        except ValueError as error:
            raise OutputError(f"{self._place.address}/{name} holds an unknown line ({error}): {_REMEDY}") from error

    def _write(self, lines: Sequence[str], replaces: Sequence[str]) -> _File:
        # The random part: where there are no locks, another driver's file of this number is not overwritten.
        name = f"{FOLDER}/{self._next:012d}-{secrets.token_hex(4)}.jsonl"
        self._place.write(name, _bytes(lines, replaces))
        self._next += 1
        self._files.append(file := _File(name, len(lines)))
        return file

    def _worth_joining(self) -> list[_File]:
        """The last files, back to one that is far larger than all after it: each record is joined a few times only."""
        first, later = max(len(self._files) - 1, 0), 0
        while first and self._files[first - 1].lines <= 2 * (later + self._files[first].lines):
            later += self._files[first].lines
            first -= 1
        return self._files[first:]

    def _join(self, files: Sequence[_File], read: Mapping[str, list[str]] | None = None) -> None:
        """read: the lines of files, where they are at hand."""
        if len(files) < 2:
            return
        if read is None:
            contents = self._place.read_many([file.name for file in files])
            read = {name: _parse(data, f"{self._place.address}/{name}")[1] for name, data in contents.items()}
        state = _State()
        with _no_collection():
            for file in files:
                self._apply(state, read[file.name], file.name)
        # A failed try may lie in an earlier file than the entry that settled it, never in a later one.
        self._replace(files, state.lines())

    def _replace(self, files: Sequence[_File], lines: Sequence[str]) -> None:
        names = [file.name for file in files]
        joined = self._write(lines, names)
        self._files = [file for file in self._files if file.name not in set(names) and file is not joined]
        self._files.append(joined)
        self._place.delete(names)


def _is_of_output(entry: Entry) -> bool:
    return entry.kind == "output" and entry.status in _FAILED


def _lock(place: Place, held: ExitStack) -> None:
    """Lock a local output until `held` is closed; the system drops the lock with the process."""
    file = Path(place.address, STATE, "driver.lock")
    try:
        make_folder(file.parent)
        held.enter_context(locked(file, 0.0, place.address))
    except LockedError as error:
        holder = file.read_text(encoding="ascii", errors="replace").strip() or "unknown"
        raise OutputError(
            f"{place.address} is being written to by another run, process {holder}; wait for it, stop it, or choose "
            "another --out"
        ) from error
    except (OSError, LibraryError) as error:
        raise OutputError(f"{place.address} cannot be locked: {reason_of(error.__cause__ or error)}") from error


@contextmanager
def _no_collection() -> Iterator[None]:
    """A million new objects are no garbage; looking for it among them takes longer than making them."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


# --- lines -------------------------------------------------------------------------------------------------


_KEY_AT = len('{"key":"')
_IS_ENTRY, _IS_DUPLICATE, _IS_ATTEMPT = '","status":"', '","status":"duplicate"', '","segment":'


def _line(record: Record, run: str) -> str:
    """As `_State.apply` knows it: the key first, and what kind of record it is. What is at its default is left out."""
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


def _entry(line: str) -> Entry:
    return Entry(**json.loads(line))


def _attempt(line: str) -> Attempt:
    values = json.loads(line)
    return Attempt(**{**values, "segment": tuple(values["segment"])})


def _bytes(lines: Sequence[str], replaces: Sequence[str]) -> bytes:
    body = "".join(f"{line}\n" for line in lines).encode("ascii")
    header: dict[str, Any] = {"format": FORMAT, "version": FORMAT_VERSION, "lines": len(lines)}
    header["sha256"] = hashlib.sha256(body).hexdigest()
    if replaces:
        header["replaces"] = list(replaces)
    return json.dumps(header).encode() + b"\n" + body


def _parse(data: bytes, where: str) -> tuple[dict[str, Any], list[str]]:
    """Header and lines of a file. Raises OutputError where they are not what was written."""
    first, _, body = data.partition(b"\n")
    try:
        header = json.loads(first)
        kind, version = header["format"], header["version"]
    except (ValueError, KeyError, TypeError):
        kind = version = None
    if kind != FORMAT:
        raise OutputError(f"{where} is not a file of a manifest: {_REMEDY}")
    if version != FORMAT_VERSION:
        raise OutputError(
            f"{where} has format version {version}, this everyframe reads {FORMAT_VERSION}; upgrade everyframe, or "
            "choose another --out"
        )
    if hashlib.sha256(body).hexdigest() != header.get("sha256"):
        raise OutputError(f"{where} is damaged (it does not match its checksum): {_REMEDY}")
    return header, body.decode("ascii").splitlines()


def _number(name: str, where: str) -> int:
    number = name.rpartition("/")[2].partition("-")[0]
    if not name.endswith(".jsonl") or not number.isdecimal():
        raise OutputError(f"{where} is not a file of a manifest: {_REMEDY}")
    return int(number)
