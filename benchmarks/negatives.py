"""How much a negative should weigh: "a red circle -blue square" on synthetic videos, with the bundled model.

    python benchmarks/negatives.py [--out benchmarks/results/negatives.json]

24 videos of a minute (seeds 970 to 972, eight each), a frame a second. For every pair of objects, colour and shape, of
which the first is on screen for at least five seconds with the second and five without, frames are ranked by the cosine
to the first minus a weight times the cosine to the second. Wanted are frames with the first and without the second.

precision       average precision of the wanted frames among all of the eight videos
over both       how often a wanted frame is above one that shows both (0.5 is chance)
over neither    how often it is above one without the first
both in top 10  share of the ten best frames that show both
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

import everyframe as ef
from everyframe.synthetic import Entity, SyntheticVideo
from everyframe.version import package_version

SEEDS, VIDEOS, SECONDS, FEWEST = (970, 971, 972), 8, 60, 5
WEIGHTS = (0.0, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0)
MEASURES = ("precision", "over both", "over neither", "both in top 10")


def name(entity: Entity) -> str:
    return f"a {entity.colour} {entity.shape}"


def watched(encoder: ef.DenseEncoder, seed: int) -> tuple[np.ndarray, list[set[str]]]:
    """(features [T, dim], the objects on screen) of a set of videos."""
    features, objects = [], []
    for number in range(VIDEOS):
        video = SyntheticVideo(1000 * seed + number, seconds=SECONDS, size=(192, 144))
        times = np.arange(0.5, SECONDS)
        frames = torch.from_numpy(np.stack([video.frame(t) for t in times]))
        features.append(encoder.encode(encoder.model.preprocess(frames)).numpy())
        objects += [{name(entity) for entity in video.visible(t)} for t in times]
    return np.concatenate(features), objects


def above(first: np.ndarray, second: np.ndarray) -> float:
    return float((first[:, None] > second).mean() + 0.5 * (first[:, None] == second).mean())


def measure(scores: np.ndarray, wanted: np.ndarray, both: np.ndarray, without: np.ndarray) -> list[float]:
    order = np.argsort(-scores, kind="stable")
    hits = wanted[order]
    precision = (np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].mean()
    over = (above(scores[wanted], scores[both]), above(scores[wanted], scores[without]))
    return [float(precision), *over, float(both[order[:10]].mean())]


def pairs(model: ef.Model, seed: int) -> list[list[list[float]]]:
    """For each pair and weight, the measures."""
    features, objects = watched(ef.DenseEncoder(model), seed)
    names = sorted(set().union(*objects))
    cosines = dict(zip(names, model.encode_text(names).numpy() @ features.T, strict=True))
    seen = {each: np.array([each in there for there in objects]) for each in names}
    found = []
    for first in names:
        for second in names:
            wanted, both = seen[first] & ~seen[second], seen[first] & seen[second]
            if first != second and min(wanted.sum(), both.sum()) >= FEWEST:
                without = ~seen[first]
                scores = [cosines[first] - weight * cosines[second] for weight in WEIGHTS]
                found.append([measure(each, wanted, both, without) for each in scores])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    model = ef.load("bundled")
    sets = [np.array(pairs(model, seed)) for seed in SEEDS]
    everything = np.concatenate(sets)
    record: dict[str, Any] = {
        "benchmark": "negatives",
        "settings": {"seeds": SEEDS, "videos": VIDEOS, "seconds": SECONDS, "model": "bundled"},
        "versions": {"everyframe": package_version(), "torch": torch.__version__},
        "pairs": len(everything),
        "weights": {
            str(weight): {
                **{key: round(float(everything[:, at, k].mean()), 4) for k, key in enumerate(MEASURES)},
                "precision by set": [round(float(own[:, at, 0].mean()), 4) for own in sets],
            }
            for at, weight in enumerate(WEIGHTS)
        },
    }
    print(f"| weight | {' | '.join(MEASURES)} | precision by set |\n|{' --- |' * (len(MEASURES) + 2)}")
    for weight, row in record["weights"].items():
        print(f"| {weight} | {' | '.join(str(value) for value in row.values())} |")
    if options.out is not None:
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
