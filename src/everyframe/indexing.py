"""Videos into a library: what it has is skipped, what was moved is found again, the rest is encoded and added."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from everyframe.encoders import Encoder, TempMe
from everyframe.features import VideoFeatures
from everyframe.library import (
    CollectionKey,
    Library,
    Thumbnail,
    UnusableVideoError,
    VideoRecord,
    collection_key,
    make_thumbnails,
)
from everyframe.pipeline import ClipSampling, Sampling, encode_each, is_address, provenance_of
from everyframe.pipeline.encode import Progress
from everyframe.pipeline.resume import JOURNAL, Journal, identity, source_name
from everyframe.pipeline.watch import Signature, signature
from everyframe.version import package_version
from everyframe.video import VideoError
from everyframe.video.errors import UnreachableError

Status = Literal["added", "replaced", "moved", "skipped", "removed", "missing", "failed"]
STATUSES: tuple[Status, ...] = ("added", "replaced", "moved", "skipped", "removed", "missing", "failed")
_DTYPE = "float16"  # what a library stores


@dataclass(frozen=True, kw_only=True)
class Indexed:
    """What became of one video. `error` says why it failed, or what of it is missing.

    status: "skipped" where the library has it; "moved" where it has it, from another place; "missing" where the file of
    a video in the library is gone, and "removed" where that was taken as a reason to remove it.
    video: its id in the library. num_frames, seconds: of the features made now; gflops_per_frame, gflops_share: what
    they took, and that as a share of dense. changed: it failed because it was written to while it was read.
    """

    source: str
    status: Status
    video: int | None = None
    num_frames: int = 0
    seconds: float = 0.0
    error: str | None = None
    gflops_per_frame: float | None = None
    gflops_share: float | None = None
    changed: bool = False


class Indexer:
    """Adds videos to a library, all read by one encoder.

    thumbnails: keep some with each video. retry_failed: try files again that could not be read in an earlier run; the
    library's folder holds a journal of those. key: the collection that the videos come to belong to.
    """

    def __init__(
        self,
        library: Library,
        encoder: Encoder | TempMe,
        sampling: Sampling | ClipSampling,
        *,
        thumbnails: bool = True,
        retry_failed: bool = False,
    ) -> None:
        self._library, self.encoder, self.sampling = library, encoder, sampling
        self._thumbnails, self._retry_failed = thumbnails, retry_failed
        facts = provenance_of(encoder, sampling, _DTYPE)
        self.key: CollectionKey = collection_key(facts["model"], facts["settings"], encoder.dim)
        self._journal = Journal(None if "://" in library.path else Path(library.path) / JOURNAL)

    @property
    def _journal_settings(self) -> dict[str, Any]:
        own = {**self.sampling.settings, "keep_partial": self.sampling.keep_partial, "version": package_version()}
        return {**own, "collection": self.key.id}

    @property
    def _image_fps(self) -> float:
        """Images per second of a folder of images, as it is encoded."""
        sampling = self.sampling
        return sampling.fps if isinstance(sampling, Sampling) else sampling.frames / sampling.clip_seconds

    def sort(self, sources: Sequence[str | Path]) -> tuple[list[Indexed], list[str | Path]]:
        """What need not be encoded, and what became of it; and the rest. Moved files are noted in the library here."""
        records = self._library.videos()
        by_print: dict[str | None, list[VideoRecord]] = {}
        for record in records:
            by_print.setdefault(record.fingerprint, []).append(record)
        settled: list[Indexed] = []
        marks: dict[str | Path, str | None] = {}
        for source in sources:
            try:
                marks[source] = identity(source).get("fingerprint")
            except OSError as error:
                why = f"{source}: cannot be read ({error.strerror or error})"
                settled.append(Indexed(source=str(source), status="failed", error=why))
        elsewhere = [
            source
            for source, mark in marks.items()
            if mark is not None and any(each.path != source_name(source) for each in by_print.get(mark, ()))
        ]
        # Before anything is added: another video may have the old name of a moved one.
        moved = {record.id: path for record, path in self._library.relink(elsewhere)} if elsewhere else {}
        own = [record for record in records if record.collection == self.key.id]
        at_path = {moved.get(record.id, record.path): record.fingerprint for record in own}
        todo: list[str | Path] = []
        taken: dict[str, str] = {}  # fingerprints of the rest, and their paths
        for source, mark in marks.items():
            # Another video than the library has under this path: what that means for both, adding it decides.
            other = at_path.get(source_name(source), mark) != mark
            known = by_print.get(mark, []) if mark is not None and not other else []
            outcome = self._settled(source, mark, known, moved, taken)
            if outcome is not None:
                settled.append(outcome)
                continue
            todo.append(source)
            if mark is not None:
                taken[mark] = source_name(source)
        return settled, todo

    def _settled(
        self,
        source: str | Path,
        mark: str | None,
        records: list[VideoRecord],
        moved: dict[int, str],
        taken: dict[str, str],
    ) -> Indexed | None:
        """None where there is work to do. records: of videos with this content. moved: those found again, and where."""
        own = next((each for each in records if each.collection == self.key.id and self._complete(each)), None)
        if own is not None:
            here = moved.get(own.id) == source_name(source)
            return Indexed(source=str(source), status="moved" if here else "skipped", video=own.id)
        if mark is not None and mark in taken:
            return Indexed(source=str(source), status="skipped", error=f"{source}: is a copy of {taken[mark]}")
        failure = None if self._retry_failed else self._journal.failed_before(source, self._journal_settings)
        if failure is None:
            return None
        message = f"{failure} (as in an earlier run; --retry-failed tries again)"
        part = next((each for each in records if each.collection == self.key.id), None)
        if part is not None:  # more of it cannot be had
            why = f"{source}: the library has a part of it; {message}"
            return Indexed(source=str(source), status="skipped", video=part.id, error=why)
        return Indexed(source=str(source), status="failed", error=message)

    def _complete(self, record: VideoRecord) -> bool:
        """Was all of it encoded, or as much as could be had and is wanted?"""
        settings = record.provenance["settings"]
        part = any(settings.get(name) is not None for name in ("start", "end", "slice_seconds"))
        return not part and (self.sampling.keep_partial or not settings.get("damage"))

    def encode(self, sources: Sequence[str | Path], progress: Progress | None = None) -> Iterator[Indexed]:
        """Encode and add each; one item per video, in order, when it is stored. A bad video never stops the rest.

        progress: as in `everyframe.pipeline.encode_videos`. Raises LibraryError when the library cannot be written;
        what was reported before is in it.
        """
        marks = [None if is_address(source) else signature(Path(source)) for source in sources]
        made = encode_each(sources, self.encoder, sampling=self.sampling, dtype=_DTYPE, progress=progress)
        for source, mark, result in zip(sources, marks, made, strict=True):
            yield self._added(source, mark, result)

    def gone(self, paths: Sequence[Path], *, remove: bool) -> list[Indexed]:
        """What becomes of the videos whose files were at these paths: they are removed, or only reported.

        All that a library holds, if that is several, are not removed: "failed".
        """
        places = {str(path) for path in paths}
        records = self._library.videos()
        lost = [record for record in records if record.path in places and not record.available]
        if remove and len(lost) == len(records) and len({record.path for record in lost}) > 1:
            why = "is gone like every video of the library, so none is removed; is a disk not mounted?"
            return [
                Indexed(source=each.path, status="failed", video=each.id, error=f"{each.path}: {why}") for each in lost
            ]
        if remove:
            self._library.remove(*(record.id for record in lost))
        status: Status = "removed" if remove else "missing"
        return [Indexed(source=record.path, status=status, video=record.id) for record in lost]

    def _added(self, source: str | Path, mark: Signature | None, result: VideoFeatures | VideoError) -> Indexed:
        if mark is not None and signature(Path(source)) != mark:
            why = f"{source}: was changed while it was waiting or being read; index it again when it is complete"
            return Indexed(source=str(source), status="failed", error=why, changed=True)
        if isinstance(result, VideoError):
            if not isinstance(result, UnreachableError):  # the network says nothing about the video
                self._note(source, "failed", str(result))
            return Indexed(source=str(source), status="failed", error=str(result))
        pictures, trouble = self._pictures(source)
        try:
            added = self._library.add(result, thumbnails=pictures)
        except UnusableVideoError as error:
            self._note(source, "failed", str(error))
            return Indexed(source=str(source), status="failed", error=str(error))
        damage = result.settings.get("damage")
        lost = [f"kept {result.num_frames} of its features; {'; '.join(damage)}"] if damage else []
        lost += [trouble] if trouble else []
        self._note(source, "partial" if damage else "done", None)
        return Indexed(
            source=str(source),
            status="skipped" if added.status == "unchanged" else added.status,
            video=added.id,
            num_frames=result.num_frames,
            seconds=float(result.frame_ends[-1] - result.times[0]),
            error=f"{source}: {'; '.join(lost)}" if lost else None,
            gflops_per_frame=result.settings["gflops_per_frame"],
            gflops_share=result.settings["gflops_share"],
        )

    def _pictures(self, source: str | Path) -> tuple[list[Thumbnail], str | None]:
        """Thumbnails, and why there are none."""
        if not self._thumbnails or is_address(source):
            return [], None
        try:
            return make_thumbnails(source, image_fps=self._image_fps), None
        except VideoError as error:
            return [], f"no thumbnails ({error})"

    def _note(self, source: str | Path, status: str, error: str | None) -> None:
        path = self._journal.path
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._journal.add(source, self._journal_settings, status, error)
        except OSError as trouble:  # the video counts; without its line a failed file is only tried again
            warnings.warn(f"{path} cannot be written ({trouble.strerror or trouble})", stacklevel=2)
