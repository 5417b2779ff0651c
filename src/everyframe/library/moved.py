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


def find_moved(
    records: Sequence[VideoRecord], paths: Iterable[str | os.PathLike[str]]
) -> list[tuple[VideoRecord, str]]:
    """(video whose file is gone, where a file with the same content is), of files named or below folders named.

    Contents are told by size and fingerprint; only files of the right size are read. A file that the library knows
    in the same collection is not given a second time. Raises LibraryError for a path that is not there.
    """
    places = [Path(path) for path in paths]
    if missing := [place for place in places if not place.exists()]:
        raise LibraryError(f"{missing[0]} does not exist; name files, or folders to look for moved videos in")
    lost = [record for record in records if record.fingerprint and not is_address(record.path) and not record.available]
    if not lost:
        return []
    taken = {(record.collection, record.path) for record in records}
    sizes = {record.size_bytes for record in lost}
    found: dict[int, str] = {}
    for file in _candidates(places, folders=None in sizes):
        if not file.is_dir() and file.stat().st_size not in sizes:
            continue
        facts, path = identity(file), os.path.abspath(file)
        for record in lost:
            same = record.fingerprint == facts.get("fingerprint") and record.size_bytes == facts.get("size_bytes")
            if same and record.id not in found and (record.collection, path) not in taken:
                found[record.id] = path
                taken.add((record.collection, path))
    return [(record, found[record.id]) for record in lost if record.id in found]


def _candidates(places: Iterable[Path], *, folders: bool) -> Iterator[Path]:
    """Files, and folders of images where these are wanted, in a stable order."""

    def note(error: OSError) -> None:
        warnings.warn(f"{error.filename} was not searched: {error.strerror}", stacklevel=2)

    for place in places:
        if place.is_file():
            yield place
            continue
        for here, below, names in os.walk(place, onerror=note):
            below.sort()
            if folders and list_images(Path(here)):
                yield Path(here)
            yield from (file for name in sorted(names) if (file := Path(here, name)).is_file())
