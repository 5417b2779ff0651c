"""Tar shards, of many videos each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from everyframe.features import FeaturesError, VideoFeatures
from everyframe.features.shards import Shard, read_index, shard_name
from everyframe.features.shards import key_of as sample_key
from everyframe.scale.manifest import Entry, Manifest
from everyframe.scale.places import STATE, OutputError, Place
from everyframe.scale.sinks.base import Item, Receipt, Sink, entry_of
from everyframe.scale.work import Failure

if TYPE_CHECKING:
    from everyframe.scale.listing import Listed

PENDING = f"{STATE}/pending"
_READS = 8  # at once; each waits for a server


class ShardSink(Sink):
    """Tar shards as webdataset reads them, OUT/features-000000.tar and on; see `everyframe.features.shards`.

    A video is durable by itself, as OUT/.everyframe/pending/KEY, before it is in a shard: no crash costs the videos
    of a shard that was not full. A shard appears whole; its own index holds the entries of its videos.
    """

    def __init__(
        self, place: Place, settings: str, *, manifest: Manifest, keep_partial: bool, shard_bytes: int
    ) -> None:
        super().__init__(place, manifest, keep_partial)
        if shard_bytes < 1:
            raise ValueError(f"shard_bytes must be 1 or more, got {shard_bytes}")
        self._settings, self._shard_bytes = settings, shard_bytes
        numbers = {name: number for name in place.names() if (number := _shard_number(name)) is not None}
        self._shards = set(numbers)
        mentioned = {_shard_of(output) for _, output in manifest.outputs()}
        # A number whose shard was removed is not used again: entries would mean another one's content.
        used = [*numbers.values(), *(number for name in mentioned if (number := _shard_number(name)) is not None)]
        self._next = max(used, default=-1) + 1
        self._pending = {
            name.rpartition("/")[2].removesuffix(".pending"): size for name, size in place.sizes(PENDING).items()
        }
        self._recorded: set[str] = set()
        self._check_settings()
        self._recover(self._shards - mentioned)
        self._recorded = {entry.key for entry in self._waiting()}  # or about to be; no line is decoded for it again

    def _check_settings(self) -> None:
        """What is read together must have been made together."""
        own = [key for key, output in self.manifest.outputs() if _shard_of(output) in self._shards]
        if any(not key.endswith(f"-{self._settings}") for key in (*own, *self._pending)):
            raise OutputError(
                f"{self.place.address} holds shards of other settings or of another model; choose another --out"
            )

    def _recover(self, unknown: set[str]) -> None:
        """Record the shards that the manifest does not mention: of a run that was killed before it could say so."""
        with ThreadPoolExecutor(_READS) as pool:
            for entries in pool.map(self._entries_of, sorted(unknown)):
                self.manifest.record(entries)
        self._let_go([key for key in self._pending if self._is_in_shard(self.manifest.get(key))])

    def _entries_of(self, shard: str) -> list[Entry]:
        where = f"{self.place.address}/{shard}"
        try:
            entries = [Entry(**video.note["entry"]) for video in read_index(where)]
        except (FeaturesError, KeyError, TypeError) as error:
            raise OutputError(f"{where} is no shard that a run wrote ({error}); move it away") from error
        if any(not entry.key.endswith(f"-{self._settings}") for entry in entries):
            raise OutputError(f"{where} was made with other settings or another model; choose another --out")
        return entries

    def has(self, entry: Entry) -> bool:
        return self._is_in_shard(entry) or (self._is_pending(entry) and entry.key in self._pending)

    def _is_in_shard(self, entry: Entry | None) -> bool:
        return entry is not None and entry.output is not None and _shard_of(entry.output) in self._shards

    def _is_pending(self, entry: Entry | None) -> bool:
        return entry is not None and entry.output is not None and entry.output.startswith(f"{PENDING}/")

    def adopt(self, key: str, listed: Listed) -> Entry | Failure | None:
        there = self.manifest.get(key)
        if there is not None and self._is_in_shard(there):  # a part, where the whole is wanted
            return self.failure(
                listed, f"a part of it is in {there.output}, and a tar cannot be changed; choose another --out"
            )
        if key not in self._pending:
            return None
        features = self._read_pending(key)
        found = None if features is None else self.adopted(key, listed, features, _pending_name(key))
        if found is not None:
            self._recorded.add(key)  # by the caller
        return found

    def write(self, items: Sequence[Item]) -> Receipt:
        receipt = Receipt()
        for item in items:
            try:
                self._hold(item)
            except (FeaturesError, OutputError, OSError) as error:
                outcome = self.own_or_all(item.listed, error)
                if isinstance(outcome, OutputError):
                    receipt.error = outcome
                    break
                receipt.failures[item.key] = outcome
            else:
                self._recorded.add(item.key)
                receipt.entries.append(entry_of(item, _pending_name(item.key), self.keep_partial))
        receipt = self.record(receipt)
        if receipt.error is None:
            self._pack(receipt, leave_rest=True)
        return receipt

    def close(self) -> Receipt:
        receipt = Receipt()
        self._pack(receipt, leave_rest=False)
        return receipt

    def _hold(self, item: Item) -> None:
        with self.place.scratch() as folder:
            file = item.features.save(folder / "features.npz")
            size = file.stat().st_size
            self.place.publish(file, _pending_name(item.key))
        self._pending[item.key] = size

    def _read_pending(self, key: str) -> VideoFeatures | None:
        """None for what is damaged; then it is gone, too."""
        with self.place.scratch() as folder:
            file = folder / "features.npz"
            try:
                file.write_bytes(self.place.read(_pending_name(key)))
                return VideoFeatures.load(file)
            except (FileNotFoundError, FeaturesError):
                self._let_go([key])
                return None

    def _pack(self, receipt: Receipt, *, leave_rest: bool) -> None:
        """Pack what is pending; what does not fill a shard stays where there may be more to come."""
        try:
            while not leave_rest or self._is_full(self._recorded):
                waiting = self._waiting()
                if not waiting or (leave_rest and not self._is_full(entry.key for entry in waiting)):
                    return
                self._pack_one(waiting, receipt)
        except (OutputError, FeaturesError, OSError) as error:
            why = error if isinstance(error, OutputError) else OutputError(f"{self.place.address}: {error}")
            receipt.error = receipt.error or why

    def _is_full(self, keys: Iterable[str]) -> bool:
        """Do they fill a shard?"""
        return sum(self._pending.get(key, 0) for key in keys) >= self._shard_bytes

    def _waiting(self) -> list[Entry]:
        """Pending, and in the manifest. A killed run leaves others, too: those are for `adopt`."""
        entries = (self.manifest.get(key) for key in self._pending)
        return [entry for entry in entries if entry is not None and self._is_pending(entry)]

    def _pack_one(self, waiting: Sequence[Entry], receipt: Receipt) -> None:
        """Publish a shard of the first of them."""
        while self.place.exists(name := shard_name(self._next)):  # somebody else's: it is not overwritten
            self._next += 1
        entries: list[Entry] = []
        lost: list[str] = []
        with self.place.scratch() as folder, Shard(folder) as shard:
            for entry in waiting:
                features = self._read_pending(entry.key)
                if features is None:
                    lost.append(entry.key)
                    continue
                # Names are unique in a run, not in all runs.
                taken = any(each.name == entry.name for each in shard.videos)
                own = f"{entry.name}-{entry.key[:8]}" if taken else entry.name
                moved = replace(entry, output=f"{name}#{sample_key(own)}")
                shard.add(own, features, note={"entry": asdict(moved)})
                entries.append(moved)
                if shard.size >= self._shard_bytes:
                    break
            if entries:
                self.place.publish(shard.save(folder / name), name)
                self._shards.add(name)
                self._next += 1
        self.manifest.record(entries)
        for gone in self.gone(lost, "its features were damaged before they were in a shard; run again"):
            receipt.failures[gone.key] = Failure(source=gone.source, kind="output", message=str(gone.message))
        self._let_go([entry.key for entry in entries])

    def _let_go(self, keys: Sequence[str]) -> None:
        self.place.delete([_pending_name(key) for key in keys])
        for key in keys:
            self._pending.pop(key, None)
            self._recorded.discard(key)


def _pending_name(key: str) -> str:
    return f"{PENDING}/{key}.pending"


def _shard_of(output: str) -> str:
    return output.partition("#")[0]


def _shard_number(name: str) -> int | None:
    found = re.fullmatch(r"features-(\d{6,})\.tar", name)
    return int(found[1]) if found else None
