"""From class scores and answers to accuracies: top-k, views of one clip, base and novel classes, question types.

V videos, C classes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

QUESTION_TYPES = ("what", "who", "how", "when", "where")


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Percentages over `videos`."""

    videos: int
    top1: float
    top5: float


@dataclass(frozen=True, kw_only=True)
class AnswerAccuracy:
    """Percentage of exact answers; by first word of the question, with how many there are: (accuracy, questions)."""

    questions: int
    overall: float
    by_type: dict[str, tuple[float, int]]


def mean_of_views(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Logits of several views of one video [views, C] -> probabilities float64 [C].

    The softmax comes first, then the mean, as in VideoMAE's evaluation.
    """
    values = np.asarray(logits, dtype=np.float64)
    values = np.exp(values - values.max(axis=1, keepdims=True))
    return np.asarray((values / values.sum(axis=1, keepdims=True)).mean(axis=0))


def accuracy(scores: NDArray[np.floating], labels: Sequence[int]) -> Accuracy:
    """Top-1 and top-5 of scores [V, C] (higher is better) against labels [V].

    A label counts as found in the best k when fewer than k other classes score as high as it or higher: with equal
    scores nothing is won. Raises ValueError for other shapes, NaN, or a label that is no class.
    """
    scores, wanted = np.asarray(scores), np.asarray(labels, dtype=np.int64)
    if scores.ndim != 2 or len(scores) != len(wanted) or not len(wanted):
        raise ValueError(
            f"scores must be [V, C] with one label per row, got {list(scores.shape)}, {len(wanted)} labels"
        )
    if np.isnan(scores).any():
        raise ValueError("scores contain NaN, so no class can be chosen; encode in float32 and try again")
    if wanted.min() < 0 or wanted.max() >= scores.shape[1]:
        wrong = int(wanted.max() if wanted.max() >= scores.shape[1] else wanted.min())
        raise ValueError(f"label {wrong} is none of the {scores.shape[1]} classes, which are numbered from 0")
    ahead = ahead_of(scores, wanted)
    return Accuracy(videos=len(wanted), top1=100 * float((ahead < 1).mean()), top5=100 * float((ahead < 5).mean()))


def ahead_of(scores: NDArray[np.floating], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many other classes score as high as the right one or higher: int64 [V] from scores [V, C], labels [V]."""
    own = scores[np.arange(len(labels)), labels][:, None]
    return np.asarray((scores >= own).sum(axis=1) - 1, dtype=np.int64)


def harmonic_mean(base: float, novel: float) -> float:
    """2 b n / (b + n), what base-to-novel tables call HM; 0 where both are 0."""
    return 2 * base * novel / (base + novel) if base + novel else 0.0


def answer_accuracy(given: Sequence[str], expected: Sequence[str], questions: Sequence[str]) -> AnswerAccuracy:
    """Share of answers that equal the expected ones, letter for letter.

    By type: the first word of the question, where it is one of `QUESTION_TYPES`, else "other". Raises ValueError for
    lists of different lengths or none.
    """
    if not (len(given) == len(expected) == len(questions)) or not questions:
        raise ValueError(
            "given, expected and questions must be as many and at least one, got "
            f"{len(given)}, {len(expected)} and {len(questions)}"
        )
    exact = np.array([own == right for own, right in zip(given, expected, strict=True)])
    first = [(question.split() or [""])[0].lower() for question in questions]
    kinds = np.array([word if word in QUESTION_TYPES else "other" for word in first])
    by_type = {
        kind: (100 * float(exact[kinds == kind].mean()), int((kinds == kind).sum()))
        for kind in (*QUESTION_TYPES, "other")
        if (kinds == kind).any()
    }
    return AnswerAccuracy(questions=len(questions), overall=100 * float(exact.mean()), by_type=by_type)
