"""What became of every video of an output, in all of its runs: durable, merged, and read in seconds.

`OUT/.everyframe/manifest/` holds files of JSON lines. Each `record` writes one, whole or not at all, since an object
store cannot append; when they are many, the later ones are joined to one that names what it replaces, so that a crash
between its upload and their removal changes nothing. The first line of a file is its header, with the number of lines
and their hash: damage never passes for less work done.

A local output is locked: a second driver is refused. On an object store there are no locks. Two drivers that run there
at once lose none of each other's records, but encode the same videos twice: do not start two.
"""

from __future__ import annotations

import errno
import gc
import hashlib
import json
import secrets
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from types import TracebackType
from typing import TYPE_CHECKING, Any

from everyframe.library import LibraryError, LockedError
from everyframe.library.locking import locked
from everyframe.scale.keys import key_of, same_video, settings_part, video_key
from everyframe.scale.places import STATE, OutputError, Place, make_folder, reason_of
from everyframe.scale.records import FAILED, Attempt, Entry, Record, Records, Status, attempt_from, entry_from, line_of
from everyframe.version import package_version

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Attempt", "Entry", "Manifest", "Status", "key_of", "same_video", "settings_part", "video_key"]

FOLDER = f"{STATE}/manifest"
FORMAT = "everyframe-manifest"
FORMAT_VERSION = 1
_MOST_FILES = 32
_LOOKS = 5
_NO_LOCKS = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK})  # some network file systems have none
_REMEDY = "move it away; what it recorded is then found again from the outputs, where they allow it, or made again"


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
        self._state = Records()
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
        return None if line is None else entry_from(line)

    def entries(self) -> Iterator[Entry]:
        """All entries, the latest last, then the duplicates."""
        with self._mutex:
            lines = [*self._state.entries.values(), *self._state.duplicates.values()]
        return map(entry_from, lines)

    def outputs(self) -> list[tuple[str, str]]:
        """(key, output) of each entry that has one, the latest last, without duplicates; far faster than `entries`."""
        with self._mutex:
            return list(self._state.outputs())

    def is_duplicate(self, key: str, source: str) -> bool:
        """Is this source recorded as one of a content that another source gave the features of?"""
        return (key, source) in self._state.duplicates

    def attempts(self, key: str) -> list[Attempt]:
        """The tries at a video's segments that failed, in all runs since its last entry."""
        with self._mutex:
            return [attempt_from(line) for line in self._state.attempts.get(key, ())]

    def settled(self, key: str, *, keep_partial: bool = False) -> Entry | None:
        """The entry that says there is nothing to do for this video; None where there is.

        Part of a damaged video settles it only where that is wanted. A failure does, until `forget_failures`, as long
        as the version of everyframe and keep_partial are the same; one of kind "output" says nothing of the video.
        """
        entry = self.get(key)
        if entry is None or entry.status == "done":
            return entry
        if entry.kind == "output":
            return None
        if entry.status == "partial":
            return entry if keep_partial else None
        again = entry.version != package_version() or (keep_partial and not entry.keep_partial)
        return None if again else entry

    def record(self, entries: Iterable[Entry], attempts: Iterable[Attempt] = ()) -> None:
        """Add records, all or none of them; durable when it returns. Raises OutputError."""
        given: list[Record] = [*entries, *attempts]
        lines = [line_of(record, self.run) for record in given]
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
            lost = [key for key, line in self._state.entries.items() if entry_from(line).status in FAILED]
            if lost or self._state.attempts:
                kept = Records(dict(self._state.entries), dict(self._state.duplicates))
                for key in lost:
                    del kept.entries[key]
                self._replace(self._files, kept.lines())
                self._state = kept
            return len(lost)

    # --- files -------------------------------------------------------------------------------------------

    def _load(self) -> None:
        names, contents = self._read_all()
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

    def _read_all(self) -> tuple[list[str], dict[str, bytes]]:
        for looks in range(_LOOKS):
            names = self._place.names(FOLDER)
            try:
                return names, self._place.read_many(names)
            except FileNotFoundError as error:  # another driver of an object store joins files at this moment
                if looks == _LOOKS - 1:
                    raise OutputError(
                        f"{self._place.address}/{FOLDER} keeps changing; is another run at work?"
                    ) from error
        raise RuntimeError("there is at least one look")

    def _apply(self, state: Records, lines: Iterable[str], name: str) -> None:
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
            try:
                contents = self._place.read_many([file.name for file in files])
            except FileNotFoundError:  # another driver of an object store has joined them
                there = set(self._place.names(FOLDER))
                self._files = [file for file in self._files if file.name in there]
                return
            read = {name: _parse(data, f"{self._place.address}/{name}")[1] for name, data in contents.items()}
        state = Records()
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
        cause = error.__cause__ or error
        if isinstance(cause, OSError) and cause.errno in _NO_LOCKS:
            warnings.warn(
                f"{place.address} cannot be locked on its file system; start no second run there", stacklevel=4
            )
            return
        raise OutputError(f"{place.address} cannot be locked: {reason_of(cause)}") from error


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
