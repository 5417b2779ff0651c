"""What each stage of a cluster run does on one core, and whether the whole is what its stages promise.

    python benchmarks/scale.py [--quick] [--keep DIR] [--out benchmarks/results/scale.json]

Needs the machine for itself; takes about twenty minutes, --quick five (short videos, few rounds: rough figures).

The stages, each in one process on one core (`sched_setaffinity`, one thread), medians and quartiles of the rounds:

    decode    H.264 of 640x360, 1280x720 and 1920x1080 at 30 frames/s, sampled at 3 frames/s; source frames per second.
              HEVC, VP9 and AV1 at 1280x720 for comparison
    prepare   resizing, normalising and planning of the sampled frames; frames per second
    encode    I-frames in batches of 32, and chunks of whole groups of ReuseEncoder(interleave=5, drop=0.85); what a
              P-frame takes is the chunk's time less that of its I-frames
    probe     opening a file, reading its header and its fingerprint; files per second
    gather    putting the chunks of a video in order and joining them, as the driver does; features per second
    write     a video of 10 minutes after the other into each kind of output; features per second
    stream    `everyframe.features.stream` over such videos (float16), in one process; features per second

The models are the bundled one and a CLIP ViT-B/32 with random weights (its speed is that of any). The videos are made:
synthetic scenes with sensor noise at the bit rates below, so that the decoder has as much to do as with real ones.

The whole: `everyframe.scale.encode` on Ray, with one decoder and one encoder on one core, then two of each on two.
Everything runs on these cores: the workers, Ray, and the driver. Reported: features per second while both stages work
(see `Pace`), the speed of two cores over twice that of one, and both over what `everyframe.scale.capacity.predict` says
from the stages.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

SIZES = {(640, 360): 0.8, (1280, 720): 2.5, (1920, 1080): 5.0}  # Mbit/s, as streaming services use
# Other codecs than H.264, at 720p and the same bit rate; options that encode in bearable time.
CODECS = {
    "libx265": {"preset": "fast", "x265-params": "log-level=error"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "6"},
    "libsvtav1": {"preset": "8", "svtav1-params": "rc=1"},
}
SOURCE_FPS, FPS, INTERLEAVE, DROP, BATCH = 30, 3.0, 5, 0.85, 32
MODELS = ("bundled", "ViT-B/32")
PIPELINES = {"bundled 640x360": ("bundled", (640, 360)), "ViT-B/32 1280x720": ("ViT-B/32", (1280, 720))}
STORED_ROWS = int(600 * FPS)  # of a video of 10 minutes
FORMATS, WRITTEN = ("npz", "webdataset", "library"), 32  # videos of 10 minutes
STEADY, TOGETHER = 0.9, 0.2  # share of a run; seconds


# --- videos and models -----------------------------------------------------------------------------------


def make_video(path: Path, size: tuple[int, int], mbits: float, seconds: float, codec: str = "libx264") -> None:
    from everyframe.synthetic import SyntheticVideo
    from everyframe.video.write import write_video

    world = SyntheticVideo(3, seconds=seconds, fps=SOURCE_FPS, size=size, style="handheld")
    grain = np.random.default_rng(0).integers(-6, 7, (size[1] + 64, size[0] + 64, 1), np.int16)

    def frames() -> Iterator[np.ndarray]:
        for number, frame in enumerate(world.frames()):
            down, right = (17 * number) % 64, (29 * number) % 64
            noise = grain[down : down + size[1], right : right + size[0]]
            yield np.clip(frame.astype(np.int16) + noise, 0, 255).astype(np.uint8)

    rate = str(int(mbits * 1e6))
    limits = {"b": rate, "maxrate": rate, "bufsize": str(2 * int(rate)), "preset": "medium"}
    options = limits if codec == "libx264" else {"b": rate, **CODECS[codec]}
    write_video(path, frames(), fps=SOURCE_FPS, codec=codec, keyframe_every=8 * SOURCE_FPS, options=options)


def repeat(video: Path, path: Path, times: int) -> None:
    """A longer video of the same packets: encoding it anew would take minutes."""
    import av

    with av.open(str(video)) as first, av.open(str(path), "w") as longer:
        stream = longer.add_stream_from_template(first.streams.video[0])
        length = round(first.streams.video[0].frames / SOURCE_FPS / first.streams.video[0].time_base)
        for number in range(times):
            first.seek(0)
            for packet in first.demux(video=0):
                if packet.dts is not None and packet.pts is not None:
                    packet.pts, packet.dts = packet.pts + number * length, packet.dts + number * length
                    packet.stream = stream
                    longer.mux(packet)


def copies(video: Path, folder: Path, count: int) -> list[str]:
    """The same pictures under another fingerprint: an empty box with a number at the end of the file."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for number in range(count):
        copy = folder / f"{number:04}.mp4"
        shutil.copyfile(video, copy)
        with copy.open("ab") as file:
            file.write(b"\x00\x00\x00\x10free" + number.to_bytes(8, "big"))
        made.append(str(copy))
    return made


def load_model(name: str, folder: Path) -> Any:
    import everyframe as ef

    if name == "bundled":
        return ef.load(name, device="cpu")
    place = folder / "model"
    if not place.exists():
        from encode import make_model

        make_model(place, patch_size=32)
    return ef.load(place, device="cpu")


def reuse(model: Any) -> Any:
    import everyframe as ef

    return ef.ReuseEncoder(model, interleave=INTERLEAVE, drop=DROP, batch_size=BATCH)


def long_name(video: Path) -> Path:
    return video.with_stem(f"{video.stem} long")


def size_name(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


# --- one stage on one core -------------------------------------------------------------------------------


def spread(values: list[float]) -> dict[str, float]:
    low, middle, high = (float(value) for value in np.percentile(values, (25, 50, 75)))
    return {"median": middle, "p25": low, "p75": high, "rounds": len(values)}


def per_second(units: float, work: Callable[[], Any], rounds: int) -> dict[str, float]:
    work()  # warm up
    rates = []
    for _ in range(rounds):
        begin = time.perf_counter()
        work()
        rates.append(units / (time.perf_counter() - begin))
    return spread(rates)


def measure_decoding(videos: dict[str, Path], rounds: int) -> dict[str, Any]:
    from everyframe.video import probe, sample_frames

    found: dict[str, Any] = {}
    for name, path in videos.items():
        info = probe(path)
        seconds = float(info.duration_seconds or 0)

        def decode(path: Path = path) -> None:
            for _ in sample_frames(path, FPS, threads=1):
                pass

        found[name] = {
            "per_second": per_second(round(seconds * SOURCE_FPS), decode, rounds),
            "mbits": path.stat().st_size * 8 / seconds / 1e6,
            "codec": info.codec,
        }
    return found


def measure_preparing(videos: dict[tuple[int, int], Path], model: Any, rounds: int) -> dict[str, Any]:
    from everyframe.video import sample_frames

    encoder, found = reuse(model), {}
    for size, path in videos.items():
        frames = np.stack([sample.pixels for sample in sample_frames(path, FPS, end=16 / FPS)])

        def prepare(frames: np.ndarray = frames) -> None:
            planner = encoder.planner()
            planner.add(model.preprocess(frames))
            planner.finish()

        found[size_name(size)] = {"per_second": per_second(len(frames), prepare, rounds)}
    return found


def measure_encoding(path: Path, model: Any, rounds: int) -> dict[str, Any]:
    import everyframe as ef
    from everyframe.cost import flops
    from everyframe.video import sample_frames

    encoder, dense = reuse(model), ef.DenseEncoder(model, batch_size=BATCH)
    group = INTERLEAVE + 1
    groups = BATCH // group
    sampled = [sample.pixels for sample in sample_frames(path, FPS)]
    pixels = model.preprocess(np.stack([sampled[number % len(sampled)] for number in range(BATCH)]))
    chunk = pixels[: groups * group]
    planner = encoder.planner()
    plan = planner.add(chunk)
    plan += planner.finish()
    dense.encode(pixels)
    encoder.encode_planned(chunk, plan)
    full, partly, together = [], [], []
    for _ in range(rounds):
        begin = time.perf_counter()
        dense.encode(pixels)
        middle = time.perf_counter()
        encoder.encode_planned(chunk, plan)
        end = time.perf_counter()
        i_seconds = (middle - begin) / BATCH
        full.append(1 / i_seconds)
        partly.append(groups * INTERLEAVE / (end - middle - groups * i_seconds))
        together.append(len(chunk) / (end - middle))
    i_macs = flops(dense, 1, rule="all").total
    p_macs = (flops(encoder, group, rule="all").total - i_macs) / INTERLEAVE
    return {
        "i": {"frames_per_second": spread(full), "macs_per_frame": i_macs},
        "p": {"frames_per_second": spread(partly), "macs_per_frame": p_macs},
        "chunk": {"frames_per_second": spread(together), "frames": len(chunk)},
        "side": int(pixels.shape[-1]),
        "dim": model.dim,
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def measure_probing(path: Path, rounds: int) -> dict[str, Any]:
    from everyframe.video import probe
    from everyframe.video.identity import identity

    def look() -> None:
        for _ in range(10):
            probe(path)
            identity(path)

    return {"videos_per_second": per_second(10, look, rounds)}


def stored(dim: int, number: int, dtype: str = "float32") -> Any:
    """Features of a video of 10 minutes that does not exist."""
    from everyframe.features import VideoFeatures

    rows = np.random.default_rng(number).standard_normal((STORED_ROWS, dim), dtype=np.float32)
    return VideoFeatures(
        times=np.arange(STORED_ROWS) / FPS,
        embeddings=(rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(dtype),
        roles=("I" + "P" * INTERLEAVE) * (STORED_ROWS // (INTERLEAVE + 1)),
        video={"path": f"/videos/{number:06}.mp4", "duration_seconds": 600.0, "size_bytes": number,
               "fingerprint": f"{number:064}"},
        model={"id": "made up", "weights_sha256": "none", "dim": dim},
        settings={"encoder": "made up", "fps": FPS},
    )  # fmt: skip


def measure_gathering(model: Any, rounds: int) -> dict[str, Any]:
    """Chunks of a video of 10 minutes, in tables as they come from the cluster, until its features are whole."""
    from everyframe.pipeline import Sampling
    from everyframe.pipeline.decoding import Finished
    from everyframe.pipeline.segments import WHOLE, join
    from everyframe.scale import rows
    from everyframe.scale.gather import Gather, Whole
    from everyframe.scale.work import Task

    encoder, task, feats = (
        reuse(model),
        Task(key="made up", source="/videos/a.mp4", segment=WHOLE),
        stored(model.dim, 0),
    )
    size = BATCH // (INTERLEAVE + 1) * (INTERLEAVE + 1)
    tables = []
    for number, first in enumerate(range(0, STORED_ROWS, size)):
        part = slice(first, first + size)
        chunk = rows.EncodedChunk(
            task=task, number=number, times=feats.times[part], roles=feats.roles[part],
            embeddings=feats.embeddings[part], macs=1.0, decode_seconds=1.0, encode_seconds=1.0,
            decode_node="here", encode_node="here",
        )  # fmt: skip
        tables.append(rows.encoded_table([rows.encoded_row(chunk)]))
    finished = Finished(video=dict(feats.video), end_seconds=600.0)
    # What closes a segment goes through the encoder as it came from the decoder.
    closing = rows.closing_table(rows.Closed(task=task, chunks=len(tables), finished=finished))
    tables.append(rows.encoded_table([each for each in rows.decoded_rows(closing) if isinstance(each, dict)]))

    def gather() -> None:
        gathering = Gather(model.dim)
        gathering.expect([task])
        for table in tables:
            for result in rows.results(table):
                found = gathering.add(result)
                if isinstance(found, Whole):
                    join([found.features], encoder, Sampling(fps=FPS), "float32")
                    return
        sys.exit("the video did not become whole")

    return {"rows_per_second": per_second(STORED_ROWS, gather, 2 * rounds), "dim": model.dim}


def measure_writing(dim: int, folder: Path, rounds: int) -> dict[str, Any]:
    """Into an empty output each round with its manifest, until all is durable; as many a call as the driver gives."""
    from everyframe.scale.listing import Listed
    from everyframe.scale.manifest import Manifest, key_of
    from everyframe.scale.places import open_place
    from everyframe.scale.sinks import Item, open_sink

    videos = [stored(dim, number) for number in range(WRITTEN)]
    items = [
        Item(key=key_of(each), listed=Listed(source=each.video["path"], name=f"{number:06}"), features=each)
        for number, each in enumerate(videos)
    ]
    provenance = {"model": videos[0].model, "settings": videos[0].settings}
    found: dict[str, Any] = {}
    for format in FORMATS:

        def write(format: str = format) -> None:
            out = Path(tempfile.mkdtemp(dir=folder))
            place = open_place(out)
            with Manifest(place) as manifest:
                sink = open_sink(place, format, manifest=manifest, provenance=provenance)
                for first in range(0, len(items), 16):
                    receipt = sink.write(items[first : first + 16])
                    if receipt.error or receipt.failures:
                        sys.exit(f"{format}: {receipt}")
                sink.close()
            shutil.rmtree(out)

        found[format] = {"rows_per_second": per_second(WRITTEN * STORED_ROWS, write, rounds), "dim": dim}
    return found


def measure_streaming(folder: Path, rounds: int) -> dict[str, Any]:
    """`everyframe.features.stream` over files and over a shard of the same videos, shuffled."""
    from everyframe.features import stream
    from everyframe.features.shards import Shard

    place = Path(tempfile.mkdtemp(dir=folder))
    (place / "files").mkdir()
    with Shard() as shard:
        for number in range(WRITTEN):
            feats = stored(512, number, "float16")
            feats.save(place / "files" / f"{number}.npz")
            shard.add(str(number), feats)
        shard.save(place / "features-000000.tar")
    found: dict[str, Any] = {}
    for name, where in (("npz", place / "files"), ("webdataset", place / "features-000000.tar")):
        for window in (None, 10.0):

            def read(where: Path = where, window: float | None = window) -> None:
                for _ in stream(where, window=window):
                    pass

            kind = "whole videos" if window is None else f"windows of {window:g} s"
            found[f"{name}, {kind}"] = {
                "rows_per_second": per_second(WRITTEN * STORED_ROWS, read, rounds), "bytes_per_row": 1024,
            }  # fmt: skip
    shutil.rmtree(place)
    return found


def measure_stages(folder: Path, rounds: int) -> dict[str, Any]:
    """Everything that one core does, in this process."""
    import torch

    torch.set_num_threads(1)
    videos = {size: folder / f"{size_name(size)}.mp4" for size in SIZES}
    found: dict[str, Any] = {
        "decode": measure_decoding({size_name(size): path for size, path in videos.items()}, rounds),
        "decode_others": measure_decoding({codec: folder / f"{codec}.mp4" for codec in CODECS}, rounds),
        "prepare": {},
        "encode": {},
    }
    for name in MODELS:
        model = load_model(name, folder)
        found["prepare"][name] = measure_preparing(videos, model, 2 * rounds)
        found["encode"][name] = measure_encoding(videos[640, 360], model, 2 * rounds)
    found["probe"] = measure_probing(videos[1280, 720], rounds)
    found["gather"] = measure_gathering(model, rounds)
    found["write"] = measure_writing(model.dim, folder, rounds // 2 + 1)
    found["stream"] = measure_streaming(folder, rounds)
    return found


# --- the whole -------------------------------------------------------------------------------------------


class Pace:
    """Listens to a run: how many features were there when, and what the cores did meanwhile."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, int, float]] = []  # clock, features so far, busy seconds of all cores
        self.began = time.perf_counter()

    def __call__(self, event: Any) -> None:
        if type(event).__name__ != "ChunkDone":
            return
        now, before = time.perf_counter(), self.seen[-1][1] if self.seen else 0
        # They come many at a time; what counts is how many there are when a delivery is over.
        if self.seen and now - self.seen[-1][0] < TOGETHER:
            self.seen.pop()
        self.seen.append((now, before + event.frames, busy_seconds()))

    def facts(self) -> dict[str, Any]:
        """features per second: the slope of the line through the deliveries, the last tenth of the features left out.

        An encoder delivers hundreds at a time; a line through all of them is not misled by the one at an end.
        """
        first, last, total = self.seen[0], self.seen[-1], self.seen[-1][1]
        steady = [each for each in self.seen if each[1] <= STEADY * total]
        coarse = len(steady) < 4
        if coarse:
            rate = total / (last[0] - self.began)
        else:
            clock, features, _ = np.array(steady).T
            rate = float(np.polyfit(clock - clock[0], features, 1)[0])
        return {
            "frames": total,
            "deliveries": len(self.seen),
            "coarse": coarse,
            "frames_per_second": rate,
            "cores_busy": (last[2] - first[2]) / max(last[0] - first[0], 1e-9),
            "seconds_until_first": first[0] - self.began,
            "seconds_from_first_to_last": last[0] - first[0],
        }


def busy_seconds() -> float:
    """Of all cores together, since the machine was started."""
    user, nice, system, _, _, irq, softirq = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def run_pipeline(folder: Path, name: str, workers: int, videos: list[str]) -> dict[str, Any]:
    """`scale.encode` with so many decoders and encoders, in this process, on the cores it may use."""
    import ray

    from everyframe import scale
    from everyframe.scale.work import Stages

    model_name, _ = PIPELINES[name]
    encoder = reuse(load_model(model_name, folder))
    out = Path(tempfile.mkdtemp(dir=folder))
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    ray.init(address="local", num_cpus=workers, object_store_memory=1 << 30, **quiet)
    pace = Pace()
    half = Stages(
        decoders=(workers, workers), encoders=(workers, workers), cpus_per_decoder=0.5, cpus_per_encoder=0.5,
        gpus_per_encoder=0,
    )  # fmt: skip
    try:
        report = scale.encode(videos, encoder, out=str(out), fps=FPS, stages=half, listeners=(pace,))
    finally:
        ray.shutdown()
    good = len(list(out.rglob("*.npz")))
    if good < len(videos):
        sys.exit(f"{name}: {good} of {len(videos)} videos were written: {report}")
    shutil.rmtree(out)
    return pace.facts()


def predicted(record: dict[str, Any], name: str, cores: int) -> float:
    """Features per second from the stages alone."""
    from everyframe.scale.capacity import Machine, Rates, Workload, predict

    model, (width, height) = PIPELINES[name]
    encode = record["encode"][model]
    work = Workload(
        hours=1, width=width, height=height, source_fps=SOURCE_FPS, fps=FPS, interleave=INTERLEAVE,
        i_macs=encode["i"]["macs_per_frame"], p_macs=encode["p"]["macs_per_frame"], dim=encode["dim"],
        video_minutes=record["settings"]["pipeline_video_seconds"] / 60, mbits=SIZES[width, height],
    )  # fmt: skip
    here = Machine(name="this one", cores=cores, euros_per_hour=0)
    return predict(work, here, Rates.of_record(record, model), machines=1).frames_per_second


def measure_pipelines(record: dict[str, Any], folder: Path, seconds: float, rounds: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    cores = sorted(os.sched_getaffinity(0))
    clip = record["settings"]["pipeline_video_seconds"]
    for name, (_, size) in PIPELINES.items():
        expected = predicted(record, name, 1)
        # As many videos for two workers as for one: then the second run is half as long.
        count = max(math.ceil(seconds * expected / (clip * FPS)), 8)
        videos = copies(long_name(folder / f"{size_name(size)}.mp4"), folder / f"copies {size_name(size)}", count)
        runs: dict[str, list[dict[str, Any]]] = {"1": [], "2": []}
        for _ in range(rounds):
            for workers in (1, 2) if len(cores) > 1 else (1,):
                asked = {"name": name, "workers": workers, "videos": videos}
                runs[str(workers)].append(in_process("pipeline", folder, cores[:workers], asked))
                rate = runs[str(workers)][-1]["frames_per_second"]
                print(f"{name}, {workers} worker(s): {rate:.1f} features/s", file=sys.stderr, flush=True)
        found[name] = {"videos": count, "runs": runs, "predicted": {"1": expected}}
        speed = {key: statistics.median(run["frames_per_second"] for run in own) for key, own in runs.items() if own}
        found[name]["frames_per_second"] = speed
        if "2" in speed:
            found[name]["predicted"]["2"] = predicted(record, name, 2)
            found[name]["efficiency"] = speed["2"] / (2 * speed["1"])
        most = max(speed)
        found[name]["share_of_predicted"] = speed[most] / found[name]["predicted"][most]
    return found


# --- processes -------------------------------------------------------------------------------------------


def in_process(what: str, folder: Path, cores: list[int], asked: dict[str, Any]) -> dict[str, Any]:
    """A measurement in a process of its own that may use `cores`, with what it starts; one thread for each library."""
    command = [sys.executable, __file__, "--child", what, "--keep", str(folder), "--asked", json.dumps(asked)]
    command += ["--cores", ",".join(map(str, cores))]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    environment = {**os.environ, **threads, "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def child(options: argparse.Namespace) -> None:
    os.sched_setaffinity(0, {int(core) for core in options.cores.split(",")})
    asked = json.loads(options.asked)
    if options.child == "stages":
        found = measure_stages(options.keep, asked["rounds"])
    else:
        found = run_pipeline(options.keep, asked["name"], asked["workers"], asked["videos"])
    print(json.dumps(found))


def machine_facts() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": names[0] if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(memory),
    }


def measure(folder: Path, quick: bool) -> dict[str, Any]:
    import ray
    import torch

    from everyframe.version import package_version

    seconds, times = (4, 2) if quick else (15, 4)
    for size, mbits in SIZES.items():
        path = folder / f"{size_name(size)}.mp4"
        if not path.exists():
            make_video(path, size, mbits, seconds)
            repeat(path, long_name(path), times)
    for codec in CODECS:
        path = folder / f"{codec}.mp4"
        if not path.exists():
            make_video(path, (1280, 720), SIZES[1280, 720], seconds, codec)
    load_model("ViT-B/32", folder)
    record: dict[str, Any] = {
        "benchmark": "scale",
        "quick": quick,
        "machine": machine_facts(),
        "versions": {
            "everyframe": package_version(), "python": platform.python_version(), "torch": torch.__version__,
            "ray": ray.__version__,
        },
        "load_before": round(os.getloadavg()[0], 2),
        "settings": {
            "source_fps": SOURCE_FPS, "fps": FPS, "interleave": INTERLEAVE, "drop": DROP, "batch": BATCH,
            "video_seconds": seconds, "pipeline_video_seconds": times * seconds, "stored_rows": STORED_ROWS,
        },
    }  # fmt: skip
    record |= in_process("stages", folder, sorted(os.sched_getaffinity(0))[-1:], {"rounds": 2 if quick else 7})
    record["pipeline"] = measure_pipelines(record, folder, 20 if quick else 90, 1)
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="short videos, few rounds; for trying it")
    parser.add_argument("--keep", type=Path, help="where videos and models are made, or taken from")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "scale.json")
    for name in ("--child", "--asked", "--cores"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        record = measure(folder, options.quick)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for name, found in record["pipeline"].items():
        print(name, json.dumps({key: found[key] for key in found if key != "runs"}))


if __name__ == "__main__":
    main()
