"""What there is to do: which videos of a listing, in which segments, how often each was tried."""

from __future__ import annotations

import itertools
import sys
from collections import Counter, deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from everyframe.pipeline.segments import WHOLE, Segment
from everyframe.scale.work import PERMANENT, FailureKind, Task

if TYPE_CHECKING:
    from everyframe.scale.listing import Listed

_MOST_GROUPS = 8192  # in one pass
_MOST_TASKS = 32  # in one group
_GROUP_CALLS = 4.0  # encode calls' worth of frames in a group, if its videos are short
_MORE_FOR_THE_LOST = 3
_END = sys.maxsize


def limit(kind: FailureKind, attempts: int) -> int:
    """How often a segment may fail in this way before its video is given up.

    What is wrong with the video itself does not change. A worker or a node that dies takes segments with it that are
    not to blame, so those have more tries; but not any number, since one of them may be the cause.
    """
    if kind in PERMANENT:
        return 1
    return attempts + _MORE_FOR_THE_LOST if kind == "lost" else attempts


def resumed(segments: Collection[Segment], have: Collection[Segment]) -> list[Segment]:
    """The split to go on with where parts of another one are there, as of another length: these, and what they leave.

    segments: as a new split has them; between the parts they begin and end where they do there, but none is much
    shorter. have: may overlap; then some are left out.
    """
    kept: list[Segment] = []
    for part in sorted(have):
        if not kept or (kept[-1].stop is not None and part.first >= kept[-1].stop):
            kept.append(part)
    seams = sorted(segment.first for segment in segments)
    least = min((after - before for before, after in itertools.pairwise(seams)), default=0) / 2
    found: list[Segment] = []
    for part in (*kept, Segment(_END, None)):
        at = found[-1].stop if found else 0
        if at is not None and at < part.first:
            end = None if part.first == _END else part.first
            begins = [at, *(seam for seam in seams if at < seam and at + least <= seam <= part.first - least)]
            found += [Segment(*each) for each in zip(begins, [*begins[1:], end], strict=True)]
        if part.first != _END:
            found.append(part)
    return found


@dataclass
class Video:
    """A video to be encoded. seconds: of it, as far as known; left: its segments that are not there yet.

    twins: sources with the same content, which get no features of their own.
    """

    key: str
    listed: Listed
    seconds: float = 0.0
    rate: float = 1.0
    segments: set[Segment] = field(default_factory=set)
    left: set[Segment] = field(default_factory=set)
    twins: list[Listed] = field(default_factory=list)
    tries: dict[Segment, Counter[str]] = field(default_factory=dict)

    @property
    def attempts(self) -> int:
        """Of the segment that took most."""
        return 1 + max((sum(count.values()) for count in self.tries.values()), default=0)

    def failed(self, segment: Segment, kind: FailureKind) -> int:
        """Count one more; how often the segment has failed in this way."""
        count = self.tries.setdefault(segment, Counter())
        count[kind] += 1
        return count[kind]

    def seconds_of(self, segment: Segment, fps: float) -> float:
        """Of video in a segment, as far as known."""
        if segment == WHOLE:
            return self.seconds
        begin = segment.first / fps
        return max((self.seconds if segment.stop is None else segment.stop / fps) - begin, 0.0)


class WorkList:
    """Videos by key, and the tasks that wait, in order. calls: how many encode calls a segment's seconds take."""

    def __init__(self, calls_per_second: float, fps: float) -> None:
        self._calls, self._fps = calls_per_second, fps
        self._videos: dict[str, Video] = {}
        self._waiting: deque[Task] = deque()

    def __bool__(self) -> bool:
        while self._waiting and not self._is_wanted(self._waiting[0]):
            self._waiting.popleft()
        return bool(self._waiting)

    def __len__(self) -> int:
        return sum(map(self._is_wanted, self._waiting))

    def __getitem__(self, key: str) -> Video:
        return self._videos[key]

    def get(self, key: str) -> Video | None:
        """None once nothing more is to be done for it."""
        return self._videos.get(key)

    def videos(self) -> Iterable[Video]:
        return self._videos.values()

    def add(self, video: Video) -> None:
        """Its segments wait from now on, in order, next to each other: so few videos are open at a time."""
        self._videos[video.key] = video
        for segment in sorted(video.left, key=lambda each: each.first):
            self._waiting.append(self._task(video, segment))

    def again(self, video: Video, segment: Segment) -> None:
        """Behind all others: what is poison should hold up nothing, and what was out of reach gets time."""
        self._waiting.append(self._task(video, segment))

    def whole(self, video: Video) -> None:
        """Its segments do not fit together: it is read in one piece."""
        video.segments, video.left = {WHOLE}, {WHOLE}
        video.tries.pop(WHOLE, None)
        self._waiting.append(self._task(video, WHOLE))

    def drop(self, key: str) -> Video | None:
        """Nothing more is to be done for this video."""
        return self._videos.pop(key, None)

    def groups(self, workers: int) -> list[list[Task]]:
        """The next tasks, as one worker each is to read them; they wait no longer.

        Short videos share a group, as long as there are enough groups for all workers. What failed before is alone, so
        that what takes its worker down takes nothing else with it.
        """
        most = max(1, min(_MOST_TASKS, len(self._waiting) // max(4 * workers, 1)))
        found: list[list[Task]] = []
        room = 0.0
        while self._waiting and len(found) < _MOST_GROUPS:
            task = self._waiting.popleft()
            if not self._is_wanted(task):
                continue
            video = self._videos[task.key]
            calls = video.seconds_of(task.segment, self._fps) * self._calls
            if task.attempt > 1 or not found or len(found[-1]) >= most or calls > room:
                found.append([task])
                room = _GROUP_CALLS - calls if task.attempt == 1 else 0.0
            else:
                found[-1].append(task)
                room -= calls
        return found

    def put_back(self, tasks: Iterable[Task]) -> None:
        """They were not begun; they wait again, before all others."""
        self._waiting.extendleft(reversed(list(tasks)))

    def _is_wanted(self, task: Task) -> bool:
        video = self._videos.get(task.key)
        return video is not None and task.segment in video.left

    def _task(self, video: Video, segment: Segment) -> Task:
        tried = sum(video.tries.get(segment, Counter()).values())
        return Task(key=video.key, source=video.listed.source, segment=segment, attempt=tried + 1)
