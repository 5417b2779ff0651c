"""The places that benchmarks/startup.py, threads.py and parallel_files.py fill; called by render_results.py."""

from __future__ import annotations

import statistics
from typing import Any

from records import read, table
from ways import START_AIMS, bound

NAMES = {
    "everyframe info": "`everyframe info` of a clip",
    "first feature": "`everyframe encode` of a clip of 4 s with the bundled model, to the feature file",
    "everyframe ground": "`everyframe ground` of a feature file, which needs the tokenizer",
}
WAYS = {
    "one": "one thread",
    "all": "a thread per core",
    "passive": "the same, OMP_WAIT_POLICY=passive",
    "brief": "the same, GOMP_SPINCOUNT=10000",
}
SHOWN_SHARE = 0.01  # of what is installed: distributions below it share a row


def beside(record: dict[str, Any]) -> str:
    """Cores, and what others used of them."""
    load = "unknown" if record["other_load"] is None else f"{record['other_load']:.2f}"
    return f"{record['cores']} cores, other load {load}"


def times_table() -> str:
    record = read("startup")
    torch = statistics.median(record["seconds"]["import torch"])
    rows = []
    for name, seconds in record["seconds"].items():
        median = statistics.median(seconds)
        aim = f"{START_AIMS[name]:g} s" if name in START_AIMS else ""
        spread = f"{median:.2f} ({min(seconds):.2f} to {max(seconds):.2f})"
        rows.append([NAMES.get(name, f"`{name}`"), spread, f"{median / torch:.2f}x", aim])
    head = ["a process of its own", "seconds (min to max)", "of `import torch`", "aim"]
    turns = len(record["seconds"]["import torch"])
    return f"{table(head, rows)}\n\n{turns} turns, {beside(record)}, files in the system's cache."


def footprint_table() -> str:
    record = read("startup")
    if "footprint" not in record:
        return "Not measured: `python benchmarks/startup.py --footprint`."
    sizes = {name: each["bytes"] for name, each in record["footprint"]["distributions"].items()}
    total = sum(sizes.values())
    large = sorted((name for name in sizes if sizes[name] >= SHOWN_SHARE * total), key=lambda name: -sizes[name])
    rows = [[name, f"{sizes[name] / 2**20:.1f}"] for name in large]
    rest = [name for name in sizes if name not in large]
    rows.append([f"{len(rest)} others", f"{sum(sizes[name] for name in rest) / 2**20:.1f}"])
    own = next(size for name, size in sizes.items() if name == "everyframe")
    return (
        f"{table(['distribution', 'MiB'], rows)}\n\n"
        f"Together {total / 2**20:.0f} MiB, {(total - sizes.get('torch', 0)) / 2**20:.0f} without torch; everyframe "
        f"itself {own / 2**20:.1f}, its wheel {record['footprint']['wheel_bytes'] / 2**20:.1f}. {memory_sentence()}"
    )


def memory_sentence() -> str:
    """MiB of peak memory per further hour of video, from benchmarks/memory.py."""
    parts = []
    for name, what in (("memory", "reading"), ("memory_encode", "encoding, whose features stay in memory")):
        ts = next(row for row in read(name)["results"] if row["container"] == "ts")
        hours = (ts["long"]["minutes"] - ts["short"]["minutes"]) / 60
        more = ts["long"]["peak_rss_mib"] - ts["short"]["peak_rss_mib"]
        parts.append(f"{more / hours:+.1f} MiB {what}")
    return f"Memory per further hour of video (MPEG-TS): {' and '.join(parts)}."


def parallel_table() -> str:
    record = read("parallel_files")
    rows = []
    for result in record["results"].values():
        width, height = result["size"]
        name = f"{result['files']} x {result['seconds']:g} s of {width}x{height}, {result['about']}"
        for count, seconds in result["decoders"].items():
            pairs = zip(result["decoders"]["1"], seconds, strict=True)
            ratio = statistics.median(one / several for one, several in pairs)
            median, stages = statistics.median(seconds), result["stages"]
            rows.append(
                [
                    name,
                    f"{stages['read_seconds']:.2f} / {stages['model_seconds']:.2f}",
                    count,
                    f"{median:.2f}",
                    f"{ratio:.2f}x",
                    f"{100 * (median / bound(result) - 1):+.0f} %",
                ]
            )
            name = ""
    head = ["files", "reading / model alone, s", "decoders", "whole, s", "of one decoder", "over the bound"]
    first = next(iter(record["results"].values()))
    return (
        f"{table(head, rows)}\n\n{record['rounds']} rounds, {beside(first)}. The bound is the longer stage, or the "
        "processor time of both shared among the cores, whichever is more."
    )


def threads_table() -> str:
    record = read("threads")
    rows = []
    for model, result in record["models"].items():
        for name, title in WAYS.items():
            cells = []
            for found in result["frames_per_second"].values():
                ratio = statistics.median(own / one for own, one in zip(found[name], found["one"], strict=True))
                cells += [f"{statistics.median(found[name]):.1f}", f"{ratio:.2f}x"]
            rows.append([f"{model}, {title}", *cells])
    head = ["", "alone, frames/s", "of one thread", "beside a busy process", "of one thread"]
    first = next(iter(record["models"].values()))
    return f"{table(head, rows)}\n\nBatches of 16 frames, {record['rounds']} rounds, {beside(first)}."


RENDERERS = {
    "startup_times": times_table,
    "startup_footprint": footprint_table,
    "parallel_files": parallel_table,
    "threads": threads_table,
}
