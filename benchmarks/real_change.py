"""Does it matter that real footage moves a lot? How much of the change P-frames take up, and how much of the loss.

    python benchmarks/real_change.py [--videos FILE ...] [--out benchmarks/results/real_change.json]

For each video (default: the real ones that lie beside the repository, if they do) and each of several settings: the
share of 16-px patches that change between samples, the share of patches refreshed in P-frames, the share of the
change (squared, against the patch's last refresh) that those hold, and how much of what copying the I-feature loses
is won back. With the bundled model, which was trained on drawings: its features of real footage mean nothing, but
their distance to its own dense features is what is measured here.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch

import everyframe as ef
from everyframe.encoders import DenseEncoder, Plan, ReuseEncoder
from everyframe.encoders.baselines import copy_features, fidelity
from everyframe.pipeline import read_window
from everyframe.synthetic import moving_share
from everyframe.tokens.change import patch_cells, patch_change
from everyframe.version import package_version
from everyframe.video import sample_frames

VIDEOS = Path(__file__).parents[2] / "shared" / "data" / "videos"
CLIPS = ("nasa_13013.mp4", "flipping_a_pancake.mkv", "vid1.mp4", "v_ZNVhz7ctTq0.mp4", "v_GGSY1Qvo990.mp4")
FPS, SECONDS = 3.0, 60.0


def covered(pixels: torch.Tensor, plan: Plan, patch_size: int) -> float:
    """Share of all change since the last refresh that the P-frames of a plan take up."""
    cells = patch_cells(pixels, patch_size)
    reference, taken, total = cells[0].clone(), 0.0, 0.0
    for frame, role in enumerate(plan.roles):
        if role == "I":
            reference = cells[frame].clone()
            continue
        change = patch_change(cells[frame], reference)
        kept = plan.kept(frame)
        taken += float(change[kept].sum())
        total += float(change.sum())
        reference[kept] = cells[frame][kept]
    return taken / total if total else 1.0


def measure(video: Path, model: ef.Model) -> dict[str, Any]:
    with sample_frames(video, FPS, end=SECONDS) as samples:
        raw = np.stack([sample.pixels for sample in samples])
    window = read_window(video, model, fps=FPS, end=SECONDS, motion=False)
    dense = DenseEncoder(model)
    full = dense.encode(window.pixels).numpy()
    per_frame = ef.flops(dense, rule="all").per_frame
    rows = []
    for interleave in (2, 5, 10):
        loss_of_copy = float(1 - fidelity(copy_features(full, interleave), full).mean())
        for drop in (0.95, 0.85, 0.7, 0.5):
            encoder = ReuseEncoder(model, interleave, drop)
            rows.append({"setting": f"N={interleave}", "drop": drop, "loss_of_copy": loss_of_copy})
            rows[-1].update(run(encoder, window.pixels, full, per_frame))
    for tolerance in (0.3, 1.0, 3.0):
        encoder = ReuseEncoder(model, plan="adaptive", tolerance=tolerance)
        rows.append({"setting": f"adaptive, tolerance {tolerance:g}", "drop": encoder.drop, "loss_of_copy": None})
        rows[-1].update(run(encoder, window.pixels, full, per_frame))
    return {"video": video.name, "frames": len(full), "moving_share": moving_share(raw), "rows": rows}


def run(encoder: ReuseEncoder, pixels: torch.Tensor, full: np.ndarray, per_frame: float) -> dict[str, Any]:
    plan = encoder.planner().add(pixels)
    found = fidelity(encoder.encode_planned(pixels, plan).numpy(), full)
    patches, reduced = encoder.model.vision.num_patches, max(plan.roles.count("P"), 1)
    return {
        "roles": {role: plan.roles.count(role) for role in "IPC"},
        "refreshed": float(plan.counts.sum()) / patches / reduced,
        "change_covered": covered(pixels, plan, encoder.model.vision.config.patch_size),
        "fidelity": float(found.mean()),
        "fidelity_p5": float(np.percentile(found, 5)),
        "cost": sum(encoder.plan_macs(plan, "all").values()) / per_frame / len(full),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, nargs="*")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/real_change.json"))
    arguments = parser.parse_args()
    files = arguments.videos or [VIDEOS / name for name in CLIPS if (VIDEOS / name).exists()]
    if not files:
        raise SystemExit(f"no videos: {VIDEOS} is not there; name some with --videos")
    model = ef.load("bundled")
    results = []
    for file in files:
        results.append(measure(file, model))
        print(f"{file.name}: {results[-1]['frames']} frames, {results[-1]['moving_share']:.0%} of the patches move")
        for row in results[-1]["rows"]:
            won = (
                ""
                if row["loss_of_copy"] is None
                else f", wins back {1 - (1 - row['fidelity']) / row['loss_of_copy']:.0%}"
            )
            print(
                f"  {row['setting']:24} drop {row['drop']:.2f}: {row['change_covered']:4.0%} of the change, fidelity "
                f"{row['fidelity']:.3f} ({row['fidelity_p5']:.3f}) at {row['cost']:.0%} of the compute{won}"
            )
    record = {"version": package_version(), "torch": torch.__version__, "machine": platform.machine(), "fps": FPS}
    arguments.out.write_text(json.dumps({**record, "results": results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
