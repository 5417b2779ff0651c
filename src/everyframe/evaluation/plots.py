"""Pictures of the ablation, from the record that `Ablation.as_dict` makes. The same record gives the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from everyframe.extras import require

_COLOURS = {"none": "#cf222e", "token": "#0969da", "copy": "#9a6700", "interpolate": "#1a7f37", "dense": "#57606a"}
_MARKERS = {
    "dense": ("*", "dense"),
    "none": ("o", "ResidualViT, no token"),
    "token": ("D", "ResidualViT + token"),
    "copy": ("s", "copy the I-feature"),
    "interpolate": ("^", "interpolate I-features"),
}
_RECALL, _FIDELITY = "R@1 at IoU 0.5, % of dense", "fidelity: mean cosine to dense"


def write_plots(record: dict[str, Any], folder: str | Path, *, suffix: str = "svg") -> list[Path]:
    """Draw ablation-interleave, ablation-drop and ablation-style into `folder`; bars are standard deviations over sets.

    suffix: "svg" or "png". Raises ImportError without matplotlib.
    """
    matplotlib = require("matplotlib", extra="plot")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    # Ids and dates would differ from run to run.
    with matplotlib.rc_context({"svg.hashsalt": "everyframe"}):
        for name, draw in (("interleave", _interleave), ("drop", _drop), ("style", _style)):
            file = folder / f"ablation-{name}.{suffix}"
            draw(record).savefig(file, dpi=110, metadata={"Date": None} if suffix == "svg" else None)
            written.append(file)
    return written


def _figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _points(axes: Any, rows: list[dict[str, Any]], across: str, key: str, **style: Any) -> None:
    """One line with error bars; rows without that figure are left out."""
    known = [row for row in rows if row[key] is not None]
    deviations = [row[key]["std"] for row in known]
    axes.errorbar(
        [row[across] for row in known],
        [row[key]["mean"] for row in known],
        yerr=None if None in deviations else deviations,
        capsize=2.5,
        elinewidth=0.9,
        **{"markersize": 4.5, **style},
    )


def _interleave(record: dict[str, Any]) -> Any:
    """The paper's figure 4: what is kept over what it costs, for N P-frames after each I-frame."""
    rows = record["tables"]["interleave"]
    dense = record["tables"]["methods"][0]
    lines = {kind: [row for row in rows if _kind(row) == kind] for kind in _MARKERS if kind != "dense"}
    figure, axes = _figure(1, 2, (10.5, 4.3))
    for panel, (key, title) in zip(axes[0], (("relative_50", _RECALL), ("fidelity", _FIDELITY)), strict=True):
        for line, some in lines.items():
            if not some:
                continue
            marker, label = _MARKERS[line]
            joined = marker + ("--" if line in ("copy", "interpolate") else "-")
            _points(panel, some, "cost_percent", key, fmt=joined, color=_COLOURS[line], label=label)
            for row in some:
                if row[key] is not None:
                    panel.annotate(
                        f"{row['interleave']}",
                        (row["cost_percent"], row[key]["mean"]),
                        textcoords="offset points",
                        xytext=(5, -10) if line in ("none", "copy") else (-9, 5),
                        fontsize=7.5,
                        color=_COLOURS[line],
                    )
        _points(panel, [dense], "cost_percent", key, fmt="*", color=_COLOURS["dense"], label="dense", markersize=9)
        panel.set(xlabel="GFLOPs per frame, % of dense (numbers: N)", ylabel=title, xlim=(0, 105))
        panel.grid(color="0.92")
    axes[0, 0].legend(loc="lower right", fontsize="small")
    return figure


def _drop(record: dict[str, Any]) -> Any:
    """Quality over the share of patches that P-frames leave out, at N = 2."""
    rows = record["tables"]["drop"]
    first = next(iter(record["residuals"]), None)
    swept = [row for row in rows if "fitted" not in row["label"]]
    lines = [
        ("no token", "o-", _COLOURS["none"], [row for row in swept if not row["residual"]]),
        (f"+ token ({first})", "o-", _COLOURS["token"], [row for row in swept if row["residual"]]),
    ]
    fitted = [row for row in rows if "fitted" in row["label"]]
    for number, name in enumerate(dict.fromkeys(row["residual"] for row in fitted)):
        own = [row for row in fitted if row["residual"] == name]
        lines.append((f"+ token fitted for each p ({name})", "d:", f"C{number + 4}", own))
    figure, axes = _figure(1, 2, (10.5, 4.0))
    for panel, (key, title) in zip(axes[0], (("relative_50", _RECALL), ("fidelity", _FIDELITY)), strict=True):
        for label, marker, colour, some in lines:
            if some:
                _points(panel, some, "drop", key, fmt=marker, color=colour, label=label)
        panel.axhline(
            100 if key == "relative_50" else 1, color=_COLOURS["dense"], linestyle=":", linewidth=1, label="dense"
        )
        panel.set(xlabel="share p of patches dropped in P-frames (N = 2)", ylabel=title)
        panel.grid(color="0.92")
    axes[0, 0].legend(loc="lower left", fontsize="small")
    return figure


def _style(record: dict[str, Any]) -> Any:
    """Which method wins where, by how the world moves; a row of panels for each N."""
    lines = record["styles"]
    styles = list(dict.fromkeys(line["style"] for line in lines))
    kinds = [kind for kind in _MARKERS if any(_kind(line) == kind for line in lines)]
    interleaves = sorted({line["interleave"] for line in lines if line["interleave"]})
    figure, axes = _figure(len(interleaves), 2, (10.5, 3.0 * len(interleaves) + 0.6))
    for panels, interleave in zip(axes, interleaves, strict=True):
        for panel, key in zip(panels, ("recall_50", "fidelity"), strict=True):
            for place, kind in enumerate(kinds):
                own = [
                    {**line, "x": styles.index(line["style"]) + 0.14 * (place - (len(kinds) - 1) / 2)}
                    for line in lines
                    if _kind(line) == kind and line["interleave"] in (0, interleave)
                ]
                marker, label = _MARKERS[kind]
                _points(panel, own, "x", key, fmt=marker, color=_COLOURS[kind], label=label, markersize=7)
            panel.set_xticks(range(len(styles)), styles)
            panel.set_title(f"N = {interleave}", loc="left", fontsize="medium")
            panel.set_ylabel("R@1 at IoU 0.5" if key == "recall_50" else _FIDELITY)
            panel.grid(axis="y", color="0.92")
            for edge in range(1, len(styles)):
                panel.axvline(edge - 0.5, color="0.85", linewidth=0.8)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(kinds), frameon=False)
    return figure


def _kind(line: dict[str, Any]) -> str:
    method = str(line["variant"]).split()[0]
    if method in ("dense", "copy", "interpolate"):
        return method
    return "token" if line["residual"] else "none"
