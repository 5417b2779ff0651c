"""everyframe evaluate TASK."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everyframe import console
from everyframe.cli.app import app
from everyframe.cli.evaluate_list import ListOption
from everyframe.cli.options import (
    DeviceOption,
    FpsOption,
    JsonOption,
    QuietOption,
    ThreadsOption,
    check_writable,
    given,
    load_model,
)

if TYPE_CHECKING:
    from everyframe.backbone import Model
    from everyframe.evaluation.summary import Ablation
    from everyframe.evaluation.tables import Table as Content

evaluate = typer.Typer(no_args_is_help=True, help="How well the encoders do; one command per task.")
app.add_typer(evaluate, name="evaluate")


@evaluate.callback()
def _tasks(listed: ListOption = False) -> None:
    """How well the encoders do; one command per task."""


@evaluate.command()
def synthetic(
    model: Annotated[str, typer.Option("--model", help="Hub id, local folder, or 'bundled'.")] = "bundled",
    residual: Annotated[
        list[str] | None,
        typer.Option(
            "--residual",
            help="Residual tokenizer: auto, none, or NAME=FILE; again for more, the first is used throughout, files "
            "of one NAME are pooled. (default: auto)",
        ),
    ] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", help="Sets of videos. (default: 3)")] = None,
    videos: Annotated[int | None, typer.Option("--videos", help="Videos in each set. (default: 24)")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of the first set. (default: 901)")] = None,
    seconds: Annotated[float | None, typer.Option("--seconds", help="Length of each video. (default: 60)")] = None,
    fps: FpsOption = None,
    every_task: Annotated[
        bool,
        typer.Option(
            "--all",
            help="Not the ablation but every task: grounding, retrieval, recognition, localization, description.",
        ),
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="One set of 8 videos, fewer settings.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for ablation.json, or results.json, and pictures.")
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option("--work", help="Folder where rendered videos are kept; with --all a killed run goes on."),
    ] = None,
    workers: Annotated[int | None, typer.Option("--workers", help="Processes that render. (default: 1)")] = None,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """ResidualViT's ablation on held-out synthetic videos: methods, interleave, what is dropped, tokenizers.

    With --all every task of the papers, for dense and every other way to encode, in about half an hour on 2 free cores.
    """
    if out is not None:
        check_writable(out)
        from everyframe.extras import require

        require("matplotlib", extra="plot")
    if every_task:
        if seeds is not None:
            raise ValueError(
                "--seeds has no meaning with --all, which has one set for each purpose; --videos says how big"
            )
        changes = given(videos=videos, seed=seed, seconds=seconds, fps=fps)
        _every_task(
            load_model(model, device, None, threads), residual, changes, quick, out, work, workers, as_json, quiet
        )
        return
    from everyframe.evaluation.synthetic import evaluate_synthetic
    from everyframe.evaluation.variants import QUICK

    smaller = {"seeds": 1, "videos": 8, "sweep": QUICK} if quick else {}
    result = evaluate_synthetic(
        load_model(model, device, None, threads),
        work=work,
        say=None if quiet else lambda text: console.say(text, error=True),
        after_set=None if out is None else lambda ablation: _save(ablation, out),
        **{
            **smaller,
            **given(
                residuals=residual, seeds=seeds, videos=videos, seed=seed, seconds=seconds, fps=fps, workers=workers
            ),
        },
    )
    record = result.as_dict()
    if out is not None:
        from everyframe.evaluation.plots import write_plots

        write_plots(record, out)
    if as_json:
        print(json.dumps(record, indent=1))
    elif not quiet:
        _show(record)


def _every_task(
    model: Model,
    residuals: list[str] | None,
    changes: dict[str, Any],
    quick: bool,
    out: Path | None,
    work: Path | None,
    workers: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run, save after every task, and show."""
    from everyframe.evaluation.results import QUICK, Scale, evaluate_tasks
    from everyframe.evaluation.results_tables import result_caption, result_markdown, result_tables, write_result_plot

    if residuals is not None and len(residuals) > 1:
        raise ValueError(f"--residual is one tokenizer with --all, got {len(residuals)}")

    def save(record: dict[str, Any]) -> None:
        from everyframe.feature_files import write_whole

        if out is None:
            return
        content = json.dumps(record, indent=1, allow_nan=False) + "\n"
        files = {"results.md": result_markdown(record), "results.json": content}
        write_whole([(out / name, text.encode()) for name, text in files.items()], out / "results.json")

    record = evaluate_tasks(
        model,
        scale=dataclasses.replace(QUICK if quick else Scale(), **changes),
        residual="auto" if residuals is None else residuals[0].rpartition("=")[2],
        work=work,
        workers=workers or 1,
        say=None if quiet else lambda text: console.say(text, error=True),
        after_task=save,
    )
    if out is not None:
        write_result_plot(record, out / "results.png")
    if as_json:
        print(json.dumps(record, indent=1, allow_nan=False))
    elif not quiet:
        console.say(result_caption(record))
        for note in record["notes"]:
            console.say(note, style="yellow")
        for table in result_tables(record).values():
            _show_table(table)


def _save(ablation: Ablation, out: Path) -> None:
    """After every set, so that a killed run loses one set at most; whole or not at all."""
    from everyframe.feature_files import write_whole

    file = out / "ablation.json"
    write_whole([(file, (json.dumps(ablation.as_dict(), indent=1) + "\n").encode())], file)


def _show(record: dict[str, Any]) -> None:
    from everyframe.evaluation.tables import caption, narrow, tables

    console.say(caption(record))
    console.say("cost: GFLOPs per frame, % of a; of P: fidelity of P-frames alone; last column: R@1 at IoU 0.5, % of a")
    for content in map(narrow, tables(record).values()):
        if content.rows:
            _show_table(content)


def _show_table(content: Content) -> None:
    from rich import box
    from rich.table import Table

    table = Table(title=content.title, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name, *cells in zip(content.header, *content.rows, strict=True):
        if name in ("encoder", "pair"):  # these may wrap, numbers may not
            table.add_column(name, overflow="fold")
        else:
            words = [*name.split(), *(line for cell in cells for line in cell.split("\n"))]
            table.add_column(name, justify="right", width=max(map(len, words)))
    for row in content.rows:
        table.add_row(*row)
    console.show(table)
