"""What the bundled model reaches on held-out synthetic videos with unseen combinations.

    python benchmarks/bundled.py [--videos 24] [--seed 900] [--out benchmarks/results/bundled.json]

All objects are (colour, pattern, shape) triples that its training never showed; the videos are rendered,
encoded as H.264 and decoded again. Two figures:

frame -> caption   the full caption of a frame among those of 100 frames with different captions, 20 draws
grounding          R@1 at IoU 0.5 and 0.7 of every event, dense and ResidualViT without and with its token, by style
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import everyframe as ef
from everyframe.encoders.baselines import fidelity
from everyframe.pipeline import encode_video
from everyframe.spans import recall_at
from everyframe.synthetic import STYLES, SyntheticVideo, synthesize


def frame_to_caption(model: ef.Model, worlds: list[SyntheticVideo], encoded: list[ef.VideoFeatures]) -> dict[str, Any]:
    """Top-1 accuracy among 100 captions, mean and spread over 20 draws of 100 frames."""
    captions, rows = [], []
    for world, feats in zip(worlds, encoded, strict=True):
        for t, row in zip(feats.times, feats.embeddings, strict=True):
            # A frame within half a second of a change shows an object half grown or half gone.
            near = any(min(abs(t - e.start), abs(t - e.end)) < 0.5 for e in world.events)
            if not near and world.visible(t):
                captions.append(world.caption(t))
                rows.append(row)
    names = sorted(set(captions))
    texts = dict(zip(names, model.encode_text(names).numpy(), strict=True))
    rng = np.random.default_rng(0)
    scores = []
    for _ in range(20):
        chosen = rng.choice(names, 100, replace=False)
        frames = [rows[rng.choice(np.flatnonzero(np.array(captions) == name))] for name in chosen]
        similar = np.stack(frames) @ np.stack([texts[name] for name in chosen]).T
        scores.append(float((similar.argmax(1) == np.arange(100)).mean()))
    return {"mean": float(np.mean(scores)), "std": float(np.std(scores)), "captions": len(names)}


def grounding(model: ef.Model, worlds: list[SyntheticVideo], encoded: list[ef.VideoFeatures]) -> dict[str, Any]:
    """R@1 at IoU 0.5 and 0.7 over all events and by style."""
    answers: dict[str, list[Any]] = {style: [] for style in STYLES}
    truth: dict[str, list[Any]] = {style: [] for style in STYLES}
    for world, feats in zip(worlds, encoded, strict=True):
        texts = model.encode_text([event.caption for event in world.events])
        for event, text in zip(world.events, texts, strict=True):
            answers[world.style].append(ef.ground(feats, text, top=1))
            truth[world.style].append([(event.start, event.end)])
    result: dict[str, Any] = {}
    groups = {"all": list(STYLES), **{style: [style] for style in STYLES}}
    for name, styles in groups.items():
        found = [answer for style in styles for answer in answers[style]]
        wanted = [window for style in styles for window in truth[style]]
        if found:
            result[name] = {
                "queries": len(found),
                "iou_0.5": recall_at(found, wanted, k=1, iou=0.5),
                "iou_0.7": recall_at(found, wanted, k=1, iou=0.7),
            }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=24)
    parser.add_argument("--seed", type=int, default=900)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "bundled.json")
    options = parser.parse_args()
    model = ef.load(options.model, device="cpu")
    encoders = {
        "dense": ef.DenseEncoder(model),
        "ResidualViT N=2, no token": ef.ResidualViT(model, residual=None),
        "ResidualViT N=2": ef.ResidualViT(model),
    }
    with tempfile.TemporaryDirectory() as folder:
        worlds = list(
            synthesize(folder, videos=options.videos, seed=options.seed, combinations="unseen", workers=options.workers)
        )
        shares = [json.loads(line) for line in (Path(folder) / "videos.jsonl").read_text().splitlines()]
        encoded = {
            name: [encode_video(Path(folder) / f"{world.name}.mp4", encoder) for world in worlds]
            for name, encoder in encoders.items()
        }
    record: dict[str, Any] = {
        "benchmark": "bundled",
        "weights_sha256": model.weights_sha256,
        "videos": options.videos,
        "frame_to_caption_among_100": frame_to_caption(model, worlds, encoded["dense"]),
        "grounding": {name: grounding(model, worlds, feats) for name, feats in encoded.items()},
        "moving_share": {style: [row["moving_share"] for row in shares if row["style"] == style] for style in STYLES},
    }
    record["fidelity"] = {}
    for name in list(encoders)[1:]:
        pairs = zip(encoded["dense"], encoded[name], strict=True)
        cosines = np.concatenate([fidelity(b.embeddings, a.embeddings) for a, b in pairs])
        record["fidelity"][name] = {"mean": float(cosines.mean()), "p5": float(np.percentile(cosines, 5))}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1) + "\n")
    retrieval = record["frame_to_caption_among_100"]
    print(f"frame -> caption among 100: {100 * retrieval['mean']:.1f} % (std over draws {100 * retrieval['std']:.1f})")
    print("| encoder | videos | queries | R@1 IoU 0.5 | R@1 IoU 0.7 |\n| --- | --- | --- | --- | --- |")
    for name, groups in record["grounding"].items():
        for group, row in groups.items():
            print(f"| {name} | {group} | {row['queries']} | {100 * row['iou_0.5']:.1f} | {100 * row['iou_0.7']:.1f} |")
    for name, values in record["fidelity"].items():
        print(f"fidelity of {name}: mean {values['mean']:.3f}, 5th percentile {values['p5']:.3f}")
    for style, values in record["moving_share"].items():
        print(f"share of moving patches, {style}: {min(values):.2f} to {max(values):.2f}")


if __name__ == "__main__":
    main()
