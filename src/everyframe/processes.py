"""What a child process does for its own safety: limits on itself, and an end with whoever started it.

Standard library alone, so that it can be imported before anything that the limits are for.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys

_PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int | None = None) -> None:
    """On Linux the system ends this process with its parent, even where Python gets no turn (a decoder that hangs).

    parent: its process id, if known: a parent that died before this call is noticed too. "Parent" means the thread that
    started this process; it must live as long as the process is wanted.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def take_no_more(
    *,
    memory_bytes: int | None = None,
    file_bytes: int | None = None,
    open_files: int | None = None,
    cpu_seconds: int | None = None,
) -> None:
    """Limits on this process that it cannot lift again; None leaves one as it is. It leaves no core files.

    memory_bytes: of data (RLIMIT_DATA): what is mapped from files, such as libraries, does not count.
    """
    pairs = (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_DATA, memory_bytes),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_NOFILE, open_files),
        (resource.RLIMIT_CPU, cpu_seconds),
    )
    for which, value in pairs:
        if value is not None:
            hard = resource.getrlimit(which)[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(which, (value, value))
