"""What the command line shows on a terminal: errors, progress of a batch, tables."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich import live
from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from typing_extensions import Self

    from everyframe.indexing import Indexed
    from everyframe.pipeline import Forecast, Outcome

_LONGEST_TITLE = 80  # characters

_out = Console()
_err = Console(stderr=True)


def say(text: str, *, style: str | None = None, error: bool = False) -> None:
    """One line, printed as it is: no markup, no wrapping."""
    # As `Text`, since the style of a string would colour a progress bar below it as well.
    (_err if error else _out).print(Text(text, style=style or ""), soft_wrap=True)


def columns(*names: str, left: Sequence[str] = (), title: str | None = None) -> Table:
    """An empty table that fits 80 columns: the first column and those in `left` are words, the others numbers."""
    table = Table(box=SIMPLE_HEAD, title=title, pad_edge=False, padding=(0, 1, 0, 0))
    for number, name in enumerate(names):
        table.add_column(name, justify="left" if number == 0 or name in left else "right")
    return table


def show(table: Table) -> None:
    """A table on standard output."""
    _out.print(table)


class Bar:
    """A progress bar on standard error while the block runs; none if `silent`."""

    def __init__(self, *columns: ProgressColumn, silent: bool) -> None:
        self._progress = None if silent else Progress(*columns, console=_err)

    def __enter__(self) -> Self:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()


class BatchProgress(Bar):
    """A progress bar over seconds of video, with frames/s, x realtime and the time left; shows nothing if `silent`."""

    def __init__(self, forecast: Forecast | None, *, silent: bool) -> None:
        self._seconds = forecast.seconds if forecast is not None else []
        self._started = time.monotonic()
        self._finished, self._behind = 0, 0.0  # videos, and the seconds of them by the forecast
        self._frames, self._worked = 0, 0.0  # encoded in this run, without what was skipped
        self._here = (0, 0.0)
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[count]}"),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            silent=silent,
        )
        if self._progress is not None:
            self._task = self._progress.add_task("starting", total=sum(self._seconds), count="", speed="")

    def frames(self, source: str, num_frames: int, seconds: float) -> None:
        """So far in the current video."""
        self._here = (num_frames, seconds)
        self._show(source)

    def finished(self, outcome: Outcome | Indexed) -> None:
        """The next video is done, one way or another."""
        self._behind += self._seconds[self._finished] if self._finished < len(self._seconds) else 0.0
        self._finished += 1
        self._frames += self._here[0]
        self._worked += self._here[1]
        self._here = (0, 0.0)
        if outcome.error is not None and outcome.status != "skipped":
            self.failed(outcome)
        self._show(outcome.source)

    def failed(self, outcome: Outcome | Indexed) -> None:
        """Say what was lost, above the bar."""
        if self._progress is not None:
            say_outcome(outcome)

    def _show(self, source: str) -> None:
        if self._progress is None:
            return
        elapsed = max(time.monotonic() - self._started, 1e-6)
        frames, worked = self._frames + self._here[0], self._worked + self._here[1]
        self._progress.update(
            self._task,
            completed=self._behind + self._here[1],
            description=Path(source).name[:40],
            count=f"{self._finished}/{len(self._seconds)}",
            speed=f"{frames / elapsed:.1f} frames/s {worked / elapsed:.1f}x realtime",
        )


class StepProgress(Bar):
    """A progress bar over training steps with the latest loss and the time left; shows nothing if `silent`."""

    def __init__(self, *, silent: bool) -> None:
        columns = (TextColumn("step"), BarColumn(), TextColumn("{task.fields[count]}"), TimeRemainingColumn())
        super().__init__(*columns, silent=silent)
        self._task: Any = None

    def step(self, step: int, total: int, loss: float) -> None:
        """`step` of `total` is done."""
        if self._progress is None:
            return
        count = f"{step}/{total}, loss {loss:.4f}"
        if self._task is None:
            # A resumed run starts in the middle; what was done before says nothing about the time left.
            self._task = self._progress.add_task("", total=total, completed=step, count=count)
        self._progress.update(self._task, completed=step, count=count)


class Live:
    """Lines at the foot of a terminal that renew themselves while the block runs, on standard error.

    Where that is no terminal, `line` is said every so many seconds, and at a good end. Nothing is shown if `silent`.
    """

    def __init__(
        self, picture: Callable[[], RenderableType], line: Callable[[], str], *, silent: bool, every: float = 30.0
    ) -> None:
        self._line, self._every = line, every
        self._over = threading.Event()
        self._live: live.Live | None = None
        self._thread: threading.Thread | None = None
        if silent:
            return
        if _err.is_terminal:
            self._live = live.Live(console=_err, get_renderable=picture, refresh_per_second=4)
        else:
            self._thread = threading.Thread(target=self._tell, daemon=True)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start(refresh=True)
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._live is not None:
            self._live.stop()
        if self._thread is not None:
            self._thread.join()
            if kind is None:
                say(self._line(), error=True)

    def _tell(self) -> None:
        while not self._over.wait(self._every):
            say(self._line(), error=True)


def show_forecast(forecast: Forecast) -> None:
    """What is to come, before it starts."""
    count = len(forecast.seconds)
    cost = "the cost depends on what they show"
    if forecast.macs is not None:
        cost = f"{forecast.macs / 1e12:.3g} TFLOPs (multiply-accumulates)"
    say(
        f"{count} video{'s' if count != 1 else ''}, {clock(forecast.total_seconds)} of video: "
        f"up to {forecast.num_frames} features, {cost}",
        error=True,
    )


def show_outcomes(
    outcomes: Sequence[Outcome | Indexed],
    wall: float,
    *,
    as_json: bool,
    quiet: bool,
    statuses: Sequence[str] = ("done", "partial", "skipped", "failed"),
) -> None:
    """What became of a batch. statuses: those there are, in the order of the summary."""
    frames = sum(outcome.num_frames for outcome in outcomes if outcome.status != "skipped")
    seconds = sum(outcome.seconds for outcome in outcomes)
    counts = {status: sum(outcome.status == status for outcome in outcomes) for status in statuses}
    speed = {"frames_per_second": frames / wall, "times_realtime": seconds / wall}
    if as_json:
        files = [outcome_facts(outcome) for outcome in outcomes]
        print(json.dumps({**counts, "frames": frames, "wall_seconds": wall, **speed, "files": files}, indent=2))
    elif not quiet:
        text = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
        if frames:
            text += (
                f": {frames} features of {seconds:.1f} s of video in {wall:.1f} s "
                f"({speed['frames_per_second']:.1f} features/s, {speed['times_realtime']:.1f}x realtime)"
            )
            cost = _cost(outcomes)
            text += f", {cost}" if cost else ""
        say(text)
    if as_json or quiet:
        for outcome in outcomes:
            if outcome.error is not None and outcome.status != "skipped":
                say(f"everyframe: {outcome.status}: {outcome.error}", style=_style(outcome), error=True)


def say_outcome(outcome: Outcome | Indexed) -> None:
    """One line on standard error: what went wrong with a video, or that it went well."""
    if outcome.error is not None:
        say(f"{outcome.status}: {outcome.error}", style=_style(outcome), error=True)
        return
    made = f" ({outcome.num_frames} features of {outcome.seconds:.1f} s)" if outcome.num_frames else ""
    say(f"{outcome.status}: {outcome.source}{made}", error=True)


def _style(outcome: Outcome | Indexed) -> str:
    return "red" if outcome.status in ("failed", "partial") else "yellow"


def outcome_facts(outcome: Outcome | Indexed) -> dict[str, Any]:
    """What --json prints of one video: paths and ids as text, which JavaScript could not hold as numbers."""
    facts = vars(outcome)
    texts = {key: str(facts[key]) for key in ("output", "video") if facts.get(key) is not None}
    return {**facts, **texts}


def _cost(outcomes: Sequence[Outcome | Indexed]) -> str | None:
    """Multiply-accumulates per frame of what was encoded, and as a share of dense; None where that is not known."""
    made = [outcome for outcome in outcomes if outcome.gflops_per_frame and outcome.gflops_share]
    frames = sum(outcome.num_frames for outcome in made)
    total = sum((outcome.gflops_per_frame or 0) * outcome.num_frames for outcome in made)
    dense = sum((outcome.gflops_per_frame or 0) / (outcome.gflops_share or 1) * outcome.num_frames for outcome in made)
    if not dense:
        return None
    return f"{total / frames:.3g} GFLOPs per frame, {total / dense:.0%} of dense"


def show_facts(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(facts, indent=2))
        return

    table = Table(show_header=False, box=None)
    for name, value in facts.items():
        nested = value if isinstance(value, dict) else {"": value}
        for key, item in nested.items():
            table.add_row(f"{name} {key}".strip(), str(item))
    _out.print(table)


def show_rows(rows: dict[str, str]) -> None:
    """Names and values, a line each; long values wrap beside their names."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    for name, value in rows.items():
        table.add_row(name, Text(value))
    _out.print(table)


def line_width() -> tuple[int, bool]:
    """Characters in a line of standard output, and whether they must be ASCII."""
    return _out.width, not _out.encoding.lower().startswith("utf")


def show_moments(
    rows: list[dict[str, Any]], title: str, as_json: bool, *, place: str | None = None, nothing: str = "nothing found"
) -> None:
    """place: where they were looked for. nothing: what to say where there are none."""
    if as_json:
        print(json.dumps(rows, indent=2))
        return

    if not rows:
        say(nothing)
        return
    title = title if len(title) <= _LONGEST_TITLE else f"{title[: _LONGEST_TITLE - 3].rstrip()}..."
    title = title if place is None else f"{title} in {place}"
    below = None
    if "video" in rows[0]:  # absolute paths would fill the table; their common folder goes below it
        addresses = any("://" in row["video"] for row in rows)
        folder = "" if addresses else os.path.commonpath([os.path.dirname(row["video"]) for row in rows])
        rows = [{**row, "video": os.path.relpath(row["video"], folder) if folder else row["video"]} for row in rows]
        below = Text(f"videos in {folder}") if folder else None
    table = Table(title=Text(title), caption=below)
    for name in rows[0]:
        table.add_column(name, justify="left" if name == "video" else "right", overflow="fold")
    for row in rows:
        cells = [clock(value) if name in ("start", "end") else str(value) for name, value in row.items()]
        table.add_row(*(Text(cell) for cell in cells))
    _out.print(table)


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss.d"""
    tenths = round(seconds * 10)
    hours, rest = divmod(tenths, 36000)
    minutes, rest = divmod(rest, 600)
    return f"{hours}:{minutes:02d}:{rest // 10:02d}.{rest % 10}"
