"""The command line: each command is one call of the library. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everyframe import console

if TYPE_CHECKING:
    from everyframe.backbone import Model
    from everyframe.encoders import Encoder
    from everyframe.features import VideoFeatures
    from everyframe.pipeline import Outcome
    from everyframe.video import VideoError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Features of every frame of a video for the price of a few: encode, search, ground.",
)

DEFAULT_MODEL = "openai/clip-vit-base-patch16"
FORMATS = ("npz", "npy", "h5", "parquet")

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        help=f"Hub id, local folder, or 'bundled' (knows only synthetic videos). (default: {DEFAULT_MODEL})",
    ),
]
EncoderOption = Annotated[str | None, typer.Option("--encoder", help="residual or dense. (default: residual)")]
InterleaveOption = Annotated[int | None, typer.Option("--interleave", help="P-frames after each I-frame. (default: 2)")]
DropOption = Annotated[
    float | None, typer.Option("--drop", help="Share of patches dropped in P-frames, [0, 1). (default: 0.85)")
]
SelectOption = Annotated[
    str | None,
    typer.Option("--select", help="motion, center, uniform, random or residual. (default: motion)"),
]
ResidualOption = Annotated[
    str | None,
    typer.Option("--residual", help="Residual tokenizer: auto, none, or a file. (default: auto)"),
]
FpsOption = Annotated[float | None, typer.Option("--fps", help="Features per second. (default: 3)")]
StartOption = Annotated[float | None, typer.Option("--start", help="First second to encode.")]
EndOption = Annotated[float | None, typer.Option("--end", help="Second to stop at.")]
DeviceOption = Annotated[str | None, typer.Option("--device", help="cpu, cuda, ... (default: cuda if any)")]
DtypeOption = Annotated[
    str | None,
    typer.Option("--dtype", help="Computation: float32, bfloat16 or float16. (default: float32)"),
]
BatchOption = Annotated[int | None, typer.Option("--batch-size", help="I-frames per forward pass.")]
ThreadsOption = Annotated[int | None, typer.Option("--threads", help="CPU threads of the model.")]
PartialOption = Annotated[
    bool, typer.Option("--keep-partial", help="Of damaged files keep the frames that can be read.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only warnings and errors.")]


def main() -> None:
    """Entry point: user errors become one line on standard error and exit code 1; Ctrl-C exits with 130."""
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    try:
        app()
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(end, SystemExit) and end.code != 130:  # 130 is what Typer makes of Ctrl-C
            raise
        console.say("everyframe: interrupted; finished files are kept", style="red", error=True)
        sys.exit(130)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        # torch's out-of-memory errors are RuntimeErrors; any other one is a bug, and its traceback is wanted.
        if isinstance(error, RuntimeError):
            if "out of memory" not in str(error) and "not enough memory" not in str(error):
                raise
            error = RuntimeError("the device ran out of memory; use a smaller --batch-size, or --dtype bfloat16")
        console.say(f"everyframe: {error}", style="red", error=True)
        sys.exit(1)


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if version:
        from everyframe.pipeline import package_version

        print(package_version())
        raise typer.Exit


@app.command()
def encode(
    paths: Annotated[list[str], typer.Argument(help="Videos, folders, globs, or text files of paths.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the feature files.")] = Path("features"),
    format: Annotated[str, typer.Option("--format", help="npz, npy, h5 or parquet.")] = "npz",
    store: Annotated[str, typer.Option("--store", help="float32 or float16 embeddings.")] = "float32",
    model: ModelOption = None,
    encoder: EncoderOption = None,
    fps: FpsOption = None,
    interleave: InterleaveOption = None,
    drop: DropOption = None,
    select: SelectOption = None,
    residual: ResidualOption = None,
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
    from everyframe.pipeline import JOURNAL, Sampling, encode_videos, forecast, output_paths

    if format not in FORMATS:
        raise ValueError(f"--format must be one of {', '.join(FORMATS)}, got {format!r}")
    if store not in ("float32", "float16"):
        raise ValueError(f"--store must be float32 or float16, got {store!r}")
    sampling = Sampling(**_given(fps=fps, start=start, end=end), keep_partial=keep_partial)
    missing: list[VideoError] = []
    roots = [(Path(path) if Path(path).is_dir() else None, _videos(path, missing)) for path in paths]
    if not any(videos for _, videos in roots):
        raise missing[0]
    sources = output_paths(_distinct(roots), out, f".{format}")
    _check_writable(out)
    reader = _encoder(_model(model, device, dtype, threads), encoder, interleave, drop, select, residual, batch_size)
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
        ):
            outcomes.append(outcome)
            step.finished(outcome)
    console.show_outcomes(outcomes, time.monotonic() - started, as_json=as_json, quiet=quiet)
    if any(outcome.status == "failed" for outcome in outcomes):
        raise typer.Exit(1)


@app.command()
def search(
    folder: Annotated[Path, typer.Argument(help="Folder of feature files, or one feature file.")],
    query: Annotated[str, typer.Argument(help="What to look for.")],
    top: Annotated[int, typer.Option("--top", help="Moments to show.")] = 10,
    model: ModelOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the best moments for a text over all videos of a folder of features."""
    from everyframe.features import FeaturesError, VideoFeatures
    from everyframe.tasks.retrieval import load_folder
    from everyframe.tasks.retrieval import search as search_features

    _check_query(query)
    failures: list[tuple[Path, FeaturesError]] = []
    videos = iter([VideoFeatures.load(folder)]) if folder.is_file() else load_folder(folder, failures=failures)
    first = next(videos, None)
    if first is None:
        raise FeaturesError(f"none of the feature files in {folder} can be read: {failures[0][1]}")
    vector = _model_of(first, model, device).encode_text([query])[0]

    def all_videos() -> Iterator[VideoFeatures]:
        yield first
        yield from videos

    hits = search_features(all_videos(), vector, top=top)
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
        str | None, typer.Option("--method", help="watershed, contrast or whole. (default: watershed)")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw curve, moments and thumbnails to this .png/.svg/.pdf.")
    ] = None,
    model: ModelOption = None,
    encoder: EncoderOption = None,
    fps: FpsOption = None,
    interleave: InterleaveOption = None,
    drop: DropOption = None,
    select: SelectOption = None,
    residual: ResidualOption = None,
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

    _check_query(query)
    if plot is not None:
        require("matplotlib", extra="plot")  # before the work, not after it
        if plot.suffix.lower() not in (".png", ".svg", ".pdf"):
            raise ValueError(f"--plot must end in .png, .svg or .pdf, got {plot}")
    if Path(source).suffix.lower() in SUFFIXES:
        encoding = _given(encoder=encoder, fps=fps, interleave=interleave, drop=drop, select=select, residual=residual)
        if encoding or dtype is not None or keep_partial:
            raise ValueError(f"{source} is encoded already: options of encoding have no meaning with a feature file")
        feats = VideoFeatures.load(source)
        text_model = _model_of(feats, model, device)
    else:
        text_model = _model(model, device, dtype, None)
        reader = _encoder(text_model, encoder, interleave, drop, select, residual, None)
        feats = encode_video(source, reader, **_given(fps=fps), keep_partial=keep_partial)
    vector = text_model.encode_text([query])[0]
    options: dict[str, Any] = _given(smooth=smooth, threshold=threshold, method=method, overlap=overlap)
    moments = ground_features(feats, vector, top=top, **options)
    rows = [{"start": round(m.start, 3), "end": round(m.end, 3), "score": round(m.score, 4)} for m in moments]
    console.show_moments(rows, f'"{query}" in {Path(str(feats.video.get("path"))).name}', as_json)
    if plot is not None:
        from everyframe.report import plot_grounding

        plot_grounding(feats, vector, moments, plot, title=query, **_given(smooth=smooth))


@app.command()
def info(
    path: Annotated[str, typer.Argument(help="A video, a feature file, or a model (folder, hub id, 'bundled').")],
    as_json: JsonOption = False,
) -> None:
    """Say what a video, a feature file or a model is."""
    from everyframe.features import SUFFIXES, VideoFeatures

    file = Path(path)
    if file.suffix.lower() in SUFFIXES:
        feats = VideoFeatures.load(file)
        facts: dict[str, Any] = {
            "frames": feats.num_frames,
            "dim": feats.dim,
            "dtype": str(feats.embeddings.dtype),
            "first_seconds": float(feats.times[0]) if feats.num_frames else None,
            "last_seconds": float(feats.times[-1]) if feats.num_frames else None,
            "end_seconds": float(feats.frame_ends[-1]) if feats.num_frames else None,
            "roles": {role: feats.roles.count(role) for role in sorted(set(feats.roles))},
            "video": feats.video,
            "model": feats.model,
            "settings": feats.settings,
        }
    elif path == "bundled" or (file.is_dir() and (file / "config.json").is_file()) or not _looks_local(path):
        facts = _model_info(path)
    else:
        from dataclasses import asdict

        from everyframe.video import probe

        facts = asdict(probe(path, scan=True))
    console.show_facts(facts, as_json)


@app.command()
def flops(
    model: Annotated[
        str, typer.Option("--model", help="ViT-B/32, ViT-B/16, ViT-L/14, ViT-L/14@336, or any model.")
    ] = "ViT-L/14",
    interleave: InterleaveOption = None,
    drop: DropOption = None,
    fps: FpsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Cost of the encoders, by the paper's counting rule and with attention (multiply-accumulates)."""
    from everyframe.report import cost_table

    rows = cost_table(model, **_given(interleave=interleave, drop=drop, fps=fps))
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    from rich.table import Table

    table = Table(title=f"{model}: GFLOPs (multiply-accumulates)")
    for index, name in enumerate(rows[0]):
        table.add_column(name, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*(value if isinstance(value, str) else f"{value:.4g}" for value in row.values()))
    console.show(table)


@app.command()
def synthesize(
    out: Annotated[Path, typer.Option("--out", help="Folder for the videos and annotations.")],
    videos: Annotated[int, typer.Option("--videos", help="How many.")] = 8,
    seconds: Annotated[float, typer.Option("--seconds", help="Length of each.")] = 60.0,
    seed: Annotated[int, typer.Option("--seed", help="Everything follows from it.")] = 1,
    codec: Annotated[str, typer.Option("--codec", help="Any video encoder of FFmpeg.")] = "libx264",
    quiet: QuietOption = False,
) -> None:
    """Render captioned videos of a procedural world, with annotations.jsonl (one line per event)."""
    from everyframe.synthetic import synthesize as render

    for video in render(out, videos=videos, seconds=seconds, seed=seed, codec=codec):
        if not quiet:
            console.say(f"{out / video.name}.mp4: {video.style}, {len(video.events)} events")


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for videos, features and the report.")] = Path("demo"),
    videos: Annotated[int, typer.Option("--videos", help="Synthetic videos to render.")] = 12,
    seconds: Annotated[float, typer.Option("--seconds", help="Length of each.")] = 60.0,
    seed: Annotated[int, typer.Option("--seed", help="Which videos.")] = 7,
    interleave: InterleaveOption = None,
    drop: DropOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Render a small archive, encode it dense and interleaved, search and ground it, and write a report."""
    from everyframe.demo import run_demo

    _set_threads(threads)
    result = run_demo(
        out,
        videos=videos,
        seconds=seconds,
        seed=seed,
        say=lambda text: console.say(text, error=as_json),
        **_given(interleave=interleave, drop=drop),
    )
    if as_json:
        print(json.dumps(result.as_dict(), indent=2))
        return
    console.show(result.table())
    console.say(f"report: {result.report}")


# --- shared by the commands ------------------------------------------------------------------------------


def _given(**options: Any) -> dict[str, Any]:
    """The options that were set; an unset one leaves the callee's own default in force."""
    return {name: value for name, value in options.items() if value is not None}


def _show_warning(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
    if category is UserWarning:  # ours; the rest is libraries talking to developers
        console.say(f"warning: {message}", style="yellow", error=True)


def _set_threads(threads: int | None) -> None:
    if threads is None:
        return
    if threads < 1:
        raise ValueError(f"--threads must be at least 1, got {threads}")
    import torch

    torch.set_num_threads(threads)


def _model(name: str | None, device: str | None, dtype: str | None, threads: int | None) -> Model:
    from everyframe.backbone import load

    _set_threads(threads)
    return load(name or DEFAULT_MODEL, **_given(device=device, dtype=dtype))


def _model_of(feats: VideoFeatures, name: str | None, device: str | None) -> Model:
    """The model that made the features, for encoding a query."""
    from everyframe.features import FeaturesError

    recorded = feats.model.get("id")
    if name is None and not isinstance(recorded, str):
        raise FeaturesError("the features do not say which model made them; pass --model")
    model = _model(name or recorded, device, None, None)
    if feats.model.get("weights_sha256") not in (None, model.weights_sha256):
        raise FeaturesError(
            f"the features were made by other weights than those of {model.name} "
            f"(recorded model: {recorded}); pass the model that made them as --model"
        )
    return model


def _encoder(
    model: Model,
    name: str | None,
    interleave: int | None,
    drop: float | None,
    select: str | None,
    residual: str | None,
    batch_size: int | None,
) -> Encoder:
    from everyframe.encoders import DenseEncoder, ResidualViT

    options = _given(interleave=interleave, drop=drop, select=select, residual=residual)
    if name == "dense":
        if options.get("residual") == "none":
            del options["residual"]
        if options:
            raise ValueError(f"--{next(iter(options))} has no meaning with --encoder dense")
        return DenseEncoder(model, **_given(batch_size=batch_size))
    if name not in (None, "residual"):
        raise ValueError(f"--encoder must be residual or dense, got {name!r}")
    if options.get("residual") == "none":
        options["residual"] = None
    return ResidualViT(model, **options, **_given(batch_size=batch_size))


def _check_query(query: str) -> None:
    if not query.strip():
        raise ValueError("the query is empty; say what to look for")


def _check_writable(out: Path) -> None:
    """Fail before an hour of work, not after it."""
    import tempfile

    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=out):
            pass
    except OSError as error:
        raise ValueError(f"cannot write to {out}: {error.strerror or error}; choose another --out") from error


def _videos(path: str, missing: list[VideoError]) -> list[str | Path]:
    from everyframe.pipeline import is_address
    from everyframe.video import find_videos

    return [path] if is_address(path) else [*find_videos([path], failures=missing)]


def _not_found(error: VideoError) -> Outcome:
    from everyframe.pipeline import Outcome

    return Outcome(source=str(error).partition(": ")[0], output=None, status="failed", error=str(error))


def _distinct(roots: list[tuple[Path | None, list[str | Path]]]) -> list[tuple[Path | None, list[str | Path]]]:
    """Every video once, under the first argument that named it."""
    seen: set[str] = set()
    result: list[tuple[Path | None, list[str | Path]]] = []
    for root, videos in roots:
        fresh = [video for video in videos if os.path.abspath(video) not in seen]
        seen.update(os.path.abspath(video) for video in fresh)
        result.append((root, fresh))
    return result


def _looks_local(path: str) -> bool:
    return Path(path).exists() or Path(path).suffix != "" or path.count("/") != 1


def _model_info(name: str) -> dict[str, Any]:
    from dataclasses import asdict

    from everyframe.backbone import load

    model = load(name)
    return {
        "model": model.name,
        "family": model.family,
        "dim": model.dim,
        "text": model.text is not None,
        "image_size": model.image_size,
        "patches": model.vision.num_patches,
        "parameters": sum(p.numel() for p in model.parameters()),
        "weights_sha256": model.weights_sha256,
        "vision": asdict(model.vision.config),
        "preprocess": model.preprocess_settings,
    }


if __name__ == "__main__":
    main()
