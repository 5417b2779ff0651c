"""What every fast path costs in fidelity and accuracy, against float32; and what int8 gains over bfloat16.

    python benchmarks/paths.py [--sets 2] [--videos 24] [--out benchmarks/results/paths.json]

Fidelity: the cosine of every frame's feature to the same encoder's in float32, on the bundled model and on a ViT-B/16
with seeded random weights. Accuracy: R@1 of grounding on held-out synthetic videos with unseen combinations (bundled
model), each query answered by every path; whole videos are drawn again for the interval of the difference.
Speed: of one thread, the two taking turns, for the four linear layers of a ViT-B/16 block and for the whole of it.
A path is a line in PATHS; an encoder one in ENCODERS.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import everyframe as ef
from everyframe import cpu
from everyframe.backbone.quantize import Int8Linear
from everyframe.encoders.baselines import fidelity
from everyframe.evaluation.summary import compare
from everyframe.evaluation.synthetic import rendered_videos
from everyframe.pipeline import Window, read_window
from everyframe.spans import temporal_iou
from everyframe.version import package_version

SEED, SECONDS, FPS = 901, 60.0, 3.0  # seeds that the bundled model was not trained on
IOUS = (0.5, 0.7)
REFERENCE = "float32"
PATHS: dict[str, dict[str, Any]] = {
    REFERENCE: {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"dtype": "int8"},
}
"""What `load` is given."""
ENCODERS: dict[str, Callable[[ef.Model], Any]] = {
    "dense": ef.DenseEncoder,
    "ResidualViT N=2": lambda model: ef.ResidualViT(model, residual="auto" if model.name == "bundled" else None),
    "reuse N=5": lambda model: ef.ReuseEncoder(model, interleave=5),
}
LAYERS = {"qkv": (768, 2304), "proj": (768, 768), "fc1": (768, 3072), "fc2": (3072, 768)}
TOKENS, FRAMES = 197, 8  # of a frame of ViT-B/16, and of a batch that is timed
TURNS = 7


def random_vit(folder: Path) -> Path:
    """A CLIP vision tower of ViT-B/16's sizes with seeded random weights, in Hugging Face format."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    config = CLIPVisionConfig(hidden_size=768, intermediate_size=3072, patch_size=16, projection_dim=512)
    config.num_hidden_layers, config.num_attention_heads = 12, 12
    CLIPVisionModelWithProjection(config).eval().save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)
    return folder


def encoded(model: ef.Model, encoder: Any, window: Window) -> np.ndarray:
    motion = window.motion if encoder.needs_motion else None
    return encoder.encode(window.pixels, motion).numpy()


def spread(cosines: np.ndarray) -> dict[str, float]:
    return {
        "mean": float(cosines.mean()),
        "p5": float(np.percentile(cosines, 5)),
        "min": float(cosines.min()),
        "frames": len(cosines),
    }


# --- bundled: fidelity and accuracy --------------------------------------------------------------------------


def overlaps(feats: ef.VideoFeatures, texts: Tensor, events: tuple[tuple[str, float, float], ...]) -> np.ndarray:
    """IoU of every query's first answer with the truth."""
    found = np.zeros(len(events))
    for row, (text, (_, start, end)) in enumerate(zip(texts, events, strict=True)):
        for moment in ef.ground(feats, text, top=1):
            found[row] = temporal_iou(moment, (start, end))
    return found


def bundled(sets: int, videos: int, workers: int, folder: Path) -> list[dict[str, Any]]:
    models = {path: ef.load("bundled", device="cpu", **how) for path, how in PATHS.items()}
    near: dict[tuple[str, str], list[np.ndarray]] = {}
    answers: dict[tuple[str, str], list[np.ndarray]] = {}
    encoders = {path: {name: make(model) for name, make in ENCODERS.items()} for path, model in models.items()}
    for number in range(sets):
        seed = SEED + number
        for video in rendered_videos(
            folder / f"set-{seed}", videos=videos, seconds=SECONDS, seed=seed, workers=workers
        ):
            window = read_window(video.file, models[REFERENCE], fps=FPS)
            for path, model in models.items():
                texts = model.encode_text([caption for caption, _, _ in video.events])
                for name, encoder in encoders[path].items():
                    features = encoded(model, encoder, window)
                    if path == REFERENCE:
                        wanted = near.setdefault((path, name), [])
                        wanted.append(features)
                    else:
                        near.setdefault((path, name), []).append(fidelity(features, near[REFERENCE, name][-1]))
                    feats = ef.VideoFeatures(
                        times=window.times,
                        embeddings=features,
                        roles=encoder.roles(len(features)),
                        end_seconds=window.end_seconds,
                        settings={"fps": FPS},
                    )
                    answers.setdefault((path, name), []).append(overlaps(feats, texts, video.events))
        print(f"set {seed} done", flush=True)
    rows = []
    for path, model in models.items():
        for name in ENCODERS:
            row: dict[str, Any] = {"path": path, "precision": model.precision, "encoder": name, "accuracy": []}
            row["fidelity"] = None if path == REFERENCE else spread(np.concatenate(near[path, name]))
            for iou in IOUS:
                hits, base = ([each >= iou for each in answers[key, name]] for key in (path, REFERENCE))
                wins, losses, difference, low, high = compare(hits, base)
                row["accuracy"].append(
                    {
                        "iou": iou,
                        "recall": float(np.concatenate(hits).mean()),
                        "queries": int(sum(map(len, hits))),
                        "wins": wins,
                        "losses": losses,
                        "points": difference,
                        "low": low,
                        "high": high,
                    }
                )
            rows.append(row)
    return rows


# --- random weights: fidelity; and speed -----------------------------------------------------------------------


def random_fidelity(folder: Path, file: Path) -> list[dict[str, Any]]:
    models = {path: ef.load(folder, device="cpu", **how) for path, how in PATHS.items()}
    window = read_window(file, models[REFERENCE], fps=FPS, end=10.0)
    rows = []
    for name, make in ENCODERS.items():
        wanted = encoded(models[REFERENCE], make(models[REFERENCE]), window)
        for path, model in models.items():
            if path != REFERENCE:
                found = fidelity(encoded(model, make(model), window), wanted)
                rows.append({"path": path, "precision": model.precision, "encoder": name, **spread(found)})
    return rows


def repeated(way: nn.Module, x: Tensor, times: int) -> None:
    for _ in range(times):
        way(x)


def turns(ways: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Seconds of every way, turn by turn."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(TURNS + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if turn:  # the first one packs weights and allocates
                seconds[name].append(time.perf_counter() - started)
    return seconds


@torch.inference_mode()
def speed(folder: Path) -> dict[str, Any]:
    """Seconds in bfloat16 and int8 with one thread: of the layers on a batch's rows, and of the tower on the batch."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = []
    for name, (inputs, outputs) in LAYERS.items():
        for count in (FRAMES * TOKENS, 31):
            linear = nn.Linear(inputs, outputs).requires_grad_(False)
            int8, bfloat16 = Int8Linear(linear), linear.to(torch.bfloat16)
            x = torch.randn(count, inputs).to(torch.bfloat16)
            ways = {"bfloat16": bfloat16, "int8": int8}
            # As many calls as make a turn long enough to be timed.
            repeats = max(1, FRAMES * TOKENS // count // 4)
            found = turns({key: partial(repeated, way, x, repeats) for key, way in ways.items()})
            rows.append({"layer": name, "rows": count, "macs": repeats * count * inputs * outputs, "seconds": found})
    towers = {path: ef.load(folder, device="cpu", dtype=path) for path in ("bfloat16", "int8")}
    pixels = torch.randn(FRAMES, 3, 224, 224)
    encoders = {path: ef.DenseEncoder(model, batch_size=FRAMES) for path, model in towers.items()}
    tower = turns({path: partial(encoder.encode, pixels) for path, encoder in encoders.items()})
    torch.set_num_threads(before)
    return {"layers": rows, "tower": {"frames": FRAMES, "seconds": tower}}


def ratio(seconds: dict[str, list[float]]) -> float:
    """How much faster int8 is, turn by turn."""
    return statistics.median(a / b for a, b in zip(seconds["bfloat16"], seconds["int8"], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=2)
    parser.add_argument("--videos", type=int, default=24, help="of every set")
    parser.add_argument("--workers", type=int, default=2, help="processes that render")
    parser.add_argument("--work", type=Path, help="where videos are kept for the next run")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "paths.json")
    options = parser.parse_args()
    load = cpu.OtherLoad()
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        folder = random_vit(Path(temporary) / "random")
        timed = speed(folder)
        facts = cpu.facts(load)
        rows = bundled(options.sets, options.videos, options.workers, work)
        file = sorted((work / f"set-{SEED}").glob("[!.]*.mp4"))[0]
        record = {
            "benchmark": "paths",
            "version": package_version(),
            "torch": torch.__version__,
            **facts,
            "sets": options.sets,
            "videos": options.sets * options.videos,
            "fps": FPS,
            "bundled": rows,
            "random": random_fidelity(folder, file),
            "speed": timed,
        }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        for each in row["accuracy"]:
            cosine = "" if row["fidelity"] is None else f", cosine {row['fidelity']['mean']:.4f}"
            print(
                f"{row['path']:9} {row['encoder']:16} R@1 IoU {each['iou']}: {100 * each['recall']:.1f} "
                f"({each['points']:+.2f} points){cosine}"
            )
    for row in record["random"]:
        print(f"random ViT-B/16, {row['path']:9} {row['encoder']:16} mean {row['mean']:.4f}, least {row['min']:.4f}")
    for row in timed["layers"]:
        print(f"{row['layer']:5} {row['rows']:5} rows: int8 {ratio(row['seconds']):.2f}x bfloat16")
    print(f"whole ViT-B/16: int8 {ratio(timed['tower']['seconds']):.2f}x bfloat16")


if __name__ == "__main__":
    main()
