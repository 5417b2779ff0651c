"""Between a library and feature files."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from everyframe.features import FeaturesError, ForeignFileError, VideoFeatures
from everyframe.library import schema
from everyframe.library.errors import LibraryError, UnusableVideoError
from everyframe.library.records import Added, VideoRecord
from everyframe.library.store import Store
from everyframe.library.writing import Batches
from everyframe.tasks.retrieval import feature_paths

FORMATS = ("npz", "npy", "h5", "parquet")
_LONGEST_NAME = 180


@dataclass(frozen=True)
class Imported:
    """What became of one feature file: `added`, or `error`, a sentence."""

    file: Path
    added: Added | None
    error: str | None


def import_files(store: Store, paths: Iterable[str | os.PathLike[str]]) -> Iterator[Imported]:
    """Add the videos of feature files, or of folders of them; a file that cannot be used does not stop the others.

    Raises FeaturesError at once for a path that is not there, or a folder without feature files.
    """
    files = [file for path in paths for file in ([Path(path)] if not os.path.isdir(path) else feature_paths(path))]
    if missing := [file for file in files if not file.exists()]:
        raise FeaturesError(f"{missing[0]} does not exist; name feature files or folders of them")
    return _import_each(store, files)


def _import_each(store: Store, files: Sequence[Path]) -> Iterator[Imported]:
    def items() -> Iterator[schema.Prepared | Imported]:
        for file in files:
            try:
                prepared = schema.prepare(VideoFeatures.load(file))
            except (FeaturesError, UnusableVideoError) as error:
                text = str(error)
                yield Imported(file, None, text if str(file) in text else f"{file}: {text}")
            else:
                names.append(file)
                yield prepared

    names: list[Path] = []  # of files whose answer is to come, which comes in order
    for result in Batches[Imported](store).run(items()):
        yield result if isinstance(result, Imported) else Imported(names.pop(0), result, None)


def export_files(
    records: Sequence[VideoRecord],
    features: Iterable[VideoFeatures | LibraryError],
    out: str | os.PathLike[str],
    *,
    format: str,
    failures: list[tuple[str, LibraryError]] | None,
) -> list[Path]:
    """Write the features of `records`, given in the same order, each to a file of its own below `out`.

    Raises LibraryError as `Library.export` says.
    """
    paths = output_names(records, Path(out), f".{format}")
    done = []
    for record, path, feats in zip(records, paths, features, strict=True):
        try:
            if isinstance(feats, LibraryError):
                raise feats
            _check_free(path, record)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                done.append(feats.save(path))
            except (FeaturesError, OSError) as error:
                raise LibraryError(f"{record.path} cannot be exported: {error}") from error
        except LibraryError as error:
            if failures is None:
                raise
            failures.append((record.path, error))
    return done


def check_format(format: str) -> None:
    """Raises LibraryError for one that there is none of."""
    if format not in FORMATS:
        raise LibraryError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")


def output_names(records: Sequence[VideoRecord], out: Path, suffix: str) -> list[Path]:
    """A file for each video, no two alike: "a.npz" for a.mp4, "a.mp4.npz" beside an a.mkv, else with the video's id."""
    full = [_file_name(record.name) for record in records]
    short = [name.rpartition(".")[0] or name for name in full]
    # Case does not tell files apart everywhere.
    full_count, short_count = (Counter(name.casefold() for name in names) for names in (full, short))
    chosen = []
    for record, long, brief in zip(records, full, short, strict=True):
        if short_count[brief.casefold()] == 1 and (brief == long or not full_count[brief.casefold()]):
            name = brief
        elif full_count[long.casefold()] == 1 and not short_count[long.casefold()]:
            name = long
        else:
            name = f"{brief}-{record.id}"
        chosen.append(out / f"{name}{suffix}")
    return chosen


def _file_name(name: str) -> str:
    """A name that is safe as a file's anywhere."""
    last = name.rstrip("/").rpartition("/")[2]
    safe = re.sub(r"[^\w.\-+ ()\[\],&']", "_", last).strip(" ").lstrip(".")
    while len(safe.encode()) > _LONGEST_NAME:
        safe = safe[1:]
    return safe or "video"


def _check_free(path: Path, record: VideoRecord) -> None:
    """Raises LibraryError where a file is in the way that is not this video's features, made in the same way."""
    if not path.exists():
        return
    try:
        feats = VideoFeatures.load(path)
    except ForeignFileError as error:
        raise LibraryError(f"{error}; it is not overwritten: choose another folder for {record.path}") from error
    except FeaturesError:
        return  # cut short
    video = feats.video
    same = record.fingerprint is not None and video.get("fingerprint") == record.fingerprint
    if not same and video.get("path") != record.path:
        raise LibraryError(f"{path} holds the features of {video.get('path')}; choose another folder for {record.path}")
    if schema.collection_key(feats.model, feats.settings, feats.dim).id != record.collection:
        raise LibraryError(
            f"{path} holds features of this video by another model or other settings; choose another folder (--out)"
        )
