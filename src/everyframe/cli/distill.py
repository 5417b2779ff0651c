"""everyframe distill."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from everyframe import console
from everyframe.cli.app import app
from everyframe.cli.options import (
    DeviceOption,
    DropOption,
    DtypeOption,
    FpsOption,
    InterleaveOption,
    JsonOption,
    ModelOption,
    QuietOption,
    ThreadsOption,
    check_writable,
    given,
    load_model,
)


@app.command()
def distill(
    videos: Annotated[
        list[str], typer.Option("--videos", help="Folder, glob, or WebDataset .tar shards; may be repeated.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for the tokenizer; a killed run goes on there.")],
    captions: Annotated[
        Path | None, typer.Option("--captions", help="CSV, TSV, Parquet or JSON lines of video and caption.")
    ] = None,
    model: ModelOption = None,
    steps: Annotated[
        int | None, typer.Option("--steps", help="Optimizer steps. (default: 5 epochs, at least 500)")
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option("--loss", help="text, text-one-way, prompts or mse. (default: text with captions, else prompts)"),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", help="Texts for --loss prompts, one per line. (default: a general bank)")
    ] = None,
    drop: DropOption = None,
    layers: Annotated[int | None, typer.Option("--layers", help="Linear layers of the tokenizer. (default: 1)")] = None,
    hidden: Annotated[int | None, typer.Option("--hidden", help="Width between 2 or more layers.")] = None,
    batch: Annotated[
        int | None,
        typer.Option("--batch", help="Clips per step. (default: 2048, 1536 for ViT-L; less on a CPU or for few clips)"),
    ] = None,
    micro_batch: Annotated[
        int | None, typer.Option("--micro-batch", help="Clips per backward pass: memory, not the result.")
    ] = None,
    rate: Annotated[float | None, typer.Option("--lr", help="Learning rate, constant. (default: 5e-4)")] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Order, starts, patches, first weights. (default: 0)")
    ] = None,
    frames: Annotated[int, typer.Option("--frames", help="Frames per clip, the I-frame included.")] = 4,
    clip_fps: Annotated[float, typer.Option("--clip-fps", help="Frames per second inside a clip.")] = 1.0,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="New random clips in every epoch; slower, keeps none on disk.")
    ] = False,
    interleave: InterleaveOption = None,
    select: Annotated[
        str | None,
        typer.Option("--select", help="How patches are chosen when held-out fidelity is measured. (default: motion)"),
    ] = None,
    fps: FpsOption = None,
    report_every: Annotated[int, typer.Option("--report-every", help="Steps between checkpoints and log lines.")] = 100,
    push_to: Annotated[str | None, typer.Option("--push-to", help="Hub repository (owner/name) to upload to.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repository of --push-to private.")] = False,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Fit the residual token of a model to your videos, with captions or without; everything else stays frozen.

    --interleave, --select and --fps do not change what is fitted, only how its held-out fidelity is measured.
    Several GPUs or processes: torchrun --nproc-per-node 4 -m everyframe.cli distill ...
    """
    from everyframe.training import check_repository, open_clips, own_device, publish
    from everyframe.training import distill as fit
    from everyframe.video import VideoError

    if push_to is not None:
        check_repository(push_to)
    elif private:
        raise ValueError("--private has no meaning without --push-to")
    check_writable(out)
    failures: list[VideoError] = []
    clips = open_clips(videos, captions, frames=frames, rate=clip_fps, failures=failures)
    first = os.environ.get("RANK", "0") == "0"
    for error in failures if first else []:
        console.say(f"everyframe: left out: {error}", style="red", error=True)
    if device in (None, "cuda"):
        device = own_device() or device
    teacher = load_model(model, device, dtype, threads)
    silent = quiet or as_json or not first
    with console.StepProgress(silent=silent) as progress:
        result = fit(
            teacher,
            clips,
            out,
            prompts=prompts,
            report_every=report_every,
            failures=failures,
            say=(lambda text: None) if silent else lambda text: console.say(text, error=True),
            step_done=progress.step,
            fresh=fresh,
            **given(
                steps=steps,
                loss=loss,
                drop=drop,
                layers=layers,
                hidden=hidden,
                batch=batch,
                micro_batch=micro_batch,
                rate=rate,
                seed=seed,
                interleave=interleave,
                select=select,
                fps=fps,
            ),
        )
    if not first:
        return
    if as_json:
        facts = {"folder": str(result.folder), **result.tokenizer.facts, "failures": result.failures}
        print(json.dumps(facts, indent=2))
    elif not quiet:
        console.say(f"use it: --residual {out}, or ResidualViT(model, residual={str(out)!r})")
    if push_to is not None:
        console.say(f"published: {publish(out, push_to, private=private)}", error=as_json)
    if result.failures:
        said = {" ".join(str(error).split()) for error in failures}
        for line in result.failures if silent else []:
            if line not in said:
                console.say(f"left out: {line}", style="red", error=True)
        console.say(f"{len(result.failures)} could not be used: {out / 'failures.txt'}", style="red", error=True)
        raise typer.Exit(1)
