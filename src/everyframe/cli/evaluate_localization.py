"""everyframe evaluate localization: mAP of an ActionFormer trained on features, or of given predictions."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everyframe import console
from everyframe.cli.clips import ClipProgress, check_none, say_failures
from everyframe.cli.encoded import (
    COSTS,
    CompareOption,
    KeptOption,
    check_compare,
    choices,
    cost_cells,
    encoded_videos,
    feature_cache,
)
from everyframe.cli.evaluate import evaluate
from everyframe.cli.groups import option_groups
from everyframe.cli.options import (
    BatchOption,
    DeviceOption,
    DtypeOption,
    FpsOption,
    JsonOption,
    ModelOption,
    PartialOption,
    QuietOption,
    ThreadsOption,
    check_writable,
    given,
    load_model,
    model_of,
    set_threads,
)
from everyframe.cli.reading import FrameEncoding

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from everyframe.evaluation.clips import Failure
    from everyframe.evaluation.feature_folder import FeatureFiles
    from everyframe.evaluation.frame_features import EncodedVideos
    from everyframe.evaluation.localization import LocalizationOutcome
    from everyframe.evaluation.segment_files import Activities
    from everyframe.evaluation.side_by_side import SideBySide
    from everyframe.features import VideoFeatures
    from everyframe.training.localizer import Localizer, LocalizerSettings

PRESETS = ("activitynet", "thumos", "synthetic")


@evaluate.command()
@option_groups
def localization(
    annotations: Annotated[
        Path,
        typer.Option("--annotations", help="ActivityNet-1.3's JSON or one of its layout, or a synthesized folder."),
    ],
    features: Annotated[Path | None, typer.Option("--features", help="Folder with features of the videos.")] = None,
    train_features: Annotated[
        Path | None, typer.Option("--train-features", help="Those of the training videos. (default: --features)")
    ] = None,
    videos: Annotated[
        Path | None, typer.Option("--videos", help="Instead of --features: encode the videos below this folder.")
    ] = None,
    train_videos: Annotated[
        Path | None, typer.Option("--train-videos", help="The training videos. (default: --videos)")
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
    compare: CompareOption = False,
    model: ModelOption = None,
    fps: FpsOption = None,
    *,
    encoding: FrameEncoding,
    cache: KeptOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for localizer, predictions and metrics; a killed run goes on.")
    ] = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    batch_size: BatchOption = None,
    threads: ThreadsOption = None,
    keep_partial: PartialOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Temporal activity localization: mAP at temporal IoU 0.5 to 0.95.

    Trains an ActionFormer on the features of the training subset and scores what it finds in the other; or scores
    --predictions. With --videos each encoder's features have a training of their own, in a folder of --out.
    """
    chosen = encoding.asked
    reading = chosen | given(
        train_videos=train_videos, model=model, fps=fps, dtype=dtype, batch_size=batch_size, cache=cache,
        compare=compare or None, keep_partial=keep_partial or None,
    )  # fmt: skip
    _check_source(predictions, features, videos, train_features, reading)
    if predictions is not None:
        training = given(
            features=features, train_features=train_features, scores=scores, checkpoint=checkpoint, preset=preset,
            epochs=epochs, seed=seed, baselines=baselines or None,
        )  # fmt: skip
        check_none("--predictions, which are only scored", training)
    elif checkpoint is not None and not baselines:
        training = given(
            train_features=train_features, train_videos=train_videos, preset=preset, epochs=epochs, seed=seed
        )
        check_none("--checkpoint, which is trained already", training)
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"--preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    thresholds = _thresholds(tiou)
    wanted = [] if videos is None else choices(chosen, compare=compare)
    from everyframe.evaluation.localization import score_predictions, write_outcome
    from everyframe.evaluation.segment_files import read_blocked, read_class_scores, read_predictions

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
        _finish({"": outcome}, outcome.as_dict(), out, as_json=as_json, quiet=quiet)
        return
    from everyframe.backbone.model import parse_device
    from everyframe.training.localizer import Localizer

    set_threads(threads)
    run = _Run(
        activities=activities,
        settings=_settings(preset, activities, given(epochs=epochs, seed=seed)),
        class_scores=None if scores is None else read_class_scores(scores),
        localizer=None if checkpoint is None else Localizer.load(checkpoint, device=str(parse_device(device))),
        train_subset=train_subset,
        baselines=baselines,
        device=device,
        common=common,
        silent=as_json or quiet,
    )
    if features is not None:
        outcome = run.of_folders(features, train_features, out)
        _finish({"": outcome}, outcome.as_dict(), out, as_json=as_json, quiet=quiet)
        return
    loaded = load_model(model, device, dtype, threads)
    with feature_cache(cache, out) as place:
        sources = encoded_videos(
            loaded, wanted, videos or Path(), fps=fps, cache=place, batch_size=batch_size, keep_partial=keep_partial
        )
        found = run.of_encoders(sources, train_videos, out)
    if out is not None:
        found.write(out)
    _finish(found.outcomes, found.as_dict(), out, as_json=as_json, quiet=quiet)


def _check_source(
    predictions: Path | None,
    features: Path | None,
    videos: Path | None,
    train_features: Path | None,
    reading: dict[str, Any],
) -> None:
    """One source, and only options that have a meaning with it. Raises ValueError."""
    if predictions is not None:
        check_none("--predictions, which are only scored", given(videos=videos) | reading)
    elif (features is None) == (videos is None):
        raise ValueError(
            "give one of --features (feature files to train on and predict from), --videos (a folder to encode) and "
            "--predictions (a file to score)"
        )
    elif features is not None:
        check_none("--features, which are encoded already", reading)
    else:
        check_none("--videos, which are encoded", given(train_features=train_features))
    check_compare(reading)


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


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What is done with each set of features."""

    activities: Activities
    settings: LocalizerSettings
    class_scores: Mapping[str, Mapping[str, float]] | None
    localizer: Localizer | None
    train_subset: str
    baselines: bool
    device: str | None
    common: dict[str, Any]
    silent: bool

    def of_folders(self, features: Path, train_features: Path | None, out: Path | None) -> LocalizationOutcome:
        """With features that were made before."""
        from everyframe.evaluation.feature_folder import FeatureFolder

        test = FeatureFolder(features)
        return self._of(test, test if train_features is None else FeatureFolder(train_features), out)

    def of_encoders(
        self, sources: Mapping[str, EncodedVideos], train_videos: Path | None, out: Path | None
    ) -> SideBySide[LocalizationOutcome]:
        """With those of each encoder, one after the other; encoder NAME has the folder NAME of `out`."""
        from everyframe.evaluation.feature_folder import FeatureFiles, encoded_files
        from everyframe.evaluation.side_by_side import SideBySide
        from everyframe.evaluation.writing import file_name

        videos = self.activities.subset(self.common["subset"])
        shown = [video for video in videos if video not in self.common["blocked"]]
        trains = self.localizer is None or self.baselines
        learned = [*self.activities.subset(self.train_subset)] if trains else []
        outcomes = {}
        for label, source in sources.items():
            with ClipProgress(silent=self.silent) as progress:
                test, train = encoded_files(source, shown, progress), FeatureFiles({})
                if trains:
                    if train_videos is not None:  # files of the same names must not meet in one folder
                        source = replace(source, folder=train_videos, cache=Path(source.cache or "") / "train")
                    train = encoded_files(source, learned, progress)
            outcomes[label] = self._of(test, train, None if out is None else out / file_name(label))
        settings = {label: source.settings for label, source in sources.items()}
        return SideBySide(task="localization", outcomes=outcomes, settings=settings)

    def _of(self, test: FeatureFiles, train: FeatureFiles, out: Path | None) -> LocalizationOutcome:
        """Train, or load, predict and score; with the baselines that were asked for."""
        from everyframe.backbone.model import parse_device
        from everyframe.evaluation.localization import evaluate_localization, write_outcome

        options: dict[str, Any] = {
            **self.common,
            "class_scores": self.class_scores,
            "train_subset": self.train_subset,
            "device": str(parse_device(self.device)),
            "say": (lambda text: None) if self.silent else lambda text: console.say(text, error=True),
        }
        with console.StepProgress(silent=self.silent) as progress:
            outcome = evaluate_localization(
                train, test, self.activities, settings=self.settings, localizer=self.localizer, folder=out,
                epoch_done=progress.step, **options,
            )  # fmt: skip
        known = [*test.failures, *(train.failures if train is not test else ())]
        outcome = replace(outcome, failures=_with_reasons(outcome.failures, known))
        if self.baselines:
            shown = {video: test[video] for video in outcome.predictions}
            for name, other in self._baselines(train, shown, options).items():
                outcome = outcome.with_block(name, other)
        if out is not None:
            write_outcome(outcome, out)
        return outcome

    def _baselines(
        self, train: FeatureFiles, test: Mapping[str, VideoFeatures], options: dict[str, Any]
    ) -> dict[str, LocalizationOutcome]:
        """The same training on noise in place of features, and class names alone."""
        from everyframe.evaluation.feature_folder import readable
        from everyframe.evaluation.localization import evaluate_localization, without_content, zero_shot_localization

        activities = self.activities
        videos = activities.subset(self.common["subset"])
        labels = sorted({segment.label for one in videos.values() for segment in one.segments})
        learned = readable(train, activities.subset(self.train_subset))
        blind = evaluate_localization(
            without_content(learned), without_content(test, seed=1), activities, settings=self.settings, **options
        )
        found = {"no features": blind}
        model = model_of(next(iter(test.values())), None, self.device)
        if model.text is not None:
            texts = model.encode_text([activities.prompt.format(label.lower()) for label in labels])
            text = dict(zip(labels, texts.cpu(), strict=True))
            found["zero-shot"] = zero_shot_localization(test, activities, text, **self.common)
        return found


def _with_reasons(failures: Sequence[Failure], known: Sequence[Failure]) -> tuple[Failure, ...]:
    """Why videos have no features, where that is known in more words, and what else is known."""
    why = {failure.video: failure for failure in known}
    missing = {failure.video for failure in failures if failure.kind == "missing"}
    told = [why.get(failure.video, failure) if failure.kind == "missing" else failure for failure in failures]
    return (*told, *(failure for failure in known if failure.video not in missing))


def _finish(
    outcomes: Mapping[str, LocalizationOutcome], record: dict[str, Any], out: Path | None, *, as_json: bool, quiet: bool
) -> None:
    """Print; exit with 1 where something was left out. outcomes: by encoder, "" for features or predictions."""
    if as_json:
        print(json.dumps(record, indent=1))
    elif not quiet:
        _show(outcomes)
    for label, outcome in outcomes.items() if not as_json else ():
        for note in outcome.notes:
            console.say(f"note: {label}{': ' if label else ''}{note}", style="yellow", error=True)
    failures = dict.fromkeys(failure for outcome in outcomes.values() for failure in outcome.failures)
    say_failures([*failures], listed_elsewhere=out is not None or as_json)


def _show(outcomes: Mapping[str, LocalizationOutcome]) -> None:
    """The table: a row per encoder and block, published figures below."""
    first = next(iter(outcomes.values()))
    counts = first.score.counts()
    given_by_one = f", {counts['predictions']} predictions" if len(outcomes) == 1 else ""
    console.say(
        f"localization: {counts['segments']} segments of {len(first.score.by_class)} classes in {counts['videos']} "
        f"videos{given_by_one}"
    )
    lost = {failure.video for outcome in outcomes.values() for failure in outcome.failures}
    if lost:
        console.say(
            f"partial: {len(lost)} videos have no usable features, so these are not the numbers of the subset",
            style="yellow",
        )
    names = list(first.metrics)
    table = console.columns("", *names, *COSTS)
    for label, outcome in outcomes.items():
        for place, row in enumerate(outcome.as_table()):
            name = row["name"] if not label else label if place == 0 else f"  {row['name']}"
            table.add_row(name, *(f"{row[metric]:.2f}" for metric in names), *cost_cells(row))
    for who, reported in first.published.items():
        table.add_row(f"published: {who}", *(f"{reported[name]:.2f}" if name in reported else "-" for name in names))
    console.show(table)
