"""The main job end to end on a small archive: render, encode twice, search, ground, compare, report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from everyframe import cpu
from everyframe.backbone import Model, load
from everyframe.encoders import DenseEncoder, Encoder, ResidualViT, ReuseEncoder
from everyframe.encoders.baselines import fidelity
from everyframe.features import VideoFeatures
from everyframe.pipeline import encode_video
from everyframe.report import html_page, html_table, html_timeline
from everyframe.spans import recall_at
from everyframe.synthetic import Event, SyntheticVideo, synthesize
from everyframe.tasks.grounding import ground, smoothed_similarity
from everyframe.tasks.retrieval import search

if TYPE_CHECKING:
    from rich.table import Table

NOTE = (
    "Measured with the small bundled model, which knows only this synthetic world. "
    "It says how the encoders compare, not what they reach on real footage. The model is so small that decoding "
    "takes much of the time: the speed-up grows with the model (benchmarks/encode.py measures ViT-B)."
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One encoder's figures over the whole archive."""

    encoder: str
    seconds: float
    times_realtime: float
    frames_per_second: float
    gflops_per_frame: float
    speed_up: float
    fidelity_mean: float
    fidelity_p5: float
    recall_50: float
    recall_70: float


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    rows: list[Row]
    report: Path
    queries: int
    videos: int
    video_seconds: float
    interleave: int
    moving_share: tuple[float, float]

    HEADER = (
        "encoder",
        "time",
        "x realtime",
        "GFLOPs per frame",
        "speed-up",
        "fidelity mean / 5th pct",
        "R@1 IoU .5 / .7",
    )

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "rows": [vars(row) for row in self.rows], "report": str(self.report)}

    def cells(self) -> list[list[str]]:
        return [
            [
                row.encoder,
                f"{row.seconds:.1f} s",
                f"{row.times_realtime:.0f}",
                f"{row.gflops_per_frame:.3f}",
                f"{row.speed_up:.2f}x",
                f"{row.fidelity_mean:.3f} / {row.fidelity_p5:.3f}",
                f"{100 * row.recall_50:.1f} / {100 * row.recall_70:.1f}",
            ]
            for row in self.rows
        ]

    def table(self) -> Table:
        from rich.table import Table

        title = (
            f"{self.videos} videos, {self.video_seconds / 60:.0f} min, {self.queries} queries; ResidualViT with "
            f"N = {self.interleave}, reuse adaptive"
        )
        table = Table(title=title, padding=(0, 0), pad_edge=False)
        for index, name in enumerate(self.HEADER):
            table.add_column(name, justify="left" if index == 0 else "right")
        for cells in self.cells():
            table.add_row(*cells)
        table.caption = NOTE
        return table


def run_demo(
    out: str | Path,
    *,
    videos: int = 12,
    seconds: float = 60.0,
    seed: int = 7,
    interleave: int = 2,
    drop: float = 0.85,
    say: Callable[[str], None] = lambda text: None,
) -> DemoResult:
    """Render `videos` synthetic videos, encode them in three ways, ground every event, search a few.

    Dense, ResidualViT with fixed groups, and ReuseEncoder with an adaptive plan.

    Objects are combinations that the bundled model's training never showed. Writes videos, features and
    report.html below `out`. Raises ValueError for bad arguments.
    """
    folder = Path(out)
    started = time.monotonic()
    worlds = list(
        synthesize(
            folder / "videos",
            videos=videos,
            seconds=seconds,
            seed=seed,
            combinations="unseen",
            workers=cpu.count(),
        )
    )
    if not any(world.events for world in worlds):
        raise ValueError(f"nothing happens in {seconds:g} s of video; use at least 20 seconds")
    say(f"rendered {videos} videos of {seconds:.0f} s in {time.monotonic() - started:.0f} s: {folder / 'videos'}")
    model = load("bundled", device="cpu")
    readers: dict[str, Encoder] = {
        "dense": DenseEncoder(model),
        "ResidualViT": ResidualViT(model, interleave=interleave, drop=drop),
        "reuse": ReuseEncoder(model, drop=drop, plan="adaptive"),
    }
    # A first pass costs extra (allocation, file cache); no encoder should pay for it in the table.
    for reader in readers.values():
        encode_video(folder / "videos" / f"{worlds[0].name}.mp4", reader, end=20.0)
    encoded: dict[str, list[VideoFeatures]] = {}
    took: dict[str, float] = {}
    for name, reader in readers.items():
        started = time.monotonic()
        encoded[name] = _encode_all(worlds, reader, folder, name)
        took[name] = time.monotonic() - started
        frames = sum(feats.num_frames for feats in encoded[name])
        say(f"encoded {frames} frames {name} in {took[name]:.1f} s ({frames / took[name]:.0f} frames/s)")
    queries = _text_features(model, worlds)
    rows = [_row(name, encoded, took, worlds, queries) for name in readers]
    found = _search_lines(encoded["reuse"], worlds, queries)
    for line in found:
        say(line)
    facts = (folder / "videos" / "videos.jsonl").read_text(encoding="utf-8").splitlines()
    shares = [json.loads(line)["moving_share"] for line in facts]
    result = DemoResult(
        rows=rows,
        report=folder / "report.html",
        queries=sum(len(world.events) for world in worlds),
        videos=videos,
        video_seconds=videos * seconds,
        interleave=interleave,
        moving_share=(min(shares), max(shares)),
    )
    result.report.write_text(_page(result, encoded, worlds, queries, found), encoding="utf-8")
    return result


def _encode_all(worlds: list[SyntheticVideo], reader: Encoder, folder: Path, name: str) -> list[VideoFeatures]:
    target = folder / "features" / name.lower()
    target.mkdir(parents=True, exist_ok=True)
    encoded = []
    for world in worlds:
        feats = encode_video(folder / "videos" / f"{world.name}.mp4", reader)
        feats.save(target / f"{world.name}.npz")
        encoded.append(feats)
    return encoded


def _text_features(model: Model, worlds: list[SyntheticVideo]) -> dict[str, np.ndarray]:
    captions = sorted({event.caption for world in worlds for event in world.events})
    return dict(zip(captions, model.encode_text(captions).cpu().numpy(), strict=True))


def _row(
    name: str,
    encoded: dict[str, list[VideoFeatures]],
    took: dict[str, float],
    worlds: list[SyntheticVideo],
    queries: dict[str, np.ndarray],
) -> Row:
    reference, own = encoded["dense"], encoded[name]
    cosines = np.concatenate([fidelity(a.embeddings, b.embeddings) for a, b in zip(own, reference, strict=True)])
    answers = [
        ground(feats, queries[event.caption], top=1)
        for world, feats in zip(worlds, own, strict=True)
        for event in world.events
    ]
    truth = [[(event.start, event.end)] for world in worlds for event in world.events]
    frames = len(cosines)
    return Row(
        encoder=name,
        seconds=took[name],
        times_realtime=sum(world.seconds for world in worlds) / took[name],
        frames_per_second=frames / took[name],
        gflops_per_frame=sum(feats.settings["gflops_per_frame"] * feats.num_frames for feats in own) / frames,
        speed_up=took["dense"] / took[name],
        fidelity_mean=float(cosines.mean()),
        fidelity_p5=float(np.percentile(cosines, 5)),
        recall_50=recall_at(answers, truth, k=1, iou=0.5),
        recall_70=recall_at(answers, truth, k=1, iou=0.7),
    )


def _pick(worlds: list[SyntheticVideo], count: int) -> list[tuple[int, Event]]:
    """A few events spread over the archive, for the report."""
    step = max(len(worlds) // count, 1)
    return [
        (index, worlds[index].events[len(worlds[index].events) // 2])
        for index in range(0, len(worlds), step)
        if worlds[index].events
    ][:count]


def _search_lines(
    encoded: list[VideoFeatures], worlds: list[SyntheticVideo], queries: dict[str, np.ndarray]
) -> list[str]:
    """Search every query in the whole archive: how often the first hit shows it, and a few examples."""
    by_name = {world.name: world for world in worlds}
    right, examples = 0, []
    shown = {event.caption for _, event in _pick(worlds, 4)}
    for query, vector in queries.items():
        hit = search(encoded, vector, top=1)[0]
        world = by_name[Path(hit.video).stem]
        overlapping = [event for event in world.events if event.start < hit.end and hit.start < event.end]
        # A caption may leave attributes out, so an object answers a query that says less or as much of it.
        said = {word for word in query.split() if word not in ("a", "an")}
        found = any(said <= set(vars(event.entity).values()) for event in overlapping)
        right += found
        if query in shown:
            place = f"{Path(hit.video).name} {hit.start:.1f} to {hit.end:.1f} s"
            examples.append(f'search "{query}": {place}, {"which shows it" if found else "which does not show it"}')
    return [f"search: the first of all moments shows what was asked for {right} of {len(queries)} queries", *examples]


def _page(
    result: DemoResult,
    encoded: dict[str, list[VideoFeatures]],
    worlds: list[SyntheticVideo],
    queries: dict[str, np.ndarray],
    found: list[str],
) -> str:
    low, high = result.moving_share
    body = [
        f'<p class="note">{NOTE}</p>',
        html_table(result.HEADER, result.cells()),
        f"<p>{result.queries} queries over {result.video_seconds / 60:.0f} minutes in {result.videos} videos. "
        f"Between two samples, {100 * low:.0f} to {100 * high:.0f} % of a video's patches change. "
        "GFLOPs are multiply-accumulates, those of attention included. Fidelity is the cosine to the dense feature "
        "of the same frame, over all frames.</p><h2>Grounding</h2>",
    ]
    for index, event in _pick(worlds, 4):
        curves, answers = {}, {}
        for name, videos in encoded.items():
            curves[name] = (videos[index], smoothed_similarity(videos[index], queries[event.caption]))
            best = ground(videos[index], queries[event.caption], top=1)
            answers[name] = best[0] if best else None
        # One picture under each sixth of the curve; the one nearest to the event shows the event.
        times = (np.arange(6) + 0.5) / 6 * worlds[index].seconds
        middle = (event.start + event.end) / 2
        times[np.abs(times - middle).argmin()] = middle
        body.append(
            html_timeline(
                event.caption,
                curves,
                truth=(event.start, event.end),
                found=answers,
                thumbnails=[float(t) for t in times],
            )
        )
    body.append("<h2>Search</h2><ul>" + "".join(f"<li>{line}</li>" for line in found) + "</ul>")
    return html_page("everyframe demo", body)
