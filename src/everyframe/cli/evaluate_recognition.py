"""everyframe evaluate recognition: classifiers over views of clips, and image models against class names."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everyframe import console
from everyframe.cli import clips
from everyframe.cli.encoded import COSTS, CompareOption, check_compare, choices, cost_cells, encoded_videos
from everyframe.cli.evaluate import evaluate
from everyframe.cli.groups import option_groups
from everyframe.cli.options import (
    BatchOption,
    DeviceOption,
    DtypeOption,
    FpsOption,
    JsonOption,
    PartialOption,
    QuietOption,
    ThreadsOption,
    given,
    load_model,
)
from everyframe.cli.reading import FrameEncoding

if TYPE_CHECKING:
    from everyframe.evaluation.frame_features import EncodedVideos, StoredFeatures
    from everyframe.evaluation.outcome import Outcome
    from everyframe.evaluation.zero_shot import ZeroShot

_USUAL_TEMPLATES = {"kinetics400": "kinetics", "ucf101": "ucf101"}


@dataclass(frozen=True, kw_only=True)
class _Encoding(FrameEncoding):
    """reduce: of a classifier of clips too."""

    reduce: clips.ReduceOption = None


@evaluate.command()
@option_groups
def recognition(
    model: Annotated[
        str,
        typer.Option("--model", help="VideoMAE folder or hub id (a classifier); or a CLIP or SigLIP, by class names."),
    ],
    annotations: Annotated[Path, typer.Option("--annotations", help="Annotation file of the split.")],
    videos: Annotated[Path | None, typer.Option("--videos", help="Folder that holds the videos, at any depth.")] = None,
    features: Annotated[
        Path | None, typer.Option("--features", help="Instead of --videos: feature files that --model made before.")
    ] = None,
    classes: Annotated[
        Path | None, typer.Option("--classes", help="Class file: classInd.txt, labels.json, or a table id,name.")
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset", help="ucf101 or ssv2: VideoMAE's views (default: ucf101); kinetics400 or ucf101: templates."
        ),
    ] = None,
    split: Annotated[str | None, typer.Option("--split", help="Rows of a Kinetics table. (default: all)")] = None,
    templates: Annotated[
        str | None,
        typer.Option(
            "--templates",
            help="Sentences around a class name: kinetics, ucf101, photo, name, or a file, one a line with {}. "
            "(default: the dataset's, else kinetics)",
        ),
    ] = None,
    compare: CompareOption = False,
    fps: FpsOption = None,
    *,
    encoding: _Encoding,
    views: Annotated[
        int | None, typer.Option("--views", help="VideoMAE: clips over time. (default: 5, ssv2 2)")
    ] = None,
    crops: Annotated[int | None, typer.Option("--crops", help="VideoMAE: squares side by side. (default: 3)")] = None,
    method: clips.MethodOption = None,
    metric: clips.MetricOption = None,
    frames: clips.FramesOption = None,
    cache: clips.CacheOption = None,
    out: clips.OutOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    batch_size: BatchOption = None,
    threads: ThreadsOption = None,
    keep_partial: PartialOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Action recognition: a VideoMAE classifier over views, or zero-shot with an image model and any frame encoder."""
    of_clips = given(views=views, crops=crops, method=method, metric=metric, frames=frames)
    of_frames = given(
        features=features, split=split, templates=templates, compare=compare or None, fps=fps, batch_size=batch_size
    )
    clips.check_out(out)
    loading = {"device": device, "dtype": dtype, "threads": threads}
    shared = {"cache": cache, "keep_partial": keep_partial}
    silent = as_json or quiet
    if clips.reads_frames(model):
        clips.check_none("an image model, which reads single frames (--encoder says how)", of_clips)
        if out is not None and out.suffix.lower() == ".csv":
            raise ValueError(f"--out must be a JSON file, whose table is written beside it as a CSV file, got {out}")
        chosen = encoding.asked
        _check_sources(videos, features, compare, chosen | given(fps=fps, batch_size=batch_size, cache=cache))
        found = _zero_shot(model, annotations, videos, classes, dataset, of_frames, chosen, loading, shared, silent)
        _finish(found, out, as_json=as_json, quiet=quiet)
        return
    of_encoder = {name: value for name, value in encoding.asked.items() if name != "reduce"}
    clips.check_none("a video model, which reads clips", of_frames | of_encoder)
    if videos is None:
        raise ValueError("--videos is needed: the folder that holds the videos")
    reduce = encoding.reduce
    result = _classified(model, annotations, videos, classes, dataset, of_clips, reduce, loading, shared, silent)
    clips.finish(result, out, as_json=as_json, quiet=quiet)


def _classified(
    model: str,
    annotations: Path,
    videos: Path,
    classes: Path | None,
    dataset: str | None,
    of_clips: dict[str, Any],
    reduce: str | None,
    loading: dict[str, Any],
    shared: dict[str, Any],
    silent: bool,
) -> Outcome:
    """With a classifier, its probabilities averaged over views."""
    from everyframe.evaluation.action_files import read_actions
    from everyframe.evaluation.published import tasks_of

    dataset = clips.dataset_of(dataset, None, "recognition", tasks_of("recognition"))
    items = read_actions(annotations, classes=classes)
    usual = dict.fromkeys(("method", "metric", "frames", "preset", "heads", "text_heads", "image_size", "tokenizer"))
    asked = {name: value for name, value in of_clips.items() if name in usual}
    reader = clips.make_reader(model, **{**usual, **asked}, reduce=reduce, **loading)
    from everyframe.evaluation.recognition import SAMPLINGS, evaluate_recognition

    views = {name: value for name, value in of_clips.items() if name in ("views", "crops")}
    sampling = dataclasses.replace(SAMPLINGS[dataset or "ucf101"], **views)
    with clips.ClipProgress(silent=silent) as progress:
        return evaluate_recognition(
            reader, items, videos, sampling=sampling, dataset=dataset, progress=progress, **shared
        )


def _check_sources(videos: Path | None, features: Path | None, compare: bool, encoding: dict[str, Any]) -> None:
    if (videos is None) == (features is None):
        raise ValueError("give either --videos, a folder of videos, or --features, a folder of feature files")
    if features is not None:
        clips.check_none("--features, which are encoded already", encoding | given(compare=compare or None))
    check_compare(encoding | given(compare=compare or None))


def _zero_shot(
    model: str,
    annotations: Path,
    videos: Path | None,
    classes: Path | None,
    dataset: str | None,
    of_frames: dict[str, Any],
    of_encoder: dict[str, Any],
    loading: dict[str, Any],
    shared: dict[str, Any],
    silent: bool,
) -> ZeroShot:
    """With an image model, against class names."""
    from everyframe.evaluation.action_files import read_actions
    from everyframe.evaluation.class_prompts import read_templates

    dataset = clips.dataset_of(dataset, None, "recognition", list(_USUAL_TEMPLATES))
    sentences = read_templates(of_frames.get("templates") or _USUAL_TEMPLATES.get(dataset or "", "kinetics"))
    items = read_actions(annotations, classes=classes, split=of_frames.get("split"))
    wanted = [] if videos is None else choices(of_encoder, compare="compare" in of_frames)
    loaded = load_model(model, **loading)
    from everyframe.evaluation.frame_features import StoredFeatures
    from everyframe.evaluation.zero_shot import evaluate_zero_shot

    sources: dict[str, EncodedVideos | StoredFeatures]
    if videos is None:
        sources = {"features": StoredFeatures(folder=of_frames["features"], model=loaded)}
    else:
        rate, batch_size = of_frames.get("fps"), of_frames.get("batch_size")
        sources = {**encoded_videos(loaded, wanted, videos, fps=rate, batch_size=batch_size, **shared)}
    with clips.ClipProgress(silent=silent) as progress:
        return evaluate_zero_shot(loaded, sources, items, templates=sentences, dataset=dataset, progress=progress)


def _finish(result: ZeroShot, out: Path | None, *, as_json: bool, quiet: bool) -> None:
    """Write (JSON, and CSV beside it) and print; exit with 1 where videos were left out."""
    text = json.dumps(result.as_dict(), indent=1, allow_nan=False)
    if out is not None:
        from everyframe.evaluation.writing import csv_bytes
        from everyframe.feature_files import write_whole

        write_whole([(out.with_suffix(".csv"), csv_bytes(result.as_table())), (out, f"{text}\n".encode())], out)
    if as_json:
        print(text)
    elif not quiet:
        _show(result)
    clips.say_failures(result.failures, listed_elsewhere=out is not None or as_json)


def _show(result: ZeroShot) -> None:

    name = f"{result.dataset} recognition" if result.dataset else "recognition"
    console.say(f"{name}, zero-shot: {result.classes} classes, {len(result.templates)} templates")
    if result.failures:
        console.say(
            f"partial: {len(result.failures)} of {result.wanted} videos are left out, so these are not the numbers of "
            "the split",
            style="yellow",
        )
    table = console.columns("encoder", "videos", "top-1", "top-5", *COSTS)
    for row in result.rows:
        cost = {"gflops_per_second": row.gflops_per_second, "gflops_share": row.gflops_share}
        table.add_row(row.encoder, str(row.videos), f"{row.top1:.2f}", f"{row.top5:.2f}", *cost_cells(cost))
    console.show(table)
    console.say("published: none is recorded for zero-shot recognition with frame features")
