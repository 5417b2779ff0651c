"""One writer at a time in a local folder: an exclusive lock on a file, which the system drops with the process."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from everyframe.library.errors import LockedError, translated

_POLL_SECONDS = 0.02


@contextmanager
def locked(file: Path, seconds: float, owner: str) -> Iterator[None]:
    """Hold `file` exclusively, among threads too. owner: what is being locked, for messages.

    Raises LockedError, naming the process that holds it, when it is not free within `seconds`.
    """
    with translated(owner, "written"):
        handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        deadline = time.monotonic() + seconds
        while not _try(handle):
            if time.monotonic() >= deadline:
                holder = os.pread(handle, 32, 0).decode("ascii", "replace").strip()
                raise LockedError(
                    f"{owner} is being written to by process {holder or 'unknown'} (waited {seconds:g} s); "
                    "try again when it is done, or stop it"
                )
            time.sleep(_POLL_SECONDS)
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


def _try(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
