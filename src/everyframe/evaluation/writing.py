"""Results as files: their names, and tables as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any


def file_name(label: str) -> str:
    """An encoder's label as a part of a file's name: "ResidualViT N=2" becomes "residualvit-n2"."""
    return label.lower().replace(" + ", "-").replace(" ", "-").replace("=", "")


def csv_bytes(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """A header with the names of all rows, in order, and a line for each; what is None or lacking is left empty."""
    text = io.StringIO()
    names = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(text, fieldnames=list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
