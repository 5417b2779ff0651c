"""What all sinks share: what they are given, what they answer, and who is to blame for a failed write."""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from everyframe.features import FeaturesError, VideoFeatures
from everyframe.scale.manifest import Entry, Manifest, key_of
from everyframe.scale.places import OutputError, Place, reason_of
from everyframe.scale.work import Failure

if TYPE_CHECKING:
    from everyframe.scale.listing import Listed

_FOR_ALL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ESTALE})


@dataclass(frozen=True, kw_only=True, eq=False)
class Item:
    """A video to be written. key: see `manifest.video_key`; attempts: how many tries it took."""

    key: str
    listed: Listed
    features: VideoFeatures
    attempts: int = 1


@dataclass(kw_only=True)
class Receipt:
    """What became of a `write`.

    entries: durable, and in the manifest. failures: by key, videos whose features could not be written, for reasons of
    their own; of earlier writes, too, where what was held back is lost. error: why the output cannot be used any more;
    the items that are in neither were not written.
    """

    entries: list[Entry] = field(default_factory=list)
    failures: dict[str, Failure] = field(default_factory=dict)
    error: OutputError | None = None


class Sink(ABC):
    """Takes features of whole videos. One thread at a time may write."""

    def __init__(self, place: Place, manifest: Manifest, keep_partial: bool) -> None:
        self.place, self.manifest, self.keep_partial = place, manifest, keep_partial

    @abstractmethod
    def has(self, entry: Entry) -> bool:
        """Is what a done, partial or duplicate entry names still in this output, in this format?"""

    @abstractmethod
    def adopt(self, key: str, listed: Listed) -> Entry | Failure | None:
        """A video that is there although the manifest does not say so, for the caller to record; else None.

        A Failure, of kind "output", where its place is taken by what must not be overwritten. Raises OutputError.
        """

    @abstractmethod
    def write(self, items: Sequence[Item]) -> Receipt:
        """Write the features of videos that are not there, and record them."""

    def close(self) -> Receipt:
        """Write what was held back until now. No entries are new."""
        return Receipt()

    def record(self, receipt: Receipt) -> Receipt:
        try:
            self.manifest.record(receipt.entries)
        except OutputError as error:
            return Receipt(failures=receipt.failures, error=receipt.error or error)
        return receipt

    def adopted(self, key: str, listed: Listed, features: VideoFeatures, output: str) -> Entry | None:
        entry = entry_of(Item(key=key, listed=listed, features=features), output, self.keep_partial)
        return entry if key_of(features) == key and (self.keep_partial or entry.status == "done") else None

    def gone(self, keys: Iterable[str], why: str) -> list[Entry]:
        """Record that the features of these videos are no longer in the output. Raises OutputError."""
        known = [entry for entry in map(self.manifest.get, keys) if entry is not None]
        lost = [
            replace(entry, status="failed", output=None, kind="output", message=f"{entry.source}: {why}", run="")
            for entry in known
        ]
        self.manifest.record(lost)
        return lost

    def failure(self, listed: Listed, why: object) -> Failure:
        return Failure(source=listed.source, kind="output", message=f"{listed.source}: {why}")

    def own_or_all(self, listed: Listed, error: Exception) -> Failure | OutputError:
        """Is it this video that cannot be written, or any?"""
        cause = error.__cause__ if isinstance(error, (FeaturesError, OutputError)) else error
        if isinstance(cause, OSError) and cause.errno in _FOR_ALL:
            return OutputError(f"{self.place.address} cannot be written: {reason_of(cause)}")
        try:
            self.place.probe()
        except OutputError as broken:
            return broken
        return self.failure(listed, error)


def entry_of(item: Item, output: str, keep_partial: bool) -> Entry:
    features = item.features
    damage = features.settings.get("damage")
    return Entry(
        key=item.key,
        source=item.listed.source,
        name=item.listed.name,
        status="partial" if damage else "done",
        output=output,
        frames=features.num_frames,
        seconds=float(features.frame_ends[-1] - features.times[0]) if features.num_frames else 0.0,
        i_frames=features.roles.count("I"),
        attempts=item.attempts,
        message="; ".join(damage) if damage else None,
        keep_partial=keep_partial,
    )
