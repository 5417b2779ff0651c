"""Encoded segments of long videos, kept until the rest of their video is there: a crash costs no more than a segment.

`OUT/.everyframe/parts/KEY/FIRST-STOP.segment`, a file per segment, whole or not at all, with a SHA-256 of its content.
A video is never joined from parts that several versions made: those of other versions count as not there.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import asdict
from threading import RLock
from typing import Any

import numpy as np

from everyframe.pipeline.decoding import Finished
from everyframe.pipeline.segments import Segment, SegmentFeatures, SegmentsError
from everyframe.scale.places import STATE, OutputError, Place
from everyframe.scale.shipping import versions

FOLDER = f"{STATE}/parts"
_VERSION = 1


class Staging:
    """The parts that an output has. Any thread may use it. Raises OutputError where the place cannot be used.

    damaged: names of parts, left by earlier runs, that could not be read back or that another version of everyframe,
    torch or PyAV made. They count as not there.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._mutex = RLock()
        self.damaged: list[str] = []
        self._parts: dict[str, dict[Segment, str]] = {}
        self._unverified: set[str] = set()
        for name in place.names(FOLDER):
            key, segment = _parsed(name)
            if segment is None:
                self.damaged.append(name)
                continue
            self._parts.setdefault(key, {})[segment] = name
            self._unverified.add(name)

    def save(self, key: str, part: SegmentFeatures) -> None:
        """Keep a part of the video with this key; durable when it returns."""
        name = _name(key, part.segment)
        self._place.write(name, _encode(part))
        with self._mutex:
            self._parts.setdefault(key, {})[part.segment] = name
            self._unverified.discard(name)

    def have(self, key: str) -> set[Segment]:
        """The segments of a video that are there. Those of earlier runs are read once, to be sure."""
        with self._mutex:
            parts = self._parts.get(key, {})
            for segment, name in list(parts.items()):
                if name in self._unverified:
                    self._unverified.discard(name)
                    if self._read(name) is None:
                        self.damaged.append(name)
                        del parts[segment]
            return set(parts)

    def load(self, key: str) -> Iterator[SegmentFeatures]:
        """The parts of a video in order of time, one in memory at a time. Raises SegmentsError where one is lost."""
        have = self.have(key)
        for segment in sorted(have, key=lambda each: each.first):
            name = _name(key, segment)
            part = self._read(name)
            if part is None:
                raise SegmentsError(f"{self._place.address}/{name} was damaged or removed meanwhile")
            yield part

    def drop_others(self, key: str, segments: Collection[Segment]) -> None:
        """Remove the parts of a video that are none of these segments."""
        with self._mutex:
            parts = self._parts.get(key, {})
            names = [parts.pop(segment) for segment in list(parts) if segment not in segments]
            self._unverified.difference_update(names)
        if names:
            self._place.delete(names)

    def drop(self, keys: Iterable[str]) -> None:
        """Remove all parts of videos."""
        with self._mutex:
            names = [name for key in keys for name in self._parts.pop(key, {}).values()]
            self._unverified.difference_update(names)
        self._place.delete(names)

    def keep_only(self, wanted: Callable[[str], bool]) -> int:
        """Remove the parts of all videos but the wanted, as a crash leaves them; returns how many videos those were."""
        with self._mutex:
            orphans = [key for key in self._parts if not wanted(key)]
        self.drop(orphans)
        return len(orphans)

    def _read(self, name: str) -> SegmentFeatures | None:
        try:
            return _decode(self._place.read(name))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            if isinstance(error, OutputError):
                raise
            return None


def _name(key: str, segment: Segment) -> str:
    stop = "end" if segment.stop is None else segment.stop
    return f"{FOLDER}/{key}/{segment.first}-{stop}.segment"


def _parsed(name: str) -> tuple[str, Segment | None]:
    folder, _, file = name.rpartition("/")
    first, _, stop = file.removesuffix(".segment").partition("-")
    if not file.endswith(".segment") or not first.isdecimal() or not (stop == "end" or stop.isdecimal()):
        return "", None
    return folder.removeprefix(f"{FOLDER}/"), Segment(int(first), None if stop == "end" else int(stop))


def _encode(part: SegmentFeatures) -> bytes:
    finished = asdict(part.finished)
    if finished.pop("error") is not None:
        raise ValueError("a segment that could not be read has no features to keep")
    times = np.ascontiguousarray(part.times, np.float64)
    embeddings = np.ascontiguousarray(part.embeddings)
    facts: dict[str, Any] = {
        "version": _VERSION,
        "made_by": versions(),
        "segment": [part.segment.first, part.segment.stop],
        "roles": part.roles,
        "macs": part.macs,
        "finished": finished,
    }
    facts["sha256"] = _digest(facts, times, embeddings)
    buffer = io.BytesIO()
    np.savez(buffer, times=times, embeddings=embeddings, facts=np.array(json.dumps(facts)))
    return buffer.getvalue()


def _decode(data: bytes) -> SegmentFeatures:
    """Raises ValueError, or what NumPy raises on arbitrary bytes."""
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        facts, times, embeddings = json.loads(str(arrays["facts"])), arrays["times"], arrays["embeddings"]
    if facts["version"] != _VERSION or facts.pop("sha256") != _digest(facts, times, embeddings):
        raise ValueError("the checksum does not match")
    if facts["made_by"] != versions():
        raise ValueError("another version made it")
    return SegmentFeatures(
        segment=Segment(*facts["segment"]),
        times=times,
        embeddings=embeddings,
        roles=facts["roles"],
        macs=facts["macs"],
        finished=Finished(**facts["finished"]),
    )


def _digest(facts: dict[str, Any], times: np.ndarray, embeddings: np.ndarray) -> str:
    shape = [list(embeddings.shape), embeddings.dtype.name]
    digest = hashlib.sha256(json.dumps([facts, shape], sort_keys=True).encode())
    digest.update(times.data)
    digest.update(np.ascontiguousarray(embeddings).data)
    return digest.hexdigest()
