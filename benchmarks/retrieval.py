"""Videos per second, fine-tuning time and memory of mean-pooled CLIP, ToMe and TempMe; seeded random weights.

    python benchmarks/retrieval.py [--rounds 7] [--steps 3] [--out benchmarks/results/retrieval.json]
    python benchmarks/retrieval.py --sizes ViT-B/32 --rounds 2 --steps 1 --out /tmp/retrieval.json    # a quick look

Videos are 12 frames of noise; speed depends neither on them nor on the weights. In every round the methods take turns,
beginning with another one each time; ratios to mean pooling are taken within a round. Medians and quartiles of the
rounds are given.

encoding   frames in, one feature per video out: TempMe's Table 4, with LoRA merged into the weights
training   a step of full fine-tuning, both towers, contrastive loss, AdamW: Table 5. A batch that a CPU can hold is
           small, so weights and their states weigh more than in the paper's 128 videos
memory     in a process of its own for each method: resident memory before the first step (weights, gradients and the
           optimizer's states are there), and at most while a step runs
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from everyframe.backbone import Model, VisionTransformer, skeleton
from everyframe.backbone.text import TextConfig, TextTransformer
from everyframe.cost import flops
from everyframe.encoders import DenseEncoder, TempMe, ToMe
from everyframe.evaluation.frame_reader import FrameReader
from everyframe.training.contrastive import contrastive_loss
from everyframe.version import package_version

FRAMES, WORDS = 12, 32
SIZES = ("ViT-B/16", "ViT-B/32")
METHODS = ("mean", "ToMe", "TempMe")
PUBLISHED = {  # ViT-B/16, 12 frames, an A100: Tables 4 and 5; memory in GB
    "videos_per_second": {"mean": 30.6, "ToMe": 40.8, "TempMe": 45.1},
    "training_speed": {"mean": 1.0, "ToMe": 1.35, "TempMe": 1.57},
    "training_memory_gb": {"mean": 70.1, "ToMe": 61.6, "TempMe": 52.7},
}


def random_model(size: str, dtype: torch.dtype) -> Model:
    """CLIP's architecture, both towers, with seeded weights of a sensible scale."""
    bones = skeleton(size)
    config = bones.vision.config
    torch.manual_seed(0)
    text = TextConfig(
        width=512, heads=8, mlp_width=2048, activation="quick_gelu", norm_eps=1e-5, depth=12, vocabulary=49408,
        context=77, dim=config.dim, causal=True, end_is_highest=True,
    )  # fmt: skip
    model = Model(
        name=size, family="clip", vision=VisionTransformer(config), text=TextTransformer(text), tokenizer=None,
        preprocessing=bones._preprocessing, logit_scale=100.0, logit_bias=0.0, weights_sha256="",
    )  # fmt: skip
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02 if "tokens" in name else parameter.shape[1] ** -0.5)
    return model.to(dtype)


def schedules(size: str) -> dict[str, dict[str, Any]]:
    """Arguments of `TempMe` for each method."""
    arguments = TempMe.preset(f"msrvtt-b{size[-2:]}")
    return {
        "mean": {"r": 0, "clips": {}},
        "ToMe": {"r": arguments["r"], "clips": {}},
        "TempMe": arguments,
    }


def noise(size: str, videos: int) -> Tensor:
    side = skeleton(size).image_size
    return torch.randn(videos, FRAMES, 3, side, side, generator=torch.Generator().manual_seed(1))


def in_turns(work: dict[str, Callable[[], Any]], rounds: int, label: str) -> tuple[dict[str, list[float]], float]:
    """Seconds of each piece of work in each round, after one that does not count; and the load before, at most."""
    taken: dict[str, list[float]] = {name: [] for name in work}
    loads = []
    for turn in range(rounds + 1):
        loads.append(os.getloadavg()[0])
        names = list(work)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            begin = time.perf_counter()
            work[name]()
            if turn:
                taken[name].append(time.perf_counter() - begin)
        print(f"{label}: round {turn} of {rounds}", file=sys.stderr, flush=True)
    return taken, round(max(loads), 2)


def summary(values: list[float], digits: int = 3) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": round(middle, digits), "p25": round(low, digits), "p75": round(high, digits)}


def over_mean(taken: dict[str, list[float]], name: str) -> dict[str, float]:
    """How many times as fast as mean pooling, within each round."""
    return summary([plain / own for plain, own in zip(taken["mean"], taken[name], strict=True)])


def encoding(size: str, dtype: str, rounds: int, videos: int) -> dict[str, Any]:
    model = random_model(size, getattr(torch, dtype))
    arguments, pixels = schedules(size), noise(size, videos)
    depth = len(model.vision.blocks)
    readers = {
        "mean": FrameReader(DenseEncoder(model, batch_size=videos * FRAMES), frames=FRAMES),
        "ToMe": FrameReader(ToMe(model, [arguments["ToMe"]["r"]] * depth, batch_size=videos * FRAMES), frames=FRAMES),
        "TempMe": FrameReader(TempMe(model, **arguments["TempMe"], batch_size=videos), frames=FRAMES),
    }
    if dtype == "float32":  # the first two are TempMe without its parts, or the rows are not of a kind
        for name in ("mean", "ToMe"):
            same = TempMe(model, **arguments[name]).encode(pixels[:1])
            torch.testing.assert_close(readers[name].encode(pixels[:1]), same, atol=1e-4, rtol=0)
    work = {name: partial(reader.encode, pixels) for name, reader in readers.items()}
    taken, load = in_turns(work, rounds, f"{size} {dtype}")
    costs = {name: flops(TempMe(model, **each), FRAMES).total / 1e9 for name, each in arguments.items()}
    return {
        "methods": {
            name: {
                "gflops_per_video": round(costs[name], 2),
                "flops_ratio": round(costs["mean"] / costs[name], 3),
                "videos_per_second": summary([videos / seconds for seconds in taken[name]]),
                "speedup": over_mean(taken, name),
            }
            for name in METHODS
        },
        "load_before": load,
    }


class Training:
    """Full fine-tuning of one model, with any of the methods."""

    def __init__(self, size: str, videos: int) -> None:
        self.model = random_model(size, torch.float32).requires_grad_(True)
        self.text: Any = self.model.text
        self.encoders = {}
        for name, each in schedules(size).items():
            start = TempMe(self.model, **each).zero_positions(FRAMES)
            positions = {block: nn.Parameter(rows) for block, rows in start.items()}
            self.encoders[name] = TempMe(self.model, **each, positions=positions)
        learned = [p for encoder in self.encoders.values() for p in encoder.positions.values()]
        self.optimizer = torch.optim.AdamW([*self.model.parameters(), *learned], lr=1e-6, weight_decay=0.2)
        self.pixels = noise(size, videos)
        self.ids = torch.randint(1, 49406, (videos, WORDS), generator=torch.Generator().manual_seed(2))
        self.ids[:, -1] = 49407  # ends of texts
        for group in self.optimizer.param_groups:  # gradients and states exist before anything is measured
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()

    def step(self, name: str) -> None:
        """One optimizer step."""
        self.optimizer.zero_grad(set_to_none=False)
        videos = self.encoders[name].features(self.pixels)
        texts = F.normalize(self.text(self.ids), dim=1)
        contrastive_loss(videos, texts, self.model.logit_scale).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()


def training(size: str, steps: int, videos: int) -> dict[str, Any]:
    run = Training(size, videos)
    taken, load = in_turns({name: partial(run.step, name) for name in METHODS}, steps, f"{size} training")
    del run  # before the processes below need the memory
    peaks = {name: peak_of(size, name, videos) for name in METHODS}
    plain = peaks["mean"]
    return {
        "methods": {
            name: {
                "seconds_per_step": summary(taken[name]),
                "speedup": over_mean(taken, name),
                "before_mib": round(peaks[name]["before"]),
                "peak_mib": round(peaks[name]["peak"]),
                "peak_ratio": round(peaks[name]["peak"] / plain["peak"], 3),
                "added_ratio": round(
                    (peaks[name]["peak"] - peaks[name]["before"]) / (plain["peak"] - plain["before"]), 3
                ),
            }
            for name in METHODS
        },
        "load_before": load,
    }


def peak_of(size: str, method: str, videos: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--peak", method, "--sizes", size, "--train-videos", str(videos)]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(run.stdout)


def print_peak(size: str, method: str, videos: int) -> None:
    run = Training(size, videos)
    before = resident("VmRSS")
    run.step(method)
    print(json.dumps({"before": before, "peak": resident("VmHWM")}))


def resident(field: str) -> float:
    """MiB of this process, now (VmRSS) or at most (VmHWM); ru_maxrss of a new process may be its parent's."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 2**10


def say(record: dict[str, Any]) -> None:
    print("| | videos/s | times mean pooling | FLOPs |\n| --- | --- | --- | --- |")
    for dtype, sizes in record["encoding"].items():
        for size, result in sizes.items():
            for name, own in result["methods"].items():
                speed, times = own["videos_per_second"], own["speedup"]
                print(
                    f"| {size} {dtype}, {name} | {speed['median']} ({speed['p25']} to {speed['p75']}) | "
                    f"{times['median']} ({times['p25']} to {times['p75']}) | {own['flops_ratio']} |"
                )
    print("\n| training | s per step | times mean pooling | peak MiB | of the peak | of what steps add |")
    print("| --- | --- | --- | --- | --- | --- |")
    for size, result in record["training"].items():
        for name, own in result["methods"].items():
            print(
                f"| {size}, {name} | {own['seconds_per_step']['median']} | {own['speedup']['median']} | "
                f"{own['peak_mib']} | {own['peak_ratio']} | {own['added_ratio']} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"], help="of encoding")
    parser.add_argument("--rounds", type=int, default=7, help="of encoding")
    parser.add_argument("--videos", type=int, default=2, help="of a pass of encoding")
    parser.add_argument("--steps", type=int, default=3, help="of training, per method")
    parser.add_argument("--train-videos", type=int, default=2, help="of a step")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peak", choices=METHODS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print_peak(options.sizes[0], options.peak, options.train_videos)
        return
    record: dict[str, Any] = {
        "benchmark": "retrieval",
        "settings": {
            "frames": FRAMES,
            "words": WORDS,
            **{name: getattr(options, name) for name in ("rounds", "videos", "steps", "train_videos")},
        },
        "published": PUBLISHED,
        "machine": {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()},
        "versions": {"everyframe": package_version(), "torch": torch.__version__, "python": platform.python_version()},
        "encoding": {
            dtype: {size: encoding(size, dtype, options.rounds, options.videos) for size in options.sizes}
            for dtype in options.dtype
        },
        "training": {size: training(size, options.steps, options.train_videos) for size in options.sizes},
    }
    say(record)
    if options.out is not None:
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
