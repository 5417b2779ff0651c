"""Video-text retrieval as UMT and vid-TLDR measure it: a dual encoder, then a cross-encoder on its best candidates.

Also as TempMe measures it: the dual encoder alone, of a CLIP model that reads frames (`FrameReader`).

T texts, V videos, D width of the joint space, n tokens of a clip, W their width
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from everyframe.backbone import ModelError
from everyframe.evaluation.annotations import RetrievalSet
from everyframe.evaluation.clips import (
    Failure,
    Found,
    Progress,
    Reader,
    Sampling,
    as_numpy,
    read_videos,
    reader_settings,
)
from everyframe.evaluation.cuts import CutTexts
from everyframe.evaluation.frame_reader import FrameReader
from everyframe.evaluation.outcome import Outcome, check_some_left, facts_of
from everyframe.tasks.ranking import UNRANKED, Retrieval, best_candidates, retrieval

if TYPE_CHECKING:
    from typing_extensions import Self

RERANK = 128
"""Candidates per query that the cross-encoder sees, in UMT's evaluation."""


def evaluate_retrieval(
    reader: Reader,
    items: RetrievalSet,
    folder: str | os.PathLike[str],
    *,
    rerank: int | None = None,
    max_tokens: int | None = None,
    sampling: Sampling | None = None,
    dataset: str | None = None,
    cache: str | os.PathLike[str] | None = None,
    keep_partial: bool = False,
    progress: Progress | None = None,
) -> Outcome:
    """Recall both ways between the texts and videos of a split.

    Dual encoder: cosines of video and text features. Re-ranked: of each video the `rerank` best texts and of each text
    the `rerank` best videos are scored by `model.match` on the reduced tokens, every other pair is below them all.
    rerank=0 leaves it out, as dual-encoder models need; default 128, and 0 for an image model. max_tokens: of a text,
    where the model lets one choose. sampling: default the reader's own, else the middle frames, within the seconds that
    the annotations say.

    Videos that are missing or unreadable are left out together with texts that have no other video, and so are texts
    that are empty in the file; the result says which. cache: a folder for features and tokens, so that a killed run
    goes on where it was.

    Raises ModelError where the model cannot do it, ValueError where no video is left.
    """
    model = reader.model
    if rerank is None:
        rerank = 0 if isinstance(reader, FrameReader) else RERANK
    if rerank < 0:
        raise ValueError(f"rerank must be at least 0, got {rerank}; 0 reports the dual encoder alone")
    if rerank and isinstance(reader, FrameReader):
        raise ModelError(
            f"{model.name} has no cross-encoder, so it cannot match texts; rerank 0 (--rerank 0) reports the dual "
            "encoder alone"
        )
    kind = reader.sampling if isinstance(reader, FrameReader) else "middle"
    sampling = sampling or Sampling(kind=kind, end_seconds=items.end_seconds)
    sampling.check_one_clip()
    options: dict[str, Any] = {} if max_tokens is None else {"max_tokens": max_tokens}
    if not isinstance(reader, FrameReader) and not hasattr(model, "frames"):
        raise TypeError(f"{model.name} reads single frames; FrameReader(encoder, frames=12) makes it read videos")
    _check_text(model, items.texts[0], max_tokens)
    with TokenStore(cache) as store:
        kept, features, failures = _read(
            reader, items, folder, sampling, store if rerank else None, options,
            cache=cache, keep_partial=keep_partial, progress=progress,
        )  # fmt: skip
        left = items.only(kept)
        cuts = CutTexts()
        with cuts.heard():
            texts = model.encode_text(left.texts, **options).float().cpu()
        cuts.say()
        similarity = (texts @ features.T).numpy()
        dual = retrieval(similarity, similarity.T, left.videos_of_text)
        metrics = {"dual encoder": flat(dual)}
        if rerank:
            with cuts.heard():  # the same texts once more
                scores = _rescored(model, left.texts, store, similarity, rerank, options, progress)
            metrics = {"re-ranked": flat(retrieval(*scores, left.videos_of_text)), **metrics}
    return Outcome(
        task="retrieval",
        dataset=dataset,
        metrics=metrics,
        videos=len(left.videos),
        wanted=items.num_named,
        queries=len(left.texts),
        settings={**reader_settings(reader, sampling), "rerank": rerank, "max_tokens": max_tokens},
        annotations=[{"path": items.path, "sha256": items.sha256, "layout": items.layout}],
        failures=(*failures, *(Failure(each.video, "no text", each.why) for each in items.skipped)),
        **facts_of(reader),
    )


def flat(result: Retrieval) -> dict[str, float]:
    """Both directions and their means as one dict, under the names of the paper's tables."""
    names: dict[str, float] = {}
    for way, one in (("T2V", result.t2v), ("V2T", result.v2t)):
        names |= {f"{way} R@1": one.r1, f"{way} R@5": one.r5, f"{way} R@10": one.r10, f"{way} R-Sum": one.r_sum}
        names |= {f"{way} MdR": one.median_rank, f"{way} MnR": one.mean_rank}
    return names | {"mean R@1": result.r1, "mean R@5": result.r5, "mean R@10": result.r10}


class TokenStore:
    """The tokens of many clips on disk, in the order they were added.

    The file has no name where the system allows it, so that it goes with the process, however that ends.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None):
        try:
            if folder is not None:
                Path(folder).mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed by __exit__)
        except OSError as error:
            raise ValueError(f"cannot write to {folder}: {error.strerror or error}; choose another cache") from error
        self._rows: np.memmap[Any, Any] | None = None
        self._dtype: torch.dtype | None = None
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rows = None
        self._file.close()

    def add(self, tokens: Tensor, most: int) -> None:
        """Append the tokens [n, W] of one clip, of `most` in all."""
        row = as_numpy(tokens)
        if self._rows is None:
            self._dtype = tokens.dtype
            self._rows = np.memmap(self._file, dtype=row.dtype, mode="w+", shape=(most, *row.shape))
        self._rows[self._count] = row
        self._count += 1

    def __getitem__(self, number: int) -> Tensor:
        if self._rows is None or not 0 <= number < self._count:
            raise IndexError(number)
        tokens = torch.from_numpy(np.array(self._rows[number]))
        return tokens.view(torch.bfloat16) if self._dtype == torch.bfloat16 else tokens


def _read(
    reader: Reader,
    items: RetrievalSet,
    folder: str | os.PathLike[str],
    sampling: Sampling,
    store: TokenStore | None,
    text_options: dict[str, Any],
    **options: Any,
) -> tuple[list[bool], Tensor, list[Failure]]:
    """Which videos could be read, their features [V, D], and the others. Their tokens go into `store`, if any."""
    names = ("feature",) if store is None else ("feature", "tokens")
    kept = [False] * len(items.videos)
    features: list[Tensor] = []
    failures: list[Failure] = []

    def compute(number: int, clips: Tensor) -> Found:
        if store is None:
            return {"feature": reader.encode(clips)[0]}
        tokens = reader.tokens(clips).tokens
        return {"feature": reader.pool(tokens)[0], "tokens": tokens[0]}

    for number, result in read_videos(reader, items.videos, folder, sampling, compute, names=names, **options):
        if isinstance(result, Failure):
            failures.append(result)
            continue
        if store is not None:
            if not features:
                _check_match(reader.model, items.texts[0], result["tokens"], text_options)
            store.add(result["tokens"], len(items.videos))
        kept[number] = True
        features.append(result["feature"].float())
    check_some_left(features, failures)
    return kept, torch.stack(features), failures


def _rescored(
    model: Any,
    texts: Sequence[str],
    store: TokenStore,
    similarity: NDArray[np.floating],
    rerank: int,
    options: dict[str, Any],
    progress: Progress | None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """t2v [T, V] and v2t [V, T] by the cross-encoder, `UNRANKED` where it was not asked.

    A pair's score is the same whichever side asked for it, so each is computed once.
    """
    num_videos = similarity.shape[1]
    by_text = np.zeros(similarity.shape, dtype=bool)
    by_video = np.zeros(similarity.shape, dtype=bool)
    np.put_along_axis(by_text, best_candidates(similarity, rerank), True, axis=1)
    np.put_along_axis(by_video.T, best_candidates(similarity.T, rerank), True, axis=1)
    scores = np.full(similarity.shape, UNRANKED, dtype=np.float32)
    for video in range(num_videos):
        asked = np.flatnonzero(by_text[:, video] | by_video[:, video])
        if len(asked):
            tokens = store[video][None].to(model.device)
            chosen = [texts[text] for text in asked.tolist()]
            scores[asked, video] = model.match(chosen, tokens, **options).cpu().numpy()
        if progress is not None:
            progress("re-ranking", video + 1, num_videos)
    t2v = np.where(by_text, scores, np.float32(UNRANKED))
    v2t = np.where(by_video, scores, np.float32(UNRANKED)).T
    return t2v, v2t


def _check_text(model: Any, text: str, max_tokens: int | None) -> None:
    """Fail before the first video where there is no text tower, or where its texts cannot be limited."""
    if max_tokens is not None and model.family not in ("umt", "clip"):
        raise ValueError(f"max_tokens has no meaning with {model.name}: only the texts of UMT and CLIP can be cut")
    with CutTexts().heard():
        model.encode_text([text], **({} if max_tokens is None else {"max_tokens": max_tokens}))


def _check_match(model: Any, text: str, tokens: Tensor, options: dict[str, Any]) -> None:
    """Fail at the first video where there is no cross-encoder, not after the last."""
    try:
        with CutTexts().heard():
            model.match([text], tokens[None].to(model.device), **options)
    except ModelError as error:
        raise ModelError(f"{error}; rerank 0 (--rerank 0) reports the dual encoder alone") from error
