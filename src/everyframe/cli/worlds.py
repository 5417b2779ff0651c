"""everyframe synthesize, everyframe demo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from everyframe import console
from everyframe.cli.app import app
from everyframe.cli.options import (
    DropOption,
    InterleaveOption,
    JsonOption,
    QuietOption,
    ThreadsOption,
    given,
    set_threads,
)


@app.command()
def synthesize(
    out: Annotated[Path, typer.Option("--out", help="Folder for the videos and annotations.")],
    videos: Annotated[int | None, typer.Option("--videos", help="How many. (default: 8, of --sequences 128)")] = None,
    seconds: Annotated[
        float | None, typer.Option("--seconds", help="Length of each. (default: 60, of --sequences 6.5)")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Everything follows from it.")] = 1,
    style: Annotated[
        str | None,
        typer.Option(
            "--style",
            help="How all of them move: still, handheld, pan, action, lecture, talking_head or cuts. "
            "(default: the first four in turn)",
        ),
    ] = None,
    codec: Annotated[str, typer.Option("--codec", help="Any video encoder of FFmpeg.")] = "libx264",
    sequences: Annotated[
        bool,
        typer.Option("--sequences", help="Short videos that no single frame tells apart, for text-video retrieval."),
    ] = False,
    test: Annotated[
        int | None, typer.Option("--test", help="Of --sequences: videos of the test split. (default: 56)")
    ] = None,
    quiet: QuietOption = False,
) -> None:
    """Render captioned videos of a procedural world, with annotations.jsonl (one line per event).

    --sequences: pairs of videos with the same frames in opposite order ("a red circle moves left", "... moves right"),
    with train.json and test.json, whose objects differ.
    """
    if sequences:
        _sequences(out, videos, test, seconds, seed, style, codec, quiet=quiet)
        return
    if test is not None:
        raise ValueError("--test belongs to --sequences; other videos have no splits")
    from everyframe.synthetic import synthesize as render

    options = given(videos=videos, seconds=seconds, style=style)
    for video in render(out, seed=seed, codec=codec, **options):
        if not quiet:
            console.say(f"{out / video.name}.mp4: {video.style}, {len(video.events)} events")


def _sequences(
    out: Path,
    videos: int | None,
    test: int | None,
    seconds: float | None,
    seed: int,
    style: str | None,
    codec: str,
    *,
    quiet: bool,
) -> None:
    from everyframe.synthetic import synthesize_sequences

    if style is not None:
        raise ValueError("--style has no meaning with --sequences, whose camera stands still; leave it out")
    if seconds is not None and not 0.25 <= seconds <= 600:
        raise ValueError(f"--seconds must be from 0.25 to 600 with --sequences, got {seconds}")
    frames = None if seconds is None else round(seconds * 12)
    options = given(train=videos, test=test, num_frames=frames)
    for video in synthesize_sequences(out, seed=seed, codec=codec, **options):
        if not quiet:
            console.say(f"{out / video.name}.mp4: {video.caption}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for videos, features and the report.")] = Path("demo"),
    videos: Annotated[int, typer.Option("--videos", help="Synthetic videos to render.")] = 12,
    seconds: Annotated[float, typer.Option("--seconds", help="Length of each.")] = 60.0,
    seed: Annotated[int, typer.Option("--seed", help="Which videos.")] = 7,
    interleave: InterleaveOption = None,
    drop: DropOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Render a small archive, encode it dense and in two cheaper ways, search and ground it, and write a report."""
    from everyframe.demo import run_demo

    set_threads(threads)
    result = run_demo(
        out,
        videos=videos,
        seconds=seconds,
        seed=seed,
        say=lambda text: console.say(text, error=as_json),
        **given(interleave=interleave, drop=drop),
    )
    if as_json:
        print(json.dumps(result.as_dict(), indent=2))
        return
    console.show(result.table())
    console.say(f"report: {result.report}")
