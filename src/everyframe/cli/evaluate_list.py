"""everyframe evaluate --list: every task, its datasets, what it reads, and whether papers' figures stand beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from everyframe import console


@dataclass(frozen=True, kw_only=True)
class Task:
    """One command of evaluate."""

    name: str
    datasets: str
    reads: str
    published: str


TASKS = (
    Task(
        name="grounding",
        datasets="Charades-STA, ActivityNet Captions, MAD, QVHighlights, TACoS, synthetic",
        reads="official txt, json and jsonl; videos, feature files, or anybody's predictions",
        published="ResidualViT (ViT-L/14)",
    ),
    Task(
        name="localization",
        datasets="ActivityNet-1.3, synthetic",
        reads="ActivityNet json; videos, feature files, or anybody's predictions",
        published="ActionFormer (TSP features)",
    ),
    Task(
        name="recognition",
        datasets="Kinetics-400, UCF101, Something-Something v2",
        reads="official csv and lists; videos, or feature files",
        published="vid-TLDR (VideoMAE-B)",
    ),
    Task(
        name="description",
        datasets="MAD, synthetic",
        reads="time-stamped sentences; feature files, or anybody's predictions",
        published="none",
    ),
    Task(
        name="retrieval",
        datasets="MSR-VTT, MSVD, ActivityNet, DiDeMo, LSMDC, Something-Something v2",
        reads="official csv, json, txt and pkl; videos",
        published="vid-TLDR (UMT), TempMe (CLIP)",
    ),
    Task(
        name="questions",
        datasets="MSR-VTT-QA, MSVD-QA",
        reads="official json; videos",
        published="vid-TLDR (UMT)",
    ),
    Task(
        name="base-to-novel",
        datasets="UCF101",
        reads="lists and class tables of ViFi-CLIP; videos",
        published="vid-TLDR (ViFi-CLIP)",
    ),
    Task(
        name="synthetic",
        datasets="rendered by the command",
        reads="nothing",
        published="ResidualViT's ablation, as ratios",
    ),
)
"""A new task is a line here."""


def show_tasks(wanted: bool) -> None:
    """Print the table and stop, where it was asked for."""
    if not wanted:
        return
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("task", no_wrap=True)
    for column in ("datasets", "reads", "published beside ours"):
        table.add_column(column, overflow="fold")
    for task in TASKS:
        table.add_row(task.name, task.datasets, task.reads, task.published)
    console.show(table)
    console.say("everyframe evaluate TASK --help has the options.")
    raise typer.Exit


ListOption = Annotated[
    bool, typer.Option("--list", is_eager=True, callback=show_tasks, help="Every task and what it reads.")
]
