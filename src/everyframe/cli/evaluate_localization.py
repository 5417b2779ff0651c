"""everyframe evaluate localization: mAP of an ActionFormer trained on features, or of given predictions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everyframe import console
from everyframe.cli.clips import check_none, say_failures
from everyframe.cli.evaluate import evaluate
from everyframe.cli.options import (
    DeviceOption,
    JsonOption,
    QuietOption,
    ThreadsOption,
    check_writable,
    given,
    model_of,
    set_threads,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from everyframe.evaluation.localization import LocalizationOutcome
    from everyframe.evaluation.segment_files import Activities
    from everyframe.features import VideoFeatures
    from everyframe.training.localizer import LocalizerSettings

PRESETS = ("activitynet", "thumos", "synthetic")


@evaluate.command()
def localization(
    annotations: Annotated[
        Path,
        typer.Option("--annotations", help="ActivityNet-1.3's JSON or one of its layout, or a synthesized folder."),
    ],
    features: Annotated[Path | None, typer.Option("--features", help="Folder with features of the videos.")] = None,
    train_features: Annotated[
        Path | None, typer.Option("--train-features", help="Those of the training videos. (default: --features)")
    ] = None,
    train_annotations: Annotated[
        Path | None, typer.Option("--train-annotations", help="Those of the training videos, where they are apart.")
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option("--predictions", help="Score this file and train nothing.")
    ] = None,
    scores: Annotated[
        Path | None,
        typer.Option("--scores", help="Class scores of an external classifier: it names what is found (ActivityNet)."),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", help="Folder with a trained localizer: predict, train nothing.")
    ] = None,
    blocked: Annotated[Path | None, typer.Option("--blocked", help="List of videos that do not count.")] = None,
    subset: Annotated[str, typer.Option("--subset", help="Subset to evaluate on.")] = "validation",
    train_subset: Annotated[str, typer.Option("--train-subset", help="Subset to train on.")] = "training",
    tiou: Annotated[
        str | None, typer.Option("--tiou", help="Thresholds, such as 0.3,0.4,0.5,0.6,0.7. (default: 0.5 to 0.95)")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset", help="Settings: activitynet, thumos, synthetic. (default: by the layout of the annotations)"
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="Training epochs. (default: the preset's)")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="The training follows from it. (default: 0)")] = None,
    classes: Annotated[
        str, typer.Option("--classes", help="Classes of synthesized events: colour or shape.")
    ] = "colour",
    baselines: Annotated[
        bool,
        typer.Option("--baselines", help="Also: the same training on noise, and class names without any training."),
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for localizer, predictions and metrics; a killed run goes on.")
    ] = None,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Temporal activity localization: mAP at temporal IoU 0.5 to 0.95.

    Trains an ActionFormer on the features of the training subset and scores what it finds in the other; or scores
    --predictions.
    """
    if predictions is None and features is None:
        raise ValueError("give --features, a folder of features to train on and predict from, or --predictions")
    if predictions is not None:
        training = given(
            features=features, train_features=train_features, scores=scores, checkpoint=checkpoint, preset=preset,
            epochs=epochs, seed=seed, baselines=baselines or None,
        )  # fmt: skip
        check_none("--predictions, which are only scored", training)
    elif checkpoint is not None and not baselines:
        training = given(train_features=train_features, preset=preset, epochs=epochs, seed=seed)
        check_none("--checkpoint, which is trained already", training)
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"--preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    thresholds = _thresholds(tiou)
    from everyframe.evaluation.localization import score_predictions, write_outcome
    from everyframe.evaluation.segment_files import read_blocked, read_predictions

    if out is not None:
        check_writable(out)
    activities = _activities(annotations, train_annotations, subset, train_subset, classes)
    if baselines:
        activities.subset(train_subset)  # they are trained, even beside a checkpoint: better said before than after
    left_out = frozenset() if blocked is None else read_blocked(blocked)
    common: dict[str, Any] = {"subset": subset, "blocked": left_out, **given(tious=thresholds)}
    if predictions is not None:
        outcome = score_predictions(read_predictions(predictions, activities), activities, **common)
        if out is not None:
            write_outcome(outcome, out)
    else:
        set_threads(threads)
        settings = _settings(preset, activities, given(epochs=epochs, seed=seed))
        outcome = _train_and_predict(
            activities, features or Path(), train_features, scores, checkpoint, settings, baselines, out, device,
            common, train_subset, silent=as_json or quiet,
        )  # fmt: skip
    if as_json:
        print(json.dumps(outcome.as_dict(), indent=1))
    elif not quiet:
        _show(outcome)
    for note in outcome.notes if not as_json else ():
        console.say(f"note: {note}", style="yellow", error=True)
    say_failures(outcome.failures, listed_elsewhere=out is not None or as_json)


def _thresholds(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"--tiou must be numbers separated by commas, such as 0.3,0.5,0.7, got {text!r}") from error


def _activities(
    annotations: Path, train_annotations: Path | None, subset: str, train_subset: str, classes: str
) -> Activities:
    from everyframe.evaluation.segment_files import BYS, read_activities

    by = next((one for one in BYS if one == classes), None)
    if by is None:
        raise ValueError(f"--classes must be {' or '.join(BYS)}, got {classes!r}")
    found = read_activities(annotations, subset=subset, by=by)
    if train_annotations is not None:
        found = found | read_activities(train_annotations, subset=train_subset, by=by)
    return found


def _settings(preset: str | None, activities: Activities, changes: dict[str, Any]) -> LocalizerSettings:
    from everyframe.training.localizer import LocalizerSettings

    name = preset or ("synthetic" if activities.synthesized else "activitynet")
    make = {"thumos": LocalizerSettings.thumos, "synthetic": LocalizerSettings.synthetic}.get(name, LocalizerSettings)
    if "epochs" in changes:
        usual = make().warmup_epochs
        changes = {**changes, "warmup_epochs": min(usual, changes["epochs"] // 2)}
    return make(**changes)


def _train_and_predict(
    activities: Activities,
    features: Path,
    train_features: Path | None,
    scores: Path | None,
    checkpoint: Path | None,
    settings: LocalizerSettings,
    baselines: bool,
    out: Path | None,
    device: str | None,
    common: dict[str, Any],
    train_subset: str,
    *,
    silent: bool,
) -> LocalizationOutcome:
    from everyframe.backbone.model import parse_device
    from everyframe.evaluation.feature_folder import FeatureFolder
    from everyframe.evaluation.localization import evaluate_localization, write_outcome
    from everyframe.evaluation.segment_files import read_class_scores
    from everyframe.training.localizer import Localizer

    place = str(parse_device(device))
    test = FeatureFolder(features)
    train = test if train_features is None else FeatureFolder(train_features)
    options: dict[str, Any] = {
        **common,
        "class_scores": None if scores is None else read_class_scores(scores),
        "train_subset": train_subset,
        "device": place,
        "say": (lambda text: None) if silent else lambda text: console.say(text, error=True),
    }
    localizer = None if checkpoint is None else Localizer.load(checkpoint, device=place)
    with console.StepProgress(silent=silent) as progress:
        outcome = evaluate_localization(
            train, test, activities, settings=settings, localizer=localizer, folder=out, epoch_done=progress.step,
            **options,
        )  # fmt: skip
    doubles = [*test.failures, *(train.failures if train is not test else ())]
    outcome = replace(outcome, failures=(*outcome.failures, *doubles))
    if baselines:
        shown = {video: test[video] for video in outcome.predictions}
        for name, score in _baselines(activities, train, shown, settings, options, common).items():
            outcome = outcome.with_block(name, score)
    if out is not None:
        write_outcome(outcome, out)
    return outcome


def _baselines(
    activities: Activities,
    train: Mapping[str, VideoFeatures],
    test: Mapping[str, VideoFeatures],
    settings: LocalizerSettings,
    options: dict[str, Any],
    common: dict[str, Any],
) -> dict[str, Any]:
    """Scores of the same training on noise in place of features, and of class names alone."""
    from everyframe.evaluation.feature_folder import readable
    from everyframe.evaluation.localization import evaluate_localization, without_content, zero_shot_localization

    videos = activities.subset(common["subset"])
    labels = sorted({segment.label for one in videos.values() for segment in one.segments})
    learned = readable(train, activities.subset(options["train_subset"]))
    blind = evaluate_localization(
        without_content(learned), without_content(test, seed=1), activities, settings=settings, **options
    )
    found = {"no features": blind.score}
    model = model_of(next(iter(test.values())), None, None)
    if model.text is not None:
        texts = model.encode_text([activities.prompt.format(label.lower()) for label in labels])
        zero = zero_shot_localization(test, activities, dict(zip(labels, texts, strict=True)), **common)
        found["zero-shot"] = zero.score
    return found


def _show(outcome: LocalizationOutcome) -> None:
    """The table: a row per block, published figures below."""

    counts = outcome.score.counts()
    console.say(
        f"localization: {counts['segments']} segments of {len(outcome.score.by_class)} classes in {counts['videos']} "
        f"videos, {counts['predictions']} predictions"
    )
    if outcome.failures:
        console.say(
            f"partial: {len(outcome.failures)} videos have no usable features, so these are not the numbers of the "
            "subset",
            style="yellow",
        )
    names = list(outcome.metrics)
    table = console.columns("", *names)
    for block, score in outcome.blocks.items():
        metrics = score.metrics()
        table.add_row(block, *(f"{metrics[name]:.2f}" for name in names))
    for who, reported in outcome.published.items():
        table.add_row(f"published: {who}", *(f"{reported[name]:.2f}" if name in reported else "-" for name in names))
    console.show(table)
