"""Cores that this process may use, and what other processes use of them.

Standard library alone; torch is imported by `use_threads` and nothing else.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

_SELF = Path("/proc/self")
_STAT = Path("/proc/stat")
# Columns of /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal; what guests use is within user.
_BUSY, _NICED = (0, 2, 5, 6, 7), 1


def count() -> int:
    """Cores that this process may keep busy, at least 1: those of its affinity, or as many whole ones as its quota."""
    limit = quota()
    return max(1, affinity() if limit is None else min(affinity(), int(limit)))


def affinity() -> int:
    """Cores that this process may run on; all of the machine's where the system does not say."""
    return len(_allowed() or ()) or os.cpu_count() or 1


def quota(process: Path = _SELF) -> float | None:
    """Cores that cgroups allow this process to keep busy on average, such as 1.5; None where there is no limit.

    The smallest limit counts, of version 2 (cpu.max) or 1 (cpu.cfs_quota_us), of the process's group and of those
    above it as far as they can be seen.
    process: its folder in /proc. What cannot be read or understood there is no limit.
    """
    limits = [limit for group in _groups(process) if (limit := _limit(group)) is not None]
    return min(limits, default=None)


def use_threads(threads: int | None = None) -> int:
    """Let torch compute with that many threads in this process, and say how many they are.

    threads: None keeps torch's own choice, which knows affinity and OMP_NUM_THREADS, but takes it down to `count()`,
    since torch does not know quotas: threads beyond one wait for each other, and all together are slower than fewer.
    Nothing else in everyframe's library changes torch's threads; the command line calls this.
    Raises ValueError for threads below 1.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    import torch

    chosen = min(torch.get_num_threads(), count()) if threads is None else threads
    if chosen != torch.get_num_threads():
        torch.set_num_threads(chosen)
    return chosen


class OtherLoad:
    """What other processes use of the cores that this one may use, from now on.

    `read()` may be asked any number of times. This process's own work does not count, nor that of children that it has
    waited for.
    niced: count processes of lower priority (nice above 0) too. They hardly take anything from one of ordinary
    priority; from a process that is nice itself they do, and are always counted.
    """

    def __init__(self, *, niced: bool = True, stat: Path = _STAT) -> None:
        self._stat, self._niced = stat, niced or _is_nice()
        self._start = self._now()

    def read(self) -> float | None:
        """Cores in use by others, on average since this object was made; None where the system does not say.

        The system counts in hundredths of a second: less than a few tenths of one give no good answer.
        """
        now = self._now()
        if self._start is None or now is None or now[0] <= self._start[0]:
            return None
        seconds, busy, own = (end - begin for begin, end in zip(self._start, now, strict=True))
        return min(max((busy - own) / seconds, 0.0), float(affinity()))

    def _now(self) -> tuple[float, float, float] | None:
        """Seconds: of the clock, that our cores were busy, and that we were."""
        busy = _busy_seconds(self._stat, niced=self._niced)
        times = os.times()
        own = times.user + times.system + times.children_user + times.children_system
        return None if busy is None else (time.monotonic(), busy, own)


def facts(load: OtherLoad | None = None) -> dict[str, Any]:
    """For the record of a benchmark: "cores" (by affinity), "quota" (None without one), and with a load "other_load".

    other_load: cores that others used since `load` was made, None where unknown.
    """
    known: dict[str, Any] = {"cores": affinity(), "quota": quota()}
    return known if load is None else {**known, "other_load": load.read()}


# --- affinity and /proc/stat -----------------------------------------------------------------------------


def _allowed() -> set[int] | None:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None


def _is_nice() -> bool:
    return hasattr(os, "getpriority") and os.getpriority(os.PRIO_PROCESS, 0) > 0


def _busy_seconds(stat: Path, *, niced: bool) -> float | None:
    """Seconds since the machine's start that the cores of our affinity were busy, all together."""
    allowed = _allowed()
    try:
        lines = stat.read_text(encoding="ascii").splitlines()
        ticks = 0
        for line in lines if allowed is not None else ():
            name, *numbers = line.split()
            if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in allowed:  # type: ignore[operator]
                ticks += sum(int(numbers[column]) for column in ((*_BUSY, _NICED) if niced else _BUSY))
    except (OSError, ValueError, IndexError):
        return None
    return ticks / os.sysconf("SC_CLK_TCK") if allowed is not None else None


# --- cgroups ---------------------------------------------------------------------------------------------


def _groups(process: Path) -> Iterator[Path]:
    """Folders of the cgroups that a process is in, in every hierarchy that can limit it, up to where it is mounted."""
    try:
        member = [line.split(":", 2) for line in (process / "cgroup").read_text(encoding="utf-8").splitlines()]
        mounts = (process / "mountinfo").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return
    paths = {parts[1]: parts[2] for parts in member if len(parts) == 3}
    for line in mounts:
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if len(fields) < 5 or len(kind) < 3:
            continue
        if kind[0] == "cgroup2":
            path = paths.get("")
        elif kind[0] == "cgroup" and "cpu" in kind[2].split(","):
            path = next((path for names, path in paths.items() if "cpu" in names.split(",")), None)
        else:
            continue
        if path is not None:
            yield from _upwards(Path(_unescaped(fields[4])), _unescaped(fields[3]), path)


def _upwards(mount: Path, root: str, path: str) -> Iterator[Path]:
    """The group's folder and those above it. root: the group that is seen at the mount, as a container's own is."""
    try:
        below = PurePosixPath(path).relative_to(root)
    except ValueError:  # a group outside of what is mounted here
        below = PurePosixPath()
    if ".." in below.parts:
        below = PurePosixPath()
    folder = mount / below
    yield folder
    while folder != mount:
        folder = folder.parent
        yield folder


def _limit(group: Path) -> float | None:
    """Cores that one group may keep busy."""
    try:
        if (group / "cpu.max").exists():
            limit, period = (group / "cpu.max").read_text(encoding="ascii").split()
        else:
            limit = (group / "cpu.cfs_quota_us").read_text(encoding="ascii")
            period = (group / "cpu.cfs_period_us").read_text(encoding="ascii")
        cores = int(limit) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # none ("max"), or nothing that we know
        return None
    return cores if cores > 0 else None


def _unescaped(text: str) -> str:
    r"""As mountinfo writes spaces and the like: \040."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
