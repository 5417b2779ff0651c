"""Does --fidelity keep its word? What is asked for against what is measured, on videos that were not calibrated on.

    python benchmarks/fidelity.py [--work FOLDER] [--out benchmarks/results/fidelity.json]

Synthetic: the calibration that comes with the bundled model, tried on other videos of every split. Real (where the
clips lie beside the repository): the bundled model calibrated on all clips but one, tried on that one, for each. The
bundled model was trained on drawings, so that its features of real footage mean nothing; how far they lie from its own
dense features is still a figure.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

import everyframe as ef
from everyframe.audit import calibrate
from everyframe.encoders import DenseEncoder, ReuseEncoder
from everyframe.encoders.baselines import fidelity
from everyframe.encoders.calibration import Calibration, resolve_calibration
from everyframe.pipeline import read_window
from everyframe.synthetic import SPLITS, synthesize
from everyframe.version import package_version
from real_change import CLIPS, VIDEOS

SEED, SECONDS, FPS = 930, 60.0, 3.0
TARGETS = (0.95, 0.97, 0.98, 0.99)


def render(folder: Path, style: str, number: int, videos: int) -> list[Path]:
    """The videos of one split: other seeds than those of the calibration (920 on) and of adaptive.py."""
    if not (folder / "done").exists():
        for _ in synthesize(
            folder, videos=videos, seconds=SECONDS, seed=SEED + number, combinations="unseen", style=style
        ):
            pass
        (folder / "done").touch()
    return sorted(folder.glob("*.mp4"))


Frames = tuple[torch.Tensor, np.ndarray]  # pixels and dense features of one video


def read(model: ef.Model, file: Path) -> Frames:
    window = read_window(file, model, fps=FPS, motion=False)
    return window.pixels, DenseEncoder(model).encode(window.pixels).numpy()


def measure(model: ef.Model, videos: list[Frames], calibration: Calibration, target: float) -> dict[str, Any]:
    encoder = ReuseEncoder.at_fidelity(model, target, calibration)
    found, macs, predicted = [], 0.0, 0.0
    for pixels, full in videos:
        planner = encoder.planner()
        plan = planner.add(pixels) + planner.finish()
        found.append(fidelity(encoder.encode_planned(pixels, plan).numpy(), full))
        predicted += len(full) * calibration.predict(plan.roles, planner.left_out)
        macs += sum(encoder.plan_macs(plan, "all").values())
    frames = np.concatenate(found)
    return {
        "drop": encoder.drop,
        "tolerance": encoder.policy.tolerance,
        "fidelity": float(frames.mean()),
        "fidelity_p5": float(np.percentile(frames, 5)),
        "predicted": predicted / len(frames),
        "frames": len(frames),
        "cost": macs / (ef.flops(DenseEncoder(model), rule="all").per_frame * len(frames)),
        "videos": [float(each.mean()) for each in found],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("work/fidelity"))
    parser.add_argument("--videos", type=int, default=4, help="of every split")
    parser.add_argument("--calibration", default="auto")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/fidelity.json"))
    arguments = parser.parse_args()
    model = ef.load("bundled")
    shipped = resolve_calibration(arguments.calibration, model)
    files = {
        style: [read(model, file) for file in render(arguments.work / style, style, number, arguments.videos)]
        for number, style in enumerate(SPLITS)
    }
    results: dict[str, Any] = {"synthetic": [], "real": []}
    for target in TARGETS:
        splits = {style: measure(model, found, shipped, target) for style, found in files.items()}
        frames = sum(each["frames"] for each in splits.values())
        pooled = {
            key: sum(each[key] * each["frames"] for each in splits.values()) / frames
            for key in ("fidelity", "predicted", "cost")
        }
        results["synthetic"].append({"target": target, "pooled": pooled, "splits": splits})
        print(f"asked {target:.2f}: measured {pooled['fidelity']:.4f} at {pooled['cost']:.0%} of the compute")
        for style, each in splits.items():
            print(f"   {style:14} {each['fidelity']:.4f} (5th percentile {each['fidelity_p5']:.3f}) {each['cost']:.0%}")
    clips = [VIDEOS / name for name in CLIPS if (VIDEOS / name).exists()]
    for clip in clips:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            own, _ = calibrate([other for other in clips if other != clip], model)
        frames = [read(model, clip)]
        for target in TARGETS:
            row = {"clip": clip.name, "target": target, **measure(model, frames, own, target)}
            results["real"].append(row)
            print(f"{clip.name}: asked {target:.2f}, measured {row['fidelity']:.4f} at {row['cost']:.0%}")
    record = {"version": package_version(), "torch": torch.__version__, "fps": FPS}
    arguments.out.write_text(json.dumps({**record, **results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
