"""What fitting a residual tokenizer costs, by size of the model, with seeded random weights.

    python benchmarks/distill.py [--device cuda] [--dtype bfloat16] [--out benchmarks/results/distill.json]

For each architecture, in a process of its own (so peak memory is its own):

teacher   the full transformer on a clip's 4 frames, once per clip
step      forward and backward of the 3 P-frames through their short sequences, in every epoch
memory    peak of the process, or of the GPU

A clip's cost over e epochs is teacher + e x step; decoding comes on top of the first epoch.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from everyframe.backbone import Model, skeleton
from everyframe.backbone.model import parse_dtype
from everyframe.encoders import DenseEncoder, ResidualTokenizer, ResidualViT
from everyframe.tokens.drop import random_indices

FRAMES = 4


def random_model(name: str, device: str, dtype: str) -> Model:
    """The architecture with seeded random weights: as fast as a trained one."""
    model = skeleton(name).to_empty(device=device).to(parse_dtype(dtype))
    generator = torch.Generator(device).manual_seed(0)
    for parameter in model.parameters():
        parameter.normal_(std=0.02, generator=generator)
    return model


def measure(name: str, device: str, dtype: str, clips: int, repeats: int) -> dict[str, Any]:
    model = random_model(name, device, dtype)
    size = model.image_size
    pixels = torch.randn(clips * FRAMES, 3, size, size, generator=torch.Generator().manual_seed(1))
    tokenizer = ResidualTokenizer(model.dim, model.vision.config.width)
    encoder = ResidualViT(model, residual=tokenizer)
    dense = DenseEncoder(model, batch_size=clips * FRAMES)
    patches = model.vision.num_patches
    count = clips * (FRAMES - 1)
    indices = random_indices(patches, max(1, int(patches * 0.15)), frames=range(count), seed=0)

    def clock() -> float:
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()

    def step(teacher: torch.Tensor) -> None:
        teacher = teacher.view(clips, FRAMES, -1)
        sources = teacher[:, :1].expand(-1, FRAMES - 1, -1).flatten(0, 1)
        short = pixels.view(clips, FRAMES, 3, size, size)[:, 1:].flatten(0, 1)
        features = encoder.p_features(short, sources, indices)
        (1 - (features * teacher[:, 1:].flatten(0, 1)).sum(1)).mean().backward()

    teacher = dense.encode(pixels)
    step(teacher)  # the first pass pays for allocations
    started = clock()
    for _ in range(repeats):
        dense.encode(pixels)
    middle = clock()
    for _ in range(repeats):
        step(teacher)
    ended = clock()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return {
        "architecture": name,
        "teacher_ms_per_clip": 1e3 * (middle - started) / repeats / clips,
        "step_ms_per_clip": 1e3 * (ended - middle) / repeats / clips,
        "p_frames_per_second": repeats * count / (ended - middle),
        "peak_mb": peak if device == "cpu" else torch.cuda.max_memory_allocated() / 2**20,
        "parameters_fitted": sum(p.numel() for p in tokenizer.parameters()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--clips", type=int, default=8, help="clips per backward pass")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", help="one architecture, in this process; prints JSON")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "distill.json")
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(options.only, options.device, options.dtype, options.clips, options.repeats)))
        return
    rows = []
    for name in ("ViT-B/32", "ViT-B/16", "ViT-L/14"):
        command = [sys.executable, __file__, "--only", name, "--device", options.device, "--dtype", options.dtype]
        command += ["--clips", str(options.clips), "--repeats", str(options.repeats)]
        run = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append(json.loads(run.stdout.splitlines()[-1]))
        row = rows[-1]
        print(
            f"{name}: teacher {row['teacher_ms_per_clip']:.0f} ms, step {row['step_ms_per_clip']:.0f} ms per clip "
            f"({row['p_frames_per_second']:.1f} P-frames/s), peak {row['peak_mb']:.0f} MB",
            flush=True,
        )
    record = {
        "benchmark": "distill",
        "device": options.device if options.device == "cpu" else torch.cuda.get_device_name(),
        "dtype": options.dtype,
        "clips": options.clips,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "rows": rows,
    }
    options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
