"""The place that benchmarks/decode.py fills; called by render_results.py."""

from __future__ import annotations

import statistics
from typing import Any

from records import read

WAYS = {"pyav": "PyAV loop", "opencv": "OpenCV", "torchcodec": "torchcodec"}


def faster(row: dict[str, Any], way: str) -> str:
    """How many times as fast as `way` ours is, within rounds."""
    if way not in row["seconds"]:
        return "not installed"
    pairs = zip(row["seconds"][way], row["seconds"]["everyframe"], strict=True)
    return f"{statistics.median(other / own for other, own in pairs):.2f}x"


def decode_table() -> str:
    record = read("decode")
    lines = [
        "| video | threads | per second | left out | everyframe, frames/s of source | ms per returned frame | "
        + " | ".join(f"faster than {name}" for name in WAYS.values())
        + " |",
        "|" + " --- |" * (6 + len(WAYS)),
    ]
    for row in record["rows"]:
        own = statistics.median(row["seconds"]["everyframe"])
        cells = [
            row["video"],
            str(row["threads"]),
            f"{row['fps']:g}",
            f"{100 * row['left_out'] / row['frames']:.0f} %",
            f"{row['frames'] / own:.0f}",
            f"{1000 * own / row['returned']:.0f}",
            *(faster(row, way) for way in WAYS),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items() if name != "everyframe")
    head = f"{record['rounds']} rounds in turns, {record['machine']['cores']} cores, {versions}:"
    return "\n".join([head, "", *lines, "", *refused(record["no_options"])])


def refused(record: dict[str, Any]) -> list[str]:
    """What is no option, and why."""
    lines = []
    for codec, row in record["loop_filter"].items():
        pairs = zip(row["seconds"]["all"], row["seconds"]["none"], strict=True)
        saved = 1 - statistics.median(without / having for without, having in pairs)
        cosine = row["cosine"]["all"]
        lines.append(
            f"Without the loop filter a full decode of {codec} takes {100 * saved:.0f} % less time; cosine of the "
            f"bundled model's features to those with it: {cosine['mean']:.4f} on average, {cosine['min']:.4f} at least."
        )
    full, small = (statistics.median(record["scaling_ms"][name]) for name in ("full", "reduced"))
    lines.append(
        f"From a decoded frame to the model's pixels: {full:.2f} ms as it is, {small:.2f} ms where libswscale "
        "reduces the picture first."
    )
    return lines


RENDERERS = {"decode": decode_table}
