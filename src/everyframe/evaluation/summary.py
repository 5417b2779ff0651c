"""From what was measured on every video to the figures of the ablation.

A cell is a mean and a sample standard deviation over sets of videos (and over files, where several trainings of a
tokenizer go by one name). Whether one method finds more than another is asked query by query on the same videos
(`Ablation.pairs`): the spread between sets is mostly that of the videos, which both methods share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from everyframe.evaluation.variants import Place, Sweep, Variant, main_methods
from everyframe.synthetic import STYLES

SMOOTH = 5.0  # seconds, what `ground` does unless told otherwise
_DRAWS = 2000
_FEWEST_VIDEOS = 5  # for an interval: of fewer, drawing them again says next to nothing


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (None of a single value) of `count` values."""

    mean: float
    std: float | None
    count: int


def spread(values: Sequence[float | None]) -> Spread | None:
    """None if there are no values, or one of them is undefined."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    std = float(np.std(known, ddof=1)) if len(known) > 1 else None
    return Spread(float(np.mean(known)), std, len(known))


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of a table. Recalls in [0, 1], relative ones in % of the dense row of the same set.

    fidelity: mean cosine to the dense features over all frames; fidelity_5: its 5th percentile; fidelity_p: the
    mean over P-frames, None where there are none. frames_per_second: of the encoder alone.
    """

    label: str
    variant: str
    interleave: int
    drop: float | None
    residual: str | None
    gflops_per_frame: float
    cost_percent: float
    frames_per_second: Spread | None
    fidelity: Spread | None
    fidelity_5: Spread | None
    fidelity_p: Spread | None
    recall_50: Spread | None
    recall_70: Spread | None
    relative_50: Spread | None
    relative_70: Spread | None


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two methods on the same queries: wins are those that only the first answers at that IoU.

    difference: R@1 of the first minus R@1 of the second, in points of 100; low and high bound the middle 95 % of
    it when videos are drawn with replacement, None with fewer than 5 videos. They cover the choice of videos, not
    that of trainings, and are not corrected for there being several pairs.
    """

    first: str
    second: str
    iou: float
    queries: int
    wins: int
    losses: int
    difference: float
    low: float | None
    high: float | None


def compare(
    first: Sequence[np.ndarray], second: Sequence[np.ndarray], *, seed: int = 0
) -> tuple[int, int, float, float | None, float | None]:
    """Paired comparison of hits, one bool array [queries] per video: wins, losses, difference, low, high.

    Whole videos are drawn, as queries of one video share its frames; low and high are None where fewer than 5 have
    queries. Raises ValueError without queries.
    """
    gains = np.array([a.astype(float).sum() - b.astype(float).sum() for a, b in zip(first, second, strict=True)])
    counts = np.array([len(a) for a in first])
    gains, counts = gains[counts > 0], counts[counts > 0]
    if not len(counts):
        raise ValueError("a comparison needs at least one query")
    wins = sum(int((a & ~b).sum()) for a, b in zip(first, second, strict=True))
    losses = sum(int((b & ~a).sum()) for a, b in zip(first, second, strict=True))
    difference = float(100 * gains.sum() / counts.sum())
    if len(counts) < _FEWEST_VIDEOS:
        return wins, losses, difference, None, None
    drawn = np.random.default_rng(seed).integers(len(counts), size=(_DRAWS, len(counts)))
    low, high = np.percentile(100 * gains[drawn].sum(1) / counts[drawn].sum(1), [2.5, 97.5])
    return wins, losses, difference, float(low), float(high)


@dataclass(frozen=True)
class Measure:
    """One variant on one video, with one tokenizer: seconds, fidelity [T], IoU of each first answer by smoothing."""

    seconds: float
    fidelity: np.ndarray
    overlaps: dict[float, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class VideoResult:
    """All variants on one video: `measures` holds one `Measure` per tokenizer file under the variant's name."""

    name: str
    style: str
    queries: int
    measures: dict[str, list[Measure]] = field(default_factory=dict)

    def add(self, name: str, *, seconds: float, fidelity: np.ndarray, overlaps: dict[float, np.ndarray]) -> None:
        self.measures.setdefault(name, []).append(Measure(seconds, fidelity, overlaps))


_Some = list[tuple[VideoResult, Measure]]  # one variant and file on the videos of one set


@dataclass(kw_only=True)
class Ablation:
    """What was measured so far, and the figures it gives."""

    places: tuple[Place, ...]
    sweep: Sweep
    model: dict[str, Any]
    settings: dict[str, Any]
    residuals: dict[str, list[dict[str, Any]]]
    notes: tuple[str, ...]
    version: str
    sets: list[list[VideoResult]] = field(default_factory=list)

    def add(self, number: int, result: VideoResult) -> None:
        """Take one video of set `number`."""
        if number == len(self.sets):
            self.sets.append([])
        self.sets[number].append(result)

    def rows(self) -> dict[str, list[Row]]:
        """The lines of every table: methods, interleave, reduction, drop, residual."""
        tables: dict[str, list[Row]] = {}
        for place in self.places:
            tables.setdefault(place.table, []).append(self._row(place))
        return tables

    def styles(self) -> list[dict[str, Any]]:
        """The main methods by how the world moves: label, style, queries, fidelity, recall_50, recall_70."""
        lines = []
        for place in main_methods(self.places, self.sweep):
            for style in STYLES:
                queries = sum(video.queries for videos in self.sets for video in videos if video.style == style)
                lines.append(
                    {
                        **_title(place),
                        "style": style,
                        "queries": queries,
                        "fidelity": self._spread(place.variant, _mean_fidelity, style),
                        "recall_50": self._spread(place.variant, _recall(0.5), style),
                        "recall_70": self._spread(place.variant, _recall(0.7), style),
                    }
                )
        return lines

    def grounding(self) -> list[dict[str, Any]]:
        """The main methods when grounding is done otherwise: label, smooth (seconds), iou, recall."""
        return [
            {
                **_title(place),
                "smooth": smooth,
                "iou": iou,
                "recall": self._spread(place.variant, _recall(iou, smooth)),
            }
            for place in main_methods(self.places, self.sweep)
            for smooth in self.sweep.smooths
            for iou in self.sweep.ious
        ]

    def pairs(self) -> list[Pair]:
        """d and c against each other, dense, b and the shortcuts, query by query, at N=2."""
        variants = {place.key: place.variant for place in self.places if place.key is not None}
        wanted = [("d", other) for other in ("c", "a", "copy", "interpolate")]
        wanted += [("c", other) for other in ("a", "b", "copy", "interpolate")]
        pairs = []
        for first, second in wanted:
            if first in variants and second in variants:
                for iou in (0.5, 0.7):
                    pairs.append(self._pair(variants[first], variants[second], first, second, iou))
        return [pair for pair in pairs if pair is not None]

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values for JSON."""
        return {
            "benchmark": "ablation",
            "task": "synthetic",
            "model": self.model,
            "version": self.version,
            "settings": self.settings,
            "residuals": self.residuals,
            "notes": list(self.notes),
            "sets": len(self.sets),
            "queries": sum(video.queries for videos in self.sets for video in videos),
            "tables": {name: [asdict(row) for row in rows] for name, rows in self.rows().items()},
            "pairs": [asdict(pair) for pair in self.pairs()],
            "styles": [_plain(line) for line in self.styles()],
            "grounding": [_plain(line) for line in self.grounding()],
        }

    def _row(self, place: Place) -> Row:
        variant = place.variant
        full = next(other.variant for other in self.places if other.variant.method == "dense")
        return Row(
            **_title(place),
            gflops_per_frame=variant.gflops,
            cost_percent=100 * variant.gflops / full.gflops,
            frames_per_second=self._spread(variant, _speed),
            fidelity=self._spread(variant, _mean_fidelity),
            fidelity_5=self._spread(variant, lambda some: float(np.percentile(_fidelities(some), 5))),
            fidelity_p=self._spread(variant, lambda some: _reduced_fidelity(some, variant)),
            recall_50=self._spread(variant, _recall(0.5)),
            recall_70=self._spread(variant, _recall(0.7)),
            relative_50=self._relative(variant, full, 0.5),
            relative_70=self._relative(variant, full, 0.7),
        )

    def _samples(self, variant: Variant, number: int, style: str | None = None) -> list[_Some]:
        """Set `number`, once per tokenizer file."""
        videos = [video for video in self.sets[number] if style in (None, video.style)]
        return [
            [(video, video.measures[variant.name][file]) for video in videos] for file in range(len(variant.encodes))
        ]

    def _spread(
        self, variant: Variant, figure: Callable[[_Some], float | None], style: str | None = None
    ) -> Spread | None:
        sets = range(len(self.sets))
        return spread(
            [figure(some) if some else None for number in sets for some in self._samples(variant, number, style)]
        )

    def _relative(self, variant: Variant, full: Variant, iou: float) -> Spread | None:
        values: list[float | None] = []
        for number in range(len(self.sets)):
            base = _recall(iou)(self._samples(full, number)[0])
            for some in self._samples(variant, number):
                own = _recall(iou)(some)
                values.append(100 * own / base if own is not None and base else None)
        return spread(values)

    def _pair(self, first: Variant, second: Variant, name: str, other: str, iou: float) -> Pair | None:
        left: list[np.ndarray] = []
        right: list[np.ndarray] = []
        for videos in self.sets:
            for video in videos:
                own, others = _hits(video, first, iou), _hits(video, second, iou)
                # A query counts once per file of the method that has several; the other one's answers are repeated.
                files = max(len(own), len(others))
                left.append(np.concatenate([own[file % len(own)] for file in range(files)]))
                right.append(np.concatenate([others[file % len(others)] for file in range(files)]))
        queries = sum(len(hits) for hits in left)
        if not queries:
            return None
        wins, losses, difference, low, high = compare(left, right)
        return Pair(
            first=name,
            second=other,
            iou=iou,
            queries=queries,
            wins=wins,
            losses=losses,
            difference=difference,
            low=low,
            high=high,
        )


def _hits(video: VideoResult, variant: Variant, iou: float) -> list[np.ndarray]:
    return [measure.overlaps[SMOOTH] >= iou for measure in video.measures[variant.name]]


def _title(place: Place) -> dict[str, Any]:
    variant = place.variant
    return {
        "label": place.label,
        "variant": variant.name,
        "interleave": variant.interleave,
        "drop": variant.drop,
        "residual": variant.residual,
    }


def _plain(line: dict[str, Any]) -> dict[str, Any]:
    return {key: asdict(value) if isinstance(value, Spread) else value for key, value in line.items()}


def _fidelities(some: _Some) -> np.ndarray:
    return np.concatenate([measure.fidelity for _, measure in some])


def _mean_fidelity(some: _Some) -> float:
    return float(_fidelities(some).mean())


def _reduced_fidelity(some: _Some, variant: Variant) -> float | None:
    parts = []
    for _, measure in some:
        roles = variant.roles(len(measure.fidelity))
        parts.append(measure.fidelity[np.array([role == "P" for role in roles])])
    values = np.concatenate(parts)
    return float(values.mean()) if len(values) else None


def _speed(some: _Some) -> float | None:
    took = sum(measure.seconds for _, measure in some)
    return sum(len(measure.fidelity) for _, measure in some) / took if took > 0 else None


def _recall(iou: float, smooth: float = SMOOTH) -> Callable[[_Some], float | None]:
    def recall(some: _Some) -> float | None:
        overlaps = np.concatenate([measure.overlaps[smooth] for _, measure in some])
        return float((overlaps >= iou).mean()) if len(overlaps) else None

    return recall
