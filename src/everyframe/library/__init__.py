"""The archive: features of many videos in one place, which grows, is searched, and survives what happens to it."""

from everyframe.library.errors import LibraryError, LockedError, UnusableVideoError
from everyframe.library.library import Library
from everyframe.library.records import Added, Collection, LibraryStats, Thumbnail, VideoRecord
from everyframe.library.schema import CollectionKey, collection_key, is_library
from everyframe.library.thumbnails import make_thumbnails
from everyframe.library.transfer import Imported

__all__ = [
    "Added",
    "Collection",
    "CollectionKey",
    "Imported",
    "Library",
    "LibraryError",
    "LibraryStats",
    "LockedError",
    "Thumbnail",
    "UnusableVideoError",
    "VideoRecord",
    "collection_key",
    "is_library",
    "make_thumbnails",
]
