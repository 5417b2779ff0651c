"""How near each stage between a file and its features comes to what this machine can do (a roofline), in one run.

    python benchmarks/performance.py [--rounds 3] [--seconds 20] [--quick] [--out benchmarks/results/performance.json]

First and last the limits are measured, and the higher of the two counts:

matmul   products of float32, bfloat16 and int8 matrices: the four linear layers of a block of ViT-B/16 on a batch of
         32 frames, and squares of 2048 and 4096; each as torch.mm and as torch.nn.functional.linear, the faster counts
copy     of a float32 array that memory must hold, and of one that a core's cache holds; bytes read plus written
decode   PyAV decodes the file to nothing, with one thread and with as many as FFmpeg likes

In between the stages take turns, `rounds` times, on a generated 640x480 H.264 file at 3 frames a second: decoding every
frame, the codec's motion vectors, what sampling does (which may leave out frames that nobody looks at), RGB, resizing
and normalising, planning, the model on I-frames and on P-frames (ResidualViT with a residual token, ReuseEncoder at
N=5; of reuse, whose P-frames cannot run alone, the time of a pass less that of its I-frames), writing. What is counted,
and how, is in `counting.py`.

At the end, file to features with what overlaps: `encode_video` against its two sides alone, decoding to planned chunks
and the model on them. Weights are random, but for the bundled model.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from torch.nn import functional as F

import everyframe as ef
from counting import FLOP_PER_MAC, Work, bound, change_work, motion_work, resize_work, rgb_work, tower_bytes
from encode import make_model, make_video
from everyframe import cpu
from everyframe.encoders import Plan
from everyframe.pipeline import Sampling, read_window
from everyframe.pipeline.decoding import read_chunks
from everyframe.pipeline.window import Chunk
from everyframe.tokens.change import cell_pixels
from everyframe.video import sample_frames
from everyframe.video.decode import Decoder
from everyframe.video.motion import MotionMeter
from everyframe.video.opening import Input
from everyframe.video.picture import Converter
from machine import machine, save

FPS = 3.0
BATCH, TOKENS, WIDTH = 32, 197, 768  # of ViT-B/16
LAYERS = {"qkv": (WIDTH, 3 * WIDTH), "proj": (WIDTH, WIDTH), "fc1": (WIDTH, 4 * WIDTH), "fc2": (4 * WIDTH, WIDTH)}
SQUARES = (2048, 4096)
BYTES_IN_MEMORY, BYTES_IN_CACHE = 512 << 20, 256 << 10
MODELS = (
    *(("ViT-B/16", dtype) for dtype in ("bfloat16", "float32", "int8")),
    ("ViT-B/32", "bfloat16"),
    ("bundled", "float32"),
)
PATCH = {"ViT-B/16": 16, "ViT-B/32": 32}
SHORTEST = 0.3  # seconds in which neither a clock nor the load of others says much
WEIGHT_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


def timed(run: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def best_of(run: Callable[[], Any], *, times: int = 3, seconds: float = 0.2) -> float:
    """The shortest time of one call, of at least `times` calls and about so many seconds."""
    run()
    begin, found = time.perf_counter(), []
    while len(found) < times or (time.perf_counter() - begin < seconds and len(found) < 10_000):
        found.append(timed(run))
    return min(found)


# --- limits ----------------------------------------------------------------------------------------------


def limits(video: Path) -> dict[str, Any]:
    """FLOP/s by dtype and shape, bytes/s, source frames/s."""
    return {
        "matmul": {dtype: found for dtype in WEIGHT_BYTES if (found := matmul_rates(dtype)) is not None},
        "copy": {"memory": copy_rate(BYTES_IN_MEMORY), "cache": copy_rate(BYTES_IN_CACHE)},
        "decode": {"one": decode_rate(video, 1), "all": decode_rate(video, 0)},
    }


def matmul_rates(dtype: str) -> dict[str, float] | None:
    """FLOP/s at the model's shapes (its layers together) and at squares; None where torch has no such product."""
    try:
        shapes = [(BATCH * TOKENS, *layer) for layer in LAYERS.values()]
        model = sum(2 * m * k * n for m, k, n in shapes) / sum(matmul_seconds(dtype, *shape) for shape in shapes)
        squares = {f"square {size}": 2 * size**3 / matmul_seconds(dtype, size, size, size) for size in SQUARES}
    except (RuntimeError, NotImplementedError, AttributeError) as error:
        print(f"no {dtype} products: {str(error).splitlines()[0]}", file=sys.stderr)
        return None
    return {"model": model, **squares}


def matmul_seconds(dtype: str, m: int, k: int, n: int) -> float:
    """[m, k] by [k, n], the fastest of the ways to ask for it; MKL and oneDNN differ by processor."""
    torch.manual_seed(0)
    if dtype == "int8":
        left = torch.randint(-128, 128, (m, k), dtype=torch.int8)
        right = torch.randint(-128, 128, (n, k), dtype=torch.int8)
        turned = right.t().contiguous()
        return min(best_of(lambda: torch._int_mm(left, turned)), best_of(lambda: torch._int_mm(left, right.t())))
    kind = getattr(torch, dtype)
    left, right = torch.randn(m, k).to(kind), torch.randn(n, k).to(kind)
    turned = right.t().contiguous()
    ways = [lambda: torch.mm(left, turned), lambda: F.linear(left, right)]
    if hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        laid_out = torch.ops.mkldnn._reorder_linear_weight(right, m)
        ways.append(lambda: torch.ops.mkldnn._linear_pointwise(left, laid_out, None, "none", [], ""))
    return min(map(best_of, ways))


def copy_rate(size: int) -> float:
    """Bytes per second, read plus written, of copying `size` bytes."""
    source = torch.rand(size // 4)
    target = torch.empty_like(source)
    return 2 * size / best_of(lambda: target.copy_(source))


def decode_rate(video: Path, threads: int) -> float:
    """Source frames per second that FFmpeg decodes to nothing; threads 0 leaves their number to FFmpeg."""

    def run() -> int:
        with av.open(str(video)) as container:
            stream = container.streams.best("video")
            stream.thread_type = "AUTO"
            stream.codec_context.thread_count = threads
            return sum(1 for _ in container.decode(stream))

    return run() / best_of(run, times=2)


def highest(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Element by element the higher limit."""
    return {
        key: highest(value, second[key]) if isinstance(value, dict) else max(value, second[key])
        for key, value in first.items()
        if key in second
    }


# --- stages ----------------------------------------------------------------------------------------------


@dataclass
class Stage:
    """One stage: how to time it, over how many units, and the work of all of them (None: decoding binds)."""

    name: str
    model: str
    dtype: str
    unit: str
    count: int
    work: Work | None
    seconds_of: Callable[[], float]
    macs: float | None = None
    seconds: list[float] = field(default_factory=list)
    load: list[float | None] = field(default_factory=list)

    def turn(self) -> None:
        """One round: as often as makes `SHORTEST` seconds, of which the median counts."""
        load, begin, found = cpu.OtherLoad(), time.perf_counter(), []
        while not found or time.perf_counter() - begin < SHORTEST:
            found.append(self.seconds_of())
        self.seconds.append(statistics.median(found))
        self.load.append(load.read())


def video_stages(video: Path, facts: dict[str, Any]) -> list[Stage]:
    """What happens before there are frames for a model."""
    pictures, kept, geometry = decoded(video, keep=True)
    width, height = facts["width"], facts["height"]

    def convert() -> None:
        converter = Converter(geometry)
        for picture in kept:
            converter(picture, None, None)

    return [
        Stage("decode", "", "", "source frame", pictures, None, lambda: timed(lambda: decoded(video))),
        Stage(
            "decode with motion vectors", "", "", "source frame", pictures, None,
            lambda: timed(lambda: decoded(video, motion=True)),
        ),
        Stage(
            "sample 3 per second, RGB and all", "", "", "source frame", pictures, None,
            lambda: timed(lambda: samples(video, None)),
        ),
        Stage("to RGB", "", "", "frame", len(kept), rgb_work(width, height).times(len(kept)), lambda: timed(convert)),
    ]  # fmt: skip


def decoded(video: Path, *, motion: bool = False, keep: bool = False) -> tuple[int, list[Any], Any]:
    """Decode to the end: how many pictures, those that are sampled where wanted, and their geometry."""
    decoder = Decoder(Input(str(video), export_vectors=motion), on_damage="raise", references=motion)
    try:
        meter = MotionMeter(decoder.geometry, decoder.info.codec) if motion else None
        step = max(1, round((decoder.info.average_fps or FPS) / FPS))
        count, kept = 0, []
        for count, picture in enumerate(decoder, 1):
            if meter is not None:
                meter.add(picture)
            if keep and (count - 1) % step == 0:
                kept.append(picture)
        return count, kept, decoder.geometry
    finally:
        decoder.close()


def model_stages(name: str, dtype: str, model: Any, video: Path, most: int) -> list[Stage]:
    """Preparing and encoding `most` frames, in the chunks that `encode_video` makes."""
    full, residual, reuse = encoders(model)
    window = read_window(video, model, fps=FPS, end=most / FPS)
    frames = np.stack([sample.pixels for sample in samples(video, most)])
    height, width = frames.shape[1:3]
    side, size = model.image_size, model.vision.config.patch_size
    count = len(window.pixels)
    prepare = resize_work(width, height, model.preprocess_settings)
    cell = cell_pixels(size)
    found = []
    if dtype != "int8":  # nothing of this depends on it
        found += [
            Stage("resize, normalise", name, dtype, "frame", count, prepare.times(count),
                  lambda: timed(lambda: model.preprocess(frames))),
            Stage("plan, by motion", name, dtype, "P-frame", planned(residual, window).roles.count("P"),
                  motion_work(side).times(planned(residual, window).roles.count("P")),
                  lambda: timed(lambda: planned(residual, window))),
            Stage("plan, by change", name, dtype, "frame", count, change_work(side, size, cell).times(count),
                  lambda: timed(lambda: planned(reuse, window))),
        ]  # fmt: skip
    chunks = chunks_of(full, video, most)
    found.append(
        Stage("model, I-frames", name, dtype, "frame", count, full_work(full, chunks, dtype),
              lambda: timed(lambda: encode_chunks(full, chunks)), macs=sum(full.macs(count, "all").values()))
    )  # fmt: skip
    for encoder, title in ((residual, "residual"), (reuse, "reuse")):
        found.append(p_stage(encoder, title, name, dtype, chunks_of(encoder, video, most)))
    return found


def encoders(model: Any) -> tuple[Any, Any, Any]:
    torch.manual_seed(0)
    token = ef.ResidualTokenizer(model.dim, model.vision.config.width)
    return (
        ef.DenseEncoder(model),
        ef.ResidualViT(model, interleave=2, drop=0.85, select="motion", residual=token),
        ef.ReuseEncoder(model, interleave=5, drop=0.85),
    )


def samples(video: Path, most: int | None) -> list[Any]:
    """As `encode_video` reads them, which need not be by decoding everything."""
    return list(sample_frames(video, FPS, end=None if most is None else most / FPS))


def planned(encoder: Any, window: Any) -> Plan:
    planner = encoder.planner()
    motion = window.motion if encoder.needs_motion else None
    return planner.add(window.pixels, motion) + planner.finish()


def chunks_of(encoder: Any, video: Path, most: int | None) -> list[Chunk]:
    sampling = Sampling(fps=FPS, end=None if most is None else most / FPS)
    return [item for item in read_chunks(video, encoder, sampling) if isinstance(item, Chunk)]


def encode_chunks(encoder: Any, chunks: Sequence[Chunk]) -> None:
    for chunk in chunks:
        encoder.encode_planned(chunk.pixels, chunk.plan)


def full_work(encoder: Any, chunks: Sequence[Chunk], dtype: str) -> Work:
    """Of chunks of I-frames."""
    vision = encoder.model.vision
    frames = sum(len(chunk.plan.roles) for chunk in chunks)
    passes = sum(-(-len(chunk.plan.roles) // encoder.batch_size) for chunk in chunks)
    tokens = frames * (vision.num_prefix + vision.num_patches)
    moved = tower_bytes(
        vision.config, patches=frames * vision.num_patches, tokens=tokens, keys=tokens, features=frames, passes=passes,
        weight_bytes=WEIGHT_BYTES[dtype], value_bytes=encoder.model.dtype.itemsize,
    )  # fmt: skip
    return Work(FLOP_PER_MAC * sum(encoder.macs(frames, "all").values()), moved)


def p_stage(encoder: Any, title: str, name: str, dtype: str, chunks: list[Chunk]) -> Stage:
    """The P-frames of chunks, apart from their I-frames."""
    vision = encoder.model.vision
    whole = vision.num_prefix + vision.num_patches
    count = sum(chunk.plan.roles.count("P") for chunk in chunks)
    patches = float(sum(int(chunk.plan.counts.sum()) for chunk in chunks))
    tokens = patches + count * (vision.num_prefix + (title == "residual"))
    macs = sum(sum(encoder.plan_macs(chunk.plan, "all").values()) for chunk in chunks)
    only_i = [i_frames_of(chunk) for chunk in chunks]
    macs -= sum(sum(encoder.plan_macs(chunk.plan, "all").values()) for chunk in only_i)
    moved = tower_bytes(
        vision.config, patches=patches, tokens=tokens, keys=tokens if title == "residual" else count * whole,
        features=count, passes=len(chunks), weight_bytes=WEIGHT_BYTES[dtype], value_bytes=encoder.model.dtype.itemsize,
    )  # fmt: skip
    if title == "residual":
        known = [ef.DenseEncoder(encoder.model).encode(chunk.pixels) for chunk in only_i]

        def seconds() -> float:
            return timed(
                lambda: [
                    encoder.encode_planned(chunk.pixels, chunk.plan, i_features=features)
                    for chunk, features in zip(chunks, known, strict=True)
                ]
            )
    else:

        def seconds() -> float:
            return timed(lambda: encode_chunks(encoder, chunks)) - timed(lambda: encode_chunks(encoder, only_i))

    return Stage(
        f"model, P-frames ({title})", name, dtype, "P-frame", count, Work(FLOP_PER_MAC * macs, moved), seconds, macs
    )


def i_frames_of(chunk: Chunk) -> Chunk:
    rows = [row for row, role in enumerate(chunk.plan.roles) if role == "I"]
    return Chunk([chunk.times[row] for row in rows], chunk.pixels[rows], Plan.of("I" * len(rows), []))


def write_stage(video: Path, model: Any, folder: Path) -> Stage:
    feats = ef.encode_video(video, ef.DenseEncoder(model), fps=FPS)
    file = folder / "features.npz"
    feats.save(file)
    work = Work(0.0, 2.0 * file.stat().st_size)  # read from memory, written to the file's pages
    return Stage("write (npz)", "bundled", "float32", "file", 1, work, lambda: timed(lambda: feats.save(file)))


def stage_record(stage: Stage, limit: dict[str, Any]) -> dict[str, Any]:
    """A stage's line of the JSON: medians, rates and the share of the limit that binds."""
    seconds = statistics.median(stage.seconds)
    line: dict[str, Any] = {
        "stage": stage.name, "model": stage.model, "dtype": stage.dtype, "unit": stage.unit, "count": stage.count,
        "seconds": stage.seconds, "per_second": stage.count / seconds, "other_load": highest_load(stage.load),
    }  # fmt: skip
    if stage.work is None:
        return line | {"binds": "decode", "share": stage.count / limit["decode"]["all"] / seconds}
    rates = limit["matmul"].get("float32" if stage.macs is None else stage.dtype)
    if rates is None:  # the model runs where torch itself has no such product
        return line | {"binds": None, "share": None, "operations": stage.work.operations, "bytes": stage.work.bytes}
    binds, least = bound(
        stage.work, operations_per_second=max(rates.values()), bytes_per_second=limit["copy"]["memory"]
    )
    line |= {
        "operations": stage.work.operations,
        "bytes": stage.work.bytes,
        "operations_per_second": stage.work.operations / seconds,
        "bytes_per_second": stage.work.bytes / seconds,
        "binds": binds,
        "share": least / seconds,
    }
    if stage.macs is not None:
        line["share_of_model_shapes"] = stage.work.operations / seconds / rates["model"]
    return line


def highest_load(loads: list[float | None]) -> float | None:
    """The largest of the rounds; None where no round was long enough to tell."""
    return max((load for load in loads if load is not None), default=None)


# --- from file to features -------------------------------------------------------------------------------


@dataclass
class EndToEnd:
    """`encode_video` and its two sides alone, in turns: seconds of the clock and of all cores."""

    name: str
    dtype: str
    title: str
    encoder: Any
    video: Path
    rounds: list[dict[str, Any]] = field(default_factory=list)

    def turn(self) -> None:
        load = cpu.OtherLoad()
        chunks: list[Chunk] = []
        parts = {
            "total": lambda: ef.encode_video(self.video, self.encoder, fps=FPS),
            "decoding side": lambda: chunks.extend(chunks_of(self.encoder, self.video, None)),
            "model side": lambda: encode_chunks(self.encoder, chunks),
        }
        found: dict[str, Any] = {}
        for part, run in parts.items():
            busy = time.process_time()
            found[part] = {"seconds": timed(run), "cpu_seconds": time.process_time() - busy}
        self.rounds.append({**found, "frames": sum(map(len, (c.times for c in chunks))), "other_load": load.read()})

    def record(self, cores: int) -> dict[str, Any]:
        longest, busy = [], []
        for each in self.rounds:
            sides = [each["decoding side"], each["model side"]]
            longest.append(each["total"]["seconds"] / max(side["seconds"] for side in sides))
            all_cores = sum(side["cpu_seconds"] for side in sides) / cores
            busy.append(each["total"]["seconds"] / max(all_cores, *(side["seconds"] for side in sides)))
        return {
            "model": self.name, "dtype": self.dtype, "encoder": self.title, "rounds": self.rounds,
            "total_over_longest": statistics.median(longest), "total_over_work": statistics.median(busy),
        }  # fmt: skip


# --- the run ---------------------------------------------------------------------------------------------


def load_models(folder: Path, wanted: Sequence[tuple[str, str]]) -> tuple[dict[tuple[str, str], Any], dict[str, str]]:
    """The models, and of those that cannot be had why not."""
    for name in {name for name, _ in wanted} & set(PATCH):
        make_model(folder / name.replace("/", "-"), PATCH[name], text=False)
    found, skipped = {}, {}
    for name, dtype in wanted:
        try:
            found[name, dtype] = ef.load(
                folder / name.replace("/", "-") if name in PATCH else name, dtype=dtype, device="cpu"
            )
        except ValueError as error:
            if dtype != "int8":
                raise
            skipped[f"{name} {dtype}"] = str(error)
            print(f"{name} {dtype} is left out: {error}", file=sys.stderr)
    return found, skipped


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    video = folder / "synthetic.mp4"
    make_video(video, options.seconds)
    models, skipped = load_models(folder, MODELS[:1] + MODELS[-1:] if options.quick else MODELS)
    first = limits(video)
    stages = video_stages(video, {"width": 640, "height": 480})
    for (name, dtype), model in models.items():
        stages += model_stages(name, dtype, model, video, 30 if dtype != "float32" or name == "bundled" else 12)
    stages.append(write_stage(video, models["bundled", "float32"], folder))
    overlap = [
        EndToEnd(name, dtype, title, encoder, video)
        for name, dtype in (("ViT-B/16", "bfloat16"), ("bundled", "float32"))
        for title, encoder in zip(
            ("dense", "ResidualViT N=2", "ReuseEncoder N=5"), encoders(models[name, dtype]), strict=True
        )
    ]
    for number in range(options.rounds + 1):
        for part in (*stages, *overlap):
            part.turn()
        if number == 0:  # the first pays for allocations
            for stage in stages:
                stage.seconds.clear()
                stage.load.clear()
            for each in overlap:
                each.rounds.clear()
        print(f"round {number} of {options.rounds}", file=sys.stderr)
    last = limits(video)
    best = highest(first, last)
    return {
        "limits": {"first": first, "last": last, "highest": best},
        "stages": [stage_record(stage, best) for stage in stages],
        "overlap": [each.record(cpu.affinity()) for each in overlap],
        "skipped": skipped,
    }


def say(record: dict[str, Any]) -> None:
    for dtype, rates in record["limits"]["highest"]["matmul"].items():
        print(f"matmul {dtype}: " + ", ".join(f"{shape} {rate / 1e9:.0f} GFLOP/s" for shape, rate in rates.items()))
    for line in record["stages"]:
        share = "" if line["share"] is None else f", {line['share']:.0%} of {line['binds']}"
        print(f"{line['stage']} {line['model']} {line['dtype']}: {line['per_second']:.1f} {line['unit']}s/s{share}")
    for each in record["overlap"]:
        print(
            f"{each['model']} {each['dtype']} {each['encoder']}: total {each['total_over_longest']:.2f} of the longer "
            f"side, {each['total_over_work']:.2f} of what the work needs"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="of video")
    parser.add_argument("--quick", action="store_true", help="one round, 10 s of video, two models: for a look")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/performance.json; none with --quick")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds = 1, 10.0
    begin, load = time.perf_counter(), cpu.OtherLoad()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options, Path(folder))
    record = {
        "benchmark": "performance",
        "quick": options.quick,
        "settings": {"fps": FPS, "rounds": options.rounds, "video": f"640x480, 25 frames/s, {options.seconds:g} s"},
        **found,
        "machine": {**machine(), "other_load": load.read()},
        "seconds": round(time.perf_counter() - begin),
    }
    save(record, options.out, quick=options.quick)
    say(record)


if __name__ == "__main__":
    main()
