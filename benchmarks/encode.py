"""Frames per second from file to features: a hand-written loop of today against everyframe, in one run.

    python benchmarks/encode.py [--video FILE] [--rounds 3] [--out benchmarks/results/encode.json]

Four ways to get 3 features a second from the same file with the same random weights (ViT-B/16 and B/32):

    a  PyAV, transformers' CLIPImageProcessor and CLIPModel, float32, batches of 16: what people write today
    b  the same in bfloat16
    c  everyframe, DenseEncoder, bfloat16
    d  everyframe, ResidualViT(interleave=2, drop=0.85, select="motion"), bfloat16, with a residual token

Every measurement is a process of its own (peak memory is then its own too), and the four take turns, so that
a machine that drifts drifts for all. Ratios are taken within a round; the median of the rounds is printed.
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
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

VARIANTS = {
    "a": "PyAV + transformers, float32",
    "b": "PyAV + transformers, bfloat16",
    "c": "everyframe dense, bfloat16",
    "d": "everyframe ResidualViT N=2, bfloat16",
}
ARCHITECTURES = {
    "ViT-B/16": {"patch_size": 16},
    "ViT-B/32": {"patch_size": 32},
}
FPS = 3.0
AIMS = {"c": 2.1, "b": 2.2, "a": 4.0}  # d over each


def make_model(folder: Path, patch_size: int) -> None:
    """A CLIP of the given patch size with seeded random weights, in Hugging Face format."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    torch.manual_seed(0)
    vision = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 224,
        "patch_size": patch_size,
    }
    CLIPModel(CLIPConfig(vision_config=vision, projection_dim=512)).eval().save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)


def make_video(path: Path) -> None:
    """20 s of 640x480 at 25 frames/s, H.264."""
    from everyframe.synthetic import SyntheticVideo

    SyntheticVideo(3, seconds=20, fps=25, size=(640, 480), style="pan").write(path)


# --- today's loop ----------------------------------------------------------------------------------------


def run_loop(video: Path, folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    import av
    from transformers import CLIPImageProcessor, CLIPModel

    processor = CLIPImageProcessor.from_pretrained(folder)
    model = CLIPModel.from_pretrained(folder, dtype=dtype).eval()
    spent = {"decode": 0.0, "preprocess": 0.0, "model": 0.0}

    def embed(frames: list[np.ndarray]) -> np.ndarray:
        clock = time.perf_counter()
        pixels = processor(images=frames, return_tensors="pt")["pixel_values"].to(dtype)
        spent["preprocess"] += time.perf_counter() - clock
        clock = time.perf_counter()
        with torch.inference_mode():
            features = model.get_image_features(pixel_values=pixels)
            features = getattr(features, "pooler_output", features).float()
            features = features / features.norm(dim=1, keepdim=True)
        spent["model"] += time.perf_counter() - clock
        return features.numpy()

    def whole(limit: int | None) -> list[np.ndarray]:
        found, waiting, wanted = [], [], 0
        with av.open(str(video)) as container:
            stream = container.streams.best("video")
            stream.thread_type = "AUTO"
            clock = time.perf_counter()
            for frame in container.decode(stream):
                if frame.time + 1e-3 >= wanted / FPS:
                    waiting.append(frame.to_ndarray(format="rgb24"))
                    wanted += 1
                if len(waiting) == 16 or wanted == limit:
                    spent["decode"] += time.perf_counter() - clock
                    found.append(embed(waiting))
                    waiting = []
                    clock = time.perf_counter()
                if wanted == limit:
                    break
            spent["decode"] += time.perf_counter() - clock
            if waiting:
                found.append(embed(waiting))
        return found

    whole(16)  # warm up
    spent.update(dict.fromkeys(spent, 0.0))
    clock = time.perf_counter()
    features = np.concatenate(whole(None))
    return {"seconds": time.perf_counter() - clock, "features": features, "spent": spent}


# --- everyframe ------------------------------------------------------------------------------------------


def run_everyframe(video: Path, folder: Path, variant: str) -> dict[str, Any]:
    import everyframe as ef
    from everyframe.video import sample_frames

    model = ef.load(folder, dtype="bfloat16", device="cpu")
    if variant == "c":
        encoder: Any = ef.DenseEncoder(model)
    else:
        torch.manual_seed(0)
        token = ef.ResidualTokenizer(model.dim, model.vision.config.width)
        encoder = ef.ResidualViT(model, interleave=2, drop=0.85, select="motion", residual=token)
    ef.encode_video(video, encoder, fps=FPS, end=5.0)  # warm up
    clock = time.perf_counter()
    feats = ef.encode_video(video, encoder, fps=FPS)
    seconds = time.perf_counter() - clock
    # The parts one after the other; above they overlap, so they add up to more than `seconds`.
    clock = time.perf_counter()
    samples = list(sample_frames(video, FPS, motion=encoder.needs_motion))
    decode = time.perf_counter() - clock
    frames = np.stack([sample.pixels for sample in samples])
    clock = time.perf_counter()
    pixels = model.preprocess(frames)
    motion = None
    if encoder.needs_motion:
        motion = model.preprocess_motion(np.stack([s.motion for s in samples]), frames.shape[1:3])
    preprocess = time.perf_counter() - clock
    clock = time.perf_counter()
    encoder.encode(pixels, motion)
    spent = {"decode": decode, "preprocess": preprocess, "model": time.perf_counter() - clock}
    return {"seconds": seconds, "features": feats.embeddings, "spent": spent}


def child(options: argparse.Namespace) -> None:
    """Measure one variant and print one JSON line."""
    if options.variant in "ab":
        dtype = torch.float32 if options.variant == "a" else torch.bfloat16
        result = run_loop(options.video, options.model, dtype)
    else:
        result = run_everyframe(options.video, options.model, options.variant)
    features = result["features"]
    np.save(options.features, features)
    line = {
        "frames": len(features),
        "frames_per_second": len(features) / result["seconds"],
        "ms_per_frame": {part: 1000 * value / len(features) for part, value in result["spent"].items()},
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "other_load": max(os.getloadavg()[0] - torch.get_num_threads(), 0.0),
    }
    print(json.dumps(line))


def measure(video: Path, work: Path, rounds: int) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for name, sizes in ARCHITECTURES.items():
        folder = work / name.replace("/", "-")
        make_model(folder, **sizes)
        runs: dict[str, list[dict[str, Any]]] = {variant: [] for variant in VARIANTS}
        for turn in range(rounds):
            for variant in VARIANTS:
                command = [sys.executable, __file__, "--variant", variant, "--video", str(video)]
                command += ["--model", str(folder), "--features", str(work / f"{variant}.npy")]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                runs[variant].append(json.loads(done.stdout.splitlines()[-1]))
                print(
                    f"{name} round {turn + 1} {variant}: {runs[variant][-1]['frames_per_second']:.2f} frames/s",
                    file=sys.stderr,
                )
        # The comparison is void if the variants do not compute the same thing.
        dense, loop = np.load(work / "c.npy"), np.load(work / "b.npy")
        agreement = float((dense * loop).sum(1).mean()) if dense.shape == loop.shape else float("nan")
        results[name] = {"runs": runs, "cosine_of_c_to_b": agreement}
    return results


def summary(results: dict[str, Any]) -> list[str]:
    """Speeds and ratios in words; scripts/render_results.py makes the tables of the docs from the JSON."""
    lines = []
    for name, result in results.items():
        runs = result["runs"]
        for variant, title in VARIANTS.items():
            speed = statistics.median(run["frames_per_second"] for run in runs[variant])
            pairs = zip(runs["d"], runs[variant], strict=True)
            ratio = statistics.median(d["frames_per_second"] / run["frames_per_second"] for d, run in pairs)
            aim = f" (aim {AIMS[variant]}x)" if variant in AIMS else ""
            lines.append(f"{name} {variant}. {title}: {speed:.2f} frames/s; d is {ratio:.2f}x as fast{aim}")
        lines.append(f"{name} mean cosine of c's features to b's: {result['cosine_of_c_to_b']:.4f}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--video", type=Path, help="default: a generated 640x480 video")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "encode.json")
    for name in ("--variant", "--model", "--features"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant:
        child(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        video = options.video
        if video is None:
            video = Path(folder) / "synthetic.mp4"
            make_video(video)
        results = measure(video, Path(folder), options.rounds)
    record = {
        "benchmark": "encode",
        "video": video.name,
        "results": results,
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1) + "\n")
    print("\n".join(summary(results)))


if __name__ == "__main__":
    main()
