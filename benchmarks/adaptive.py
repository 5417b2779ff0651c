"""What does "spend compute only where the video changes" buy? Every method on seven kinds of footage, bundled model.

    python benchmarks/adaptive.py [--videos 6] [--fps 3 1] [--work DIR] [--out benchmarks/results/adaptive.json]
    python benchmarks/adaptive.py --draw            # print and draw again what --out holds

Splits are the styles of `everyframe.synthetic.SPLITS`, with objects whose (colour, pattern, shape) training never
showed; three sets of them, with the seeds 910 to 912. Per split, and for all of them together ("all"):

GFLOPs     multiply-accumulates per frame, rule "all"; share: of dense, in %
fidelity   cosine to the dense features: mean of all frames, 5th percentile, mean of the first sampled frame after a
           cut and of the frame after that, and 5th percentile of these two
R@1        of `ground` with its defaults at IoU 0.5 and 0.7, in % of what dense finds

A figure is of all videos together; the smallest and the largest of the sets stand beside it, and for R@1 of "all"
a bootstrap 95 % interval (videos drawn with replacement within their split). The verdicts at the end are of aims set
before measuring. Where they pick one setting of the adaptive grid, they do so by cost and fidelity, not by R@1.

With --work, what was rendered and measured is kept and found again; the loop goes over all splits and sets before it
takes the second video of any, so a run that was cut short can be summed up with fewer --videos.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

import everyframe as ef
from everyframe.backbone import Model
from everyframe.encoders import DenseEncoder, ResidualViT, ReuseEncoder
from everyframe.encoders.baselines import copy_features, fidelity, interpolate_features
from everyframe.encoders.plan import fixed_roles
from everyframe.pipeline import Window, read_window
from everyframe.spans import temporal_iou
from everyframe.synthetic import SPLITS, synthesize
from everyframe.tasks.grounding import ground
from everyframe.version import package_version

ORDER = ("lecture", "still", "talking_head", "handheld", "pan", "action", "cuts")
STILL = ("lecture", "still")
SEEDS = (910, 911, 912)
REAL_MOVING = (15, 35, 54, 83)  # share of moving patches of four real clips, in %
GRID = {0.92: (1.4, 2.8, 5.6), 0.85: (0.35, 0.7, 1.0, 1.4, 2.8, 5.6), 0.75: (0.35, 0.7, 1.4)}
DEFAULT = "adaptive p=0.85 t=1"
FIXED = {"ResidualViT as published": "ResidualViT + token N=2", "reuse": "reuse N=2"}
IOUS = (0.5, 0.7)
DRAWS = 2000
RESULTS = Path(__file__).parent / "results" / "adaptive.json"
IMAGES = Path(__file__).parents[1] / "docs" / "images"

Encoded = tuple[np.ndarray, float, str]  # features [T, D], multiply-accumulates of all frames, roles


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to encode. run: a window and its dense features -> Encoded."""

    name: str
    kind: str
    run: Callable[[Window, np.ndarray], Encoded]
    interleave: int | None = None
    drop: float | None = None
    tolerance: float | None = None


def methods(model: Model) -> list[Method]:
    dense = DenseEncoder(model)

    def full(frames: int) -> float:
        return sum(dense.macs(frames, "all").values())

    def whole(window: Window, features: np.ndarray) -> Encoded:
        return features, full(len(features)), "I" * len(features)

    def shortcut(kind: str, n: int, window: Window, features: np.ndarray) -> Encoded:
        made = copy_features(features, n) if kind == "copy" else interpolate_features(features, window.times, n)
        roles = fixed_roles(len(features), n).replace("P", "C")
        return made, full(roles.count("I")), roles

    def residual(encoder: ResidualViT, window: Window, features: np.ndarray) -> Encoded:
        made = encoder.encode(window.pixels, window.motion).numpy()
        return made, sum(encoder.macs(len(made), "all").values()), encoder.roles(len(made))

    def reuse(encoder: ReuseEncoder, window: Window, features: np.ndarray) -> Encoded:
        planner = encoder.planner()
        plan = planner.add(window.pixels, window.motion) + planner.finish()
        made = encoder.encode_planned(window.pixels, plan).numpy()
        return made, sum(encoder.plan_macs(plan, "all").values()), plan.roles

    found = [Method(name="dense", kind="dense", run=whole)]
    for kind in ("copy", "interpolate"):
        found += [Method(name=f"{kind} N={n}", kind=kind, run=partial(shortcut, kind, n), interleave=n) for n in (2, 5)]
    for name, kind, n, select, token in (
        ("ResidualViT N=2", "residual", 2, "motion", None),
        ("ResidualViT N=5", "residual", 5, "motion", None),
        ("ResidualViT + token N=2", "token", 2, "motion", "auto"),
        ("ResidualViT + token N=5", "token", 5, "motion", "auto"),
        ("ResidualViT + token random N=2", "token random", 2, "random", "auto"),
    ):
        encoder = ResidualViT(model, n, 0.85, select, token)
        found.append(Method(name=name, kind=kind, run=partial(residual, encoder), interleave=n, drop=0.85))
    for name, kind, n, options in (
        ("reuse N=2", "reuse", 2, {}),
        ("reuse N=5", "reuse", 5, {}),
        ("reuse N=10", "reuse", 10, {}),
        ("reuse motion N=5", "reuse motion", 5, {"select": "motion"}),
        ("reuse cuts N=5", "reuse cuts", 5, {"plan": "cuts"}),
        ("two-sided N=5", "two-sided", 5, {"two_sided": True}),
        ("two-sided N=10", "two-sided", 10, {"two_sided": True}),
        ("two-sided cuts N=5", "two-sided cuts", 5, {"plan": "cuts", "two_sided": True}),
    ):
        run = partial(reuse, ReuseEncoder(model, n, 0.85, **options))
        found.append(Method(name=name, kind=kind, run=run, interleave=n, drop=0.85))
    for drop, tolerances in GRID.items():
        for tolerance in tolerances:
            run = partial(reuse, ReuseEncoder(model, drop=drop, plan="adaptive", tolerance=tolerance))
            name = f"adaptive p={drop:g} t={tolerance:g}"
            found.append(Method(name=name, kind="adaptive", run=run, drop=drop, tolerance=tolerance))
    for tolerance in (1.0, 1.4, 2.8):
        encoder = ReuseEncoder(model, drop=0.85, plan="adaptive", tolerance=tolerance, two_sided=True)
        name = f"two-sided adaptive p=0.85 t={tolerance:g}"
        found.append(
            Method(name=name, kind="two-sided adaptive", run=partial(reuse, encoder), drop=0.85, tolerance=tolerance)
        )
    return found


# --- measuring -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Measured:
    """All M methods on one video: fidelity [M, T], overlaps with the truth [M, queries], macs [M], roles [M, 3]."""

    split: str
    seed: int
    moving: float
    cut_frames: np.ndarray  # the first sampled frame of every shot but the first
    fidelity: np.ndarray
    overlaps: np.ndarray
    macs: np.ndarray
    roles: np.ndarray


def rendered(folder: Path, split: str, seed: int, videos: int, seconds: float, workers: int) -> list[dict[str, Any]]:
    """The videos of a split and set, rendered unless they are there: file, moving_share, cuts, events."""
    facts = folder / "videos.jsonl"
    known = lines(facts) if facts.is_file() else []
    if len(known) < videos or any(line["duration"] != seconds for line in known):
        options = {"videos": videos, "seconds": seconds, "seed": seed, "style": split, "workers": workers}
        for _ in synthesize(folder, combinations="unseen", **options):
            pass
        known = lines(facts)
    events: dict[str, list[tuple[str, float, float]]] = {}
    for line in lines(folder / "annotations.jsonl"):
        events.setdefault(line["vid"], []).append((line["query"], *line["relevant_windows"][0]))
    return [
        {**line, "file": folder / f"{line['vid']}.mp4", "events": events.get(line["vid"], [])}
        for line in known[:videos]
    ]


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def measure_video(
    model: Model, ways: Sequence[Method], video: dict[str, Any], fps: float, split: str, seed: int
) -> Measured:
    window = read_window(video["file"], model, fps=fps)
    dense = DenseEncoder(model).encode(window.pixels).numpy()
    texts = [caption for caption, _, _ in video["events"]]
    queries = model.encode_text(texts).numpy() if texts else np.empty((0, model.dim))
    # Cuts are written with 3 decimals; a frame of the new shot is never more than that before one.
    firsts = np.unique(np.searchsorted(window.times, np.array(video["cuts"]) - 1e-3))
    kept: dict[str, list[Any]] = {"fidelity": [], "overlaps": [], "macs": [], "roles": []}
    for way in ways:
        features, macs, roles = way.run(window, dense)
        feats = ef.VideoFeatures(
            times=window.times,
            embeddings=features,
            roles=roles,
            end_seconds=window.end_seconds,
            settings={"fps": fps},
        )
        overlaps = np.zeros(len(texts))
        for row, (query, (_, start, end)) in enumerate(zip(queries, video["events"], strict=True)):
            for moment in ground(feats, query, top=1):
                overlaps[row] = temporal_iou(moment, (start, end))
        kept["fidelity"].append(fidelity(features, dense))
        kept["overlaps"].append(overlaps)
        kept["macs"].append(macs)
        kept["roles"].append([roles.count(role) for role in "IPC"])
    return Measured(
        split=split,
        seed=seed,
        moving=video["moving_share"],
        cut_frames=firsts[firsts < len(window.times)],
        **{key: np.array(values) for key, values in kept.items()},
    )


def measure(
    model: Model, ways: Sequence[Method], options: argparse.Namespace, fps: float, work: Path
) -> list[Measured]:
    identity = [fps, options.seconds, [way.name for way in ways], model.weights_sha256, code()]
    mark = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]
    found = []
    started = time.monotonic()
    for index in range(options.videos):
        for seed in SEEDS:
            for split in ORDER:
                kept = work / f"measured-{mark}-{split}-{seed}-{index}.npz"
                if not kept.is_file():
                    videos = rendered(
                        work / f"{split}-{seed}", split, seed, options.videos, options.seconds, options.workers
                    )
                    one = measure_video(model, ways, videos[index], fps, split, seed)
                    np.savez_compressed(kept, **vars(one))
                with np.load(kept) as stored:
                    found.append(Measured(**{key: as_plain(stored[key]) for key in stored.files}))
        print(f"{fps:g} fps: video {index + 1} of all after {time.monotonic() - started:.0f} s", file=sys.stderr)
    return found


def as_plain(value: np.ndarray) -> Any:
    return value if value.ndim else value.item()


def code() -> str:
    """Fingerprint of what is measured: the encoders and how they choose."""
    folder = Path(ef.__file__).parent
    files = sorted([*folder.glob("encoders/*.py"), *folder.glob("tokens/*.py"), *folder.glob("tasks/grounding.py")])
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


# --- figures ---------------------------------------------------------------------------------------------


def rows(ways: Sequence[Method], videos: Sequence[Measured], *, interval: bool) -> list[dict[str, Any]]:
    """A line per method; "x": [of all videos, smallest set, largest set], but recall_*: of all videos.

    interval: with that of R@1.
    """

    def spread(figure: Callable[[Sequence[Measured]], float | None]) -> list[float | None]:
        whole = figure(videos)
        seeds = sorted({video.seed for video in videos})
        sets = [figure([video for video in videos if video.seed == seed]) for seed in seeds]
        known = [value for value in sets if value is not None]
        return [number(value) for value in (whole, min(known, default=None), max(known, default=None))]

    found = []
    for row, way in enumerate(ways):
        roles = sum(video.roles[row] for video in videos)
        line: dict[str, Any] = {"method": way.name, "kind": way.kind}
        line |= {key: value for key in ("interleave", "drop", "tolerance") if (value := getattr(way, key)) is not None}
        line["gflops"] = number(gflops(videos, row))
        line["roles"] = [number(share) for share in roles / roles.sum()]
        line["share"] = spread(lambda some, row=row: 100 * gflops(some, row) / gflops(some, 0))
        line["fidelity"] = spread(lambda some, row=row: fidelities(some, row).mean())
        line["fidelity_5"] = spread(lambda some, row=row: np.percentile(fidelities(some, row), 5))
        for name, after in (("cut", 0), ("after_cut", 1)):
            line[name] = spread(lambda some, row=row, after=after: mean(at_cuts(some, row, after)))
        line["cuts_5"] = spread(lambda some, row=row: percentile(both_at_cuts(some, row), 5))
        for iou in IOUS:
            line[f"recall_{iou:g}"] = number(mean(hits(videos, row, iou)))
            line[f"kept_{iou:g}"] = spread(
                lambda some, row=row, iou=iou: 100 * hits(some, row, iou).sum() / max(hits(some, 0, iou).sum(), 1)
            )
            if interval:
                line[f"interval_{iou:g}"] = bootstrap(videos, row, iou)
        found.append(line)
    return found


def gflops(videos: Sequence[Measured], row: int) -> float:
    return sum(video.macs[row] for video in videos) / sum(video.fidelity.shape[1] for video in videos) / 1e9


def fidelities(videos: Sequence[Measured], row: int) -> np.ndarray:
    return np.concatenate([video.fidelity[row] for video in videos])


def at_cuts(videos: Sequence[Measured], row: int, after: int) -> np.ndarray:
    frames = [video.cut_frames + after for video in videos]
    frames = [some[some < video.fidelity.shape[1]] for some, video in zip(frames, videos, strict=True)]
    return np.concatenate([video.fidelity[row][some] for some, video in zip(frames, videos, strict=True)])


def both_at_cuts(videos: Sequence[Measured], row: int) -> np.ndarray:
    return np.concatenate([at_cuts(videos, row, after) for after in (0, 1)])


def percentile(values: np.ndarray, share: float) -> float | None:
    return float(np.percentile(values, share)) if len(values) else None


def hits(videos: Sequence[Measured], row: int, iou: float) -> np.ndarray:
    return np.concatenate([video.overlaps[row] for video in videos]) >= iou


def mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def number(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def bootstrap(videos: Sequence[Measured], row: int, iou: float) -> dict[str, list[float | None]]:
    """R@1 minus that of dense in points, and as % of it: [low, high] of the middle 95 %."""
    rng = np.random.default_rng(0)
    own = np.array([(video.overlaps[row] >= iou).sum() for video in videos])
    full = np.array([(video.overlaps[0] >= iou).sum() for video in videos])
    count = np.array([video.overlaps.shape[1] for video in videos])
    names = np.array([video.split for video in videos])
    drawn = np.concatenate(
        [
            members[rng.integers(len(members), size=(DRAWS, len(members)))]
            for members in (np.flatnonzero(names == split) for split in dict.fromkeys(names))
        ],
        axis=1,
    )
    points = 100 * (own - full)[drawn].sum(1) / np.maximum(count[drawn].sum(1), 1)
    kept = 100 * own[drawn].sum(1) / np.maximum(full[drawn].sum(1), 1)
    return {
        name: [number(value) for value in np.percentile(values, [2.5, 97.5])]
        for name, values in (("points", points), ("kept", kept))
    }


def front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those (cost, fidelity) that no other beats in both, from cheap to dear."""
    best: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or value > best[-1][1]:
            best.append((cost, value))
    return best


def cost_at(points: list[tuple[float, float]], wanted: float) -> tuple[float | None, str]:
    """What `wanted` fidelity costs on the line through a front's points, and "" or how that is bounded."""
    if wanted <= points[0][1]:
        return points[0][0], "at most "
    for (cheap, low), (dear, high) in pairwise(points):
        if wanted <= high:
            return cheap + (dear - cheap) * (wanted - low) / (high - low), ""
    return None, "not reached by the grid, "


def verdicts(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Each aim: met or not (None: cannot be said), and the figures in words."""
    by = {split: {row["method"]: row for row in table} for split, table in result["splits"].items()}
    pooled = by["all"]
    adaptive = [row for row in pooled.values() if row["kind"] == "adaptive"]
    default = pooled[DEFAULT]
    found = []

    cheap = [row for row in adaptive if row["share"][0] <= 30]
    if cheap:
        chosen = max(cheap, key=lambda row: row["fidelity"][0])
        kept = [chosen[f"kept_{iou:g}"][0] for iou in IOUS]
        both = [row["method"] for row in cheap if min(row[f"kept_{iou:g}"][0] for iou in IOUS) >= 98]
        spans = [chosen[f"interval_{iou:g}"]["kept"] for iou in IOUS]
        text = (
            f"{chosen['method']} (best fidelity at <= 30 % of dense) costs {chosen['share'][0]:.1f} % and keeps "
            f"{kept[0]:.1f} % [{spans[0][0]:.1f}, {spans[0][1]:.1f}] and {kept[1]:.1f} % "
            f"[{spans[1][0]:.1f}, {spans[1][1]:.1f}] of dense R@1; {len(both)} of {len(cheap)} such settings keep "
            f">= 98 % of both; {DEFAULT}: {default['kept_0.5'][0]:.1f} % and {default['kept_0.7'][0]:.1f} % at "
            f"{default['share'][0]:.1f} %"
        )
        met: bool | None = min(kept) >= 98
        # What does not adapt gets some room: copying and interpolating with N=2 cost a third.
        others = [
            f"{row['method']} {row['kept_0.5'][0]:.1f} % and {row['kept_0.7'][0]:.1f} % at {row['share'][0]:.1f} %"
            for row in pooled.values()
            if row["kind"] not in ("dense", "adaptive") and row["share"][0] <= 34
        ]
        text += f"; without adapting: {'; '.join(others)}"
    else:
        text, met = "no setting of the grid costs <= 30 %", False
    found.append({"aim": "-70 % GFLOPs at >= 98 % of dense R@1, all splits", "met": met, "text": text})

    curves = {
        "grid": front((row["share"][0], row["fidelity"][0]) for row in adaptive),
        "p=0.85": front((row["share"][0], row["fidelity"][0]) for row in adaptive if row["drop"] == 0.85),
    }
    for title, name in FIXED.items():
        fixed = pooled[name]
        parts, ratios = [], {}
        for curve, points in curves.items():
            cost, bound = cost_at(points, fixed["fidelity"][0])
            if cost is None:
                parts.append(f"{bound}{curve}")
            else:
                ratios[curve] = cost / fixed["share"][0]
                parts.append(f"{bound}{cost:.1f} % ({bound}{ratios[curve]:.2f} of it, {curve})")
        text = (
            f"{name}: fidelity {fixed['fidelity'][0]:.4f} at {fixed['share'][0]:.1f} % of dense; "
            f"adaptive: {', '.join(parts)}"
        )
        aim = f"half the GFLOPs of fixed N=2 at equal fidelity ({title})"
        found.append({"aim": aim, "met": "grid" in ratios and ratios["grid"] <= 0.5, "text": text})

    parts, good = [], []
    for split in (*STILL, "both"):
        options = []
        for row in adaptive:
            own = [by[each][row["method"]] for each in (STILL if split == "both" else (split,))]
            # Both splits have as many frames, so means of the two are those of all frames.
            cost = sum(each["share"][0] for each in own) / len(own)
            value = sum(each["fidelity"][0] for each in own) / len(own)
            options.append((cost, value, row["method"]))
        able = [option for option in options if option[1] >= 0.99]
        if able:
            cost, value, name = min(able)
            parts.append(f"{split}: {name} {100 / cost:.1f}x fewer at {value:.4f}")
            good.append(cost <= 10)
        else:
            cost, value, name = max(options, key=lambda option: option[1])
            parts.append(f"{split}: none reaches 0.99, {name} {100 / cost:.1f}x fewer at {value:.4f}")
            good.append(False)
        usual = next(option for option in options if option[2] == DEFAULT)
        parts[-1] += f" (default {100 / usual[0]:.1f}x at {usual[1]:.4f})"
    aim = "lecture and still: >= 10x fewer GFLOPs than dense at fidelity >= 0.99"
    found.append({"aim": aim, "met": all(good), "text": "; ".join(parts)})

    for title, name in FIXED.items():
        below = []
        for split, table in by.items():
            fixed = table[name]
            for key in ("cut", "after_cut"):
                own = table[DEFAULT][key][0]
                if own is not None and own < fixed[key][0]:
                    below.append(f"{split} {key} {own:.4f} < {fixed[key][0]:.4f}")
        fixed = pooled[name]
        text = (
            f"{DEFAULT} {default['cut'][0]:.4f} then {default['after_cut'][0]:.4f}, {name} {fixed['cut'][0]:.4f} then "
            f"{fixed['after_cut'][0]:.4f}; below it: {', '.join(below) or 'nowhere'}"
        )
        aim = f"never below fixed N=2's fidelity at cuts, by split ({title})"
        found.append({"aim": aim, "met": not below, "text": text})
    return found


def equal_fidelity(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of every other method: what the adaptive grid's front costs at the same mean fidelity, over what it costs."""
    points = front((row["share"][0], row["fidelity"][0]) for row in rows if row["kind"] == "adaptive")
    found = []
    for row in rows:
        if row["kind"] not in ("dense", "adaptive"):
            cost, bound = cost_at(points, row["fidelity"][0])
            ratio = None if cost is None else number(cost / row["share"][0])
            found.append({"other": row["method"], "ratio": ratio, "bound": bound.strip(" ,")})
    return found


def summed(ways: Sequence[Method], videos: Sequence[Measured], fps: float, names: Sequence[str]) -> dict[str, Any]:
    groups = {name: [video for video in videos if name in ("all", video.split)] for name in names}
    result: dict[str, Any] = {
        "fps": fps,
        "facts": {
            name: {
                "videos": len(some),
                "frames": sum(video.fidelity.shape[1] for video in some),
                "queries": sum(video.overlaps.shape[1] for video in some),
                "cuts": sum(len(video.cut_frames) for video in some),
                "moving_percent": number(100 * float(np.mean([video.moving for video in some]))),
            }
            for name, some in groups.items()
        },
        "splits": {name: rows(ways, some, interval=name == "all") for name, some in groups.items()},
    }
    result["verdicts"] = verdicts(result)
    result["equal_fidelity"] = {name: equal_fidelity(each) for name, each in result["splits"].items()}
    return result


# --- saying and drawing ----------------------------------------------------------------------------------


def table(rows: Sequence[dict[str, Any]]) -> str:
    head = (
        "method",
        "GFLOPs",
        "share %",
        "fidelity",
        "5th pct",
        "at cut",
        "after",
        "R@1 .5 % [set] (95 %)",
        "R@1 .7 %",
    )
    found = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in rows:
        cells = [row["method"], f"{row['gflops']:.4f}", f"{row['share'][0]:.1f}"]
        cells += [
            "-" if row[key][0] is None else f"{row[key][0]:.4f}"
            for key in ("fidelity", "fidelity_5", "cut", "after_cut", "cuts_5")
        ]
        for iou in IOUS:
            whole, low, high = row[f"kept_{iou:g}"]
            cells.append(f"{whole:.1f} [{low:.1f}, {high:.1f}]")
            if f"interval_{iou:g}" in row:
                span = row[f"interval_{iou:g}"]["kept"]
                cells[-1] += f" ({span[0]:.1f} to {span[1]:.1f})"
        found.append("| " + " | ".join(cells) + " |")
    return "\n".join(found)


def say(record: dict[str, Any]) -> None:
    real = ", ".join(map(str, REAL_MOVING))
    for result in record["runs"]:
        for name, each in result["splits"].items():
            facts = result["facts"][name]
            print(
                f"\n{name} at {result['fps']:g} frames/s: {facts['videos']} videos, {facts['frames']} frames, "
                f"{facts['queries']} queries, {facts['cuts']} cuts; {facts['moving_percent']:.0f} % of patches move "
                f"(real clips: {real} %)"
                + ("; across cuts not counted" if name == "cuts" else "")
                + f"\n\n{table(each)}"
            )
        print(f"\nAims at {result['fps']:g} frames/s")
        for verdict in result["verdicts"]:
            print(f"- {'MET' if verdict['met'] else 'NOT MET'}: {verdict['aim']}\n  {verdict['text']}")
        print("\nWhat the adaptive grid costs at the fidelity of another method, over what that costs")
        for name, each in result["equal_fidelity"].items():
            cells = [
                f"{one['other']} {one['bound']} {'' if one['ratio'] is None else format(one['ratio'], '.2f')}"
                for one in each
            ]
            print(f"- {name}: {'; '.join(' '.join(cell.split()) for cell in cells)}")


LOOKS = {  # kind, label, colour, marker and line
    "copy": ("copy", "#9a6700", "s--"),
    "interpolate": ("interpolate", "#1a7f37", "^--"),
    "residual": ("ResidualViT, no token", "#cf222e", "o-"),
    "token": ("ResidualViT + token", "#bf3989", "D-"),
    "token random": ("the same, random patches", "#bf3989", "d"),
    "reuse": ("reuse, fixed", "#0969da", "o-"),
    "reuse motion": ("reuse, fixed, by motion", "#0969da", "v"),
    "reuse cuts": ("reuse, cuts", "#0969da", "P"),
    "two-sided": ("two-sided, fixed", "#0550ae", "<-"),
    "two-sided adaptive": ("two-sided, adaptive", "#bc4c00", "X-"),
}
ADAPTIVE = {0.92: ("#c297ff", "*:"), 0.85: ("#6639ba", "*-"), 0.75: ("#24292f", "*--")}


def series(rows: Sequence[dict[str, Any]]) -> list[tuple[str, str, str, list[dict[str, Any]]]]:
    """Label, colour, format and rows of every line in a figure."""
    found = []
    for kind, (label, colour, style) in LOOKS.items():
        found.append((label, colour, style, [row for row in rows if row["kind"] == kind]))
    for drop, (colour, style) in ADAPTIVE.items():
        own = [row for row in rows if row["kind"] == "adaptive" and row["drop"] == drop]
        found.append((f"adaptive, p = {drop:g}", colour, style, sorted(own, key=lambda row: row["share"][0])))
    return found


def draw(record: dict[str, Any], folder: Path) -> list[Path]:
    """One picture per split of the first run. The same record gives the same bytes."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    result = record["runs"][0]
    written = []
    with matplotlib.rc_context({"svg.hashsalt": "everyframe", "svg.fonttype": "none", "font.size": 8.5}):
        for name, table in result["splits"].items():
            figure = Figure(figsize=(9.6, 4.4), layout="constrained")
            FigureCanvasAgg(figure)
            left, right = figure.subplots(1, 2, width_ratios=(1.65, 1))
            for label, colour, style, own in series(table):
                if not own:
                    continue
                costs = [row["share"][0] for row in own]
                points(left, own, "fidelity", colour, style, label)
                left.plot(costs, [row["fidelity_5"][0] for row in own], "_", color=colour, markersize=8, alpha=0.75)
                points(right, own, "kept_0.5", colour, style, label)
            facts = result["facts"][name]
            title = "all splits" if name == "all" else name.replace("_", " ")
            moving = "" if name == "all" else f", {facts['moving_percent']:.0f} % of patches move"
            left.set_title(f"{title}{moving}", loc="left", fontsize="medium")
            left.set_ylabel("fidelity: mean (marks), 5th percentile (dashes)")
            right.set_ylabel("R@1 at IoU 0.5, % of dense")
            right.axhline(100, color="#57606a", linestyle=":", linewidth=1)
            # Steps from 0.98 to 0.99 matter as much as those from 0.8 to 0.9.
            left.set_yscale("function", functions=(lambda y: -np.log(1.001 - y), lambda z: 1.001 - np.exp(-z)))
            marks = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 1)
            left.set_yticks(marks, [f"{mark:g}" for mark in marks])
            lowest = min(row["fidelity_5"][0] for row in table)
            left.set_ylim(max(lowest - 0.2 * (1 - lowest), 0), 1)
            for panel in (left, right):
                panel.set_xlabel("GFLOPs per frame, % of dense (log)")
                panel.set_xscale("log")
                ticks = (2, 5, 10, 20, 30, 50, 70, 100)
                panel.set_xticks(ticks, [str(tick) for tick in ticks])
                panel.minorticks_off()
                panel.set_xlim(0.85 * min(row["share"][0] for row in table), 105)
                panel.grid(color="0.92")
            handles, labels = left.get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize="small")
            file = folder / f"adaptive-{name.replace('_', '-')}.svg"
            figure.savefig(file, dpi=110, metadata={"Date": None})
            written.append(file)
    return written


def points(panel: Any, rows: Sequence[dict[str, Any]], key: str, colour: str, style: str, label: str) -> None:
    middles = np.array([row[key][0] for row in rows])
    below = middles - [row[key][1] for row in rows]
    above = [row[key][2] for row in rows] - middles
    panel.errorbar(
        [row["share"][0] for row in rows],
        middles,
        yerr=np.maximum([below, above], 0),
        fmt=style,
        color=colour,
        label=label,
        markersize=7 if "*" in style else 4.5,
        linewidth=1.2,
        elinewidth=0.7,
        capsize=2,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=6, help="per split and set")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--fps", type=float, nargs="+", default=[3.0], help="the first in full, of others all splits")
    parser.add_argument("--work", type=Path, help="where videos and measurements are kept and found again")
    parser.add_argument("--workers", type=int, default=1, help="processes that render")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--images", type=Path, default=IMAGES)
    parser.add_argument("--draw", action="store_true", help="measure nothing; print and draw what --out holds")
    options = parser.parse_args()
    if not options.draw:
        model = ef.load("bundled", device="cpu")
        ways = methods(model)
        with tempfile.TemporaryDirectory() as folder:
            runs = []
            for fps in options.fps:
                videos = measure(model, ways, options, fps, options.work or Path(folder))
                names = ("all", *ORDER) if fps == options.fps[0] else ("all", *STILL)
                runs.append(summed(ways, videos, fps, names))
        record = {
            "benchmark": "adaptive",
            "model": {"id": model.name, "weights_sha256": model.weights_sha256},
            "settings": {
                "videos": options.videos,
                "seconds": options.seconds,
                "seeds": list(SEEDS),
                "rule": "all",
                "cell": "[all videos, smallest set, largest set]; recall_*: all videos",
                "interval": "95 %, of R@1 minus dense in points and as % of dense",
            },
            "real_moving_percent": list(REAL_MOVING),
            "runs": runs,
            "versions": {
                "everyframe": package_version(),
                "code": code(),
                "python": platform.python_version(),
                "torch": torch.__version__,
                "numpy": np.__version__,
            },
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(compact(record) + "\n")
    record = json.loads(options.out.read_text())
    say(record)
    for file in draw(record, options.images):
        print(file)


def compact(record: dict[str, Any]) -> str:
    """JSON with a line for every row of a table."""
    found = json.dumps(record, separators=(",", ":"))
    for begin in ('{"method":', '{"aim":', '"runs":', '"versions":'):
        found = found.replace(begin, "\n" + begin)
    return found


if __name__ == "__main__":
    if set(ORDER) != set(SPLITS):
        sys.exit(f"the splits are {', '.join(SPLITS)}, but this benchmark knows {', '.join(ORDER)}")
    main()
