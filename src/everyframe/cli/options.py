"""What several commands share: options, and what is made of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everyframe import cpu

if TYPE_CHECKING:
    from everyframe.backbone import Model
    from everyframe.features import VideoFeatures
    from everyframe.video import VideoError

FORMATS = ("npz", "npy", "h5", "parquet")
DEFAULT_MODEL = "openai/clip-vit-base-patch16"

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        help=f"Hub id, local folder, or 'bundled' (knows only synthetic videos). (default: {DEFAULT_MODEL})",
    ),
]
InterleaveOption = Annotated[int | None, typer.Option("--interleave", help="P-frames after each I-frame. (default: 2)")]
DropOption = Annotated[
    float | None, typer.Option("--drop", help="Share of patches dropped in P-frames, [0, 1). (default: 0.85)")
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
    typer.Option("--dtype", help="Computation: float32, bfloat16, float16, or int8 on a CPU. (default: float32)"),
]
BatchOption = Annotated[int | None, typer.Option("--batch-size", help="I-frames per forward pass.")]
ThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", help="CPU threads of the model. (default: the cores that this process may use)"),
]
PartialOption = Annotated[
    bool, typer.Option("--keep-partial", help="Of damaged files keep the frames that can be read.")
]
RetryOption = Annotated[
    bool, typer.Option("--retry-failed", help="Try files again that could not be read in an earlier run.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only warnings and errors.")]


def given(**options: Any) -> dict[str, Any]:
    """The options that were set; an unset one leaves the callee's own default in force."""
    return {name: value for name, value in options.items() if value is not None}


def set_threads(threads: int | None) -> None:
    """Of torch in this process: so many, or as many as affinity and quota allow."""
    if threads is not None and threads < 1:
        raise ValueError(f"--threads must be at least 1, got {threads}")
    cpu.use_threads(threads)


def load_model(name: str | None, device: str | None, dtype: str | None, threads: int | None) -> Model:
    from everyframe.backbone import load

    set_threads(threads)
    return load(name or DEFAULT_MODEL, **given(device=device, dtype=dtype))


def model_of(feats: VideoFeatures, name: str | None, device: str | None) -> Model:
    """The model that made the features, for encoding a query."""
    return model_recorded(feats.model, name, device)


def model_recorded(facts: dict[str, Any], name: str | None, device: str | None) -> Model:
    """The model of these facts, which features keep, or the one named if its weights are the same."""
    from everyframe.training.recorded import model_recorded as recorded

    return recorded(facts, name, device)


def check_query(query: str) -> None:
    if not query.strip():
        raise ValueError("the query is empty; say what to look for")
    try:
        query.encode()
    except UnicodeEncodeError as error:  # as the shell gave it, bytes that are no text
        raise ValueError("the query is no text in UTF-8") from error


def check_format(format: str) -> None:
    if format not in FORMATS:
        raise ValueError(f"--format must be one of {', '.join(FORMATS)}, got {format!r}")


def check_writable(out: Path, option: str = "--out") -> None:
    """Fail before an hour of work, not after it."""
    import tempfile

    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=out):
            pass
    except OSError as error:
        raise ValueError(f"cannot write to {out}: {error.strerror or error}; choose another {option}") from error


def videos_of(path: str, missing: list[VideoError]) -> list[str | Path]:
    """Videos that an argument names: here, on an object store, or an address that FFmpeg opens."""
    from everyframe.pipeline import is_address
    from everyframe.video import VideoError, find_videos
    from everyframe.video.find import find_remote
    from everyframe.video.remote import is_remote

    if is_remote(path):
        try:
            return [*find_remote(path)]
        except VideoError as error:
            missing.append(error)
            return []
    return [path] if is_address(path) else [*find_videos([path], failures=missing)]


Root = Path | str | None
"""The folder or the address below which an argument's videos lie, if it names one."""


def root_of(path: str) -> Root:
    from everyframe.video.remote import is_remote

    if is_remote(path):
        return path
    return Path(path) if Path(path).is_dir() else None


def distinct(roots: list[tuple[Root, list[str | Path]]]) -> list[tuple[Root, list[str | Path]]]:
    """Every video once, under the first argument that named it."""
    from everyframe.pipeline import is_address

    seen: set[str] = set()
    result: list[tuple[Root, list[str | Path]]] = []
    for root, videos in roots:
        places = [(video, str(video) if is_address(video) else os.path.abspath(video)) for video in videos]
        result.append((root, [video for video, place in places if place not in seen]))
        seen.update(place for _, place in places)
    return result
