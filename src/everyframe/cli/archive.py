"""everyframe remove, stats and archive: what is done to a library besides indexing and search."""

from __future__ import annotations

import json
import os
import re
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everyframe import console
from everyframe.cli.app import app
from everyframe.cli.libraries import LibraryOption, chosen_collection
from everyframe.cli.options import JsonOption, check_format
from everyframe.cli.times import parse_seconds

if TYPE_CHECKING:
    from everyframe.library import Library, VideoRecord

CollectionOption = Annotated[
    str | None,
    typer.Option("--collection", help="One collection alone: its label or a part of that, or the beginning of its id."),
]

# What may be wrong with a video's file, and what helps.
_STATES = {
    "missing": "everyframe archive relink finds moved files, everyframe remove --missing removes these",
    "changed": "everyframe index replaces them",
    "unreadable": "the rights of their folders, or their disks, keep them from being looked at",
}

_archive = typer.Typer(no_args_is_help=True, help="What a library needs now and then: export, import, relink, ...")
app.add_typer(_archive, name="archive")


def open_library(path: str) -> Library:
    """A library that is there. Raises LibraryError."""
    from everyframe.library import Library, LibraryError, is_library

    library = Library(path) if is_library(path) else None
    if library is None or not library.exists():
        raise LibraryError(f"{path} is no library; everyframe index makes one")
    return library


@app.command()
def remove(
    videos: Annotated[list[str] | None, typer.Argument(help="Paths, names or ids, as everyframe search shows.")] = None,
    library: LibraryOption = "archive",
    missing: Annotated[bool, typer.Option("--missing", help="All videos whose files are gone.")] = False,
    all_of_it: Annotated[bool, typer.Option("--all", help="With --collection: all videos of that one.")] = False,
    collection: CollectionOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove videos from a library, from all its collections or from one; their files stay where they are."""
    from everyframe.library import LibraryError

    if all_of_it and collection is None:
        raise ValueError("--all removes a collection; say which with --collection")
    if not videos and not missing and not all_of_it:
        raise ValueError("name the videos to remove, or say --missing")
    with open_library(library) as archive:
        held = {each.id: each.label for each in archive.collections()}
        records = archive.videos(collection)
        chosen = {record.id: record for record in records if all_of_it}
        unknown: list[str] = []
        for wanted in videos or ():
            try:
                chosen |= {record.id: record for record in archive.find(wanted, collection)}
            except LibraryError as error:
                unknown.append(str(error))
        if missing:
            gone = [record for record in records if "://" not in record.path and not record.available]
            if gone and len(gone) == len(records):
                raise LibraryError(
                    f"the file of every video in {library} is gone; is a disk not mounted? Name the videos to remove"
                )
            chosen |= {record.id: record for record in gone}
        if unknown:
            raise LibraryError("; ".join(unknown))
        if chosen and not dry_run:
            archive.remove(*chosen)
    if as_json:
        rows = [
            {"video": str(record.id), "path": record.path, "collection": record.collection}
            for record in chosen.values()
        ]
        print(json.dumps({"removed": [] if dry_run else rows, "would_remove": rows if dry_run else []}, indent=2))
        return
    for record in chosen.values():
        where = f" ({held[record.collection]})" if len(held) > 1 else ""
        console.say(f"{'would remove' if dry_run else 'removed'}: {record.path}{where}")
    if not chosen:
        console.say("nothing to remove")


@app.command()
def stats(
    library: LibraryOption = "archive",
    check: Annotated[bool, typer.Option("--check", help="Look whether the videos' files are still there.")] = False,
    as_json: JsonOption = False,
) -> None:
    """What a library holds: videos, hours, frames, size on disk, collections and their search index."""
    with open_library(library) as archive:
        facts = _facts(archive, check=check)
    if as_json:
        print(json.dumps(facts, indent=2))
    else:
        _show(facts)
    if any(facts.get(name) for name in _STATES):
        raise typer.Exit(1)


def _facts(archive: Library, *, check: bool) -> dict[str, Any]:
    from everyframe.library.schema import VERSION

    held = archive.stats()
    seconds: dict[str, float] = {}  # a video may be in several collections
    for record in archive.videos():
        seconds[record.path] = max(seconds.get(record.path, 0.0), record.end - record.start)
    facts: dict[str, Any] = {
        "library": archive.path,
        "videos": len(seconds),
        "hours": sum(seconds.values()) / 3600,
        "frames": held.num_frames,
        "thumbnails": held.num_thumbnails,
        "bytes": held.bytes_on_disk,
        "versions": held.num_versions,
        "format": VERSION,
        "collections": [],
    }
    for collection in held.collections:
        state = archive.index_state(collection.id)
        facts["collections"].append(
            {
                "id": collection.id,
                "label": collection.label,
                "model": collection.model.get("id"),
                "dim": collection.dim,
                "videos": collection.num_videos,
                "frames": collection.num_frames,
                "index": {"kind": state.kind, "indexed": state.indexed, "building": state.building},
            }
        )
    if check:
        files = [record for record in archive.videos() if "://" not in record.path]
        facts |= {name: sorted({each.path for each in files if _state(each) == name}) for name in _STATES}
    return facts


def _state(record: VideoRecord) -> str | None:
    """What is wrong with its file; None for nothing."""
    try:
        size = os.path.getsize(record.path)
    except (FileNotFoundError, NotADirectoryError):
        return "missing"
    except OSError:
        return "unreadable"
    return "changed" if record.size_bytes is not None and size != record.size_bytes else None


def _show(facts: dict[str, Any]) -> None:
    size = "" if facts["bytes"] is None else f", {_size(facts['bytes'])} on disk"
    console.say(
        f"{facts['library']}: {_count(facts['videos'], 'video')}, {facts['hours']:.2f} hours, "
        f"{_count(facts['frames'], 'frame')}, {_count(facts['thumbnails'], 'thumbnail')}{size} "
        f"(format {facts['format']}, {_count(facts['versions'], 'version')})"
    )
    for one in facts["collections"]:
        index = one["index"]
        how = "exact search" if index["kind"] == "exact" else f"{index['kind']} over {index['indexed']} of them"
        console.say(
            f"  {one['label']} ({one['id']}): {_count(one['videos'], 'video')}, {_count(one['frames'], 'frame')} of "
            f"{one['dim']}, {how}{', being built' if index['building'] else ''}"
        )
    for name, hint in _STATES.items():
        for path in facts.get(name, ()):
            console.say(f"  {name}: {path}", style="yellow")
        if facts.get(name):
            console.say(f"  {_count(len(facts[name]), 'file')} {name}; {hint}", style="yellow")
    if all(facts.get(name) == [] for name in _STATES):
        console.say("  all files are there")


@_archive.command()
def export(
    library: LibraryOption = "archive",
    out: Annotated[Path, typer.Option("--out", help="Folder for the feature files.")] = Path("features"),
    format: Annotated[str, typer.Option("--format", help="npz, npy, h5 or parquet.")] = "npz",
    video: Annotated[
        list[str] | None, typer.Option("--video", help="Path, name or id of one; may be repeated. (default: all)")
    ] = None,
    collection: Annotated[
        str | None,
        typer.Option(
            "--collection", help='Its label or a part of that, or the beginning of its id; "all": each apart.'
        ),
    ] = None,
) -> None:
    """Write a library's features to feature files, float16 as they are stored."""
    check_format(format)
    if collection == "all" and video:
        raise ValueError("--collection all exports every video; leave out --video")
    failures: list[Any] = []
    files: list[Path] = []
    with open_library(library) as archive:
        held = archive.collections()
        if collection == "all":
            places = {each.id: out / re.sub(r"[^\w.]+", "-", f"{each.label} {each.id}") for each in held}
        else:
            places = {chosen_collection(archive, collection).id: out} if held else {}
        for ident, place in places.items():
            files += archive.export(place, format=format, videos=video or None, collection=ident, failures=failures)
    console.say(f"{out}: {_count(len(files), 'feature file')}")
    _fail([str(error) for _, error in failures])


@_archive.command(name="import")
def import_features(
    paths: Annotated[list[Path], typer.Argument(help="Feature files, or folders of them.")],
    library: LibraryOption = "archive",
) -> None:
    """Add the videos of feature files to a library, as everyframe index does with such files."""
    from everyframe.library import Library

    counts: dict[str, int] = {}
    failures: list[str] = []
    with Library(library) as archive:
        for result in archive.import_files(paths):
            if result.added is None:
                failures.append(str(result.error))
            else:
                counts[result.added.status] = counts.get(result.added.status, 0) + 1
        if counts:
            archive.refresh()
    console.say(", ".join(f"{count} {status}" for status, count in counts.items()) or "nothing added")
    _fail(failures)


@_archive.command()
def relink(
    paths: Annotated[list[Path], typer.Argument(help="Files, or folders to look for moved videos in.")],
    library: LibraryOption = "archive",
) -> None:
    """Find videos again whose files were moved or renamed, by what is in them."""
    with open_library(library) as archive:
        found = archive.relink(paths)
        lost = {record.path for record in archive.videos() if "://" not in record.path and not record.available}
    moves = {record.path: path for record, path in found}  # a video may be in several collections
    for before, path in moves.items():
        console.say(f"{before} is now {path}")
    console.say(f"{len(moves)} found again, {len(lost)} still missing")


@_archive.command()
def compact(library: LibraryOption = "archive") -> None:
    """Join many small files into few large ones, and bring the search index up to date."""
    started = time.monotonic()
    with open_library(library) as archive:
        archive.compact()
        archive.refresh()
    console.say(f"compacted in {time.monotonic() - started:.1f} s; everyframe archive vacuum frees what is not needed")


@_archive.command()
def vacuum(
    library: LibraryOption = "archive",
    older_than: Annotated[
        str, typer.Option("--older-than", help="Versions that nobody reads any more: of that age, such as 12h or 7d.")
    ] = "7d",
) -> None:
    """Delete old versions of a library, and with them what was removed."""
    with open_library(library) as archive:
        freed = archive.vacuum(timedelta(seconds=parse_seconds(older_than, "--older-than")))
    console.say(f"{_size(freed)} freed")


@_archive.command()
def history(library: LibraryOption = "archive", as_json: JsonOption = False) -> None:
    """When videos were added to a library, or removed from it."""
    with open_library(library) as archive:
        versions = archive.history()
    if as_json:
        print(json.dumps([{"time": when.isoformat(), "version": version} for when, version in versions], indent=2))
        return
    for when, version in versions:
        console.say(f"{when.astimezone().strftime('%Y-%m-%d %H:%M:%S')}  version {version}")


def _fail(failures: list[str]) -> None:
    for failure in failures:
        console.say(f"everyframe: {failure}", style="red", error=True)
    if failures:
        raise typer.Exit(1)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' if number != 1 else ''}"


def _size(number: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if number < 1000:
            return f"{number:.3g} {unit}" if unit != "bytes" else f"{number:.0f} bytes"
        number /= 1000
    return f"{number:,.3g} GB"
