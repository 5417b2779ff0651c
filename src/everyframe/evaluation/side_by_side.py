"""One evaluation of several encoders: their results in one table and one record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from everyframe.evaluation.clips import Failure
from everyframe.evaluation.writing import csv_bytes
from everyframe.feature_files import write_whole
from everyframe.version import package_version


class Tabled(Protocol):
    """What an outcome has."""

    @property
    def failures(self) -> tuple[Failure, ...]: ...

    def as_table(self) -> list[dict[str, Any]]: ...

    def as_dict(self) -> dict[str, Any]: ...


T = TypeVar("T", bound=Tabled)


@dataclass(frozen=True, kw_only=True)
class SideBySide(Generic[T]):
    """The outcomes of one task by the names of their encoders. settings: by the same names, how videos were encoded."""

    task: str
    outcomes: Mapping[str, T]
    settings: Mapping[str, dict[str, Any]]

    @property
    def failures(self) -> tuple[Failure, ...]:
        """The videos that any encoder had to leave out, each once."""
        return tuple(dict.fromkeys(failure for outcome in self.outcomes.values() for failure in outcome.failures))

    def as_table(self) -> list[dict[str, Any]]:
        """The lines of every outcome, its encoder before them."""
        return [{"encoder": name, **row} for name, outcome in self.outcomes.items() for row in outcome.as_table()]

    def as_dict(self) -> dict[str, Any]:
        """The table, then everything of every outcome, as plain values."""
        records = {
            name: {**outcome.as_dict(), "encoded": self.settings[name]} for name, outcome in self.outcomes.items()
        }
        return {
            "task": self.task,
            "rows": self.as_table(),
            "partial": any(record["partial"] for record in records.values()),
            "encoders": records,
            "everyframe": package_version(),
        }

    def write(self, folder: Path) -> None:
        """metrics.json and metrics.csv, both or neither."""
        text = json.dumps(self.as_dict(), indent=1, default=str) + "\n"
        table, record = folder / "metrics.csv", folder / "metrics.json"
        write_whole([(table, csv_bytes(self.as_table())), (record, text.encode())], record)
