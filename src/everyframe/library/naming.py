"""Which video, or collection, somebody means."""

from __future__ import annotations

import os

import numpy as np

from everyframe.library.errors import LibraryError
from everyframe.library.records import Collection, VideoRecord
from everyframe.library.snapshots import Snapshot


def choose_collection(snapshot: Snapshot, wanted: str | None) -> Collection:
    """By label, beginning of an id, or part of a label; None: the only one. Raises LibraryError, naming them."""
    found = list(snapshot.collections.values())
    if not found:
        raise LibraryError(f"{snapshot.place} holds no videos yet; add some first")
    named = ", ".join(f"{each.label} ({each.id})" for each in found)
    if wanted is None:
        if len(found) > 1:
            raise LibraryError(f"{snapshot.place} holds several collections; say which with collection=: {named}")
        return found[0]
    chosen = (
        [each for each in found if each.label == wanted]
        or [each for each in found if wanted and each.id.startswith(wanted)]
        or [each for each in found if wanted.strip() and wanted.strip().casefold() in each.label.casefold()]
    )
    if len(chosen) == 1:
        return chosen[0]
    if chosen:
        named = ", ".join(each.id for each in chosen)
        raise LibraryError(f"{wanted} means several collections of {snapshot.place}; give the id of one: {named}")
    raise LibraryError(f"{snapshot.place} holds no collection {wanted}; it holds {named}")


def find_video(snapshot: Snapshot, wanted: int | str, collection: str | None = None) -> list[VideoRecord]:
    """The records of one video, by id, path or name: one, or one for each collection that it is in.

    Raises LibraryError where there is none, or where several videos have the name.
    """
    chosen = None if collection is None else choose_collection(snapshot, collection)
    if isinstance(wanted, (int, np.integer)) and not isinstance(wanted, bool):
        found = _by_id(snapshot, int(wanted))
    else:
        text = str(wanted)
        path = text if "://" in text else os.path.abspath(text)
        found = [record for record in snapshot.videos.values() if record.path in (text, path)]
        found = found or [record for record in snapshot.videos.values() if record.name == text]
        found = found or (_by_id(snapshot, int(text)) if text.isascii() and text.isdecimal() else [])
    if chosen is not None:
        found = [record for record in found if record.collection == chosen.id]
    if not found:
        raise LibraryError(f"{snapshot.place} holds no video {wanted}")
    if len(paths := sorted({record.path for record in found})) > 1:
        raise LibraryError(f"{len(paths)} videos are named {wanted}; give the path of one, such as {paths[0]}")
    return found


def _by_id(snapshot: Snapshot, number: int) -> list[VideoRecord]:
    return [snapshot.videos[number]] if number in snapshot.videos else []


def one_video(snapshot: Snapshot, wanted: int | str, collection: str | None = None) -> VideoRecord:
    """`find_video` where it must be a single record. Raises LibraryError for a video of several collections."""
    found = find_video(snapshot, wanted, collection)
    if len(found) > 1:
        labels = ", ".join(snapshot.collections[record.collection].label for record in found)
        raise LibraryError(f"{wanted} is in several collections ({labels}); say which with collection=")
    return found[0]
