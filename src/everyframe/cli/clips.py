"""What the commands on clips share: options, the model with its way of reading, progress, the table of results."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everyframe import console
from everyframe.cli.encoder import parse_reduce
from everyframe.cli.options import check_writable, given, set_threads

if TYPE_CHECKING:
    from everyframe.encoders.merging import ReducingEncoder
    from everyframe.evaluation.outcome import Outcome

METHODS = ("vidtldr", "tome", "none")
_LISTED = 10

ModelOption = Annotated[
    str, typer.Option("--model", help="VideoMAE folder or hub id, or a weights file of UMT or ViFi-CLIP.")
]
HeadsOption = Annotated[int | None, typer.Option("--heads", help="Attention heads, where the file does not tell.")]
TextHeadsOption = Annotated[int | None, typer.Option("--text-heads", help="The same of the text side.")]
FramesOption = Annotated[int | None, typer.Option("--frames", help="Frames of a clip. (default: the model's)")]
SizeOption = Annotated[int | None, typer.Option("--image-size", help="Side of the model's picture.")]
TokenizerOption = Annotated[str | None, typer.Option("--tokenizer", help="Folder or hub id of the text tokenizer.")]
VideosOption = Annotated[Path, typer.Option("--videos", help="Folder that holds the videos, at any depth.")]
MethodOption = Annotated[
    str | None,
    typer.Option("--method", help="vidtldr, tome or none. (default: vidtldr with --reduce or --preset, else none)"),
]
ReduceOption = Annotated[
    str | None,
    typer.Option("--reduce", help="Tokens that go in each block: 600,200,100; twelve times 200, 200x12; 8 in all, 8x."),
]
PresetOption = Annotated[
    str | None, typer.Option("--preset", help="vid-TLDR's schedule for a task, such as umt-b/msrvtt-retrieval.")
]
MetricOption = Annotated[
    str | None,
    typer.Option("--metric", help="What ToMe compares: keys, or tokens as in vid-TLDR's tables. (default: keys)"),
]
CacheOption = Annotated[
    Path | None, typer.Option("--cache", help="Folder where what was computed is kept, so that a killed run goes on.")
]
OutOption = Annotated[Path | None, typer.Option("--out", help="JSON file for the result.")]


def make_reader(
    model: str,
    *,
    method: str | None,
    reduce: str | None,
    preset: str | None,
    metric: str | None,
    device: str | None,
    dtype: str | None,
    threads: int | None,
    heads: int | None,
    text_heads: int | None,
    frames: int | None,
    image_size: int | None,
    tokenizer: str | None,
) -> ReducingEncoder:
    """The model and how it reads clips. Raises ValueError for options that contradict each other."""
    if reduce is not None and preset is not None:
        raise ValueError("--reduce and --preset both say how many tokens go; give one of them")
    scheduled = reduce is not None or preset is not None
    name = method or ("vidtldr" if scheduled else "none")
    if name not in METHODS:
        raise ValueError(f"--method must be one of {', '.join(METHODS)}, got {name!r}")
    if name == "none" and scheduled:
        raise ValueError("--method none keeps every token; leave out --reduce and --preset")
    if name != "none" and not scheduled:
        raise ValueError(f"--method {name} needs --reduce, the tokens that go in each block, such as 600,200,100")
    if preset is not None and name != "vidtldr":
        raise ValueError("--preset is a schedule of vid-TLDR; give --reduce with --method tome")
    if metric is not None and name != "tome":
        raise ValueError("--metric belongs to --method tome")
    from everyframe.backbone import load_video
    from everyframe.encoders import ToMe, VidTLDR

    schedule = parse_reduce(reduce) if reduce is not None else None
    counts: list[int | float] = [] if preset is None else [*VidTLDR.preset(preset)]
    set_threads(threads)
    loaded = load_video(
        model,
        **given(
            device=device,
            dtype=dtype,
            heads=heads,
            text_heads=text_heads,
            frames=frames,
            image_size=image_size,
            tokenizer=tokenizer,
        ),
    )
    if schedule is not None:
        counts = schedule.of(len(loaded.vision.blocks))
    if name == "tome":
        options: dict[str, Any] = given(metric=metric)
        return ToMe(loaded, counts, **options)
    return VidTLDR(loaded, counts)


def dataset_of(dataset: str | None, preset: str | None, kind: str, known: list[str]) -> str | None:
    """The dataset that is evaluated: as named, else the one a preset is for. Raises ValueError."""
    if preset is not None:
        task = preset.partition("/")[2]
        if not task.endswith(f"-{kind}"):
            raise ValueError(f"--preset {preset} is no schedule for this task; its presets end with -{kind}")
        dataset = dataset or task.removesuffix(f"-{kind}")
    if dataset is not None and dataset not in known:
        raise ValueError(f"--dataset must be one of {', '.join(known)}, got {dataset!r}")
    return dataset


def check_out(out: Path | None) -> None:
    """Fail before an hour of work, not after it."""
    if out is None:
        return
    if out.is_dir():
        raise ValueError(f"--out must be a file such as result.json, but {out} is a folder")
    check_writable(out.parent)


class ClipProgress(console._Bar):
    """A progress bar over videos, then over what follows; shows nothing if `silent`."""

    def __init__(self, *, silent: bool) -> None:
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
        super().__init__(*columns, TimeRemainingColumn(), silent=silent)
        self._tasks: dict[str, Any] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        """`done` of `total` of one kind of work is done."""
        if self._progress is None:
            return
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total)
        self._progress.update(self._tasks[what], completed=done, total=total)


def finish(result: Outcome, out: Path | None, *, as_json: bool, quiet: bool) -> None:
    """Write and print a result; exit with 1 where videos were left out."""
    record = result.as_dict()
    if out is not None:
        part = out.with_name(f".{out.name}.part")
        part.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(part, out)
    if as_json:
        print(json.dumps(record, indent=1, allow_nan=False))
    elif not quiet:
        show(result)
    for failure in result.failures[:_LISTED]:
        console.say(f"everyframe: {failure.kind}: {failure.error}", style="red", error=True)
    if len(result.failures) > _LISTED:
        more = f"and {len(result.failures) - _LISTED} more" + ("" if out or as_json else "; --out lists them all")
        console.say(f"everyframe: {more}", style="red", error=True)
    if result.failures:
        raise typer.Exit(1)


def show(result: Outcome) -> None:
    """The table ours / published / difference."""
    from rich import box
    from rich.table import Table

    name = f"{result.dataset} {result.task}" if result.dataset else result.task
    console.say(f"{name}: {result.queries} queries, {result.videos} videos")
    if result.partial:
        console.say(
            f"partial: {len(result.failures)} of {result.wanted} videos are left out, so these are not the numbers of "
            "the split",
            style="yellow",
        )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("", "metric", "ours", "published", "difference"):
        table.add_column(column, justify="left" if column in ("", "metric") else "right")
    last = None
    for block, metric, ours, paper in result.rows():
        if last is not None and block != last:
            table.add_section()
        cells = ["", ""] if paper is None else [f"{paper:.1f}", f"{ours - paper:+.1f}"]
        own = f"{ours:.4g}" if metric == "GFLOPs" else f"{ours:.2f}"
        table.add_row(block if block != last else "", metric, own, *cells)
        last = block
    console.show(table)
    if not result.published():
        console.say("published: none for this task with a model of this size")
    without = result.details.get("questions_without_a_listed_answer")
    if without:
        console.say(f"{without} of {result.queries} questions have an answer that is not in the list")
