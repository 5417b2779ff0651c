"""everyframe evaluate retrieval | questions | base-to-novel: vid-TLDR's tasks on official annotations."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from everyframe.cli import clips
from everyframe.cli.evaluate import evaluate
from everyframe.cli.options import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    PartialOption,
    QuietOption,
    ThreadsOption,
    given,
)

AnnotationsOption = Annotated[Path, typer.Option("--annotations", help="Annotation file of the split.")]


@evaluate.command()
def retrieval(
    model: clips.VideoOrImageModelOption,
    annotations: AnnotationsOption,
    videos: clips.VideosOption,
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", help="Sets text length, frames and cut, and what is published: msrvtt, didemo, ..."),
    ] = None,
    layout: Annotated[str | None, typer.Option("--layout", help="Of the file; guessed by default.")] = None,
    split: Annotated[str, typer.Option("--split", help="Of a file that holds several; all.")] = "test",
    only: Annotated[
        Path | None, typer.Option("--only", help="List of the split's videos, one a line or in video_id.")
    ] = None,
    paragraph: Annotated[
        bool | None, typer.Option("--paragraph/--no-paragraph", help="Join all texts of a video.")
    ] = None,
    seconds: Annotated[float | None, typer.Option("--seconds", help="Only the first seconds of a video count.")] = None,
    rerank: Annotated[
        int | None,
        typer.Option("--rerank", help="Candidates for the cross-encoder, 0 for none. (default: 128, or 0)"),
    ] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", help="Of a text. (default: the dataset's)")] = None,
    method: clips.AnyMethodOption = None,
    reduce: clips.ReduceOption = None,
    preset: clips.AnyPresetOption = None,
    r: clips.FrameTokensOption = None,
    join: clips.JoinOption = None,
    remove_cross: clips.CrossOption = None,
    remove_intra: clips.IntraOption = None,
    metric: clips.MetricOption = None,
    heads: clips.HeadsOption = None,
    text_heads: clips.TextHeadsOption = None,
    frames: clips.FramesOption = None,
    image_size: clips.SizeOption = None,
    tokenizer: clips.TokenizerOption = None,
    cache: clips.CacheOption = None,
    out: clips.OutOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    threads: ThreadsOption = None,
    keep_partial: PartialOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Video-text retrieval: dual encoder, and UMT's cross-encoder on its best candidates.

    A CLIP model reads --frames frames: their mean (default), ToMe within each, or TempMe over all of them.
    """
    from everyframe.evaluation.annotations import BENCHMARKS, read_retrieval

    dataset = clips.dataset_of(dataset, preset, "retrieval", list(BENCHMARKS))
    usual = BENCHMARKS.get(dataset or "")
    clips.check_out(out)
    if paragraph is None:
        paragraph = usual is not None and usual.paragraph
    items = read_retrieval(annotations, layout=layout, split=split, paragraph=paragraph, only=only)
    end = seconds if seconds is not None else usual.end_seconds if usual is not None else None
    if end is not None:
        items = dataclasses.replace(items, end_seconds=end)
    options: dict[str, Any] = {
        "method": method, "reduce": reduce, "preset": preset, "metric": metric, "device": device, "dtype": dtype,
        "threads": threads,
    }  # fmt: skip
    of_tempme = given(r=r, clips=join, remove_cross=remove_cross, remove_intra=remove_intra)
    of_video = given(heads=heads, text_heads=text_heads, image_size=image_size, tokenizer=tokenizer)
    reader: Any
    if clips.reads_frames(model):
        clips.check_none("a CLIP model", of_video)
        frames = frames or (usual.frames if usual is not None and not clips.is_tuned(model) else None)
        every = dict.fromkeys(("r", "clips", "remove_cross", "remove_intra"))
        reader = clips.make_frame_reader(model, frames=frames, **options, **{**every, **of_tempme})
        words = None if usual is None else usual.words
    else:
        clips.check_none("a video model", of_tempme)
        every = dict.fromkeys(("heads", "text_heads", "image_size", "tokenizer"))
        reader = clips.make_reader(model, frames=frames, **options, **{**every, **of_video})
        words = None if usual is None else usual.max_tokens
    if max_tokens is None and reader.model.family in ("umt", "clip"):
        max_tokens = words
    from everyframe.evaluation.retrieval import evaluate_retrieval

    with clips.ClipProgress(silent=as_json or quiet) as progress:
        result = evaluate_retrieval(
            reader, items, videos, dataset=dataset, cache=cache, keep_partial=keep_partial, progress=progress,
            **given(rerank=rerank, max_tokens=max_tokens),
        )  # fmt: skip
    clips.finish(result, out, as_json=as_json, quiet=quiet)


@evaluate.command()
def questions(
    model: clips.ModelOption,
    annotations: AnnotationsOption,
    videos: clips.VideosOption,
    answers: Annotated[
        Path | None, typer.Option("--answers", help="List of answers, or the training questions to take them from.")
    ] = None,
    top_answers: Annotated[
        int | None, typer.Option("--top-answers", help="Most frequent answers of training questions. (default: 1500)")
    ] = None,
    top: Annotated[int | None, typer.Option("--top", help="Answers that are scored in full. (default: 128)")] = None,
    names: Annotated[Path | None, typer.Option("--names", help="MSVD's youtube_mapping.txt.")] = None,
    dataset: Annotated[str | None, typer.Option("--dataset", help="msrvtt or msvd: what is published.")] = None,
    method: clips.MethodOption = None,
    reduce: clips.ReduceOption = None,
    preset: clips.PresetOption = None,
    metric: clips.MetricOption = None,
    heads: clips.HeadsOption = None,
    text_heads: clips.TextHeadsOption = None,
    frames: clips.FramesOption = None,
    image_size: clips.SizeOption = None,
    tokenizer: clips.TokenizerOption = None,
    cache: clips.CacheOption = None,
    out: clips.OutOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    threads: ThreadsOption = None,
    keep_partial: PartialOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Open-ended video question answering: UMT's decoder chooses from a list of answers."""
    from everyframe.evaluation.published import tasks_of
    from everyframe.evaluation.question_files import read_answers, read_questions

    dataset = clips.dataset_of(dataset, preset, "qa", tasks_of("qa"))
    clips.check_out(out)
    choices = read_answers(answers, most_frequent=top_answers)
    items = read_questions(annotations, names=names)
    reader = clips.make_reader(
        model, method=method, reduce=reduce, preset=preset, metric=metric, device=device, dtype=dtype, threads=threads,
        heads=heads, text_heads=text_heads, frames=frames, image_size=image_size, tokenizer=tokenizer,
    )  # fmt: skip
    from everyframe.evaluation.questions import evaluate_questions

    with clips.ClipProgress(silent=as_json or quiet) as progress:
        result = evaluate_questions(
            reader, items, choices, videos, dataset=dataset, cache=cache, keep_partial=keep_partial, progress=progress,
            **given(top=top),
        )  # fmt: skip
    clips.finish(result, out, as_json=as_json, quiet=quiet)


@evaluate.command("base-to-novel")
def base_to_novel(
    model: clips.ModelOption,
    base: Annotated[Path, typer.Option("--base", help="Split of the base classes, such as base_val.txt.")],
    base_classes: Annotated[Path, typer.Option("--base-classes", help="Their names, such as ucf_101_base_labels.csv.")],
    novel: Annotated[Path, typer.Option("--novel", help="Split of the novel classes, such as novel_val.txt.")],
    novel_classes: Annotated[Path, typer.Option("--novel-classes", help="Their names.")],
    videos: clips.VideosOption,
    dataset: Annotated[str | None, typer.Option("--dataset", help="ucf101: what is published.")] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help='Text around a class name. (default: "a photo of a {}.")')
    ] = None,
    method: clips.MethodOption = None,
    reduce: clips.ReduceOption = None,
    metric: clips.MetricOption = None,
    heads: clips.HeadsOption = None,
    text_heads: clips.TextHeadsOption = None,
    frames: clips.FramesOption = None,
    tokenizer: clips.TokenizerOption = None,
    cache: clips.CacheOption = None,
    out: clips.OutOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    threads: ThreadsOption = None,
    keep_partial: PartialOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Base and novel classes by their names: ViFi-CLIP's base-to-novel generalisation."""
    from everyframe.evaluation.action_files import read_actions
    from everyframe.evaluation.published import tasks_of

    dataset = clips.dataset_of(dataset, None, "base-to-novel", tasks_of("base-to-novel"))
    clips.check_out(out)
    splits = read_actions(base, classes=base_classes), read_actions(novel, classes=novel_classes)
    reader = clips.make_reader(
        model, method=method, reduce=reduce, preset=None, metric=metric, device=device, dtype=dtype, threads=threads,
        heads=heads, text_heads=text_heads, frames=frames, image_size=None, tokenizer=tokenizer,
    )  # fmt: skip
    from everyframe.evaluation.recognition import evaluate_base_to_novel

    with clips.ClipProgress(silent=as_json or quiet) as progress:
        result = evaluate_base_to_novel(
            reader, *splits, videos, dataset=dataset, cache=cache, keep_partial=keep_partial, progress=progress,
            **given(prompt=prompt),
        )  # fmt: skip
    clips.finish(result, out, as_json=as_json, quiet=quiet)
