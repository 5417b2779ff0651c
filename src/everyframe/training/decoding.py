"""Read the few frames of a clip, or a window of consecutive samples, out of a video."""

from __future__ import annotations

import math
from itertools import islice

import numpy as np

from everyframe.video import Sample, SampledVideo, Source, VideoError, VideoInfo, probe, sample_frames
from everyframe.video.images import is_folder

_ROOM = 1e-4  # seconds; the last frame's target stays that far inside, so that rounding cannot lose it


def load_window(
    source: Source,
    *,
    start: float,
    seconds: float,
    fps: float,
    motion: bool,
    image_fps: float | None = None,
) -> tuple[np.ndarray, list[np.ndarray] | None, np.ndarray]:
    """Consecutive samples at `fps` per second from `start` on: (frames, motion maps, times).

    frames: uint8 [T, H, W, 3] RGB, upright. motion maps: T times float32 [ceil(H / 8), ceil(W / 8)], motion since the
    previous sample as in `Sample.motion`, zero for the first; None without `motion`. times: float64 [T], seconds.
    A window that reaches beyond the end of the video is as long as the video allows; damaged parts are left out.
    source: as `sample_frames` takes it, or a `MemberFile` of a tar; a file object is read from its beginning.
    image_fps: images per second of an image folder, `fps` by default; with fewer than `fps` it gives all there are.

    Raises VideoError when the source cannot be read or shows nothing in the window, ValueError for a bad fps.
    """
    image_fps = image_fps or fps
    if is_folder(source):
        fps = min(fps, image_fps)
    with sample_frames(
        _rewound(source), fps, start=start, end=start + seconds, motion=motion, on_damage="skip", image_fps=image_fps
    ) as video:
        samples = list(video)
    still = np.zeros(tuple(-(-side // 8) for side in samples[0].pixels.shape[:2]), np.float32)
    maps = [still, *(still if each.motion is None else each.motion for each in samples[1:])] if motion else None
    return np.stack([each.pixels for each in samples]), maps, np.array([each.time for each in samples], np.float64)


def read_clip(
    source: Source, *, frames: int, rate: float, low: float, high: float, draw: float
) -> tuple[np.ndarray, np.ndarray]:
    """`frames` frames, 1 / rate seconds apart, within [low, high) seconds: (uint8 [F, H, W, 3], times float64 [F]).

    draw in [0, 1) places the first frame between the earliest and the latest second that leave room for the others.
    high: NaN stands for the end of the video. Where there is no room for all frames at `rate`, or the video shows
    fewer than `rate` per second, the step becomes as short, or as long, as fits. The header's length is only believed
    until the video turns out to end earlier.

    Raises VideoError when the source cannot be read or shows fewer than `frames` frames in [low, high).
    """
    length, info = length_of(source, rate)
    # Each attempt knows better where the picture ends: the header may have promised more than comes.
    high = length if math.isnan(high) else min(high, length)
    shown = shown_per_second(info, rate)
    for _ in range(2):
        if high <= low:
            raise VideoError(f"{info.path}: the clip should start at {low:g} s but the video ends at {high:.2f} s")
        step = 1 / min(rate, shown)
        room = high - low
        if room < (frames - 1) * step + 1 / shown:
            step = room / frames
        start = low + draw * max(0.0, room - (frames - 1) * step - _ROOM)
        # Just before a frame: otherwise the first sample, which is not before `start`, would be late by up to a frame.
        start = max(low, (math.floor(start * shown) - 0.125) / shown)
        if step * shown < 1.5:  # nearly every frame is wanted, and two targets may meet in one: count frames instead
            break
        end = min(high, start + (frames - 0.5) * step)
        with _open(source, 1 / step, start, end, rate) as video:
            taken = _take(video, frames)
            finish = video.last_end_seconds
        if len(taken) == frames:
            return _stacked(taken)
        if finish >= end - _ROOM:  # the picture goes on, so its frames come irregularly
            break
        high = finish
    # A step more on either side than needed, for frames that come irregularly.
    begin, end = max(low, min(start, high - frames * step)), min(high, start + frames * step)
    taken, number = _spread(source, frames, rate, begin, end, draw)
    if len(taken) < frames:
        begin, end = max(low, begin - frames * step), min(high, end + frames * step)
        taken, number = _spread(source, frames, rate, begin, end, draw)
    if len(taken) < frames:
        raise VideoError(f"{info.path}: from {begin:.2f} to {end:.2f} s it " + _too_few(number, frames))
    return _stacked(taken)


def length_of(source: Source, rate: float, *, frames: int = 1) -> tuple[float, VideoInfo]:
    """Seconds of picture, from the header where it can be believed, else from all packets; and what is known.

    An image folder has `rate` images per second. Raises VideoError for a video that cannot be opened, has no length,
    or has fewer than `frames` frames.
    """
    info = probe(_rewound(source))
    if info.codec == "images":
        count = info.num_frames_from_content or 0
        seconds: float | None = count / rate
    else:
        seconds = info.duration_seconds
        count = info.num_frames_from_header or round((seconds or 0) * (info.average_fps or 0))
        # "container" is the length of all streams, and the sound may go on for long without a picture.
        if not seconds or count < frames or (frames > 1 and info.duration_from == "container" and info.has_audio):
            info = probe(_rewound(source), scan=True)
            count = info.num_frames_from_content or 0
            # A raw stream has no times at all; FFmpeg then shows it at the rate it names.
            seconds = info.duration_seconds or (count / info.average_fps if info.average_fps else None)
    if count < frames:
        raise VideoError(f"{info.path}: " + _too_few(count, frames))
    if not seconds:
        raise VideoError(f"{info.path}: does not say how long it is, not even in its packets; convert it to mp4")
    return seconds, info


def shown_per_second(info: VideoInfo, rate: float) -> float:
    """Frames per second of the video, as far as known; `rate` for images and where nothing says it."""
    return info.average_fps_from_content or info.average_fps or rate


def _too_few(number: int, frames: int) -> str:
    return (
        f"has {number} {'frame' if number == 1 else 'frames'} and a clip needs {frames}; "
        "leave it out or ask for fewer frames per clip"
    )


def _open(source: Source, fps: float | None, start: float, end: float, rate: float) -> SampledVideo:
    # Clips are decoded side by side, so that more threads for each would only get in each other's way.
    return sample_frames(_rewound(source), fps, start=start, end=end, on_damage="skip", threads=1, image_fps=rate)


def _take(video: SampledVideo, frames: int) -> list[Sample]:
    """Up to `frames` samples; none where the range shows nothing."""
    try:
        return list(islice(video, frames))
    except VideoError:
        return []


def _spread(
    source: Source, frames: int, rate: float, begin: float, end: float, draw: float
) -> tuple[list[Sample], int]:
    """`frames` of all frames in [begin, end), evenly by number, or what there is; and how many there are."""
    kept: list[Sample] = []
    stride, number = 1, 0
    with _open(source, None, begin, end, rate) as video:
        try:
            for sample in video:
                if number % stride == 0:
                    kept.append(sample)
                number += 1
                if len(kept) == 16 * frames:  # every second one is enough: memory stays bounded
                    kept, stride = kept[::2], 2 * stride
        except VideoError:  # nothing is shown there
            pass
    if len(kept) <= frames:
        return kept, number
    return [kept[int((place + draw) * len(kept) / frames)] for place in range(frames)], number


def _stacked(samples: list[Sample]) -> tuple[np.ndarray, np.ndarray]:
    return np.stack([each.pixels for each in samples]), np.array([each.time for each in samples], np.float64)


def _rewound(source: Source) -> Source:
    if hasattr(source, "seek"):
        source.seek(0)
    return source
