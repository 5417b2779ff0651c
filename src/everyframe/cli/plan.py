"""everyframe plan."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from everyframe import console
from everyframe.cli.app import app
from everyframe.cli.encoder import MERGING, Choice, choose_encoder
from everyframe.cli.groups import option_groups
from everyframe.cli.options import (
    DEFAULT_MODEL,
    EndOption,
    FpsOption,
    JsonOption,
    PartialOption,
    StartOption,
    check_writable,
    given,
)
from everyframe.cli.reading import FrameEncoding

if TYPE_CHECKING:
    from everyframe.backbone import Model
    from everyframe.encoders.calibration import Calibration
    from everyframe.encoders.merging import ReducingEncoder
    from everyframe.preview import Preview


@dataclass(frozen=True, kw_only=True)
class _Encoding(FrameEncoding):
    """calibration: it also predicts."""

    calibration: Annotated[
        str | None,
        typer.Option(
            "--calibration",
            help="For --fidelity, and to predict the fidelity: a file of everyframe calibrate, or auto: what comes "
            "with the model. (default: auto)",
        ),
    ] = None


@app.command()
@option_groups
def plan(
    video: Annotated[str, typer.Argument(help="A video, a folder of images, or an address.")],
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw the plan over time to this .svg.")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="As for encode, or ViT-B/32, ViT-B/16, ViT-L/14, ViT-L/14@336; of a hub id only the configuration is "
            f"fetched. (default: {DEFAULT_MODEL})",
        ),
    ] = None,
    fps: FpsOption = None,
    *,
    encoding: _Encoding,
    start: StartOption = None,
    end: EndOption = None,
    keep_partial: PartialOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show what encode would do with a video, and at what cost, without running the model.

    The options of encode mean the same here.
    """
    from everyframe.pipeline import Sampling, is_address
    from everyframe.preview import preview_video

    calibration, options = encoding.calibration, encoding.options
    if encoding.fidelity is None:
        del options["calibration"]
    choice = choose_encoder(**options)
    if calibration is not None and not choice.calibrated:
        raise ValueError("--calibration has no meaning here: it predicts what one-sided adaptive plans lose")
    if not is_address(video) and not Path(video).exists():
        raise ValueError(f"{video}: no such file or folder")
    if plot is not None:
        if plot.suffix.lower() != ".svg":
            raise ValueError(f"--plot must end in .svg, got {plot}")
        check_writable(plot.parent)
    Sampling(**given(fps=fps, start=start, end=end))
    bones, measured = _load(model or DEFAULT_MODEL, choice, calibration)
    result = preview_video(
        video,
        choice.make(bones, fps=fps),
        **given(fps=fps, start=start, end=end),
        keep_partial=keep_partial,
        pictures=plot is not None,
    )
    facts = {"video": video, **result.as_dict()}
    facts["predicted_fidelity"] = result.predict(measured) if measured is not None else None
    if plot is not None:
        title = f"{Path(video).name}: {_title(facts['settings'])}"
        plot.write_text(result.picture(title, _sentence(facts)), encoding="utf-8")
    if as_json:
        print(json.dumps({**facts, "plot": plot and str(plot)}, indent=2, allow_nan=False))
        return
    _show(result, facts)
    if plot is not None:
        console.say(f"{plot}: the plan over time")


def _load(name: str, choice: Choice, calibration: str | None) -> tuple[Model, Calibration | None]:
    """The model, without its weights where they are not needed, and a calibration where there is one."""
    from everyframe.backbone import load, skeleton
    from everyframe.encoders.calibration import resolve_calibration, shipped_calibration

    asked = calibration is not None or "fidelity" in choice.arguments
    here = name == "bundled" or Path(name).is_dir()  # hub ids come without a calibration
    if not (asked or here or choice.name == "residual"):
        return skeleton(name), None
    model = load(name, device="cpu")
    if not choice.calibrated or not (asked or shipped_calibration(model)):
        return model, None
    return model, resolve_calibration(calibration or "auto", model)


def _title(settings: dict[str, Any]) -> str:
    if settings["encoder"] == "dense":
        return "dense"
    if settings["encoder"] in MERGING:
        name = {"tome": "ToMe", "vidtldr": "vid-TLDR"}[settings["encoder"]]
        return f"{name}, tokens that go in each block: {', '.join(f'{count:g}' for count in settings['reduce'])}"
    if settings.get("plan") == "adaptive":
        return f"adaptive, tolerance {settings['tolerance']:g}, drop {settings['drop']:g}"
    kind = {"reuse": "reuse", "residual": "ResidualViT"}[settings["encoder"]]
    at_cuts = ", I-frames at cuts" if settings.get("plan") == "cuts" else ""
    return f"{kind} by {settings['select']}, N={settings['interleave']}{at_cuts}, drop {settings['drop']:g}"


def _sentence(facts: dict[str, Any]) -> str:
    roles, share, flops = facts["roles"], facts["gflops_share"], facts["gflops_per_frame"]
    text = (
        f"{facts['frames']} frames: {roles['I']} I, {roles['P']} P, {roles['C']} copied; {flops['all']:.3g} GFLOPs per "
        f"frame, {100 * share['all']:.1f} % of dense"
    )
    if facts["predicted_fidelity"] is not None:
        text += f"; predicted fidelity {facts['predicted_fidelity']:.3f}"
    return text


def _computed(result: Preview, facts: dict[str, Any]) -> dict[str, str]:
    """The row that says what the model does not see."""
    if facts["settings"]["encoder"] in MERGING:
        counts = cast("ReducingEncoder", result.encoder).counts
        return {"tokens per frame": f"{counts[0]} before the first block, {counts[-1]} after the last"}
    of_p = facts["share_computed_of_p"]
    more = f", {100 * of_p:.1f} % of P-frames" if of_p is not None else ""
    return {"patches computed": f"{100 * facts['share_computed']:.1f} %{more}"}


def _show(result: Preview, facts: dict[str, Any]) -> None:
    from everyframe.timeline import plan_line

    roles, flops, share = facts["roles"], facts["gflops_per_frame"], facts["gflops_share"]
    shots = ", ".join(console.clock(time) for time in facts["cuts"][:8])
    span = f"{console.clock(facts['start_seconds'])} to {console.clock(facts['end_seconds'])}"
    rows = {
        "plan": _title(facts["settings"]),
        "frames": f"{facts['frames']}, {span}: {roles['I']} I, {roles['P']} P, {roles['C']} copied",
        "shots begin": f"{len(facts['cuts'])} times{': ' if shots else ''}{shots}"
        f"{', ...' if len(facts['cuts']) > 8 else ''}",
        **_computed(result, facts),
        "GFLOPs per frame": f"{flops['all']:.4g} with attention, {100 * share['all']:.1f} % of dense; linear layers "
        f"{flops['paper']:.4g}, {100 * share['paper']:.1f} %",
    }
    if facts["predicted_fidelity"] is not None:
        rows["predicted fidelity"] = f"{facts['predicted_fidelity']:.3f} (mean cosine to dense features)"
    elif facts["settings"].get("plan") == "adaptive" and not facts["settings"].get("two_sided"):
        rows["predicted fidelity"] = "unknown: no calibration comes with the model (everyframe calibrate makes one)"
    rows["time per frame"] = (
        f"{facts['planning_ms_per_frame']:.2f} ms planning, {facts['reading_ms_per_frame']:.1f} ms reading"
    )
    console.show_rows(rows)
    width, plain = console.line_width()
    line, meaning = plan_line(result.plan.roles, result.shares.tolist(), width, ascii_only=plain)
    console.say(f"\n{line}\n{meaning}")
