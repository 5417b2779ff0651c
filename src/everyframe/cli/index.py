"""everyframe index."""

from __future__ import annotations

import glob
import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everyframe import console
from everyframe.cli.app import app
from everyframe.cli.options import (
    JsonOption,
    QuietOption,
    RetryOption,
    check_writable,
    distinct,
    given,
    load_model,
    videos_of,
)
from everyframe.cli.reading import Reading, reads_videos
from everyframe.cli.times import parse_seconds

if TYPE_CHECKING:
    from typing_extensions import Self

    from everyframe.encoders import Encoder, TempMe
    from everyframe.indexing import Indexed, Indexer
    from everyframe.library import Collection, Library
    from everyframe.pipeline import ClipSampling, Sampling
    from everyframe.pipeline.watch import Watch
    from everyframe.video import VideoError

_RETRY_SECONDS = 60.0  # after the library could not be written

LibraryOption = Annotated[
    str, typer.Option("--library", help="Folder of the library, or its address (s3://, gs://).")
]
CollectionOption = Annotated[
    str | None,
    typer.Option("--collection", help="Where a library holds several: the label of one, or the beginning of its id."),
]


@app.command()
@reads_videos
def index(
    paths: Annotated[
        list[str], typer.Argument(help="Videos, folders, globs, lists of paths; feature files or folders of them.")
    ],
    library: LibraryOption = "archive",
    collection: Annotated[
        str | None,
        typer.Option("--collection", help="Read videos as those of this collection were, by its label or id."),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Stay, and add what appears or changes.")] = False,
    every: Annotated[str | None, typer.Option("--every", help="With --watch: time between looks. (default: 5s)")] = None,
    remove_missing: Annotated[
        bool, typer.Option("--remove-missing", help="Remove videos below these folders whose files are gone.")
    ] = False,
    thumbnails: Annotated[bool, typer.Option("--thumbnails/--no-thumbnails", help="Keep small pictures.")] = True,
    refresh: Annotated[
        bool, typer.Option("--refresh/--no-refresh", help="At the end bring the search index up to date.")
    ] = True,
    *,
    reading: Reading,
    retry_failed: RetryOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Encode videos and add them to a library; what it has is skipped, and what was moved is found again.

    A library that holds one collection is continued with the model and the settings of that, unless options say
    otherwise. Each video is safe as soon as it is reported; after an interruption the same command goes on.
    """
    from everyframe.indexing import Indexer
    from everyframe.library import Library

    if every is not None and not watch:
        raise ValueError("--every has a meaning with --watch alone")
    interval = parse_seconds(every or "5s", "--every")
    if interval < 0.1:
        raise ValueError(f"--every must be at least 0.1 s, got {every!r}")
    reading.choose()  # options that contradict each other are told before anything is opened
    with Library(library) as archive:
        held = archive.collections() if archive.exists() else []
        found = _find(paths, Path(archive.path), may_be_empty=watch)
        if "://" not in archive.path:
            check_writable(Path(archive.path), "--library")
        run = _Run(archive, silent=quiet or as_json, lines=as_json and watch)
        if found.videos or watch:
            run.indexer = _indexer(archive, reading, held, collection, thumbnails, retry_failed, run)
        elif reading.settings or reading.model or collection:
            raise ValueError(f"{paths[0]} is encoded already: options of encoding have no meaning with feature files")
        try:
            with _Stop() if watch else nullcontext() as stop:
                run.stop = stop
                run.first(found, Watch(found.watched, leave_out=Path(archive.path)), interval, remove_missing)
                if refresh:
                    run.refresh()
        finally:
            ...
