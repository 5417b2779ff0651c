"""The places that benchmarks/paths.py fills; called by render_results.py."""

from __future__ import annotations

import statistics
from typing import Any

from records import read, table


def cosines(row: dict[str, Any] | None) -> str:
    return "" if row is None else f"{row['mean']:.4f} / {row['p5']:.4f} / {row['min']:.4f}"


def paths_table() -> str:
    """Fidelity and accuracy of every path and encoder."""
    record = read("paths")
    random = {(row["path"], row["encoder"]): row for row in record["random"]}
    rows = []
    for row in record["bundled"]:
        cells = [row["encoder"], row["precision"], cosines(row["fidelity"])]
        cells.append(cosines(random.get((row["path"], row["encoder"]))))
        for each in row["accuracy"]:
            interval = "" if each["low"] is None else f" ({each['low']:+.2f} to {each['high']:+.2f})"
            change = "" if row["fidelity"] is None else f", {each['points']:+.2f}{interval}"
            cells.append(f"{100 * each['recall']:.1f}{change}")
        rows.append(cells)
    rows.sort(key=lambda cells: cells[0])
    queries = record["bundled"][0]["accuracy"][0]["queries"]
    ious = [f"R@1 IoU {each['iou']}, points against float32 (95 %)" for each in record["bundled"][0]["accuracy"]]
    head = ["encoder", "precision", "cosine to float32, bundled: mean / 5th pct / least", "the same, random ViT-B/16"]
    return f"{table([*head, *ious], rows)}\n\n{queries} queries on {record['videos']} held-out synthetic videos."


def ratio(seconds: dict[str, list[float]]) -> float:
    return statistics.median(a / b for a, b in zip(seconds["bfloat16"], seconds["int8"], strict=True))


def int8_speed() -> str:
    """int8 over bfloat16, layer by layer and for the whole tower."""
    record = read("paths")
    layers: dict[str, dict[int, float]] = {}
    for row in record["speed"]["layers"]:
        layers.setdefault(row["layer"], {})[row["rows"]] = ratio(row["seconds"])
    counts = list(next(iter(layers.values())))
    rows = [[name, *(f"{found[count]:.2f}x" for count in counts)] for name, found in layers.items()]
    tower = record["speed"]["tower"]
    load = "unknown" if record["other_load"] is None else f"{record['other_load']:.2f}"
    return (
        f"{table(['layer of ViT-B/16', *(f'{count} rows' for count in counts)], rows)}\n\n"
        f"The whole of ViT-B/16, {tower['frames']} frames: {ratio(tower['seconds']):.2f}x. One thread, the two taking "
        f"turns, other load {load}."
    )


RENDERERS = {"paths": paths_table, "int8_speed": int8_speed}
