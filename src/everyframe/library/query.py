"""What is looked for: vectors to be near to, and vectors to be far from; and how a text says both."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everyframe.features import as_array

NEGATIVE_WEIGHT = 0.25
"""The best of benchmarks/negatives.py."""

# A minus that begins a word: not the hyphen inside one, nor a dash that stands alone. Keyboards of phones make other
# dashes of it.
_NEGATIVE = re.compile(r'(?<!\S)[-\u2212\u2013](?:"(?P<quoted>[^"]*)"?|(?P<word>[^\s"\-\u2212\u2013]\S*))')
_CURLY = str.maketrans({"\u201c": '"', "\u201d": '"', "\u201e": '"', "\u00ab": '"', "\u00bb": '"'})


@dataclass(frozen=True)
class TextQuery:
    """Texts to look for, and texts to stay away from."""

    positive: tuple[str, ...]
    negative: tuple[str, ...] = ()


def parse_query(*texts: str) -> TextQuery:
    """'beach -people -"two dogs"' is: a beach, without people, without two dogs.

    A minus in front of a word, or of words in quotes, makes it a negative; one inside a word or alone does not. What
    is left of each text is one positive text, in which quotes stay; empty ones are left out. Several texts combine.
    """
    positive: list[str] = []
    negative: list[str] = []
    for text in texts:
        text = text.translate(_CURLY)
        for found in _NEGATIVE.finditer(text):
            negative.append(" ".join((found["quoted"] or found["word"] or "").split()))
        positive.append(" ".join(_NEGATIVE.sub(" ", text).split()))
    return TextQuery(tuple(filter(None, positive)), tuple(filter(None, negative)))


@dataclass(frozen=True, eq=False)
class Query:
    """Vectors [dim] to be near to, and vectors to be far from; arrays or tensors of any length but zero.

    The score of a frame is its mean cosine to the positives, minus `negative_weight` times that to the negatives. That
    is linear in the frame, so the same as the product with one vector: no slower, and as exact, as one query.
    """

    positive: tuple[Any, ...]
    negative: tuple[Any, ...] = ()
    negative_weight: float = NEGATIVE_WEIGHT

    def __post_init__(self) -> None:
        if not len(self.positive):
            raise ValueError("a query needs something to look for besides what to leave out")
        if not (np.isfinite(self.negative_weight) and self.negative_weight >= 0):
            raise ValueError(f"negative_weight must be a number >= 0, got {self.negative_weight}")


@dataclass(frozen=True)
class Direction:
    """A query as search uses it. A row's score is its cosine to `unit`, float32 [dim] of length one, times `length`."""

    unit: NDArray[np.float32]
    length: float

    def mean_score(self, mean: NDArray[np.float32]) -> float:
        """Of rows whose mean, each normalised, is `mean` [dim]."""
        return float(mean.astype(np.float64) @ self.unit.astype(np.float64)) * self.length

    def scores(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """float32 [n] of rows [n, dim] of any length but zero."""
        scores = np.empty(len(rows), dtype=np.float32)
        for first in range(0, len(rows), 8192):  # blocks: float16 widens without a second copy
            block = rows[first : first + 8192].astype(np.float32, copy=False)
            lengths = np.sqrt(np.einsum("td,td->t", block, block))
            scores[first : first + 8192] = (block @ self.unit) / lengths
        return self.scaled(scores)

    def scaled(self, cosines: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scores of cosines to `unit`."""
        np.clip(cosines, -1.0, 1.0, out=cosines)
        return cosines if self.length == 1.0 else cosines * np.float32(self.length)


def direction(query: Any, dim: int, model: str) -> Direction:
    """Of a `Query`, or of one vector [dim]. model: what to encode queries with, for messages.

    Raises ValueError for vectors that are not finite, zero, or of another dim, and for positives and negatives that
    leave nothing; TypeError for a text.
    """
    if not isinstance(query, Query):
        return Direction(_unit(query, dim, model), 1.0)
    vector = np.stack([_unit(each, dim, model) for each in query.positive]).mean(axis=0, dtype=np.float64)
    if query.negative:
        away = np.stack([_unit(each, dim, model) for each in query.negative]).mean(axis=0, dtype=np.float64)
        vector = vector - query.negative_weight * away
    length = float(np.linalg.norm(vector))
    if length < 1e-6:
        raise ValueError("what is looked for and what is to be left out cancel each other; ask for something else")
    return Direction((vector / length).astype(np.float32), length)


def _unit(query: Any, dim: int, model: str) -> NDArray[np.float32]:
    if isinstance(query, str):
        raise TypeError(f"query must be a vector, got {query!r}; encode it: model.encode_text([...])[0]")
    vector = as_array(query).astype(np.float32)
    if vector.ndim != 1:
        raise ValueError(
            f"query must be one vector [{dim}], got shape {list(vector.shape)}; "
            "pass one row of what encode_text returned"
        )
    if len(vector) != dim:
        raise ValueError(
            f"query has {len(vector)} dimensions but the features have {dim}; "
            f"encode the query with the model of the features ({model})"
        )
    length = np.linalg.norm(vector)
    if not np.isfinite(length) or not length:
        raise ValueError("query must be a finite vector that is not all zeros")
    return (vector / length).astype(np.float32)
