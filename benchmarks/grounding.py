"""Ways to find moments in a similarity curve: how good they are on synthetic videos, and how fast on a film.

    python benchmarks/grounding.py scorers --work DIR     # three held-out sets of 24 videos, dense bundled features
    python benchmarks/grounding.py speed                  # 36,000 features (2 h at 5 per second), 100 queries

`scorers` renders the videos into DIR, or finds them there, and keeps their features beside them. "noise" is white noise
added to every feature, its length that many times the feature's: real cosines are rougher than those of this world.

Compared with the methods of `everyframe.tasks.grounding`: the scorer of TFVTG (Zheng et al. 2024) without its language
model, and with the video's mean in place of its fixed cosine threshold, which belongs to BLIP-2.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

import everyframe as ef
from everyframe.evaluation.frame_features import EncodedVideos
from everyframe.evaluation.moments import moment_metrics
from everyframe.evaluation.synthetic import Video, rendered_videos
from everyframe.features import VideoFeatures
from everyframe.pipeline import Sampling
from everyframe.spans import suppress
from everyframe.tasks.grounding import ground_many, similarities

SHOWN = ("R1@0.3", "R1@0.5", "R1@0.7", "mIoU", "R5@0.5", "R5@0.7", "mAP")
TOP = 10

Scorer = Callable[[VideoFeatures, np.ndarray], list[np.ndarray]]
"""Features, queries [Q, dim] -> for each its answers [P, 3]."""


@dataclass(frozen=True)
class Item:
    """One video: its features, the vectors of its queries and when each happens."""

    feats: VideoFeatures
    queries: np.ndarray
    truth: list[np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("scorers", "speed"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[901, 902, 903], help="sets of videos")
    parser.add_argument("--videos", type=int, default=24, help="in each set")
    parser.add_argument("--noise", nargs="+", type=float, default=[0.0, 1.0, 2.0])
    parser.add_argument("--work", type=Path, default=Path("work/sets"), help="folder of videos and features")
    parser.add_argument("--frames", type=int, default=36_000)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of torch and of nothing else; BLAS reads OMP_NUM_THREADS")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    if arguments.what == "scorers":
        result = scorers(arguments.work, arguments.seeds, arguments.videos, arguments.noise)
        print(markdown(result))
    else:
        result = speed(arguments.frames, arguments.queries, arguments.rounds)
        print(json.dumps(result, indent=1))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


# --- how good --------------------------------------------------------------------------------------------


def scorers(work: Path, seeds: list[int], videos: int, noises: list[float]) -> dict:
    """Every scorer on every set, and on all of them together."""
    model = ef.load("bundled", device="cpu")
    encoder = ef.DenseEncoder(model)
    sets = {seed: read_set(work / f"set-{seed}", seed, videos, encoder) for seed in seeds}
    rows = []
    for noise in noises:
        noisy = {seed: [with_noise(item, noise) for item in items] for seed, items in sets.items()}
        for name, scorer in methods().items():
            each = {str(seed): measured(items, scorer) for seed, items in noisy.items()}
            everything = measured([item for items in noisy.values() for item in items], scorer)
            rows.append({"noise": noise, "method": name, "metrics": everything, "sets": each})
    queries = sum(len(item.truth) for items in sets.values() for item in items)
    return {"benchmark": "grounding scorers", "seeds": seeds, "videos": videos, "queries": queries, "rows": rows}


def methods() -> dict[str, Scorer]:
    def own(feats: VideoFeatures, queries: np.ndarray, **options: object) -> list[np.ndarray]:
        found = ground_many(feats, queries, top=TOP, **options)  # type: ignore[arg-type]
        return [np.array([[m.start, m.end, m.score] for m in moments]).reshape(-1, 3) for moments in found]

    return {
        "whole video": partial(own, method="whole"),
        "watershed (published)": own,
        # The best of 0.5 to 5 s and 1 to 1.6 on sets 920 to 922, without noise.
        "watershed, 1 s, threshold 1.4": partial(own, smooth=1.0, threshold=1.4),
        "contrast": partial(own, method="contrast"),
        "TFVTG, relative threshold": tfvtg,
        "half-height": partial(own, method="half-height"),
    }


def read_set(folder: Path, seed: int, videos: int, encoder: ef.DenseEncoder) -> list[Item]:
    rendered: list[Video] = rendered_videos(folder, videos=videos, seconds=60.0, seed=seed)
    source = EncodedVideos(encoder=encoder, folder=folder, sampling=Sampling(fps=3.0), cache=folder / "features")
    named = {video.file.stem: video for video in rendered if video.events}
    items = []
    names = list(named)
    for number, feats in source.read(names):
        if not isinstance(feats, VideoFeatures):
            raise SystemExit(feats.error)
        events = named[names[number]].events
        queries = encoder.model.encode_text([caption for caption, _, _ in events]).numpy()
        items.append(Item(feats, queries, [np.array([[start, end]]) for _, start, end in events]))
    return items


def with_noise(item: Item, noise: float) -> Item:
    if not noise:
        return item
    rows = item.feats.normalised()
    drawn = np.random.default_rng(0).standard_normal(rows.shape) / np.sqrt(rows.shape[1])
    return replace(item, feats=replace(item.feats, embeddings=(rows + noise * drawn).astype(np.float32)))


def measured(items: list[Item], scorer: Scorer) -> dict[str, float]:
    answers = [answer for item in items for answer in scorer(item.feats, item.queries)]
    metrics = moment_metrics([truth for item in items for truth in item.truth], answers)
    return {name: round(metrics[name], 2) for name in SHOWN}


def tfvtg(feats: VideoFeatures, queries: np.ndarray, stride: float = 20 / 3) -> list[np.ndarray]:
    """Windows of 1, 2, ... strides (seconds), mean inside minus mean outside; the start moves back to where the climb
    begins. Cosines below the video's mean count as 0. A window with nothing outside scores 0."""
    found = []
    for curve in similarities(feats, queries).astype(np.float64):
        kept = curve > curve.mean()
        masked, count = curve * kept, len(curve)
        step = max(1, min(round(stride * 3), count // 2))
        sums, counts = (np.concatenate([[0.0], np.cumsum(values)]) for values in (masked, kept))
        windows = []
        for length in range(step, max(step, count // 2) + 1, step):
            first = np.arange(count - length + 1)
            inside = sums[first + length] - sums[first]
            outside = counts[-1] - (counts[first + length] - counts[first])
            rest = np.divide(sums[-1] - inside, outside, out=np.full(len(first), inside / length), where=outside > 0)
            windows.append(np.stack([first, first + length, inside / length - rest], axis=1))
        every = np.concatenate(windows)
        every = every[np.argsort(-every[:, 2], kind="stable")]
        best = every[suppress(every[:, :2], iou=0.3, top=TOP)]
        climb = rise_starts(masked, kept)
        starts = feats.times[np.minimum(climb[best[:, 0].astype(int)], best[:, 0].astype(int))]
        found.append(np.stack([starts, feats.frame_ends[best[:, 1].astype(int) - 1], best[:, 2]], axis=1))
    return found


def rise_starts(curve: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """For every frame where the climb that it is part of began."""
    smooth = np.convolve(np.pad(curve, 1, mode="edge"), [0.242, 0.399, 0.242], mode="valid")
    change = np.diff(smooth, append=smooth[-1]) * kept
    begin, starts = 0, np.zeros(len(curve), dtype=int)
    for frame in range(len(curve)):
        now, before, earlier = (change[max(frame - back, 0)] for back in range(3))
        if max(3 * now, 2 * now + before, now + before + earlier) <= 0.0005:
            begin = frame
        starts[frame] = begin
    return starts


def markdown(result: dict) -> str:
    lines = [f"| noise | method | {' | '.join(SHOWN)} |", f"|{' --- |' * (len(SHOWN) + 2)}"]
    for row in result["rows"]:
        cells = [f"{row['metrics'][name]:.1f}" for name in SHOWN]
        lines.append(f"| {row['noise']:g} | {row['method']} | {' | '.join(cells)} |")
    for seed in map(str, result["seeds"]):
        for row in result["rows"]:
            if not row["noise"]:
                shown = ", ".join(f"{name} {row['sets'][seed][name]:.1f}" for name in ("R1@0.5", "R1@0.7", "mIoU"))
                lines.append(f"set {seed}, {row['method']}: {shown}")
    return "\n".join(lines)


# --- how fast --------------------------------------------------------------------------------------------


def speed(frames: int, queries: int, rounds: int) -> dict:
    """Seconds from features and query vectors in memory to ten moments each; the methods take turns.

    processor: seconds of all cores together, which other work on the machine changes less.
    """
    rng = np.random.default_rng(0)
    scenes = rng.standard_normal((-(-frames // 25), 512), dtype=np.float32).repeat(25, axis=0)[:frames]
    rows = scenes + 0.8 * rng.standard_normal((frames, 512), dtype=np.float32)
    vectors = rng.standard_normal((queries, 512)).astype(np.float32)
    seconds: dict[str, list[float]] = {name: [] for name in ("watershed", "half-height", "contrast")}
    processor: dict[str, list[float]] = {name: [] for name in seconds}
    for _ in range(rounds):
        for name, taken in seconds.items():
            feats = VideoFeatures(times=np.arange(frames) / 5, embeddings=rows, roles="I" * frames)
            begin, worked = time.perf_counter(), time.process_time()
            ground_many(feats, vectors, top=TOP, method=name)  # type: ignore[arg-type]
            taken.append(time.perf_counter() - begin)
            processor[name].append(time.process_time() - worked)
    return {
        "benchmark": "grounding speed",
        "frames": frames,
        "queries": queries,
        "seconds": {
            name: {
                "median": round(statistics.median(taken), 3),
                "min": round(min(taken), 3),
                "max": round(max(taken), 3),
            }
            for name, taken in seconds.items()
        },
        "processor_seconds": {name: round(statistics.median(taken), 3) for name, taken in processor.items()},
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


if __name__ == "__main__":
    main()
