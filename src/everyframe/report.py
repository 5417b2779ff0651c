"""Pictures and tables of results: cost per encoder, a grounding plot, the demo's HTML page."""

from __future__ import annotations

import base64
import html
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from everyframe.backbone import skeleton
from everyframe.cost import flops
from everyframe.encoders import DenseEncoder, Encoder, ResidualTokenizer, ResidualViT, ReuseEncoder
from everyframe.extras import require
from everyframe.features import VideoFeatures
from everyframe.spans import Moment
from everyframe.tasks.grounding import similarity, smoothed_similarity
from everyframe.video import VideoError, sample_frames, write_image

_REUSE_INTERLEAVE = 5  # ReuseEncoder's default


def cost_table(
    model: str, *, interleave: int = 2, drop: float = 0.85, fps: float = 3.0
) -> list[dict[str, str | float]]:
    """ResidualViT's Table 1 for any model: GFLOPs per frame and per second of video, both counting rules.

    Below it ReuseEncoder with fixed plans, at the same interleave and at its own default of 5.
    model: a name in `backbone.ARCHITECTURES`, or what `load` takes (only its config.json is read).
    """
    if not fps > 0:
        raise ValueError(f"fps must be > 0, got {fps}")
    bones = skeleton(model)
    token = ResidualTokenizer(bones.dim, bones.vision.config.width).to("meta")
    dense = DenseEncoder(bones)
    without = ResidualViT(bones, interleave=interleave, drop=drop, residual=None)
    learned = ResidualViT(bones, interleave=interleave, drop=drop, residual=token)

    def row(name: str, per_frame: dict[str, float]) -> dict[str, str | float]:
        cells: dict[str, str | float] = {"encoder": name}
        for rule, value in per_frame.items():
            label = "linear layers" if rule == "paper" else "with attention"
            cells[f"per frame, {label}"] = value
            cells[f"per second, {label}"] = value * fps
        return cells

    def average(encoder: Encoder) -> dict[str, float]:
        return {
            "paper": flops(encoder, rule="paper").gflops_per_frame,
            "all": flops(encoder, rule="all").gflops_per_frame,
        }

    full, mixed = average(dense), average(without)
    rows = [row("a. every frame in full", full)]
    if interleave:
        reduced = {rule: (mixed[rule] * (interleave + 1) - full[rule]) / interleave for rule in ("paper", "all")}
        rows.append(row("b. every frame reduced", reduced))
        rows.append(row(f"c. interleave N={interleave}", mixed))
        rows.append(row(f"d. interleave N={interleave} + residual token", average(learned)))
    for letter, number in zip("ef", dict.fromkeys((interleave or _REUSE_INTERLEAVE, _REUSE_INTERLEAVE)), strict=False):
        rows.append(row(f"{letter}. reuse N={number}", average(ReuseEncoder(bones, interleave=number, drop=drop))))
    return rows


def state_bytes(model: str) -> int:
    """Bytes of keys and values that ReuseEncoder keeps per group, in float32; model: as for `cost_table`."""
    return ReuseEncoder(skeleton(model)).state_bytes


def frame_near(feats: VideoFeatures, seconds: float) -> np.ndarray | None:
    """The picture shown at `seconds`, uint8 [H, W, 3]; None (with a warning) when the video cannot be read."""
    rate = feats.settings.get("fps")  # what an image folder was read at
    try:
        with sample_frames(
            str(feats.video["path"]), None, start=max(seconds - 1e-3, 0.0), on_damage="skip", image_fps=rate
        ) as samples:
            for sample in samples:
                return sample.pixels
    except VideoError as error:
        warnings.warn(f"no thumbnail: {error}", stacklevel=2)
    return None


def plot_grounding(
    feats: VideoFeatures,
    query: Any,
    moments: Sequence[Moment],
    out: str | Path,
    *,
    title: str,
    smooth: float = 5.0,
    truth: Sequence[tuple[float, float]] = (),
) -> None:
    """Draw similarity over time, the moments found and a picture of each best frame to `out`.

    query: [dim]. truth: known [start, end) seconds, hatched where given. The suffix decides the format. Raises
    ImportError without matplotlib, ValueError for a suffix matplotlib does not write.
    """
    require("matplotlib", extra="plot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    video = str(feats.video.get("path", ""))
    shown = list(moments)[:5]
    raw, smoothed = similarity(feats, query), smoothed_similarity(feats, query, smooth=smooth)
    peaks = [_peak(feats, smoothed, moment) for moment in shown]
    pictures = [frame_near(feats, peak) for peak in peaks] if Path(video).exists() else []
    rows = 2 if any(picture is not None for picture in pictures) else 1
    figure = Figure(figsize=(11, 3.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(rows, max(len(shown), 1), height_ratios=[1.3, 1][:rows])
    axes = figure.add_subplot(grid[0, :])
    axes.plot(feats.times, raw, color="0.75", linewidth=0.8, label="cosine per frame")
    axes.plot(feats.times, smoothed, color="C0", label=f"average over {smooth:g} s")
    axes.axhline(float(smoothed.mean()), color="0.5", linestyle=":", linewidth=0.8, label="mean")
    for number, moment in enumerate(shown):
        axes.axvspan(moment.start, moment.end, color=f"C{number + 1}", alpha=0.25)
        # Nested moments share their middle: each number stands a little lower than the one before.
        height = float(raw.max()) - 0.08 * number * float(raw.max() - raw.min())
        axes.text((moment.start + moment.end) / 2, height, str(number + 1), ha="center", va="top")
    for number, (start, end) in enumerate(truth):
        axes.axvspan(start, end, fill=False, hatch="//", edgecolor="0.3", label="truth" if not number else None)
    axes.set(xlabel="seconds", ylabel="cosine", xlim=(feats.times[0], feats.frame_ends[-1]))
    axes.set_title(f'"{title}" in {Path(video).name}'.replace("$", r"\$"), loc="left")  # "$" starts formulas
    axes.legend(loc="lower right", fontsize="small")
    for number, picture in enumerate(pictures):
        if picture is not None:
            below = figure.add_subplot(grid[1, number])
            below.imshow(picture)
            below.set_axis_off()
            below.set_title(f"{number + 1}. {shown[number].start:.1f} to {shown[number].end:.1f} s", fontsize="small")
    figure.savefig(out, dpi=110)


def _peak(feats: VideoFeatures, curve: np.ndarray, moment: Moment) -> float:
    inside = np.flatnonzero((feats.times >= moment.start) & (feats.times < moment.end))
    return float(feats.times[inside[np.argmax(curve[inside])]]) if len(inside) else moment.start


# --- HTML ------------------------------------------------------------------------------------------------

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: #1b1f24 }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .3rem .8rem; border-bottom: 1px solid #d5dae0 }
th { text-align: left } td:not(:first-child) { text-align: right; font-variant-numeric: tabular-nums }
figure { margin: 1.6rem 0 } figcaption { margin-bottom: .3rem } svg { width: 100%; height: 9rem; display: block }
.strip { display: flex; gap: .4rem; margin-top: .4rem } .strip div { flex: 1; font-size: 12px; color: #57606a }
.strip img { width: 100%; display: block; border-radius: 3px } .note { color: #57606a }
.key span { display: inline-block; width: .9rem; height: .7rem; margin: 0 .3rem 0 .9rem; vertical-align: middle }
"""


def html_page(title: str, body: Sequence[str], *, style: str = "") -> str:
    """A self-contained page; `style` is CSS in addition to that of all pages."""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}{style}</style><h1>{html.escape(title)}</h1>{''.join(body)}</html>\n"
    )


def html_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, mark: int | None = None) -> str:
    """A table of texts; the row numbered `mark` gets the class "chosen"."""

    def line(cells: Sequence[str], tag: str, chosen: bool = False) -> str:
        start = '<tr class="chosen">' if chosen else "<tr>"
        return start + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(line(row, "td", number == mark) for number, row in enumerate(rows))
    return f"<table>{line(header, 'th')}{body}</table>"


def html_timeline(
    query: str,
    curves: dict[str, tuple[VideoFeatures, np.ndarray]],
    *,
    truth: tuple[float, float],
    found: dict[str, Moment | None],
    thumbnails: Sequence[float],
) -> str:
    """One query over one video: a smoothed curve per encoder, truth as a band, each encoder's answer as a bar."""
    colours = ["#0969da", "#cf222e", "#8250df"]
    tall = 122 + 14 * len(curves)
    feats = next(iter(curves.values()))[0]
    end = float(feats.frame_ends[-1])
    low = min(float(curve.min()) for _, curve in curves.values())
    high = max(float(curve.max()) for _, curve in curves.values())
    span = max(high - low, 1e-6)

    def x(t: float) -> float:
        return 1000 * t / end

    shapes = [f'<rect x="{x(truth[0]):.1f}" width="{x(truth[1] - truth[0]):.1f}" height="{tall}" fill="#dafbe1"/>']
    for row, (name, (features, curve)) in enumerate(curves.items()):
        points = " ".join(
            f"{x(t):.1f},{112 - 104 * (value - low) / span:.1f}" for t, value in zip(features.times, curve, strict=True)
        )
        shapes.append(
            f'<polyline points="{points}" fill="none" stroke="{colours[row]}" stroke-width="2" '
            'vector-effect="non-scaling-stroke"/>'
        )
        moment = found[name]
        if moment is not None:
            shapes.append(
                f'<rect x="{x(moment.start):.1f}" width="{x(moment.end - moment.start):.1f}" '
                f'y="{120 + 14 * row}" height="10" fill="{colours[row]}"/>'
            )
    key = "".join(
        f'<span style="background:{colour}"></span>{html.escape(name)}'
        for name, colour in zip(curves, colours, strict=False)
    )
    strip = "".join(_thumbnail(feats, t) for t in thumbnails)
    return (
        f"<figure><figcaption><b>{html.escape(query)}</b> in {html.escape(Path(feats.video['path']).name)}"
        f'<span class="key">{key}<span style="background:#dafbe1"></span>truth</span></figcaption>'
        f'<svg viewBox="0 0 1000 {tall}" preserveAspectRatio="none">{"".join(shapes)}</svg>'
        f'<div class="strip">{strip}</div></figure>'
    )


def _thumbnail(feats: VideoFeatures, seconds: float) -> str:
    picture = frame_near(feats, seconds)
    if picture is None:
        return ""
    data = base64.b64encode(write_image(None, picture, format="jpeg")).decode()
    return f'<div><img alt="frame at {seconds:.1f} s" src="data:image/jpeg;base64,{data}">{seconds:.1f} s</div>'
