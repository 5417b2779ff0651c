"""everyframe encode."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everyframe import console
from everyframe.cli.app import app
from everyframe.cli.clip_encoder import ClipFramesOption, ClipOption, SchedulePresetOption, choose_clips
from everyframe.cli.clips import CrossOption, FrameTokensOption, IntraOption, JoinOption
from everyframe.cli.encoder import (
    MERGING,
    CalibrationOption,
    EncoderOption,
    FidelityOption,
    GroupOption,
    PlanOption,
    ReduceOption,
    SelectOption,
    TokenOption,
    ToleranceOption,
    TwoSidedOption,
    choose_encoder,
)
from everyframe.cli.options import (
    BatchOption,
    DeviceOption,
    DropOption,
    DtypeOption,
    EndOption,
    FpsOption,
    JsonOption,
    ModelOption,
    PartialOption,
    QuietOption,
    StartOption,
    ThreadsOption,
    check_format,
    check_writable,
    distinct,
    given,
    load_model,
    videos_of,
)

if TYPE_CHECKING:
    from everyframe.encoders import Encoder, TempMe
    from everyframe.pipeline import ClipSampling, Outcome
    from everyframe.video import VideoError


@app.command()
def encode(
    paths: Annotated[list[str], typer.Argument(help="Videos, folders, globs, or text files of paths.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the feature files.")] = Path("features"),
    format: Annotated[str | None, typer.Option("--format", help="npz, npy, h5 or parquet. (default: npz)")] = None,
    recipe: Annotated[
        bool,
        typer.Option("--recipe", help="Keep I-features and the plan only, in NAME.recipe.npz; see everyframe restore."),
    ] = False,
    store: Annotated[str, typer.Option("--store", help="float32 or float16 embeddings.")] = "float32",
    model: ModelOption = None,
    fps: FpsOption = None,
    encoder: EncoderOption = None,
    plan: PlanOption = None,
    tolerance: ToleranceOption = None,
    two_sided: TwoSidedOption = None,
    fidelity: FidelityOption = None,
    calibration: CalibrationOption = None,
    interleave: GroupOption = None,
    drop: DropOption = None,
    select: SelectOption = None,
    residual: TokenOption = None,
    reduce: ReduceOption = None,
    clip: ClipOption = None,
    frames: ClipFramesOption = None,
    preset: SchedulePresetOption = None,
    r: FrameTokensOption = None,
    clips: JoinOption = None,
    remove_cross: CrossOption = None,
    remove_intra: IntraOption = None,
    start: StartOption = None,
    end: EndOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    batch_size: BatchOption = None,
    threads: ThreadsOption = None,
    keep_partial: PartialOption = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try files again that could not be read in an earlier run.")
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Encode videos to feature files; what is already done with the same settings is skipped."""
    from everyframe.pipeline import JOURNAL, RECIPE_SUFFIX, Sampling, encode_videos, forecast, output_paths

    check_format(format or "npz")
    if recipe and format is not None:
        raise ValueError("--format has no meaning with --recipe: recipes are NAME.recipe.npz")
    if store not in ("float32", "float16"):
        raise ValueError(f"--store must be float32 or float16, got {store!r}")
    encoding = {
        "plan": plan,
        "tolerance": tolerance,
        "two_sided": two_sided,
        "fidelity": fidelity,
        "calibration": calibration,
        "interleave": interleave,
        "drop": drop,
        "select": select,
        "residual": residual,
        "reduce": reduce,
    }
    limits: dict[str, Any] = {"start": start, "end": end, "keep_partial": keep_partial}
    of_clips = choose_clips(
        encoder=encoder,
        clip=clip,
        frames=frames,
        schedule={
            "preset": preset,
            "r": r,
            "clips": clips,
            "remove_cross": remove_cross,
            "remove_intra": remove_intra,
        },
        limits=limits,
        others={**encoding, "fps": fps, "recipe": recipe},
    )
    sampling: Sampling | ClipSampling
    if of_clips is None:
        choice = choose_encoder(encoder=encoder, **encoding)
        if recipe and choice.name in MERGING:
            raise ValueError(
                f"--recipe has no meaning with --encoder {choice.name}: a recipe keeps the features of I-frames, which "
                "would be all of them"
            )
        sampling = Sampling(**given(fps=fps), **limits)
    missing: list[VideoError] = []
    roots = [(Path(path) if Path(path).is_dir() else None, videos_of(path, missing)) for path in paths]
    if not any(videos for _, videos in roots):
        raise missing[0]
    sources = output_paths(distinct(roots), out, RECIPE_SUFFIX if recipe else f".{format or 'npz'}")
    check_writable(out)
    reader: Encoder | TempMe
    if of_clips is None:
        reader = choice.make(load_model(model, device, dtype, threads), batch_size, fps=fps)
    else:
        reader, sampling = of_clips.make(model, device, dtype, threads, batch_size)
    silent = quiet or as_json
    expected = None if silent else forecast([source for source, _ in sources], reader, sampling)
    if expected is not None:
        console.show_forecast(expected)
    started = time.monotonic()
    outcomes = [_not_found(error) for error in missing]
    with console.BatchProgress(expected, silent=silent) as step:
        for outcome in outcomes:
            step.failed(outcome)
        for outcome in encode_videos(
            sources,
            reader,
            sampling=sampling,
            dtype=store,
            progress=step.frames,
            journal_file=out / JOURNAL,
            retry_failed=retry_failed,
            recipe=recipe,
        ):
            outcomes.append(outcome)
            step.finished(outcome)
    console.show_outcomes(outcomes, time.monotonic() - started, as_json=as_json, quiet=quiet)
    if any(outcome.status == "failed" for outcome in outcomes):
        raise typer.Exit(1)


def _not_found(error: VideoError) -> Outcome:
    from everyframe.pipeline import Outcome

    return Outcome(source=str(error).partition(": ")[0], output=None, status="failed", error=str(error))
