"""Videos that an evaluation encodes: with which encoders, and what that took, as cells of a table."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everyframe.cli.clips import check_none
from everyframe.cli.encoder import Choice, choose_encoder, compared
from everyframe.cli.options import given

if TYPE_CHECKING:
    from everyframe.backbone import Model
    from everyframe.evaluation.frame_features import EncodedVideos

COSTS = ("GFLOPs/s", "% of dense")
"""What `cost_cells` are of: 10^9 multiply-accumulates per second of video, and the share of dense."""

_BESIDE_COMPARE = (
    "compare",
    "residual",
    "model",
    "fps",
    "dtype",
    "batch_size",
    "cache",
    "keep_partial",
    "train_videos",
)

CompareOption = Annotated[
    bool, typer.Option("--compare", help="Dense, ResidualViT N=2 and adaptive reuse, one row each.")
]
KeptOption = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        help="With --videos: folder where feature files are kept, so that a killed run goes on. (default: in --out)",
    ),
]


@contextmanager
def feature_cache(cache: Path | None, out: Path | None) -> Iterator[Path]:
    """Where feature files are while they are needed; they stay where there is a folder for them."""
    if cache is not None or out is not None:
        yield cache or (out or Path()) / "features"
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def cost_cells(row: Mapping[str, float | None]) -> list[str]:
    """gflops_per_second and gflops_share of a row; empty where they are not known."""
    cost, share = row.get("gflops_per_second"), row.get("gflops_share")
    return ["" if cost is None else f"{cost:.4g}", "" if share is None else f"{100 * share:.1f}"]


def check_compare(reading: Mapping[str, Any]) -> None:
    """Raises ValueError where --compare stands beside an option that chooses an encoder; `reading` are set."""
    if "compare" in reading:
        others = {name: value for name, value in reading.items() if name not in _BESIDE_COMPARE}
        check_none("--compare, which chooses the encoders", others)


def choices(chosen: dict[str, Any], *, compare: bool) -> list[Choice]:
    """The encoders that were asked for; ValueError, before a model is loaded, where options contradict each other."""
    return compared(chosen.get("residual")) if compare else [choose_encoder(**chosen)]


def encoded_videos(
    model: Model,
    wanted: Sequence[Choice],
    folder: Path,
    *,
    fps: float | None,
    cache: Path | None,
    batch_size: int | None,
    keep_partial: bool,
) -> dict[str, EncodedVideos]:
    """The videos below a folder as each encoder reads them, by the names of their rows."""
    from everyframe.evaluation.frame_features import EncodedVideos, label
    from everyframe.pipeline import Sampling

    sampling = Sampling(**given(fps=fps), keep_partial=keep_partial)
    encoders = [choice.make(model, batch_size, fps=fps) for choice in wanted]
    return {
        label(encoder): EncodedVideos(encoder=encoder, folder=folder, sampling=sampling, cache=cache)
        for encoder in encoders
    }
