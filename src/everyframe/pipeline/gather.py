"""What becomes of a video's features as they come, chunk by chunk: all of them are kept, or a recipe for them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, TypeVar

import numpy as np

from everyframe.encoders import Encoder, Plan, ResidualViT
from everyframe.features import VideoFeatures
from everyframe.pipeline.recipe import Recipe

T_co = TypeVar("T_co", covariant=True)


class Gatherer(Protocol[T_co]):
    """Takes the features of one video."""

    def add(self, times: list[float], plan: Plan, features: np.ndarray) -> None:
        """Those of the next chunk: float32 [T, D]."""
        ...

    def finish(self, provenance: dict[str, Any]) -> T_co:
        """What came of them; provenance: video, model, settings, end_seconds."""
        ...


class AllFeatures:
    """Keeps the features of every frame."""

    def __init__(self, encoder: Encoder, dtype: str) -> None:
        self._times: list[float] = []
        self._roles: list[str] = []
        self._rows = _Rows(encoder.dim, dtype)

    def add(self, times: list[float], plan: Plan, features: np.ndarray) -> None:
        self.extend(times, plan.roles, features)

    def extend(self, times: Iterable[float], roles: str, features: np.ndarray) -> None:
        """Those of any number of frames: float32 [T, D]."""
        self._times.extend(times)
        self._roles.append(roles)
        self._rows.add(features)

    def finish(self, provenance: dict[str, Any]) -> VideoFeatures:
        times = np.array(self._times, np.float64)
        return VideoFeatures(times=times, embeddings=self._rows.finish(), roles="".join(self._roles), **provenance)


class PlanAndIFeatures:
    """Keeps the plan and the features of I-frames."""

    def __init__(self, encoder: Encoder, dtype: str) -> None:
        self._settings = {**encoder.settings, "batch_size": encoder.batch_size}
        self._times: list[float] = []
        self._plans: list[Plan] = []
        self._chunks: list[int] = []
        # ResidualViT's P-features are computed from I-features: from rounded ones they would not be the same.
        self._rows = _Rows(encoder.dim, "float32" if isinstance(encoder, ResidualViT) else dtype)

    def add(self, times: list[float], plan: Plan, features: np.ndarray) -> None:
        self._chunks.append(len(self._times))
        self._times += times
        self._plans.append(plan)
        self._rows.add(features[[role == "I" for role in plan.roles]])

    def finish(self, provenance: dict[str, Any]) -> Recipe:
        return Recipe(
            times=np.array(self._times, np.float64),
            plan=Plan.joined(self._plans),
            i_features=self._rows.finish(),
            chunks=np.array(self._chunks, np.int64),
            encoder=self._settings,
            **provenance,
        )


class _Rows:
    """Embeddings as they come, in one array that grows in place: of a long video no second copy is ever held."""

    def __init__(self, dim: int, dtype: str) -> None:
        self._count = 0
        self._array = np.empty((0, dim), dtype)

    def add(self, embeddings: np.ndarray) -> None:
        first, self._count = self._count, self._count + len(embeddings)
        if self._count > len(self._array):
            self._array.resize((max(self._count, 5 * len(self._array) // 4), self._array.shape[1]), refcheck=False)
        self._array[first : self._count] = embeddings

    def finish(self) -> np.ndarray:
        """[T, dim], exactly the rows that were added."""
        self._array.resize((self._count, self._array.shape[1]), refcheck=False)
        return self._array
