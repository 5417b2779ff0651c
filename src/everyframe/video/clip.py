"""Some frames of a whole video, chosen by their numbers: how clips are cut for models that see a video at once.

Frames are numbered 0, 1, ... in the order they are shown, within [start, end). `choose` functions say which are
wanted when there are `num_frames` of them; those here follow the test-time sampling of published models:

    middle_frames     UMT: the middle frame of `count` equal parts
    spread_frames     ViFi-CLIP (and TSN): frame int((k + 0.5) * num_frames / count)
    strided_views     VideoMAE on UCF101 and Kinetics: `views` clips of every `stride`-th frame
    alternate_views   VideoMAE on SSv2: 2 clips that take turns in one uniform grid
    second_frames     TempMe: `count` of the frames that lie a second apart, evenly

    n frames asked for, H, W pixels
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, pairwise
from typing import Any

import av
import numpy as np

from everyframe.video.decode import Decoder, OnDamage
from everyframe.video.errors import VideoError
from everyframe.video.images import ImageFolder, is_folder
from everyframe.video.opening import Input, Source, packets_of, source_name
from everyframe.video.picture import Converter
from everyframe.video.sample import exact_rate, time_range
from everyframe.video.shown import Picture
from everyframe.video.targets import Timing

Choose = Callable[[int, int], Sequence[int]]
"""(num_frames, count) -> frame numbers, each in 0..num_frames-1, in any order, repeats allowed."""


@dataclass(frozen=True)
class Clip:
    """Chosen frames of one video."""

    frames: np.ndarray
    """uint8 [n, H, W, 3] RGB, upright, with square pixels; in the order `choose` gave their numbers."""
    times: np.ndarray
    """float64 [n] seconds: when each is really shown."""
    num_frames: int
    """How many frames there were to choose from."""
    damage: tuple[str, ...] = ()
    """What could not be read; empty for a sound file."""


def middle_frames(num_frames: int, count: int) -> list[int]:
    """UMT's test sampling: the middle frame of each of `count` parts; the last one again where there are fewer.

    The parts end at int(k * num_frames / count); of an even number of frames the earlier middle one is taken.
    """
    _check_counts(num_frames, count)
    parts = min(count, num_frames)
    # As published: float64 steps cut to integers. Integer division differs where a step falls just below one.
    edges = np.linspace(0, num_frames, parts + 1).astype(int).tolist()
    numbers = [(first + past - 1) // 2 for first, past in pairwise(edges)]
    return numbers + numbers[-1:] * (count - parts)


def spread_frames(num_frames: int, count: int) -> list[int]:
    """Frame int((k + 0.5) * num_frames / count) for k = 0 .. count - 1: frames repeat in a short video."""
    _check_counts(num_frames, count)
    return [(2 * k + 1) * num_frames // (2 * count) for k in range(count)]


def strided_views(num_frames: int, count: int, *, stride: int = 4, views: int = 5) -> list[list[int]]:
    """`views` clips of `count` frames, `stride` apart, with their starts spread over the video.

    A video too short for one clip repeats the last frame of its grid at the end.
    """
    _check_counts(num_frames, count)
    if stride < 1 or views < 1:
        raise ValueError(f"stride and views must be at least 1, got {stride} and {views}")
    grid = list(range(0, num_frames, stride))
    grid += grid[-1:] * (count - len(grid))
    # One view is cut from the middle: VideoMAE's own rule needs at least two.
    slack = len(grid) - count
    starts = [int(view * (slack / (views - 1))) for view in range(views)] if views > 1 else [slack // 2]
    return [grid[start : start + count] for start in starts]


def alternate_views(num_frames: int, count: int, *, views: int = 2) -> list[list[int]]:
    """Two clips of `count` frames: the starts and the middles of `count` equal parts, sorted and dealt in turn.

    views=1 gives the middles alone.
    """
    _check_counts(num_frames, count)
    if views not in (1, 2):
        raise ValueError(f"views must be 1 or 2, got {views}: there is one clip of starts and one of middles")
    part = num_frames / count
    middles = [int(part / 2 + part * k) for k in range(count)]
    if views == 1:
        return [middles]
    both = sorted(middles + [int(part * k) for k in range(count)])
    return [both[0::2], both[1::2]]


def second_frames(num_frames: int, count: int, *, fps: float | None) -> list[int]:
    """TempMe's sampling: one frame a second (every round(fps)-th), and `count` of those, evenly from first to last.

    A video with fewer than `count` such frames gives `count` of all its frames instead, evenly; some repeat where there
    are not enough. fps: None, where it is not known, takes every frame for one of a second. All numbers are cut to
    integers, as published.
    """
    _check_counts(num_frames, count)
    if fps is not None and not 0 < fps < float("inf"):
        raise ValueError(f"fps must be finite and > 0, or None where it is not known, got {fps}")
    seconds = np.arange(0, num_frames, 1 if fps is None else max(1, round(fps)))
    if len(seconds) < count:
        return np.linspace(0, num_frames - 1, count).astype(int).tolist()
    chosen: list[int] = seconds[np.linspace(0, len(seconds) - 1, count).astype(int)].tolist()
    return chosen


def sample_clip(
    source: Source,
    count: int,
    *,
    start: float | None = None,
    end: float | None = None,
    choose: Choose = middle_frames,
    on_damage: OnDamage = "raise",
    threads: int | None = None,
    image_fps: float | None = None,
) -> Clip:
    """The frames of a video that `choose` takes when it knows how many there are.

    Frames are counted as they are shown, as `sample_frames(source, None)` gives them: pictures hidden by an edit
    list do not count, variable rates and lying headers do no harm. The count comes from the packets, which is
    cheap, and is checked while decoding; where the two differ the video is decoded once more. Only the chosen
    frames are kept, so memory does not grow with the length.

    start, end: seconds; only frames whose time lies in [start, end) count. on_damage: as in `sample_frames`;
    "skip" chooses among what can be read. image_fps: images per second where the source is a folder (default 1).

    Raises VideoError as `sample_frames` does, and for a file object that cannot be read twice; ValueError for a
    count below 1 and for numbers out of range from `choose`.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    if on_damage not in ("raise", "skip"):
        raise ValueError(f'on_damage must be "raise" or "skip", got {on_damage!r}')
    plan = Timing(None, *time_range(source, start, end))
    if is_folder(source):
        rate = exact_rate("image_fps", image_fps) or Fraction(1)
        folder = ImageFolder(os.fspath(source), rate=rate, on_damage=on_damage)  # type: ignore[arg-type]
        shown = sum(plan.holds(number * folder.unit) for number in range(folder.info.num_frames_from_content or 0))
        clip = _pick(folder, plan, choose, count, shown)
        return clip if isinstance(clip, Clip) else _settled(_pick(folder, plan, choose, count, clip), folder.info.path)
    if not getattr(source, "seekable", lambda: True)():
        raise VideoError(f"{source_name(source)}: a clip needs two passes and this file cannot be rewound; save it")
    opened = Input(source, threads=threads)
    try:
        shown = _count_packets(opened, plan)
        for _ in range(2):
            opened.reopen()
            frames = Decoder(opened, on_damage=on_damage)
            if plan.start > 0:
                frames.seek(plan.start)
            clip = _pick(frames, plan, choose, count, shown)
            if isinstance(clip, Clip):
                return clip
            shown = clip
            frames.close()
        return _settled(clip, opened.name)
    finally:
        opened.close()


def _settled(clip: Clip | int, name: str) -> Clip:
    if isinstance(clip, Clip):
        return clip
    raise VideoError(f"{name}: gives another number of frames each time it is read; copy or convert it first")


def _pick(frames: Decoder | ImageFolder, plan: Timing, choose: Choose, count: int, shown: int) -> Clip | int:
    """The clip if there are `shown` frames, else how many there are."""
    numbers = _chosen(choose, shown, count)
    wanted = set(numbers)
    convert = Converter(frames.geometry)
    kept: dict[int, tuple[float, np.ndarray]] = {}
    seen = 0
    ends = 0.0
    for before, held, after in _neighbours(frames):
        ends = float((held.time + held.duration) * frames.unit)
        if plan.holds(held.time * frames.unit):
            if seen in wanted:
                kept[seen] = (float(held.time * frames.unit), convert(held, before, after))
            seen += 1
        if plan.end is not None and held.time * frames.unit >= plan.end:
            break
    if seen == 0:
        upto = "on" if plan.end is None else f"to {float(plan.end):g} s"
        raise VideoError(
            f"{frames.info.path}: no frame from {float(plan.start):g} s {upto}; the video ends at {ends:.2f} s"
        )
    if seen != shown:
        return seen
    return Clip(
        frames=np.stack([kept[number][1] for number in numbers]),
        times=np.array([kept[number][0] for number in numbers], dtype=np.float64),
        num_frames=seen,
        damage=tuple(frames.damage),
    )


def _neighbours(frames: Decoder | ImageFolder) -> Iterator[tuple[Picture | None, Picture, Picture | None]]:
    """Every picture with the one before and the one after it, which deinterlacing looks at."""
    before: Picture | None = None
    held: Picture | None = None
    for after in chain(frames, [None]):
        if held is not None:
            yield before, held, after
        before, held = held, after


def _chosen(choose: Choose, shown: int, count: int) -> list[int]:
    if shown == 0:
        return []
    numbers = [int(number) for number in choose(shown, count)]
    wrong = [number for number in numbers if not 0 <= number < shown]
    if wrong or not numbers:
        what = f"frame {wrong[0]}" if wrong else "no frame"
        raise ValueError(f"choose must give numbers of {shown} frames, 0 to {shown - 1}, got {what}")
    return numbers


def _count_packets(opened: Input, plan: Timing) -> int:
    """How many frames the packets promise; a wrong answer costs a second pass, nothing else."""
    zero, base = opened.zero(), opened.time_base
    shown = 0
    try:
        for packet in packets_of(opened.container, opened.stream):
            stamp: Any = packet.pts if packet.pts is not None else packet.dts
            if not packet.is_discard and (stamp is None or plan.holds(stamp * base - zero)):
                shown += 1
    except av.error.FFmpegError as error:
        opened.check_reachable(error)
        # Decoding meets it again and reports it.
    return shown


def _check_counts(num_frames: int, count: int) -> None:
    if num_frames < 1 or count < 1:
        raise ValueError(f"num_frames and count must be at least 1, got {num_frames} and {count}")
