"""everyframe finetune."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everyframe import console
from everyframe.cli.app import app
from everyframe.cli.options import (
    DeviceOption,
    JsonOption,
    ModelOption,
    QuietOption,
    ThreadsOption,
    check_writable,
    given,
    load_model,
)

if TYPE_CHECKING:
    from everyframe.training import FineTuned, Pair

_SPLITS = "Of a file that holds several."


@app.command()
def finetune(
    videos: Annotated[Path, typer.Option("--videos", help="Folder that holds the videos, at any depth.")],
    annotations: Annotated[
        Path,
        typer.Option(
            "--annotations", help="Captions: an official retrieval file, or a CSV, TSV, JSONL or Parquet table."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for the model; a killed run goes on there.")],
    model: ModelOption = None,
    layout: Annotated[str | None, typer.Option("--layout", help="Of the files; guessed by default.")] = None,
    split: Annotated[str, typer.Option("--split", help=_SPLITS)] = "train",
    validation: Annotated[
        Path | None, typer.Option("--validation", help="Captions to choose by. (default: 5 % of the videos)")
    ] = None,
    validation_split: Annotated[str, typer.Option("--validation-split", help=_SPLITS)] = "val",
    preset: Annotated[
        str | None, typer.Option("--preset", help="TempMe's schedule for a benchmark and model, such as msrvtt-b32.")
    ] = None,
    r: Annotated[  # not --r: torchrun would take that for an abbreviation of its own
        int | None, typer.Option("--r", "--merge", help="Tokens merged per frame in each block before --clips.")
    ] = None,
    clips: Annotated[
        str | None, typer.Option("--clips", help="Clips joined at a layer (from 0): 8:2,9:2,10:3; none.")
    ] = None,
    remove_cross: Annotated[
        int | None, typer.Option("--remove-cross", help="Percent of tokens merged between clips.")
    ] = None,
    remove_intra: Annotated[
        int | None, typer.Option("--remove-intra", help="Percent of tokens merged within a clip.")
    ] = None,
    temporal: Annotated[
        bool, typer.Option("--temporal/--no-temporal", help="Join clips, or merge the same within each frame only.")
    ] = True,
    frames: Annotated[
        int | None, typer.Option("--frames", help="Frames of a video. (default: 12, or what --clips join)")
    ] = None,
    words: Annotated[int | None, typer.Option("--words", help="Longest caption in tokens. (default: 32)")] = None,
    tune: Annotated[str | None, typer.Option("--tune", help="lora, adapter, prompt or full. (default: lora)")] = None,
    size: Annotated[
        int | None, typer.Option("--size", help="LoRA's rank (8), an adapter's width (64), prompts per tower (8).")
    ] = None,
    batch: Annotated[int | None, typer.Option("--batch", help="Pairs per step. (default: 128, fewer of few)")] = None,
    micro_batch: Annotated[
        int | None, typer.Option("--micro-batch", help="Pairs per backward pass: memory, not the result.")
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="Times every pair is seen. (default: 5)")] = None,
    rate: Annotated[
        float | None, typer.Option("--lr", help="Peak learning rate. (default: 6e-4, full fine-tuning 1e-6)")
    ] = None,
    positions_rate: Annotated[
        float | None, typer.Option("--positions-rate", help="Of clip positions. (default: as --lr)")
    ] = None,
    together: Annotated[
        bool, typer.Option("--together", help="Rows 1 and 2, 3 and 4, ... of --annotations meet in the same batch.")
    ] = False,
    precision: Annotated[
        str | None, typer.Option("--precision", help="float32, or mixed: bfloat16 or float16. (default: float32)")
    ] = None,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Compute activations twice instead of keeping them.")
    ] = False,
    augment: Annotated[
        bool, typer.Option("--augment", help="RandAugment, as in the authors' code; their paper does not mention it.")
    ] = False,
    seed: Annotated[int | None, typer.Option("--seed", help="Order, split, first weights. (default: 42)")] = None,
    report_every: Annotated[
        int | None, typer.Option("--report-every", help="Steps between validations and checkpoints. (default: 150)")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Keep no decoded frames on disk; slower.")] = False,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Fine-tune a CLIP model for text-video retrieval with TempMe.

    Without --preset, --r and --clips frames are averaged. Several GPUs or processes:
    torchrun --nproc-per-node 4 -m everyframe.cli finetune ...
    """
    from everyframe.training import finetune as fit
    from everyframe.training import own_device

    check_writable(out)
    schedule = make_schedule(preset, r, clips, remove_cross, remove_intra) | ({} if temporal else {"temporal": False})
    failures: list[str] = []
    pairs = read_pairs(videos, annotations, layout, split, failures, together=together)
    others = None if validation is None else read_pairs(videos, validation, layout, validation_split, failures)
    first = os.environ.get("RANK", "0") == "0"
    if device in (None, "cuda"):
        device = own_device() or device
    base = load_model(model, device, "float32", threads)
    silent = quiet or as_json or not first
    with console.StepProgress(silent=silent) as progress:
        result = fit(
            base,
            pairs,
            out,
            validation=others,
            failures=failures,
            fresh=fresh,
            say=(lambda text: None) if silent else lambda text: console.say(text, error=True),
            step_done=progress.step,
            **given(
                schedule=schedule,
                frames=frames,
                words=words,
                tune=tune,
                size=size,
                batch=batch,
                micro_batch=micro_batch,
                epochs=epochs,
                rate=rate,
                positions_rate=positions_rate,
                together=together,
                precision=precision,
                checkpointing=checkpointing,
                augment=augment,
                seed=seed,
                report_every=report_every,
            ),
        )
    if first:
        _tell(result, out, as_json=as_json, quiet=quiet)


def _tell(result: FineTuned, out: Path, *, as_json: bool, quiet: bool) -> None:
    if as_json:
        facts = json.loads((out / "tempme.json").read_text(encoding="utf-8"))
        print(json.dumps({"folder": str(out), **facts, "failures": result.failures}, indent=2))
    elif not quiet:
        console.say(
            f"use it: everyframe encode VIDEOS --encoder tempme --model {out}, or in Python "
            f"everyframe.training.load_tempme({str(out)!r})"
        )
    if result.failures:
        for line in result.failures[:10]:
            console.say(f"left out: {line}", style="red", error=True)
        console.say(f"{len(result.failures)} could not be used: {out / 'failures.txt'}", style="red", error=True)
        raise typer.Exit(1)


def make_schedule(
    preset: str | None, r: int | None, clips: str | None, remove_cross: int | None, remove_intra: int | None
) -> dict[str, Any]:
    """Arguments of TempMe. Raises ValueError for options that contradict each other."""
    own = given(r=r, remove_cross=remove_cross, remove_intra=remove_intra)
    if clips is not None:
        own["clips"] = parse_clips(clips)
    if preset is not None:
        if own:
            name = next(iter(own)).replace("_", "-")
            raise ValueError(f"--preset says all of the schedule; leave out --{name}")
        from everyframe.encoders import TempMe

        return TempMe.preset(preset)
    if not own.get("clips") and {"remove_cross", "remove_intra"} & set(own):
        raise ValueError("--remove-cross and --remove-intra belong to --clips; say where clips are joined")
    return {"r": 0, "clips": {}, **own}


def parse_clips(text: str) -> dict[int, int]:
    """ "8:2,9:2,10:3" -> {8: 2, 9: 2, 10: 3}; "none" -> {}. Raises ValueError for anything else."""
    if text.strip() == "none":
        return {}
    try:
        entries = [(int(layer), int(count)) for layer, count in (part.split(":") for part in text.split(","))]
    except ValueError:
        entries = []
    if not entries or len(dict(entries)) < len(entries):
        raise ValueError(f"--clips must be layer:clips pairs with each layer once, such as 8:2,9:2,10:3, got {text!r}")
    return dict(entries)


def read_pairs(
    videos: Path, file: Path, layout: str | None, split: str, failures: list[str], *, together: bool = False
) -> list[Pair]:
    """The captioned videos of a file; what is not in the folder goes to `failures`, once per video.

    together: the first two belong together, and so on; with one that is not there its partner is left out too.

    An official retrieval file is recognised by its content; anything else must be a table of video and caption.
    """
    from everyframe.evaluation.annotations import guess_layout, read_retrieval
    from everyframe.evaluation.clips import VideoFolder
    from everyframe.evaluation.reading import AnnotationError, read_raw
    from everyframe.training import Pair
    from everyframe.training.pairs import whole_couples
    from everyframe.training.tables import read_table

    folder = VideoFolder(videos)
    rows: list[tuple[str, str, float | None, float | None]] = []
    if layout is None and file.suffix.lower() in (".csv", ".tsv", ".jsonl", ".parquet"):
        try:
            layout = guess_layout(read_raw(file))
        except AnnotationError:
            rows = [
                (video, text, low or None, high if high == high else None)
                for video, text, low, high in read_table(file)
            ]
    if not rows:
        found = read_retrieval(file, layout=layout, split=split)
        if together and found.skipped:  # what follows would meet the wrong partner
            raise ValueError(f"{found.skipped[0].why}; --together needs every text, as rows 1 and 2, ... are couples")
        failures += [each.why for each in found.skipped]
        rows = [
            (found.videos[number], text, None, found.end_seconds)
            for text, numbers in zip(found.texts, found.videos_of_text, strict=True)
            for number in numbers
        ]
    paths = {name: folder.find(name) for name in dict.fromkeys(row[0] for row in rows)}
    missing = [name for name, path in paths.items() if path is None]
    failures += [f"{name or 'a row without a video'}: is not in {videos}" for name in missing]
    pairs = [
        Pair(path, text, low, high) if (path := paths[name]) is not None else None for name, text, low, high in rows
    ]
    return whole_couples(pairs, failures.append) if together else [pair for pair in pairs if pair is not None]
