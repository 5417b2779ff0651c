"""The archive that is searched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from everyframe.extras import require
from everyframe.library import Library, LibraryError, UnusableVideoError
from everyframe.scale.manifest import Entry, Manifest, settings_part, video_key
from everyframe.scale.places import OutputError, Place
from everyframe.scale.sinks.base import Item, Receipt, Sink, entry_of
from everyframe.scale.work import Failure

if TYPE_CHECKING:
    from everyframe.library import VideoRecord
    from everyframe.scale.listing import Listed


class LibrarySink(Sink):
    """An `everyframe.library.Library` in the output's folder or at its address; a write is one commit or few.

    Features are stored as float16, whatever was asked for. There are no thumbnails: the driver sees no pixels.
    """

    def __init__(self, place: Place, provenance: Mapping[str, Any], *, manifest: Manifest, keep_partial: bool) -> None:
        super().__init__(place, manifest, keep_partial)
        require("lancedb", extra="library")
        self._library = Library(place.address)
        self._settings = settings_part(_in_half(provenance))
        recorded = {output for _, output in manifest.outputs()}
        try:
            records = self._library.videos() if self._library.exists() else []
        except LibraryError as error:
            raise OutputError(str(error)) from error
        self._there = {_number_of(record.id) for record in records}
        unknown = [record for record in records if _number_of(record.id) not in recorded]
        self._unknown = {_key_of_record(record): record for record in unknown}

    def has(self, entry: Entry) -> bool:
        return entry.output in self._there

    def adopt(self, key: str, listed: Listed) -> Entry | Failure | None:
        record = self._unknown.get(f"{key.partition('-')[0]}-{self._settings}")
        if record is None:
            return None
        damage = record.provenance["settings"].get("damage")
        if damage and not self.keep_partial:
            return None
        return Entry(
            key=key,
            source=listed.source,
            name=listed.name,
            status="partial" if damage else "done",
            output=_number_of(record.id),
            frames=record.num_frames,
            seconds=record.end - record.start,
            i_frames=self._library.roles(record.id).count("I"),
            message="; ".join(damage) if damage else None,
            keep_partial=self.keep_partial,
        )

    def write(self, items: Sequence[Item]) -> Receipt:
        receipt = Receipt()
        left = list(items)
        while left:
            done = 0
            try:
                for added in self._library.add_all(item.features for item in left):
                    output = _number_of(added.id)
                    receipt.entries.append(entry_of(left[done], output, self.keep_partial))
                    self._there.add(output)
                    done += 1
                break
            except UnusableVideoError as error:  # all before it are stored
                receipt.failures[left[done].key] = self.failure(left[done].listed, error)
                left = left[done + 1 :]
            except LibraryError as error:
                receipt.error = OutputError(str(error))
                break
        return self.record(receipt)

    def close(self) -> Receipt:
        receipt = Receipt()
        try:
            self._library.close()
        except LibraryError as error:
            receipt.error = OutputError(str(error))
        return receipt


def _number_of(video: int) -> str:
    return f"#{video}"


def _in_half(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """As a library stores them."""
    return {"model": provenance["model"], "settings": {**provenance["settings"], "stored_dtype": "float16"}}


def _key_of_record(record: VideoRecord) -> str:
    provenance = record.provenance
    return video_key(record.path, provenance["video"], _in_half(provenance))
