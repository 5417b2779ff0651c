"""Audio description: train (or load) a describer, let it describe the clips of a test set, score what it says.

Beside it the same training without sight: what that reaches is due to what people usually say, not to the video.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from everyframe.evaluation.captions import CaptionScores, Tokenization, available, score_captions
from everyframe.evaluation.clips import Failure, Progress
from everyframe.evaluation.description_files import Narrations, narrated_events
from everyframe.evaluation.frame_features import Costs, EncodedVideos, StoredFiles, check_made_alike
from everyframe.evaluation.outcome import check_some_left
from everyframe.evaluation.writing import csv_bytes
from everyframe.feature_files import write_whole
from everyframe.features import FeaturesError, VideoFeatures, check_same_space, space_of
from everyframe.tasks.describer import Describer
from everyframe.tasks.description import Description, Narrated, usable
from everyframe.training.description import SMALL, DescribeRecipe, train_describer
from everyframe.version import package_version

__all__ = ["DescriptionOutcome", "Narrated", "evaluate_description", "narrated_events", "read_narrated", "score"]

PREDICTIONS, METRICS_FILE, TABLE = "predictions.jsonl", "metrics.json", "metrics.csv"
DESCRIBER, BLIND = "describer", "no-vision"


@dataclass(frozen=True, kw_only=True)
class DescriptionOutcome:
    """Scores of the descriptions of one test set, what they stand on, and what was left out.

    metrics: by name, times 100. baseline: of the same training without sight, or None. missing: why a metric could not
    be had. clips, videos: that were described; wanted: videos the annotations name. cost: what encoding those videos
    took. left_out: descriptions, failures: videos, that could not be used.
    """

    metrics: dict[str, float]
    baseline: dict[str, float] | None
    missing: dict[str, str]
    tokenization: Tokenization
    clips: int
    videos: int
    wanted: int
    settings: dict[str, Any]
    cost: Costs = field(default_factory=Costs)
    annotations: tuple[dict[str, Any], ...] = ()
    failures: tuple[Failure, ...] = ()
    left_out: tuple[str, ...] = ()
    predictions: Mapping[str, Sequence[Description]] = field(default_factory=dict, repr=False)
    describer: Describer | None = field(default=None, repr=False)

    @property
    def partial(self) -> bool:
        """Something is missing, so that the numbers are not those of the split."""
        return bool(self.failures or self.left_out)

    def as_dict(self) -> dict[str, Any]:
        """Everything but the predictions, as plain values."""
        return {
            "task": "description",
            "metrics": self.metrics,
            "baseline": self.baseline,
            **self.cost.as_dict(),
            "missing": self.missing,
            "tokenization": self.tokenization,
            "clips": self.clips,
            "videos": self.videos,
            "videos_wanted": self.wanted,
            "partial": self.partial,
            "failures": [asdict(failure) for failure in self.failures],
            "left_out": list(self.left_out),
            "annotations": list(self.annotations),
            "settings": self.settings,
            "everyframe": package_version(),
        }

    def as_table(self) -> list[dict[str, Any]]:
        """A line for the describer (or the predictions) and one for the baseline, for CSV: name, metrics and cost."""
        name = "predictions" if self.describer is None else "describer"
        rows = [{"name": name, **self.metrics, **self.cost.as_dict()}]
        if self.baseline is not None:
            rows.append({"name": "without sight", **self.baseline})
        return rows


def evaluate_description(
    train: Sequence[Narrated] | None,
    test: Sequence[Narrated],
    *,
    describer: Describer | None = None,
    recipe: DescribeRecipe | None = None,
    language: str = SMALL,
    baseline: bool = False,
    beam: int = 5,
    metrics: Sequence[str] | None = None,
    bert: str | None = None,
    out: Path | None = None,
    device: str | None = None,
    say: Callable[[str], None] | None = None,
    step_done: Callable[[int, int, float], None] = lambda step, steps, loss: None,
) -> DescriptionOutcome:
    """Train on `train` (or take `describer`), describe every span of `test`, and score.

    recipe: default is `DescribeRecipe.small()` with language "small", else the paper's setting. baseline: train and
    score the same without sight too. metrics, bert: as `score_captions` takes them. out: folder where the run is kept:
    a killed one goes on there, and it gets describer/, predictions.jsonl, metrics.json and metrics.csv.
    Descriptions that cannot be used, in training and in the test, are listed in the outcome. Raises ValueError where
    nothing is left, and what `train_describer` and `score_captions` raise.
    """
    if (train is None) == (describer is None):
        raise ValueError("give either videos to train on, or a describer")
    if baseline and train is None:
        raise ValueError("the baseline without sight is trained beside the describer: it needs videos to train on")
    if beam < 1:
        raise ValueError(f"beam must be at least 1, got {beam}")
    say = say or (lambda text: None)
    available(metrics, bert)
    learned, left_out = usable(train or ())
    shown, unusable = usable(test)
    if not shown:
        raise ValueError("there is nothing to describe" + (f": {unusable[0]}" if unusable else ""))
    if learned:
        space = space_of(learned[0].features)
        for item in shown:
            check_same_space(space, item.features)
    recipe = recipe or (DescribeRecipe.small() if language == SMALL else DescribeRecipe())

    def fit(name: str, recipe: DescribeRecipe) -> Describer:
        folder = None if out is None else out / name
        return train_describer(
            learned, recipe, language=language, out=folder, device=device, say=say, step_done=step_done
        )

    describer = describer or fit(DESCRIBER, recipe)
    predictions = _describe(describer, shown, beam, say)
    if out is not None:  # whatever scoring comes to
        write_predictions(out, predictions)
    scores = score(predictions, shown, metrics=metrics, bert=bert)
    without: dict[str, float] | None = None
    if baseline:
        say("the same without sight")
        said = _describe(fit(BLIND, replace(recipe, blind=True)), shown, beam, say)
        without = score(said, shown, metrics=tuple(scores.scores), bert=bert).scores
    outcome = outcome_of(
        scores,
        predictions,
        wanted=len(test),
        baseline=without,
        settings={
            "describer": asdict(describer.config),
            "features": describer.space,
            "beam": beam,
            **({} if train is None else {"recipe": asdict(recipe), "language": language, "trained_on": _size(learned)}),
        },
        left_out=(*left_out, *unusable),
        describer=describer,
    )
    costs = Costs()
    for item in shown:
        costs.add(item.features)
    outcome = replace(outcome, cost=costs)
    if out is not None:
        write_outcome(out, outcome)
    return outcome


def _size(items: Sequence[Narrated]) -> dict[str, int]:
    return {"videos": len(items), "descriptions": sum(len(item.descriptions) for item in items)}


def outcome_of(
    scores: CaptionScores,
    predictions: Mapping[str, Sequence[Description]],
    *,
    wanted: int,
    settings: dict[str, Any],
    baseline: dict[str, float] | None = None,
    left_out: Sequence[str] = (),
    describer: Describer | None = None,
) -> DescriptionOutcome:
    """The outcome of one set of descriptions."""
    return DescriptionOutcome(
        metrics=scores.scores,
        baseline=baseline,
        missing=scores.missing,
        tokenization=scores.tokenization,
        clips=scores.clips,
        videos=len(predictions),
        wanted=wanted,
        settings=settings,
        left_out=tuple(left_out),
        predictions=predictions,
        describer=describer,
    )


def _describe(
    describer: Describer, items: Sequence[Narrated], beam: int, say: Callable[[str], None]
) -> dict[str, list[Description]]:
    """What the describer says of every span, each once, by video."""
    spans = {item.video: list(dict.fromkeys((each.start, each.end) for each in item.descriptions)) for item in items}
    say(f"describes {sum(map(len, spans.values()))} clips of {len(items)} videos")
    return {item.video: describer.describe(item.features, spans[item.video], beam=beam) for item in items}


def score(
    predictions: Mapping[str, Sequence[Description]],
    references: Mapping[str, Sequence[Description]] | Sequence[Narrated],
    *,
    metrics: Sequence[str] | None = None,
    bert: str | None = None,
) -> CaptionScores:
    """Compare what was said of each span with what the references say of the same span, to a thousandth of a second.

    A span without a prediction counts as described by nothing. Predictions of other spans do not count.
    """
    if not isinstance(references, Mapping):
        references = {item.video: item.descriptions for item in references}
    said = {_key(video, each): each.text for video, found in predictions.items() for each in found}
    wrote: dict[str, list[str]] = {}
    for video, each in _all(references):
        wrote.setdefault(_key(video, each), []).append(each.text)
    return score_captions({key: said.get(key, "") for key in wrote}, wrote, metrics=metrics, bert=bert)


def score_predictions(
    predictions: Narrations, references: Narrations, *, metrics: Sequence[str] | None = None, bert: str | None = None
) -> DescriptionOutcome:
    """Score somebody's descriptions. Spans that lack one, and predictions of spans nobody described, are listed."""
    wanted = {_key(video, each) for video, each in _all(references.by_video)}
    given: dict[str, str] = {}
    left_out = [*references.left_out, *predictions.left_out]
    for video, each in _all(predictions.by_video):
        key = _key(video, each)
        if key in given:
            left_out.append(f"{predictions.path}: describes {key} twice; the first counts")
        elif key not in wanted:
            left_out.append(f"{predictions.path}: describes {key}, which the annotations do not have")
        given.setdefault(key, each.text)
    left_out += [f"{predictions.path}: does not describe {key}" for key in sorted(wanted - set(given))]
    first = {
        video: list({_key(video, each): each for each in reversed(found)}.values())
        for video, found in predictions.by_video.items()
    }
    scores = score(first, references.by_video, metrics=metrics, bert=bert)
    known = {video: found for video, found in first.items() if video in references.by_video}
    outcome = outcome_of(
        scores,
        known,
        wanted=len(references.by_video),
        settings={"predictions": predictions.path, "predictions_sha256": predictions.sha256},
        left_out=left_out,
    )
    return replace(outcome, annotations=(references.facts(),))


def read_narrated(narrations: Narrations, features: str | os.PathLike[str]) -> tuple[list[Narrated], list[Failure]]:
    """The videos of an annotation file with their features; those that have none, or none that can be read.

    features: a folder of feature files named like the videos, all of one model, encoder and rate. Raises
    AnnotationError where it is none or has two files of a video, FeaturesError where they were made differently.
    """
    folder = StoredFiles(features)
    items: list[Narrated] = []
    failures: list[Failure] = []
    for video, descriptions in narrations.by_video.items():
        file = folder.find(video)
        if file is None:
            failures.append(folder.missing(video))
            continue
        try:
            feats = VideoFeatures.load(file)
        except FeaturesError as error:
            failures.append(Failure(video, "unreadable", str(error)))
            continue
        if items:
            check_made_alike(items[0].features, feats, file)
        items.append(Narrated(video=video, features=feats, descriptions=descriptions))
    return items, failures


def encode_narrated(
    narrations: Narrations, source: EncodedVideos, progress: Progress | None = None
) -> tuple[list[Narrated], list[Failure]]:
    """As `read_narrated`, but the videos are encoded; those that are missing or cannot be decoded are listed."""
    videos = list(narrations.by_video)
    items: dict[int, Narrated] = {}
    failures: list[Failure] = []
    for number, found in source.read(videos, progress):
        if isinstance(found, Failure):
            failures.append(found)
        else:
            video = videos[number]
            items[number] = Narrated(video=video, features=found, descriptions=narrations.by_video[video])
    check_some_left([*items], failures)
    return [items[number] for number in sorted(items)], failures


def write_outcome(out: Path, outcome: DescriptionOutcome) -> None:
    """predictions.jsonl, metrics.csv and metrics.json, each whole or not at all."""
    write_predictions(out, outcome.predictions)
    metrics = json.dumps(outcome.as_dict(), indent=1, default=str) + "\n"
    write_whole([(out / TABLE, csv_bytes(outcome.as_table())), (out / METRICS_FILE, metrics.encode())], out)


def write_predictions(out: Path, predictions: Mapping[str, Sequence[Description]]) -> None:
    """predictions.jsonl, which `read_narrations` reads."""
    out.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"vid": video, **asdict(each)}, ensure_ascii=False) for video, each in _all(predictions)]
    write_whole([(out / PREDICTIONS, "".join(f"{line}\n" for line in lines).encode())], out)


def _all(descriptions: Mapping[str, Sequence[Description]]) -> Iterator[tuple[str, Description]]:
    return ((video, each) for video, found in descriptions.items() for each in found)


def _key(video: str, description: Description) -> str:
    return f"{video} {description.start:.3f} to {description.end:.3f} s"
