"""Grounding as the papers measure it: somebody's predictions scored, or a model's own answers on a benchmark.

Zero-shot: every frame's feature is compared with the sentence, nothing is trained (`everyframe.tasks.grounding`).
Beside any result stand the floors, answers that look at nothing: the whole video, its first third, its centre half. On
some splits they are hard to beat.

    Q queries, T frames, D width of the joint space
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everyframe.backbone import Model
from everyframe.cost import flops
from everyframe.encoders import DenseEncoder, Encoder
from everyframe.evaluation.clips import Failure, Progress
from everyframe.evaluation.cuts import CutTexts
from everyframe.evaluation.frame_features import Costs, EncodedVideos, StoredFeatures
from everyframe.evaluation.grounding_result import GroundingOutcome, GroundingRow, PredictionScores
from everyframe.evaluation.moment_files import MomentQuery, MomentSet
from everyframe.evaluation.moment_predictions import Answer, Predictions, match, unsorted
from everyframe.evaluation.moments import (
    CLIP_SECONDS,
    IOUS,
    TOPS,
    first_answer_metrics,
    highlight_metrics,
    moment_metrics,
    saliency_table,
)
from everyframe.evaluation.published_grounding import published
from everyframe.evaluation.reading import AnnotationError
from everyframe.features import VideoFeatures
from everyframe.tasks.grounding import Method, Rule, ground_many, similarities

FLOORS: dict[str, tuple[float, float]] = {
    "whole video": (0.0, 1.0),
    "first third": (0.0, 1 / 3),
    "centre half": (0.25, 0.75),
}
"""Start and end as shares of the video."""


@dataclass(frozen=True, kw_only=True)
class Grounding:
    """How moments are found and judged.

    method, smooth (seconds), threshold, overlap: of `everyframe.tasks.grounding.ground`. tops: the K of R@K; the
    largest is how many moments each query gets. strict: an answer must be above an IoU, not at it. clip_gt: true
    windows are cut to the video.
    """

    method: Method = "watershed"
    smooth: float = 5.0
    threshold: float = 1.0
    overlap: float = 0.5
    tops: tuple[int, ...] = TOPS
    strict: bool = False
    clip_gt: bool = False

    def __post_init__(self) -> None:
        Rule(**self.options)  # raises ValueError for those out of range

    @property
    def options(self) -> dict[str, Any]:
        """Those of `ground`."""
        own = {name: getattr(self, name) for name in ("method", "smooth", "threshold", "overlap")}
        return {**own, "top": max(self.tops)}

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the scores, for provenance."""
        return {**self.options, "tops": list(self.tops), "strict": self.strict, "clip_gt": self.clip_gt}


def score_predictions(
    items: MomentSet,
    predictions: Predictions,
    *,
    tops: Sequence[int] = TOPS,
    strict: bool = False,
    with_floors: bool = False,
) -> PredictionScores:
    """Every measure of somebody's answers; a query without an answer is a missed one.

    Highlights are scored where the annotations have saliency and any prediction has. Raises AnnotationError where the
    predictions answer none of the queries, or floors are asked for and the length of a video is not known.
    """
    answers, faults = match(items, predictions)
    return PredictionScores(
        metrics=_scores(items.queries, answers, tops=tops, strict=strict),
        floors=floors(items, strict=strict) if with_floors else {},
        annotations=items.facts(),
        predictions={
            "path": predictions.path,
            "sha256": predictions.sha256,
            "queries_missed": sum(answer is None for answer in answers),
            "not_in_order_of_score": unsorted(answers),
        },
        faults=(*items.faults, *predictions.faults, *faults),
        missed=tuple(query.qid for query, answer in zip(items.queries, answers, strict=True) if answer is None),
    )


def floors(items: MomentSet, *, strict: bool = False) -> dict[str, dict[str, float]]:
    """R@1 and mIoU of the answers that look at nothing. Raises AnnotationError where a video's length is not known."""
    if items.without_duration:
        raise AnnotationError(
            f"{items.path}: floors need the length of every video, but that of {items.without_duration[0]} is not "
            "known; give --durations, a file of lengths"
        )
    truth = _truth(items.queries)
    lengths = np.array([query.duration for query in items.queries])
    return {
        name: first_answer_metrics(truth, lengths[:, None] * np.array(share), strict=strict)
        for name, share in FLOORS.items()
    }


def evaluate_grounding(
    items: MomentSet,
    sources: Mapping[str, EncodedVideos | StoredFeatures],
    *,
    how: Grounding | None = None,
    dataset: str | None = None,
    progress: Progress | None = None,
) -> GroundingOutcome:
    """Ground the queries of a split in the features of each source, and score the answers.

    sources: by the name that their row gets, all of one model. Videos that are missing or unreadable in any of them are
    left out with their queries, so that all rows are of the same queries; the result says which.

    Raises ValueError for sources of several models and where no video is left.
    """
    how = how or Grounding()
    models = [_model_of(source) for source in sources.values()]
    if any(model is not models[0] for model in models):
        raise ValueError("the sources must be of one model")
    sentences = _Sentences(models[0], items)
    runs = []
    for name, source in sources.items():
        run = _Run(items, sentences, how)
        for number, feats in source.read(items.videos, None if progress is None else _renamed(progress, name)):
            run.add(items.videos[number], feats)
        runs.append(run)
    rows = [_Row.of(name, source, run, dataset, how) for (name, source), run in zip(sources.items(), runs, strict=True)]
    settings = {"model": models[0].name, "weights_sha256": models[0].weights_sha256, **how.settings}
    return _outcome(items, runs, rows, how, dataset, settings)


class _Run:
    """One encoder's answers, gathered video by video."""

    def __init__(self, items: MomentSet, sentences: _Sentences, how: Grounding) -> None:
        self._how = how
        self._sentences = sentences
        self._numbers: dict[str, list[int]] = {}
        self._queries = items.queries
        for number, query in enumerate(items.queries):
            self._numbers.setdefault(query.video, []).append(number)
        self.answers: list[Answer | None] = [None] * len(items.queries)
        self.seconds: dict[str, float] = {}
        self.failures: list[Failure] = []
        self.costs = Costs()
        self.settings: dict[str, Any] = {}
        """Of the first features."""

    def add(self, video: str, feats: VideoFeatures | Failure) -> None:
        if isinstance(feats, Failure):
            self.failures.append(feats)
            return
        self.settings = self.settings or feats.settings
        numbers = self._numbers[video]
        vectors = self._sentences.vectors[numbers]
        moments = ground_many(feats, vectors, **self._how.options)
        highlights = any(self._queries[number].saliency for number in numbers)
        curves = similarities(feats, vectors) if highlights else None
        for place, number in enumerate(numbers):
            query = self._queries[number]
            self.answers[number] = Answer(
                qid=query.qid,
                windows=np.array([[m.start, m.end, m.score] for m in moments[place]]).reshape(-1, 3),
                saliency=None if curves is None else _clip_scores(feats, curves[place], query.duration),
                video=video,
            )
        self.seconds[video] = _length(feats)
        self.costs.add(feats)


@dataclass(frozen=True)
class _Row:
    """What is known of a source before its answers are scored."""

    label: str
    cost: float | None
    share: float | None
    published: dict[str, float]
    settings: dict[str, Any]

    @classmethod
    def of(
        cls, name: str, source: EncodedVideos | StoredFeatures, run: _Run, dataset: str | None, how: Grounding
    ) -> _Row:
        if isinstance(source, EncodedVideos):
            fps = source.sampling.fps
            paper = published(dataset, source.encoder, fps, how.options)
            return cls(name, *_cost(source.encoder, fps, run), paper, source.settings)
        costs = run.costs
        recorded = {**source.settings, "recorded": run.settings}
        return cls(name, costs.gflops_per_second, costs.gflops_share, {}, recorded)


def _outcome(
    items: MomentSet,
    runs: Sequence[_Run],
    rows: Sequence[_Row],
    how: Grounding,
    dataset: str | None,
    settings: dict[str, Any],
) -> GroundingOutcome:
    """Scores on the queries whose videos every source could give."""
    lost = {failure.video: failure for run in reversed(runs) for failure in run.failures}
    usable = set(items.videos) - set(lost)
    if not usable:
        raise ValueError(f"none of the {len(items.videos)} videos can be used: {lost[items.videos[0]].error}")
    kept = [query.video in usable for query in items.queries]
    seconds = {video: length for run in runs for video, length in run.seconds.items()}
    left = items.of_videos(usable).with_durations(seconds)
    left = left.clip() if how.clip_gt else left
    scored = []
    for run, row in zip(runs, rows, strict=True):
        answers = [answer for answer, keep in zip(run.answers, kept, strict=True) if keep]
        scored.append(
            GroundingRow(
                encoder=row.label,
                metrics=_scores(left.queries, answers, tops=how.tops, strict=how.strict),
                gflops_per_second=row.cost,
                share_of_dense=row.share,
                published=row.published,
                settings=row.settings,
                answers={answer.qid: answer for answer in answers if answer is not None},
            )
        )
    return GroundingOutcome(
        dataset=dataset,
        rows=tuple(scored),
        floors=floors(left, strict=how.strict),
        items=left,
        wanted=len(items.videos),
        queries_wanted=len(items.queries),
        failures=tuple(lost[video] for video in items.videos if video in lost),
        settings=settings,
    )


def _scores(
    queries: Sequence[MomentQuery], answers: Sequence[Answer | None], *, tops: Sequence[int], strict: bool
) -> dict[str, float]:
    nothing = np.empty((0, 3))
    windows = [nothing if answer is None else answer.windows for answer in answers]
    metrics = moment_metrics(_truth(queries), windows, tops=tops, ious=IOUS, strict=strict)
    judged = [(query, answer) for query, answer in zip(queries, answers, strict=True) if query.saliency]
    if any(answer is not None and answer.saliency is not None for _, answer in judged):
        tables = [
            saliency_table(query.duration or 0.0, query.clips, query.saliency, annotators=len(query.saliency[0]))
            for query, _ in judged
        ]
        metrics |= highlight_metrics(tables, [None if answer is None else answer.saliency for _, answer in judged])
    return metrics


def _truth(queries: Sequence[MomentQuery]) -> list[NDArray[np.float64]]:
    return [np.array(query.windows, dtype=np.float64) for query in queries]


class _Sentences:
    """What is looked for, encoded once for all sources, when the first video is there."""

    def __init__(self, model: Model, items: MomentSet) -> None:
        self._model = model
        self._texts = [query.text for query in items.queries]

    @cached_property
    def vectors(self) -> NDArray[np.float32]:
        """float32 [Q, D]."""
        cuts = CutTexts()
        with cuts.heard():
            vectors = self._model.encode_text(self._texts).cpu().numpy()
        cuts.say()
        return vectors


def _clip_scores(feats: VideoFeatures, curve: NDArray[np.float32], duration: float | None) -> NDArray[np.float64]:
    """Mean cosine of every clip of 2 s, the lowest of all frames where a clip has none: float64 [clips]."""
    count = int((_length(feats) if duration is None else duration) / CLIP_SECONDS)
    clips = np.floor(feats.times / CLIP_SECONDS).astype(np.intp)
    inside = (clips >= 0) & (clips < count)
    frames = np.bincount(clips[inside], minlength=count)
    sums = np.bincount(clips[inside], weights=curve[inside], minlength=count)
    lowest = float(curve.min()) if len(curve) else 0.0
    return np.where(frames > 0, sums / np.maximum(frames, 1), lowest)


def _length(feats: VideoFeatures) -> float:
    """Seconds of the video: as its file says, else up to the end of the last frame."""
    known = feats.video.get("duration_seconds")
    if isinstance(known, (int, float)) and math.isfinite(known) and known > 0:
        return float(known)
    return float(feats.frame_ends[-1]) if feats.num_frames else 0.0


def _model_of(source: EncodedVideos | StoredFeatures) -> Model:
    return source.encoder.model if isinstance(source, EncodedVideos) else source.model


def _renamed(progress: Progress, name: str) -> Progress:
    """The same progress under a name of its own for each source."""
    return lambda _what, done, total: progress(name, done, total)


def _cost(encoder: Encoder, fps: float, run: _Run) -> tuple[float | None, float | None]:
    """GFLOPs per second of video by the paper's rule, and the share of dense; an adaptive plan's as it was measured."""
    dense = flops(DenseEncoder(encoder.model)).gflops_per_frame
    if encoder.plan == "fixed":
        own = flops(encoder).gflops_per_frame
        return own * fps, own / dense
    share = run.costs.gflops_share
    return (None, None) if share is None else (dense * share * fps, share)
