"""everyframe encode."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everyframe import console
from everyframe.cli.app import app
from everyframe.cli.cluster import CLUSTER_FORMATS, ClusterOptions, encode_on_cluster
from everyframe.cli.encoder import MERGING
from everyframe.cli.groups import option_groups
from everyframe.cli.options import (
    FORMATS,
    EndOption,
    JsonOption,
    QuietOption,
    RetryOption,
    StartOption,
    check_format,
    check_writable,
    distinct,
    root_of,
    videos_of,
)
from everyframe.cli.reading import Reader, Reading

if TYPE_CHECKING:
    from everyframe.pipeline import Outcome
    from everyframe.video import VideoError

_TABLES = (".csv", ".tsv", ".jsonl", ".parquet")


@app.command()
@option_groups
def encode(
    paths: Annotated[
        list[str], typer.Argument(help="Videos, folders, globs, or lists of paths: txt, csv, tsv, jsonl, parquet.")
    ],
    out: Annotated[str, typer.Option("--out", help="Folder for the feature files.")] = "features",
    format: Annotated[
        str | None,
        typer.Option(
            "--format", help="npz, npy, h5 or parquet; with --cluster also webdataset or library. (default: npz)"
        ),
    ] = None,
    recipe: Annotated[
        bool,
        typer.Option("--recipe", help="Keep I-features and the plan only, in NAME.recipe.npz; see everyframe restore."),
    ] = False,
    store: Annotated[str, typer.Option("--store", help="float32 or float16 embeddings.")] = "float32",
    column: Annotated[
        str | None, typer.Option("--column", help="Of a table: which column has the paths. (default: by its name)")
    ] = None,
    *,
    reading: Reading,
    start: StartOption = None,
    end: EndOption = None,
    retry_failed: RetryOption = False,
    cluster: ClusterOptions,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Encode videos to feature files; what is already done with the same settings is skipped."""
    _check_format(format, recipe=recipe, on_cluster=cluster.cluster is not None)
    decoders = None
    if cluster.cluster is None:
        cluster.refuse()
        decoders = cluster.files_at_a_time
    if store not in ("float32", "float16"):
        raise ValueError(f"--store must be float32 or float16, got {store!r}")
    chosen = reading.choose(start=start, end=end, recipe=recipe)
    if recipe and chosen.frames is not None and chosen.frames.name in MERGING:
        raise ValueError(
            f"--recipe has no meaning with --encoder {chosen.frames.name}: a recipe keeps the features of I-frames, "
            "which would be all of them"
        )
    if column is not None and cluster.cluster is None and not any(path.lower().endswith(_TABLES) for path in paths):
        raise ValueError("--column has a meaning with tables alone: csv, tsv, jsonl, parquet")
    how: dict[str, Any] = {"column": column, "format": format or "npz", "store": store, "retry_failed": retry_failed}
    if cluster.cluster is not None:
        encode_on_cluster(paths, out, cluster, chosen, **how, as_json=as_json, quiet=quiet)
        return
    if "://" in out:
        raise ValueError(f"--out {out} is an address, and only --cluster writes to one; name a folder")
    outcomes, wall = _encode_here(
        paths, Path(out), chosen, **how, recipe=recipe, decoders=decoders, silent=quiet or as_json
    )
    console.show_outcomes(outcomes, wall, as_json=as_json, quiet=quiet)
    if any(outcome.status == "failed" for outcome in outcomes):
        raise typer.Exit(1)


def _check_format(format: str | None, *, recipe: bool, on_cluster: bool) -> None:
    if recipe and on_cluster:
        raise ValueError("--recipe has no meaning with --cluster: recipes are made on one machine")
    if on_cluster:
        if format not in (None, *CLUSTER_FORMATS):
            raise ValueError(f"--format must be one of {', '.join(CLUSTER_FORMATS)} with --cluster, got {format!r}")
        return
    if format in CLUSTER_FORMATS and format not in FORMATS:
        instead = "everyframe index" if format == "library" else "everyframe export --webdataset"
        raise ValueError(f"--format {format} has a meaning with --cluster alone; {instead} makes one")
    check_format(format or "npz")
    if recipe and format is not None:
        raise ValueError("--format has no meaning with --recipe: recipes are NAME.recipe.npz")


def _encode_here(
    paths: Sequence[str],
    out: Path,
    chosen: Reader,
    *,
    column: str | None,
    format: str,
    store: str,
    retry_failed: bool,
    recipe: bool,
    decoders: int | None,
    silent: bool,
) -> tuple[list[Outcome], float]:
    """On this machine; what became of each video, and the seconds that it took."""
    from everyframe.pipeline import JOURNAL, RECIPE_SUFFIX, encode_videos, forecast, output_paths

    missing: list[VideoError] = []
    roots = [(root_of(path), _named(path, column, missing)) for path in paths]
    if not any(videos for _, videos in roots):
        raise missing[0]
    sources = output_paths(distinct(roots), out, RECIPE_SUFFIX if recipe else f".{format}")
    check_writable(out)
    reader, sampling = chosen.make()
    expected = None if silent else forecast([source for source, _ in sources], reader, sampling)
    if expected is not None:
        console.show_forecast(expected)
    started = time.monotonic()
    outcomes = [_not_found(error) for error in missing]
    with console.BatchProgress(expected, silent=silent) as step:
        for outcome in outcomes:
            step.failed(outcome)
        for outcome in encode_videos(
            sources,
            reader,
            sampling=sampling,
            dtype=store,
            progress=step.frames,
            journal_file=out / JOURNAL,
            retry_failed=retry_failed,
            recipe=recipe,
            decoders=decoders,
        ):
            outcomes.append(outcome)
            step.finished(outcome)
    return outcomes, time.monotonic() - started


def _named(path: str, column: str | None, missing: list[VideoError]) -> list[str | Path]:
    """The videos that an argument names, which may be a table or a list of addresses."""
    if not (path.lower().endswith(_TABLES) or _lists_addresses(path)):
        return videos_of(path, missing)
    from everyframe.scale.listing import list_videos
    from everyframe.video import VideoError

    listing = list_videos([path], column=column)
    missing += [VideoError(failure.message) for failure in listing.missing]
    return [video.source for video in listing.videos]


def _lists_addresses(path: str) -> bool:
    """Is it a list of lines that is elsewhere, or names what is? Others are read by `find_videos`."""
    if not path.lower().endswith(".txt"):
        return False
    if "://" in path:
        return True
    try:
        return b"://" in Path(path).read_bytes()
    except OSError:
        return False


def _not_found(error: VideoError) -> Outcome:
    from everyframe.pipeline import Outcome

    return Outcome(source=str(error).partition(": ")[0], output=None, status="failed", error=str(error))
