"""The ablation's tables as text, from the record that `Ablation.as_dict` makes: for terminals and for documents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

TITLES = {
    "methods": "Table 1 of the paper",
    "interleave": "Number of P-frames after each I-frame",
    "reduction": "What P-frames are made of",
    "drop": "Share of patches dropped",
    "residual": "Residual tokenizers",
}


@dataclass(frozen=True)
class Table:
    """A title, a header and rows of equal length."""

    title: str
    header: list[str]
    rows: list[list[str]]


def tables(record: dict[str, Any]) -> dict[str, Table]:
    """Every table by name: those of `TITLES`, pairs, styles, styles_fidelity, grounding."""
    found = {name: _rows(TITLES[name], rows) for name, rows in record["tables"].items()}
    found["pairs"] = _pairs(record)
    found["styles"] = _styles(record, "recall_50", "R@1 at IoU 0.5", 1, 100)
    found["styles_fidelity"] = _styles(record, "fidelity", "Fidelity", 3, 1)
    found["grounding"] = _grounding(record)
    return found


def markdown(table: Table) -> str:
    lines = [table.header, ["---"] * len(table.header), *table.rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def caption(record: dict[str, Any]) -> str:
    """What the figures stand on, in one line."""
    settings = record["settings"]
    line = (
        f"{record['model']['id']}: {record['sets']} sets of {settings['videos']} videos of {settings['seconds']:g} s "
        f"at {settings['fps']:g} frames/s, {record['queries']} queries"
    )
    if any(pair["low"] is not None for pair in record["pairs"]):
        line += (
            "; 95 % intervals cover the choice of videos, not that of trainings, and are not corrected for being "
            "several"
        )
    return line


def narrow(table: Table) -> Table:
    """For a terminal: without what a reader can do without, deviations below their means."""
    kept = [index for index, name in enumerate(table.header) if name not in _WIDE]
    rows = [[row[index].replace(" ± ", "\n±") for index in kept] for row in table.rows]
    header = [_SHORT.get(table.header[index], table.header[index]) for index in kept]
    return Table(table.title, header, rows)


def number(spread: dict[str, Any] | None, decimals: int, scale: float = 1.0) -> str:
    """Mean ± standard deviation; a dash where there is no such figure."""
    if spread is None:
        return "-"
    mean = f"{scale * spread['mean']:.{decimals}f}"
    return mean if spread["std"] is None else f"{mean} ± {scale * spread['std']:.{decimals}f}"


_COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "encoder": lambda row: row["label"],
    "GFLOPs/frame": lambda row: f"{row['gflops_per_frame']:.4g}",
    "% of a": lambda row: f"{row['cost_percent']:.1f}",
    "frames/s": lambda row: number(row["frames_per_second"], 0),
    "fidelity": lambda row: number(row["fidelity"], 3),
    "5th pct": lambda row: number(row["fidelity_5"], 3),
    "P-frames": lambda row: number(row["fidelity_p"], 3),
    "R@1 IoU .5": lambda row: number(row["recall_50"], 1, 100),
    "R@1 IoU .7": lambda row: number(row["recall_70"], 1, 100),
    ".5, % of a": lambda row: number(row["relative_50"], 1),
    ".7, % of a": lambda row: number(row["relative_70"], 1),
}

_WIDE = ("GFLOPs/frame", ".7, % of a")
_SHORT = {
    "% of a": "cost %",
    "frames/s": "frames /s",
    "P-frames": "of P",
    "R@1 IoU .5": "R@1 .5",
    "R@1 IoU .7": "R@1 .7",
    ".5, % of a": "% of a",
}


def _rows(title: str, rows: list[dict[str, Any]]) -> Table:
    return Table(title, list(_COLUMNS), [[cell(row) for cell in _COLUMNS.values()] for row in rows])


def _pairs(record: dict[str, Any]) -> Table:
    header = ["pair", "IoU", "queries", "only first", "only second", "R@1 gain", "95 % interval"]
    rows = [
        [
            f"{pair['first']} - {pair['second']}",
            f"{pair['iou']:g}",
            str(pair["queries"]),
            str(pair["wins"]),
            str(pair["losses"]),
            f"{pair['difference']:+.1f}",
            "-" if pair["low"] is None else f"{pair['low']:+.1f} to {pair['high']:+.1f}",
        ]
        for pair in record["pairs"]
    ]
    return Table("The same queries at N=2, method against method", header, rows)


def _styles(record: dict[str, Any], key: str, title: str, decimals: int, scale: float) -> Table:
    lines = record["styles"]
    cells = {(line["label"], line["style"]): number(line[key], decimals, scale) for line in lines}
    styles = list(dict.fromkeys(style for _, style in cells))
    rows = [[label, *(cells[label, style] for style in styles)] for label in dict.fromkeys(label for label, _ in cells)]
    return Table(f"{title} by how the world moves", ["encoder", *styles], rows)


def _grounding(record: dict[str, Any]) -> Table:
    lines = record["grounding"]
    cells = {(line["smooth"], line["label"], line["iou"]): number(line["recall"], 1, 100) for line in lines}
    ious = list(dict.fromkeys(iou for *_, iou in cells))
    rows = [
        [f"{smooth:g} s", label, *(cells[smooth, label, iou] for iou in ious)]
        for smooth in dict.fromkeys(smooth for smooth, *_ in cells)
        for label in dict.fromkeys(label for _, label, _ in cells)
    ]
    header = ["average over", "encoder", *(f"IoU {iou:g}" for iou in ious)]
    return Table("R@1 when grounding averages and judges otherwise", header, rows)
