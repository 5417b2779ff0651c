"""Search in a library of made-up frames: recall, latency, memory, building; NumPy and FAISS on the same frames.

    python benchmarks/search.py --frames 1000000 [--dim 512] [--keep DIR] [--out benchmarks/results/search.json]
    python benchmarks/search.py --frames 10000000 --keep DIR --queries 100 --out benchmarks/results/search_10m.json
    python benchmarks/search.py --frames 1000000 --keep DIR --build-only     # a library for other measurements

--keep DIR: make the library there, or use the one that is there; its build is then not measured again.

The frames. Videos of an hour at 3 frames/s, as an image model sees them (`World`): all rows share a direction, as
CLIP's do (two rows of different videos have a cosine of 0.5); what differs lies in 128 directions of falling weight;
a video has a topic; scenes of about 8 s (log-normal) are cuts away from each other, and one in three goes back to a
place of one of the last six; within a scene the content drifts (a random walk), and every frame has noise of its own.
Neighbours have a cosine of 0.98.

The queries. "image": a frame of a place in the library, with other noise and drift. "text": a mixture of the content
of up to three places and of things that are nowhere, mostly outside of where frames are: cosines of 0.18 on average
with a standard deviation of 0.03 over the frames, as CLIP's texts have. These are the hard ones for an index.

Reported: recall@10 of the nearest frames, and of moments, each against the exact search; latencies after a warm-up,
of a process that only searches, on one core and on all; its peak memory (VmHWM); seconds to add an hour; seconds to
build the index; bytes on disk. NumPy and FAISS search the same frames for the same queries; what does not fit in
--memory-gb is left out, and said so.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from everyframe.features import VideoFeatures
from everyframe.library import Library
from everyframe.library.query import direction
from everyframe.library.reading import batches, nearest
from everyframe.library.search import ArchiveHit
from everyframe.version import package_version

HOUR, FPS, RANK, TOP = 10_800, 3.0, 128, 10
AGAIN = 500  # candidates that FAISS ranks again


class World:
    """Features of made-up videos and queries for them; the same seed gives the same ones."""

    def __init__(self, dim: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        basis = np.linalg.qr(rng.standard_normal((dim, min(RANK, dim - 2) + 2)))[0].T.astype(np.float32)
        self.shared, self.gap, content = basis[0], basis[1], basis[2:]
        scale = np.arange(1, len(content) + 1, dtype=np.float32) ** -0.5
        self.content = content * (scale / np.linalg.norm(scale))[:, None]
        self.dim, self.rank, self.seed = dim, len(content), seed

    def places(self, number: int, frames: int = HOUR) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
        """(coordinates [frames, rank] before drift, scene of each frame, the rest of the randomness) of a video."""
        rng = np.random.default_rng([self.seed, number])
        topic = rng.standard_normal(self.rank, dtype=np.float32)
        lengths: list[int] = []
        while sum(lengths) < frames:
            lengths.append(max(2, int(rng.lognormal(np.log(8), 0.7) * FPS)))
        scenes = np.repeat(np.arange(len(lengths)), lengths)[:frames]
        centres = rng.standard_normal((len(lengths), self.rank), dtype=np.float32)
        for scene in range(1, len(lengths)):
            if rng.random() < 1 / 3:
                earlier = centres[rng.integers(max(0, scene - 6), scene)]
                centres[scene] = earlier + 0.15 * rng.standard_normal(self.rank, dtype=np.float32)
        return 0.5 * topic + 0.8 * centres[scenes], scenes, rng

    def rows(self, coordinates: np.ndarray, scenes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Unit rows [frames, dim] with drift and noise."""
        steps = 0.03 * rng.standard_normal(coordinates.shape, dtype=np.float32)
        drift = np.cumsum(steps, axis=0)
        drift -= drift[np.searchsorted(scenes, scenes)]
        rows = (coordinates + drift) @ self.content + 0.9 * self.shared
        rows += rng.standard_normal(rows.shape, dtype=np.float32) * np.float32(0.12 / np.sqrt(self.dim))
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def video(self, number: int, frames: int = HOUR) -> VideoFeatures:
        return VideoFeatures(
            times=np.arange(frames) / FPS,
            embeddings=self.rows(*self.places(number, frames)).astype(np.float16),
            roles=("IPPCP" * (frames // 5 + 1))[:frames],
            video={"path": f"/archive/{number:05}.mp4", "duration_seconds": frames / FPS, "fingerprint": f"{number}"},
            model={"id": "made up", "weights_sha256": "none", "dim": self.dim},
            settings={"encoder": "made up", "fps": FPS},
        )

    def queries(self, kind: str, count: int, videos: int) -> np.ndarray:
        """float32 [count, dim] of length one."""
        rng = np.random.default_rng([self.seed, 1 << 20, kind == "text"])
        found = np.empty((count, self.dim), np.float32)
        for index in range(count):
            picked = []
            for _ in range(1 if kind == "image" else int(rng.integers(1, 4))):
                coordinates, _, _ = self.places(int(rng.integers(videos)), 600)
                picked.append(coordinates[rng.integers(600)])
            if kind == "image":
                place = np.repeat(picked[0][None], 9, axis=0)
                found[index] = self.rows(place, np.zeros(9, np.intp), rng)[-1]
                continue
            mixed = np.mean(picked, axis=0) + 0.7 * rng.standard_normal(self.rank).astype(np.float32)
            content = mixed @ self.content
            noise = rng.standard_normal(self.dim).astype(np.float32) / np.sqrt(self.dim)
            found[index] = 0.18 * content / np.linalg.norm(content) + 0.25 * self.shared + 0.6 * self.gap + 0.7 * noise
        return found / np.linalg.norm(found, axis=1, keepdims=True)


# --- the library -----------------------------------------------------------------------------------------


def build(folder: Path, world: World, videos: int) -> dict[str, Any]:
    """Make the library, and say what that took; what making up the frames takes does not count."""
    making = 0.0

    def made() -> Iterator[VideoFeatures]:
        nonlocal making
        for number in range(videos):
            begin = time.perf_counter()
            feats = world.video(number)
            making += time.perf_counter() - begin
            yield feats
            if number % 100 == 99:
                print(f"{number + 1} of {videos} videos", file=sys.stderr, flush=True)

    with Library(folder) as library:
        begin = time.perf_counter()
        for _ in library.add_all(made()):
            pass
        adding = time.perf_counter() - begin - making
        load = os.getloadavg()[0]
        begin = time.perf_counter()
        library.refresh(wait=True)
        return {
            "add_all_seconds": round(adding, 1),
            "index_seconds": round(time.perf_counter() - begin, 1),
            "index_other_load": round(max(load - 1, 0.0), 1),
        }


def add_an_hour(folder: Path, world: World, videos: int) -> list[float]:
    """Seconds of `add` for an hour of video, three times; they are removed again."""
    taken = []
    with Library(folder) as library:
        for number in range(3):
            feats = world.video(videos + 1000 + number)
            begin = time.perf_counter()
            added = library.add(feats)
            taken.append(round(time.perf_counter() - begin, 3))
            library.remove(added.id)
    return taken


def exact_frames(folder: Path, queries: np.ndarray) -> np.ndarray:
    """Keys of the nearest rows [Q, TOP]: video and time, from all rows in float32."""
    best = np.full((len(queries), TOP), -np.inf, np.float32)
    keys = np.zeros((len(queries), TOP), np.int64)
    with Library(folder) as library:
        table = library._store.frames(library.collection().id)
        for video, time_, embedding in batches(table):
            rows = embedding.astype(np.float32)
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
            scores = np.concatenate([best, queries @ rows.T], axis=1)
            names = np.concatenate([keys, np.broadcast_to(key(video, time_), (len(queries), len(video)))], axis=1)
            order = np.argpartition(-scores, TOP, axis=1)[:, :TOP]
            best, keys = np.take_along_axis(scores, order, 1), np.take_along_axis(names, order, 1)
    return keys


def key(video: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """One number for a frame: ids are random, so that their low bits tell videos apart."""
    return (video << 20) ^ np.round(seconds * FPS).astype(np.int64)


def recall(found: list[np.ndarray], truth: np.ndarray) -> float:
    """Of the first of the queries, if not all of them were asked."""
    pairs = zip(found, truth[: len(found)], strict=True)
    return float(np.mean([len(set(own.tolist()) & set(exact.tolist())) / TOP for own, exact in pairs]))


# --- a process that only searches ------------------------------------------------------------------------


def timed(work: Callable[[np.ndarray], Any], queries: np.ndarray, warm_up: int = 20) -> tuple[list[Any], dict]:
    """What `work` gives for each query, and its milliseconds after a warm-up with other queries like them."""
    for query in queries[:warm_up]:
        work(query + 0.01)
    load, taken, results = os.getloadavg()[0], [], []
    for query in queries:
        begin = time.perf_counter()
        results.append(work(query))
        taken.append(1000 * (time.perf_counter() - begin))
    return results, {
        **{f"p{share}": round(float(np.percentile(taken, share)), 2) for share in (50, 95, 99)},
        "load": round(load, 1),
    }


def search_alone(folder: Path, queries_file: Path) -> None:
    """Print JSON: latencies, what was found, peak memory. The child of `measure`."""
    queries = dict(np.load(queries_file))
    record: dict[str, Any] = {"frames": {}, "moments": {}, "found": {}, "hits": {}}
    with Library(folder) as library:
        collection = library.collection()
        table = library._store.frames(collection.id)
        for kind, vectors in queries.items():
            near, record["frames"][kind] = timed(
                lambda vector: nearest(table, direction(vector, collection.dim, ""), TOP, among=collection.num_frames),
                vectors,
            )
            record["found"][kind] = [key(each.video, each.time).tolist() for each in near]
            hits, record["moments"][kind] = timed(lambda vector: library.search(vector, top=TOP), vectors)
            record["hits"][kind] = [spans(each) for each in hits]
    status = Path("/proc/self/status").read_text()
    record["peak_mb"] = int(status.split("VmHWM:")[1].split()[0]) // 1024
    print(json.dumps(record))


def measure(folder: Path, queries: dict[str, np.ndarray], *, one_core: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary, "queries.npz")
        np.savez(file, **queries)
        command = [sys.executable, __file__, "--alone", str(file), "--keep", str(folder)]
        command += ["--one-core"] if one_core else []
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def exact_moments(folder: Path, queries: np.ndarray) -> tuple[list[list[tuple]], dict]:
    with Library(folder) as library:
        hits, taken = timed(lambda vector: library.search(vector, top=TOP, exact=True), queries, warm_up=1)
    return [spans(each) for each in hits], taken


def spans(hits: list[ArchiveHit]) -> list[tuple[int, float]]:
    return [(hit.id, round(hit.start, 3)) for hit in hits]


def moment_recall(found: list[list], truth: list[list]) -> float:
    pairs = zip(found[: len(truth)], truth, strict=True)
    return float(np.mean([len({tuple(hit) for hit in own} & set(exact)) / len(exact) for own, exact in pairs]))


# --- the others ------------------------------------------------------------------------------------------


def others(folder: Path, queries: np.ndarray, truth: np.ndarray, memory_gb: float, threads: int) -> dict[str, Any]:
    """NumPy and FAISS over the same rows: latencies of TOP frames of one query at a time, recall, what they build."""
    with Library(folder) as library:
        collection = library.collection()
        size, dim = collection.num_frames, collection.dim
        table = library._store.frames(collection.id)
        record: dict[str, Any] = {"threads": threads}
        gigabytes = size * dim * 2 / 1e9
        if gigabytes > memory_gb:
            return {"left out": f"the rows alone take {gigabytes:.1f} GB, more than --memory-gb {memory_gb}"}
        rows, keys, lengths = np.empty((size, dim), np.float16), np.empty(size, np.int64), np.empty(size, np.float32)
        past = 0
        for video, seconds, embedding in batches(table):
            rows[past : past + len(video)], keys[past : past + len(video)] = embedding, key(video, seconds)
            lengths[past : past + len(video)] = np.linalg.norm(embedding.astype(np.float32), axis=1)
            past += len(video)

    def blocks(vector: np.ndarray) -> np.ndarray:
        scores = np.concatenate([rows[b : b + 8192].astype(np.float32) @ vector for b in range(0, size, 8192)])
        return keys[np.argpartition(-scores / lengths, TOP)[:TOP]]

    few = queries[: min(len(queries), 20)]
    found, taken = timed(blocks, few, warm_up=1)
    record["NumPy, float16 in blocks"] = {
        **taken,
        "recall": recall(found, truth),
        "memory_gb": round(gigabytes, 2),
    }
    if 2 * gigabytes > memory_gb:
        record["NumPy, float32"] = record["FAISS flat"] = f"left out: {2 * gigabytes:.1f} GB"
    else:
        wide = rows / lengths[:, None]

        def product(vector: np.ndarray) -> np.ndarray:
            scores = wide @ vector
            return keys[np.argpartition(-scores, TOP)[:TOP]]

        found, taken = timed(product, few, warm_up=2)
        record["NumPy, float32"] = {
            **taken,
            "recall": recall(found, truth),
            "memory_gb": round(2 * gigabytes, 2),
        }
        del wide
    try:
        import faiss
    except ImportError:
        return {**record, "FAISS": "left out: faiss-cpu is not installed"}
    faiss.omp_set_num_threads(threads)
    if 3 * gigabytes <= memory_gb:
        index = faiss.IndexFlatIP(dim)
        for first in range(0, size, 65536):
            index.add(rows[first : first + 65536] / lengths[first : first + 65536, None])
        found, taken = timed(lambda vector: keys[index.search(vector[None], TOP)[1][0]], few, warm_up=2)
        record["FAISS flat"] = {
            **taken,
            "recall": recall(found, truth),
            "memory_gb": round(2 * gigabytes, 2),
        }
        del index
    parts = int(4 * np.sqrt(size)) if size < 2_000_000 else 4096
    for name, factory, bytes_each in (("IVF-SQ8", f"IVF{parts},SQ8", dim), ("IVF-PQ64", f"IVF{parts},PQ64", 64)):
        if gigabytes + size * bytes_each / 1e9 > memory_gb:
            record[f"FAISS {name}"] = f"left out: {gigabytes + size * bytes_each / 1e9:.1f} GB with the rows"
            continue
        record[f"FAISS {name}"] = faiss_parts(faiss, factory, (rows, lengths, keys), queries, truth, bytes_each)
    return record


def faiss_parts(
    faiss: Any,
    factory: str,
    stored: tuple[np.ndarray, np.ndarray, np.ndarray],
    queries: np.ndarray,
    truth: np.ndarray,
    width: int,
) -> dict[str, Any]:
    """An IVF index of which `AGAIN` rows are ranked again by the stored rows, as the library does.

    The fewest parts that reach a recall of 0.97, or the most that are tried. stored: rows, their lengths and keys.
    """
    rows, lengths, keys = stored
    begin = time.perf_counter()
    index = faiss.index_factory(rows.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    few = np.sort(np.random.default_rng(0).choice(len(rows), min(len(rows), 40 * index.nlist), replace=False))
    index.train(rows[few] / lengths[few, None])
    for first in range(0, len(rows), 65536):
        index.add(rows[first : first + 65536] / lengths[first : first + 65536, None])
    built = time.perf_counter() - begin

    def ranked(vector: np.ndarray) -> np.ndarray:
        near = index.search(vector[None], AGAIN)[1][0]
        near = near[near >= 0]
        scores = rows[near].astype(np.float32) @ vector / lengths[near]
        return keys[near[np.argsort(-scores)[:TOP]]]

    for probes in (8, 16, 32, 64, 128, 256):
        index.nprobe = probes
        found, taken = timed(ranked, queries)
        reached = recall(found, truth)
        if reached >= 0.97:
            break
    memory = round(len(rows) * (width + 8) / 1e9, 2)
    return {**taken, "recall": reached, "probes": probes, "build_seconds": round(built, 1), "memory_gb": memory}


def size_on_disk(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    world, videos = World(options.dim), max(1, round(options.frames / HOUR))
    facts = folder.with_name(folder.name + ".build.json")
    if not facts.exists():
        facts.write_text(json.dumps(build(folder, world, videos)) + "\n", encoding="utf-8")
    built = json.loads(facts.read_text(encoding="utf-8"))
    if options.build_only:
        return built
    queries = {kind: world.queries(kind, options.queries, videos) for kind in ("image", "text")}
    together = np.concatenate(list(queries.values()))
    truth = dict(zip(queries, np.split(exact_frames(folder, together), 2), strict=True))
    record: dict[str, Any] = {
        "benchmark": "search",
        "settings": {
            "frames": videos * HOUR, "dim": options.dim, "queries": options.queries, "top": TOP,
            "exact_moments": options.exact_moments,
        },
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": {"everyframe": package_version(), "numpy": np.__version__, "lancedb": _version("lancedb")},
        "build": built,
        "disk_mb": size_on_disk(folder) // 2**20,
        "add_an_hour_seconds": add_an_hour(folder, world, videos),
        "library": {},
    }  # fmt: skip
    with Library(folder) as library:
        state = library.index_state()
        record["index"] = {"kind": state.kind, "indexed": state.indexed, "frames": state.frames}
    exact = {kind: exact_moments(folder, vectors[: options.exact_moments]) for kind, vectors in queries.items()}
    for name in ("one core", "all cores"):
        own = measure(folder, queries, one_core=name == "one core")
        found, hits = own.pop("found"), own.pop("hits")
        for kind in queries:
            own["frames"][kind]["recall"] = recall([np.array(each) for each in found[kind]], truth[kind])
            own["moments"][kind]["recall"] = moment_recall(hits[kind], exact[kind][0])
        record["library"][name] = own
        print(name, json.dumps(own), file=sys.stderr, flush=True)
    record["exact"] = {kind: taken for kind, (_, taken) in exact.items()}
    if options.others:
        both = np.concatenate(list(truth.values()))
        record["others"] = others(folder, together, both, options.memory_gb, os.cpu_count() or 1)
    return record


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


def say(record: dict[str, Any]) -> None:
    print(f"{record['settings']['frames']} frames of {record['settings']['dim']} dimensions, {record['disk_mb']} MB")
    added = statistics.median(record["add_an_hour_seconds"])
    print(f"build {record['build']}; adding an hour {added:.2f} s; index {record['index']}")
    print("\n| | query | recall@10 | p50 ms | p95 ms | p99 ms | load |\n| --- | --- | --- | --- | --- | --- | --- |")
    for cores, own in record["library"].items():
        for what in ("frames", "moments"):
            for kind, row in own[what].items():
                cells = (f"{row['recall']:.3f}", row["p50"], row["p95"], row["p99"], row["load"])
                print(f"| {what}, {cores} | {kind} | {' | '.join(map(str, cells))} |")
        print(f"| peak memory, {cores} | | {own['peak_mb']} MB |")
    for name, row in record.get("others", {}).items():
        print(f"| {name} | {row} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--queries", type=int, default=200, help="of each kind")
    parser.add_argument("--exact-moments", type=int, default=20, help="searches of moments compared with exact ones")
    parser.add_argument("--keep", type=Path, help="a folder for the library; a temporary one by default")
    parser.add_argument("--memory-gb", type=float, default=8.0, help="for NumPy and FAISS")
    parser.add_argument("--no-others", dest="others", action="store_false", help="without NumPy and FAISS")
    parser.add_argument("--build-only", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--alone", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--one-core", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        if options.one_core:  # before LanceDB starts its threads
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        search_alone(options.keep, options.alone)
        return
    with tempfile.TemporaryDirectory() as temporary:
        record = run(options, options.keep or Path(temporary, "library"))
    if options.build_only:
        print(record)
        return
    say(record)
    if options.out is not None:
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
