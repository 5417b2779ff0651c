"""Find again the files of videos that were moved or renamed."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from everyframe.library.errors import LibraryError
from everyframe.library.records import VideoRecord
from everyframe.video.find import list_images
from everyframe.video.identity import identity, is_address

_Place = tuple[str, str]  # a collection and a path


def is_gone(path: str, fingerprint: str | None) -> bool:
    """Is the file with this fingerprint no longer at its path: nothing is there, or something else?

    Reads up to 512 KiB. False for an address, and where it cannot be told.
    """
    if is_address(path):
        return False
    try:
        os.stat(path)
        return bool(fingerprint) and identity(path).get("fingerprint", fingerprint) != fingerprint
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False


def find_moved(
    records: Sequence[VideoRecord], paths: Iterable[str | os.PathLike[str]]
) -> list[tuple[VideoRecord, str]]:
    """(video whose file is gone, where a file with the same content is), of files named or below folders named.

    Contents are told by size and fingerprint; only files of the right size are read. A file counts as gone, too, when
    another one has its name now. A path that the library knows in the same collection is given to another video only
    if its own one was found elsewhere. Warns of what cannot be read. Raises LibraryError for a path that is not there.
    """
    places = [Path(path) for path in paths]
    if missing := [place for place in places if not place.exists()]:
        raise LibraryError(f"{missing[0]} does not exist; name files, or folders to look for moved videos in")
    lost: dict[tuple[str, int | None], list[VideoRecord]] = {}
    for record in records:
        if record.fingerprint and not is_address(record.path) and _may_be_gone(record):
            lost.setdefault((record.fingerprint, record.size_bytes), []).append(record)
    if not lost:
        return []
    sizes = {size for _, size in lost}
    owners = {(record.collection, record.path): record for record in records}
    found: dict[int, _Place] = {}
    given: set[_Place] = set()
    gone: dict[int, bool] = {}
    for file in _candidates(places, folders=None in sizes):
        try:
            if not file.is_dir() and file.stat().st_size not in sizes:
                continue
            facts, path = identity(file), os.path.abspath(file)
        except OSError as error:
            _note(error, file)
            continue
        for record in lost.get((str(facts.get("fingerprint")), facts.get("size_bytes")), ()):
            place = (record.collection, path)
            owner = owners.get(place)
            owned = owner is not None and (not owner.fingerprint or owner.fingerprint == record.fingerprint)
            if owned or place in given or record.id in found:
                continue
            if record.id not in gone:
                gone[record.id] = is_gone(record.path, record.fingerprint)
            if gone[record.id]:
                found[record.id] = place
                given.add(place)
    while blocked := [number for number, place in found.items() if place in owners and owners[place].id not in found]:
        for number in blocked:
            del found[number]
    return [(record, found[record.id][1]) for record in records if record.id in found]


def _may_be_gone(record: VideoRecord) -> bool:
    """Looks at no contents: a file with the size and the time that were recorded is the one that was read."""
    try:
        facts = os.stat(record.path)
    except OSError:
        return not record.available
    same_size = record.size_bytes in (None, facts.st_size)
    return not (same_size and abs(facts.st_mtime - record.date.timestamp()) < 1e-5)


def _note(error: OSError, place: Path | None = None) -> None:
    warnings.warn(f"{error.filename or place} was not searched: {error.strerror or error}", stacklevel=2)


def _candidates(places: Iterable[Path], *, folders: bool) -> Iterator[Path]:
    """Files, and folders of images where these are wanted, in a stable order."""
    for place in places:
        if place.is_file():
            yield place
            continue
        for here, below, names in os.walk(place, onerror=_note):
            below.sort()
            try:
                if folders and list_images(Path(here)):
                    yield Path(here)
                files = [file for name in sorted(names) if (file := Path(here, name)).is_file()]
            except OSError as error:
                _note(error, Path(here))
                continue
            yield from files
