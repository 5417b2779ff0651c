"""The places that benchmarks/search.py, negatives.py and serve_load.py fill; called by render_results.py."""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

from records import read, table


def latencies(name: str, kind: str, row: dict[str, Any]) -> list[str]:
    memory = f"{row['memory_gb']:.2f} GB" if "memory_gb" in row else ""
    times = [f"{row[share]:.1f}" for share in ("p50", "p95", "p99")]
    recall = f"{row['recall']:.3f}" if "recall" in row else "1"
    return [name, kind, recall, *times, f"{row['load']:.1f}", memory]


def search_tables(name: str) -> str:
    record = read(name)
    settings, build, cores = record["settings"], record["build"], record["machine"]["cores"]
    rows = []
    for threads, own in record["library"].items():
        for what in ("frames", "moments"):
            for kind, row in own[what].items():
                memory = {"memory_gb": own["peak_mb"] / 1024} if what == "moments" else {}
                rows.append(latencies(f"library, {what}, {threads}", kind, {**row, **memory}))
    for kind, row in record["exact"].items():
        rows.append(latencies("library, moments, exact=True", kind, row))
    left_out = []
    for other, row in record.get("others", {}).items():
        if isinstance(row, dict):
            rows.append(latencies(f"{other}, frames", "both", row))
        elif isinstance(row, str):
            left_out.append(f"{other}: {row}")
    head = ["", "queries", "recall@10", "p50 ms", "p95 ms", "p99 ms", "load before", "memory"]
    hour = statistics.median(record["add_an_hour_seconds"])
    lines = [
        f"{settings['frames']:,} frames of {settings['dim']} dimensions ({settings['frames'] / 10800:.0f} hours), "
        f"{settings['queries']} queries of each kind, {cores} cores:",
        "",
        table(head, rows),
        "",
        f"Adding an hour of video: {hour:.2f} s. Making the library: {build['add_all_seconds']:.0f} s to add, "
        f"{build['index_seconds']:.0f} s for the index (other load {build['index_other_load']:.1f}). On disk: "
        f"{record['disk_mb'] / 1024:.2f} GB; the embeddings alone are "
        f"{settings['frames'] * settings['dim'] * 2 / 2**30:.2f} GB.",
    ]
    if left_out:
        lines += ["", f"Left out: {'; '.join(left_out)}."]
    return "\n".join(lines)


def negatives_table() -> str:
    record = read("negatives")
    measures = ("precision", "over both", "over neither", "both in top 10")
    rows = [[weight, *(f"{row[each]:.3f}" for each in measures)] for weight, row in record["weights"].items()]
    sets = len(record["settings"]["seeds"])
    return f"{table(['weight', *measures], rows)}\n\n{record['pairs']} pairs of objects in {sets} sets of videos."


def load_table() -> str:
    record = read("serve_load")
    settings = record["settings"]
    many = f"{settings['clients']} clients"
    ways = {
        "closed_loop": f"{many}, no pause",
        "think_1s": f"{many}, 1 s pause",
        "think_5s": f"{many}, 5 s pause",
        "one_client": "one client",
    }
    rows = []
    for memory in ("nothing remembered", "vectors remembered", "answers remembered"):
        for way, name in ways.items():
            row = record[memory][way]
            times = [f"{row[share]:.0f}" for share in ("p50_ms", "p95_ms", "p99_ms")]
            cpu = f"{row['cpu_ms_per_request']:.0f}" if "cpu_ms_per_request" in row else ""
            rows.append([memory, name, f"{row['per_second']:.0f}", *times, str(row["errors"]), cpu])
    head = ["", "", "requests/s", "p50 ms", "p95 ms", "p99 ms", "errors", "CPU ms each"]
    peak = max(record[memory]["peak_memory_mb"] for memory in ("nothing remembered", "answers remembered"))
    return (
        f"{settings['frames']:,} frames of 512 dimensions, {record['machine']['cores']} cores that server and clients "
        f"share, load {record['load_before']:.1f} before:\n\n{table(head, rows)}\n\n"
        f"Peak memory of the server: {peak} MB."
    )


RENDERERS = {
    "search": partial(search_tables, "search"),
    "search_10m": partial(search_tables, "search_10m"),
    "negatives": negatives_table,
    "serve_load": load_table,
}
