"""Frames per second from file to features: a hand-written loop of today against everyframe, in one run.

    python benchmarks/encode.py [--video FILE] [--rounds 3] [--quick] [--out benchmarks/results/encode.json]

Ways to get 3 features a second from the same file with the same random weights (ViT-B/16 and B/32):

    a  PyAV, transformers' CLIPImageProcessor and CLIPModel, float32, batches of 16: what people write today
    b  the same in bfloat16
    c  everyframe, DenseEncoder, bfloat16
    d  everyframe, ResidualViT(interleave=2, drop=0.85, select="motion"), bfloat16, with a residual token
    e  everyframe, ReuseEncoder(interleave=5, drop=0.85), fixed plan, bfloat16
    f  everyframe, DenseEncoder, int8 (weights and activations)
    g  everyframe, ResidualViT as d, int8

Every way has a process of its own (peak memory is then its own too), loads and warms up once, and then they take
turns, so that a machine that drifts drifts for all. Ratios are taken within a round; the median of the rounds is
printed. f and g are left out, with a message, where `ef.load` knows no int8.
"""

from __future__ import annotations

import argparse
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from everyframe.cpu import OtherLoad
from machine import machine, save
from turns import Player, decline, serve
from ways import SPEED_AIMS, VARIANTS

INT8 = "fg"
ARCHITECTURES = {
    "ViT-B/16": {"patch_size": 16},
    "ViT-B/32": {"patch_size": 32},
}
FPS = 3.0
SECONDS = 24  # 12 groups of six frames
PART_SECONDS = 10.0  # of which decoding, preprocessing and the model are timed apart


def make_model(
    folder: Path,
    patch_size: int,
    *,
    width: int = 768,
    depth: int = 12,
    heads: int = 12,
    dim: int = 512,
    text: bool = True,
) -> None:
    """A CLIP of the given patch size with seeded random weights, in Hugging Face format; B sizes unless given.

    text=False: its image side alone.
    """
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    vision = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "image_size": 224,
        "patch_size": patch_size,
    }
    if text:
        model: Any = CLIPModel(CLIPConfig(vision_config=vision, projection_dim=dim))
    else:
        model = CLIPVisionModelWithProjection(CLIPVisionConfig(**vision, projection_dim=dim))
    model.eval().save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)


def make_video(path: Path, seconds: float = SECONDS, fps: float = 25) -> None:
    """640x480, by default 24 s at 25 frames/s, H.264."""
    from everyframe.synthetic import SyntheticVideo

    SyntheticVideo(3, seconds=seconds, fps=fps, size=(640, 480), style="pan").write(path)


# --- one way, in a process of its own --------------------------------------------------------------------


def loop_turn(video: Path, folder: Path, dtype: torch.dtype) -> Callable[[], dict[str, Any]]:
    """Today's loop, warmed up."""
    from peers.transformers_loop import TransformersLoop

    loop = TransformersLoop(folder, dtype)
    loop(video, limit=16)

    def turn() -> dict[str, Any]:
        clock = time.perf_counter()
        result = loop(video)
        seconds = time.perf_counter() - clock
        count = len(result.features)
        parts = {part: 1000 * value / count for part, value in result.spent.items()}
        return {"seconds": seconds, "features": result.features, "ms_per_frame": parts}

    return turn


def everyframe_turn(video: Path, folder: Path, variant: str, part: float) -> Callable[[], dict[str, Any]]:
    """One of ours, warmed up on `part` seconds. Raises ValueError for a dtype that there is not."""
    import everyframe as ef

    model = ef.load(folder, dtype="int8" if variant in INT8 else "bfloat16", device="cpu")
    if variant in "cf":
        encoder: Any = ef.DenseEncoder(model)
    elif variant == "e":
        encoder = ef.ReuseEncoder(model, interleave=5, drop=0.85)
    else:
        torch.manual_seed(0)
        token = ef.ResidualTokenizer(model.dim, model.vision.config.width)
        encoder = ef.ResidualViT(model, interleave=2, drop=0.85, select="motion", residual=token)
    ef.encode_video(video, encoder, fps=FPS, end=part)

    def turn() -> dict[str, Any]:
        clock = time.perf_counter()
        feats = ef.encode_video(video, encoder, fps=FPS)
        seconds = time.perf_counter() - clock
        return {"seconds": seconds, "features": feats.embeddings, "ms_per_frame": parts_of(video, encoder, part)}

    return turn


def parts_of(video: Path, encoder: Any, part: float) -> dict[str, float]:
    """Milliseconds per frame of the parts alone; they overlap in `encode_video`, so they add up to more."""
    from everyframe.video import sample_frames

    model = encoder.model
    clock = time.perf_counter()
    samples = list(sample_frames(video, FPS, end=part, motion=encoder.needs_motion))
    decode = time.perf_counter() - clock
    frames = np.stack([sample.pixels for sample in samples])
    clock = time.perf_counter()
    pixels = model.preprocess(frames)
    motion = None
    if encoder.needs_motion:
        motion = model.preprocess_motion(np.stack([sample.motion for sample in samples]), frames.shape[1:3])
    preprocess = time.perf_counter() - clock
    clock = time.perf_counter()
    encoder.encode(pixels, motion)
    spent = {"decode": decode, "preprocess": preprocess, "model": time.perf_counter() - clock}
    return {name: 1000 * value / len(samples) for name, value in spent.items()}


def child(options: argparse.Namespace) -> None:
    """Get one variant ready, then measure it whenever asked."""
    try:
        if options.variant in "ab":
            dtype = torch.float32 if options.variant == "a" else torch.bfloat16
            measured = loop_turn(options.video, options.model, dtype)
        else:
            measured = everyframe_turn(options.video, options.model, options.variant, options.part)
    except ValueError as error:
        if options.variant not in INT8:
            raise
        decline(str(error))
        return

    def turn() -> dict[str, Any]:
        load = OtherLoad()
        result = measured()
        other = load.read()
        features = result["features"]
        np.save(options.features, features)
        return {
            "frames": len(features),
            "frames_per_second": len(features) / result["seconds"],
            "ms_per_frame": result["ms_per_frame"],
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "other_load": other,
        }

    serve(turn)


# --- all of them -----------------------------------------------------------------------------------------


def measure(video: Path, work: Path, rounds: int, part: float) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for name, sizes in ARCHITECTURES.items():
        folder = work / name.replace("/", "-")
        make_model(folder, **sizes)
        with ExitStack() as stack:
            players = {each: stack.enter_context(start(each, video, folder, work, part)) for each in VARIANTS}
            skipped = {each: player.skipped for each, player in players.items() if player.skipped is not None}
            for each, reason in skipped.items():
                print(f"{name}: {each} is left out: {reason}", file=sys.stderr)
            runs: dict[str, list[dict[str, Any]]] = {each: [] for each in VARIANTS if each not in skipped}
            for turn in range(rounds):
                for each in runs:
                    runs[each].append(players[each].turn())
                    speed = runs[each][-1]["frames_per_second"]
                    print(f"{name} round {turn + 1} {each}: {speed:.2f} frames/s", file=sys.stderr)
        found = {each: np.load(work / f"{each}.npy") for each in runs}
        results[name] = {
            "runs": runs,
            "skipped": skipped,
            # The comparison is void if the variants do not compute the same thing.
            "cosine_of_c_to_b": agreement(found["c"], found["b"]),
            "cosine_to_a": {each: agreement(found[each], found["a"]) for each in runs if each in "bcf"},
            "cosine_of_g_to_d": agreement(found["g"], found["d"]) if "g" in found else None,
        }
    return results


def start(variant: str, video: Path, folder: Path, work: Path, part: float) -> Player:
    command = [sys.executable, __file__, "--variant", variant, "--video", str(video), "--part", f"{part:g}"]
    return Player(variant, [*command, "--model", str(folder), "--features", str(work / f"{variant}.npy")])


def agreement(some: np.ndarray, others: np.ndarray) -> float | None:
    """Mean cosine of unit rows; None where their numbers differ."""
    return float((some * others).sum(1).mean()) if some.shape == others.shape else None


def ratio(runs: dict[str, list[dict[str, Any]]], one: str, other: str) -> float:
    """How many times as fast `one` is as `other`: median of the rounds."""
    pairs = zip(runs[one], runs[other], strict=True)
    return statistics.median(a["frames_per_second"] / b["frames_per_second"] for a, b in pairs)


def summary(results: dict[str, Any]) -> list[str]:
    """Speeds and ratios in words; scripts/render_results.py makes the tables of the docs from the JSON."""
    lines = []
    for name, result in results.items():
        runs = result["runs"]
        for variant, own in runs.items():
            speed = statistics.median(run["frames_per_second"] for run in own)
            lines.append(f"{name} {variant}. {VARIANTS[variant]}: {speed:.2f} frames/s")
        for (one, other), aim in SPEED_AIMS.items():
            if one in runs and other in runs:
                lines.append(f"{name} {one} is {ratio(runs, one, other):.2f}x as fast as {other} (aim {aim}x)")
        cosines = {"c to b": result["cosine_of_c_to_b"], "g to d": result["cosine_of_g_to_d"]}
        cosines |= {f"{variant} to a": value for variant, value in result["cosine_to_a"].items()}
        said = ", ".join(f"{pair} {value:.4f}" for pair, value in cosines.items() if value is not None)
        lines.append(f"{name} mean cosines: {said}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--video", type=Path, help="default: a generated 640x480 video")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round of 8 s of video with ViT-B/16, for a look")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/encode.json; none with --quick")
    for name in ("--variant", "--model", "--features"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--part", type=float, default=PART_SECONDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant:
        child(options)
        return
    if options.quick:
        del ARCHITECTURES["ViT-B/32"]
        options.rounds, options.part = 1, 4.0
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        video = options.video
        if video is None:
            video = Path(folder) / "synthetic.mp4"
            make_video(video, 8 if options.quick else SECONDS)
        results = measure(video, Path(folder), options.rounds, options.part)
    record = {
        "benchmark": "encode",
        "quick": options.quick,
        "video": video.name,
        "results": results,
        "machine": machine(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "seconds": round(time.perf_counter() - begin),
    }
    save(record, options.out, quick=options.quick)
    print("\n".join(summary(results)))


if __name__ == "__main__":
    main()
