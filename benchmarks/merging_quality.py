"""What does merging tokens lose, next to dropping, resizing and reusing? Bundled model, footage of adaptive.py.

    python benchmarks/merging_quality.py [--videos 2] [--fps 3] [--work DIR] [--out FILE]

The videos, seeds and figures are those of `adaptive.py`, whose reading of a video this uses. Every frame alike: ToMe,
vid-TLDR, pruning and EViT, at two costs. Interleaved, N=2: P-frames that drop, shrink or merge, with and without the
residual token (fitted for dropping; merging has not had one of its own). The bundled model has 4 blocks, and merging
can take at most half of the tokens in each, so P-frames that merge stay dearer than those that drop.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import adaptive
import everyframe as ef
from adaptive import Encoded, Method
from everyframe.backbone import Model
from everyframe.encoders import DenseEncoder, EViT, Pruning, ResidualViT, ReuseEncoder, ToMe, VidTLDR
from everyframe.pipeline import Window
from everyframe.version import package_version

RESULTS = Path(__file__).parent / "results" / "merging_quality.json"
EARLY, EVERYWHERE = [98, 49, 0, 0], [49, 36, 28, 20]


def methods(model: Model) -> list[Method]:
    def run(encoder: Any, window: Window, features: np.ndarray) -> Encoded:
        plan = encoder.planner().add(window.pixels, window.motion)
        made = encoder.encode_planned(window.pixels, plan).numpy()
        return made, sum(encoder.plan_macs(plan, "all").values()), plan.roles

    def add(name: str, kind: str, encoder: Any) -> None:
        found.append(Method(name=name, kind=kind, run=partial(run, encoder)))

    found: list[Method] = []
    add("dense", "dense", DenseEncoder(model))
    for label, reduce in (("early", EARLY), ("everywhere", EVERYWHERE)):
        add(f"ToMe {label}", "every frame", ToMe(model, reduce))
        add(f"vid-TLDR {label}", "every frame", VidTLDR(model, reduce))
        add(f"prune by sharpness {label}", "every frame", Pruning(model, reduce))
        add(f"prune by attentiveness {label}", "every frame", Pruning(model, reduce, score="attentiveness"))
        add(f"EViT {label}", "every frame", EViT(model, reduce))
    for token in (None, "auto"):
        ending = " + token" if token else ""
        for reduction in ("drop", "resize", "merge"):
            encoder = ResidualViT(model, 2, 0.85, residual=token, reduction=reduction)
            add(f"ResidualViT N=2 {reduction}{ending}", "interleaved", encoder)
        encoder = ResidualViT(model, 2, 0.85, residual=token, reduction="merge", merge=49)
        add(f"ResidualViT N=2 merge, 49 per block{ending}", "interleaved", encoder)
    add("reuse N=2", "reuse", ReuseEncoder(model, 2))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=2, help="per split and set")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--fps", type=float, default=3.0)
    parser.add_argument("--work", type=Path, help="where videos and measurements are kept and found again")
    parser.add_argument("--workers", type=int, default=1, help="processes that render")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    model = ef.load("bundled", device="cpu")
    with warnings.catch_warnings():
        # the token was fitted for dropping, and says so
        warnings.simplefilter("ignore", UserWarning)
        ways = methods(model)
    with tempfile.TemporaryDirectory() as folder:
        videos = adaptive.measure(model, ways, options, options.fps, options.work or Path(folder))
    names = ("all", *adaptive.ORDER)
    groups = {name: [video for video in videos if name in ("all", video.split)] for name in names}
    record = {
        "benchmark": "merging_quality",
        "model": {"id": model.name, "weights_sha256": model.weights_sha256},
        "settings": {
            "videos": options.videos,
            "seconds": options.seconds,
            "fps": options.fps,
            "seeds": list(adaptive.SEEDS),
            "rule": "all",
            "reduce": {"early": EARLY, "everywhere": EVERYWHERE},
        },
        "facts": {
            "videos": len(videos),
            "queries": sum(video.overlaps.shape[1] for video in videos),
            "frames": sum(video.fidelity.shape[1] for video in videos),
        },
        "splits": {name: adaptive.rows(ways, some, interval=name == "all") for name, some in groups.items()},
        "versions": {
            "everyframe": package_version(),
            "code": adaptive.code(),
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(adaptive.compact(record) + "\n", encoding="utf-8")
    for name, rows in json.loads(options.out.read_text())["splits"].items():
        print(f"\n{name}\n\n{adaptive.table(rows)}")


if __name__ == "__main__":
    sys.exit(main())
