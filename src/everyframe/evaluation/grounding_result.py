"""What an evaluation of grounding found: as a record, as a table of ours and published, as files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from everyframe.evaluation.clips import Failure
from everyframe.evaluation.moment_files import Fault, MomentSet
from everyframe.evaluation.moment_predictions import Answer, write_predictions
from everyframe.evaluation.published_grounding import COST
from everyframe.evaluation.writing import csv_bytes, file_name
from everyframe.feature_files import write_whole
from everyframe.version import package_version

FLOOR_METRICS = ("R1@0.1", "R1@0.3", "R1@0.5", "R1@0.7", "mIoU")


@dataclass(frozen=True, kw_only=True)
class PredictionScores:
    """Scores of somebody's predictions, in percent. missed: qids without an answer, which count as wrong."""

    metrics: dict[str, float]
    floors: dict[str, dict[str, float]]
    annotations: dict[str, Any]
    predictions: dict[str, Any]
    faults: tuple[Fault, ...] = ()
    missed: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Metrics by name at the top, then the floors and what was read."""
        return {
            **self.metrics,
            **({"floors": self.floors} if self.floors else {}),
            "annotations": self.annotations,
            "predictions": self.predictions,
            "missed": list(self.missed),
            "faults": [str(fault) for fault in self.faults],
            "everyframe": package_version(),
        }


@dataclass(frozen=True, kw_only=True)
class GroundingRow:
    """One encoder on one split. gflops_per_second: 10^9 multiply-accumulates per second of video."""

    encoder: str
    metrics: dict[str, float]
    gflops_per_second: float | None
    share_of_dense: float | None
    published: dict[str, float]
    settings: dict[str, Any]
    answers: Mapping[str, Answer] = field(repr=False)

    @property
    def values(self) -> dict[str, float]:
        """The metrics, and the cost under the name that published ones have."""
        return self.metrics | ({} if self.gflops_per_second is None else {COST: self.gflops_per_second})

    @property
    def difference(self) -> dict[str, float]:
        """Ours minus published, where the paper has a number."""
        return {name: self.values[name] - value for name, value in self.published.items() if name in self.values}

    def as_dict(self) -> dict[str, Any]:
        return {
            "encoder": self.encoder,
            "metrics": self.metrics,
            "gflops_per_second": self.gflops_per_second,
            "share_of_dense": self.share_of_dense,
            "published": self.published,
            "difference": self.difference,
            "settings": self.settings,
        }


@dataclass(frozen=True, kw_only=True)
class GroundingOutcome:
    """Every encoder on the same queries of a split: those whose videos all of them could read.

    items: these queries. wanted, queries_wanted: videos and queries that the split has.
    """

    dataset: str | None
    rows: tuple[GroundingRow, ...]
    floors: dict[str, dict[str, float]]
    items: MomentSet
    wanted: int
    queries_wanted: int
    failures: tuple[Failure, ...]
    settings: dict[str, Any]

    @property
    def partial(self) -> bool:
        """Videos are missing, so that the numbers are not those of the split."""
        return bool(self.failures)

    def as_dict(self) -> dict[str, Any]:
        return {
            "task": "grounding",
            "dataset": self.dataset,
            "rows": [row.as_dict() for row in self.rows],
            "floors": self.floors,
            "partial": self.partial,
            "videos": len(self.items.videos),
            "videos_wanted": self.wanted,
            "queries": len(self.items.queries),
            "queries_wanted": self.queries_wanted,
            "annotations": self.items.facts(),
            "failures": [asdict(failure) for failure in self.failures],
            "settings": self.settings,
            "everyframe": package_version(),
        }

    def as_table(self) -> list[dict[str, Any]]:
        """encoder, metric, ours, published, difference, for CSV; a floor is an encoder of its own name."""

        def line(
            encoder: str, metric: str, ours: float, published: float | None, apart: float | None
        ) -> dict[str, Any]:
            difference = None if apart is None else f"{apart:.4f}"
            return {
                "encoder": encoder,
                "metric": metric,
                "ours": f"{ours:.4f}",
                "published": published,
                "difference": difference,
            }

        rows = [
            line(row.encoder, name, value, row.published.get(name), row.difference.get(name))
            for row in self.rows
            for name, value in row.values.items()
        ]
        return rows + [
            line(floor, name, value, None, None)
            for floor, metrics in self.floors.items()
            for name, value in metrics.items()
        ]

    def write(self, folder: Path) -> list[Path]:
        """grounding.json, grounding.csv, and each encoder's answers as predictions-ENCODER.jsonl; each whole or not."""
        record, rows = folder / "grounding.json", folder / "grounding.csv"
        write_whole([(record, (json.dumps(self.as_dict(), indent=1, allow_nan=False) + "\n").encode())], record)
        write_whole([(rows, csv_bytes(self.as_table()))], rows)
        written = [record, rows]
        for row in self.rows:
            written.append(folder / f"predictions-{file_name(row.encoder)}.jsonl")
            write_predictions(written[-1], self.items, row.answers)
        return written
