"""everyframe index."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everyframe import console
from everyframe.cli.app import app
from everyframe.cli.groups import option_groups
from everyframe.cli.libraries import LibraryOption, chosen_collection, named
from everyframe.cli.options import (
    JsonOption,
    QuietOption,
    RetryOption,
    check_writable,
    distinct,
    load_model,
    videos_of,
)
from everyframe.cli.reading import Reading
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


@app.command()
@option_groups
def index(
    paths: Annotated[
        list[str], typer.Argument(help="Videos, folders, globs, lists of paths; or feature files and folders of them.")
    ],
    library: LibraryOption = "archive",
    collection: Annotated[
        str | None,
        typer.Option(
            "--collection", help="Read videos as those of this collection were: its label or a part of it, or id."
        ),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Stay, and add what appears or changes.")] = False,
    every: Annotated[
        str | None, typer.Option("--every", help="With --watch: time from look to look. (default: 5s)")
    ] = None,
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

    A library with one collection is continued with the model and the settings of that, unless options say otherwise.
    Each video is safe as soon as it is added; after an interruption the same command goes on.
    """
    from everyframe.indexing import Indexer
    from everyframe.library import Library
    from everyframe.pipeline.watch import Watch

    if every is not None and not watch:
        raise ValueError("--every has a meaning with --watch alone")
    interval = parse_seconds(every or "5s", "--every")
    if interval < 0.1:
        raise ValueError(f"--every must be at least 0.1 s, got {every!r}")
    reading.choose()  # options that contradict each other are told before anything is opened
    with Library(library) as archive:
        held = archive.collections()
        found = _find(paths, Path(archive.path), may_be_empty=watch)
        indexer: Indexer | None = None
        if found.watched if watch else found.videos:
            if "://" not in archive.path:
                check_writable(Path(archive.path), "--library")
            encoder, sampling = _reader(reading, archive, collection)
            indexer = Indexer(archive, encoder, sampling, thumbnails=thumbnails, retry_failed=retry_failed)
            if held and indexer.key.id not in {each.id for each in held}:
                _say_new(indexer.key.label, held)
        elif watch and found.videos:
            raise ValueError(f"--watch looks for videos in folders, and {found.videos[0]} is an address, read once")
        elif watch:
            raise ValueError(f"--watch looks for videos, and {paths[0]} has none but encoded ones")
        elif reading.settings or reading.model or collection:
            raise ValueError(f"{paths[0]} is encoded already: options of encoding have no meaning with feature files")
        watcher = Watch(found.watched, leave_out=Path(archive.path))
        run = _Run(archive, indexer, watcher, remove_missing=remove_missing, quiet=quiet, as_json=as_json, stays=watch)
        try:
            with run.stop:
                run.first(found, interval)
                if refresh:
                    run.refresh()
                if watch:
                    run.stay(interval, refresh=refresh)
        except KeyboardInterrupt:
            if not watch:
                raise
        finally:
            run.summary()
    if run.failed and not watch:
        raise typer.Exit(1)


# --- what there is to do ---------------------------------------------------------------------------------


@dataclass(kw_only=True)
class _Found:
    """What the arguments name. watched: those of videos. features: files, or folders of them."""

    videos: list[str | Path] = field(default_factory=list)
    watched: list[str] = field(default_factory=list)
    features: list[str] = field(default_factory=list)
    missing: list[VideoError] = field(default_factory=list)


def _find(paths: Sequence[str], library: Path, *, may_be_empty: bool) -> _Found:
    """Raises VideoError where there is nothing at all.

    A folder with videos is one of videos, whatever else it holds; nothing in the library's own folder counts.
    """
    from everyframe.features import SUFFIXES, FeaturesError
    from everyframe.pipeline import is_address
    from everyframe.tasks.retrieval import feature_paths
    from everyframe.video import NoVideosError

    found = _Found()
    for path in paths:
        place = Path(path)
        if place.suffix.lower() in SUFFIXES and place.is_file():
            found.features.append(path)
            continue
        errors: list[VideoError] = []
        named = videos_of(path, errors)
        videos = [video for video in named if not Path(os.path.abspath(video)).is_relative_to(library)]
        if not videos and place.is_dir():
            try:
                feature_paths(place)
                found.features.append(path)
                continue
            except FeaturesError:
                pass  # nothing of either kind: what was said of videos stands
        if named and not videos:
            errors.append(NoVideosError(f"{path}: no video but in the library's own folder"))
        found.missing += [error for error in errors if not (may_be_empty and isinstance(error, NoVideosError))]
        if not is_address(path):
            found.watched.append(path)
        found.videos += videos
    found.videos = [video for _, videos in distinct([(None, found.videos)]) for video in videos]
    nothing = not found.videos and not found.features
    if found.missing and (nothing or may_be_empty):  # who stays would wait for a misspelt name for ever
        raise found.missing[0]
    return found


def _reader(reading: Reading, archive: Library, wanted: str | None) -> tuple[Encoder | TempMe, Sampling | ClipSampling]:
    """As the options say; without any as the videos of the collection that is wanted, or the only one."""
    from everyframe.features import FeaturesError
    from everyframe.pipeline import remake

    if wanted is not None and (reading.settings or reading.model is not None):
        raise ValueError("--collection says how videos are read; leave out --model, --fps and the encoder's options")
    held = archive.collections()
    if wanted is None and len(held) > 1 and not reading.settings and reading.model is None:
        raise ValueError(
            "the library holds several collections; choose one with --collection, or say how to read these videos "
            f"(--model, --fps, --encoder, ...): {named(held)}"
        )
    like = chosen_collection(archive, wanted) if wanted is not None or len(held) == 1 else None
    recorded = None if like is None else like.model.get("id")
    name = recorded if isinstance(recorded, str) else None
    if like is None or reading.settings:
        return reading.choose().make(name)
    model = load_model(reading.model or name, reading.device, reading.dtype, reading.threads)
    if like.model.get("weights_sha256") not in (None, model.weights_sha256):
        if reading.model is None:
            raise ValueError(
                f"{model.name} has other weights now than when the collection {like.label} was made; name the model "
                "with --model"
            )
        return reading.choose().make()
    try:
        return remake(like.settings, model, batch_size=reading.batch_size, keep_partial=reading.keep_partial)
    except FeaturesError as error:
        raise ValueError(
            f"the library's videos were read with {like.label}: {error}; say how to read these with --encoder and its "
            "options"
        ) from error


def _say_new(label: str, held: Sequence[Collection]) -> None:
    console.say(
        f"{label} becomes a collection of its own, searched apart from {', '.join(each.label for each in held)}; "
        "without options of encoding a library of one collection is continued",
        style="yellow",
        error=True,
    )


# --- doing it --------------------------------------------------------------------------------------------


class _Stop:
    """Ctrl-C and SIGTERM as a wish to end after the step at hand; a second one ends at once. Idle if not `listens`."""

    def __init__(self, *, listens: bool) -> None:
        self._listens = listens
        self._asked = threading.Event()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if self._listens:
            self._before = {each: signal.signal(each, self._ask) for each in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked.is_set():
            raise KeyboardInterrupt
        self._asked.set()

    def check(self) -> None:
        """Raises KeyboardInterrupt where someone asked for an end."""
        if self._asked.is_set():
            raise KeyboardInterrupt

    def wait(self, seconds: float) -> None:
        """Sleep. Raises KeyboardInterrupt as soon as someone asks for an end."""
        self._asked.wait(seconds)
        self.check()


class _Run:
    """One run of the command: what was done, and how it is told. stays: with --watch."""

    def __init__(
        self,
        archive: Library,
        indexer: Indexer | None,
        watch: Watch,
        *,
        remove_missing: bool,
        quiet: bool,
        as_json: bool,
        stays: bool,
    ) -> None:
        self._archive, self._indexer, self._watch = archive, indexer, watch
        self._remove_missing, self._stays = remove_missing, stays
        self._quiet, self._as_json, self._silent = quiet, as_json, quiet or as_json
        self.stop = _Stop(listens=stays)
        self._gone: dict[Path, None] = {}  # not removed or reported yet
        self._outcomes: list[Indexed] | None = []  # None once they are summed up
        self._started = time.monotonic()
        self.failed = 0

    def first(self, found: _Found, interval: float) -> None:
        """All that is there now; of what is being written to, with --watch, as much as is quiet."""
        from everyframe.indexing import Indexed
        from everyframe.pipeline import is_address

        for error in found.missing:
            name = str(error).partition(": ")[0]
            self._tell(Indexed(source=name, status="failed", error=str(error)), shown=False)
        sources = found.videos
        if self._stays:
            addresses = [video for video in sources if is_address(video)]
            if addresses:
                self._say_problems([f"addresses are read once and not watched: {', '.join(map(str, addresses))}"])
            sources = addresses + list(self._watch.first(interval))
        self._batch(sources, bar=True)
        for result in self._archive.import_files(found.features) if found.features else ():
            if result.added is None:
                self._tell(Indexed(source=str(result.file), status="failed", error=result.error), shown=False)
                continue
            status = "skipped" if result.added.status == "unchanged" else result.added.status
            self._tell(Indexed(source=str(result.file), status=status, video=result.added.id), shown=False)
        if not self._stays:
            self._check_gone({str(error) for error in found.missing})

    def _batch(self, sources: Sequence[str | Path], *, bar: bool) -> None:
        """Whatever is to be done with these videos."""
        from everyframe.pipeline import forecast

        if self._indexer is None or not sources:
            return
        settled, todo = self._indexer.sort(sources)
        expected = None
        if bar and todo and not self._silent:
            expected = forecast(todo, self._indexer.encoder, self._indexer.sampling)
            console.show_forecast(expected)
        with console.BatchProgress(expected, silent=expected is None) as step:

            def progress(source: str, num_frames: int, seconds: float) -> None:
                self.stop.check()
                step.frames(source, num_frames, seconds)

            for outcome in settled:
                self._tell(outcome, shown=False)
            for outcome in self._indexer.encode(todo, progress):
                step.finished(outcome)
                self._tell(outcome, shown=expected is not None)
                self.stop.check()

    def _tell(self, outcome: Indexed, *, shown: bool) -> None:
        """Take note of it. shown: the progress bar has told of what went wrong."""
        self.failed += outcome.status == "failed"
        if not outcome.changed:
            self._watch.handled(Path(os.path.abspath(outcome.source)))
        if self._outcomes is not None:
            self._outcomes.append(outcome)
        if self._stays and self._as_json:
            print(json.dumps(console.outcome_facts(outcome)), flush=True)
        elif outcome.error is not None and outcome.status != "skipped":
            if not shown and (self._outcomes is None or not self._silent):  # else the summary tells
                console.say_outcome(outcome)
        elif self._outcomes is None and not self._quiet and outcome.status != "skipped":
            console.say_outcome(outcome)

    def _check_gone(self, told: set[str]) -> None:
        """Videos of the library below the folders that are not there any more. told: problems, by their sentence."""
        from everyframe.pipeline.watch import LOOKS_GONE

        known = [record.path for record in self._archive.videos()]
        for _ in range(LOOKS_GONE):  # nothing is expected to happen in between
            changes = self._watch.look(known)
            self._say_problems(problem for problem in changes.problems if problem not in told)
        self._take(changes.gone)

    def _say_problems(self, problems: Iterable[str]) -> None:
        for problem in problems:
            console.say(f"everyframe: {problem}", style="yellow", error=True)

    def _take(self, gone: Iterable[Path]) -> None:
        """What is gone is told once: where the library cannot be written now, it waits here for the next try."""
        self._gone |= dict.fromkeys(gone)
        if self._indexer is not None and self._gone:
            for outcome in self._indexer.gone(list(self._gone), remove=self._remove_missing):
                self._tell(outcome, shown=False)
        self._gone.clear()

    def refresh(self) -> None:
        """Bring the search index up to date, and say so where that takes a while."""
        if not self._archive.exists():
            return
        due = {
            one.label: one.num_frames for one in self._archive.collections() if self._archive.index_state(one.id).due
        }
        for label, frames in due.items():
            if not self._silent:
                console.say(f"building the search index of {label} over {frames:,} frames", error=True)
        started = time.monotonic()
        self._archive.refresh()
        if due and not self._silent:
            console.say(f"the search index is built, in {time.monotonic() - started:.1f} s", error=True)

    def stay(self, interval: float, *, refresh: bool) -> None:
        """Look again and again, until someone asks for an end."""
        from everyframe.library import LibraryError

        self.summary()
        if not self._silent:
            console.say("watching; Ctrl-C ends", error=True)
        pause = interval
        while True:
            self.stop.wait(pause)
            pause = interval
            try:
                changes = self._watch.look(record.path for record in self._archive.videos())
                self._say_problems(changes.problems)
                self._batch(changes.settled, bar=False)
                self._take(changes.gone)
                if changes.settled and refresh:
                    self._archive.refresh(wait=False)
            except LibraryError as error:  # a full disk may have room again later
                pause = max(interval, _RETRY_SECONDS)
                console.say(f"everyframe: {error}; the next try is in {pause:g} s", style="red", error=True)

    def summary(self) -> None:
        """What became of the first pass, told once."""
        from everyframe.indexing import STATUSES

        if self._outcomes is None:
            return
        outcomes, self._outcomes = self._outcomes, None
        if self._stays and self._as_json:
            return
        wall = time.monotonic() - self._started
        console.show_outcomes(outcomes, wall, as_json=self._as_json, quiet=self._quiet, statuses=STATUSES)
