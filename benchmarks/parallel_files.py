"""Several files decoded at a time: how much faster is a batch of videos, and how near to its longest stage?

    python benchmarks/parallel_files.py [--rounds 5] [--decoders 1 2 4] [--out benchmarks/results/parallel_files.json]

Batches of the same files are encoded with one decoder and with more, which take turns in one process; ratios are taken
within a round. Before that each stage runs alone over the same files: reading (decode, motion, resize, planning: all
that the decoding threads do) and the model. No overlap can make the whole shorter than the longer stage, nor than the
processor time of both shared among the cores: `bound` is the larger of the two, and `over_bound` what is left to gain.

    short        24 clips of 4 s, 320x240, 25 frames/s: files are opened as often as anything
    full-hd      4 videos of 12 s, 1920x1080, 25 frames/s, with motion, whose decoder uses slice threads
    vit-b16      4 videos of 8 s, 640x480, ViT-B/16 with random weights, bfloat16: the model is what takes long
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import everyframe as ef
from encode import make_model
from everyframe import cpu
from everyframe.pipeline import Sampling, encode_videos
from everyframe.pipeline.decoding import Finished, read_chunks
from everyframe.synthetic import SyntheticVideo
from machine import machine
from ways import bound

RESULTS = Path(__file__).resolve().parent / "results"
SAMPLING = Sampling(fps=3.0)


@dataclass(frozen=True)
class Case:
    """Files that are alike, and what encodes them."""

    files: int
    seconds: float
    size: tuple[int, int]
    encoder: Callable[[Path], Any]
    about: str

    def make(self, folder: Path) -> list[Path]:
        """One video under many names: what is read does not depend on them."""
        folder.mkdir()
        first = folder / "0.mp4"
        SyntheticVideo(3, seconds=self.seconds, fps=25, size=self.size, style="pan").write(first)
        return [first, *(Path(shutil.copy(first, folder / f"{number}.mp4")) for number in range(1, self.files))]


def reuse(work: Path) -> Any:
    return ef.ReuseEncoder(ef.load("bundled", device="cpu"), plan="adaptive")


def residual(work: Path) -> Any:
    return ef.ResidualViT(ef.load("bundled", device="cpu"), interleave=2)


def large(work: Path) -> Any:
    make_model(work / "model", patch_size=16)
    return ef.ResidualViT(ef.load(work / "model", device="cpu", dtype="bfloat16"), interleave=2, residual=None)


CASES = {
    "short": Case(24, 4, (320, 240), reuse, "bundled model, adaptive reuse"),
    "full-hd": Case(4, 12, (1920, 1080), residual, "bundled model, ResidualViT N=2"),
    "vit-b16": Case(4, 8, (640, 480), large, "ViT-B/16 in bfloat16, ResidualViT N=2"),
}


def stages(files: list[Path], encoder: Any) -> dict[str, float]:
    """Seconds of reading and of the model alone, and processor seconds of each."""
    found: dict[str, float] = {}
    chunks: list[Any] = []
    clocks = time.perf_counter(), time.process_time()
    for file in files:
        for item in read_chunks(file, encoder, SAMPLING):
            if not isinstance(item, Finished):
                chunks.append(item)
            elif item.error is not None:
                raise item.error
    found["read_seconds"], found["read_cpu_seconds"] = time.perf_counter() - clocks[0], time.process_time() - clocks[1]
    clocks = time.perf_counter(), time.process_time()
    for chunk in chunks:
        encoder.encode_planned(chunk.pixels, chunk.plan)
    found["model_seconds"], found["model_cpu_seconds"] = (
        time.perf_counter() - clocks[0],
        time.process_time() - clocks[1],
    )
    return found


def whole(files: list[Path], encoder: Any, decoders: int, out: Path) -> tuple[float, np.ndarray]:
    """Seconds from files to features, and all features."""
    sources = [(file, out / f"{file.stem}.npz") for file in files]
    clock = time.perf_counter()
    outcomes = list(encode_videos(sources, encoder, sampling=SAMPLING, decoders=decoders))
    seconds = time.perf_counter() - clock
    for outcome in outcomes:
        if outcome.status != "done":
            raise RuntimeError(f"{outcome.source}: {outcome.error}")
    features = np.concatenate([ef.VideoFeatures.load(output).embeddings for _, output in sources])
    shutil.rmtree(out)
    return seconds, features


def measure(case: Case, work: Path, rounds: int, decoders: list[int]) -> dict[str, Any]:
    files, encoder = case.make(work / "videos"), case.encoder(work)
    first, expected = whole(files, encoder, 1, work / "out")  # a first pass costs extra: it does not count
    load = cpu.OtherLoad()
    seconds: dict[str, list[float]] = {str(count): [] for count in decoders}
    parts: list[dict[str, float]] = []
    for _ in range(rounds):
        parts.append(stages(files, encoder))
        for count in decoders:
            taken, features = whole(files, encoder, count, work / "out")
            np.testing.assert_array_equal(features, expected)
            seconds[str(count)].append(taken)
    return {
        "files": case.files,
        "seconds": case.seconds,
        "size": list(case.size),
        "about": case.about,
        "features": len(expected),
        "first_seconds": first,
        "stages": {name: statistics.median(each[name] for each in parts) for name in parts[0]},
        "decoders": seconds,
        **cpu.facts(load),
    }


def ratios(result: dict[str, Any], decoders: str) -> list[float]:
    """How many times as fast as with one, round by round."""
    pairs = zip(result["decoders"]["1"], result["decoders"][decoders], strict=True)
    return [one / several for one, several in pairs]


def summary(results: dict[str, Any]) -> list[str]:
    """In words; scripts/render_startup.py makes the tables of the docs."""
    lines = []
    for name, result in results.items():
        parts = {stage: f"{seconds:.2f}" for stage, seconds in result["stages"].items()}
        lines.append(f"{name} ({result['about']}): {parts}, bound {bound(result):.2f} s")
        for count, seconds in result["decoders"].items():
            median = statistics.median(seconds)
            lines.append(
                f"  {count} decoders: {median:.2f} s, {statistics.median(ratios(result, count)):.2f}x of one, "
                f"{median / bound(result) - 1:+.0%} over the bound"
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--decoders", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--out", type=Path, default=RESULTS / "parallel_files.json")
    options = parser.parse_args()
    if 1 not in options.decoders:
        parser.error("--decoders must hold 1, which the others are compared with")
    torch.manual_seed(0)
    results = {}
    for name in options.cases:
        with tempfile.TemporaryDirectory() as folder:
            results[name] = measure(CASES[name], Path(folder), options.rounds, options.decoders)
        print("\n".join(summary({name: results[name]})), flush=True)
    record = {"machine": machine(), "rounds": options.rounds, "results": results}
    options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
