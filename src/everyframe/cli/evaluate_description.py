"""everyframe evaluate description."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everyframe import console
from everyframe.cli.clips import say_failures
from everyframe.cli.evaluate import evaluate
from everyframe.cli.options import (
    DeviceOption,
    JsonOption,
    QuietOption,
    ThreadsOption,
    check_writable,
    given,
    set_threads,
)

if TYPE_CHECKING:
    from everyframe.evaluation.clips import Failure
    from everyframe.evaluation.description import DescriptionOutcome, Narrated
    from everyframe.training.description import DescribeRecipe

DEFAULT_LANGUAGE = "gpt2"
_LISTED = 10

BeamOption = Annotated[int, typer.Option("--beam", min=1, help="Width of the beam search; 1 is greedy.")]
CheckpointOption = Annotated[
    Path | None,
    typer.Option("--checkpoint", help="Folder describer/ that everyframe evaluate description --out wrote."),
]


@evaluate.command()
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
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for describer, predictions and scores; a killed run goes on there."),
    ] = None,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Audio description: train a mapping network before GPT-2 on narrated clips (or load one), describe, score.

    ROUGE-L, CIDEr, METEOR and SPICE are pycocoevalcap's, BERTScore is that of a model you name.
    """
    recipe = given(
        clips=clips, frames=frames, words=words, epochs=epochs, batch=batch, rate=rate, seed=seed,
        tune_language=tune_language or None,
    )  # fmt: skip
    training = {**recipe, **given(language=language, train_features=train_features, baseline=baseline or None)}
    _check_sources(train, checkpoint, predictions, features, training)
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
    else:
        outcome = _run(
            annotations, features, train, train_features, checkpoint, layout, language, recipe, out, device, silent,
            {**scoring, "baseline": baseline, "beam": beam},
        )  # fmt: skip
    _finish(outcome, as_json=as_json, quiet=quiet)


def _check_sources(
    train: Path | None,
    checkpoint: Path | None,
    predictions: Path | None,
    features: Path | None,
    training: dict[str, Any],
) -> None:
    """Raises ValueError for options that contradict each other."""
    sources = given(train=train, checkpoint=checkpoint, predictions=predictions)
    if len(sources) != 1:
        raise ValueError(
            "give one of --train (annotations to train on), --checkpoint (a describer trained before) or --predictions "
            f"(descriptions to score), got {' and '.join(f'--{name}' for name in sources) or 'none'}"
        )
    if predictions is None and features is None:
        raise ValueError("--features is needed: the folder that holds the feature files (everyframe encode makes them)")
    if predictions is not None and features is not None:
        raise ValueError("--features has no meaning with --predictions, which are only scored")
    if train is None and training:
        name = next(iter(training)).replace("_", "-").replace("rate", "lr")
        raise ValueError(f"--{name} has no meaning without --train: nothing is trained")


def _run(
    annotations: Path,
    features: Path | None,
    train: Path | None,
    train_features: Path | None,
    checkpoint: Path | None,
    layout: str | None,
    language: str | None,
    recipe: dict[str, Any],
    out: Path | None,
    device: str | None,
    silent: bool,
    options: dict[str, Any],
) -> DescriptionOutcome:
    from dataclasses import replace

    from everyframe.evaluation.description import evaluate_description, write_outcome
    from everyframe.tasks.describer import load_describer

    describer = None if checkpoint is None else load_describer(checkpoint, device=device)
    facts, items, failures, left_out = _read(annotations, features or Path(), layout)
    learned: list[Narrated] | None = None
    if train is not None:
        own, learned, own_failures, own_left_out = _read(train, train_features or features or Path(), layout)
        facts, failures, left_out = [*facts, *own], [*own_failures, *failures], [*own_left_out, *left_out]
        options |= {"language": language or DEFAULT_LANGUAGE, "recipe": _recipe(language, recipe)}
    with console.StepProgress(silent=silent) as progress:
        outcome = evaluate_description(
            learned,
            items,
            describer=describer,
            out=out,
            device=device,
            say=None if silent else lambda text: console.say(text, error=True),
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


def _recipe(language: str | None, options: dict[str, Any]) -> DescribeRecipe:
    from everyframe.training.description import SMALL, DescribeRecipe

    return DescribeRecipe.small(**options) if language == SMALL else DescribeRecipe(**options)


def _read(
    annotations: Path, features: Path, layout: str | None
) -> tuple[list[dict[str, Any]], list[Narrated], list[Failure], list[str]]:
    """Facts of a file, its videos with features, those without, and the entries that say nothing."""
    from everyframe.evaluation.description import read_narrated
    from everyframe.evaluation.description_files import read_narrations

    narrations = read_narrations(annotations, layout=layout)
    items, failures = read_narrated(narrations, features)
    return [narrations.facts()], items, failures, list(narrations.left_out)


def _finish(outcome: DescriptionOutcome, *, as_json: bool, quiet: bool) -> None:
    """Print a result; exit with 1 where something was left out."""
    if as_json:
        print(json.dumps(outcome.as_dict(), indent=1, default=str))
    elif not quiet:
        _show(outcome)
    for line in outcome.left_out[:_LISTED]:
        console.say(f"everyframe: left out: {line}", style="red", error=True)
    if len(outcome.left_out) > _LISTED:
        more = f"and {len(outcome.left_out) - _LISTED} more; --json and metrics.json in --out list them all"
        console.say(f"everyframe: {more}", style="red", error=True)
    say_failures(outcome.failures, listed_elsewhere=as_json)
    if outcome.left_out:
        raise typer.Exit(1)


def _show(outcome: DescriptionOutcome) -> None:
    """The table ours / without sight / difference."""

    console.say(f"audio description: {outcome.clips} clips of {outcome.videos} videos")
    if outcome.partial:
        console.say(
            f"partial: {len(outcome.failures)} of the videos and {len(outcome.left_out)} of the descriptions are left "
            "out, so these are not the numbers of the split",
            style="yellow",
        )
    blind = ["without sight", "difference"] if outcome.baseline is not None else []
    table = console.columns("metric", "ours", *blind)
    for name, value in outcome.metrics.items():
        cells = [name, f"{value:.2f}"]
        if outcome.baseline is not None:
            cells += [f"{outcome.baseline[name]:.2f}", f"{value - outcome.baseline[name]:+.2f}"]
        table.add_row(*cells)
    console.show(table)
    for why in outcome.missing.values():
        console.say(f"not computed: {why}", style="yellow")
    if outcome.tokenization != "ptb":
        console.say(
            "there is no Java for the Penn Treebank tokenization of published numbers: these are of a simpler one",
            style="yellow",
        )
    if outcome.predictions and outcome.describer is not None:
        console.say("the first descriptions:")
        video, found = next(iter(outcome.predictions.items()))
        for each in list(found)[:3]:
            console.say(f"  {video} {console.clock(each.start)} to {console.clock(each.end)}: {each.text}")
