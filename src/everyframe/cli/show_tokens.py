"""everyframe show-tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everyframe import console
from everyframe.cli.app import app
from everyframe.cli.clips import (
    AnyPresetOption,
    CrossOption,
    FrameTokensOption,
    HeadsOption,
    IntraOption,
    JoinOption,
    SizeOption,
    TextHeadsOption,
    TokenizerOption,
    check_preset,
    is_tuned,
    make_frame_reader,
)
from everyframe.cli.encoder import (
    MERGING,
    Choice,
    GroupOption,
    PlanOption,
    ReduceOption,
    SelectOption,
    ToleranceOption,
    choose_encoder,
)
from everyframe.cli.options import (
    DEFAULT_MODEL,
    DeviceOption,
    DropOption,
    DtypeOption,
    EndOption,
    FpsOption,
    JsonOption,
    ModelOption,
    PartialOption,
    StartOption,
    ThreadsOption,
    check_writable,
    given,
    load_model,
    set_threads,
)

if TYPE_CHECKING:
    from everyframe.backbone import Model, VideoModel
    from everyframe.encoders import TempMe
    from everyframe.encoders.merging import ReducingEncoder

_KINDS = (*MERGING, "tempme", "residual", "reuse")


@app.command(name="show-tokens")
def show_tokens(
    video: Annotated[str, typer.Argument(help="A video, a folder of images, or an address.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for NAME-ENCODER.png.")] = Path("tokens"),
    encoder: Annotated[
        str,
        typer.Option(
            "--encoder",
            help="vidtldr or tome: what merges; tempme: also across frames; residual or reuse: what is computed.",
        ),
    ] = "vidtldr",
    model: ModelOption = None,
    video_model: Annotated[
        str | None,
        typer.Option("--video-model", help="Instead of --model: VideoMAE folder or hub id, UMT or ViFi-CLIP file."),
    ] = None,
    reduce: ReduceOption = None,
    preset: AnyPresetOption = None,
    r: FrameTokensOption = None,
    join: JoinOption = None,
    remove_cross: CrossOption = None,
    remove_intra: IntraOption = None,
    frames: Annotated[
        int | None,
        typer.Option(
            "--frames",
            help="Frames drawn; of a video model those of a clip. (default: 12; tempme: as many as it joins)",
        ),
    ] = None,
    fps: FpsOption = None,
    start: StartOption = None,
    end: EndOption = None,
    plan: PlanOption = None,
    tolerance: ToleranceOption = None,
    interleave: GroupOption = None,
    drop: DropOption = None,
    select: SelectOption = None,
    heads: HeadsOption = None,
    text_heads: TextHeadsOption = None,
    image_size: SizeOption = None,
    tokenizer: TokenizerOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    threads: ThreadsOption = None,
    keep_partial: PartialOption = False,
    as_json: JsonOption = False,
) -> None:
    """Draw what an encoder makes of the patches of a video: which merge and how much they count, or are computed.

    Without --reduce or --preset about half of the patches merge. tempme reads frames of the whole video, as in
    retrieval, and also takes a folder of everyframe finetune as --model.
    """
    from everyframe.extras import require
    from everyframe.pipeline import is_address

    require("matplotlib", extra="plot")  # before the work, not after it
    joining = given(r=r, clips=join, remove_cross=remove_cross, remove_intra=remove_intra)
    choice = _choose(
        encoder,
        joining,
        preset,
        reduce=reduce,
        plan=plan,
        tolerance=tolerance,
        interleave=interleave,
        drop=drop,
        select=select,
    )
    reading = given(heads=heads, text_heads=text_heads, image_size=image_size, tokenizer=tokenizer)
    _check_models(choice, model, video_model, preset, fps, reading)
    if not is_address(video) and not Path(video).exists():
        raise ValueError(f"{video}: no such file or folder")
    check_writable(out)
    from everyframe.token_pictures import draw_tokens

    reader: Any
    if choice.name == "tempme":
        reader = _joiner(model or DEFAULT_MODEL, preset, joining, device=device, dtype=dtype, threads=threads)
    else:
        if video_model is None:
            loaded: Model | VideoModel = load_model(model, device, dtype, threads)
        else:
            from everyframe.backbone import load_video

            set_threads(threads)
            loaded = load_video(video_model, **given(device=device, dtype=dtype, frames=frames), **reading)
        reader = _merger(choice, loaded, preset) if choice.name in MERGING else choice.make(loaded)  # type: ignore[arg-type]
    options = given(fps=fps, start=start, end=end, frames=frames if video_model is None else None)
    drawn = draw_tokens(video, reader, **options, keep_partial=keep_partial)
    file = out / f"{Path(video.rstrip('/')).stem or 'video'}-{choice.name}.png"
    drawn.write(file)
    if as_json:
        print(json.dumps({**drawn.facts, "files": [str(file)]}, indent=2, allow_nan=False))
        return
    console.say(f"{file}: {_sentence(drawn.facts)}")


def _choose(name: str, joining: dict[str, Any], preset: str | None, **options: Any) -> Choice:
    """As for encode, but merging has a usual schedule, and the residual token, which shows nowhere, is left out."""
    if name not in _KINDS:
        raise ValueError(f"--encoder must be one of {', '.join(_KINDS)}, got {name!r}")
    if name == "tempme":
        for option in given(**options):
            raise ValueError(
                f"--{option} has no meaning with --encoder tempme: --preset, or --r and --clips, say what merges"
            )
        return Choice(name=name, arguments={})
    for option in joining:
        raise ValueError(f"--{option.replace('_', '-')} has no meaning with --encoder {name}: only tempme joins frames")
    if preset is not None:
        if options["reduce"] is not None:
            raise ValueError("--reduce and --preset both say how many tokens go; give one of them")
        if name != "vidtldr":
            raise ValueError(f"--preset has no meaning with --encoder {name}: presets are schedules of vid-TLDR")
    if name in MERGING:
        usual = options["reduce"] is None
        chosen = choose_encoder(**{**options, "encoder": name, "reduce": "0" if usual else options["reduce"]})
        return Choice(name=name, arguments={}) if usual else chosen
    return choose_encoder(encoder=name, residual="none" if name == "residual" else None, **options)


def _check_models(
    choice: Choice,
    model: str | None,
    video_model: str | None,
    preset: str | None,
    fps: float | None,
    reading: dict[str, Any],
) -> None:
    if video_model is None:
        for option in reading:
            raise ValueError(f"--{option.replace('_', '-')} has no meaning without --video-model")
        if choice.name == "tempme":
            if fps is not None:
                raise ValueError("--fps has no meaning with --encoder tempme: its frames are spread over the video")
            return
        if preset is not None:
            raise ValueError(f"--preset {preset} is for a UMT model; name its file by --video-model, or use --reduce")
        return
    if model is not None:
        raise ValueError("--model and --video-model both name the model; give one of them")
    if choice.name not in MERGING:
        raise ValueError(
            f"--encoder {choice.name} has no meaning with --video-model: it reads frame by frame, with an image model "
            "(--model)"
        )
    if fps is not None:
        raise ValueError("--fps has no meaning with --video-model: a clip's frames are spread over the video")


def _merger(choice: Choice, model: Model | VideoModel, preset: str | None) -> ReducingEncoder:
    from everyframe.encoders import ToMe, VidTLDR
    from everyframe.token_pictures import usual_schedule

    counts: list[int | float] = [*usual_schedule(choice.name, model)]
    if preset is not None:
        counts = [*VidTLDR.preset(preset)]
        check_preset(preset, model)
    elif choice.arguments:
        counts = choice.arguments["reduce"].of(model.vision.config.depth)
    return (ToMe if choice.name == "tome" else VidTLDR)(model, counts)


def _joiner(model: str, preset: str | None, joining: dict[str, Any], **options: Any) -> TempMe:
    """TempMe as for retrieval, or with its usual schedule."""
    if preset is None and not joining and not is_tuned(model):
        from everyframe.encoders import TempMe
        from everyframe.token_pictures import usual_clips

        loaded = load_model(model, **options)
        return TempMe(loaded, **usual_clips(loaded))
    every = dict.fromkeys(("r", "clips", "remove_cross", "remove_intra", "reduce", "metric", "frames"))
    return make_frame_reader(model, method="tempme", preset=preset, **{**every, **joining}, **options).encoder


def _sentence(facts: dict[str, Any]) -> str:
    before, after, share = facts["tokens_before"], facts["tokens_after"], facts["share"]
    if "plan" in facts:
        return f"{after} of {before} patches computed ({share:.0%}), frames {facts['plan']}"
    if "frames" in facts:
        across = f"{facts['tokens_of_several_frames']} of several frames (at most {facts['most_frames_of_a_token']})"
        return f"{before} patches of {facts['frames']} frames become {after} tokens ({share:.0%}), {across}"
    gone = ", ".join(map(str, facts["removed"])) or "none"
    return f"{before} patches of a {facts['tokens_per']} become {after} tokens ({share:.0%}); in the blocks go {gone}"
