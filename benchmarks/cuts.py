"""Shot cuts on sampled frames: CutDetector on 3 frames a second against PySceneDetect on every frame, in one run.

    pip install --target /tmp/scenedetect "scenedetect>=0.7" opencv-python-headless
    PYTHONPATH=/tmp/scenedetect python benchmarks/cuts.py [--fps 3] [--out benchmarks/results/cuts.json]

Sets (true cuts are known exactly, from how the videos are made):

    synthetic      SyntheticVideo of each style; objects stay across its cuts, only the background changes
    synthetic cuts SyntheticVideo of the style with a cut every 1-4 s
    splices        1-6 s from different synthetic videos
    real           1-6 s from different real scenes in ../shared/data/videos, each with its own crop
    reframed       the same, but most cuts go to another crop of the same scene
    hard           4-8 s of real scenes with flashes, flicker, exposure jumps, fast pans, zooms, noise, dips to black
    soft           dissolves and fades through black of 0.2-1 s; any detection inside counts once, others are false

A cut, true or found, counts at the first sampled frame at or after it. SCENES lists stretches without a
cut, checked by eye (a picture every 0.4 s, and every frame around the largest frame differences); nasa_13013 has a
dissolve at 5-5.9 s and its only cut at 8.01 s. The detector's constants were set on other seeds and on splices of the
first three scenes alone; `--tune` measures on those.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from everyframe.backbone.preprocess import CLIP_MEAN, CLIP_STD, Preprocess
from everyframe.encoders.cuts import CutDetector
from everyframe.synthetic import SyntheticVideo
from everyframe.synthetic.scene import SPLITS
from everyframe.video import sample_frames, write_video

VIDEOS = Path(__file__).parents[2] / "shared" / "data" / "videos"
SCENES = {  # file, start, end: without a cut
    "dog": ("v_ZNVhz7ctTq0.mp4", 0.0, 13.9),
    "pancake": ("flipping_a_pancake.mkv", 0.0, 10.2),
    "nasa wide": ("nasa_13013.mp4", 0.0, 4.9),
    "lift": ("v_GGSY1Qvo990.mp4", 0.0, 18.0),
    "bears": ("vid1.mp4", 0.0, 2.2),
    "nasa worker": ("nasa_13013.mp4", 6.0, 7.95),
    "nasa near": ("nasa_13013.mp4", 8.05, 12.9),
}
TUNED_ON = ("dog", "pancake", "nasa wide")
WIDTH, HEIGHT, RATE, SYNTHETIC_RATE = 320, 240, 24, 12
KINDS = ("flash", "flicker", "exposure", "pan", "zoom", "noise", "dip")
OURS, CONTENT, ADAPTIVE = "CutDetector", "ContentDetector", "AdaptiveDetector"

View = tuple[float, float, float]  # place of the crop from 0 to 1 across and down, and its share of the frame


@dataclass
class Clip:
    """One video: its frames, and where its cuts are in seconds; soft ones are spans."""

    rate: int
    frames: list[np.ndarray] = field(default_factory=list)
    cuts: list[float] = field(default_factory=list)
    spans: list[tuple[float, float]] = field(default_factory=list)

    @property
    def now(self) -> float:
        return len(self.frames) / self.rate


class Scene:
    """A stretch of a real video, held in memory."""

    def __init__(self, name: str) -> None:
        file, start, end = SCENES[name]
        samples = list(sample_frames(VIDEOS / file, None, start=start, end=end))
        self.times = np.array([sample.time - start for sample in samples])
        self.frames = torch.from_numpy(np.stack([sample.pixels for sample in samples])).permute(0, 3, 1, 2)
        self.seconds = float(self.times[-1])

    def frame(self, t: float, view: View) -> np.ndarray:
        picture = self.frames[int(np.abs(self.times - t).argmin())]
        height, width = picture.shape[1:]
        rows = int(min(height, width * HEIGHT / WIDTH) * view[2])
        columns = int(rows * WIDTH / HEIGHT)
        top, left = round((height - rows) * view[1]), round((width - columns) * view[0])
        crop = picture[None, :, top : top + rows, left : left + columns]
        return F.interpolate(crop, size=(HEIGHT, WIDTH), mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()


def draw_view(rng: np.random.Generator) -> View:
    return rng.uniform(0, 1), rng.uniform(0, 1), rng.uniform(0.6, 1.0)


def other(rng: np.random.Generator, scenes: list[Any], than: Any) -> Any:
    choice = [scene for scene in scenes if scene is not than]
    return choice[rng.integers(len(choice))]


def real_splice(scenes: list[Scene], rng: np.random.Generator, seconds: float, *, reframed: bool = False) -> Clip:
    clip, before, view = Clip(RATE), None, (0.0, 0.0, 1.0)
    while clip.now < seconds:
        if reframed and before is not None and rng.random() < 0.7:
            scene, view = before, (1.0 - round(view[0]), rng.uniform(0, 1), rng.uniform(0.35, 0.55))
        else:
            scene, view = other(rng, scenes, before), draw_view(rng)
        length = min(rng.uniform(1, 6), scene.seconds)
        start = rng.uniform(0, scene.seconds - length)
        if clip.frames:
            clip.cuts.append(clip.now)
        clip.frames += [scene.frame(start + k / RATE, view) for k in range(int(length * RATE))]
        before = scene
    return clip


def synthetic_splice(rng: np.random.Generator, seconds: float) -> Clip:
    clip, before = Clip(SYNTHETIC_RATE), None
    styles = ("still", "handheld", "pan", "action")
    pool = [SyntheticVideo(int(rng.integers(10**6)), style=styles[k % 4], seconds=30.0) for k in range(8)]
    while clip.now < seconds:
        video = other(rng, pool, before)
        while True:
            length = rng.uniform(1, 6)
            start = rng.uniform(0, 30 - length)
            if not any(start < cut < start + length for cut in video.cuts):
                break
        if clip.frames:
            clip.cuts.append(clip.now)
        clip.frames += [video.frame(start + k / SYNTHETIC_RATE) for k in range(int(length * SYNTHETIC_RATE))]
        before = video
    return clip


def hard_takes(scenes: list[Scene], rng: np.random.Generator, seconds: float) -> Clip:
    clip, scene = Clip(RATE), None
    while clip.now < seconds:
        scene, kind = other(rng, scenes, scene), KINDS[rng.integers(len(KINDS))]
        if clip.frames:
            clip.cuts.append(clip.now)
        total = int(rng.uniform(4, 8) * RATE)
        still, phase, speed = draw_view(rng), rng.uniform(0, 6.28), rng.uniform(1, 3)
        flashes, jump, gain = rng.choice(total, 3, replace=False), rng.integers(total), rng.choice([0.6, 1.5])
        for k in range(total):
            t, view = k / RATE, still
            if kind == "pan":
                view = (0.5 + 0.5 * np.sin(speed * t + phase), 0.5 + 0.5 * np.sin(speed * t / 2), 0.5)
            elif kind == "zoom":
                view = (still[0], still[1], 0.65 + 0.35 * np.sin(speed * t + phase))
            there_and_back = scene.seconds - abs((t + phase) % (2 * scene.seconds) - scene.seconds)
            picture = scene.frame(there_and_back, view).astype(np.float32)
            if kind == "flash" and np.abs(k - flashes).min() < 2:
                picture = picture * 1.6 + 60
            elif kind == "flicker":
                picture = picture * (1 + 0.25 * np.sin(2 * np.pi * 4 * t + phase))
            elif kind == "exposure" and k >= jump:
                picture = picture * gain
            elif kind == "noise":
                picture = picture + rng.standard_normal(picture.shape) * 25
            elif kind == "dip":
                picture = picture * abs(np.cos(np.pi * t / 3))
            clip.frames.append(np.clip(picture, 0, 255).astype(np.uint8))
    return clip


def soft_changes(scenes: list[Scene], rng: np.random.Generator, seconds: float) -> Clip:
    clip, scene = Clip(RATE), None
    long = [scene for scene in scenes if scene.seconds > 3]
    while clip.now < seconds:
        scene, view = other(rng, long, scene), draw_view(rng)
        length = rng.uniform(3, min(6, scene.seconds))
        start = rng.uniform(0, scene.seconds - length)
        shot = [scene.frame(start + k / RATE, view) for k in range(int(length * RATE))]
        if clip.frames:
            count = int(rng.uniform(0.2, 1.0) * RATE)
            old, new = (np.stack(part).astype(np.float32) for part in (clip.frames[-count:], shot[:count]))
            share = ((np.arange(count) + 1) / (count + 1))[:, None, None, None]
            dissolve = old * (1 - share) + new * share
            fade = np.where(share < 0.5, old * (1 - 2 * share), new * (2 * share - 1))
            clip.spans.append((clip.now - count / RATE, clip.now))
            clip.frames[-count:] = list((dissolve if rng.random() < 0.7 else fade).astype(np.uint8))
            shot = shot[count:]
        clip.frames += shot
    return clip


def clips(tune: bool) -> Iterator[tuple[str, Clip]]:
    """Every video of every set, from fixed seeds."""
    seed = 100 if tune else 0
    for index, style in enumerate(("still", "handheld", "pan", "action", "cuts")):
        for which in range(2 if style in SPLITS else 0):
            video = SyntheticVideo(1000 + 10 * seed + 10 * index + which, style=style, seconds=60.0)  # type: ignore[arg-type]
            name = "synthetic cuts" if style == "cuts" else "synthetic"
            yield name, Clip(SYNTHETIC_RATE, list(video.frames()), video.cuts)
    for which in range(2):
        yield "splices", synthetic_splice(np.random.default_rng(seed + which), 75)
    if not VIDEOS.is_dir():
        print(f"{VIDEOS} is not there: the sets of real videos are left out", file=sys.stderr)
        return
    scenes = [Scene(name) for name in SCENES if name in TUNED_ON or not tune]
    for which in range(3):
        yield "real", real_splice(scenes, np.random.default_rng(seed + 10 + which), 75)
    for which in range(2):
        yield "reframed", real_splice(scenes, np.random.default_rng(seed + 20 + which), 60, reframed=True)
    for which in range(3):
        yield "hard", hard_takes(scenes, np.random.default_rng(seed + 30 + which), 75)
    for which in range(2):
        yield "soft", soft_changes(scenes, np.random.default_rng(seed + 40 + which), 60)


def sampled(path: Path, fps: float) -> tuple[np.ndarray, list[torch.Tensor]]:
    """Times and preprocessed frames (224 px, CLIP's), 16 at a time."""
    prepare = Preprocess(size=224, shorter_side=224, mean=CLIP_MEAN, std=CLIP_STD)
    samples = list(sample_frames(path, fps))
    frames = np.stack([sample.pixels for sample in samples])
    pixels = [prepare(frames[start : start + 16]) for start in range(0, len(frames), 16)]
    return np.array([sample.time for sample in samples]), pixels


def ours(pixels: list[torch.Tensor]) -> tuple[np.ndarray, float]:
    """Cuts bool [T], and seconds."""
    detector, begin = CutDetector(), time.perf_counter()
    found = np.concatenate([detector.add(part) for part in pixels])
    return found, time.perf_counter() - begin


def theirs(path: Path, name: str) -> tuple[list[float], float]:
    """Times of the cuts, and seconds in the detector itself, without decoding."""
    import scenedetect

    detector = getattr(scenedetect, name)()
    process, spent = detector.process_frame, 0.0

    def timed(*arguments: Any, **named: Any) -> Any:
        nonlocal spent
        begin = time.perf_counter()
        result = process(*arguments, **named)
        spent += time.perf_counter() - begin
        return result

    detector.process_frame = timed
    shots = scenedetect.detect(str(path), detector)
    return [start.seconds for start, _ in shots[1:]], spent


def at_samples(cuts: list[float], times: np.ndarray) -> np.ndarray:
    """The first sampled frame at or after each cut: bool [T]."""
    marks = np.zeros(len(times) + 1, bool)
    marks[np.searchsorted(times, np.array(cuts) - 1e-3)] = True
    return marks[:-1]


def counts(found: np.ndarray, clip: Clip, times: np.ndarray) -> np.ndarray:
    """True cuts, found among them, found in all."""
    if not clip.spans:
        truth = at_samples(clip.cuts, times)
        return np.array([truth.sum(), (truth & found).sum(), found.sum()])
    hits = 0
    for start, end in clip.spans:
        last = np.searchsorted(times, end - 1e-3)  # the first frame that is all new
        hits += found[np.searchsorted(times, start - 1e-3) : last + 1].any()
    return np.array([len(clip.spans), hits, found.sum()])


def scores(counted: np.ndarray) -> dict[str, float]:
    truth, hits, found = (int(value) for value in counted)
    return {
        "cuts": truth,
        "hits": hits,
        "false": found - hits,
        "precision": round(hits / max(found, 1), 3),
        "recall": round(hits / max(truth, 1), 3),
        "f1": round(2 * hits / max(found + truth, 1), 3),
    }


def measure(fps: float, tune: bool) -> dict[str, Any]:
    totals: dict[str, dict[str, np.ndarray]] = {}
    seconds = dict.fromkeys((OURS, CONTENT, ADAPTIVE), 0.0)
    frames = 0
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, clip) in enumerate(clips(tune)):
            path = Path(folder) / f"{number}.mp4"
            write_video(path, clip.frames, fps=clip.rate, options={"preset": "veryfast"})
            clip.frames.clear()
            times, pixels = sampled(path, fps)
            found, spent = ours(pixels)
            frames += len(times)
            seconds[OURS] += spent
            results = {OURS: found}
            for detector in (CONTENT, ADAPTIVE):
                cuts, spent = theirs(path, detector)
                seconds[detector] += spent
                results[detector] = at_samples(cuts, times)
            for detector, found in results.items():
                for key in (name, "all but soft") if name != "soft" else (name,):
                    totals.setdefault(key, {}).setdefault(detector, np.zeros(3, int))
                    totals[key][detector] += counts(found, clip, times)
    order = sorted(totals, key=lambda key: key == "all but soft")
    return {
        "sampled_frames": frames,
        "sets": {key: {name: scores(counted) for name, counted in totals[key].items()} for key in order},
        "ms_per_sampled_frame": {name: round(1e3 * spent / frames, 3) for name, spent in seconds.items()},
    }


def table(results: dict[str, Any]) -> str:
    lines = [f"{'set':<16}{'cuts':>5}  " + "  ".join(f"{name + ' P/R/F1':<24}" for name in (OURS, CONTENT, ADAPTIVE))]
    for key, by in results["sets"].items():
        figures = (f"{score['precision']:.3f} {score['recall']:.3f} {score['f1']:.3f}" for score in by.values())
        lines.append(f"{key:<16}{by[OURS]['cuts']:>5}  " + "  ".join(f"{text:<24}" for text in figures))
    spent = (f"{value:.3f} ms" for value in results["ms_per_sampled_frame"].values())
    return "\n".join([*lines, f"{'per sample':<23}" + "  ".join(f"{text:<24}" for text in spent)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fps", type=float, default=3.0)
    parser.add_argument("--tune", action="store_true", help="measure on the seeds and scenes used for tuning")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    options = parser.parse_args()
    try:
        import scenedetect
    except ImportError:
        parser.exit(
            1, "this benchmark compares with PySceneDetect: pip install 'scenedetect>=0.7' opencv-python-headless\n"
        )
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", UserWarning)
    results = measure(options.fps, options.tune)
    record = {
        "benchmark": "shot cuts on sampled frames",
        "fps": options.fps,
        "seeds": "tuning" if options.tune else "test",
        **results,
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "scenedetect": scenedetect.__version__,
        },
    }
    print(table(results))
    if options.out is not None:
        options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
