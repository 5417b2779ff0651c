"""What do cheaper features lose in temporal activity localization? Bundled model, synthetic videos.

    python benchmarks/localization.py [--train 80] [--test 40] [--seeds 2] [--work DIR] [--out FILE]

Videos are rendered, read once and encoded in every way; per way and seed an ActionFormer is trained from scratch on the
features of the training videos, as ResidualViT's paper does, and its mAP on the test videos is printed. Classes are
colours: every red thing, whatever its shape, pattern and size, is "red". The test's objects are combinations of colour,
pattern and shape that neither the bundled model nor the training has seen. Beside it: the same training on noise, and
class names without any training. What is in --work is not done again.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import everyframe as ef
from everyframe.backbone import Model
from everyframe.encoders import DenseEncoder, ResidualViT, ReuseEncoder
from everyframe.encoders.baselines import copy_features, fidelity, interpolate_features
from everyframe.encoders.plan import fixed_roles
from everyframe.evaluation.feature_folder import FeatureFolder
from everyframe.evaluation.localization import (
    LocalizationOutcome,
    evaluate_localization,
    without_content,
    zero_shot_localization,
)
from everyframe.evaluation.segment_files import Activities, read_activities
from everyframe.features import VideoFeatures
from everyframe.pipeline import Window, read_window
from everyframe.synthetic import synthesize
from everyframe.training.localizer import LocalizerSettings
from everyframe.version import package_version

RESULTS = Path(__file__).parent / "results" / "localization.json"
SPLITS = {"training": (801, "seen"), "validation": (901, "unseen")}
SECONDS, FPS = 60.0, 3.0

Encoded = tuple[np.ndarray, str, float]
"""Features [T, D], roles, GFLOPs per frame."""


def ways(model: Model) -> dict[str, Callable[[Window, Encoded], Encoded]]:
    """Every way to encode a video, from its frames and its dense features."""

    def run(encoder: Any) -> Callable[[Window, Encoded], Encoded]:
        def encode(window: Window, dense: Encoded) -> Encoded:
            plan = encoder.planner().add(window.pixels, window.motion)
            macs = sum(encoder.plan_macs(plan, "all").values()) / len(window.times)
            return encoder.encode_planned(window.pixels, plan).numpy(), plan.roles, macs / 1e9

        return encode

    def shortcut(interleave: int, *, interpolate: bool = False) -> Callable[[Window, Encoded], Encoded]:
        def encode(window: Window, dense: Encoded) -> Encoded:
            roles = fixed_roles(len(window.times), interleave)
            if interpolate:
                made = interpolate_features(dense[0], window.times, interleave)
            else:
                made = copy_features(dense[0], interleave)
            return made, roles, dense[2] * roles.count("I") / len(roles)

        return encode

    return {
        "dense": lambda window, dense: dense,
        "ResidualViT N=2": run(ResidualViT(model, 2, 0.85)),
        "reuse, adaptive": run(ReuseEncoder(model, plan="adaptive")),
        "copy N=2": shortcut(2),
        "copy N=5": shortcut(5),
        "interpolate N=5": shortcut(5, interpolate=True),
    }


def encode_all(model: Model, work: Path, counts: dict[str, int], say: Callable[[str], None]) -> None:
    """Render the videos and encode them in every way, as far as `work` does not have them."""
    encoders = ways(model)
    dense_encoder = DenseEncoder(model)
    for split, (seed, combinations) in SPLITS.items():
        folder = work / "videos" / split
        if len(list(folder.glob("synthetic-*.mp4"))) < counts[split]:
            for _ in synthesize(folder, videos=counts[split], seconds=SECONDS, seed=seed, combinations=combinations):  # type: ignore[arg-type]
                pass
        say(f"{split}: {counts[split]} videos")
        for video in sorted(folder.glob("synthetic-*.mp4")):
            files = {name: work / "features" / name / split / f"{video.stem}.npz" for name in encoders}
            if all(file.is_file() for file in files.values()):
                continue
            window = read_window(video, model, fps=FPS)
            made = dense_encoder.encode(window.pixels).numpy()
            frames = len(window.times)
            macs = sum(dense_encoder.macs(frames, "all").values()) / frames
            dense: Encoded = (made, "I" * frames, macs / 1e9)
            for name, encode in encoders.items():
                save(files[name], video, window, model, encode(window, dense))


def save(file: Path, video: Path, window: Window, model: Model, encoded: Encoded) -> None:
    features, roles, gflops = encoded
    file.parent.mkdir(parents=True, exist_ok=True)
    VideoFeatures(
        times=window.times,
        embeddings=features.astype(np.float32),
        roles=roles,
        video={"path": str(video), "duration_seconds": SECONDS},
        model={"id": model.name, "weights_sha256": model.weights_sha256},
        settings={"fps": FPS, "gflops_per_frame": gflops},
        end_seconds=window.end_seconds,
    ).save(file)


def rows_of(
    model: Model, work: Path, activities: Activities, seeds: int, say: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """A record per way to encode, then the baselines."""
    dense = FeatureFolder(work / "features" / "dense" / "validation")
    full = float(np.mean([dense[video].settings["gflops_per_frame"] for video in dense]))

    def trained(name: str, train: Any, test: Any, gflops: float | None) -> dict[str, Any]:
        metrics = []
        for seed in range(seeds):
            folder = work / "localizers" / name / str(seed)
            outcome = evaluate_localization(
                train, test, activities, settings=LocalizerSettings.synthetic(seed=seed), folder=folder
            )
            metrics.append(outcome.metrics)
            say(f"{name}, seed {seed}: {metrics[-1]}")
        near = [fidelity(test[video].embeddings, dense[video].embeddings) for video in dense]
        return {
            "name": name,
            "gflops_per_frame": gflops,
            "cost_percent": None if gflops is None else 100 * gflops / full,
            "fidelity": None if gflops is None else float(np.concatenate(near).mean()),
            "metrics": metrics,
        }

    for name in ways(model):
        train, test = (FeatureFolder(work / "features" / name / split) for split in SPLITS)
        gflops = float(np.mean([test[video].settings["gflops_per_frame"] for video in test]))
        yield trained(name, train, test, gflops)
    learned = FeatureFolder(work / "features" / "dense" / "training")
    yield trained("noise in place of features", without_content(learned), without_content(dense, seed=1), None)
    labels = sorted({segment.label for one in activities.videos.values() for segment in one.segments})
    texts = model.encode_text([activities.prompt.format(label) for label in labels])
    zero: LocalizationOutcome = zero_shot_localization(dense, activities, dict(zip(labels, texts, strict=True)))
    yield {"name": "class names alone, no training (dense)", "metrics": [zero.metrics], "cost_percent": 100.0}


def show(record: dict[str, Any]) -> None:
    """The table as markdown."""
    names = ("mAP@0.5", "mAP@0.75", "mAP@0.95", "mAP")
    print(f"| features | % of dense cost | fidelity | {' | '.join(names)} |")
    print(f"|{' --- |' * (3 + len(names))}")
    for row in record["rows"]:
        cells = []
        for name in names:
            values = [one[name] for one in row["metrics"]]
            spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.1f}{spread}")
        cost = "-" if row.get("cost_percent") is None else f"{row['cost_percent']:.0f}"
        near = "-" if row.get("fidelity") is None else f"{row['fidelity']:.3f}"
        print(f"| {row['name']} | {cost} | {near} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=80)
    parser.add_argument("--test", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    model = ef.load("bundled", device="cpu")

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as temporary:
        work = given.work or Path(temporary)
        counts = {"training": given.train, "validation": given.test}
        encode_all(model, work, counts, say)
        activities = read_activities(work / "videos" / "training", subset="training") | read_activities(
            work / "videos" / "validation", subset="validation"
        )
        record = {
            "videos": counts,
            "seconds": SECONDS,
            "fps": FPS,
            "segments": {
                split: sum(len(one.segments) for one in activities.subset(split).values()) for split in SPLITS
            },
            "model": {"id": model.name, "weights_sha256": model.weights_sha256},
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "everyframe": package_version(),
            "rows": list(rows_of(model, work, activities, given.seeds, say)),
        }
    given.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    show(record)


if __name__ == "__main__":
    main()
