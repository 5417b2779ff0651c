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
    videos: Annotated[int, typer.Option("--videos", help="How many.")] = 8,
    seconds: Annotated[float, typer.Option("--seconds", help="Length of each.")] = 60.0,
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
    quiet: QuietOption = False,
) -> None:
    """Render captioned videos of a procedural world, with annotations.jsonl (one line per event)."""
    from everyframe.synthetic import synthesize as render

    for video in render(out, videos=videos, seconds=seconds, seed=seed, codec=codec, **given(style=style)):
        if not quiet:
            console.say(f"{out / video.name}.mp4: {video.style}, {len(video.events)} events")


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
