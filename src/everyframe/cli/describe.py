"""everyframe describe."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from everyframe import console
from everyframe.cli.app import app
from everyframe.cli.clip_encoder import parse_clip
from everyframe.cli.encoder import EncoderOption, choose_encoder
from everyframe.cli.evaluate_description import BeamOption
from everyframe.cli.options import DeviceOption, JsonOption, ModelOption, PartialOption, given, load_model

if TYPE_CHECKING:
    from everyframe.features import VideoFeatures
    from everyframe.tasks.describer import Describer
    from everyframe.tasks.description import Description

_SECONDS = "5s"


@app.command()
def describe(
    source: Annotated[str, typer.Argument(help="A video, or its feature file.")],
    checkpoint: Annotated[
        Path, typer.Option("--checkpoint", help="Folder describer/ that everyframe evaluate description --out wrote.")
    ],
    clip: Annotated[
        str | None, typer.Option("--clip", help=f"Describe every so many seconds. (default: {_SECONDS})")
    ] = None,
    annotations: Annotated[
        Path | None,
        typer.Option(
            "--annotations", help="Describe the spans this file has of the video instead; its words are unread."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Also write .jsonl, .vtt (WebVTT) or .srt (SubRip).")
    ] = None,
    beam: BeamOption = 5,
    model: ModelOption = None,
    encoder: EncoderOption = None,
    fps: Annotated[
        float | None, typer.Option("--fps", help="Features per second. (default: those of the training)")
    ] = None,
    device: DeviceOption = None,
    keep_partial: PartialOption = False,
    as_json: JsonOption = False,
) -> None:
    """Say what is to be seen in a video, clip by clip, with a describer trained by everyframe evaluate description."""
    from everyframe.cli.options import check_writable
    from everyframe.features import SUFFIXES, VideoFeatures
    from everyframe.tasks.describer import load_describer
    from everyframe.tasks.description import check_suffix, cut, write_descriptions

    if clip is not None and annotations is not None:
        raise ValueError("--clip and --annotations both say which spans to describe; give one of them")
    seconds = parse_clip(clip or _SECONDS)
    if out is not None:
        check_suffix(out)
        check_writable(out.parent)
    describer = load_describer(checkpoint, device=device)
    if Path(source).suffix.lower() in SUFFIXES:
        if given(model=model, encoder=encoder, fps=fps) or keep_partial:
            raise ValueError(f"{source} is encoded already: options of encoding have no meaning with a feature file")
        feats = VideoFeatures.load(source)
    else:
        feats = _encode(source, describer, model, encoder, fps, device, keep_partial)
    left_out: list[str] = []
    spans = cut(feats, seconds) if annotations is None else _spans(annotations, source, feats, left_out)
    found = describer.describe(feats, spans, beam=beam)
    if out is not None:
        write_descriptions(out, found)
    _show(found, source, as_json=as_json)
    for line in left_out:
        console.say(f"everyframe: left out: {line}", style="red", error=True)
    if left_out:
        raise typer.Exit(1)


def _encode(
    source: str,
    describer: Describer,
    model: str | None,
    encoder: str | None,
    fps: float | None,
    device: str | None,
    keep_partial: bool,
) -> VideoFeatures:
    from everyframe.pipeline import encode_video

    choice = choose_encoder(encoder=encoder)
    space = describer.space or {}
    known = space.get("model id")
    fps = space.get("fps") if fps is None else fps  # as it was trained, where nothing is said
    if model is None and not isinstance(known, str):
        raise ValueError("the describer does not say which model its features came from; pass --model")
    reader = choice.make(load_model(model or known, device, None, None), fps=fps)
    return encode_video(source, reader, **given(fps=fps), keep_partial=keep_partial)


def _spans(annotations: Path, source: str, feats: VideoFeatures, left_out: list[str]) -> list[tuple[float, float]]:
    """The spans that a file has of one video; those that lie outside it go to `left_out`."""
    from everyframe.evaluation.description_files import read_narrations
    from everyframe.evaluation.reading import AnnotationError, spellings, stem
    from everyframe.tasks.description import Narrated, usable

    narrations = read_narrations(annotations)
    name = Path(str(feats.video.get("path", source))).stem
    known = {stem(os.path.basename(video)): own for video, own in narrations.by_video.items()}
    found = next(filter(None, map(known.get, spellings(name))), None)
    if found is None:
        some = ", ".join(list(narrations.by_video)[:3])
        raise AnnotationError(f"{annotations} says nothing of {name}; it has {some}, ...")
    kept, outside = usable([Narrated(video=name, features=feats, descriptions=found)])
    left_out += outside
    spans = [(each.start, each.end) for item in kept for each in item.descriptions]
    return sorted(dict.fromkeys(spans))


def _show(found: list[Description], source: str, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps([asdict(each) for each in found], indent=2, ensure_ascii=False))
        return
    if not found:
        console.say(f"{source} shows nothing that could be described")
    for each in found:
        console.say(f"{console.clock(each.start)} to {console.clock(each.end)}  {each.text}")
