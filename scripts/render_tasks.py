"""The places that `everyframe evaluate synthetic --all` fills, and its picture; called by render_results.py."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from everyframe.evaluation.results_tables import result_caption, result_tables, write_result_plot
from everyframe.evaluation.tables import markdown

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "tasks.json"
TASKS = ("summary", "grounding", "retrieval", "recognition", "localization", "description")


def _read() -> dict[str, Any]:
    if not RESULTS.exists():
        sys.exit(
            "benchmarks/results/tasks.json does not exist; run everyframe evaluate synthetic --all --out DIR and copy "
            "DIR/results.json there"
        )
    return json.loads(RESULTS.read_text(encoding="utf-8"))


def _table(name: str) -> str:
    tables = result_tables(_read())
    return markdown(tables[name]) if name in tables else "Left out of this run."


def _caption() -> str:
    return f"{result_caption(_read())}."


def _time() -> str:
    record = _read()
    machine = record["machine"]
    if record["seconds"] is None:
        return "not timed, as the run was resumed"
    return f"{record['seconds'] / 60:.0f} minutes with {machine['threads']} threads and {machine['workers']} renderers"


def draw() -> None:
    """The picture of docs/results.md."""
    write_result_plot(_read(), ROOT / "docs" / "images" / "results.png")


RENDERERS = {"tasks": _caption, "tasks_time": _time, **{f"tasks_{name}": partial(_table, name) for name in TASKS}}
