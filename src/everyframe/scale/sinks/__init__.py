"""Where the features of whole videos end up: a file each, tar shards, or a library.

All sinks follow one order: the features are durable, then the manifest says so. What a crash leaves between the two,
the next run finds again (`adopt`), so no video is lost and none is there twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from everyframe.scale.manifest import Manifest, settings_part
from everyframe.scale.places import Place
from everyframe.scale.sinks.base import Item, Receipt, Sink
from everyframe.scale.sinks.files import FILES, FileSink
from everyframe.scale.sinks.library import LibrarySink
from everyframe.scale.sinks.shards import ShardSink

__all__ = ["FORMATS", "FileSink", "Item", "LibrarySink", "Receipt", "ShardSink", "Sink", "open_sink"]

FORMATS = (*FILES, "webdataset", "library")


def open_sink(
    place: Place,
    format: str,
    *,
    manifest: Manifest,
    provenance: Mapping[str, Any],
    keep_partial: bool = False,
    shard_bytes: int = 256 << 20,
) -> Sink:
    """The sink of a format of `FORMATS` below a place.

    provenance: `everyframe.pipeline.provenance_of(...)`. keep_partial: are parts of damaged videos wanted?
    shard_bytes: about how large a tar shard becomes; only the last of a run is smaller.
    Raises ValueError for an unknown format, ImportError where its package is missing, OutputError where the output
    holds what does not go with it.
    """
    if format in FILES:
        return FileSink(place, format, manifest=manifest, keep_partial=keep_partial)
    if format == "webdataset":
        settings = settings_part(provenance)
        return ShardSink(place, settings, manifest=manifest, keep_partial=keep_partial, shard_bytes=shard_bytes)
    if format == "library":
        return LibrarySink(place, provenance, manifest=manifest, keep_partial=keep_partial)
    raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
