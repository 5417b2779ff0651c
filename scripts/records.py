"""What the benchmarks wrote, and the tables that are made of it; for the render_*.py beside it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
sys.path.append(str(ROOT / "benchmarks"))  # for `ways`, what they compared


def read(name: str) -> dict[str, Any]:
    """The record of a benchmark; ends the process where there is none."""
    file = RESULTS / f"{name}.json"
    if not file.exists():
        sys.exit(f"benchmarks/results/{file.name} does not exist; the page that shows it has the command")
    loaded: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return loaded


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown."""
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])
