"""everyframe calibrate."""

from __future__ import annotations

import json
import shlex
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everyframe import console
from everyframe.cli.app import app
from everyframe.cli.options import (
    BatchOption,
    DeviceOption,
    DtypeOption,
    FpsOption,
    JsonOption,
    ModelOption,
    QuietOption,
    ThreadsOption,
    check_writable,
    given,
    load_model,
)

if TYPE_CHECKING:
    from everyframe.encoders.calibration import Calibration

FIDELITIES = (0.99, 0.98, 0.97, 0.95)  # what most people would ask for


@app.command()
def calibrate(
    paths: Annotated[list[str], typer.Argument(help="Videos, folders, globs, or text files of paths.")],
    out: Annotated[Path, typer.Option("--out", help="The calibration, a JSON file.")] = Path("calibration.json"),
    model: ModelOption = None,
    fps: FpsOption = None,
    drop: Annotated[
        list[float] | None,
        typer.Option(
            "--drop", help="Share of patches that P-frames leave out, at least; repeatable. (default: 0.5 to 0.95)"
        ),
    ] = None,
    tolerance: Annotated[
        list[float] | None,
        typer.Option("--tolerance", help="Of adaptive plans; repeatable, at least two. (default: 0.1 to 6)"),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option("--seconds", help="Seconds of each video to look at. (default: 60)")
    ] = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    batch_size: BatchOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure what adaptive plans lose on your videos, so that encode --fidelity can choose one. Needs no labels."""
    from everyframe.audit import calibrate as measure

    if out.is_dir():
        raise ValueError(f"--out must be a file such as calibration.json, but {out} is a folder")
    check_writable(out.parent)
    started = time.monotonic()
    calibration, failures = measure(
        paths,
        load_model(model, device, dtype, threads),
        progress=lambda line: None if as_json or quiet else console.say(line, error=True),
        **given(fps=fps, drops=drop, tolerances=tolerance, sample_seconds=seconds, batch_size=batch_size),
    )
    calibration.save(out)
    if as_json:
        choices = {f"{fidelity:g}": _choice(calibration, fidelity) for fidelity in FIDELITIES}
        content = {"calibration": str(out), **asdict(calibration), "choices": choices, "failures": failures}
        print(json.dumps(content, indent=2, allow_nan=False))
    elif not quiet:
        _show(calibration)
        console.say(f"{out}: the calibration, after {time.monotonic() - started:.0f} s")
        console.say(f"use it: {_command(paths, out, calibration)}")
    for failure in failures:
        console.say(f"everyframe: failed: {failure}", style="red", error=True)
    if failures:
        raise typer.Exit(1)


def _choice(calibration: Calibration, fidelity: float) -> dict[str, float] | None:
    """What --fidelity would take, and its share of dense GFLOPs; None above what the calibration reaches."""
    import numpy as np

    if fidelity > calibration.reach[1]:
        return None
    drop, tolerance = calibration.choose(fidelity)
    curve = sorted((point.tolerance, point.cost) for point in calibration.points if point.drop == drop)
    tolerances, costs = zip(*curve, strict=True)
    cost = np.interp(np.log(tolerance), np.log(tolerances), costs)
    return {"drop": drop, "tolerance": tolerance, "cost": float(cost)}


def _command(paths: list[str], out: Path, calibration: Calibration) -> str:
    best = calibration.reach[1]
    fidelity = next((each for each in FIDELITIES[1:] if each <= best), round(best - 0.005, 2))
    words = ["--model", str(calibration.facts["model"]), "--fps", f"{calibration.facts['fps']:g}"]
    words += ["--fidelity", f"{fidelity:g}", "--calibration", str(out)]
    return shlex.join(["everyframe", "encode", *paths, *words])


def _show(calibration: Calibration) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    facts = calibration.facts
    console.say(
        f"{facts['model']}, {facts['frames']} frames of {facts['videos']} videos at {facts['fps']:g} per second"
    )
    grid = Table(box=SIMPLE_HEAD, title="measured", title_justify="left")
    for name in ("drop", "tolerance", "fidelity", "5th percentile", "% of dense GFLOPs"):
        grid.add_column(name, justify="right")
    last: Any = None
    for point in calibration.points:
        if last is not None and point.drop != last:
            grid.add_section()
        last = point.drop
        cells = (f"{point.drop:g}", f"{point.tolerance:g}", f"{point.fidelity:.4f}", f"{point.fidelity_p5:.4f}")
        grid.add_row(*cells, f"{100 * point.cost:.1f}")
    console.show(grid)
    choices = Table(box=SIMPLE_HEAD, title="what --fidelity takes", title_justify="left")
    for name in ("--fidelity", "drop", "tolerance", "% of dense GFLOPs"):
        choices.add_column(name, justify="right")
    for fidelity in FIDELITIES:
        choice = _choice(calibration, fidelity)
        if choice is None:
            choices.add_row(f"{fidelity:g}", "-", "-", f"not reached: {calibration.reach[1]:.4f} at best")
        else:
            row = (f"{choice['drop']:g}", f"{choice['tolerance']:.3g}", f"{100 * choice['cost']:.1f}")
            choices.add_row(f"{fidelity:g}", *row)
    console.show(choices)
