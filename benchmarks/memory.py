"""Does memory grow with the length of a video? Peak resident memory of sampling a short and a long one.

    python benchmarks/memory.py                  # 5 minutes against 5 hours
    python benchmarks/memory.py --minutes 1 20   # quicker

The files are generated (64x48, 10 frames per second, a key frame every 250 frames). Each is sampled at 3 frames
per second with motion in a process of its own, whose peak resident memory the operating system reports.

MPEG-TS shows what sampling itself needs. An MP4 file carries a table with the place and time of every frame, and
FFmpeg loads that table when it opens the file (about 75 bytes per frame), whoever reads it.

With --encode the whole of `encode_video` runs instead (bundled model, ResidualViT N=10): its result grows with the
video by definition, 4 bytes x dim per sampled frame.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from everyframe.video import sample_frames, write_video

NATIVE_FPS = 10
SAMPLED_FPS = 3.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", nargs=2, type=float, default=[5.0, 300.0], metavar=("SHORT", "LONG"))
    parser.add_argument("--containers", nargs="+", default=["ts", "mp4"], metavar="SUFFIX")
    parser.add_argument("--encode", action="store_true", help="encode with the bundled model, not only sample")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        print(json.dumps((measure_encode if arguments.encode else measure)(arguments.measure)))
        return
    result = compare(arguments.containers, *arguments.minutes, encode=arguments.encode)
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")


def compare(containers: list[str], short_minutes: float, long_minutes: float, *, encode: bool) -> dict[str, object]:
    """Peak memory of both lengths in each container, and the long one's over the short one's."""
    results = []
    for suffix in containers:
        short, long = (in_new_process(suffix, minutes, encode) for minutes in (short_minutes, long_minutes))
        ratio = round(long["peak_rss_mib"] / short["peak_rss_mib"], 4)
        results.append({"container": suffix, "short": short, "long": long, "ratio": ratio})
    return {
        "benchmark": "memory of encode_video" if encode else "memory of sample_frames",
        "sampled_fps": SAMPLED_FPS,
        "results": results,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def in_new_process(suffix: str, minutes: float, encode: bool) -> dict[str, float]:
    """Write a video of this length, and measure a fresh process that samples or encodes it."""
    count = round(minutes * 60 * NATIVE_FPS)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"video.{suffix}"
        write_video(path, frames(count), fps=NATIVE_FPS, keyframe_every=250, options={"preset": "ultrafast"})
        command = [sys.executable, __file__, "--measure", str(path), *(["--encode"] if encode else [])]
        run = subprocess.run(command, check=True, capture_output=True, text=True)
    return {"minutes": minutes, "frames": count, **json.loads(run.stdout)}


def frames(count: int) -> Iterator[np.ndarray]:
    """A grey square that wanders over a still gradient: cheap to make, and not free of motion."""
    background = np.repeat(np.linspace(40, 200, 64, dtype=np.uint8)[None, :, None], 48, axis=0).repeat(3, axis=2)
    for index in range(count):
        picture = background.copy()
        left = index % 48
        picture[16:32, left : left + 16] = 128
        yield picture


def measure(path: Path) -> dict[str, float]:
    """Sample one file to its end in this process."""
    begin = time.perf_counter()
    samples = 0
    with sample_frames(path, SAMPLED_FPS, motion=True) as video:
        for _ in video:
            samples += 1
    return peak_and_speed(samples, video.num_frames_decoded, time.perf_counter() - begin)


def measure_encode(path: Path) -> dict[str, float]:
    """Encode one file to its end in this process."""
    import everyframe as ef

    encoder = ef.ResidualViT(ef.load("bundled", device="cpu"), interleave=10, residual=None)
    begin = time.perf_counter()
    feats = ef.encode_video(path, encoder, fps=SAMPLED_FPS)
    decoded = round(feats.frame_ends[-1] * NATIVE_FPS)
    return peak_and_speed(feats.num_frames, decoded, time.perf_counter() - begin)


def peak_and_speed(samples: int, decoded: int, seconds: float) -> dict[str, float]:
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
    return {
        "samples": samples,
        "peak_rss_mib": round(peak, 1),
        "decoded_frames_per_second": round(decoded / seconds, 1),
    }


if __name__ == "__main__":
    main()
