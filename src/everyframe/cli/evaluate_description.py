"""everyframe evaluate description."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everyframe import console
from everyframe.cli.clips import ClipProgress, check_none, say_failures
from everyframe.cli.encoded import COSTS, CompareOption, KeptOption, check_compare, choices, cost_cells, encoded_videos
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
    set_threads,
)
from everyframe.cli.reading import FrameEncoding

if TYPE_CHECKING:
    from collections.abc import Mapping

    from everyframe.evaluation.clips import Failure
    from everyframe.evaluation.description import DescriptionOutcome, Narrated
    from everyframe.evaluation.frame_features import EncodedVideos
    from everyframe.evaluation.side_by_side import SideBySide
    from everyframe.tasks.describer import Describer
    from everyframe.training.description import DescribeRecipe

DEFAULT_LANGUAGE = "gpt2"
_LISTED = 10

BeamOption = Annotated[int, typer.Option("--beam", min=1, help="Width of the beam search; 1 is greedy.")]
CheckpointOption = Annotated[
    Path | None,
    typer.Option("--checkpoint", help="Folder describer/ that everyframe evaluate description --out wrote."),
]


@evaluate.command()
@option_groups
def description(
    annotations: Annotated[
        Path,
        typer.Option(
            "--annotations",
            help="Who says what when: MAD-named CSV or JSON, JSON lines with vid, start, end, text, grounding's files, "
            "or annotations.jsonl of everyframe synthesize.",
        ),
    ],
    features: Annotated[
        Path | None, typer.Option("--features", help="Folder of feature files, named like the videos.")
    ] = None,
    train: Annotated[Path | None, typer.Option("--train", help="Annotations to train on, in the same layouts.")] = None,
    train_features: Annotated[
        Path | None, typer.Option("--train-features", help="Their feature files. (default: --features)")
    ] = None,
    videos: Annotated[
        Path | None, typer.Option("--videos", help="Instead of --features: encode the videos below this folder.")
    ] = None,
    train_videos: Annotated[
        Path | None, typer.Option("--train-videos", help="Those of --train. (default: --videos)")
    ] = None,
    checkpoint: CheckpointOption = None,
    predictions: Annotated[
        Path | None, typer.Option("--predictions", help="Only score these: JSON lines with vid, start, end, text.")
    ] = None,
    layout: Annotated[str | None, typer.Option("--layout", help="Of the annotations; guessed by default.")] = None,
    language: Annotated[
        str | None,
        typer.Option(
            "--language",
            help=f"GPT-2: hub id, folder, or small, a new one for few words. (default: {DEFAULT_LANGUAGE})",
        ),
    ] = None,
    tune_language: Annotated[
        bool, typer.Option("--tune-language", help="Train GPT-2 too; small always is. (default: frozen)")
    ] = False,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Also train and score the same without sight: features of zeros.")
    ] = False,
    clips: Annotated[int | None, typer.Option("--clips", help="Clips that are seen around each. (default: 8)")] = None,
    frames: Annotated[int | None, typer.Option("--frames", help="Frames of each clip. (default: 8)")] = None,
    words: Annotated[int | None, typer.Option("--words", help="Longest text in tokens. (default: 48)")] = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", help="Times every text is seen. (default: 10, small 30)")
    ] = None,
    batch: Annotated[int | None, typer.Option("--batch", help="Clips per step. (default: 64, small 32)")] = None,
    rate: Annotated[float | None, typer.Option("--lr", help="Peak learning rate. (default: 1e-4, small 1e-3)")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="First weights, order, dropout. (default: 42)")] = None,
    beam: BeamOption = 5,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            "--metric", help="ROUGE-L, CIDEr, METEOR, SPICE, BERTScore; again for more. (default: all there are)"
        ),
    ] = None,
    bert_model: Annotated[
        str | None, typer.Option("--bert-model", help="Of BERTScore. (default: roberta-large, if in the hub's cache)")
    ] = None,
    compare: CompareOption = False,
    model: ModelOption = None,
    fps: FpsOption = None,
    *,
    encoding: FrameEncoding,
    cache: KeptOption = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for describer, predictions and scores; a killed run goes on there."),
    ] = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    batch_size: BatchOption = None,
    threads: ThreadsOption = None,
    keep_partial: PartialOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Audio description: train a mapping network before GPT-2 on narrated clips (or load one), describe, score.

    ROUGE-L, CIDEr, METEOR and SPICE are pycocoevalcap's, BERTScore is that of a model you name. With --videos each
    encoder's features have a training of their own, in a folder of --out.
    """
    chosen = encoding.asked
    reading = chosen | given(
        train_videos=train_videos, model=model, fps=fps, dtype=dtype, batch_size=batch_size, cache=cache,
        compare=compare or None, keep_partial=keep_partial or None,
    )  # fmt: skip
    recipe = given(
        clips=clips, frames=frames, words=words, epochs=epochs, batch=batch, rate=rate, seed=seed,
        tune_language=tune_language or None,
    )  # fmt: skip
    training = recipe | given(
        language=language, train_features=train_features, train_videos=train_videos, baseline=baseline or None
    )
    _check_sources(train, checkpoint, predictions, features, videos, training)
    if videos is None:
        check_none("--features, which are encoded already" if features else "--predictions", reading)
    check_compare(reading)
    wanted = [] if videos is None else choices(chosen, compare=compare)
    if out is not None:
        check_writable(out)
    set_threads(threads)
    silent = quiet or as_json
    scoring: dict[str, Any] = {"metrics": metric, "bert": bert_model}
    if predictions is not None:
        from everyframe.evaluation.description import score_predictions, write_outcome
        from everyframe.evaluation.description_files import read_narrations

        outcome = score_predictions(
            read_narrations(predictions), read_narrations(annotations, layout=layout), **scoring
        )
        if out is not None:
            write_outcome(out, outcome)
        _finish({"": outcome}, outcome.as_dict(), as_json=as_json, quiet=quiet)
        return
    from everyframe.evaluation.captions import available
    from everyframe.tasks.describer import load_describer

    available(metric, bert_model)  # before videos are encoded, not after
    run = _Run(
        annotations=annotations,
        train=train,
        describer=None if checkpoint is None else load_describer(checkpoint, device=device),
        layout=layout,
        language=language,
        recipe=recipe,
        device=device,
        silent=silent,
        options={**scoring, "baseline": baseline, "beam": beam},
    )
    if features is not None:
        outcome = run.of(features, train_features or features, out)
        _finish({"": outcome}, outcome.as_dict(), as_json=as_json, quiet=quiet)
        return
    place = cache if cache is not None else None if out is None else out / "features"
    sources = encoded_videos(
        load_model(model, device, dtype, threads), wanted, videos or Path(),
        fps=fps, cache=place, batch_size=batch_size, keep_partial=keep_partial,
    )  # fmt: skip
    found = run.of_encoders(sources, train_videos, out)
    if out is not None:
        found.write(out)
    _finish(found.outcomes, found.as_dict(), as_json=as_json, quiet=quiet)


def _check_sources(
    train: Path | None,
    checkpoint: Path | None,
    predictions: Path | None,
    features: Path | None,
    videos: Path | None,
    training: dict[str, Any],
) -> None:
    """Raises ValueError for options that contradict each other."""
    sources = given(train=train, checkpoint=checkpoint, predictions=predictions)
    if len(sources) != 1:
        raise ValueError(
            "give one of --train (annotations to train on), --checkpoint (a describer trained before) or --predictions "
            f"(descriptions to score), got {' and '.join(f'--{name}' for name in sources) or 'none'}"
        )
    if predictions is None and features is None and videos is None:
        raise ValueError(
            "--features is needed, the folder that holds the feature files (everyframe encode makes them), or --videos"
        )
    if predictions is not None:
        check_none("--predictions, which are only scored", given(features=features, videos=videos))
    if features is not None:
        check_none("--features, which are encoded already", given(videos=videos))
    if videos is not None:
        check_none("--videos, which are encoded", {k: v for k, v in training.items() if k == "train_features"})
    if train is None and training:
        name = next(iter(training)).replace("_", "-").replace("rate", "lr")
        raise ValueError(f"--{name} has no meaning without --train: nothing is trained")


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What is done with each set of features."""

    annotations: Path
    train: Path | None
    describer: Describer | None
    layout: str | None
    language: str | None
    recipe: dict[str, Any]
    device: str | None
    silent: bool
    options: dict[str, Any]

    def of_encoders(
        self, sources: Mapping[str, EncodedVideos], train_videos: Path | None, out: Path | None
    ) -> SideBySide[DescriptionOutcome]:
        """With the features of each encoder, one after the other; encoder NAME has the folder NAME of `out`."""
        from everyframe.evaluation.side_by_side import SideBySide
        from everyframe.evaluation.writing import file_name

        outcomes = {}
        for label, source in sources.items():
            learned = source
            if train_videos is not None:  # files of the same names must not meet in one folder
                cache = None if source.cache is None else Path(source.cache) / "train"
                learned = replace(source, folder=train_videos, cache=cache)
            outcomes[label] = self.of(source, learned, None if out is None else out / file_name(label))
        settings = {label: source.settings for label, source in sources.items()}
        return SideBySide(task="description", outcomes=outcomes, settings=settings)

    def of(
        self, features: Path | EncodedVideos, train_features: Path | EncodedVideos, out: Path | None
    ) -> DescriptionOutcome:
        """Train, or load, describe and score."""
        from everyframe.evaluation.description import evaluate_description, write_outcome

        options = self.options
        facts, items, failures, left_out = self._read(self.annotations, features)
        learned: list[Narrated] | None = None
        if self.train is not None:
            own, learned, own_failures, own_left_out = self._read(self.train, train_features)
            facts, failures, left_out = [*facts, *own], [*own_failures, *failures], [*own_left_out, *left_out]
            recipe = _recipe(self.language, self.recipe)
            options = {**options, "language": self.language or DEFAULT_LANGUAGE, "recipe": recipe}
        with console.StepProgress(silent=self.silent) as progress:
            outcome = evaluate_description(
                learned,
                items,
                describer=self.describer,
                out=out,
                device=self.device,
                say=None if self.silent else lambda text: console.say(text, error=True),
                step_done=progress.step,
                **options,
            )
        outcome = replace(
            outcome,
            annotations=tuple(facts),
            failures=tuple(failures),
            left_out=(*left_out, *outcome.left_out),
            wanted=facts[0]["videos"],
        )
        if out is not None:
            write_outcome(out, outcome)
        return outcome

    def _read(
        self, annotations: Path, features: Path | EncodedVideos
    ) -> tuple[list[dict[str, Any]], list[Narrated], list[Failure], list[str]]:
        """Facts of a file, its videos with features, those without, and the entries that say nothing."""
        from everyframe.evaluation.description import encode_narrated, read_narrated
        from everyframe.evaluation.description_files import read_narrations

        narrations = read_narrations(annotations, layout=self.layout)
        if isinstance(features, Path):
            items, failures = read_narrated(narrations, features)
        else:
            with ClipProgress(silent=self.silent) as progress:
                items, failures = encode_narrated(narrations, features, progress)
        return [narrations.facts()], items, failures, list(narrations.left_out)


def _recipe(language: str | None, options: dict[str, Any]) -> DescribeRecipe:
    from everyframe.training.description import SMALL, DescribeRecipe

    return DescribeRecipe.small(**options) if language == SMALL else DescribeRecipe(**options)


def _finish(outcomes: Mapping[str, DescriptionOutcome], record: dict[str, Any], *, as_json: bool, quiet: bool) -> None:
    """Print; exit with 1 where something was left out. outcomes: by encoder, "" for features or predictions."""
    if as_json:
        print(json.dumps(record, indent=1, default=str))
    elif not quiet:
        if len(outcomes) > 1:
            _show_encoders(outcomes)
        else:
            _show(next(iter(outcomes.values())))
    left_out = [*dict.fromkeys(line for outcome in outcomes.values() for line in outcome.left_out)]
    for line in left_out[:_LISTED]:
        console.say(f"everyframe: left out: {line}", style="red", error=True)
    if len(left_out) > _LISTED:
        more = f"and {len(left_out) - _LISTED} more; --json and metrics.json in --out list them all"
        console.say(f"everyframe: {more}", style="red", error=True)
    failures = dict.fromkeys(failure for outcome in outcomes.values() for failure in outcome.failures)
    say_failures([*failures], listed_elsewhere=as_json)
    if left_out:
        raise typer.Exit(1)


def _show_encoders(outcomes: Mapping[str, DescriptionOutcome]) -> None:
    """A row per encoder, and one for what its training reaches without sight."""
    first = next(iter(outcomes.values()))
    _say_what(first)
    names = list(first.metrics)
    table = console.columns("", *names, *COSTS)
    for label, outcome in outcomes.items():
        for place, row in enumerate(outcome.as_table()):
            name = label if place == 0 else f"  {row['name']}"
            table.add_row(name, *(f"{row[metric]:.2f}" for metric in names), *cost_cells(row))
    console.show(table)
    _say_limits(first)


def _show(outcome: DescriptionOutcome) -> None:
    """The table ours / without sight / difference."""

    _say_what(outcome)
    blind = ["without sight", "difference"] if outcome.baseline is not None else []
    table = console.columns("metric", "ours", *blind)
    for name, value in outcome.metrics.items():
        cells = [name, f"{value:.2f}"]
        if outcome.baseline is not None:
            cells += [f"{outcome.baseline[name]:.2f}", f"{value - outcome.baseline[name]:+.2f}"]
        table.add_row(*cells)
    for name, cell in zip(COSTS, cost_cells(outcome.cost.as_dict()), strict=True):
        if cell:
            table.add_row(name, cell)
    console.show(table)
    _say_limits(outcome)
    if outcome.predictions and outcome.describer is not None:
        console.say("the first descriptions:")
        video, found = next(iter(outcome.predictions.items()))
        for each in list(found)[:3]:
            console.say(f"  {video} {console.clock(each.start)} to {console.clock(each.end)}: {each.text}")


def _say_what(outcome: DescriptionOutcome) -> None:
    """How much was described, and whether all of it."""
    console.say(f"audio description: {outcome.clips} clips of {outcome.videos} videos")
    if outcome.partial:
        console.say(
            f"partial: {len(outcome.failures)} of the videos and {len(outcome.left_out)} of the descriptions are left "
            "out, so these are not the numbers of the split",
            style="yellow",
        )


def _say_limits(outcome: DescriptionOutcome) -> None:
    """What the scores do not say."""
    for why in outcome.missing.values():
        console.say(f"not computed: {why}", style="yellow")
    if outcome.tokenization != "ptb":
        console.say(
            "there is no Java for the Penn Treebank tokenization of published numbers: these are of a simpler one",
            style="yellow",
        )
