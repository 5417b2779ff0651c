"""Which frames of a video are wanted: so many per second, or so many of every clip."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from everyframe.video import SampledVideo, Source, TargetRange, sample_frames


@dataclass(frozen=True, kw_only=True)
class _Range:
    """[start, end) seconds of a video; None means no limit."""

    start: float | None = None
    end: float | None = None
    keep_partial: bool = False

    def __post_init__(self) -> None:
        self._check_numbers("start", "end")
        if self.start is not None and not (math.isfinite(self.start) and self.start >= 0):
            raise ValueError(f"start must be a number of seconds >= 0, got {self.start}")
        if self.end is not None and not self.end > (self.start or 0.0):
            raise ValueError(f"end must lie after the start ({self.start or 0.0} s), got {self.end}")

    @property
    def _on_damage(self) -> Literal["skip", "raise"]:
        return "skip" if self.keep_partial else "raise"

    def _check_numbers(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
                raise TypeError(f"{name} must be a number, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class Sampling(_Range):
    """Which frames to encode: `fps` frames per second of [start, end) seconds; None means no limit.

    keep_partial: keep what a damaged file still gives instead of refusing it.
    """

    fps: float = 3.0

    def __post_init__(self) -> None:
        self._check_numbers("fps")
        super().__post_init__()
        if not (math.isfinite(self.fps) and self.fps > 0):
            raise ValueError(f"fps must be > 0, got {self.fps}")

    @property
    def settings(self) -> dict[str, Any]:
        return {"fps": self.fps, "start": self.start, "end": self.end}

    def open(self, source: Source, *, motion: bool, targets: TargetRange | None = None) -> SampledVideo:
        """The frames of a video, or those of some of its targets. Raises VideoError."""
        return sample_frames(
            source,
            self.fps,
            start=self.start,
            end=self.end,
            motion=motion,
            on_damage=self._on_damage,
            targets=targets,
        )

    def num_rows(self, seconds: float, video_fps: float | None) -> float:
        """Features of that much video; never more than it has frames."""
        return seconds * min(self.fps, video_fps or self.fps)


@dataclass(frozen=True, kw_only=True)
class ClipSampling(_Range):
    """Which clips to encode: `clip_seconds` after `clip_seconds` of [start, end), `frames` frames of each.

    The first clip begins at `start` (or 0), and there are as many as the seconds divided by `clip_seconds`, rounded,
    but at least one: all but the last have `clip_seconds`, the last has what is left, 0.5 to 1.5 times as much (a
    shorter video is one clip). Frame j of F is the one nearest to j / F of the clip, as in `sample_frames`; of a last
    clip of another length the nearest of twice as many as a full clip has.

    keep_partial: as in `Sampling`.
    """

    clip_seconds: float = 10.0
    frames: int = 12

    def __post_init__(self) -> None:
        self._check_numbers("clip_seconds")
        super().__post_init__()
        if not (math.isfinite(self.clip_seconds) and self.clip_seconds > 0):
            raise ValueError(f"clip_seconds must be a number of seconds > 0, got {self.clip_seconds}")
        if isinstance(self.frames, bool) or not isinstance(self.frames, int):
            raise TypeError(f"frames must be a whole number, got {self.frames!r}")
        if self.frames < 1:
            raise ValueError(f"frames must be at least 1, got {self.frames}")

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "clip_seconds": float(self.clip_seconds),
            "frames": self.frames,
            "start": self.start,
            "end": self.end,
        }

    def num_rows(self, seconds: float, video_fps: float | None) -> float:
        """Clips of that much video."""
        return max(1, math.floor(seconds / self.clip_seconds + 0.5)) if seconds > 0 else 0

    def open(self, source: Source, *, motion: bool) -> SampledVideo:
        """The frames that those of the clips are chosen from: twice as many as a full clip needs.

        Then the shortest last clip has enough of them, too. A folder of images has as many per second as are read of a
        clip. Raises VideoError.
        """
        sampled = self._open(source, motion, self.clip_seconds)
        duration = sampled.info.duration_seconds
        if duration is None or not isinstance(source, (str, os.PathLike, bytes)):  # a stream cannot be opened twice
            return sampled
        end = duration if self.end is None else min(self.end, duration)
        seconds = end - (self.start or 0.0)
        if not 0 < seconds < self.clip_seconds:
            return sampled
        sampled.close()
        return self._open(source, motion, seconds)

    def _open(self, source: Source, motion: bool, seconds: float) -> SampledVideo:
        return sample_frames(
            source,
            2 * self.frames / Fraction(seconds),
            start=self.start,
            end=self.end,
            motion=motion,
            on_damage=self._on_damage,
            on_fewer="accept",
            image_fps=self.frames / self.clip_seconds,
        )
