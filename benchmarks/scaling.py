"""Cost against what it should grow with: length, resolution, frames per second, model, N and p, in one run.

    python benchmarks/scaling.py [--rounds 3] [--quick] [--out benchmarks/results/scaling.json]

length      seconds of a 320x240 file: time from file to features, and peak memory of a process of its own
resolution  180p to 1080p of the same pictures: time from file to features, and of decoding alone
fps         features per second of a 640x360 file with 24 frames per second: time from file to features
model       ViT-S/16, B/32, B/16 and L/14, bfloat16: the model's time per frame, dense and ResidualViT N=2
N, p        P-frames after each I-frame, and the share of patches that they drop: the model's time with ViT-B/16 in
            bfloat16 as a share of dense, beside the multiply-accumulates as a share of dense

The first three run the bundled model with ResidualViT N=2, so that the model hides nothing. Points take turns, `rounds`
times; medians count. A line is fitted to each axis by least squares of the relative error; growth counts as linear up
to the last point to which one line fits all before it within 10 %. Where cost is counted, time over cost is given.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

import everyframe as ef
from encode import make_model
from everyframe import cpu
from everyframe.pipeline import read_window
from everyframe.synthetic import SyntheticVideo
from everyframe.video import sample_frames, write_video
from machine import machine, save

FPS = 3.0
SOURCE_FPS = 24
LENGTHS = (15, 30, 60, 120, 240)
HEIGHTS = (180, 360, 540, 720, 1080)
RATES = (0.5, 1.0, 2.0, 4.0, 8.0, 12.0, 24.0)
SIZES: dict[str, dict[str, int]] = {
    "ViT-S/16": {"patch_size": 16, "width": 384, "heads": 6},
    "ViT-B/32": {"patch_size": 32},
    "ViT-B/16": {"patch_size": 16},
    "ViT-L/14": {"patch_size": 14, "width": 1024, "depth": 24, "heads": 16, "dim": 768},
}
MODEL_FRAMES = 12
INTERLEAVES = (1, 2, 3, 5, 7, 11)  # groups of each divide 24 frames
DROPS = (0.25, 0.5, 0.7, 0.85, 0.95)
GROUP_FRAMES = 24
TOLERANCE = 0.1


@dataclass
class Point:
    """One point of an axis: where it lies, how it is timed, and what is known of it besides."""

    axis: str
    line: str
    x: float
    run: Callable[[], Any]
    known: dict[str, Any] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)

    def turn(self) -> None:
        begin = time.perf_counter()
        self.run()
        self.seconds.append(time.perf_counter() - begin)

    def record(self) -> dict[str, Any]:
        return {"x": self.x, **self.known, "rounds": self.seconds, "seconds": statistics.median(self.seconds)}


def fit(xs: Sequence[float], ys: Sequence[float]) -> dict[str, Any]:
    """The line a + b x with the least relative errors, the largest of them, and up to which x growth is linear.

    That is the last x such that a line fits it and all before it within 10 %; two points always lie on one.
    """
    order = np.argsort(xs)
    x, y = np.asarray(xs, float)[order], np.asarray(ys, float)[order]
    start, slope, errors = _line(x, y)
    upto = len(x)
    while upto > 2 and np.abs(_line(x[:upto], y[:upto])[2]).max() > TOLERANCE:
        upto -= 1
    return {
        "start": start,
        "slope": slope,
        "largest_error": float(np.abs(errors).max()),
        "linear_to": float(x[upto - 1]),
        "all_linear": upto == len(x),
        "exponent": float(np.polyfit(np.log(x), np.log(y), 1)[0]),
    }


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float, np.ndarray]:
    (start, slope), *_ = np.linalg.lstsq(np.stack((1 / y, x / y), 1), np.ones(len(x)), rcond=None)
    return float(start), float(slope), (start + slope * x) / y - 1


# --- videos ----------------------------------------------------------------------------------------------


def length_videos(folder: Path, lengths: Iterable[int]) -> dict[int, Path]:
    """15 s of pictures, over and over: content is the same at every length."""
    pictures = list(SyntheticVideo(5, seconds=15, fps=12, size=(320, 240), style="handheld").frames())
    found = {}
    for seconds in lengths:
        found[seconds] = folder / f"length-{seconds}.mp4"
        frames = islice(chain.from_iterable(repeat(pictures)), seconds * 12)
        write_video(found[seconds], frames, fps=12, options={"preset": "veryfast"})
    return found


def resolution_videos(folder: Path, heights: Sequence[int], seconds: float) -> dict[int, Path]:
    """The same pictures at several sizes, 16:9."""
    largest = max(heights)
    source = folder / f"height-{largest}.mp4"
    video = SyntheticVideo(6, seconds=seconds, fps=SOURCE_FPS, size=(largest * 16 // 9, largest), style="handheld")
    write_video(source, video.frames(), fps=SOURCE_FPS, options={"preset": "veryfast"})
    found = {largest: source}
    for height in heights:
        if height != largest:
            found[height] = folder / f"height-{height}.mp4"
            smaller = shrunk(source, height * 16 // 9, height)
            write_video(found[height], smaller, fps=SOURCE_FPS, options={"preset": "veryfast"})
    return found


def shrunk(video: Path, width: int, height: int) -> Iterator[np.ndarray]:
    with av.open(str(video)) as container:
        for frame in container.decode(video=0):
            yield frame.reformat(width=width, height=height, format="rgb24").to_ndarray()


# --- axes ------------------------------------------------------------------------------------------------


def video_points(folder: Path, quick: bool) -> list[Point]:
    """File to features by length, resolution and rate."""
    encoder = ef.ResidualViT(ef.load("bundled", device="cpu"))
    points = []
    for seconds, file in length_videos(folder, LENGTHS[: 3 if quick else None]).items():
        known = {"peak_mb": peak_mb(file)}
        points.append(Point("length", "file to features", seconds, encoding(file, encoder, FPS), known))
    for height, file in resolution_videos(folder, HEIGHTS[: 3 if quick else None], 3 if quick else 6).items():
        known = {"height": height}
        pixels = height * (height * 16 // 9) / 1e6
        points.append(Point("resolution", "file to features", pixels, encoding(file, encoder, FPS), known))
        points.append(Point("resolution", "decoding alone", pixels, reading(file), known))
    file = folder / "rate.mp4"
    video = SyntheticVideo(7, seconds=5 if quick else 15, fps=SOURCE_FPS, size=(640, 360), style="handheld")
    video.write(file)
    for rate in RATES:
        points.append(Point("fps", "file to features", rate, encoding(file, encoder, rate)))
    return points


def encoding(file: Path, encoder: Any, fps: float) -> Callable[[], Any]:
    return lambda: ef.encode_video(file, encoder, fps=fps)


def reading(file: Path) -> Callable[[], Any]:
    """Every frame decoded, three in a second as pixels, with motion."""

    def run() -> None:
        with sample_frames(file, FPS, motion=True) as sampled:
            for _ in sampled:
                pass

    return run


def peak_mb(file: Path) -> float:
    """Peak resident memory of a process that encodes the file."""
    done = subprocess.run([sys.executable, __file__, "--peak", str(file)], check=True, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


def say_peak(file: Path) -> None:
    encoding(file, ef.ResidualViT(ef.load("bundled", device="cpu")), FPS)()
    unit = 1 if sys.platform == "darwin" else 1024
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20)


def size_points(folder: Path, quick: bool) -> list[Point]:
    """The model's time per frame by its size."""
    points = []
    video = folder / "window.mp4"
    SyntheticVideo(8, seconds=GROUP_FRAMES / FPS, fps=SOURCE_FPS, size=(320, 240), style="handheld").write(video)
    for name, sizes in SIZES.items():
        if quick and name == "ViT-L/14":
            continue
        model = random_model(folder, name, sizes)
        window = read_window(video, model, fps=FPS, end=MODEL_FRAMES / FPS)
        for title, encoder in (("dense", ef.DenseEncoder(model)), ("ResidualViT N=2", residual(model))):
            macs = sum(encoder.macs(MODEL_FRAMES, "all").values()) / MODEL_FRAMES
            known = {"model": name, "frames": MODEL_FRAMES}
            points.append(Point("model", title, macs / 1e9, running(encoder, window), known))
    return points


def group_points(folder: Path, quick: bool) -> list[Point]:
    """The model's time by N and by p, beside what is counted."""
    model = random_model(folder, "ViT-B/16", SIZES["ViT-B/16"])
    window = read_window(folder / "window.mp4", model, fps=FPS)
    dense = ef.DenseEncoder(model)
    points = [Point("cost", "dense", 1.0, running(dense, window), {"N": 0, "p": 0.0})]
    for kind, make in (("ResidualViT", residual), ("ReuseEncoder", reuse)):
        by_interleave, by_drop = (INTERLEAVES[1::2], DROPS[1::2]) if quick else (INTERLEAVES, DROPS)
        for interleave, drop in [*((n, 0.85) for n in by_interleave), *((2, p) for p in by_drop if p != 0.85)]:
            encoder = make(model, interleave, drop)
            frames = len(window.pixels)
            share = sum(encoder.macs(frames, "all").values()) / sum(dense.macs(frames, "all").values())
            points.append(Point("cost", kind, share, running(encoder, window), {"N": interleave, "p": drop}))
    return points


def random_model(folder: Path, name: str, sizes: dict[str, int]) -> Any:
    files = folder / name.replace("/", "-")
    if not files.exists():
        make_model(files, text=False, **sizes)  # type: ignore[arg-type]
    return ef.load(files, dtype="bfloat16", device="cpu")


def residual(model: Any, interleave: int = 2, drop: float = 0.85) -> Any:
    torch.manual_seed(0)
    token = ef.ResidualTokenizer(model.dim, model.vision.config.width)
    return ef.ResidualViT(model, interleave, drop, residual=token)


def reuse(model: Any, interleave: int, drop: float) -> Any:
    return ef.ReuseEncoder(model, interleave, drop)


def running(encoder: Any, window: Any) -> Callable[[], Any]:
    """The model on frames and a plan that are there already."""
    planner = encoder.planner()
    plan = planner.add(window.pixels, window.motion if encoder.needs_motion else None) + planner.finish()
    return lambda: encoder.encode_planned(window.pixels, plan)


# --- the run ---------------------------------------------------------------------------------------------


def axes_of(points: Sequence[Point]) -> dict[str, Any]:
    """Points by axis and line; with a fit, or where cost is counted with time over cost."""
    axes: dict[str, Any] = {}
    for point in points:
        lines = axes.setdefault(point.axis, {})
        lines.setdefault(point.line, {"points": []})["points"].append(point.record())
    for name, lines in axes.items():
        for line in lines.values():
            own = line["points"]
            own.sort(key=lambda each: each["x"])
            if name == "cost":
                whole = lines["dense"]["points"][0]["rounds"]
                for each in own:
                    ratios = [mine / full for mine, full in zip(each["rounds"], whole, strict=True)]
                    each["time"] = statistics.median(ratios)
                    each["time_over_cost"] = each["time"] / each["x"]
            else:
                line["fit"] = fit([each["x"] for each in own], [each["seconds"] for each in own])
    return axes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round, fewer points: for a look")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/scaling.json; none with --quick")
    parser.add_argument("--peak", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak is not None:
        say_peak(options.peak)
        return
    begin, load = time.perf_counter(), cpu.OtherLoad()
    rounds = 1 if options.quick else options.rounds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        points = video_points(folder, options.quick)
        points += size_points(folder, options.quick) + group_points(folder, options.quick)
        for number in range(rounds + 1):
            for point in points:
                point.turn()
                if number == 0:  # the first pays for allocations
                    point.seconds.clear()
            print(f"round {number} of {rounds}", file=sys.stderr)
    record = {
        "benchmark": "scaling",
        "quick": options.quick,
        "settings": {"fps": FPS, "rounds": rounds, "tolerance": TOLERANCE},
        "axes": axes_of(points),
        "machine": {**machine(), "other_load": load.read()},
        "seconds": round(time.perf_counter() - begin),
    }
    save(record, options.out, quick=options.quick)
    for axis, lines in record["axes"].items():
        for line, found in lines.items():
            for each in found["points"]:
                ratio = f", {each['time_over_cost']:.2f} of the cost" if "time_over_cost" in each else ""
                print(f"{axis} {line} {each['x']:.3g}: {each['seconds']:.3f} s{ratio}")
            if "fit" in found:
                own = found["fit"]
                print(f"  linear to {own['linear_to']:g}, largest error {own['largest_error']:.1%}")


if __name__ == "__main__":
    main()
