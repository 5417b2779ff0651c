"""What every evaluation on clips returns: numbers, what they are of, and what was left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from everyframe.cost import flops
from everyframe.evaluation import published_tempme
from everyframe.evaluation.clips import Failure, Reader
from everyframe.evaluation.published import architecture_of, is_published_schedule, published
from everyframe.version import package_version

GFLOPS = "GFLOPs"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of one task on one split.

    metrics: percentages (and ranks) by name, in one or more blocks such as "re-ranked" and "dual encoder"; the first
    block is what the paper's tables report. videos and wanted: how many were there and how many the split has.
    """

    task: str
    dataset: str | None
    metrics: dict[str, dict[str, float]]
    videos: int
    wanted: int
    queries: int
    gflops: float | None
    """Of one clip, multiply-accumulates by the paper's rule; None where the reader does not tell."""
    settings: dict[str, Any]
    annotations: list[dict[str, Any]]
    failures: tuple[Failure, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)
    architecture: str | None = None
    method: str = "none"

    @property
    def partial(self) -> bool:
        """Videos or texts are missing, so that the numbers are not those of the split."""
        return bool(self.failures)

    @property
    def headline(self) -> str:
        """The block that the paper's tables report."""
        return next(iter(self.metrics))

    def published(self) -> dict[str, float]:
        """The paper's numbers for this model, task and schedule; empty where it has none.

        vid-TLDR's retrieval is re-ranked, so that the dual encoder alone is compared in cost only; TempMe's is not.
        """
        if self._of_frames:
            return published_tempme.published_for(self.architecture, self.dataset, self.settings)
        task, reduce = f"{self.dataset}-{self.task}", self.settings.get("reader", {}).get("reduce", ())
        if self.architecture is None or self.dataset is None or self.gflops is None:
            return {}
        if not is_published_schedule(self.architecture, task, self.method, reduce, self.gflops):
            return {}
        found = published(self.architecture, task, self.method)
        if self.task == "retrieval" and self.headline != "re-ranked":
            return {name: value for name, value in found.items() if name == GFLOPS}
        return found

    @property
    def published_from(self) -> str:
        """Where TempMe's numbers are printed and what they are of; empty where `published` has none of them."""
        if not (self._of_frames and self.published()):
            return ""
        return published_tempme.FROM.format(published_tempme.tables_of(self.architecture, self.dataset, self.method))

    @property
    def _of_frames(self) -> bool:
        """Retrieval with an image model, as in TempMe's tables."""
        return self.task == "retrieval" and "frame_features" in self.settings.get("reader", {})

    def rows(self) -> list[tuple[str, str, float, float | None]]:
        """(block, metric, ours, published or None), cost last; only the headline block has published numbers."""
        reported = self.published()
        rows: list[tuple[str, str, float, float | None]] = [
            (block, name, value, reported.get(name) if block == self.headline else None)
            for block, values in self.metrics.items()
            for name, value in values.items()
        ]
        if self.gflops is not None:
            rows.append(("", GFLOPS, self.gflops, reported.get(GFLOPS)))
        return rows

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values, with ours minus published where the paper has a number."""
        reported = self.published()
        ours = {**self.metrics[self.headline], **({} if self.gflops is None else {GFLOPS: self.gflops})}
        return {
            "task": self.task,
            "dataset": self.dataset,
            "metrics": self.metrics,
            "gflops_per_clip": self.gflops,
            "published": reported,
            **({"published_from": self.published_from} if self.published_from else {}),
            "difference": {name: ours[name] - value for name, value in reported.items() if name in ours},
            "partial": self.partial,
            "videos": self.videos,
            "videos_wanted": self.wanted,
            "queries": self.queries,
            "failures": [asdict(failure) for failure in self.failures],
            "details": self.details,
            "annotations": self.annotations,
            "settings": self.settings,
            "everyframe": package_version(),
        }


def gflops_of(reader: Reader) -> float | None:
    """Billions of multiply-accumulates of one clip, as the paper counts; None where the reader does not tell.

    vid-TLDR's paper leaves the attention out, TempMe's does not; a reader says which it stands for.
    """
    if not hasattr(reader, "macs"):
        return None
    return flops(reader, rule=getattr(reader, "cost_rule", "paper")).total / 1e9  # type: ignore[arg-type]


def method_of(reader: Reader) -> str:
    """Which column of the paper's tables a reader stands for: one that removes nothing is the base."""
    settings = reader.settings
    if "frame_features" in settings:  # of an image model, which always has a way of its own
        return str(settings["encoder"])
    return str(settings["encoder"]) if any(settings.get("reduce", ())) else "none"


def facts_of(reader: Reader) -> dict[str, Any]:
    """The fields of `Outcome` that the reader decides."""
    size = published_tempme.clip_architecture(reader.model) or architecture_of(reader.model)
    return {"gflops": gflops_of(reader), "architecture": size, "method": method_of(reader)}


def check_some_left(kept: Sequence[object], failures: Sequence[Failure]) -> None:
    """Raises ValueError where no video is left to evaluate."""
    if not kept:
        first = f": {failures[0].error}" if failures else ""
        raise ValueError(f"none of the {len(failures)} videos can be used{first}")
