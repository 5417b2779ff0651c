"""The papers' tasks on synthetic videos that need no training: grounding, retrieval, recognition.

The world knows what is on screen at every time, so every right answer is known, also that of a text that several videos
fit. D width of the joint space.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from everyframe.backbone import Model
from everyframe.evaluation.synthetic import Video
from everyframe.features import VideoFeatures
from everyframe.spans import temporal_iou
from everyframe.synthetic import COLOURS, SHAPES, SPLITS, Combinations, Entity, Event, SyntheticVideo
from everyframe.tasks.grounding import ground
from everyframe.tasks.ranking import ranking, ranks_of
from everyframe.tasks.recognition import accuracy, ahead_of
from everyframe.tasks.retrieval import search

SHORTEST = 2.0
"""Seconds that an object must be alone on screen to be a clip of the recognition task."""
CLASSES = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
"""The 64 classes of the recognition task."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A rendered video and what happens in it. id: the name that annotations give it."""

    id: str
    file: Path
    seconds: float
    events: tuple[Event, ...]


@dataclass(frozen=True, kw_only=True)
class TaskScores:
    """What one way to encode gives: percentages by name, and by metric which answers are right, per video, in order.

    queries: how many were asked. hits hold the metrics that are shares of right answers. floor: name and metrics
    of what needs no sight, or no training.
    """

    metrics: dict[str, float]
    hits: dict[str, list[np.ndarray]]
    queries: int
    floor: tuple[str, dict[str, float]] | None = None


@dataclass(frozen=True, kw_only=True)
class Clip:
    """[start, end) seconds in which one object alone is on screen. label: its place in `CLASSES`."""

    video: str
    start: float
    end: float
    label: int


class Texts:
    """Text features, each text encoded once: float32 [D]."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._known: dict[str, np.ndarray] = {}

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [n, D]"""
        missing = [text for text in dict.fromkeys(texts) if text not in self._known]
        if missing:
            rows = self._model.encode_text(missing).float().cpu().numpy()
            self._known |= dict(zip(missing, rows, strict=True))
        return np.stack([self._known[text] for text in texts]) if texts else np.empty((0, self._model.dim), np.float32)


def scene_of(video: Video, seconds: float, combinations: Combinations = "unseen") -> Scene:
    """What happens in a video that `rendered_videos` made with these arguments, from its name and style."""
    name, style = video.file.stem, video.style
    if style not in SPLITS:
        raise ValueError(f"{video.file}: style must be one of {', '.join(SPLITS)}, got {style!r}")
    seed = int(name.rpartition("-")[2])
    world = SyntheticVideo(seed, seconds=seconds, style=style, combinations=combinations)  # type: ignore[arg-type]
    return Scene(id=name, file=video.file, seconds=seconds, events=tuple(world.events))


def grounding(feats: Mapping[str, VideoFeatures], scenes: Sequence[Scene], texts: Texts) -> TaskScores:
    """Where in its video is the event? R@1 and R@5 at IoU 0.5, R@1 at 0.7, mean IoU of the first answer."""
    first: list[np.ndarray] = []
    best: list[np.ndarray] = []
    for scene in scenes:
        overlaps = np.zeros((len(scene.events), 2))
        queries = texts([event.caption for event in scene.events])
        for row, (query, event) in enumerate(zip(queries, scene.events, strict=True)):
            found = [temporal_iou(moment, (event.start, event.end)) for moment in ground(feats[scene.id], query, top=5)]
            overlaps[row] = (found[0], max(found)) if found else (0.0, 0.0)
        first.append(overlaps[:, 0])
        best.append(overlaps[:, 1])
    hits = {
        "R@1 IoU 0.5": [row >= 0.5 for row in first],
        "R@1 IoU 0.7": [row >= 0.7 for row in first],
        "R@5 IoU 0.5": [row >= 0.5 for row in best],
    }
    every = np.concatenate(first)
    metrics = _shares(hits) | {"mIoU": 100 * float(every.mean())}
    return TaskScores(metrics=metrics, hits=hits, queries=len(every), floor=("the whole video", whole_video(scenes)))


def whole_video(scenes: Sequence[Scene]) -> dict[str, float]:
    """The floor of grounding: the whole video as the answer to every query."""
    overlaps = np.array([(event.end - event.start) / scene.seconds for scene in scenes for event in scene.events])
    shares = {f"R@1 IoU {iou}": 100 * float((overlaps >= iou).mean()) for iou in (0.5, 0.7)}
    return shares | {"R@5 IoU 0.5": shares["R@1 IoU 0.5"], "mIoU": 100 * float(overlaps.mean())}


def retrieval(feats: Mapping[str, VideoFeatures], scenes: Sequence[Scene], texts: Texts) -> TaskScores:
    """Which of all videos, and which moment of them, is meant? R@1 and R@5 of videos, and of moments at IoU 0.5.

    Queries are the full names of all objects, each once. Videos by the mean of their frame features, moments by
    `everyframe.search`. An object that fits the words is a right answer wherever it is.
    """
    entities = {event.entity.caption(): event.entity for scene in scenes for event in scene.events}
    queries = texts(list(entities))
    right = [[number for number, scene in enumerate(scenes) if _windows(scene, entity)] for entity in entities.values()]
    means = np.stack([feats[scene.id].normalised().mean(axis=0) for scene in scenes])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    ranks = ranks_of(queries @ means.T, right)
    by_path = {str(feats[scene.id].video["path"]): scene for scene in scenes}
    places = np.full(len(entities), np.inf)
    for row, (query, entity) in enumerate(zip(queries, entities.values(), strict=True)):
        for place, hit in enumerate(search([feats[scene.id] for scene in scenes], query, top=5), 1):
            windows = _windows(by_path[hit.video], entity)
            if any(temporal_iou((hit.start, hit.end), window) >= 0.5 for window in windows):
                places[row] = place
                break
    hits = {
        "video R@1": [ranks <= 1],
        "video R@5": [ranks <= 5],
        "moment R@1": [places <= 1],
        "moment R@5": [places <= 5],
    }
    metrics = _shares(hits) | {"video MdR": ranking(ranks).median_rank}
    # No query belongs to one video, so each stands alone where queries are drawn.
    return TaskScores(
        metrics=metrics, hits={name: _one_by_one(rows) for name, rows in hits.items()}, queries=len(ranks)
    )


def recognition(feats: Mapping[str, VideoFeatures], scenes: Sequence[Scene], texts: Texts) -> TaskScores:
    """Which of the 64 objects does a clip show? Top-1 and top-5 of the mean of its frames against all names."""
    names = texts([Entity(colour, "plain", shape, "medium").caption() for colour, shape in CLASSES])
    scores: list[np.ndarray] = []
    labels: list[int] = []
    per_video: list[int] = []
    for scene in scenes:
        count = 0
        for clip in lone_clips(scene):
            part = feats[scene.id].slice(clip.start, clip.end)
            if part.num_frames:
                scores.append(names @ part.normalised().mean(axis=0))
                labels.append(clip.label)
                count += 1
        per_video.append(count)
    if not scores:
        raise ValueError(f"no object is alone on screen for {SHORTEST:g} s in any video; use more or longer videos")
    table = np.stack(scores)
    result, ahead = accuracy(table, labels), ahead_of(table, np.array(labels))
    cuts = np.cumsum(per_video)[:-1]
    hits = {"top-1": np.split(ahead < 1, cuts), "top-5": np.split(ahead < 5, cuts)}
    metrics = {"top-1": result.top1, "top-5": result.top5}
    chance = {"top-1": 100 / len(CLASSES), "top-5": 500 / len(CLASSES)}
    return TaskScores(metrics=metrics, hits=hits, queries=result.videos, floor=("chance", chance))


def lone_clips(scene: Scene) -> list[Clip]:
    """The stretches of at least `SHORTEST` seconds in which exactly one object is on screen, in order."""
    bounds = sorted({0.0, scene.seconds, *(time for event in scene.events for time in (event.start, event.end))})
    clips = []
    for start, end in pairwise(bounds):
        seen = [event for event in scene.events if event.start <= start and event.end >= end]
        if len(seen) == 1 and end - start >= SHORTEST:
            label = CLASSES.index((seen[0].entity.colour, seen[0].entity.shape))
            clips.append(Clip(video=scene.id, start=start, end=end, label=label))
    return clips


def fits(entity: Entity, wanted: Entity) -> bool:
    """Are the words that `wanted.caption()` says true of the object? "medium" and "plain" are not said."""
    return (
        (entity.colour, entity.shape) == (wanted.colour, wanted.shape)
        and wanted.size in ("medium", entity.size)
        and wanted.pattern in ("plain", entity.pattern)
    )


def _windows(scene: Scene, wanted: Entity) -> list[tuple[float, float]]:
    return [(event.start, event.end) for event in scene.events if fits(event.entity, wanted)]


def _shares(hits: Mapping[str, Sequence[np.ndarray]]) -> dict[str, float]:
    return {name: 100 * float(np.concatenate(list(rows)).mean()) for name, rows in hits.items()}


def _one_by_one(rows: Sequence[np.ndarray]) -> list[np.ndarray]:
    return list(np.concatenate(list(rows))[:, None])
