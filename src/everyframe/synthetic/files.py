"""Write synthetic videos with their annotations."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from everyframe.synthetic.scene import STYLES, Combinations, Style
from everyframe.synthetic.video import SyntheticVideo


def synthesize(
    out: str | Path,
    *,
    videos: int = 8,
    seconds: float = 60.0,
    seed: int = 1,
    fps: float = 12.0,
    size: tuple[int, int] = (256, 192),
    codec: str = "libx264",
    combinations: Combinations = "any",
    style: Style | None = None,
    workers: int = 1,
) -> Iterator[SyntheticVideo]:
    """Write `videos` mp4 files, `annotations.jsonl` and `videos.jsonl` under `out`; iterate to have it done.

    Yields each video once its file and its lines are written. annotations.jsonl has one line per event with
    the keys of Lighthouse's Charades file (qid, query, duration, vid, relevant_windows); videos.jsonl one line
    per video with its style, its share of moving patches and its cuts in seconds. style: that of every video,
    a key of SPLITS; by default the four STYLES go round, so that any four videos span still to fast. workers:
    processes that render; with more than one, a script that calls this needs the usual
    `if __name__ == "__main__"` guard.
    """
    for name, value in (("videos", videos), ("workers", workers)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    options: list[dict[str, Any]] = [
        {
            "seed": seed * 1000 + index,
            "seconds": seconds,
            "fps": fps,
            "size": size,
            "style": list(STYLES)[index % len(STYLES)] if style is None else style,
            "combinations": combinations,
        }
        for index in range(videos)
    ]
    SyntheticVideo(**options[0])  # bad arguments are an error now, not when the first video is asked for
    return _write_all(folder, options, codec, min(workers, videos))


def _write_all(folder: Path, options: list[dict[str, Any]], codec: str, workers: int) -> Iterator[SyntheticVideo]:
    with (folder / "annotations.jsonl").open("w") as annotations, (folder / "videos.jsonl").open("w") as facts:
        queries = 0
        for each, share in zip(options, _render(folder, options, codec, workers), strict=True):
            world = SyntheticVideo(**each)
            for event in world.events:
                line: dict[str, Any] = {
                    "qid": queries,
                    "query": event.caption,
                    "duration": world.seconds,
                    "vid": world.name,
                    "relevant_windows": [[round(event.start, 3), round(event.end, 3)]],
                }
                annotations.write(json.dumps(line) + "\n")
                queries += 1
            line = {
                "vid": world.name,
                "duration": world.seconds,
                "style": world.style,
                "moving_share": round(share, 4),
                "cuts": [round(cut, 3) for cut in world.cuts],
            }
            facts.write(json.dumps(line) + "\n")
            annotations.flush()
            facts.flush()
            yield world


def _render(folder: Path, options: list[dict[str, Any]], codec: str, workers: int) -> Iterator[float]:
    """Write every video's file; yields their shares of moving patches."""
    jobs = [(each, folder, codec) for each in options]  # not the videos: each holds megabytes of texture
    if workers == 1:
        yield from map(_render_one, jobs)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    # Forking a process that already runs torch's threads can lock up; a spawned one starts clean.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_render_one, jobs)


def _render_one(job: tuple[dict[str, Any], Path, str]) -> float:
    options, folder, codec = job
    world = SyntheticVideo(**options)
    world.write(folder / f"{world.name}.mp4", codec=codec)
    return world.moving_share()
