"""Which videos below some folders are new, changed or gone, found by looking again and again.

Polling sees what other machines do on a network disk, which notifications of the operating system do not.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from everyframe.video import NoVideosError, VideoError, find_videos

# A file that was moved while a look was on may be seen at neither place, then at the new one, and has settled there at
# the third look, where it is known to be the same.
LOOKS_GONE = 3

Signature = tuple[int, int, int]  # files, bytes, time of the last change in ns


@dataclass(frozen=True)
class Changes:
    """What one look found.

    settled: new or changed videos that look as they did the last time, which are complete as far as can be seen.
    pending: those that do not yet. gone: known videos that have been missing for three looks, once. problems: sentences
    about what could not be looked at, once.
    """

    settled: list[Path]
    pending: list[Path]
    gone: list[Path]
    problems: list[str]


class Watch:
    """Looks at the videos that `paths` name (files, folders, patterns, lists), all but those below `leave_out`.

    A video is settled when its size and its time of change stay as they are from one look to the next: a file that is
    still being copied grows. Tell `handled` what was worked on.
    """

    def __init__(self, paths: Iterable[str | Path], *, leave_out: Path | None = None) -> None:
        self._paths = [Path(path) for path in paths]
        self._leave_out = leave_out
        self._seen: dict[Path, Signature] = {}  # as it was at the last look
        self._handled: dict[Path, Signature] = {}
        self._missing: dict[Path, int] = {}  # for so many looks
        self._said: set[str] = set()

    def first(self, quiet_seconds: float) -> list[Path]:
        """The videos to begin with: those that nobody changed in the last `quiet_seconds`; others wait to settle."""
        listed, _, _ = self._list()
        self._seen = {path: mark for path in listed if (mark := signature(path)) is not None}
        now = time.time()
        return [path for path, mark in self._seen.items() if now - mark[2] / 1e9 >= quiet_seconds]

    def look(self, known: Iterable[str | Path] = ()) -> Changes:
        """What has changed since the last look. known: videos that should be there too, those of a library."""
        expected = {Path(path) for path in known}
        listed, unseen, problems = self._list()
        settled: list[Path] = []
        pending: list[Path] = []
        seen: dict[Path, Signature] = {}
        for path in listed:
            mark = signature(path)
            if mark is None:
                problems += _why_unseen(path)
                continue
            seen[path] = mark
            if self._handled.get(path) != mark:
                (settled if self._seen.get(path) == mark else pending).append(path)
        missing = self._missing_of(expected, unseen, problems)
        self._missing = {path: self._missing.get(path, 0) + 1 for path in missing}
        gone = sorted(path for path, looks in self._missing.items() if looks == LOOKS_GONE)
        self._seen = seen
        fresh = [problem for problem in dict.fromkeys(problems) if problem not in self._said]
        self._said = set(problems)
        return Changes(settled, pending, gone, fresh)

    def handled(self, path: Path) -> None:
        """The video was worked on as the last look saw it, whatever came of it; it counts again when it changes."""
        if path in self._seen:
            self._handled[path] = self._seen[path]

    def _list(self) -> tuple[list[Path], list[Path], list[str]]:
        """Videos that are there; places that cannot be seen now, of whose videos nothing is known; problems."""
        found: dict[Path, None] = {}
        unseen: list[Path] = []
        problems: list[str] = []
        for path in self._paths:
            failures: list[VideoError] = []
            try:
                videos = find_videos([path], failures=failures)
            except OSError as error:
                videos = []
                failures.append(VideoError(f"{error.filename or path}: cannot be searched ({error.strerror or error})"))
            broken = [str(error) for error in failures if not isinstance(error, NoVideosError)]
            if broken:
                unseen.append(_absolute(path))
                problems += broken
            found |= dict.fromkeys(_absolute(video) for video in videos)
        if self._leave_out is not None:
            found = {path: None for path in found if not path.is_relative_to(self._leave_out)}
        return list(found), unseen, problems

    def _missing_of(self, expected: set[Path], unseen: list[Path], problems: list[str]) -> set[Path]:
        """Those of the videos that are known to be missing; whatever makes that uncertain is added to `problems`."""
        roots = [_absolute(path) for path in self._paths]
        below = {root: {path for path in expected if path.is_relative_to(root)} for root in roots}
        open_to_doubt = {path for path in expected if any(path.is_relative_to(place) for place in unseen)}
        missing = set().union(*below.values()) - open_to_doubt
        there: set[Path] = set()
        empty: dict[Path, bool] = {}  # folders
        for path in sorted(missing):
            try:
                if _status(path) is not None:
                    there.add(path)
                    continue
                holder = next(folder for folder in path.parents if _is_folder(folder))
                if holder not in empty:
                    empty[holder] = _is_empty(holder)
            except OSError as error:
                problems.append(_unseen(path.parent, error))
                open_to_doubt.add(path)
                continue
            if empty[holder]:  # as a disk leaves its folder when it is unmounted
                problems.append(f"{holder} is empty now; is its disk mounted? the library keeps what was below it")
                open_to_doubt.add(path)
        missing -= there | open_to_doubt
        for root, here in below.items():
            if len(here) > 1 and here & missing and not here & there:
                problems.append(
                    f"none of the {len(here)} videos that the library has of {root} is there; is its disk mounted? "
                    "the library keeps them"
                )
                open_to_doubt |= here
        return missing - open_to_doubt


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))


def _status(path: Path) -> os.stat_result | None:
    """None where nothing has this path. Raises OSError where that cannot be told."""
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _is_folder(path: Path) -> bool:
    status = _status(path)
    return status is not None and stat.S_ISDIR(status.st_mode)


def _is_empty(folder: Path) -> bool:
    """Is there nothing but hidden entries, and what file systems make for themselves? Raises OSError."""
    with os.scandir(folder) as entries:
        return all(entry.name.startswith(".") or entry.name == "lost+found" for entry in entries)


def _unseen(folder: Path, error: OSError) -> str:
    return f"{folder}: cannot be looked into ({error.strerror or error}); the library keeps what was below it"


def _why_unseen(path: Path) -> list[str]:
    """A sentence on a path that has no signature; none where it is just gone."""
    try:
        _status(path)
    except OSError as error:
        return [_unseen(path.parent, error)]
    return []


def signature(path: Path) -> Signature | None:
    """What changes when a video is written to, or the images of a folder; None where it cannot be seen."""
    try:
        facts = path.stat()
        if not path.is_dir():
            return 1, facts.st_size, facts.st_mtime_ns
        files = [entry.stat() for entry in os.scandir(path) if entry.is_file()]
    except OSError:
        return None
    newest = max((each.st_mtime_ns for each in files), default=0)
    return len(files), sum(each.st_size for each in files), max(newest, facts.st_mtime_ns)
