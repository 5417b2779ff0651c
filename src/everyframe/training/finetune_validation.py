"""How well a model that is being fitted finds the held-out videos by their captions."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from everyframe.tasks.ranking import retrieval
from everyframe.training.errors import TrainingError
from everyframe.training.pairs import FrameStore, Pairs
from everyframe.training.ranks import Ranks


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Recalls in percent and mean ranks: from text to video, and (`v2t_`) from video to text."""

    r1: float
    r5: float
    r10: float
    mean_rank: float
    v2t_r1: float
    v2t_r5: float
    v2t_r10: float
    v2t_mean_rank: float

    @property
    def r_sum(self) -> float:
        """R@1 + R@5 + R@10 from text to video, the paper's R-Sum: 300 at most."""
        return self.r1 + self.r5 + self.r10

    def better_than(self, other: Scores) -> bool:
        """By R-Sum, and where that is the same (few videos reach 300 soon) by the mean rank."""
        return (self.r_sum, -self.mean_rank) > (other.r_sum, -other.mean_rank)


class Validation:
    """Captioned videos that are not trained on. Captions that read the same are one text with several videos."""

    def __init__(self, pairs: Pairs, ids: Tensor, store: FrameStore, ranks: Ranks, part: int) -> None:
        if len(pairs.segments) < 2:
            raise TrainingError(
                f"{len(pairs.segments)} videos to validate with are too few: give at least 2 that can be read"
            )
        self.store, self._ranks, self._part = store, ranks, part
        self._videos = len(pairs.segments)
        rows: dict[str, int] = {}
        videos_of: dict[str, set[int]] = {}
        for row, (caption, video) in enumerate(zip(pairs.captions, pairs.of.tolist(), strict=True)):
            rows.setdefault(caption, row)
            videos_of.setdefault(caption, set()).add(video)
        self._ids = ids[list(rows.values())]
        self._right = [sorted(videos_of[caption]) for caption in rows]

    @torch.no_grad()
    def scores(self, videos: Callable[[Tensor], Tensor], texts: Callable[[Tensor], Tensor]) -> Scores:
        """videos: frames uint8 [b, F, 3, S, S] -> features [b, D]; texts: token ids [b, L] -> [b, D]; unit rows.

        Every process encodes its share, and all return the same. Raises TrainingError when fewer than 2 videos can
        be read.
        """
        of_texts = self._shared(len(self._ids), lambda rows: texts(self._ids[rows]))
        of_videos = self._shared(self._videos, lambda rows: self._encode(rows, videos, of_texts))
        readable = of_videos.isfinite().all(dim=1).cpu().numpy()
        if readable.sum() < 2:
            raise TrainingError(
                f"only {readable.sum()} of {self._videos} videos to validate with can be read; failures.txt lists why"
            )
        number = np.cumsum(readable) - 1
        right = [[int(number[video]) for video in some if readable[video]] for some in self._right]
        kept = [row for row, some in enumerate(right) if some]
        matrix = (of_texts[kept] @ of_videos[torch.from_numpy(readable).to(of_videos.device)].T).cpu().numpy()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of ties, which count half: good enough to choose by
            found = retrieval(matrix, matrix.T, [right[row] for row in kept])
        forth, back = found.t2v, found.v2t
        return Scores(
            r1=forth.r1,
            r5=forth.r5,
            r10=forth.r10,
            mean_rank=forth.mean_rank,
            v2t_r1=back.r1,
            v2t_r5=back.r5,
            v2t_r10=back.r10,
            v2t_mean_rank=back.mean_rank,
        )

    def _encode(self, rows: list[int], videos: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
        """Features [len(rows), D]; NaN for videos that cannot be read."""
        found = self.store.read(rows)
        features = torch.full((len(rows), like.shape[1]), torch.nan, device=like.device)
        readable = [place for place, row in enumerate(rows) if row in found]
        if readable:
            features[readable] = videos(torch.from_numpy(np.stack([found[rows[place]] for place in readable])))
        return features

    def _shared(self, count: int, encode: Callable[[list[int]], Tensor]) -> Tensor:
        """Rows 0 .. count - 1 of `encode`, each computed by one process."""
        own = -(-count // self._ranks.count)
        rows = [min(self._ranks.rank * own + place, count - 1) for place in range(own)]
        parts = [rows[first : first + self._part] for first in range(0, own, self._part)]
        return self._ranks.gather(torch.cat([encode(part) for part in parts]))[:count]
