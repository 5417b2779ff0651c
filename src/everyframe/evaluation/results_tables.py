"""The page of results as tables and as a picture, from the record that `evaluate_tasks` returns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from everyframe.evaluation.tables import Table, markdown
from everyframe.extras import require

_STYLES = {
    "dense": ("#57606a", "*"),
    "ResidualViT + token": ("#0969da", "D-"),
    "ResidualViT": ("#0969da", "D-"),
    "reuse": ("#8250df", "o-"),
    "reuse, adaptive": ("#bf3989", "P"),
    "copy": ("#9a6700", "s--"),
    "interpolate": ("#1a7f37", "^--"),
}
_PANELS = 3  # in a row


def result_tables(record: dict[str, Any]) -> dict[str, Table]:
    """By name: "summary", the first metric of every task; and for each task a table with all its metrics."""
    tables = {"summary": _summary(record)}
    return tables | {name: _task(record, task) for name, task in record["tasks"].items()}


def result_caption(record: dict[str, Any]) -> str:
    """What the figures stand on, in one line."""
    settings = record["settings"]
    return (
        f"{record['model']['id']}, {settings['fps']:g} frames/s, videos of {settings['seconds']:g} s: "
        f"{settings['videos']} of unseen combinations (grounding, retrieval), {settings['known_videos']} of known ones "
        f"(the other tasks), {settings['train_videos']} to train on"
    )


def result_markdown(record: dict[str, Any]) -> str:
    """All of it as a document of its own."""
    parts = ["# Results on the synthetic benchmark", f"{result_caption(record)}.", *record["notes"]]
    for name, table in result_tables(record).items():
        parts += [f"## {table.title}", markdown(table)]
        if name == "summary":
            parts.append("First metric of every task; cost with attention.")
    return "\n\n".join(parts) + "\n"


def _summary(record: dict[str, Any]) -> Table:
    tasks = record["tasks"].values()
    header = ["encoder", "GFLOPs/frame", "% of dense", "fidelity"]
    header += [f"{_short(task['title'])} {task['metrics'][0]}" for task in tasks]
    rows = []
    for place, way in enumerate(record["ways"]):
        cells = [
            way["label"],
            f"{way['gflops_per_frame']:.4f}",
            f"{100 * way['gflops_share']:.1f}",
            f"{way['fidelity']:.3f}",
        ]
        rows.append([*cells, *(_value(task, task["rows"][place]["metrics"], task["metrics"][0]) for task in tasks)])
    return Table("Every task, every way to encode", header, rows)


def _task(record: dict[str, Any], task: dict[str, Any]) -> Table:
    main = task["metrics"][0]
    compared = any(row["differences"] for row in task["rows"])
    header = ["encoder", "% of dense", *task["metrics"]]
    header += [f"{main}, points more than dense (95 %)"] if compared else [f"{main}, % of dense"]
    dense = task["rows"][0]["metrics"][main]
    rows = []
    for way, row in zip(record["ways"], task["rows"], strict=True):
        cells = [way["label"], f"{100 * way['gflops_share']:.1f}"]
        cells += [_value(task, row["metrics"], name) for name in task["metrics"]]
        if compared:
            cells.append(_difference(row["differences"][main]) if row["way"] != record["ways"][0]["name"] else "-")
        else:
            cells.append(f"{100 * row['metrics'][main] / dense:.1f}" if dense else "-")
        rows.append(cells)
    if task["floor"] is not None:
        floor = task["floor"]
        rows.append([floor["name"], "-", *(_value(task, floor["metrics"], name) for name in task["metrics"]), "-"])
    return Table(f"{task['title']}, {task['count']} {task['unit']}", header, rows)


def _value(task: dict[str, Any], metrics: dict[str, float], name: str) -> str:
    return f"{metrics[name]:.1f}" if name in metrics else "-"


def _difference(cell: dict[str, float | None]) -> str:
    if cell["low"] is None or cell["high"] is None:
        return f"{cell['points']:+.1f}"
    return f"{cell['points']:+.1f} ({cell['low']:+.1f} to {cell['high']:+.1f})"


def _short(title: str) -> str:
    """What stands in brackets, or the first word."""
    return title.partition("(")[2].rstrip(")") or title.split()[0]


def write_result_plot(record: dict[str, Any], file: str | Path) -> Path:
    """The paper's figure 1c: accuracy over cost, a panel for each task. The same record gives the same bytes.

    Bars are 95 % intervals of the difference to dense, where a task has them. Raises ImportError without matplotlib.
    """
    matplotlib = require("matplotlib", extra="plot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tasks = list(record["tasks"].values())
    rows = -(-(len(tasks) + 1) // _PANELS)  # one place is the legend's
    with matplotlib.rc_context({"svg.hashsalt": "everyframe"}):
        figure = Figure(figsize=(11.5, 3.7 * rows), layout="constrained")
        FigureCanvasAgg(figure)
        panels = list(figure.subplots(rows, _PANELS, squeeze=False).flat)
        for panel, task in zip(panels, tasks, strict=False):
            _panel(panel, record["ways"], task)
        for panel in panels[len(tasks) :]:
            panel.set_axis_off()
        panels[len(tasks)].legend(*panels[0].get_legend_handles_labels(), loc="center", frameon=False)
        file = Path(file)
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=110, metadata={"Date": None} if file.suffix == ".svg" else None)
    return file


def _panel(panel: Any, ways: list[dict[str, Any]], task: dict[str, Any]) -> None:
    main = task["metrics"][0]
    points: dict[str, list[tuple[float, float, float, float, str]]] = {}
    for way, row in zip(ways, task["rows"], strict=True):
        cell = row["differences"].get(main, {"points": 0.0, "low": None, "high": None})
        low, high = (0.0, 0.0) if cell["low"] is None else (cell["points"] - cell["low"], cell["high"] - cell["points"])
        number = way["name"].rpartition("-")[2]
        point = (100 * way["gflops_share"], row["metrics"][main], max(low, 0.0), max(high, 0.0), number)
        points.setdefault(way["kind"], []).append(point)
    for kind, some in points.items():
        colour, marker = _STYLES[kind]
        costs, values, lows, highs, numbers = zip(*some, strict=True)
        bars = (lows, highs) if any(lows) or any(highs) else None
        size = 11 if kind == "dense" else 9 if kind == "reuse, adaptive" else 5
        panel.errorbar(
            costs, values, yerr=bars, fmt=marker, color=colour, label=kind, markersize=size, elinewidth=0.8,
            capsize=2, ecolor=f"{colour}66",
        )  # fmt: skip
        for cost, value, number in zip(costs, values, numbers, strict=True):
            if number.isdecimal():
                panel.annotate(
                    number, (cost, value), textcoords="offset points", xytext=(4, 4), fontsize=7, color=colour
                )
    panel.axhline(points["dense"][0][1], color="0.7", linestyle=":", linewidth=1)
    panel.set(title=task["title"], xlabel="GFLOPs per frame, % of dense (numbers: N)", ylabel=main, xlim=(0, 106))
    panel.grid(color="0.92")
