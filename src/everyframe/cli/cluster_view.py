"""What everyframe encode --cluster shows: how far it is, and what it came to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from everyframe import console

if TYPE_CHECKING:
    from everyframe.scale.events import Event
    from everyframe.scale.progress import Progress
    from everyframe.scale.report import Report

SHOWN = 20  # failures that are told one by one
_NAMED = 3  # of a reason, in the summary


class Losses:
    """Says which videos are lost, above the progress; not all of them where there are very many. A listener."""

    def __init__(self) -> None:
        self._told = 0

    def __call__(self, event: Event) -> None:
        from everyframe.scale.events import VideoDone

        if not isinstance(event, VideoDone) or event.failure is None:
            return
        self._told += 1
        if self._told <= SHOWN:
            console.say(f"{event.status}: {event.failure.message}", style="red", error=True)
        if self._told == SHOWN:
            console.say("should there be more, the report has them", style="red", error=True)


def picture(progress: Progress) -> RenderableType:
    """A bar over seconds of video, rates, and who works."""
    if progress.round == 0 and not progress.videos:
        return Text(_looking(progress))
    left = progress.eta_seconds
    bar = Table.grid(padding=(0, 1))
    bar.add_row(
        ProgressBar(total=max(progress.seconds, 1e-6), completed=progress.seconds_done, width=24),
        _counts(progress),
        f"{clock(left)} left" if left is not None else "",
    )
    lines = [line for line in (_rates(progress), _stages(progress), _workers(progress)) if line]
    return Group(bar, *(Text(line, overflow="ellipsis", no_wrap=True) for line in lines))


def one_line(progress: Progress) -> str:
    """The same for a file or a pipe."""
    if progress.round == 0 and not progress.videos:
        return _looking(progress)
    left = progress.eta_seconds
    parts = [_counts(progress), _rates(progress), f"{clock(left)} left" if left is not None else ""]
    return "; ".join(part for part in (*parts, _stages(progress), _workers(progress)) if part)


def _looking(progress: Progress) -> str:
    """Before it is known what there is to do."""
    at = progress.probing
    return f"looked at {at.done:,} of {at.total:,} videos" if at is not None else "looking at the videos"


def _counts(progress: Progress) -> str:
    return f"{progress.finished}/{progress.videos} videos, {clock(progress.seconds_done)} of {clock(progress.seconds)}"


def _rates(progress: Progress) -> str:
    text = f"{progress.frames_per_second:.1f} frames/s, {progress.times_realtime:.1f}x realtime"
    lost = {name: progress.statuses[name] for name in ("failed", "quarantined", "partial")}
    counts = {"retried": progress.retries, **lost}
    told = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    return f"{text}; {told}" if told else text


def _stages(progress: Progress) -> str:
    """What each stage does in a second of work of one worker, and how much of the time it works."""
    parts = []
    for name in ("decode", "encode", "write"):
        rate = progress.stage(name)
        if rate.frames_per_second is not None:
            busy = f", {rate.busy:.0%} busy" if rate.busy is not None else ""
            parts.append(f"{name} {rate.frames_per_second:.0f}/s{busy}")
    return "; ".join(parts)


def _workers(progress: Progress) -> str:
    now = progress.nodes
    if now is None:
        return ""
    return (
        f"{_many(now.nodes, 'node')}, {now.cpus:g} CPUs, {now.gpus:g} GPUs; {_many(now.decoders, 'decoder')}, "
        f"{_many(now.encoders, 'encoder')}; round {progress.round}"
    )


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count != 1 else ''}"


def clock(seconds: float) -> str:
    """h:mm:ss: tenths mean nothing here."""
    return console.clock(round(seconds)).partition(".")[0]


def show_report(report: Report, out: str) -> None:
    """What became of the videos, what it took, and why some were lost. out: where all of it is written."""
    from everyframe.scale.places import STATE

    counts = ", ".join(f"{count} {status}" for status, count in report.videos.items() if count)
    rows = {"videos": counts or "none"}
    listed = [f"{report.listed} listed"] if report.listed else []
    listed += [f"{report.duplicates} listed again"] if report.duplicates else []
    listed += [f"{report.missing} not there"] if report.missing else []
    rows["list"] = ", ".join(listed)
    rows["features"] = f"{report.frames} of {clock(report.hours * 3600)} of video"
    wall = report.usage.wall_seconds
    speed = ""
    if report.frames_per_second is not None and report.times_realtime is not None:
        speed = f": {report.frames_per_second:.1f} frames/s, {report.times_realtime:.1f}x realtime"
        share = report.i_frames / report.encoded_frames if report.encoded_frames else 0.0
        rows["encoded"] = f"{report.encoded_frames} frames, {share:.0%} of them I-frames"
    rows["time"] = f"{console.clock(wall)}{speed}"
    rows["work"] = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in report.stage_seconds.items() if seconds)
    tries = ", ".join(f"{count} {kind}" for kind, count in report.tries_failed.items())
    rows["failed tries"] = f"{tries}; {_many(report.retries, 'segment')} tried again" if tries else ""
    rows["cluster"] = (
        f"{report.usage.cpu_hours:.3g} CPU hours, {report.usage.gpu_hours:.3g} GPU hours, "
        f"{report.usage.node_hours:.3g} node hours"
    )
    if report.cost:
        per = report.cost_per_hour
        rows["cost"] = f"{report.cost:.4g} EUR" + (f", {per:.4g} EUR per hour of video" if per is not None else "")
    rows["report"] = f"{out.rstrip('/')}/{STATE}/{report.file_name}" if report.run else ""
    console.show_rows({name: text for name, text in rows.items() if text})
    if report.failures:
        table = console.columns("lost because", "videos", "such as", left=("such as",))
        for kind, failures in report.failures_by_kind.items():
            for place, failure in enumerate(failures[:_NAMED]):
                table.add_row(*((kind, str(len(failures))) if place == 0 else ("", "")), Text(failure.message))
        console.show(table)
    for text in report.warnings:
        console.say(f"warning: {text}", style="yellow", error=True)
