"""The target times of a sampling, and the frame nearest to each, in exact arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from everyframe.video.shown import Picture


@dataclass(frozen=True)
class Timing:
    """Which times of a video are asked for, in seconds: at a rate (None: every frame), within [start, end)."""

    fps: Fraction | None
    start: Fraction
    end: Fraction | None

    def holds(self, time: Fraction) -> bool:
        """Is this time, in seconds, within [start, end)?"""
        return time >= self.start and (self.end is None or time < self.end)


@dataclass(frozen=True, kw_only=True)
class TargetRange:
    """Of the targets of a sampling only first <= k < stop; stop None: all the rest.

    beyond: so many frames after those are read too.
    """

    first: int = 0
    stop: int | None = None
    beyond: int = 0

    def __post_init__(self) -> None:
        if self.first < 0 or self.beyond < 0 or (self.stop is not None and self.stop <= self.first):
            raise ValueError(f"targets must be 0 <= first < stop, got {self.first} to {self.stop} (+{self.beyond})")


class Targets:
    """Walks the target times start + k / fps, in exact arithmetic, as the frames go by."""

    def __init__(self, plan: Timing, unit: Fraction, range: TargetRange):
        self._plan = plan
        self._unit = unit
        self._range = range
        self._next = 0
        self._before = 0  # the targets settled before the last frame
        self._beyond = range.beyond  # frames that are still to come after the range
        # Targets at or after `end` are not wanted: k < (end - start) * fps.
        self._limit: int | None = None
        if plan.end is not None and plan.fps is not None:
            self._limit = math.ceil((plan.end - plan.start) * plan.fps)

    @property
    def count(self) -> int:
        """Targets that have found their frame."""
        return self._next

    @property
    def done(self) -> bool:
        if self._limit is not None and self._next >= self._limit:
            return True
        return self._range.stop is not None and self._next >= self._range.stop and not self._beyond

    @property
    def given(self) -> int | None:
        """The first target of the last frame that had one."""
        return None if self._plan.fps is None else self._before

    def settled(self, target: int) -> bool:
        """Is the last frame the one that serves the target before this one, and is this one settled with it or next?"""
        return self._before < target <= self._next

    def nearest(self, held: Picture, after: Picture) -> bool:
        """Whether `held` is the frame nearest to a target; a target halfway between two takes the earlier."""
        if self._plan.fps is None:
            return self._every(held, after)
        if not self._plan.holds(held.time * self._unit):
            return False
        if not self._plan.holds(after.time * self._unit):  # the last frame of the range serves what is left
            return self._settle(self._limit or 0)
        middle = Fraction(held.time + after.time, 2) * self._unit
        return self._settle(math.floor((middle - self._plan.start) * self._plan.fps) + 1)

    def last(self, held: Picture) -> bool:
        """The same for the last frame, which serves the targets before its own end."""
        if self._plan.fps is None:
            return self._every(held, None)
        if not self._plan.holds(held.time * self._unit):
            return False
        finish = (held.time + held.duration) * self._unit
        return self._settle(math.ceil((finish - self._plan.start) * self._plan.fps))

    def _settle(self, upto: int) -> bool:
        if self._limit is not None:
            upto = min(upto, self._limit)
        self._before, self._next = self._next, max(self._next, upto)
        return self._before < self._next and self._is_wanted(self._before)

    def _is_wanted(self, target: int) -> bool:
        if self._range.stop is None or target < self._range.stop:
            return target >= self._range.first
        self._beyond -= 1
        return self._beyond >= 0

    def _every(self, held: Picture, after: Picture | None) -> bool:
        end = self._plan.end
        if after is not None and end is not None and after.time * self._unit >= end:
            self._limit = 0
        return self._plan.holds(held.time * self._unit)


class Scout:
    """Walks the same targets ahead of the decoder: which pictures will be looked at, told from their times alone."""

    def __init__(self, plan: Timing, unit: Fraction, range: TargetRange):
        self._targets = Targets(plan, unit, range)
        self._edges = [edge for edge in (range.first, range.stop) if edge]
        self._held: Picture | None = None
        self._is_seam = False  # what is shown first after the edge of a range is compared with its neighbour's

    @property
    def done(self) -> bool:
        return self._targets.done and not self._is_seam

    def see(self, picture: Picture) -> bool:
        """Take the next picture; is the one before it needed?"""
        held, self._held = self._held, picture
        needed, self._is_seam = self._is_seam, False
        if held is not None and not self._targets.done:
            needed = self._targets.nearest(held, picture) or needed
            self._is_seam = any(self._targets.settled(edge) for edge in self._edges)
        return needed

    def last(self) -> bool:
        """After the last picture: is it needed?"""
        if self._held is None or self._targets.done:
            return self._is_seam
        # Its seam is looked at too: where the video ends counts as what comes after.
        needed = self._targets.last(self._held) or self._is_seam
        return needed or any(self._targets.settled(edge) for edge in self._edges)
