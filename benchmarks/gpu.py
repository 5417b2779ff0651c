"""How fast a GPU encodes: share of its matmul rate, interleaved against dense, batch sizes, and from file to features.

    python benchmarks/gpu.py [--model ViT-L/14] [--batch-sizes 32 64 128 256 512] [--compile max-autotune-no-cudagraphs]
    python benchmarks/gpu.py --device cpu --quick      # does the script work? its figures say nothing

Weights are random (they do not decide the speed). Ways take turns within a round, ratios are taken within a round, and
the median of the rounds is printed. Dense FLOPs are 2 x the multiply-accumulates of `everyframe.flops(rule="all")`.
Exit code 2 without a GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import everyframe as ef
from everyframe.backbone import ARCHITECTURES, VisionConfig, VisionTransformer
from everyframe.backbone.compiling import MODES
from everyframe.backbone.preprocess import CLIP_MEAN, CLIP_STD, Preprocess
from everyframe.encoders import DenseEncoder, Plan, ResidualTokenizer, ResidualViT

FPS = 3.0  # what "x realtime" is at
INTERLEAVES = (2, 3)
AIMS = {"dense": 0.55, "N=2": 2.2, "N=3": 2.6}  # share of the matmul rate; speed over dense
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

# --- the model, and the clock ------------------------------------------------------------------------------


def make_model(name: str, device: torch.device, dtype: torch.dtype, *, quick: bool) -> ef.Model:
    """A CLIP tower with seeded random weights that keep activations near 1; `quick`: four blocks of a narrow one."""
    config: VisionConfig = ARCHITECTURES[name]
    if quick:
        config = dataclasses.replace(config, width=192, heads=3, mlp_width=768, depth=4, dim=64)
    torch.manual_seed(0)
    with torch.device(device):
        vision = VisionTransformer(config)
        for key, weight in vision.named_parameters():
            if weight.ndim == 2 and "norm" not in key:
                torch.nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
    preprocessing = Preprocess(size=config.image_size, shorter_side=config.image_size, mean=CLIP_MEAN, std=CLIP_STD)
    return ef.Model(
        name=name,
        family="clip",
        vision=vision.to(dtype),
        text=None,
        tokenizer=None,
        preprocessing=preprocessing,
        logit_scale=1.0,
        logit_bias=0.0,
        weights_sha256="",
    )


def seconds_of(work: Callable[[], Any], device: torch.device) -> float:
    """Wall-clock seconds until the device has done it."""
    wait(device)
    started = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - started


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_rate(device: torch.device, dtype: torch.dtype, side: int, rounds: int) -> float:
    """FLOP/s of a square product as large as the tower's are together, the best of the rounds."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    repeats = 20 if device.type == "cuda" else 2

    def multiply() -> None:
        for _ in range(repeats):
            a @ b

    multiply()
    return max(repeats * 2 * side**3 / seconds_of(multiply, device) for _ in range(rounds))


# --- the model alone: frames are on the device, plans are made ----------------------------------------------


@dataclasses.dataclass
class Way:
    """An encoder with the frames and the plan of one call: as many I-frames as its batch size."""

    encoder: Any
    pixels: torch.Tensor
    plan: Plan

    @classmethod
    def of(cls, encoder: Any) -> Way:
        frames = encoder.batch_size * encoder.group_size
        side, device = encoder.model.image_size, encoder.model.device
        pixels = torch.randn(frames, 3, side, side, device=device)
        planner = encoder.planner()
        return cls(encoder, pixels, planner.add(pixels) + planner.finish())

    def run(self) -> torch.Tensor:
        return self.encoder.encode_planned(self.pixels, self.plan)


def ways_of(model: ef.Model, batch_size: int) -> dict[str, Callable[[], Way]]:
    """What is compared, each made when it is needed: together their frames would take the memory of large batches."""
    torch.manual_seed(0)
    token = ResidualTokenizer(model.dim, model.vision.config.width).to(model.device)

    def interleaved(number: int) -> Callable[[], Way]:
        # "center" plans without looking at motion, so that planning costs nothing here.
        return lambda: Way.of(
            ResidualViT(model, number, drop=0.85, select="center", residual=token, batch_size=batch_size)
        )

    ways: dict[str, Callable[[], Way]] = {"dense": lambda: Way.of(DenseEncoder(model, batch_size=batch_size))}
    return ways | {f"N={number}": interleaved(number) for number in INTERLEAVES}


def measure_batch(model: ef.Model, batch_size: int, rounds: int, rate: float) -> dict[str, Any] | None:
    """Speeds of all ways at one batch size; None where the memory does not hold it."""
    device = model.device
    flops_per_frame = 2 * ef.flops(DenseEncoder(model), frames=1, rule="all").per_frame
    try:
        ways = {name: make() for name, make in ways_of(model, batch_size).items()}
        peak = {}
        for name, way in ways.items():  # warm up: compile, record, choose kernels
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            for _ in range(3):
                way.run()
            wait(device)
            peak[name] = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
        speeds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                repeats = 3 if device.type == "cuda" else 1
                spent = seconds_of(lambda way=way, n=repeats: [way.run() for _ in range(n)], device)
                speeds[name].append(repeats * len(way.pixels) / spent)
    except torch.OutOfMemoryError:
        return None
    row: dict[str, Any] = {"batch_size": batch_size}
    for name, found in speeds.items():
        ratios = [own / dense for own, dense in zip(found, speeds["dense"], strict=True)]
        speed = statistics.median(found)
        row[name] = {
            "frames_per_second": speed,
            "x_realtime": speed / FPS,
            "over_dense": statistics.median(ratios),
            "over_dense_rounds": ratios,
            "peak_gib": peak[name],
        }
    row["dense"]["share_of_matmul"] = row["dense"]["frames_per_second"] * flops_per_frame / rate
    return row


def agreement(model: ef.Model, name: str, *, quick: bool) -> dict[str, float]:
    """Cosine of what is measured to the same weights in float32, uncompiled: dense and P-frames."""
    exact = make_model(name, model.device, torch.float32, quick=quick)
    torch.manual_seed(0)
    pixels = torch.randn(12, 3, model.image_size, model.image_size, device=model.device)
    found = {}
    for label, make in (("dense", DenseEncoder), ("N=2", lambda m: ResidualViT(m, select="center", residual=None))):
        cosines = (make(model).encode(pixels) * make(exact).encode(pixels)).sum(1)
        found[label] = float(cosines.min())
    return found


def measure_float8(options: argparse.Namespace, device: torch.device, batch_size: int) -> dict[str, float]:
    """Dense encoding with the blocks' linear layers in float8: speed over bfloat16, and cosine on the bundled model."""
    from everyframe.synthetic import SyntheticVideo
    from float8 import convert

    ways = {}
    for name in ("bfloat16", "float8"):
        model = make_model(options.model, device, torch.bfloat16, quick=options.quick)
        model = convert(model) if name == "float8" else model
        if options.compile != "none":
            model.compile(mode=options.compile)
        ways[name] = Way.of(DenseEncoder(model, batch_size=batch_size))
        for _ in range(3):
            ways[name].run()
    ratios = []
    for _ in range(options.rounds):
        spent = {name: seconds_of(way.run, device) for name, way in ways.items()}
        ratios.append(spent["bfloat16"] / spent["float8"])
    exact = ef.load("bundled", device=device)
    frames = np.stack([SyntheticVideo(seed, seconds=4).frame(2.0) for seed in range(8)])
    pixels = exact.preprocess(frames).to(device)
    small = DenseEncoder(convert(ef.load("bundled", device=device, dtype="bfloat16"))).encode(pixels)
    cosines = (small * DenseEncoder(exact).encode(pixels)).sum(1)
    return {"over_bfloat16": statistics.median(ratios), "cosine_bundled": float(cosines.min())}


# --- around it: uploads, resize, files -----------------------------------------------------------------------


def measure_resize(model: ef.Model, rounds: int, height: int, width: int) -> dict[str, Any]:
    """Raw frames to pixels: resized on the CPU; on the device, uploaded from pinned memory."""
    from everyframe.pipeline.uploads import stacked

    frames = list(np.random.default_rng(0).integers(0, 255, (8, height, width, 3), dtype=np.uint8))
    device = model.device

    def here() -> torch.Tensor:
        return model.preprocess(np.stack(frames))

    def there() -> torch.Tensor:
        return model.preprocess(stacked(frames, device))

    def upload() -> torch.Tensor:
        return stacked(frames, device)

    speeds: dict[str, list[float]] = {"cpu": [], "device": [], "upload": []}
    for turn in range(rounds + 1):
        for name, work in (("cpu", here), ("device", there), ("upload", upload)):
            spent = seconds_of(work, device)
            if turn:  # the first is the warm-up
                speeds[name].append(len(frames) / spent)
    result: dict[str, Any] = {name: statistics.median(found) for name, found in speeds.items()}
    gigabytes = result["upload"] * height * width * 3 / 1e9
    return {"size": [height, width], "frames_per_second": result, "upload_gb_per_second": gigabytes}


def measure_files(model: ef.Model, video: Path, batch_size: int, rounds: int) -> dict[str, Any]:
    """From the file to features: `encode_video` at 3 frames/s, and decoding it alone."""
    from everyframe.video import sample_frames

    def decode() -> int:
        return sum(1 for _ in sample_frames(video, FPS, motion=True))

    token = ResidualTokenizer(model.dim, model.vision.config.width).to(model.device)
    # Chunks hold `batch_size` frames: with three times as many, their I-frames make whole batches.
    encoders: dict[str, Any] = {
        "dense": DenseEncoder(model, batch_size=batch_size),
        "N=2": ResidualViT(model, 2, drop=0.85, residual=token, batch_size=3 * batch_size),
    }
    frames = decode()
    speeds: dict[str, list[float]] = {"decode": [], **{name: [] for name in encoders}}
    for turn in range(rounds + 1):
        for name in speeds:
            work = decode if name == "decode" else lambda name=name: ef.encode_video(video, encoders[name], fps=FPS)
            spent = seconds_of(work, model.device)
            if turn:
                speeds[name].append(frames / spent)
    return {"frames": frames, "video": video.name} | {
        name: {"frames_per_second": statistics.median(found), "x_realtime": statistics.median(found) / FPS}
        for name, found in speeds.items()
    }


# --- all of it -----------------------------------------------------------------------------------------------


def measure(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    dtype, quick = DTYPES[options.dtype], options.quick
    rate = matmul_rate(device, dtype, 1024 if device.type == "cpu" else 8192, options.rounds)
    say(f"{options.dtype} matmul: {rate / 1e12:.2f} TFLOP/s")
    model = make_model(options.model, device, dtype, quick=quick)

    def fresh() -> ef.Model:
        """The model without the shapes it was compiled for: each part of the measurement has its own."""
        if options.compile != "none":
            model.compile(mode=options.compile)
        return model

    result: dict[str, Any] = {"matmul_flops_per_second": rate, "cosine_to_float32": None, "batches": []}
    for batch_size in options.batch_sizes:
        row = measure_batch(fresh(), batch_size, options.rounds, rate)
        if row is None:
            say(f"batch size {batch_size}: not enough memory; larger ones are left out")
            torch.cuda.empty_cache()
            break
        result["batches"].append(row)
        say(line_of(row))
    if not result["batches"]:
        sys.exit(f"gpu.py: not even batch size {options.batch_sizes[0]} fits into the memory; try --batch-sizes 8")
    result["cosine_to_float32"] = agreement(fresh(), options.model, quick=quick)
    size = (270, 480) if quick else (1080, 1920)
    result["resize"] = measure_resize(model, options.rounds, *size)
    best = max(result["batches"], key=lambda row: row["dense"]["frames_per_second"])["batch_size"]
    if options.float8:
        result["float8"] = measure_float8(options, device, best)
    with tempfile.TemporaryDirectory() as folder:
        video = options.video or make_video(Path(folder), seconds=12 if quick else 600)
        result["file"] = measure_files(fresh(), video, best, options.rounds)
    return result


def make_video(folder: Path, seconds: int) -> Path:
    """640x480 at 25 frames/s, H.264: ten seconds of the synthetic world, again and again."""
    from everyframe.synthetic import SyntheticVideo
    from everyframe.video import write_video

    video = folder / "synthetic.mp4"
    frames = list(SyntheticVideo(3, seconds=min(seconds, 10), fps=25, size=(640, 480), style="pan").frames())
    write_video(video, (frame for _ in range(max(1, seconds // 10)) for frame in frames), fps=25)
    return video


def line_of(row: dict[str, Any]) -> str:
    """A row of the table of batch sizes, in markdown."""
    cells = [str(row["batch_size"])]
    for name in ("dense", *(f"N={number}" for number in INTERLEAVES)):
        way = row[name]
        cells += [f"{way['frames_per_second']:,.0f}", f"{way['x_realtime']:,.0f}"]
        cells.append(f"{way['share_of_matmul']:.1%}" if name == "dense" else f"{way['over_dense']:.2f}x")
        cells.append("-" if way["peak_gib"] is None else f"{way['peak_gib']:.1f}")
    return "| " + " | ".join(cells) + " |"


def report(record: dict[str, Any]) -> str:
    """The record as a text to read, tables in markdown."""
    result = record["results"]
    head = ["batch size", *("dense frames/s", "x realtime", "of matmul", "GiB")]
    for number in INTERLEAVES:
        head += [f"N={number} frames/s", "x realtime", "over dense", "GiB"]
    lines = [
        f"{record['model']}, {record['dtype']}, compile: {record['compile']}, on {record['machine']['device']}; "
        f"torch {record['versions']['torch']}",
        f"matmul: {result['matmul_flops_per_second'] / 1e12:.2f} TFLOP/s; x realtime at {FPS:g} frames/s",
        "",
        "| " + " | ".join(head) + " |",
        "| " + " | ".join(["---"] * len(head)) + " |",
        *map(line_of, result["batches"]),
        "",
    ]
    best = max(result["batches"], key=lambda row: row["dense"]["share_of_matmul"])
    reached = {
        "dense": best["dense"]["share_of_matmul"],
        **{f"N={n}": best[f"N={n}"]["over_dense"] for n in INTERLEAVES},
    }
    lines.append(
        f"At batch size {best['batch_size']}: "
        + "; ".join(f"{name} {value:.2f} (aim {AIMS[name]:g})" for name, value in reached.items())
    )
    lines.append(
        "Lowest cosine to float32: "
        + ", ".join(f"{name} {value:.5f}" for name, value in result["cosine_to_float32"].items())
    )
    if "float8" in result:
        found = result["float8"]
        lines.append(
            f"float8: {found['over_bfloat16']:.2f}x bfloat16; lowest cosine to float32 on the bundled model "
            f"{found['cosine_bundled']:.4f} (aim 0.99)"
        )
    resize, file = result["resize"], result["file"]
    speeds = ", ".join(f"{name} {value:,.0f}" for name, value in resize["frames_per_second"].items())
    lines.append(f"Frames of {resize['size'][1]}x{resize['size'][0]} to pixels, per second: {speeds}")
    ways = ", ".join(
        f"{name} {file[name]['frames_per_second']:,.0f} ({file[name]['x_realtime']:,.0f}x realtime)"
        for name in ("decode", "dense", "N=2")
    )
    lines.append(f"From the file ({file['video']}, {file['frames']} sampled frames), frames/s: {ways}")
    return "\n".join(lines)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model", default="ViT-L/14", choices=sorted(ARCHITECTURES))
    parser.add_argument("--dtype", default="bfloat16", choices=sorted(DTYPES))
    parser.add_argument("--batch-sizes", type=int, nargs="+")
    parser.add_argument("--compile", default=None, choices=["none", *MODES], help="(default: default; on the CPU none)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--video", type=Path, help="default: a generated one of 640x480")
    parser.add_argument("--float8", action="store_true", help="also with the linear layers in float8 (Ada, Hopper)")
    parser.add_argument("--quick", action="store_true", help="a small model and few frames: does the script work?")
    parser.add_argument("--out", type=Path, help="for the JSON (default, with a GPU: benchmarks/results/gpu.json)")
    options = parser.parse_args()
    on_cpu = options.device == "cpu"
    options.compile = options.compile or ("none" if on_cpu else "default")
    options.batch_sizes = options.batch_sizes or ([4, 8] if options.quick else [32, 64, 128, 256, 512])
    options.rounds = 2 if options.quick else options.rounds
    if options.out is None and not on_cpu and not options.quick:
        options.out = Path(__file__).parent / "results" / "gpu.json"
    return options


def main() -> None:
    options = parse()
    if options.device != "cpu" and not torch.cuda.is_available():
        say("gpu.py: torch sees no CUDA device; --device cpu --quick tries the script out without one")
        sys.exit(2)
    device = torch.device(options.device)
    record = {
        "benchmark": "gpu",
        "model": f"{options.model}, cut down" if options.quick else options.model,
        "dtype": options.dtype,
        "compile": options.compile,
        "results": measure(options, device),
        "machine": {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU",
            "processor": platform.processor() or platform.machine(),
        },
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda},
    }
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(record, indent=1) + "\n")
    print(report(record))


if __name__ == "__main__":
    main()
