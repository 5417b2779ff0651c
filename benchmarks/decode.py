"""Frames per second of source video, and ms per returned frame: our sampler against PyAV, OpenCV and torchcodec.

    python benchmarks/decode.py [--rounds 2] [--quick] [--videos DIR] [--out benchmarks/results/decode.json]

The videos are made here: the synthetic world with a moving camera, scaled up, with grain, as x264 and x265 write it by
default (B-pyramids, a key frame every 240 or 250 frames), 640x360 and 1920x1080, 30 frames per second. --videos: real
files of a folder as well (../shared/data/videos, where it is there), at 3 frames per second.

Ways to get the frames nearest to 3, 1 and 0.1 times per second, as RGB (OpenCV: BGR) at full size:

    pyav        every frame decoded, the chosen ones converted: the loop everybody writes, and what `sample_frames` did
    opencv      grab() every frame, retrieve() the chosen ones
    torchcodec  VideoDecoder(...).get_frames_played_at(seconds), with exact seeking
    everyframe  sample_frames(fps): what nobody looks at is not decoded

Before anything is timed, all give the same frames: times equal ours, pixels within 3 levels on average. Then they take
turns, on one thread and on as many as FFmpeg likes; ratios are taken within a round. What is not installed is left out,
and said so. torchcodec needs FFmpeg's shared libraries; those inside PyAV's wheel will do (docs/video.md).

Two things that are no options of ours are measured beside them, on one thread: decoding without the loop filter (what
it saves, and the cosine of features to those with it), and letting libswscale reduce pictures.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter

from everyframe.synthetic import SyntheticVideo
from everyframe.version import package_version
from everyframe.video import probe, sample_frames
from machine import machine

try:
    import cv2
except ImportError:
    cv2 = None
try:
    from torchcodec.decoders import VideoDecoder
except (ImportError, OSError, RuntimeError):
    VideoDecoder = None

RATES = (3.0, 1.0, 0.1)
RATE = 30  # of the videos
PART_FRAMES = 240
SIZES = {"360p": (640, 360), "1080p": (1920, 1080)}
CODECS = {
    "h264": ("libx264", {"preset": "fast", "crf": "23"}),
    "hevc": ("libx265", {"preset": "superfast", "crf": "26", "x265-params": "log-level=none"}),
}
LEVELS = 3.0


# --- videos ----------------------------------------------------------------------------------------------


def pictures(size: tuple[int, int]) -> Iterator[av.VideoFrame]:
    """PART_FRAMES frames of the synthetic world at `size`, with grain."""
    world = SyntheticVideo(5, seconds=PART_FRAMES / RATE, fps=RATE, size=(480, 270), style="handheld")
    grain = np.random.default_rng(0).integers(0, 9, (size[1], size[0] + 64, 3), dtype=np.uint8)
    scale = VideoReformatter()
    for index, small in enumerate(world.frames()):
        frame = av.VideoFrame.from_ndarray(small, format="rgb24")
        large = scale.reformat(frame, width=size[0], height=size[1], interpolation="BICUBIC").to_ndarray()
        left = (index * 13) % 64
        noisy = np.clip(large, 0, 247) + grain[:, left : left + size[0]]
        yield av.VideoFrame.from_ndarray(noisy, format="rgb24")


def make(file: Path, codec: str, size: tuple[int, int], parts: int) -> Path:
    """A video of `parts` times the same part, which is encoded once."""
    name, options = CODECS[codec]
    part = file.with_name(f"part-{file.name}")
    with av.open(str(part), "w") as container:
        stream = container.add_stream(name, rate=RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for index, frame in enumerate(pictures(size)):
            frame.pts, frame.time_base = index, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with av.open(str(file), "w") as container:
        copied = None
        for number in range(parts):
            with av.open(str(part)) as source:
                given = source.streams.video[0]
                copied = copied or container.add_stream_from_template(given)
                ticks = round(PART_FRAMES / RATE / given.time_base) * number
                for packet in source.demux(given):
                    if packet.dts is not None:
                        packet.pts, packet.dts, packet.stream = packet.pts + ticks, packet.dts + ticks, copied
                        container.mux(packet)
    part.unlink()
    return file


# --- ways to read them -----------------------------------------------------------------------------------

Read = tuple[list[float], list[np.ndarray]]
"""Times in seconds where the way knows them, and pixels uint8 [H, W, 3]."""


def everyframe(file: Path, fps: float, times: list[float], threads: int) -> Read:
    with sample_frames(file, fps, threads=threads or None, on_fewer="accept") as sampled:
        found = [(sample.time, sample.pixels) for sample in sampled]
    return [time for time, _ in found], [pixels for _, pixels in found]


def pyav(file: Path, fps: float, times: list[float], threads: int) -> Read:
    wanted, found = {round(time, 6) for time in times}, []
    with av.open(str(file)) as container:
        stream = container.streams.best("video")
        stream.codec_context.thread_type = "AUTO"
        stream.codec_context.thread_count = threads
        for frame in container.decode(stream):
            if round(frame.time, 6) in wanted:
                found.append((frame.time, frame.to_ndarray(format="rgb24")))
    return [time for time, _ in found], [pixels for _, pixels in found]


def opencv(file: Path, fps: float, times: list[float], threads: int) -> Read:
    capture = cv2.VideoCapture(str(file), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, threads])
    rate = capture.get(cv2.CAP_PROP_FPS)
    wanted, found, index = {round(time * rate) for time in times}, [], 0
    while capture.grab():
        if index in wanted:
            found.append(capture.retrieve()[1])
        index += 1
    capture.release()
    return times, found


def torchcodec(file: Path, fps: float, times: list[float], threads: int) -> Read:
    decoder = VideoDecoder(str(file), num_ffmpeg_threads=threads, dimension_order="NHWC")
    batch = decoder.get_frames_played_at([time + 1e-4 for time in times])
    return batch.pts_seconds.tolist(), list(batch.data.numpy())


WAYS: dict[str, Callable[[Path, float, list[float], int], Read] | None] = {
    "pyav": pyav,
    "opencv": opencv if cv2 is not None else None,
    "torchcodec": torchcodec if VideoDecoder is not None else None,
    "everyframe": everyframe,
}


@cache
def check(file: Path, fps: float, ways: tuple[str, ...]) -> tuple[list[float], dict[str, float]]:
    """Our times, and how far the pixels of others are from ours on average; exits where they are other frames."""
    times, own = everyframe(file, fps, [], 1)
    apart = {}
    for name in ways:
        theirs, pixels = WAYS[name](file, fps, times, 1)  # type: ignore[misc]
        if len(pixels) != len(own) or max(abs(a - b) for a, b in zip(theirs, times, strict=True)) > 1e-3:
            sys.exit(f"{file.name} at {fps:g} frames/s: {name} gives other frames than everyframe")
        if name == "opencv":
            pixels = [each[:, :, ::-1] for each in pixels]
        pairs = zip(pixels, own, strict=True)
        apart[name] = max(float(np.abs(a.astype(np.int16) - b).mean()) for a, b in pairs)
        if apart[name] > LEVELS:
            sys.exit(f"{file.name} at {fps:g} frames/s: {name} is {apart[name]:.1f} levels from everyframe")
    return times, apart


def measure(file: Path, fps: float, threads: int, rounds: int) -> dict[str, Any]:
    """Seconds of each way, round by round, in turns."""
    ways = [name for name, read in WAYS.items() if read is not None]
    times, apart = check(file, fps, tuple(name for name in ways if name != "everyframe"))
    with sample_frames(file, fps, on_fewer="accept") as sampled:
        for _ in sampled:
            pass
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in ways if number % 2 == 0 else reversed(ways):
            begin = time.perf_counter()
            WAYS[name](file, fps, times, threads)  # type: ignore[misc]
            taken[name].append(round(time.perf_counter() - begin, 4))
    return {
        "fps": fps,
        "threads": threads or "all",
        "frames": sampled.num_frames_decoded,
        "left_out": sampled.num_frames_left_out,
        "returned": len(times),
        "levels_apart": {name: round(value, 3) for name, value in apart.items()},
        "seconds": taken,
    }


def unfiltered(file: Path, rounds: int) -> dict[str, Any]:
    """What leaving out the loop filter would save of a full decode on one thread, and cost: no option of ours.

    Cosine of the bundled model's features with the filter and without, of every tenth frame.
    """
    import everyframe as ef

    model, known = ef.load("bundled"), {}
    taken: dict[str, list[float]] = {"none": [], "noref": [], "all": []}
    for number in range(rounds):
        for setting in taken if number % 2 == 0 else reversed(taken):
            begin, kept = time.perf_counter(), []
            with av.open(str(file)) as container:
                context = container.streams.video[0].codec_context
                context.thread_count, context.options = 1, {"skip_loop_filter": setting}
                for index, frame in enumerate(container.decode(video=0)):
                    if index % 10 == 0:
                        kept.append(frame)
            taken[setting].append(round(time.perf_counter() - begin, 4))
            if number == 0:
                pixels = model.preprocess(np.stack([frame.to_ndarray(format="rgb24") for frame in kept[:60]]))
                known[setting] = ef.DenseEncoder(model).encode(pixels)
    apart = {name: (known["none"] * features).sum(dim=1) for name, features in known.items() if name != "none"}
    cosines = {name: {"mean": float(each.mean()), "min": float(each.min())} for name, each in apart.items()}
    return {"seconds": taken, "cosine": cosines}


def reduced(file: Path, rounds: int) -> dict[str, list[float]]:
    """ms per frame from a decoded 1080p frame to the model's pixels: converted in full, or reduced by libswscale first.

    Reduced to twice the model's side, by areas: what an option for it would do. There is none, for it costs more.
    """
    import everyframe as ef

    prepare, scale = ef.load("bundled").preprocess, VideoReformatter()
    with av.open(str(file)) as container:
        frame = next(container.decode(video=0))
    side = prepare(np.zeros((1, 64, 64, 3), np.uint8)).shape[-1]
    height = min(2 * side, frame.height)
    sizes = {"full": (frame.width, frame.height), "reduced": (frame.width * height // frame.height, height)}
    taken: dict[str, list[float]] = {name: [] for name in sizes}
    for number in range(5 * rounds):
        for name in sizes if number % 2 == 0 else reversed(sizes):
            width, height = sizes[name]
            begin = time.perf_counter()
            for _ in range(4):
                rgb = scale.reformat(frame, width, height, "rgb24", interpolation="AREA", threads=1)
                prepare(rgb.to_ndarray()[None])
            taken[name].append(round(250 * (time.perf_counter() - begin), 4))
    return taken


def report(name: str, row: dict[str, Any]) -> None:
    best = {way: statistics.median(seconds) for way, seconds in row["seconds"].items()}
    ratios = {
        way: statistics.median(a / b for a, b in zip(seconds, row["seconds"]["everyframe"], strict=True))
        for way, seconds in row["seconds"].items()
    }
    line = ", ".join(f"{way} {row['frames'] / best[way]:.0f} frames/s ({ratios[way]:.2f}x ours)" for way in best)
    left = f"{row['left_out']} of {row['frames']} left out"
    print(f"{name} {row['fps']:g}/s, threads {row['threads']}: {line}; {left}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--parts", type=int, default=2, help="of 8 seconds that a video has")
    parser.add_argument("--quick", action="store_true", help="360p only")
    parser.add_argument("--keep", type=Path, help="where the videos are left, and found again")
    parser.add_argument("--videos", type=Path, default=Path(__file__).resolve().parents[2] / "shared/data/videos")
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 0], help="0: as many as FFmpeg likes")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    missing = [name for name, read in WAYS.items() if read is None]
    print(f"not installed: {', '.join(missing) or 'nothing'}")
    rows: list[dict[str, Any]] = []
    refused: dict[str, Any] = {"loop_filter": {}}
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for size in ["360p"] if options.quick else SIZES:
            for codec in CODECS:
                file = folder / f"{codec}-{size}-{options.parts}.mp4"
                if not file.exists():
                    make(file, codec, SIZES[size], options.parts)
                for threads in options.threads:
                    for fps in RATES:
                        row = measure(file, fps, threads, options.rounds)
                        rows.append({"video": f"{codec} {size}", "size_mb": file.stat().st_size / 1e6, **row})
                        report(f"{codec} {size}", row)
        for codec in CODECS:
            file = folder / f"{codec}-{'360p' if options.quick else '1080p'}-{options.parts}.mp4"
            refused["loop_filter"][codec] = unfiltered(file, options.rounds)
        refused["scaling_ms"] = reduced(file, options.rounds)
        print(json.dumps(refused), flush=True)
    for file in sorted(options.videos.glob("*.mp4")) if options.videos.is_dir() else []:
        info = probe(file, scan=True)
        steady = not info.variable_frame_rate and info.start_seconds == 0 and info.rotation == 0
        whole = info.num_frames_from_content == info.num_frames_from_header and info.num_video_streams == 1
        if not steady or not whole or (info.duration_seconds or 0) < 10:
            continue  # what the loops of others get wrong is no race
        for threads in options.threads:
            row = measure(file, 3.0, threads, max(options.rounds, 3))
            rows.append({"video": file.name, "size_mb": file.stat().st_size / 1e6, **row})
            report(file.name, row)
    record = {
        "machine": machine(),
        "versions": {
            "everyframe": package_version(),
            "av": av.__version__,
            "torch": torch.__version__,
            "opencv": cv2.__version__ if cv2 is not None else "not installed",
            "torchcodec": _version("torchcodec") if VideoDecoder is not None else "not installed",
        },
        "load_before": os.getloadavg()[0],
        "rounds": options.rounds,
        "rows": rows,
        "no_options": refused,
    }
    if options.out:
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _version(name: str) -> str:
    from importlib.metadata import version

    return version(name)


if __name__ == "__main__":
    main()
