"""From file to features the way today's tools work, and ours, in one run.

    python benchmarks/compare_peers.py [--rounds 3] [--quick] [--out benchmarks/results/peers.json]

Ways to get 3 features a second from the same file with the same random weights:

    loop      PyAV + transformers, batches of 16 (peers/transformers_loop.py), float32; and bfloat16
    whole     as clip-video-encode: read all, then a DataLoader and the model (peers/like_clip_video_encode.py), float32
    reencode  as video_features: re-encode at 3 frames/s, then frame by frame (peers/like_video_features.py), float32
    dense     everyframe, DenseEncoder, float32; and bfloat16
    residual  everyframe, ResidualViT(interleave=2, drop=0.85, select="motion"), bfloat16

Each has a process of its own and they take turns (`turns.py`). The video has 24 frames per second, so that every
eighth frame is meant by all but `reencode`, whose filter picks others. Cosines are to our dense float32 features of
frames of the same time: our preprocessing is Pillow's arithmetic, `whole` resizes with libswscale.
"""

from __future__ import annotations

import argparse
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

from encode import FPS, make_model, make_video
from everyframe.cpu import OtherLoad
from machine import machine, save
from turns import Player, serve
from ways import WAYS

ARCHITECTURES = {"ViT-B/32": 32, "ViT-B/16": 16}
SECONDS, SOURCE_FPS = 16, 24
SAME_TIME = 1e-3  # seconds


def peer(way: str, folder: Path) -> Callable[..., Any]:
    dtype = getattr(torch, WAYS[way][1])
    if way.startswith("loop"):
        from peers.transformers_loop import TransformersLoop

        return TransformersLoop(folder, dtype)
    if way == "whole":
        from peers.like_clip_video_encode import LikeClipVideoEncode

        return LikeClipVideoEncode(folder, dtype)
    if way == "reencode":
        from peers.like_video_features import LikeVideoFeatures

        return LikeVideoFeatures(folder, dtype)
    return Everyframe(folder, way)


class Everyframe:
    """Ours, with the interface of the peers."""

    def __init__(self, folder: Path, way: str) -> None:
        import everyframe as ef

        model = ef.load(folder, dtype=WAYS[way][1], device="cpu")
        self._encoder: Any = ef.DenseEncoder(model)
        if way == "residual":
            torch.manual_seed(0)
            token = ef.ResidualTokenizer(model.dim, model.vision.config.width)
            self._encoder = ef.ResidualViT(model, interleave=2, drop=0.85, select="motion", residual=token)

    def __call__(self, video: Path, limit: int | None = None) -> Any:
        import everyframe as ef
        from peers.result import Result

        end = None if limit is None else limit / FPS
        feats = ef.encode_video(video, self._encoder, fps=FPS, end=end)
        return Result(np.asarray(feats.embeddings), np.asarray(feats.times), {})


def child(options: argparse.Namespace) -> None:
    run = peer(options.way, options.model)
    run(options.video, limit=16)

    def turn() -> dict[str, Any]:
        load, begin = OtherLoad(), time.perf_counter()
        result = run(options.video)
        seconds = time.perf_counter() - begin
        other = load.read()
        np.savez(options.features, features=result.features, times=result.times)
        own, workers = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return {
            "frames": len(result.features),
            "frames_per_second": len(result.features) / seconds,
            "ms_per_frame": {part: 1000 * value / len(result.features) for part, value in result.spent.items()},
            "peak_mb": own.ru_maxrss / 1024,
            "largest_worker_mb": workers.ru_maxrss / 1024,
            "other_load": other,
        }

    serve(turn)


def measure(video: Path, work: Path, rounds: int) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for name, patch_size in ARCHITECTURES.items():
        folder = work / name.replace("/", "-")
        make_model(folder, patch_size)
        runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
        with ExitStack() as stack:
            players = {way: stack.enter_context(start(way, video, folder, work)) for way in WAYS}
            for turn in range(rounds):
                for way, player in players.items():
                    runs[way].append(player.turn())
                    speed = runs[way][-1]["frames_per_second"]
                    print(f"{name} round {turn + 1} {way}: {speed:.2f} frames/s", file=sys.stderr)
        with np.load(work / "dense.npz") as ours:
            reference = {"features": ours["features"], "times": ours["times"]}
        results[name] = {"runs": runs, "cosine": {way: cosine(work / f"{way}.npz", reference) for way in WAYS}}
    return results


def start(way: str, video: Path, folder: Path, work: Path) -> Player:
    command = [sys.executable, __file__, "--way", way, "--video", str(video), "--model", str(folder)]
    return Player(way, [*command, "--features", str(work / f"{way}.npz")])


def cosine(file: Path, reference: dict[str, np.ndarray]) -> dict[str, Any]:
    """Mean cosine to the reference of the frames that both have, and how many those are; None where there are none."""
    with np.load(file) as found:
        features, times = found["features"], found["times"]
    distance = np.abs(times[:, None] - reference["times"][None])
    nearest = np.nan_to_num(distance, nan=np.inf).argmin(1)
    same = np.nan_to_num(distance, nan=np.inf).min(1) < SAME_TIME
    if not same.any():
        return {"frames": 0, "mean": None}
    both = (features[same] * reference["features"][nearest[same]]).sum(1)
    return {"frames": int(same.sum()), "mean": float(both.mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round with ViT-B/32 alone, for a look")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/peers.json; none with --quick")
    for name in ("--way", "--video", "--model", "--features"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        child(options)
        return
    if options.quick:
        del ARCHITECTURES["ViT-B/16"]
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder) / "synthetic.mp4"
        make_video(video, SECONDS, SOURCE_FPS)
        results = measure(video, Path(folder), 1 if options.quick else options.rounds)
    record = {
        "benchmark": "peers",
        "quick": options.quick,
        "video": {"seconds": SECONDS, "fps": SOURCE_FPS, "size": "640x480"},
        "results": results,
        "machine": machine(),
        "seconds": round(time.perf_counter() - begin),
    }
    save(record, options.out, quick=options.quick)
    for name, result in results.items():
        for way, own in result["runs"].items():
            speed = statistics.median(run["frames_per_second"] for run in own)
            same = result["cosine"][way]
            text = "other frames" if same["mean"] is None else f"cosine {same['mean']:.4f} of {same['frames']} frames"
            print(f"{name} {WAYS[way][0]}, {WAYS[way][1]}: {speed:.2f} frames/s, {text}")


if __name__ == "__main__":
    main()
