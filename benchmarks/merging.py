"""Does the time of a clip follow its multiply-accumulates when tokens merge? And does memory stay?

    python benchmarks/merging.py [--rounds 5] [--dtype float32 bfloat16] [--out benchmarks/results/merging.json]
    python benchmarks/merging.py --memory-only        # peak memory of UMT-L alone

Video transformers of the published sizes with seeded random weights on one clip of noise; speed depends on neither.
In every round the methods take turns, beginning with another one each time; the ratio to the unmodified model, which
runs fused attention throughout, is taken within a round, and the median of the rounds is given.

speed-up   seconds of the unmodified model over seconds of the method
FLOPs      multiply-accumulates of the unmodified model over those of the method, as vid-TLDR counts them
kept       speed-up as a share of the FLOPs ratio. Aim: at least 85 %
memory     peak resident memory of one process that loads UMT-L (12 frames, 2,352 tokens) and encodes one clip, and
           what encoding added to the loaded model; with vid-TLDR over without. Aim: at most 1.25
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from everyframe.backbone import VIDEO_ARCHITECTURES, VideoModel, VideoTransformer
from everyframe.backbone.video import sinusoids
from everyframe.backbone.video_model import video_skeleton
from everyframe.cost import flops
from everyframe.encoders import ToMe, VidTLDR
from everyframe.version import package_version

WAYS: dict[str, dict[str, tuple[type, list[int]]]] = {
    "umt-b": {
        "unmodified": (VidTLDR, []),
        "ToMe": (ToMe, [100] * 12),
        "vid-TLDR msrvtt": (VidTLDR, VidTLDR.preset("umt-b/msrvtt-retrieval")),
        "vid-TLDR ssv2-label": (VidTLDR, VidTLDR.preset("umt-b/ssv2-label-retrieval")),
    },
    "videomae-b": {
        "unmodified": (VidTLDR, []),
        "ToMe": (ToMe, [100] * 12),
        "vid-TLDR": (VidTLDR, [650, 200, 150, 150]),
    },
}
AIM, MEMORY_AIM = 0.85, 1.25


def random_model(name: str, dtype: torch.dtype) -> VideoModel:
    """A published size with seeded weights of a sensible scale."""
    config = VIDEO_ARCHITECTURES[name]
    torch.manual_seed(0)
    vision = VideoTransformer(config)
    with torch.no_grad():
        for parameter in vision.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        vision.positions.copy_(sinusoids(*vision.positions.shape))
    bones = video_skeleton(name)
    model = VideoModel(
        name=name, family=bones.family, vision=vision, frames=config.frames, preprocessing=bones._preprocessing
    )
    return model.to(dtype).eval().requires_grad_(False)


def clip(model: VideoModel) -> torch.Tensor:
    side = model.image_size
    return torch.randn(1, model.frames, 3, side, side, generator=torch.Generator().manual_seed(1))


def measure(name: str, dtype: str, rounds: int) -> dict[str, Any]:
    model = random_model(name, getattr(torch, dtype))
    encoders = {way: make(model, reduce) for way, (make, reduce) in WAYS[name].items()}
    pixels = clip(model)
    for encoder in encoders.values():  # the first pass pays for allocations
        encoder.encode(pixels)
    taken: dict[str, list[float]] = {way: [] for way in encoders}
    loads = []
    for turn in range(rounds):
        loads.append(os.getloadavg()[0])
        order = list(encoders)[turn % len(encoders) :] + list(encoders)[: turn % len(encoders)]
        for way in order:
            begin = time.perf_counter()
            encoders[way].encode(pixels)
            taken[way].append(time.perf_counter() - begin)
        print(f"{name} {dtype}: round {turn + 1} of {rounds}", file=sys.stderr)
    whole = flops(encoders["unmodified"]).total
    lines = {}
    for way, encoder in encoders.items():
        ratio = whole / flops(encoder).total
        speedups = [full / own for full, own in zip(taken["unmodified"], taken[way], strict=True)]
        lines[way] = {
            "reduce": list(encoder.reduce),
            "gflops": round(flops(encoder).total / 1e9, 2),
            "seconds": [round(seconds, 3) for seconds in taken[way]],
            "flops_ratio": round(ratio, 3),
            "speedup": round(statistics.median(speedups), 3),
            "speedup_rounds": [round(min(speedups), 3), round(max(speedups), 3)],
            "kept": round(statistics.median(speedups) / ratio, 3),
        }
    return {"methods": lines, "load_before": round(max(loads), 2)}


def peak_of(way: str) -> dict[str, float]:
    """In a process of its own: MiB after loading UMT-L, and at most while it encodes a clip."""
    run = subprocess.run(
        [sys.executable, __file__, "--peak", way], capture_output=True, text=True, check=True, env={**os.environ}
    )
    return json.loads(run.stdout)


def print_peak(way: str) -> None:
    model = random_model("umt-l", torch.float32)
    encoder = VidTLDR(model, [] if way == "unmodified" else VidTLDR.preset("umt-l/msrvtt-retrieval"))
    pixels = clip(model)
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    encoder.encode(pixels)
    print(json.dumps({"loaded_mib": loaded, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


def memory() -> dict[str, Any]:
    found = {way: peak_of(way) for way in ("unmodified", "vid-TLDR msrvtt")}
    own, whole = found["vid-TLDR msrvtt"], found["unmodified"]
    added = {way: facts["peak_mib"] - facts["loaded_mib"] for way, facts in found.items()}
    return {
        "model": "umt-l, 12 frames, float32",
        "processes": {way: {key: round(value) for key, value in facts.items()} for way, facts in found.items()},
        "peak_ratio": round(own["peak_mib"] / whole["peak_mib"], 3),
        "added_ratio": round(added["vid-TLDR msrvtt"] / added["unmodified"], 3),
    }


def say(record: dict[str, Any]) -> None:
    print("| model | dtype | method | GFLOPs | s per clip | speed-up (rounds) | FLOPs | kept |\n" + "| --- " * 8 + "|")
    for dtype, models in record.get("results", {}).items():
        for name, result in models.items():
            for way, own in result["methods"].items():
                low, high = own["speedup_rounds"]
                print(
                    f"| {name} | {dtype} | {way} | {own['gflops']} | {statistics.median(own['seconds']):.2f} | "
                    f"{own['speedup']:.2f} ({low:.2f} to {high:.2f}) | {own['flops_ratio']:.2f} | "
                    f"{100 * own['kept']:.0f} % |"
                )
    memory = record["memory"]
    print(f"\nmemory, {memory['model']}: peak {memory['peak_ratio']}, added by encoding {memory['added_ratio']}")
    for way, facts in memory["processes"].items():
        print(f"  {way}: loaded {facts['loaded_mib']} MiB, peak {facts['peak_mib']} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--models", nargs="+", default=list(WAYS))
    parser.add_argument("--memory-only", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print_peak(options.peak)
        return
    record: dict[str, Any] = {
        "benchmark": "merging",
        "settings": {"rounds": options.rounds, "aims": {"kept": AIM, "memory": MEMORY_AIM}},
        "machine": {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()},
        "versions": {"everyframe": package_version(), "torch": torch.__version__, "python": platform.python_version()},
        "memory": memory(),
    }
    if not options.memory_only:
        record["results"] = {
            dtype: {name: measure(name, dtype, options.rounds) for name in options.models} for dtype in options.dtype
        }
    say(record)
    if options.out is not None:
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
