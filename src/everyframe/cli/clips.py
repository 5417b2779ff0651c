"""What the commands on clips share: options, the model with its way of reading, progress, the table of results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everyframe import console
from everyframe.cli.encoder import parse_reduce
from everyframe.cli.options import check_writable, given, set_threads

if TYPE_CHECKING:
    from everyframe.backbone import Model, VideoModel
    from everyframe.encoders import TempMe
    from everyframe.encoders.merging import ReducingEncoder
    from everyframe.evaluation.clips import Failure
    from everyframe.evaluation.frame_reader import FrameReader
    from everyframe.evaluation.outcome import Outcome

METHODS = ("vidtldr", "tome", "none")
FRAME_METHODS = ("mean", "tome", "tempme")
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
VideoOrImageModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        help="VideoMAE folder or hub id, a weights file of UMT or ViFi-CLIP; or a CLIP folder, hub id, or what "
        "everyframe finetune wrote.",
    ),
]
AnyMethodOption = Annotated[
    str | None,
    typer.Option(
        "--method",
        help="vidtldr, tome or none; of CLIP mean, tome or tempme. (default: what --reduce, --preset, --clips or a "
        "fine-tuned folder say, else none or mean)",
    ),
]
AnyPresetOption = Annotated[
    str | None,
    typer.Option("--preset", help="A paper's schedule: umt-b/msrvtt-retrieval (vid-TLDR), msrvtt-b32 (TempMe)."),
]
FrameTokensOption = Annotated[int | None, typer.Option("--r", help="TempMe: tokens merged in a frame, per block.")]
JoinOption = Annotated[
    str | None, typer.Option("--clips", help="TempMe: clips joined at a block (from 0): 8:2,9:2,10:3; none.")
]
CrossOption = Annotated[int | None, typer.Option("--remove-cross", help="TempMe: percent merged between clips.")]
IntraOption = Annotated[int | None, typer.Option("--remove-intra", help="TempMe: percent merged within a clip.")]
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
    if preset is not None:
        check_preset(preset, loaded)
    if schedule is not None:
        counts = schedule.of(len(loaded.vision.blocks))
    if name == "tome":
        options: dict[str, Any] = given(metric=metric)
        return ToMe(loaded, counts, **options)
    return VidTLDR(loaded, counts)


def check_preset(preset: str, model: Model | VideoModel) -> None:
    """Raise ValueError unless the preset is for a model of that size."""
    from everyframe.backbone import VIDEO_ARCHITECTURES

    name, config = preset.partition("/")[0], model.vision.config
    meant = VIDEO_ARCHITECTURES[name]
    patches = meant.frames * (meant.image_size // meant.patch_size) ** 2
    if (config.depth, config.width, model.vision.num_patches) != (meant.depth, meant.width, patches):
        raise ValueError(
            f"--preset {preset} is for {name} with {meant.frames} frames ({meant.depth} blocks of width {meant.width}, "
            f"{patches} tokens), but {model.name} has {config.depth} blocks of width {config.width} and "
            f"{model.vision.num_patches} tokens; use --reduce"
        )


def reads_frames(model: str) -> bool:
    """Whether a model reads single frames (everyframe.load) and not clips (load_video), by its config.json.

    A weights file is one of UMT or ViFi-CLIP. Raises ModelError where there is no such model.
    """
    from everyframe.backbone.hub import find_folder

    if Path(model).expanduser().is_file():
        return False
    folder = find_folder(model, config_only=True)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # a folder with TempMe's adapters; or nothing, which loading explains
        return (folder / "tempme.json").is_file()
    return not isinstance(config, dict) or config.get("model_type") != "videomae"


def is_tuned(model: str) -> bool:
    """Whether a model is a folder that everyframe finetune wrote."""
    return (Path(model).expanduser() / "tempme.json").is_file()


def check_none(kind: str, options: dict[str, Any]) -> None:
    """Raises ValueError where options are given that have no meaning with this kind of model."""
    if options:
        raise ValueError(f"--{next(iter(options)).replace('_', '-')} has no meaning with {kind}; leave it out")


def make_frame_reader(
    model: str,
    *,
    method: str | None,
    reduce: str | None,
    preset: str | None,
    metric: str | None,
    r: int | None,
    clips: str | None,
    remove_cross: int | None,
    remove_intra: int | None,
    frames: int | None,
    device: str | None,
    dtype: str | None,
    threads: int | None,
) -> FrameReader:
    """An image model and how it reads videos. Raises ValueError for options that contradict each other."""
    from everyframe.cli.finetune import make_schedule

    tuned = is_tuned(model)
    own = given(r=r, clips=clips, remove_cross=remove_cross, remove_intra=remove_intra)
    joins = preset is not None or bool(own)
    name = method or ("tempme" if joins or (tuned and reduce is None) else "mean" if reduce is None else "tome")
    if name not in FRAME_METHODS:
        raise ValueError(f"--method must be one of {', '.join(FRAME_METHODS)} for an image model, got {name!r}")
    if joins and name != "tempme":
        option = "--preset" if preset is not None else f"--{next(iter(own)).replace('_', '-')}"
        raise ValueError(f"{option} belongs to --method tempme of an image model; --reduce says what {name} merges")
    if (reduce is not None) != (name == "tome"):
        raise ValueError(
            "--method tome needs --reduce, the tokens that merge in each block, such as 2x12"
            if name == "tome"
            else f"--reduce belongs to --method tome of an image model, not to {name}"
        )
    if metric is not None and name != "tome":
        raise ValueError("--metric belongs to --method tome")
    if name == "tempme" and not joins and not tuned:
        raise ValueError("--method tempme needs --preset, or --clips, or a folder that everyframe finetune wrote")
    if joins and tuned:
        raise ValueError(f"{model} has its own schedule; leave out --preset, --r, --clips and --remove-...")
    from everyframe.evaluation.frame_reader import FRAMES, FrameReader

    set_threads(threads)
    encoder = _frame_encoder(
        model, name, tuned, reduce, given(metric=metric), device, dtype,
        make_schedule(preset, **{"r": None, "clips": None, "remove_cross": None, "remove_intra": None, **own}),
    )  # fmt: skip
    return FrameReader(encoder, frames=frames or (tuned_frames(model) if tuned else None) or FRAMES)


def tuned_frames(folder: str) -> int | None:
    """How many frames a fine-tuned model was fitted with; None where its facts do not tell."""
    try:
        facts = json.loads((Path(folder).expanduser() / "tempme.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # loading it says what is wrong
        return None
    frames = facts.get("recipe", {}).get("frames") if isinstance(facts, dict) else None
    return frames if isinstance(frames, int) else None


def load_tuned(folder: str, device: str | None, dtype: str | None) -> TempMe:
    """The encoder of a folder that everyframe finetune wrote. Raises ValueError for another dtype than its own."""
    from everyframe.training import load_tempme

    if dtype not in (None, "float32"):
        raise ValueError(f"--dtype {dtype} has no meaning with a fine-tuned folder, which is read in float32")
    return load_tempme(folder, device=device)


def _frame_encoder(
    model: str,
    name: str,
    tuned: bool,
    reduce: str | None,
    options: dict[str, Any],
    device: str | None,
    dtype: str | None,
    schedule: dict[str, Any],
) -> Any:
    from everyframe.backbone import load
    from everyframe.encoders import DenseEncoder, TempMe, ToMe

    if name == "tempme" and tuned:
        return load_tuned(model, device, dtype)
    loaded = load(model, **given(device=device, dtype=dtype))
    if name == "tempme":
        return TempMe(loaded, **schedule)
    if name == "tome":
        return ToMe(loaded, parse_reduce(reduce or "").of(len(loaded.vision.blocks)), **options)
    return DenseEncoder(loaded)


def dataset_of(dataset: str | None, preset: str | None, kind: str, known: list[str]) -> str | None:
    """The dataset that is evaluated: as named, else the one a preset is for. Raises ValueError."""
    if preset is not None:
        task = preset.partition("/")[2]
        if "/" not in preset and kind == "retrieval":  # TempMe's: msrvtt-b32
            task = f"{preset.rpartition('-')[0]}-{kind}"
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


class ClipProgress(console.Bar):
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
        from everyframe.feature_files import write_whole

        write_whole([(out, (json.dumps(record, indent=1, allow_nan=False) + "\n").encode())], out)
    if as_json:
        print(json.dumps(record, indent=1, allow_nan=False))
    elif not quiet:
        show(result)
    say_failures(result.failures, listed_elsewhere=out is not None or as_json)


def say_failures(failures: Sequence[Failure], *, listed_elsewhere: bool) -> None:
    """Name the videos that were left out, the first few of many; exit with 1 where there are any."""
    say_problems([f"{each.kind}: {each.error}" for each in failures], "" if listed_elsewhere else "--out")


def say_problems(lines: Sequence[str], option: str) -> None:
    """Print the first few of many in red, and which option lists them all ("": that was given); exit with 1 if any."""
    for line in lines[:_LISTED]:
        console.say(f"everyframe: {line}", style="red", error=True)
    if len(lines) > _LISTED:
        more = f"and {len(lines) - _LISTED} more" + (f"; {option} lists them all" if option else "")
        console.say(f"everyframe: {more}", style="red", error=True)
    if lines:
        raise typer.Exit(1)


def show(result: Outcome) -> None:
    """The table ours / published / difference."""

    name = f"{result.dataset} {result.task}" if result.dataset else result.task
    console.say(f"{name}: {result.queries} queries, {result.videos} videos")
    if result.partial:
        empty = sum(failure.kind == "no text" for failure in result.failures)
        left_out = [f"{len(result.failures) - empty} of {result.wanted} videos"] if len(result.failures) > empty else []
        left_out += [f"{empty} empty text{'s' if empty > 1 else ''}"] if empty else []
        verb = "is" if left_out == ["1 empty text"] else "are"
        console.say(
            f"partial: {' and '.join(left_out)} {verb} left out, so these are not the numbers of the split",
            style="yellow",
        )
    table = console.columns("", "metric", "ours", "published", "difference", left=["metric"])
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
        console.say("published: none for this task with a model of this size, its frames and what it merges")
    elif result.published_from:
        console.say(result.published_from)
    without = result.details.get("questions_without_a_listed_answer")
    if without:
        console.say(f"{without} of {result.queries} questions have an answer that is not in the list")
