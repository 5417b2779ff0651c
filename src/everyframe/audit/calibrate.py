"""Calibration on somebody's own videos: what fidelity an adaptive plan gives at which setting. No labels needed.

Each window of each video is read once, encoded densely, and encoded under every setting of the grid; frames of all
videos count alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor

from everyframe.audit.windows import distinct_sources, video_windows
from everyframe.backbone import Model
from everyframe.cost import flops
from everyframe.encoders import DenseEncoder, ReuseEncoder
from everyframe.encoders.baselines import fidelity
from everyframe.encoders.calibration import Calibration, Point, signals
from everyframe.pipeline import Sampling, read_window
from everyframe.version import package_version
from everyframe.video import VideoError

DROPS = (0.95, 0.85, 0.7, 0.5)
TOLERANCES = (0.1, 0.3, 0.7, 1.5, 3.0, 6.0)


@dataclass
class _Run:
    """What one setting gave so far."""

    fidelity: list[np.ndarray] = field(default_factory=list)
    signals: list[np.ndarray] = field(default_factory=list)
    macs: float = 0.0


def calibrate(
    paths: str | Path | Iterable[str | Path],
    model: Model,
    *,
    fps: float = 3.0,
    drops: Sequence[float] = DROPS,
    tolerances: Sequence[float] = TOLERANCES,
    sample_seconds: float = 60.0,
    batch_size: int = 32,
    progress: Callable[[str], None] = lambda line: None,
) -> tuple[Calibration, list[str]]:
    """Measure the grid `drops` x `tolerances` on a sample of each video; also the videos that could not be read, why.

    paths: files, folders, patterns, lists of paths or addresses, as for `everyframe encode`.
    sample_seconds: of each video, in windows spread over it; a shorter video is read whole.
    progress: gets a line per video.
    Raises VideoError when no video can be read, ValueError or TypeError for bad arguments.
    """
    Sampling(fps=fps)
    if not 0 < sample_seconds < float("inf"):
        raise ValueError(f"sample_seconds must be finite and > 0, got {sample_seconds}")
    if not drops or len(set(tolerances)) < 2 or min(tolerances) <= 0:
        raise ValueError("calibration needs at least one drop and two different tolerances > 0")
    dense = DenseEncoder(model, batch_size=batch_size)
    settings = {
        (drop, tolerance): ReuseEncoder(model, drop=drop, plan="adaptive", tolerance=tolerance, batch_size=batch_size)
        for drop in sorted(set(drops))
        for tolerance in sorted(set(tolerances))
    }
    runs = {setting: _Run() for setting in settings}
    given = [paths] if isinstance(paths, (str, Path)) else list(paths)
    missing: list[VideoError] = []
    sources = distinct_sources(given, missing)
    failures = [str(error) for error in missing]
    frames = read = 0
    for source in sources:
        try:
            for start, end in video_windows(source, sample_seconds, fps):
                window = read_window(source, model, fps=fps, start=start, end=end, motion=False)
                full = dense.encode(window.pixels).cpu().numpy()
                for setting, encoder in settings.items():
                    _add(runs[setting], encoder, window.pixels, full)
                frames += len(full)
        except VideoError as error:
            failures.append(str(error))
            continue
        read += 1
        progress(f"{source}: {frames} frames so far")
    if not frames:
        raise VideoError(failures[0] if failures else "no video was given")
    per_frame = flops(dense, rule="all").per_frame
    points = tuple(
        Point(
            drop=drop,
            tolerance=tolerance,
            fidelity=float(np.concatenate(run.fidelity).mean()),
            fidelity_p5=float(np.percentile(np.concatenate(run.fidelity), 5)),
            cost=run.macs / (frames * per_frame),
        )
        for (drop, tolerance), run in runs.items()
    )
    facts = {
        "model": model.name,
        "weights_sha256": model.weights_sha256,
        "fps": fps,
        "videos": read,
        "frames": frames,
        "version": package_version(),
    }
    return Calibration(points=points, weights=_fit(runs.values()), facts=facts), failures


def _add(run: _Run, encoder: ReuseEncoder, pixels: Tensor, full: np.ndarray) -> None:
    planner = encoder.planner()
    plan = planner.add(pixels)
    features = encoder.encode_planned(pixels, plan).cpu().numpy()
    run.fidelity.append(fidelity(features, full))
    run.signals.append(signals(plan.roles, planner.left_out))
    run.macs += sum(encoder.plan_macs(plan, "all").values())


def _fit(runs: Iterable[_Run]) -> tuple[float, float]:
    """Weights >= 0 of the two signals that explain the loss of frames best, by least squares."""
    rows = np.concatenate([part for run in runs for part in run.signals])
    loss = 1.0 - np.concatenate([part for run in runs for part in run.fidelity])
    # Of two variables the best with weights >= 0 is the unconstrained one, or the better of either alone.
    both = np.linalg.lstsq(rows, loss, rcond=None)[0]
    alone = [np.array([_one(rows[:, 0], loss), 0.0]), np.array([0.0, _one(rows[:, 1], loss)])]
    candidates = [both] if (both >= 0).all() else alone
    best = min(candidates, key=lambda weights: float(((rows @ weights - loss) ** 2).sum()))
    return float(best[0]), float(best[1])


def _one(column: np.ndarray, loss: np.ndarray) -> float:
    square = float(column @ column)
    return max(float(column @ loss) / square, 0.0) if square else 0.0
