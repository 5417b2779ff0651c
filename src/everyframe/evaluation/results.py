"""Every task on the synthetic benchmark, for every way to encode: the page of results.

Videos are rendered, decoded and encoded once, in every way; each task then reads the features alone, as ResidualViT's
paper judges its features on four tasks. What is done is kept in the work folder, per video and per task and way, so
that a killed run goes on.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from everyframe.backbone import Model, ModelError
from everyframe.encoders import DenseEncoder
from everyframe.encoders.baselines import fidelity
from everyframe.evaluation.summary import compare
from everyframe.evaluation.synthetic import LAST_SEED, rendered_videos, work_folder
from everyframe.evaluation.synthetic_tasks import (
    Scene,
    TaskScores,
    Texts,
    grounding,
    recognition,
    retrieval,
    scene_of,
)
from everyframe.evaluation.trained_tasks import Trained, description, localization
from everyframe.evaluation.ways import DENSE, Way, ways
from everyframe.feature_files import write_whole
from everyframe.features import FeaturesError, VideoFeatures
from everyframe.pipeline import Sampling, read_window
from everyframe.pipeline.decoding import model_facts
from everyframe.synthetic import Combinations
from everyframe.version import package_version


@dataclass(frozen=True, kw_only=True)
class Task:
    """metrics: percentages unless their name says otherwise, the first is the one that is plotted and compared."""

    name: str
    title: str
    metrics: tuple[str, ...]
    unit: str
    trained: bool = False


TASKS = (
    Task(
        name="grounding",
        title="Grounding (NLTVG)",
        metrics=("R@1 IoU 0.5", "R@1 IoU 0.7", "R@5 IoU 0.5", "mIoU"),
        unit="queries",
    ),
    Task(
        name="retrieval",
        title="Retrieval",
        metrics=("moment R@1", "moment R@5", "video R@1", "video R@5", "video MdR"),
        unit="queries",
    ),
    Task(name="recognition", title="Action recognition (AR)", metrics=("top-1", "top-5"), unit="clips"),
    Task(
        name="localization",
        title="Activity localization (TAL)",
        metrics=("mAP", "mAP@0.5", "mAP@0.75", "mAP@0.95"),
        unit="activities",
        trained=True,
    ),
    Task(name="description", title="Audio description (AD)", metrics=("CIDEr", "ROUGE-L"), unit="clips", trained=True),
)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is rendered: videos of three sets, of `seconds` each, sampled at `fps`.

    videos: of set `seed`, which shows objects of combinations that the bundled model never saw: grounding, retrieval.
    known_videos: of set `seed` + 59, of combinations that it knows, for the tasks that must name what they see.
    train_videos: of set `seed` - 100, of known combinations, for training. epochs: of localization and of description,
    None for what those have of their own.
    """

    videos: int = 24
    known_videos: int = 24
    train_videos: int = 48
    seconds: float = 60.0
    fps: float = 3.0
    seed: int = 901
    epochs: int | None = None

    def __post_init__(self) -> None:
        for name in ("videos", "known_videos", "train_videos"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.seconds < float("inf"):
            raise ValueError(f"seconds must be finite and > 0, got {self.seconds}")
        if not 100 < self.seed <= LAST_SEED - 59 or max(self.videos, self.known_videos, self.train_videos) > 1000:
            raise ValueError(
                f"seed must be from 101 to {LAST_SEED - 59} and a set hold 1000 videos at most, got {self.seed}: the "
                "bundled model was trained on videos of later seeds"
            )
        Sampling(fps=self.fps)


QUICK = Scale(videos=8, known_videos=8, train_videos=8, seconds=40.0, epochs=4)


@dataclass(frozen=True)
class _Set:
    name: str
    scenes: tuple[Scene, ...]


def evaluate_tasks(
    model: Model,
    *,
    scale: Scale | None = None,
    tasks: Sequence[str] | None = None,
    residual: str = "auto",
    work: str | Path | None = None,
    workers: int = 1,
    say: Callable[[str], None] | None = None,
    after_task: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Run the tasks for every way to encode; the record as plain values, see `results_tables` for what shows it.

    scale: how much. tasks: names of `TASKS`, all by default. residual: ResidualViT's tokenizer, see `ways`. work: where
    videos, features and results are kept, and found again by the next call; None means a folder that is thrown away.
    workers: processes that render. say: told what is going on. after_task: given the record so far after every task.

    A task whose package is not installed is left out and noted. Raises ValueError for bad arguments and ModelError for
    a model without a text tower before anything is rendered.
    """
    scale = scale or Scale()
    chosen = _chosen(tasks)
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    if model.text is None:
        raise ModelError(f"{model.name} has no text tower, so nothing can be asked for: evaluate a CLIP or SigLIP")
    every = ways(model, residual=residual)
    with work_folder(work) as folder:
        bench = _Bench(model, scale, every, residual, folder, workers, say or (lambda text: None))
        record = bench.facts()
        for task in chosen:
            started = time.monotonic()
            try:
                record["tasks"][task.name] = bench.run(task)
            except ImportError as error:
                record["notes"].append(f"{task.name} is left out: {error}")
            bench.say(f"{task.name}: done after {time.monotonic() - started:.0f} s")
            record["ways"] = bench.costs()
            record["seconds"] = bench.seconds
            if after_task is not None:
                after_task(record)
    return record


def _chosen(names: Sequence[str] | None) -> list[Task]:
    known = [task.name for task in TASKS]
    for name in names or ():
        if name not in known:
            raise ValueError(f"task must be one of {', '.join(known)}, got {name!r}")
    return [task for task in TASKS if names is None or task.name in names]


class _Bench:
    """The videos, their features in every way, and what was found."""

    def __init__(
        self,
        model: Model,
        scale: Scale,
        every: Sequence[Way],
        residual: str,
        folder: Path,
        workers: int,
        say: Callable[[str], None],
    ) -> None:
        self.say = say
        self._model, self._scale, self._ways, self._folder, self._workers = model, scale, every, folder, workers
        self._texts = Texts(model)
        self._costs: dict[str, dict[str, Any]] = {}
        self._started = time.monotonic()
        self._resumed = False
        self._facts = {
            "model": {"id": model.name, "weights_sha256": model.weights_sha256},
            "version": package_version(),
            "settings": {
                **asdict(scale),
                "residual": residual,
                "device": model.device.type,
                "dtype": model.precision,
            },
        }
        decides = {**self._facts, "ways": {way.name: way.settings for way in every}}
        self._mark = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def seconds(self) -> float | None:
        """Since the start of this call; None where an earlier one did a part of the work."""
        return None if self._resumed else round(time.monotonic() - self._started, 1)

    def facts(self) -> dict[str, Any]:
        """The record before any task."""
        return {
            "benchmark": "tasks",
            **self._facts,
            "machine": {"cpu": platform.machine(), "threads": torch.get_num_threads(), "workers": self._workers},
            "ways": [],
            "tasks": {},
            "notes": [],
        }

    def run(self, task: Task) -> dict[str, Any]:
        """One task, every way: metrics, and for those that are shares of right answers the difference to dense."""
        scores: dict[str, TaskScores] = {}
        runners: dict[str, Callable[[Way], TaskScores]] = {
            "grounding": lambda way: grounding(self._features("test", way), self.test.scenes, self._texts),
            "retrieval": lambda way: retrieval(self._features("test", way), self.test.scenes, self._texts),
            "recognition": lambda way: recognition(self._features("known", way), self.known.scenes, self._texts),
        }
        if task.trained:
            fit = localization if task.name == "localization" else description
            trained = Trained(
                train=self.train.scenes,
                test=self.known.scenes,
                dense=self._ways[0],
                features=self._features,
                folder=self._folder / f"runs-{self._mark}",
                epochs=self._scale.epochs,
                texts=self._texts,
                say=self.say,
            )
            runners[task.name] = partial(fit, trained)
        for way in self._ways:
            scores[way.name] = self._known(task, way, runners[task.name])
        dense = scores[DENSE]
        rows = [
            {
                "way": way.name,
                "metrics": scores[way.name].metrics,
                "differences": _differences(scores[way.name], dense),
            }
            for way in self._ways
        ]
        return {
            "title": task.title,
            "metrics": list(task.metrics),
            "unit": task.unit,
            "count": dense.queries,
            "rows": rows,
            "floor": None if dense.floor is None else {"name": dense.floor[0], "metrics": dense.floor[1]},
        }

    def costs(self) -> list[dict[str, Any]]:
        """What each way costs, and how close it is to dense, on the test videos."""
        for way in self._ways:
            if way.name not in self._costs:
                self._costs[way.name] = _cost(list(self._features("test", way).values()))
        return [{"name": way.name, "label": way.label, "kind": way.kind, **self._costs[way.name]} for way in self._ways]

    @cached_property
    def test(self) -> _Set:
        """The videos of combinations that the bundled model never saw."""
        return self._set("test", self._scale.videos, 0, "unseen")

    @cached_property
    def known(self) -> _Set:
        """The videos of combinations that it knows, none of which it was trained on."""
        return self._set("known", self._scale.known_videos, 59, "seen")

    @cached_property
    def train(self) -> _Set:
        """The videos that trained tasks are fitted to, of combinations that it knows."""
        return self._set("train", self._scale.train_videos, -100, "seen")

    def _set(self, name: str, videos: int, offset: int, combinations: Combinations) -> _Set:
        started, scale = time.monotonic(), self._scale
        seed = scale.seed + offset
        folder = self._folder / f"set-{seed}"
        self._resumed |= folder.is_dir()
        rendered = rendered_videos(
            folder,
            videos=videos,
            seconds=scale.seconds,
            seed=seed,
            workers=self._workers,
            combinations=combinations,
        )
        scenes = tuple(scene_of(video, scale.seconds, combinations) for video in rendered)
        if not any(scene.events for scene in scenes):
            raise ValueError(f"nothing happens in {scale.seconds:g} s of video; use at least 20 seconds")
        self.say(f"{name}: {videos} videos rendered after {time.monotonic() - started:.0f} s")
        started = time.monotonic()
        for scene in scenes:
            self._encode(name, scene)
        self.say(f"{name}: encoded in {len(self._ways)} ways after {time.monotonic() - started:.0f} s")
        return _Set(name, scenes)

    def _file(self, name: str, way: Way, scene: Scene) -> Path:
        return self._folder / f"features-{self._mark}" / way.name / name / f"{scene.id}.npz"

    def _encode(self, name: str, scene: Scene) -> None:
        """The features of one video in every way, unless they are there."""
        if all(_load(self._file(name, way, scene)) is not None for way in self._ways):
            self._resumed = True
            return
        window = read_window(scene.file, self._model, fps=self._scale.fps)
        encoder = DenseEncoder(self._model)
        dense = encoder.encode(window.pixels).float().cpu().numpy()
        full = sum(encoder.macs(len(dense), "all").values())
        for way in self._ways:
            encoded = way.run(window, dense)
            feats = VideoFeatures(
                times=window.times,
                embeddings=encoded.features,
                roles=encoded.roles,
                end_seconds=window.end_seconds,
                video={"path": str(scene.file), "duration_seconds": scene.seconds},
                model=model_facts(self._model),
                settings={
                    **way.settings,
                    "fps": self._scale.fps,
                    "gflops_per_frame": encoded.macs / len(dense) / 1e9,
                    "gflops_share": encoded.macs / full,
                    "fidelity": float(fidelity(encoded.features, dense).mean()),
                },
            )
            file = self._file(name, way, scene)
            file.parent.mkdir(parents=True, exist_ok=True)
            feats.save(file)

    def _features(self, name: str, way: Way) -> dict[str, VideoFeatures]:
        """Of one set in one way, by video."""
        scenes = {"test": lambda: self.test, "train": lambda: self.train, "known": lambda: self.known}[name]().scenes
        return {scene.id: VideoFeatures.load(self._file(name, way, scene)) for scene in scenes}

    def _known(self, task: Task, way: Way, compute: Callable[[Way], TaskScores]) -> TaskScores:
        """From an earlier run, or computed now and kept."""
        file = self._folder / f"results-{self._mark}" / f"{task.name}-{way.name}.json"
        if file.is_file():
            self._resumed = True
            stored = json.loads(file.read_text(encoding="utf-8"))
            hits = {name: [np.array(row, bool) for row in rows] for name, rows in stored["hits"].items()}
            floor = None if stored["floor"] is None else (stored["floor"][0], stored["floor"][1])
            return TaskScores(metrics=stored["metrics"], hits=hits, queries=stored["queries"], floor=floor)
        scores = compute(way)
        kept = {
            "metrics": scores.metrics,
            "hits": {name: [row.tolist() for row in rows] for name, rows in scores.hits.items()},
            "queries": scores.queries,
            "floor": scores.floor,
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole([(file, json.dumps(kept).encode())], file)
        return scores


def _load(file: Path) -> VideoFeatures | None:
    """What an earlier run wrote; a file that was damaged since counts as absent."""
    try:
        return VideoFeatures.load(file) if file.is_file() else None
    except FeaturesError:
        return None


def _cost(feats: Sequence[VideoFeatures]) -> dict[str, Any]:
    """Means over all frames, and the shares of I, P and C frames."""
    frames = np.array([one.num_frames for one in feats], dtype=float)
    roles = "".join(one.roles for one in feats)
    means = {
        key: float(np.average([one.settings[key] for one in feats], weights=frames))
        for key in ("gflops_per_frame", "gflops_share", "fidelity")
    }
    return means | {"roles": {role: roles.count(role) / len(roles) for role in "IPC"}}


def _differences(scores: TaskScores, dense: TaskScores) -> dict[str, dict[str, float | None]]:
    """By metric, points more than dense, with the 95 % interval when videos are drawn with replacement."""
    found = {}
    for name, own in scores.hits.items():
        _, _, difference, low, high = compare(own, dense.hits[name])
        found[name] = {"points": difference, "low": low, "high": high}
    return found
