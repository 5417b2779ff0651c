"""The files that a server keeps beside the library: uploads, what is on its way, and converted videos."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import tempfile
import unicodedata
from pathlib import Path

from everyframe.serve.errors import DiskFull
from everyframe.serve.sniff import Container

_RESERVE = 200 * 10**6
_NAME_BYTES = 120


class Workplace:
    """Folders for one server. In the library's own folder where that is local, else in a temporary one.

    uploads/: videos that came by HTTP and are in the library. uploads/.partial/NAME/: what this server is at work on;
    a lock on a file in it tells a later server whether it is still alive. previews/: converted videos.
    """

    def __init__(self, library: str, *, is_local: bool) -> None:
        self._temporary = None if is_local else tempfile.TemporaryDirectory(prefix="everyframe-serve-")
        self.root = Path(library if self._temporary is None else self._temporary.name)
        self.keeps_uploads = is_local
        self.uploads = self.root / "uploads"
        self.previews = self.root / "previews"
        self._partial = self.uploads / ".partial"
        self._own: Path | None = None
        self._lock: int | None = None

    def sweep(self) -> None:
        """Remove what servers that were killed left half done."""
        if not self._partial.is_dir():
            return
        for folder in self._partial.iterdir():
            lock = _locked(folder / "lock") if folder != self._own else None
            if lock is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)

    def new_folder(self) -> Path:
        """An empty folder for one job."""
        if self._own is None:
            own = self._partial / secrets.token_hex(6)
            own.mkdir(parents=True, mode=0o700)
            self._lock = _locked(own / "lock")
            self._own = own
        folder = self._own / secrets.token_hex(6)
        folder.mkdir()
        return folder

    def keep(self, file: Path, name: str) -> Path:
        """Move an upload to where it stays, under a name of its own."""
        stem, suffix = os.path.splitext(name)
        for number in range(1, 10_000):
            place = self.uploads / (name if number == 1 else f"{stem}-{number}{suffix}")
            try:
                os.close(os.open(place, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            except FileExistsError:
                continue
            os.replace(file, place)
            return place
        raise OSError(errno.EEXIST, f"there are too many uploads named {name}")

    def owns(self, path: str) -> bool:
        """Is it a file that was uploaded here?"""
        return Path(path).parent == self.uploads.absolute()

    def check_room(self, size: int) -> None:
        """Raises DiskFull where a file of that many bytes would leave no room for the library."""
        place = next(each for each in (self.uploads, *self.uploads.parents) if each.exists())
        if shutil.disk_usage(place).free < size + _RESERVE:
            raise DiskFull("there is no room on the server's disk for this video")

    def close(self) -> None:
        """Remove what is on its way."""
        if self._own is not None:
            shutil.rmtree(self._own, ignore_errors=True)
            with contextlib.suppress(OSError):
                self._partial.rmdir()
                self.uploads.rmdir()  # where nothing was ever uploaded
        if self._lock is not None:
            os.close(self._lock)
        self._own = self._lock = None
        if self._temporary is not None:
            self._temporary.cleanup()


def safe_name(given: str, container: Container) -> str:
    """A file's name made from what a client calls it: no folders, nothing hidden, the suffix of what it is."""
    base = unicodedata.normalize("NFC", given).replace("\\", "/").rpartition("/")[2]
    kept = "".join(letter if letter.isalnum() or letter in " ._-()[]+,&'" else "_" for letter in base)
    stem, suffix = os.path.splitext(kept.strip(" ."))
    if suffix.lower() not in container.suffixes:
        suffix = container.suffixes[0]
    stem = stem.encode("utf-8", "ignore")[:_NAME_BYTES].decode("utf-8", "ignore").strip(" .")
    return (stem or "video") + suffix


def is_full(error: OSError) -> bool:
    """Did it fail because the disk is full?"""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _locked(file: Path) -> int | None:
    """An open, locked handle; None where another process holds it, or it cannot be had."""
    try:
        handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle
