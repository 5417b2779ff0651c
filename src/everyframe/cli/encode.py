"""everyframe encode."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from everyframe import console
from everyframe.cli.app import app
from everyframe.cli.encoder import MERGING
from everyframe.cli.options import (
    EndOption,
    JsonOption,
    QuietOption,
    RetryOption,
    StartOption,
    check_format,
    check_writable,
    distinct,
    videos_of,
)
from everyframe.cli.reading import Reading, reads_videos

if TYPE_CHECKING:
    from everyframe.pipeline import Outcome
    from everyframe.video import VideoError


@app.command()
@reads_videos
def encode(
    paths: Annotated[list[str], typer.Argument(help="Videos, folders, globs, or text files of paths.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the feature files.")] = Path("features"),
    format: Annotated[str | None, typer.Option("--format", help="npz, npy, h5 or parquet. (default: npz)")] = None,
    recipe: Annotated[
        bool,
        typer.Option("--recipe", help="Keep I-features and the plan only, in NAME.recipe.npz; see everyframe restore."),
    ] = False,
    store: Annotated[str, typer.Option("--store", help="float32 or float16 embeddings.")] = "float32",
    *,
    reading: Reading,
    start: StartOption = None,
    end: EndOption = None,
    retry_failed: RetryOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Encode videos to feature files; what is already done with the same settings is skipped."""
    from everyframe.pipeline import JOURNAL, RECIPE_SUFFIX, encode_videos, forecast, output_paths

    check_format(format or "npz")
    if recipe and format is not None:
        raise ValueError("--format has no meaning with --recipe: recipes are NAME.recipe.npz")
    if store not in ("float32", "float16"):
        raise ValueError(f"--store must be float32 or float16, got {store!r}")
    chosen = reading.choose(start=start, end=end, recipe=recipe)
    if recipe and chosen.frames is not None and chosen.frames.name in MERGING:
        raise ValueError(
            f"--recipe has no meaning with --encoder {chosen.frames.name}: a recipe keeps the features of I-frames, "
            "which would be all of them"
        )
    missing: list[VideoError] = []
    roots = [(Path(path) if Path(path).is_dir() else None, videos_of(path, missing)) for path in paths]
    if not any(videos for _, videos in roots):
        raise missing[0]
    sources = output_paths(distinct(roots), out, RECIPE_SUFFIX if recipe else f".{format or 'npz'}")
    check_writable(out)
    reader, sampling = chosen.make()
    silent = quiet or as_json
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
        ):
            outcomes.append(outcome)
            step.finished(outcome)
    console.show_outcomes(outcomes, time.monotonic() - started, as_json=as_json, quiet=quiet)
    if any(outcome.status == "failed" for outcome in outcomes):
        raise typer.Exit(1)


def _not_found(error: VideoError) -> Outcome:
    from everyframe.pipeline import Outcome

    return Outcome(source=str(error).partition(": ")[0], output=None, status="failed", error=str(error))
