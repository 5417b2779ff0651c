"""The archive: features of many videos in one place, which grows, is searched, and survives what happens to it."""

from everyframe.library.errors import LibraryError, LockedError, UnusableVideoError
from everyframe.library.filters import Filter
from everyframe.library.index import IndexState
from everyframe.library.library import Library
from everyframe.library.query import Query, TextQuery, parse_query
from everyframe.library.records import Added, Collection, LibraryStats, Thumbnail, VideoRecord
from everyframe.library.schema import CollectionKey, collection_key, is_library
from everyframe.library.search import ArchiveHit
from everyframe.library.thumbnails import make_thumbnails
from everyframe.library.transfer import Imported

__all__ = [
    "Added",
    "ArchiveHit",
    "Collection",
    "CollectionKey",
    "Filter",
    "Imported",
    "IndexState",
    "Library",
    "LibraryError",
    "LibraryStats",
    "LockedError",
    "Query",
    "TextQuery",
    "Thumbnail",
    "UnusableVideoError",
    "VideoRecord",
    "collection_key",
    "is_library",
    "make_thumbnails",
    "parse_query",
]
