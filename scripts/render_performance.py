"""What encode.py, compare_peers.py, performance.py and scaling.py fill in docs/performance.md, and its pictures.

Called by render_results.py; by itself it draws:

    python scripts/render_performance.py [--results benchmarks/results] [--images docs/images]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import records
from everyframe.extras import require
from records import ROOT, read, table
from ways import SPEED_AIMS, START_AIMS, VARIANTS, WAYS

IMAGES = ROOT / "docs" / "images"
POINTS_AIM = -0.5
MATMUL_AIM, P_FRAME_AIM, OVERLAP_AIM, COSINE_AIM = 0.90, 0.85, 1.05, 0.99
MODEL, DTYPE = "ViT-B/16", "bfloat16"  # what the aims are about
BLUE, GREEN, OCHRE, RED, GREY, VIOLET = "#0969da", "#1a7f37", "#9a6700", "#cf222e", "#57606a", "#8250df"
QUICK = "**Of a --quick run: few rounds, so rough.** "


def number(value: float) -> str:
    """Three digits, thousands with commas."""
    return f"{float(f'{value:.3g}'):,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def load(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def spread(values: list[float], digits: int = 2) -> str:
    """Median (lowest to highest)."""
    low, middle, high = (f"{each:.{digits}f}" for each in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low} to {high})"


def mark(record: dict[str, Any]) -> str:
    return QUICK if record.get("quick") else ""


# --- the machine and its limits --------------------------------------------------------------------------


def machine_line() -> str:
    record = read("performance")
    own = record["machine"]
    family = f" (family {own['family']})" if own.get("family") else ""
    quota = "" if own.get("quota") is None else f", a quota of {own['quota']:g}"
    return (
        f"{mark(record)}{own['processor']}{family} with {', '.join(own['flags'])}; cores: {own['cores']}{quota}, "
        f"threads: {own['threads']}; torch {own['torch']}, PyAV {own['av']}, Python {own['python']}. Other processes "
        f"took {load(own['other_load']) or 'an unknown share'} of a core on average."
    )


def limits_table() -> str:
    limits = read("performance")["limits"]
    best = limits["highest"]
    rows = []
    for dtype, rates in best["matmul"].items():
        for shape, rate in rates.items():
            what = "layers of a ViT-B/16 block, 32 frames" if shape == "model" else shape
            rows.append(
                ["matmul", f"{dtype}, {what}", f"{rate / 1e9:.0f} GFLOP/s", drift(limits, "matmul", dtype, shape)]
            )
    for place, rate in best["copy"].items():
        rows.append(["copy", f"in {place}", f"{rate / 1e9:.1f} GB/s", drift(limits, "copy", place)])
    for threads, rate in best["decode"].items():
        what = "one thread" if threads == "one" else "FFmpeg's choice of threads"
        rows.append(["decode to nothing", what, f"{number(rate)} source frames/s", drift(limits, "decode", threads)])
    return table(["limit", "of", "highest", "last over first"], rows)


def drift(limits: dict[str, Any], *path: str) -> str:
    """How much faster the limit was at the end of the run."""
    first, last = limits["first"], limits["last"]
    for name in path:
        first, last = first[name], last[name]
    return f"{last / first:.2f}"  # type: ignore[operator]


# --- stages ----------------------------------------------------------------------------------------------


def stages_table() -> str:
    record = read("performance")
    rows = []
    for line in record["stages"]:
        model = " ".join(part for part in (line["model"], line["dtype"]) if part)
        operations, moved = line.get("operations"), line.get("bytes")
        seconds = statistics.median(line["seconds"])
        rate = "" if not operations else f"{operations / seconds / 1e9:.1f}"
        share = "" if line["share"] is None else f"{line['share']:.0%} of {line['binds']}"
        rows.append(
            [
                line["stage"],
                model,
                "" if not operations else number(operations / line["count"] / 1e6),
                "" if moved is None else number(moved / line["count"] / 1e6),
                f"{number(1e3 * seconds / line['count'])} per {line['unit']}",
                rate,
                "" if moved is None else f"{moved / seconds / 1e9:.1f}",
                share,
                load(line["other_load"]),
            ]
        )
    head = ["stage", "model", "MFLOP", "MB", "ms", "GFLOP/s", "GB/s", "share of the limit", "other load"]
    lines = [table(head, rows)]
    lines += [f"Left out: {what}: {why}." for what, why in record["skipped"].items()]
    return "\n\n".join(lines)


def overlap_table() -> str:
    rows = []
    for each in read("performance")["overlap"]:
        parts = {
            part: statistics.median(1000 * turn[part]["seconds"] / turn["frames"] for turn in each["rounds"])
            for part in ("total", "decoding side", "model side")
        }
        loads = [turn["other_load"] for turn in each["rounds"] if turn["other_load"] is not None]
        rows.append(
            [
                f"{each['model']} {each['dtype']}",
                each["encoder"],
                *(number(value) for value in parts.values()),
                f"{each['total_over_longest']:.3f}",
                f"{each['total_over_work']:.3f}",
                load(max(loads, default=None)),
            ]
        )
    head = ["model", "encoder", "total, ms per frame", "decoding side alone", "model side alone",
            "total over the longer side", "total over the work", "other load"]  # fmt: skip
    return table(head, rows)


def stage_line(record: dict[str, Any], stage: str, model: str = MODEL, dtype: str = DTYPE) -> dict[str, Any] | None:
    found = [
        line for line in record["stages"] if (line["stage"], line["model"], line["dtype"]) == (stage, model, dtype)
    ]
    return found[0] if found else None


def flop_rate_ratio(record: dict[str, Any], kind: str) -> float | None:
    """FLOP rate of P-frames over that of I-frames, the median of the rounds; None where not measured."""
    full, reduced = stage_line(record, "model, I-frames"), stage_line(record, f"model, P-frames ({kind})")
    if full is None or reduced is None:
        return None
    ratios = [
        (reduced["operations"] / own) / (full["operations"] / other)
        for own, other in zip(reduced["seconds"], full["seconds"], strict=True)
    ]
    return statistics.median(ratios)


# --- file to features ------------------------------------------------------------------------------------


def ratio(runs: dict[str, Any], one: str, other: str) -> float | None:
    """How many times as fast, the median of the rounds; None where one of them was left out."""
    if one not in runs or other not in runs:
        return None
    pairs = zip(runs[one], runs[other], strict=True)
    return statistics.median(a["frames_per_second"] / b["frames_per_second"] for a, b in pairs)


def encode_table() -> str:
    record = read("encode")
    lines = []
    for name, result in record["results"].items():
        runs = result["runs"]
        rows = []
        for variant, own in runs.items():
            loads = [run["other_load"] for run in own if run["other_load"] is not None]
            against = [ratio(runs, variant, other) for other in "abc"]
            rows.append(
                [
                    f"{variant}. {VARIANTS[variant]}",
                    spread([run["frames_per_second"] for run in own]),
                    *("" if value is None else f"{value:.2f}x" for value in against),
                    f"{statistics.median(run['peak_mb'] for run in own):.0f}",
                    load(max(loads, default=None)),
                ]
            )
        head = ["", "frames/s (lowest to highest)", "over a", "over b", "over c", "peak MB", "other load"]
        frames = next(iter(runs.values()))[0]["frames"]
        lines += [f"{mark(record)}**{name}**, {frames} features, {len(runs['a'])} rounds:", table(head, rows)]
        skipped = [f"{variant} ({VARIANTS[variant]}): {why}" for variant, why in result.get("skipped", {}).items()]
        if skipped:
            lines.append(f"Left out: {'; '.join(skipped)}.")
        lines.append(f"Mean cosines: {', '.join(cosines(result))}.")
    return "\n\n".join(lines)


def cosines(result: dict[str, Any]) -> list[str]:
    pairs = [("c to b", result["cosine_of_c_to_b"]), ("g to d", result.get("cosine_of_g_to_d"))]
    pairs += [(f"{variant} to a", value) for variant, value in result.get("cosine_to_a", {}).items()]
    return [f"{pair} {value:.4f}" for pair, value in pairs if value is not None]


def peers_table() -> str:
    record = read("peers")
    lines = []
    for name, result in record["results"].items():
        runs = result["runs"]
        rows = []
        for way, (title, dtype) in WAYS.items():
            own, same = runs[way], result["cosine"][way]
            parts = [own[0]["ms_per_frame"].get(part) for part in ("decode", "preprocess", "model")]
            loads = [run["other_load"] for run in own if run["other_load"] is not None]
            faster = ratio(runs, "residual", way)
            rows.append(
                [
                    f"{title}, {dtype}",
                    spread([run["frames_per_second"] for run in own]),
                    *("" if value is None else f"{value:.1f}" for value in parts),
                    f"{statistics.median(run['peak_mb'] for run in own):.0f}",
                    "other frames" if same["mean"] is None else f"{same['mean']:.4f}",
                    "" if way == "residual" or faster is None else f"{faster:.2f}x",
                    load(max(loads, default=None)),
                ]
            )
        head = ["", "frames/s (lowest to highest)", "decode", "preprocess", "model, ms per frame", "peak MB",
                "cosine to dense float32", "ResidualViT is faster by", "other load"]  # fmt: skip
        video = record["video"]
        lines.append(
            f"{mark(record)}**{name}**, {runs['dense'][0]['frames']} features of {video['seconds']} s at "
            f"{video['size']} and {video['fps']} frames/s, {len(runs['dense'])} rounds:"
        )
        lines.append(table(head, rows))
    return "\n\n".join(lines)


# --- aims ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Aim:
    """measured: None where this run has no such figure; at_most: the aim is an upper limit."""

    text: str
    measured: float | None
    limit: float
    at_most: bool = False

    @property
    def verdict(self) -> str:
        if self.measured is None:
            return "not measured"
        met = self.measured <= self.limit if self.at_most else self.measured >= self.limit
        return "met" if met else "**not met**"


def aims() -> list[Aim]:
    """Those of the CPU, as far as these benchmarks measure them."""
    stages, record = read("performance"), read("encode")
    result = record["results"][MODEL]
    dense = stage_line(stages, "model, I-frames")
    found = [
        Aim("dense, FLOP/s over the highest matmul rate: file to features", end_to_end_share(stages), MATMUL_AIM),
        Aim("the same, the model alone", None if dense is None else dense["share"], MATMUL_AIM),
        Aim(
            "the same, over matmuls of the model's own shapes",
            None if dense is None else dense["share_of_model_shapes"],
            MATMUL_AIM,
        ),
    ]
    for kind, title in (("residual", "ResidualViT"), ("reuse", "ReuseEncoder")):
        rate = flop_rate_ratio(stages, kind)
        found.append(Aim(f"P-frames of {title}, FLOP/s over that of dense", rate, P_FRAME_AIM))
    for (one, other), limit in SPEED_AIMS.items():
        text = f"{VARIANTS[one]}, frames/s over {VARIANTS[other]}"
        found.append(Aim(text, ratio(result["runs"], one, other), limit))
    found.append(Aim("dense int8, cosine to float32", result.get("cosine_to_a", {}).get("f"), COSINE_AIM))
    for each in stages["overlap"]:
        if (each["model"], each["dtype"]) == (MODEL, DTYPE):
            text = f"{each['encoder']}, file to features over its longer side"
            found.append(Aim(text, each["total_over_longest"], OVERLAP_AIM, at_most=True))
    return found + other_aims()


def end_to_end_share(stages: dict[str, Any]) -> float | None:
    """The share of the matmul rate that dense encoding reaches from the file on."""
    dense = stage_line(stages, "model, I-frames")
    for each in stages["overlap"]:
        if dense is not None and (each["model"], each["dtype"], each["encoder"]) == (MODEL, DTYPE, "dense"):
            rate = statistics.median(turn["frames"] / turn["total"]["seconds"] for turn in each["rounds"])
            return dense["share"] * rate / dense["per_second"]
    return None


def other_aims() -> list[Aim]:
    """Those that other benchmarks measure, where they have run."""
    there = [name for name in ("paths", "startup") if (records.RESULTS / f"{name}.json").exists()]
    paths, startup = (read(name) if name in there else None for name in ("paths", "startup"))
    points = None
    if paths is not None:
        # Of the float32 rows, which are the reference, there is nothing to say.
        fast = [row for row in paths["bundled"] if row["fidelity"] is not None]
        points = min(each["points"] for row in fast for each in row["accuracy"])
    found = [Aim("R@1 of the fast paths, points against float32, the least (bundled model)", points, POINTS_AIM)]
    for name, limit in START_AIMS.items():
        seconds = None if startup is None else statistics.median(startup["seconds"][name])
        found.append(Aim(f"start-up, {name}, seconds", seconds, limit, at_most=True))
    return found


def aims_table() -> str:
    rows = []
    for aim in aims():
        wanted = f"{'at most' if aim.at_most else 'at least'} {aim.limit:g}"
        rows.append([aim.text, wanted, "" if aim.measured is None else f"{aim.measured:.3g}", aim.verdict])
    met = sum(aim.verdict == "met" for aim in aims())
    head = f"{mark(read('performance'))}{MODEL}, {DTYPE} unless said otherwise: {met} of {len(rows)} met."
    return f"{head}\n\n{table(['', 'aim', 'measured', ''], rows)}"


# --- scaling ---------------------------------------------------------------------------------------------

AXES = {
    "length": ("length of the video", "s", "s of video"),
    "resolution": ("pixels of a source frame", "megapixels", "megapixel"),
    "fps": ("features per second of video", "per second", "feature per second"),
    "model": ("the model's work per frame", "GMAC", "GMAC"),
}


def scaling_table() -> str:
    record = read("scaling")
    rows = []
    for axis, (title, unit, one) in AXES.items():
        for line, found in record["axes"][axis].items():
            xs, own = [each["x"] for each in found["points"]], found["fit"]
            frames = found["points"][0].get("frames", 1)
            fixed, slope = (1000 * own[part] / frames for part in ("start", "slope"))
            breaks = "all of it" if own["all_linear"] else f"to {number(own['linear_to'])} {unit}"
            rows.append(
                [
                    title,
                    line,
                    f"{number(min(xs))} to {number(max(xs))} {unit}",
                    f"{number(fixed)} ms",
                    f"{number(slope)} ms per {one}",
                    f"{own['largest_error']:.0%}",
                    breaks,
                ]
            )
    head = ["cost against", "of", "measured from", "line: fixed", "line: slope", "largest distance from it", "linear"]
    peaks = [(each["x"], each["peak_mb"]) for each in record["axes"]["length"]["file to features"]["points"]]
    memory = ", ".join(f"{peak:.0f} MB at {seconds:g} s" for seconds, peak in peaks)
    other = load(record["machine"]["other_load"])
    return f"{table(head, rows)}\n\n{mark(record)}Peak memory by length: {memory}. Other load: {other} cores."


def cost_table() -> str:
    lines = read("scaling")["axes"]["cost"]
    rows = []
    for kind in ("ResidualViT", "ReuseEncoder"):
        for each in lines[kind]["points"]:
            rows.append(
                [
                    kind,
                    f"{each['N']}",
                    f"{each['p']:g}",
                    f"{each['x']:.3f}",
                    f"{each['time']:.3f}",
                    f"{each['time_over_cost']:.2f}",
                ]
            )
    return table(["", "N", "p", "GFLOPs, of dense", "time, of dense", "time over GFLOPs"], rows)


# --- pictures --------------------------------------------------------------------------------------------


def draw(images: Path = IMAGES, *, names: Sequence[str] | None = None, suffix: str = "svg") -> list[Path]:
    """Write the pictures of docs/performance.md (all, or `names`). The same records give the same bytes."""
    matplotlib = require("matplotlib", extra="plot")
    images.mkdir(parents=True, exist_ok=True)
    written = []
    # Ids and dates would differ from run to run.
    with matplotlib.rc_context({"svg.hashsalt": "everyframe"}):
        for name in PICTURES if names is None else names:
            record, make = PICTURES[name]
            file = images / f"{name}.{suffix}"
            make(read(record)).savefig(file, dpi=110, metadata={"Date": None} if suffix == "svg" else None)
            written.append(file)
    return written


def _figure(columns: int, size: tuple[float, float], rows: int = 1) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


DTYPE_COLOURS = {"float32": GREY, "bfloat16": BLUE, "int8": VIOLET}
STAGE_MARKERS = {
    "model, I-frames": ("o", "model, I-frames"),
    "model, P-frames (residual)": ("D", "model, P-frames of ResidualViT"),
    "model, P-frames (reuse)": ("^", "model, P-frames of ReuseEncoder"),
    "resize, normalise": ("s", "resize, normalise"),
    "plan, by motion": ("v", "plan, by motion"),
    "plan, by change": ("<", "plan, by change"),
    "to RGB": ("P", "to RGB"),
}


def roofline(record: dict[str, Any]) -> Any:
    """Achieved FLOP/s over operations per byte, under the ceilings of this machine."""
    from matplotlib.lines import Line2D

    best = record["limits"]["highest"]
    memory = best["copy"]["memory"] / 1e9
    figure, ((axes,),) = _figure(1, (8.6, 4.8))
    left, right = 0.1, 3000.0
    ceilings = {dtype: max(rates.values()) / 1e9 for dtype, rates in best["matmul"].items()}
    for dtype, ceiling in ceilings.items():
        colour = DTYPE_COLOURS[dtype]
        axes.plot([ceiling / memory, right], [ceiling, ceiling], color=colour, linewidth=1.1)
        axes.annotate(
            f"{dtype} matmul, {ceiling:.0f} GFLOP/s", (right, ceiling), textcoords="offset points", xytext=(-4, 4),
            ha="right", fontsize=8, color=colour,
        )  # fmt: skip
    knee = max(ceilings.values()) / memory
    axes.plot([left, knee], [left * memory, knee * memory], color="0.35", linewidth=1.1)
    axes.annotate(
        f"copy in memory, {memory:.0f} GB/s", (0.9, 0.9 * memory), textcoords="offset points", xytext=(-5, 5),
        ha="right", fontsize=8, color="0.35",
    )  # fmt: skip
    seen = []
    for line in record["stages"]:
        if not line.get("operations") or line["stage"] not in STAGE_MARKERS:
            continue
        marker = STAGE_MARKERS[line["stage"]][0]
        seen += [line["stage"]] if line["stage"] not in seen else []
        colour = DTYPE_COLOURS[line["dtype"]] if line["stage"].startswith("model") else OCHRE
        axes.plot(
            line["operations"] / line["bytes"], line["operations"] / statistics.median(line["seconds"]) / 1e9, marker,
            color=colour, markersize=6.5, markerfacecolor=colour if line["model"] in (MODEL, "") else "white",
        )  # fmt: skip
    handles = [
        Line2D([], [], linestyle="none", marker=STAGE_MARKERS[stage][0], color="0.3", label=STAGE_MARKERS[stage][1])
        for stage in seen
    ]
    axes.set(
        xscale="log", yscale="log", xlim=(left, right), xlabel="operations per byte (FLOP/B), as counted",
        ylabel="GFLOP/s, achieved",
    )  # fmt: skip
    axes.set_ylim(top=2.2 * max(ceilings.values()))
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.legend(
        handles=handles, loc="lower right", fontsize=8, frameon=False, title=f"filled: {MODEL}; hollow: other models",
        title_fontsize=8,
    )  # fmt: skip
    return figure


def frames_picture(record: dict[str, Any]) -> Any:
    """Frames per second of every way, by model."""
    results = record["results"]
    figure, axes = _figure(len(results), (10.8, 3.4))
    for panel, (name, result) in zip(axes[0], results.items(), strict=True):
        variants = list(result["runs"])
        speeds = [[run["frames_per_second"] for run in result["runs"][each]] for each in variants]
        medians = [statistics.median(own) for own in speeds]
        errors = [
            [middle - min(own) for middle, own in zip(medians, speeds, strict=True)],
            [max(own) - middle for middle, own in zip(medians, speeds, strict=True)],
        ]
        colours = [GREY if each in "ab" else BLUE for each in variants]
        places = range(len(variants))
        panel.barh(places, medians, color=colours, height=0.62)
        panel.errorbar(medians, places, xerr=errors, fmt="none", ecolor="0.2", elinewidth=0.9, capsize=2)
        for place, (middle, own) in enumerate(zip(medians, speeds, strict=True)):
            panel.annotate(
                f"{middle:.1f}", (max(own), place), textcoords="offset points", xytext=(5, 0), va="center", fontsize=8.5
            )
        panel.set_yticks(places, [VARIANTS[each] for each in variants] if panel is axes[0][0] else [""] * len(variants))
        panel.invert_yaxis()
        panel.set_title(name, loc="left", fontsize="medium")
        panel.set(xlabel="frames/s, file to features", xlim=(0, 1.14 * max(map(max, speeds))))
        panel.grid(axis="x", color="0.92")
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    return figure


PANELS = {
    "length": "length of the video, s",
    "resolution": "source frame, megapixels",
    "fps": "features per second of video",
    "model": "model, GMAC per frame",
}


def scaling_picture(record: dict[str, Any]) -> Any:
    """Time over what it should grow with: points measured, lines fitted."""
    import numpy as np
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, axes = _figure(2, (9.4, 6.6), rows=2)
    for panel, (axis, label) in zip(axes.flat, PANELS.items(), strict=True):
        for colour, (line, found) in zip((BLUE, OCHRE), record["axes"][axis].items(), strict=False):
            per = found["points"][0].get("frames", 1) / 1000 if axis == "model" else 1
            xs = [each["x"] for each in found["points"]]
            ys = [each["seconds"] / per for each in found["points"]]
            own = found["fit"]
            across = np.geomspace(min(xs), max(xs), 50)
            panel.plot(across, (own["start"] + own["slope"] * across) / per, color=colour, linewidth=1, alpha=0.55)
            panel.plot(xs, ys, "o", color=colour, markersize=5, label=line)
            if axis == "model" and line == "dense":
                for each, y in zip(found["points"], ys, strict=True):
                    panel.annotate(
                        each["model"],
                        (each["x"], y),
                        textcoords="offset points",
                        xytext=(-6, 5),
                        ha="right",
                        fontsize=8,
                    )
        panel.set(xlabel=label, ylabel="ms per frame, model alone" if axis == "model" else "time, s")
        if axis == "model":
            panel.set(xscale="log", yscale="log")
            panel.margins(x=0.2, y=0.12)
            for side in (panel.xaxis, panel.yaxis):
                side.set_major_locator(LogLocator(subs=(1, 2, 5)))
                side.set_major_formatter(lambda value, _: f"{value:g}")
                side.set_minor_formatter(NullFormatter())
        else:
            panel.set_xlim(left=0)
            panel.set_ylim(bottom=0)
        panel.grid(color="0.92")
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(loc="lower right" if axis == "model" else "upper left", fontsize=8.5, frameon=False)
    return figure


def cost_picture(record: dict[str, Any]) -> Any:
    """Measured time over counted cost, both as shares of dense, by N and by p."""
    lines = record["axes"]["cost"]
    figure, axes = _figure(2, (9.4, 4.2))
    for panel, (what, title) in zip(
        axes[0],
        (("N", "N P-frames after each I-frame (p = 0.85)"), ("p", "share p that P-frames drop (N = 2)")),
        strict=True,
    ):
        panel.plot([0, 1.05], [0, 1.05], color="0.6", linewidth=0.9, linestyle="--", label="paid as counted")
        for kind, colour, marker in (("ResidualViT", BLUE, "o"), ("ReuseEncoder", GREEN, "^")):
            own = [each for each in lines[kind]["points"] if (each["p"] == 0.85 if what == "N" else each["N"] == 2)]
            own.sort(key=lambda each: each["x"])
            panel.plot(
                [each["x"] for each in own], [each["time"] for each in own], marker + "-", color=colour, markersize=5,
                linewidth=1, label=kind,
            )  # fmt: skip
            for each in own:
                panel.annotate(
                    f"{each[what]:g}", (each["x"], each["time"]), textcoords="offset points", fontsize=8, color=colour,
                    xytext=(-4, 6) if kind == "ResidualViT" else (3, -12),
                )  # fmt: skip
        panel.plot(1, 1, "*", color=GREY, markersize=9, label="dense")
        panel.set(xlim=(0, 1.05), xlabel="GFLOPs, of dense", ylabel="time, of dense")
        panel.set_ylim(bottom=0)
        panel.set_title(f"numbers: {title}", loc="left", fontsize=9)
        panel.grid(color="0.92")
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    axes[0][0].legend(loc="lower right", fontsize=8.5, frameon=False)
    return figure


PICTURES = {
    "performance-roofline": ("performance", roofline),
    "performance-frames": ("encode", frames_picture),
    "performance-scaling": ("scaling", scaling_picture),
    "performance-cost": ("scaling", cost_picture),
}
RENDERERS = {
    "performance_machine": machine_line,
    "performance_aims": aims_table,
    "performance_limits": limits_table,
    "performance_stages": stages_table,
    "performance_overlap": overlap_table,
    "performance_encode": encode_table,
    "performance_peers": peers_table,
    "performance_scaling": scaling_table,
    "performance_cost": cost_table,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=records.RESULTS)
    parser.add_argument("--images", type=Path, default=IMAGES)
    parser.add_argument("--png", action="store_true", help="PNG instead of SVG, to be looked at")
    options = parser.parse_args()
    records.RESULTS = options.results
    for file in draw(options.images, suffix="png" if options.png else "svg"):
        print(file)


if __name__ == "__main__":
    main()
