"""everyframe search, everyframe ground."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from everyframe import console
from everyframe.cli.app import app
from everyframe.cli.encoder import (
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
    DeviceOption,
    DropOption,
    DtypeOption,
    FpsOption,
    JsonOption,
    ModelOption,
    PartialOption,
    check_query,
    given,
    load_model,
    model_of,
)


@app.command()
def search(
    folder: Annotated[Path, typer.Argument(help="Folder of feature files, or one feature file.")],
    query: Annotated[str, typer.Argument(help="What to look for.")],
    level: Annotated[
        str,
        typer.Option("--level", help="moment, clip (of --encoder tempme) or video: what a hit is."),
    ] = "moment",
    top: Annotated[int, typer.Option("--top", help="Hits to show.")] = 10,
    model: ModelOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the best moments, clips or videos for a text, over all videos of a folder of features."""
    from everyframe.features import FeaturesError, VideoFeatures
    from everyframe.tasks.retrieval import LEVELS, load_folder
    from everyframe.tasks.retrieval import search as search_features

    check_query(query)
    chosen = next((each for each in LEVELS if each == level), None)
    if chosen is None:
        raise ValueError(f"--level must be one of {', '.join(LEVELS)}, got {level!r}")
    failures: list[tuple[Path, FeaturesError]] = []
    videos = iter([VideoFeatures.load(folder)]) if folder.is_file() else load_folder(folder, failures=failures)
    first = next(videos, None)
    if first is None:
        raise FeaturesError(f"none of the feature files in {folder} can be read: {failures[0][1]}")
    vector = model_of(first, model, device).encode_text([query])[0]

    def all_videos() -> Iterator[VideoFeatures]:
        yield first
        yield from videos

    hits = search_features(all_videos(), vector, level=chosen, top=top)
    rows = [{"video": hit.video, "start": hit.start, "end": hit.end, "score": round(hit.score, 4)} for hit in hits]
    console.show_moments(rows, f'"{query}"', as_json)
    for _, error in failures:
        console.say(f"everyframe: {error}", style="red", error=True)
    if failures:
        raise typer.Exit(1)


@app.command()
def ground(
    source: Annotated[str, typer.Argument(help="A video, or its feature file.")],
    query: Annotated[str, typer.Argument(help="The sentence to find.")],
    top: Annotated[int, typer.Option("--top", help="Moments to show.")] = 5,
    smooth: Annotated[float | None, typer.Option("--smooth", help="Moving average, seconds. (default: 5)")] = None,
    threshold: Annotated[
        float | None, typer.Option("--threshold", help="Level as a multiple of the mean. (default: 1)")
    ] = None,
    overlap: Annotated[
        float | None, typer.Option("--overlap", help="Largest IoU of two moments; 0 keeps them apart. (default: 0.5)")
    ] = None,
    method: Annotated[
        str | None, typer.Option("--method", help="watershed, half-height, contrast or whole. (default: watershed)")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw curve, moments and thumbnails to this .png/.svg/.pdf.")
    ] = None,
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
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    keep_partial: PartialOption = False,
    as_json: JsonOption = False,
) -> None:
    """Find when a sentence happens in one video."""
    from everyframe.extras import require
    from everyframe.features import SUFFIXES, VideoFeatures
    from everyframe.pipeline import encode_video
    from everyframe.tasks.grounding import ground as ground_features

    check_query(query)
    if plot is not None:
        require("matplotlib", extra="plot")  # before the work, not after it
        if plot.suffix.lower() not in (".png", ".svg", ".pdf"):
            raise ValueError(f"--plot must end in .png, .svg or .pdf, got {plot}")
    encoding: dict[str, Any] = {
        "encoder": encoder,
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
    if Path(source).suffix.lower() in SUFFIXES:
        if given(**encoding, fps=fps) or dtype is not None or keep_partial:
            raise ValueError(f"{source} is encoded already: options of encoding have no meaning with a feature file")
        feats = VideoFeatures.load(source)
        text_model = model_of(feats, model, device)
    else:
        choice = choose_encoder(**encoding)
        text_model = load_model(model, device, dtype, None)
        reader = choice.make(text_model, fps=fps)
        feats = encode_video(source, reader, **given(fps=fps), keep_partial=keep_partial)
    vector = text_model.encode_text([query])[0]
    options: dict[str, Any] = given(smooth=smooth, threshold=threshold, method=method, overlap=overlap)
    moments = ground_features(feats, vector, top=top, **options)
    rows = [{"start": round(m.start, 3), "end": round(m.end, 3), "score": round(m.score, 4)} for m in moments]
    console.show_moments(rows, f'"{query}" in {Path(str(feats.video.get("path"))).name}', as_json)
    if plot is not None:
        from everyframe.report import plot_grounding

        plot_grounding(feats, vector, moments, plot, title=query, **given(smooth=smooth))
