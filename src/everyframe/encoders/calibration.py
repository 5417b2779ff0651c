"""Constant fidelity: which adaptive plan lands on a wanted mean cosine to the dense features, measured beforehand.

`everyframe calibrate` encodes a sample of somebody's videos densely and under a grid of (drop, tolerance), and keeps
two things: the grid, from which `choose` reads the cheapest setting that reaches a fidelity, and a predictor of a
frame's loss from what its plan left out, so that a plan's fidelity can be told without running the model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from everyframe.backbone import Model
from everyframe.encoders.planner import debts
from everyframe.feature_files import write_whole

FORMAT = "everyframe-calibration"
SHIPPED_FILE = "calibration.json"


class CalibrationError(ValueError):
    """A calibration that is missing, damaged, made for another model, or does not reach the fidelity asked for."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One setting as measured: mean fidelity and 5th percentile of all frames, cost as a share of dense."""

    drop: float
    tolerance: float
    fidelity: float
    fidelity_p5: float
    cost: float


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """points: the grid. weights: loss of a frame per unit of what it leaves out, and of what its group has so far.

    facts: model, weights_sha256, fps, videos, frames.
    """

    points: tuple[Point, ...]
    weights: tuple[float, float]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def reach(self) -> tuple[float, float]:
        """Lowest and highest mean fidelity of the grid."""
        return min(p.fidelity for p in self.points), max(p.fidelity for p in self.points)

    def choose(self, fidelity: float) -> tuple[float, float]:
        """(drop, tolerance) of the cheapest setting whose mean fidelity is `fidelity`, interpolated on the grid.

        Below what the grid holds, the cheapest point of all is taken: it is better than what was asked for. The grid
        was measured at facts["fps"] frames per second, and holds for those.
        Raises ValueError unless fidelity is within (0, 1), CalibrationError above what the grid reaches.
        """
        if not 0 < fidelity < 1:
            raise ValueError(f"fidelity must lie between 0 and 1, got {fidelity}; 1 is DenseEncoder")
        highest = self.reach[1]
        if fidelity > highest:
            raise CalibrationError(
                f"fidelity {fidelity:g} is above the {highest:.4f} that the calibration reaches; "
                "ask for less, or encode densely"
            )
        found = [(p.cost, p.drop, p.tolerance) for p in self.points if p.fidelity >= fidelity]
        crossings = (self._on_curve(drop, fidelity) for drop in {point.drop for point in self.points})
        cheapest = min(found + [crossing for crossing in crossings if crossing is not None])
        return cheapest[1:]

    def predict(self, roles: str, left_out: Sequence[float]) -> float:
        """Mean fidelity of a plan, expected from what its frames leave out; 1 for a plan of I-frames alone."""
        losses = signals(roles, left_out) @ np.array(self.weights)
        return 1.0 - float(losses.mean()) if len(losses) else 1.0

    def save(self, path: str | Path) -> Path:
        """Write JSON, whole or not at all. Raises FeaturesError where the file cannot be written."""
        path = Path(path)
        content = {"format": FORMAT, "facts": self.facts, "weights": list(self.weights)}
        content["points"] = [asdict(point) for point in self.points]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole([(path, (json.dumps(content, indent=1) + "\n").encode())], path)
        return path

    @classmethod
    def load(cls, path: str | Path, model: Model | None = None) -> Calibration:
        """Read what `save` wrote. Raises CalibrationError where it is missing, damaged or of other weights."""
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise CalibrationError(
                f"{path} cannot be read ({error.strerror or error}); everyframe calibrate makes one"
            ) from error
        except ValueError as error:
            raise CalibrationError(f"{path} is not a calibration (not JSON); everyframe calibrate makes one") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise CalibrationError(f"{path} is not a calibration; everyframe calibrate makes one")
        try:
            calibration = cls(
                points=tuple(Point(**_numbers(point)) for point in content["points"]),
                weights=(float(content["weights"][0]), float(content["weights"][1])),
                facts=dict(content["facts"]),
            )
            calibration.reach  # noqa: B018  at least one point
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise CalibrationError(f"{path} is damaged ({type(error).__name__}: {error}); calibrate again") from error
        made_for = calibration.facts.get("weights_sha256")
        if model is not None and made_for != model.weights_sha256:
            raise CalibrationError(
                f"{path} was measured with {calibration.facts.get('model')}, whose weights are not those of "
                f"{model.name}; calibrate with this model"
            )
        return calibration

    def _on_curve(self, drop: float, fidelity: float) -> tuple[float, float, float] | None:
        """(cost, drop, tolerance) where the curve of one drop passes `fidelity`, if it does."""
        curve = sorted((point for point in self.points if point.drop == drop), key=lambda point: point.tolerance)
        for near, far in pairwise(curve):
            if near.fidelity >= fidelity >= far.fidelity:
                span = near.fidelity - far.fidelity
                share = (near.fidelity - fidelity) / span if span else 0.0
                # Loss grows about with the logarithm of the tolerance.
                tolerance = near.tolerance ** (1 - share) * far.tolerance**share
                return (1 - share) * near.cost + share * far.cost, drop, float(f"{tolerance:.4g}")
        return None


def signals(roles: str, left_out: Sequence[float]) -> np.ndarray:
    """What the predictor sees of each frame: float64 [T, 2], what it leaves out and the sum since its I-frame."""
    return np.stack((np.array(left_out, np.float64), np.array(debts(roles, left_out), np.float64)), axis=1)


def shipped_calibration(model: Model) -> Path | None:
    """The calibration beside the model's weights, if there is one."""
    file = None if model.folder is None else Path(model.folder) / SHIPPED_FILE
    return file if file is not None and file.is_file() else None


def resolve_calibration(calibration: str | Path | Calibration, model: Model) -> Calibration:
    """ "auto" (what lies beside the model's weights), a file, or a calibration itself; raises CalibrationError."""
    if isinstance(calibration, Calibration):
        return calibration
    if calibration != "auto":
        return Calibration.load(calibration, model)
    file = shipped_calibration(model)
    if file is None:
        raise CalibrationError(
            f"a fidelity needs a calibration, and none comes with {model.name}; "
            "make one from your own videos with: everyframe calibrate VIDEO... --model ... --out calibration.json"
        )
    return Calibration.load(file, model)


def _numbers(point: Mapping[str, Any]) -> dict[str, float]:
    numbers = {name: float(value) for name, value in point.items()}
    if not all(map(math.isfinite, numbers.values())):
        raise ValueError("a number is not finite")
    return numbers
