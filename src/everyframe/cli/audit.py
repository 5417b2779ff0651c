"""everyframe audit."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from everyframe import console
from everyframe.cli.app import app
from everyframe.cli.options import (
    BatchOption,
    DeviceOption,
    DropOption,
    DtypeOption,
    FpsOption,
    JsonOption,
    ModelOption,
    PartialOption,
    QuietOption,
    ResidualOption,
    ThreadsOption,
    check_query,
    check_writable,
    given,
    load_model,
)

if TYPE_CHECKING:
    from everyframe.audit import Audit

LEGEND = (
    "fidelity: cosine to dense, mean over all frames. P 5th, worst: of P-frames alone. IoU: of the moments found, to "
    "those found in dense features. GFLOPs: per frame. model, total: times as fast as dense, without and with reading "
    "(and motion where it is needed)."
)


@app.command()
def audit(
    paths: Annotated[list[str], typer.Argument(help="Videos, folders, globs, or text files of paths.")],
    fidelity: Annotated[
        float | None, typer.Option("--fidelity", help="Mean cosine to dense that must be reached. (default: 0.97)")
    ] = None,
    query: Annotated[list[str] | None, typer.Option("--query", help="What you will search for; repeatable.")] = None,
    queries: Annotated[Path | None, typer.Option("--queries", help="A text file of queries, one per line.")] = None,
    out: Annotated[Path, typer.Option("--out", help="The report, an HTML file.")] = Path("audit.html"),
    model: ModelOption = None,
    fps: FpsOption = None,
    interleave: Annotated[
        list[int] | None, typer.Option("--interleave", help="P-frames per I-frame; repeatable. (default: 1, 2, 3, 5)")
    ] = None,
    tolerance: Annotated[
        list[float] | None,
        typer.Option("--tolerance", help="Of adaptive reuse; repeatable. (default: 0.3, 1, 3)"),
    ] = None,
    drop: DropOption = None,
    residual: ResidualOption = None,
    everything: Annotated[bool, typer.Option("--all", help="Every strategy at every N, not only motion.")] = False,
    seconds: Annotated[
        float | None, typer.Option("--seconds", help="Seconds of each video to look at. (default: 60)")
    ] = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    batch_size: BatchOption = None,
    threads: ThreadsOption = None,
    keep_partial: PartialOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """What would be lost on your videos: encode a sample of each dense and interleaved, and compare."""
    from everyframe.audit import audit_page, audit_videos

    options = given(
        fps=fps,
        interleaves=interleave,
        tolerances=tolerance,
        drop=drop,
        target=fidelity,
        sample_seconds=seconds,
        batch_size=batch_size,
    )
    if residual is not None:
        options["residual"] = None if residual == "none" else residual
    texts = [*(query or []), *(_read_queries(queries) if queries is not None else [])]
    for text in texts:
        check_query(text)
    if out.is_dir():
        raise ValueError(f"--out must be a file such as audit.html, but {out} is a folder")
    check_writable(out.parent)
    started = time.monotonic()
    result = audit_videos(
        paths,
        load_model(model, device, dtype, threads),
        queries=texts or None,
        full_grid=everything,
        keep_partial=keep_partial,
        progress=lambda line: None if as_json or quiet else console.say(line, error=True),
        **options,
    )
    out.write_text(audit_page(result), encoding="utf-8")
    if as_json:
        print(json.dumps({**result.as_dict(), "report": str(out)}, indent=2, allow_nan=False))
    else:
        _show(result, out, time.monotonic() - started)
    if as_json or quiet:
        for failure in result.failures:
            console.say(f"everyframe: failed: {failure}", style="red", error=True)
    if result.failures:
        raise typer.Exit(1)


def _read_queries(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not a text file in UTF-8"
        raise ValueError(f"--queries {path} cannot be read: {reason}") from error
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise ValueError(f"--queries {path} holds no query")
    return texts


def _show(result: Audit, out: Path, wall: float) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from everyframe.audit import Row

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)  # fits 80 columns
    for index, name in enumerate(Row.SHORT):
        table.add_column(name, justify="left" if index == 1 else "right")
    last = None
    for row in result.rows:
        section = (row.setting.adaptive, row.setting.interleave)
        if last is not None and section != last:
            table.add_section()
        last = section
        table.add_row(*row.cells(), style="bold" if row.setting == result.advice.setting else None)
    console.say(result.summary())
    console.show(table)
    console.say(LEGEND)
    for note in result.notes:
        console.say(note)
    advice = result.advice
    for text in (advice.sentence, advice.command, advice.code, advice.remark, advice.remark_code):
        if text:
            console.say(f"\n{text}")
    console.say(f"\n{out}: the report, after {wall:.0f} s")
