"""Where outputs go: whole files below a local folder or an object store's address, and what can go wrong there.

A file appears whole or not at all. In a folder it is written under another name, flushed to the disk, and renamed; an
object store shows an upload only when it is complete. What `write` and `publish` have done survives a power cut.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from everyframe.video.remote import filesystem

STATE = ".everyframe"
"""The folder of an output for what is no output: manifest, parts, reports."""

_SCRATCH = f"{STATE}/scratch"
_PART = re.compile(r"^\..+\.(\d+)-[0-9a-f]{8}\.part$")  # the same names as `feature_files.write_whole` gives
_ABANDONED_SECONDS = 3600.0
_DELETIONS = 8  # at once; each waits for a server
_STORES = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "memory")  # where an upload appears whole
_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "it is on a read-only file system",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EFBIG: "the file would be larger than the system allows",
    errno.ENOTDIR: "a file is in the way of a folder",
    errno.EEXIST: "a file is in the way of a folder",
    errno.EISDIR: "a folder has this name",
    errno.EIO: "the disk reports an input/output error",
    errno.EMFILE: "too many open files; raise the limit with ulimit -n",
}
_NO_BUCKET = r"nosuchbucket|bucket does not exist|no such bucket"
_STORE_REASONS = (
    (_NO_BUCKET, "there is no such bucket; check the address"),
    (
        r"no ?credentials|locate credentials|default ?credentials",
        "no credentials were found; set them in the environment",
    ),
    (
        r"access ?denied|forbidden|permission|invalidaccesskey|signaturedoesnotmatch|\b40[13]\b|anonymous",
        "access is denied; check the credentials and the address",
    ),
    (
        r"connect|timed? ?out|getaddrinfo|name resolution",
        "the object store does not answer; check the address, the endpoint and the network",
    ),
)


class OutputError(ValueError):
    """The output as a whole cannot be used: full, read-only, denied, gone, damaged, or another run's."""


class Place(ABC):
    """A folder or address that files are written below. Names are relative, with "/"; any thread may call it.

    Methods raise OutputError where the place cannot be used, and FileNotFoundError for a name that is not there.
    """

    address: str
    is_local: bool

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Write a whole file, replacing what has this name; durable when it returns."""

    @abstractmethod
    def publish(self, file: Path, name: str) -> None:
        """Take a local file, see `scratch`, as the whole file of this name; durable when it returns. `file` is gone."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """All bytes of a file."""

    def read_many(self, names: Sequence[str]) -> dict[str, bytes]:
        """`read` for many, faster where each takes a round trip."""
        return {name: self.read(name) for name in names}

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Is there a file of this name?"""

    def names(self, under: str = "") -> list[str]:
        """All files below a folder, sorted, without unfinished ones; none where there is no such folder.

        Without a folder all outputs: what lies below `STATE` is none.
        """
        return sorted(self.sizes(under))

    @abstractmethod
    def sizes(self, under: str = "") -> dict[str, int]:
        """Bytes of each of `names`, in any order."""

    @abstractmethod
    def delete(self, names: Iterable[str]) -> None:
        """Delete files; those that are not there are no error."""

    @abstractmethod
    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A local folder for files on their way to `publish`; it goes with all that is left in it."""

    def sweep(self) -> None:
        """Remove what killed runs left half written. Only for who holds the lock of this output."""
        return

    def probe(self) -> None:
        """Raise OutputError where not even a small file can be written."""
        name = f"{STATE}/probe-{secrets.token_hex(4)}"
        self.write(name, b"everyframe\n")
        self.delete([name])


def open_place(out: str | os.PathLike[str] | Place) -> Place:
    """The place of an output, checked to be writable. A local folder is made.

    Raises OutputError where it cannot be written to, ImportError where the package for the address is missing,
    ValueError for an address of no known kind.
    """
    if isinstance(out, Place):
        return out
    text = os.fspath(out).removeprefix("file://")
    if not text:
        raise ValueError("an output needs a folder or an address, got ''")
    place = _Store(text) if "://" in text else _Folder(text)
    place.probe()
    return place


def checked_name(name: str) -> str:
    """`name`, where it lies below the place. Raises ValueError."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\0" in name:
        raise ValueError(f"{name!r} is no name of a file below an output: it must be relative, without '..'")
    return name


class _Folder(Place):
    """A local folder."""

    is_local = True

    def __init__(self, folder: str) -> None:
        self.address = os.path.abspath(os.path.expanduser(folder))

    def path(self, name: str) -> Path:
        """Where a file of this name lies."""
        return Path(self.address, checked_name(name))

    def write(self, name: str, data: bytes) -> None:
        self._whole(name, lambda part: _write_flushed(part, data))

    def publish(self, file: Path, name: str) -> None:
        def move(part: Path) -> None:
            _flush(file)
            os.replace(file, part)  # the same file system: `scratch` lies below the folder

        self._whole(name, move)

    def _whole(self, name: str, make: Callable[[Path], None]) -> None:
        path = self.path(name)
        part = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
        try:
            make_folder(path.parent)
            make(part)
            os.replace(part, path)
            flush_folder(path.parent)
        except OSError as error:
            raise _explained(str(path), error) from error
        finally:
            with suppress(OSError):  # it was renamed, or never made
                part.unlink()

    def read(self, name: str) -> bytes:
        path = self.path(name)
        try:
            return path.read_bytes()
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise _explained(str(path), error, "read") from error

    def exists(self, name: str) -> bool:
        return self.path(name).is_file()

    def sizes(self, under: str = "") -> dict[str, int]:
        found: dict[str, int] = {}
        waiting = [under]
        while waiting:
            name = waiting.pop()
            folder = self.path(name) if name else Path(self.address)
            try:
                with os.scandir(folder) as entries:
                    for entry in entries:
                        own = f"{name}/{entry.name}" if name else entry.name
                        if entry.is_dir(follow_symlinks=False):
                            waiting += [own] if own != STATE else []
                        elif not _PART.match(entry.name):
                            with suppress(FileNotFoundError):  # this one was removed meanwhile; the others are there
                                found[own] = entry.stat(follow_symlinks=False).st_size
            except FileNotFoundError:
                continue  # no such folder, or removed meanwhile
            except OSError as error:
                raise _explained(str(folder), error, "read") from error
        return found

    def delete(self, names: Iterable[str]) -> None:
        folders = set()
        for name in names:
            path = self.path(name)
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise _explained(str(path), error, "deleted") from error
            folders.add(path.parent)
        top = Path(self.address, STATE)
        for folder in folders:
            if folder.parent.parent == top:  # of one video's parts
                with suppress(OSError):  # it is not empty
                    folder.rmdir()

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        folder = self.path(f"{_SCRATCH}/{os.getpid()}-{secrets.token_hex(4)}")
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise _explained(str(folder), error) from error
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def sweep(self) -> None:
        shutil.rmtree(Path(self.address, _SCRATCH), ignore_errors=True)
        for folder, _, files in os.walk(self.address):
            inside = STATE in Path(folder).relative_to(self.address).parts
            for file in filter(_PART.match, files):
                path = Path(folder, file)
                if inside or _is_abandoned(path):
                    path.unlink(missing_ok=True)


class _Store(Place):
    """Below an address of an object store, through fsspec."""

    is_local = False

    def __init__(self, address: str) -> None:
        protocol = address.partition("://")[0].lower()
        if protocol not in _STORES:
            raise ValueError(
                f"{address}: outputs go to a folder or to s3://, gs://, abfs:// or az://, where a file appears whole; "
                f"{protocol}:// is none of these"
            )
        self.address = address.rstrip("/")
        with self._explained(self.address, "opened"):
            self._system, self._root = filesystem(self.address)

    def _full(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{checked_name(name)}"

    @contextmanager
    def _explained(self, place: str, action: str) -> Iterator[None]:
        try:
            yield
        except (OutputError, ImportError):
            raise
        except Exception as error:  # every client has exceptions of its own
            if isinstance(error, FileNotFoundError) and action == "read" and not _is_no_bucket(error):
                raise
            raise _explained(place, error, action) from error

    def write(self, name: str, data: bytes) -> None:
        with self._explained(f"{self.address}/{name}", "written"):
            self._system.pipe_file(self._full(name), bytes(data))

    def publish(self, file: Path, name: str) -> None:
        with self._explained(f"{self.address}/{name}", "written"):
            self._system.put_file(str(file), self._full(name))
        file.unlink()

    def read(self, name: str) -> bytes:
        with self._explained(f"{self.address}/{name}", "read"):
            return bytes(self._system.cat_file(self._full(name)))

    def read_many(self, names: Sequence[str]) -> dict[str, bytes]:
        if not names:
            return {}
        by_path = {self._full(name): name for name in names}
        with self._explained(self.address, "read"):
            content = self._system.cat(list(by_path))  # many at a time
            if isinstance(content, bytes):  # of a single file
                content = {next(iter(by_path)): content}
            return {name: bytes(content[path]) for path, name in by_path.items()}

    def exists(self, name: str) -> bool:
        with self._explained(f"{self.address}/{name}", "looked for"):
            self._system.invalidate_cache()
            return bool(self._system.isfile(self._full(name)))

    def sizes(self, under: str = "") -> dict[str, int]:
        top = self._full(under) if under else self._root.rstrip("/")
        with self._explained(self.address, "listed"):
            self._system.invalidate_cache()
            try:
                found = self._system.find(top, detail=True)
            except FileNotFoundError as error:
                if _is_no_bucket(error):
                    raise
                return {}
        root = self._root.rstrip("/") + "/"
        sizes = {path[len(root) :]: int(facts["size"]) for path, facts in found.items() if path.startswith(root)}
        return {name: size for name, size in sizes.items() if under or not name.startswith(f"{STATE}/")}

    def delete(self, names: Iterable[str]) -> None:
        def delete(name: str) -> None:
            with self._explained(f"{self.address}/{name}", "deleted"), suppress(FileNotFoundError):
                self._system.rm_file(self._full(name))

        with ThreadPoolExecutor(_DELETIONS) as pool:
            list(pool.map(delete, names))

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="everyframe-") as folder:
            yield Path(folder)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, durably. Raises OSError."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    flush_folder(folder.parent)


def flush_folder(folder: Path) -> None:
    """Make the names in a folder durable, where the file system has a way to. Raises OSError."""
    try:
        _flush(folder)
    except OSError as error:
        if error.errno != errno.EINVAL:  # what some network file systems answer
            raise


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_flushed(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _is_abandoned(part: Path) -> bool:
    """Was it left by a process that is no more? Another machine's processes cannot be asked: then by its age."""
    found = _PART.match(part.name)
    try:
        old = time.time() - part.stat().st_mtime > _ABANDONED_SECONDS
        return old and found is not None and not Path(f"/proc/{found[1]}").exists()
    except OSError:
        return False


def _is_no_bucket(error: BaseException) -> bool:
    return re.search(_NO_BUCKET, f"{type(error).__name__} {error}", re.IGNORECASE) is not None


def reason_of(error: BaseException) -> str:
    """Why a file cannot be written, in a few words."""
    known = _REASONS.get(error.errno or 0) if isinstance(error, OSError) else None
    said = getattr(error, "strerror", None) or " ".join(str(error).split())[:300] or type(error).__name__
    return known or str(said)


def _explained(place: str, error: Exception, action: str = "written") -> OutputError:
    store = _reason_of_store(type(error).__name__, str(error)) if "://" in place else None
    return OutputError(f"{place} cannot be {action}: {store or reason_of(error)}")


def _reason_of_store(kind: str, text: str) -> str | None:
    for pattern, reason in _STORE_REASONS:
        if re.search(pattern, f"{kind} {text}", re.IGNORECASE):
            return reason
    return None
