"""What is to be encoded: files, folders, patterns, lists and tables, here or on an object store."""

from __future__ import annotations

import glob
import hashlib
import os
import posixpath
import re
import stat
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from everyframe.scale.tables import Row, is_list, read_rows
from everyframe.scale.work import Failure, FailureKind
from everyframe.video import VideoError
from everyframe.video.errors import UnreachableError
from everyframe.video.find import (
    VIDEO_SUFFIXES,
    canonical,
    find_remote,
    list_images,
    natural_key,
    remote_files,
    walk_videos,
)
from everyframe.video.identity import is_address
from everyframe.video.remote import is_remote, local_path

_LONGEST = 180  # bytes of a part of a name: file systems allow 255, and suffixes follow


@dataclass(frozen=True, slots=True)
class Listed:
    """A video that was named.

    source: an absolute path, or an address; the same on every node of a cluster that has the files.
    name: where its features go, relative and without a suffix ("cats/tom"); no two of a listing share it.
    video: its id in the table's id column, where one was asked for.
    """

    source: str
    name: str
    video: str | None = None


@dataclass(kw_only=True)
class Listing:
    """What a list comes to. duplicates: sources named again; missing: rows and places that hold no video, and why."""

    videos: list[Listed] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)
    missing: list[Failure] = field(default_factory=list)


def list_videos(paths: Sequence[str], *, column: str | None = None, id_column: str | None = None) -> Listing:
    """Videos that files, folders, patterns, lists and tables name; each once, in the order in which they were named.

    - a folder, a bucket or a part of one ("s3://bucket/clips/") is searched as `find_videos` does: all below it;
    - a pattern takes the videos it matches, or the lists where it ends like one ("lists/*.parquet");
    - a `.txt` file is a list of paths, `.csv`, `.tsv`, `.jsonl` and `.parquet` are tables (Parquet also a folder of
      parts). `column` names the column
      of paths; without it that is path, video, video_path, file, filename, url or uri, or the only one there is.
      Relative paths are looked up from here, then from the list's own folder. A row may be a folder or a pattern (on a
      store: where it ends with "/" or holds a "*"), but not another list. They stream: a million rows take seconds.

    Paths of this machine are looked at, and those where nothing is are `missing`. Addresses in a list are not: a
    request for each would take hours, so dead ones are found where they are read.

    Names: below a folder the folders are kept ("cats/tom.mp4" gives "cats/tom"), elsewhere it is the file's own name,
    or the id where `id_column` names a column of ids. Where two would share it, the suffix stays ("tom.mp4"), and
    where that is not enough, a hash of the folder follows.

    Raises ValueError where no path is given or a table has no such column, VideoError where a list itself cannot be
    read. All else that is not there is counted in the result, even where that is everything.
    """
    if isinstance(paths, (str, os.PathLike)):
        paths = [os.fspath(paths)]
    if not paths:
        raise ValueError("no video given: name files, folders, patterns or lists")
    found = _Found()
    for path in paths:
        if not path.strip():
            raise ValueError("an empty path was given; name a file, a folder, a pattern or a list")
        for place in _lists_of(path, found):
            base = _Base(place)
            for row in read_rows(place, column, id_column):
                _add_row(row, base, found)
            base.check(found)
    return found.listing()


class _Found:
    """What has been named so far; names are chosen when all is known."""

    def __init__(self) -> None:
        self.missing: list[Failure] = []
        self.duplicates: list[str] = []
        self._sources: list[str] = []
        self._relatives: list[str] = []
        self._ids: dict[int, str] = {}
        self._seen: set[str] = set()

    def add(self, source: str, relative: str | None = None, video: str | None = None) -> None:
        """relative: the path below the folder that was asked for; None takes the file's own name."""
        key = canonical(source)
        if key in self._seen:
            self.duplicates.append(source)
            return
        if not _encodable(source):
            self.miss(source, f"{source!r}: its name is no text in UTF-8; rename it")
            return
        self._seen.add(key)
        if video is not None:
            self._ids[len(self._sources)] = video
        self._sources.append(source)
        self._relatives.append(relative if relative is not None else _own_name(source))

    def miss(self, source: str, why: str | VideoError) -> None:
        kind: FailureKind = "unreachable" if isinstance(why, UnreachableError) else "missing"
        self.missing.append(Failure(source=source, kind=kind, message=str(why)))

    def listing(self) -> Listing:
        names = _names(self._sources, self._relatives, self._ids)
        videos = [
            Listed(source, name, self._ids.get(number))
            for number, (source, name) in enumerate(zip(self._sources, names, strict=True))
        ]
        return Listing(videos=videos, duplicates=self.duplicates, missing=self.missing)


class _Base:
    """A list, and what its relative rows are relative to."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.remote = is_remote(place)
        self.folder = place.rpartition("/")[0] if self.remote else os.path.dirname(os.path.abspath(place))
        self.here = os.getcwd()
        self.unit = "row" if place.lower().endswith(".parquet") else "line"
        self.rows = 0

    def check(self, found: _Found) -> None:
        if not self.rows:
            found.miss(self.place, f"{self.place}: the list names no video")


def _lists_of(path: str, found: _Found) -> list[str]:
    """Adds the videos that an argument names; gives the lists that it names, still to be read."""
    here = local_path(path) or path
    if here.rstrip("/").lower().endswith(".parquet") and (os.path.isdir(here) or path.endswith("/")):
        path = f"{path.rstrip('/')}/*.parquet"  # a table in parts, as Spark writes it
    try:
        if is_remote(path):
            if not is_list(path):
                _add_remote(path, found)
                return []
            return _remote_lists(path) if glob.has_magic(path) else [path]
        path = local_path(path) or path
        if is_address(path):
            if is_list(path):
                raise ValueError(f"{path}: lists are not read over the web; download it and name the file")
            found.add(path)
            return []
        place = os.path.abspath(os.path.expanduser(path))
        mode = _mode(place)
        if mode is not None and stat.S_ISDIR(mode):
            _add_folder(place, found)
        elif is_list(place) and (mode is not None or not glob.has_magic(place)):
            return [place]
        elif mode is not None:
            found.add(place)
        elif is_list(place):
            lists = [match for match in glob.glob(place, recursive=True) if os.path.isfile(match)]
            return sorted(lists, key=natural_key) or _none(path)
        elif glob.has_magic(place):
            _add_matches(place, found)
        else:
            found.miss(path, f"{path}: no such file or folder")
    except VideoError as error:
        found.miss(path, error)
    return []


def _none(pattern: str) -> list[str]:
    raise VideoError(f"{pattern}: the pattern matches no list")


def _remote_lists(pattern: str) -> list[str]:
    return sorted((address for address, _ in remote_files(pattern)), key=natural_key) or _none(pattern)


def _add_row(row: Row, base: _Base, found: _Found) -> None:
    base.rows += 1
    path = row.path
    if row.problem is not None or not path:
        _miss_row(row, base, found, f"{base.place}, {base.unit} {row.number}: {row.problem or 'names no video'}")
        return
    if base.remote and not is_address(path) and not os.path.isabs(path):
        scheme, _, folder = base.folder.partition("://")
        path = f"{scheme}://{posixpath.normpath(f'{folder}/{path}')}"
    if is_address(path) and local_path(path) is None:
        if is_list(path):
            _miss_row(row, base, found, f"{path}: is a list in a list ({base.place}); name it itself")
        elif is_remote(path) and (path.endswith("/") or "*" in path):
            try:
                _add_remote(path, found)
            except VideoError as error:
                _miss_row(row, base, found, error)
        else:
            found.add(path, video=row.video)
        return
    _add_local(local_path(path) or path, row, base, found)


def _add_local(path: str, row: Row, base: _Base, found: _Found) -> None:
    given = os.path.expanduser(path) if path.startswith("~") else path
    try:
        place = os.path.normpath(os.path.join(base.here, given))
        mode = _mode(place)
        if mode is None and not base.remote:
            beside = os.path.normpath(os.path.join(base.folder, given))
            mode = _mode(beside) if beside != place else None
            place = place if mode is None else beside
        if mode is None:
            if glob.has_magic(given):
                _add_matches(place, found)
            else:
                raise VideoError(f"{path}: no such file ({base.place}, {base.unit} {row.number})")
        elif stat.S_ISDIR(mode):
            _add_folder(place, found)
        elif is_list(place):
            raise VideoError(f"{path}: is a list in a list ({base.place}); name it itself")
        else:
            found.add(place, video=row.video)
    except VideoError as error:
        _miss_row(row, base, found, error)


def _miss_row(row: Row, base: _Base, found: _Found, why: str | VideoError) -> None:
    found.miss(row.path or f"{base.place}:{row.number}", why)


def _mode(place: str) -> int | None:
    """What is at a path; None for nothing. Raises VideoError where that cannot be told."""
    try:
        return os.stat(place).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise VideoError(f"{place}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def _add_folder(folder: str, found: _Found) -> None:
    count = 0
    for video in walk_videos(Path(folder), lambda error: _unreadable(error, found)):
        source = str(video)
        inside = source[len(folder.rstrip("/")) + 1 :]
        found.add(source, inside or None)
        count += 1
    if not count:
        found.miss(folder, f"{folder}: no video in this folder, nor in the folders inside it")


def _unreadable(error: OSError, found: _Found) -> None:
    found.miss(str(error.filename), f"{error.filename}: cannot be searched for videos ({error.strerror})")


def _add_matches(pattern: str, found: _Found) -> None:
    matches = sorted(glob.glob(pattern, recursive=True), key=natural_key)
    videos = [
        match
        for match in matches
        if (os.path.isfile(match) and os.path.splitext(match)[1].lower() in VIDEO_SUFFIXES)
        or (os.path.isdir(match) and len(list_images(Path(match))) >= 2)
    ]
    if not videos:
        raise VideoError(f"{pattern}: the pattern matches no video")
    for video in videos:
        found.add(os.path.abspath(video))


def _add_remote(address: str, found: _Found) -> None:
    """A file, all below a folder (whose inner folders are kept in names), or what a pattern matches."""
    folder = address.rstrip("/") + "/"
    for video in find_remote(address):
        found.add(video, video[len(folder) :] if video.startswith(folder) else None)


def _own_name(source: str) -> str:
    if not is_address(source):
        return os.path.basename(source)
    path = source.partition("://")[2].rstrip("/")
    if not is_remote(source):
        path = re.split(r"[?#]", path, maxsplit=1)[0].rstrip("/")
    return path.rpartition("/")[2]


def _names(sources: Sequence[str], relatives: list[str], ids: dict[int, str]) -> list[str]:
    """A name for each, as `pipeline.output_paths` chooses them: short, or with the suffix, or with a hash."""
    full = [_safe(ids.get(number, relative)) for number, relative in enumerate(relatives)]
    short = [each if number in ids else os.path.splitext(each)[0] for number, each in enumerate(full)]
    full_count, short_count = Counter(full), Counter(short)
    taken: set[str] = set()
    names = []
    for number, source in enumerate(sources):
        long, name = full[number], short[number]
        # "x.mp4.mkv" leaves the name "x.mp4" to "x.mp4".
        if short_count[name] > 1 or (name != long and full_count[name]):
            name = long
        if full_count[long] > 1:
            name = f"{long}-{_digest(source.rpartition('/')[0])}"
        if name in taken:
            name = f"{long}-{_digest(source)}"
        taken.add(name)
        names.append(name)
    return names


def _safe(relative: str) -> str:
    """A path that stays below the folder of outputs, has no hidden part, and fits file systems."""
    parts = []
    for part in relative.split("/"):
        if part in ("", ".", ".."):
            continue
        visible = "_" + part[1:] if part[0] == "." else part
        if len(visible) > _LONGEST // 4 and len(visible.encode()) > _LONGEST:
            stem, suffix = os.path.splitext(visible)
            kept = stem.encode()[: _LONGEST - 40].decode(errors="ignore")
            visible = f"{kept}-{_digest(part)}{suffix if len(suffix.encode()) < 20 else ''}"
        parts.append(visible)
    return "/".join(parts) or "video"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _encodable(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
