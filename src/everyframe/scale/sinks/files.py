"""A feature file per video."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from everyframe.feature_files import check_package
from everyframe.features import FeaturesError, ForeignFileError, VideoFeatures
from everyframe.pipeline.resume import source_name
from everyframe.scale.manifest import Entry, Manifest, key_of, same_video
from everyframe.scale.places import OutputError, Place, checked_name, flush_folder, make_folder
from everyframe.scale.sinks.base import Item, Receipt, Sink, entry_of
from everyframe.scale.work import Failure

if TYPE_CHECKING:
    from everyframe.scale.listing import Listed

FILES = ("npz", "npy", "h5", "parquet")
_UPLOADS = 8  # at once; each waits for a server


class FileSink(Sink):
    """A feature file per video, OUT/NAME.npz (or .npy with NAME.npy.json, .h5, .parquet)."""

    def __init__(self, place: Place, format: str, *, manifest: Manifest, keep_partial: bool) -> None:
        super().__init__(place, manifest, keep_partial)
        self._suffix = f".{format}"
        check_package(self._suffix)
        self._listed: set[str] | None = None
        self._overwritten = _overwritten(manifest)
        self._owners: dict[str, tuple[str, ...]] | None = None  # keys by output; few runs need it

    def _output(self, listed: Listed) -> str:
        return checked_name(listed.name + self._suffix)

    def _files(self, output: str) -> list[str]:
        """In the order in which they are published: with the last the output is there."""
        return [f"{output}.json", output] if self._suffix == ".npy" else [output]

    def _there(self, name: str) -> bool:
        if self.place.is_local:
            return self.place.exists(name)
        if self._listed is None:  # one listing, not a million questions
            self._listed = set(self.place.names())
        return name in self._listed

    def _is_in_the_way(self, listed: Listed) -> bool:
        try:
            return self._there(self._output(listed))
        except OutputError:
            raise
        except (ValueError, OSError):  # no name for a file; writing it says so
            return False

    def has(self, entry: Entry) -> bool:
        if entry.output is None or not entry.output.endswith(self._suffix) or entry.key in self._overwritten:
            return False
        return self._there(entry.output)

    def adopt(self, key: str, listed: Listed) -> Entry | Failure | None:
        try:
            output = self._output(listed)
        except ValueError as error:
            return self.failure(listed, error)
        if not self._there(output):
            return None
        try:
            features = self._load(output)
        except ForeignFileError as error:
            return self.failure(listed, f"{error}; it is not overwritten: move it away, or choose another --out")
        except FeaturesError:
            return None  # cut short or damaged: it is made anew
        entry = self.adopted(key, listed, features, output)
        if entry is not None:
            return entry
        other = str(features.video.get("path"))
        if same_video(key, key_of(features)) or other == source_name(listed.source):
            return None  # made with other settings, or of what the file held before
        holds = f"{self.place.address}/{output} holds the features of {other}"
        return self.failure(listed, f"{holds}; choose another --out")

    def _load(self, output: str) -> VideoFeatures:
        if self.place.is_local:
            return VideoFeatures.load(Path(self.place.address, output))
        with self.place.scratch() as folder:
            last = folder
            for name in self._files(output):
                last = folder / name.rpartition("/")[2]
                try:
                    last.write_bytes(self.place.read(name))
                except FileNotFoundError:
                    continue  # without its other half the array of a pair is foreign, as `load` says
            return VideoFeatures.load(last)

    def write(self, items: Sequence[Item]) -> Receipt:
        receipt = Receipt()
        try:
            self._give_way(items)
        except OutputError as error:
            return Receipt(error=error)
        for item, outcome in zip(items, self._saved(items), strict=False):
            if outcome is None:
                receipt.entries.append(entry_of(item, self._output(item.listed), self.keep_partial))
            elif isinstance(outcome, Failure):
                receipt.failures[item.key] = outcome
            else:
                receipt.error = receipt.error or outcome
        return self.record(receipt)

    def _give_way(self, items: Sequence[Item]) -> None:
        """Let the manifest not say of a file that it holds what is about to be overwritten, whenever this is killed."""
        there = [self._output(item.listed) for item in items if self._is_in_the_way(item.listed)]
        if not there:
            return
        if self._owners is None:
            self._owners = {}
            for key, output in self.manifest.outputs():
                self._owners[output] = (*self._owners.get(output, ()), key)
        owners = [(key, output) for output in there for key in self._owners.pop(output, ())]
        keys = [key for key, output in owners if (known := self.manifest.get(key)) and known.output == output]
        self.gone(keys, "its file was given to other features, of other settings or of another content")

    def _saved(self, items: Sequence[Item]) -> Iterator[Failure | OutputError | None]:
        """What became of each, in order; nothing more is tried after an error that all would meet."""
        if not self.place.is_local:
            with ThreadPoolExecutor(_UPLOADS) as pool:
                yield from list(pool.map(self._save, items))
            return
        for item in items:
            outcome = self._save(item)
            yield outcome
            if isinstance(outcome, OutputError):
                return

    def _save(self, item: Item) -> Failure | OutputError | None:
        try:
            output = self._output(item.listed)
            if self.place.is_local:
                path = Path(self.place.address, output)
                make_folder(path.parent)
                item.features.save(path)
                flush_folder(path.parent)
                return None
            with self.place.scratch() as folder:
                saved = item.features.save(folder / output.rpartition("/")[2])
                for name in self._files(output):
                    self.place.publish(saved.with_name(name.rpartition("/")[2]), name)
            return None
        except (FeaturesError, OutputError, OSError, ValueError) as error:
            return self.own_or_all(item.listed, error)


def _overwritten(manifest: Manifest) -> set[str]:
    """Keys whose file holds another key's features by now: of other settings, or of what the video held in between."""
    owners: dict[str, str] = {}
    lost = set()
    for key, output in manifest.outputs():
        before = owners.get(output)
        if before is not None:
            lost.add(before)
        owners[output] = key
    return lost
