"""Does wall-clock time follow the multiply-accumulates of a plan? Dense, fixed and adaptive encoding of real clips.

    python benchmarks/adaptive_speed.py [--video FILE ...] [--frames 90] [--rounds 3] [--dtype bfloat16 float32]
                                        [--out benchmarks/results/adaptive_speed.json]

The clips (default: those of 10 s and more in ../shared/data/videos) are decoded and preprocessed once, 3 frames a
second; what is timed is planning and the model, a ViT-B/16 at 224 px with seeded random weights. Speed does not
depend on the weights, and a plan on the pixels alone. In every round the methods take turns on every clip, beginning
with another one each time; ratios to dense are taken within a round, and medians of the rounds are given.

time/FLOPs  ratio of times over ratio of multiply-accumulates (rule "all"), both to dense: 1 is a cost that is paid as
            counted, 1.1 takes 10 % longer. Aim: at most 1.15
planner     time spent on the plan as a share of all. Aim: below 2 %
padding     attention queries of P-frames that are padded, as a share of those that are needed
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import everyframe as ef
from encode import make_model
from everyframe.backbone import Model
from everyframe.encoders import DenseEncoder, Plan, ResidualViT, ReuseEncoder
from everyframe.pipeline import Window, read_window
from everyframe.synthetic import moving_share
from everyframe.version import package_version
from everyframe.video import sample_frames

VIDEOS = Path(__file__).parents[2] / "shared" / "data" / "videos"
CLIPS = ("nasa_13013.mp4", "flipping_a_pancake.mkv", "v_GGSY1Qvo990.mp4", "v_ZNVhz7ctTq0.mp4")
FPS = 3.0
TIME_AIM, PLANNER_AIM = 1.15, 0.02


@dataclass(frozen=True)
class Clip:
    name: str
    window: Window
    moving: float


def read_clip(file: Path, model: Model, most: int) -> Clip:
    end = most / FPS
    frames = np.stack([sample.pixels for sample in sample_frames(file, FPS, end=end)])
    moving = moving_share(frames) if len(frames) > 1 else 0.0
    return Clip(file.name, read_window(file, model, fps=FPS, end=end), moving)


def encoders(model: Model) -> dict[str, Any]:
    torch.manual_seed(0)
    token = ef.ResidualTokenizer(model.dim, model.vision.config.width)
    return {
        "dense": DenseEncoder(model),
        "reuse N=5": ReuseEncoder(model, 5),
        "adaptive": ReuseEncoder(model, plan="adaptive", tolerance=1.0),
        "ResidualViT N=2": ResidualViT(model, 2, residual=token),
    }


def run(encoder: Any, window: Window) -> tuple[float, float]:
    """Seconds of the plan (0 where there is none to make apart from the model) and of all."""
    begin = time.perf_counter()
    if not isinstance(encoder, ReuseEncoder):
        encoder.encode(window.pixels, window.motion)
        return 0.0, time.perf_counter() - begin
    plan = encoder.planner().add(window.pixels, window.motion)
    planned = time.perf_counter() - begin
    encoder.encode_planned(window.pixels, plan)
    return planned, time.perf_counter() - begin


def facts(encoder: Any, window: Window) -> dict[str, Any]:
    """What it costs, and for plans the roles and the padding."""
    frames = len(window.pixels)
    if not isinstance(encoder, ReuseEncoder):
        return {"macs": sum(encoder.macs(frames, "all").values())}
    plan = encoder.planner().add(window.pixels, window.motion)
    return {
        "macs": sum(encoder.plan_macs(plan, "all").values()),
        "roles": {role: plan.roles.count(role) for role in "IPC"},
        "refreshed_per_p_frame": round(float(plan.counts.sum()) / max(plan.roles.count("P"), 1), 1),
        "queries": queries(encoder, plan),
    }


def queries(encoder: ReuseEncoder, plan: Plan) -> dict[str, int]:
    """Attention queries of I-frames, of P-frames, and how many more the P-frames have with padding, in all passes.

    In a pass, the k-th P-frames of all groups attend together, padded to the longest of them (`packed.py`).
    """
    vision = encoder.model.vision
    counts = (plan.counts + vision.num_prefix).tolist()
    full = plan.roles.count("I") * (vision.num_prefix + vision.num_patches)
    reduced = padded = 0
    for first, last, *_ in encoder._passes(plan):
        groups = [[counts[first + frame] for frame in group] for group in plan[first:last].groups()]
        for k in range(1, max(map(len, groups))):
            step = [group[k] for group in groups if len(group) > k]
            reduced += sum(step)
            padded += len(step) * max(step) - sum(step)
    return {"full": full, "reduced": reduced, "padded": padded}


def measure(folder: Path, dtype: str, files: list[Path], frames: int, rounds: int) -> dict[str, Any]:
    model = ef.load(folder, dtype=dtype, device="cpu")
    ways = encoders(model)
    clips = [read_clip(file, model, frames) for file in files]
    for encoder in ways.values():  # the first pass pays for allocations
        run(encoder, clips[0].window)
    taken: dict[str, dict[str, list[tuple[float, float]]]] = {clip.name: {way: [] for way in ways} for clip in clips}
    for turn in range(rounds):
        order = list(ways)[turn % len(ways) :] + list(ways)[: turn % len(ways)]
        for clip in clips:
            for way in order:
                taken[clip.name][way].append(run(ways[way], clip.window))
        print(f"{dtype}: round {turn + 1} of {rounds}", file=sys.stderr)
    known = {clip.name: {way: facts(encoder, clip.window) for way, encoder in ways.items()} for clip in clips}
    sizes = {clip.name: len(clip.window.pixels) for clip in clips}
    lines = {
        clip.name: {
            "frames": sizes[clip.name],
            "moving_percent": round(100 * clip.moving, 1),
            "methods": summary(taken[clip.name], known[clip.name], sizes[clip.name]),
        }
        for clip in clips
    }
    everything = {
        way: [tuple(map(sum, zip(*parts, strict=True))) for parts in zip(*(taken[c][way] for c in taken), strict=True)]
        for way in ways
    }
    together = {way: {"macs": sum(known[clip][way]["macs"] for clip in known)} for way in ways}
    for way in ways:
        if "queries" in known[clips[0].name][way]:
            for key in ("roles", "queries"):
                parts = [known[clip][way][key] for clip in known]
                together[way][key] = {name: sum(part[name] for part in parts) for name in parts[0]}
    total = sum(sizes.values())
    return {"clips": lines, "all": {"frames": total, "methods": summary(everything, together, total)}}


def summary(
    taken: dict[str, list[tuple[float, float]]], known: dict[str, dict[str, Any]], frames: int
) -> dict[str, Any]:
    """Of every method: medians of the rounds, and what does not depend on them."""
    found = {}
    for way, rounds in taken.items():
        ratios = [own / full for (_, own), (_, full) in zip(rounds, taken["dense"], strict=True)]
        cost = known[way]["macs"] / known["dense"]["macs"]
        own: dict[str, Any] = {
            "gflops_per_frame": known[way]["macs"] / frames / 1e9,
            "cost": cost,
            "ms_per_frame": [1000 * seconds / frames for _, seconds in rounds],
            "time": statistics.median(ratios),
            "time_over_cost": statistics.median(ratios) / cost,
            "time_over_cost_rounds": [min(ratios) / cost, max(ratios) / cost],
        }
        if "queries" in known[way]:
            own["planner_share"] = statistics.median(plan / seconds for plan, seconds in rounds)
            own |= {key: value for key, value in known[way].items() if key != "macs"}
            own["padding"] = known[way]["queries"]["padded"] / max(known[way]["queries"]["reduced"], 1)
        found[way] = rounded(own)
    return found


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def say(record: dict[str, Any]) -> None:
    head = ("clip", "frames", "moving", "method", "cost", "time", "time/FLOPs (rounds)", "planner", "I P C", "padding")
    for dtype, result in record["results"].items():
        print(f"\n{dtype}\n\n| " + " | ".join(head) + " |\n|" + " --- |" * len(head))
        for name, clip in (*result["clips"].items(), ("all", result["all"])):
            for way, own in clip["methods"].items():
                moving = f"{clip['moving_percent']:.0f} %" if "moving_percent" in clip else ""
                low, high = own["time_over_cost_rounds"]
                cells = [name, str(clip["frames"]), moving, way, f"{own['cost']:.3f}", f"{own['time']:.3f}"]
                cells.append(f"{own['time_over_cost']:.2f} ({low:.2f} to {high:.2f})")
                planned = "planner_share" in own
                cells.append(f"{100 * own['planner_share']:.1f} %" if planned else "")
                cells.append(" ".join(str(own["roles"][role]) for role in "IPC") if planned else "")
                cells.append(f"{100 * own['padding']:.1f} %" if planned else "")
                print("| " + " | ".join(cells) + " |")
        every = result["all"]["methods"]
        for way, key, aim, title in (
            ("reuse N=5", "time_over_cost", TIME_AIM, "time over FLOPs"),
            ("adaptive", "time_over_cost", TIME_AIM, "time over FLOPs"),
            ("reuse N=5", "planner_share", PLANNER_AIM, "planner's share of time"),
            ("adaptive", "planner_share", PLANNER_AIM, "planner's share of time"),
        ):
            each = [clip["methods"][way][key] for clip in result["clips"].values()]
            value = every[way][key]
            met = "MET" if value <= aim else "NOT MET"
            print(
                f"- {met}: {dtype} {way}: {title} {value:.3g}, aim {aim:g} (clips {min(each):.3g} to {max(each):.3g})"
            )
    print(f"- load of the machine before: {record['machine']['load_before']:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", type=Path, nargs="+", help=f"default: {', '.join(CLIPS)}")
    parser.add_argument("--frames", type=int, default=90, help="of each clip, at most")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "adaptive_speed.json")
    options = parser.parse_args()
    files = options.video or [VIDEOS / name for name in CLIPS]
    missing = [file for file in files if not file.is_file()]
    files = [file for file in files if file.is_file()]
    for file in missing:
        print(f"skipped: no {file}", file=sys.stderr)
    if not files:
        print("nothing measured: there are no clips; name some with --video", file=sys.stderr)
        return
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder), patch_size=16)
        results = {
            dtype: measure(Path(folder), dtype, files, options.frames, options.rounds) for dtype in options.dtype
        }
    record = {
        "benchmark": "adaptive_speed",
        "settings": {"model": "ViT-B/16, random weights", "fps": FPS, "rounds": options.rounds, "rule": "all"},
        "results": results,
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "load_before": round(load, 2),
        },
        "versions": {
            "everyframe": package_version(),
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1) + "\n")
    say(record)


if __name__ == "__main__":
    main()
