"""everyframe evaluate grounding: anybody's predictions, or a model's own answers, on the official annotations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everyframe import console
from everyframe.cli import clips
from everyframe.cli.encoded import CompareOption, check_compare, choices, encoded_videos
from everyframe.cli.evaluate import evaluate
from everyframe.cli.groups import option_groups
from everyframe.cli.options import (
    BatchOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    PartialOption,
    QuietOption,
    ThreadsOption,
    check_writable,
    given,
    load_model,
    model_of,
    set_threads,
)
from everyframe.cli.reading import FrameEncoding

if TYPE_CHECKING:
    from everyframe.evaluation.frame_features import EncodedVideos, StoredFeatures
    from everyframe.evaluation.grounding import Grounding
    from everyframe.evaluation.grounding_result import GroundingOutcome, PredictionScores
    from everyframe.evaluation.moment_files import MomentSet

_SHOWN = ("R1@0.3", "R1@0.5", "R1@0.7", "R5@0.3", "R5@0.5", "R5@0.7", "mIoU", "mAP", "HL-mAP", "HL-Hit1")


@evaluate.command()
@option_groups
def grounding(
    annotations: Annotated[
        Path, typer.Option("--annotations", help="Annotation file of the split, in any official layout.")
    ],
    predictions: Annotated[
        Path | None,
        typer.Option(
            "--predictions", help="Score this file: JSON lines with qid, pred_relevant_windows [[start, end, score]]."
        ),
    ] = None,
    videos: Annotated[
        Path | None, typer.Option("--videos", "--data", help="Encode the videos below this folder and ground in them.")
    ] = None,
    features: Annotated[
        Path | None, typer.Option("--features", help="Ground in the feature files below this folder.")
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset",
            help="charades, activitynet, qvhighlights, mad or tacos: the rate, the K of R@K, and what is published.",
        ),
    ] = None,
    layout: Annotated[
        str | None, typer.Option("--layout", help="Of the annotations; guessed by default: lines, charades, ...")
    ] = None,
    durations: Annotated[
        Path | None, typer.Option("--durations", help="Lengths of videos where the annotations have none: csv or json.")
    ] = None,
    clip_gt: Annotated[bool, typer.Option("--clip-gt", help="Cut true windows to the video; says how many.")] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Answers must be above an IoU, not at it, as in MAD's CLIP baseline.")
    ] = False,
    with_floors: Annotated[
        bool, typer.Option("--floors", help="With --predictions: also what answers score that look at nothing.")
    ] = False,
    method: Annotated[
        str | None, typer.Option("--method", help="How moments are found; see everyframe ground. (default: watershed)")
    ] = None,
    smooth: Annotated[float | None, typer.Option("--smooth", help="Moving average, seconds. (default: 5)")] = None,
    threshold: Annotated[
        float | None, typer.Option("--threshold", help="Level as a multiple of the mean. (default: 1)")
    ] = None,
    overlap: Annotated[
        float | None, typer.Option("--overlap", help="Largest IoU of two moments of a query. (default: 0.5)")
    ] = None,
    compare: CompareOption = False,
    model: ModelOption = None,
    fps: Annotated[
        float | None, typer.Option("--fps", help="Features per second. (default: 3; activitynet 1, mad 5)")
    ] = None,
    *,
    encoding: FrameEncoding,
    cache: Annotated[
        Path | None,
        typer.Option("--cache", help="Folder where feature files are kept, so that a killed run goes on."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for grounding.json, grounding.csv and the predictions.")
    ] = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    batch_size: BatchOption = None,
    threads: ThreadsOption = None,
    keep_partial: PartialOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """When does it happen? R@K, mIoU, mAP and highlights, zero-shot or of anybody's predictions.

    Give one of --predictions, --videos and --features. The K and the IoU of R@K follow --dataset.
    """
    chosen = encoding.asked
    finding = given(method=method, smooth=smooth, threshold=threshold, overlap=overlap)
    reading = chosen | given(dtype=dtype, batch_size=batch_size, cache=cache) | ({"compare": True} if compare else {})
    _check_source(predictions, videos, features, finding, reading, given(model=model, fps=fps), with_floors)
    if out is not None:
        check_writable(out)
    from everyframe.evaluation.moment_files import read_durations, read_moments
    from everyframe.evaluation.published_grounding import PROTOCOLS, Protocol

    clips.dataset_of(dataset, None, "grounding", list(PROTOCOLS))
    protocol = PROTOCOLS[dataset] if dataset is not None else Protocol()
    lengths = None if durations is None else read_durations(durations)
    items = read_moments(annotations, layout=layout, durations=lengths, clip_gt=clip_gt)
    if predictions is not None:
        from everyframe.evaluation.grounding import score_predictions
        from everyframe.evaluation.moment_predictions import read_predictions

        answers = read_predictions(predictions)
        scores = score_predictions(items, answers, tops=protocol.tops, strict=strict, with_floors=with_floors)
        _finish_scores(scores, items, out, as_json=as_json, quiet=quiet)
        return
    from everyframe.evaluation.grounding import Grounding, evaluate_grounding

    how = Grounding(tops=protocol.tops, strict=strict, clip_gt=clip_gt, **finding)
    sources: dict[str, EncodedVideos | StoredFeatures]
    if features is not None:
        sources = {"features": _stored(features, fps, model, device, threads)}
    else:
        rate = fps if fps is not None else protocol.fps
        place = cache if cache is not None else None if out is None else out / "features"
        wanted = choices(chosen, compare=compare)
        encoded = encoded_videos(
            load_model(model, device, dtype, threads), wanted, videos or Path(),
            fps=rate, cache=place, batch_size=batch_size, keep_partial=keep_partial,
        )  # fmt: skip
        sources = {**encoded}
    with clips.ClipProgress(silent=as_json or quiet) as progress:
        result = evaluate_grounding(items, sources, how=how, dataset=dataset, progress=progress)
    _finish(result, how, out, as_json=as_json, quiet=quiet)


def _check_source(
    predictions: Path | None,
    videos: Path | None,
    features: Path | None,
    finding: dict[str, Any],
    reading: dict[str, Any],
    of_model: dict[str, Any],
    with_floors: bool,
) -> None:
    """One source, and only options that have a meaning with it. Raises ValueError."""
    if sum(source is not None for source in (predictions, videos, features)) != 1:
        raise ValueError(
            "give one of --predictions (a file to score), --videos (a folder to encode) and --features (feature files)"
        )
    if predictions is not None:
        clips.check_none("--predictions, which are answers already", finding | reading | of_model)
    elif with_floors:
        raise ValueError("--floors belongs to --predictions; an evaluation of videos or features always has them")
    if features is not None:
        clips.check_none("--features, which are encoded already", reading)
    check_compare(reading)


def _stored(
    folder: Path, fps: float | None, model: str | None, device: str | None, threads: int | None
) -> StoredFeatures:
    """Feature files with the model that made them."""
    from everyframe.evaluation.frame_features import StoredFeatures
    from everyframe.tasks.retrieval import load_folder

    set_threads(threads)
    first = next(load_folder(folder, failures=[]), None)
    if first is None:
        raise ValueError(f"none of the feature files in {folder} can be read")
    return StoredFeatures(folder=folder, model=model_of(first, model, device), fps=fps)


def _finish_scores(scores: PredictionScores, items: MomentSet, out: Path | None, *, as_json: bool, quiet: bool) -> None:
    """Write and print; exit with 1 where something in the files could not be used."""
    text = json.dumps(scores.as_dict(), indent=1, allow_nan=False)
    if out is not None:
        from everyframe.feature_files import write_whole

        write_whole([(out / "grounding.json", f"{text}\n".encode())], out / "grounding.json")
    if as_json:
        print(text)
    elif not quiet:
        _say_split(scores.annotations)
        _show_scores(scores)
    found = scores.predictions
    if found["not_in_order_of_score"]:
        _warn(f"{found['not_in_order_of_score']} queries do not have their best score first; R@K takes the given order")
    lines = [str(fault) for fault in scores.faults]
    if scores.missed:
        some = ", ".join(scores.missed[:3]) + (", ..." if len(scores.missed) > 3 else "")
        lines.append(
            f"{found['path']}: {len(scores.missed)} of {len(items.queries)} queries have no prediction and count as "
            f"missed (qid {some})"
        )
    clips.say_problems(lines, "" if out is not None or as_json else "--json")


def _finish(result: GroundingOutcome, how: Grounding, out: Path | None, *, as_json: bool, quiet: bool) -> None:
    """Write and print; exit with 1 where videos or queries were left out."""
    written = [] if out is None else result.write(out)
    if as_json:
        print(json.dumps(result.as_dict(), indent=1, allow_nan=False))
    elif not quiet:
        _say_split(result.items.facts())
        _show(result, how)
        for file in written:
            console.say(f"wrote {file}")
    lines = [str(fault) for fault in result.items.faults]
    lines += [f"{failure.kind}: {failure.error}" for failure in result.failures]
    clips.say_problems(lines, "" if out is not None or as_json else "--json")


def _warn(text: str) -> None:
    console.say(f"warning: {text}", style="yellow", error=True)


def _say_split(facts: dict[str, Any]) -> None:
    """Which split the numbers are of."""
    line = f"{facts['split']}: {facts['queries']} queries, {facts['videos']} videos, sha256 {facts['sha256'][:12]}"
    if facts["windows_clipped"]:
        line += f"; {facts['windows_clipped']} windows cut to their video"
    if facts["windows_outside"]:
        line += f"; {facts['windows_outside']} windows reach beyond their video (--clip-gt cuts them)"
    console.say(line)


def _show_scores(scores: PredictionScores) -> None:
    metrics = scores.metrics
    columns = [f"IoU {iou}" for iou in ("0.1", "0.3", "0.5", "0.7")]

    def cells(source: dict[str, float], top: str) -> list[str]:
        return [f"{source[f'{top}@{column[4:]}']:.2f}" for column in columns]

    table = console.columns("", *columns, "mIoU")
    for top in (name.partition("@")[0] for name in metrics if name.endswith("@0.1")):
        table.add_row(top.replace("R", "R@"), *cells(metrics, top), f"{metrics['mIoU']:.2f}" if top == "R1" else "")
    if scores.floors:
        table.add_section()
    for name, floor in scores.floors.items():
        table.add_row(f"{name}, R@1", *cells(floor, "R1"), f"{floor['mIoU']:.2f}")
    console.show(table)
    table = console.columns("moments", "mAP", "mAP@0.5", "mAP@0.75", "R1@0.5", "R1@0.7")
    for name, prefix in (("all", ""), *((f"{each} windows", f"MR-{each}-") for each in ("short", "middle", "long"))):
        if f"{prefix}mAP" in metrics:
            row = [f"{metrics[prefix + key]:.2f}" for key in ("mAP", "mAP@0.5", "mAP@0.75", "R1@0.5", "R1@0.7")]
            table.add_row(name, *row)
    console.show(table)
    if "HL-mAP" in metrics:
        table = console.columns("highlights", "mAP", "Hit1")
        for name in ("Fair", "Good", "VeryGood"):
            row = [f"{metrics[f'HL-min-{name}-{key}']:.2f}" for key in ("mAP", "Hit1")]
            table.add_row(f"at least {name}", *row)
        console.show(table)


def _show(result: GroundingOutcome, how: Grounding) -> None:
    """The table ours / published / difference, the floors below it."""
    from everyframe.evaluation.published_grounding import COST

    if result.partial:
        console.say(
            f"partial: {len(result.failures)} of {result.wanted} videos are left out with "
            f"{result.queries_wanted - len(result.items.queries)} queries, so these are not the numbers of the split",
            style="yellow",
        )
    console.say("zero-shot, " + ", ".join(f"{name} {value}" for name, value in how.options.items()))
    table = console.columns("encoder", "metric", "ours", "published", "difference")
    table.columns[1].justify = "left"
    for row in result.rows:
        names = [name for name in (*_SHOWN, COST) if name in row.values]
        names += [name for name in row.published if name not in names]
        for place, name in enumerate(names):
            paper = row.published.get(name)
            cells = ["", ""] if paper is None else [f"{paper:.1f}", f"{row.difference[name]:+.1f}"]
            share = f" ({row.share_of_dense:.0%})" if name == COST and row.share_of_dense is not None else ""
            value = f"{row.values[name]:.4g}{share}" if name == COST else f"{row.values[name]:.2f}"
            table.add_row(row.encoder if place == 0 else "", name, value, *cells)
        table.add_section()
    for floor, metrics in result.floors.items():
        for place, name in enumerate(name for name in _SHOWN if name in metrics):
            table.add_row(floor if place == 0 else "", name, f"{metrics[name]:.2f}", "", "")
        table.add_section()
    console.show(table)
    if not any(row.published for row in result.rows):
        console.say("published: none for this dataset with a model of this size, encoder and rate")
