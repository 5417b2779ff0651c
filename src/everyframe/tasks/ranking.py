"""How well scores rank what belongs together: recall at K, median and mean rank, both ways between texts and videos.

The rank of a query is that of its best right answer, counted from 1: 1 + the wrong ones that score higher + half of the
wrong ones that score the same. So a tie is neither won nor lost, and no order of the files can change a result, which
an argsort does not give (CLIP4Clip issue 80).

    T texts, V videos, Q queries, C candidates
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RECALL_AT = (1, 5, 10)
UNRANKED = -100.0
"""What a cross-encoder's score matrix holds for the pairs it was not asked about, as UMT has it."""


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """One direction of retrieval. Recalls are percentages, ranks count from 1."""

    queries: int
    r1: float
    r5: float
    r10: float
    median_rank: float
    mean_rank: float

    @property
    def r_sum(self) -> float:
        """R@1 + R@5 + R@10, of 300: what TempMe is chosen and compared by."""
        return self.r1 + self.r5 + self.r10


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """Both directions; `r1`, `r5`, `r10` are their means, as in the paper's Table 2."""

    t2v: Ranking
    v2t: Ranking

    @property
    def r1(self) -> float:
        return (self.t2v.r1 + self.v2t.r1) / 2

    @property
    def r5(self) -> float:
        return (self.t2v.r5 + self.v2t.r5) / 2

    @property
    def r10(self) -> float:
        return (self.t2v.r10 + self.v2t.r10) / 2


def ranks_of(scores: NDArray[np.floating], right: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """The rank of each query's best right answer.

    scores: [Q, C], higher is better. right: for each query the candidates that answer it, at least one. Returns
    float64 [Q]. Warns once when a right answer ties with a wrong one; ties at `UNRANKED` are expected and count
    silently. Raises ValueError for other shapes, NaN, or a query without right answer.
    """
    ranks, tied = _ranks_and_ties(scores, right)
    _warn_of_ties(tied, len(right))
    return ranks


def _ranks_and_ties(scores: NDArray[np.floating], right: Sequence[Sequence[int]]) -> tuple[NDArray[np.float64], int]:
    """The ranks, and how many of them a tie decided."""
    scores = np.asarray(scores)
    if scores.ndim != 2 or len(scores) != len(right):
        raise ValueError(f"scores must be [{len(right)}, C], one row per query, got {list(scores.shape)}")
    if np.isnan(scores).any():
        raise ValueError("scores contain NaN, so nothing can be ranked; encode in float32 and try again")
    ranks = np.empty(len(right))
    tied = 0
    for query, answers in enumerate(right):
        row = scores[query]
        chosen = np.unique(np.asarray(answers, dtype=np.int64))
        if not len(chosen) or chosen[0] < 0 or chosen[-1] >= len(row):
            raise ValueError(f"query {query} must have right answers among 0..{len(row) - 1}, got {list(answers)}")
        best = row[chosen].max()
        wrong = np.delete(row, chosen)
        equal = int((wrong == best).sum())
        ranks[query] = 1 + (wrong > best).sum() + equal / 2
        tied += equal > 0 and best != UNRANKED
    return ranks, tied


def _warn_of_ties(tied: int, queries: int) -> None:
    if tied:
        warnings.warn(
            f"{tied} of {queries} queries have a wrong answer with exactly the score of the right one; each tie counts "
            "half a rank",
            stacklevel=3,
        )


def ranking(ranks: NDArray[np.float64]) -> Ranking:
    """Recall at 1, 5 and 10, median and mean of ranks [Q]. Raises ValueError for none."""
    if not len(ranks):
        raise ValueError("there are no ranks to average")
    r1, r5, r10 = (100 * float((ranks <= k).mean()) for k in RECALL_AT)
    return Ranking(
        queries=len(ranks),
        r1=r1,
        r5=r5,
        r10=r10,
        median_rank=float(np.median(ranks)),
        mean_rank=float(ranks.mean()),
    )


def retrieval(
    t2v: NDArray[np.floating], v2t: NDArray[np.floating], videos_of_text: Sequence[Sequence[int]]
) -> Retrieval:
    """Both directions from their score matrices.

    t2v: [T, V]; v2t: [V, T], its transpose unless a re-ranker made them apart. videos_of_text: for each text the videos
    it describes; a video counts the best of its texts. Raises ValueError as `ranks_of` does.
    """
    num_texts, num_videos = np.shape(t2v)
    if np.shape(v2t) != (num_videos, num_texts):
        raise ValueError(f"v2t must be [{num_videos}, {num_texts}] where t2v is [{num_texts}, {num_videos}]")
    texts_of_video: list[list[int]] = [[] for _ in range(num_videos)]
    for text, videos in enumerate(videos_of_text):
        for video in videos:
            texts_of_video[video].append(text)
    (of_texts, tied), (of_videos, more) = _ranks_and_ties(t2v, videos_of_text), _ranks_and_ties(v2t, texts_of_video)
    _warn_of_ties(tied + more, num_texts + num_videos)
    return Retrieval(t2v=ranking(of_texts), v2t=ranking(of_videos))


def best_candidates(scores: NDArray[np.floating], top: int) -> NDArray[np.int64]:
    """The best candidates of each row of scores [Q, C], best first, the earlier of equals: int64 [Q, min(top, C)]."""
    if top < 1:
        raise ValueError(f"top must be at least 1, got {top}")
    return np.argsort(-np.asarray(scores), axis=1, kind="stable")[:, :top].astype(np.int64)
