"""Which file is which video, wherever it lies."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from everyframe.video.errors import MissingVideoError, UnreachableError, VideoError
from everyframe.video.opening import Source
from everyframe.video.remote import END_BYTES, is_remote, local_path, open_remote


def identity(source: Source, *, required: bool = False) -> dict[str, Any]:
    """Size and a hash of both ends of a file: enough to notice that it was replaced, cheap on any disk or store.

    {"size_bytes", "fingerprint"}, the same for a file here and its copy on an object store; of a folder of images its
    names and sizes count. {} for what is no file: addresses that FFmpeg streams, a file that is not there, one on a
    store that cannot be read (opening it says why). Raises OSError for a file here that cannot be read.

    required: what is not there or cannot be read raises MissingVideoError or UnreachableError.
    """
    if isinstance(source, bytes):
        return {"size_bytes": len(source), "fingerprint": hashlib.sha256(source).hexdigest()[:32]}
    if not isinstance(source, (str, Path)):
        return {}
    try:
        if is_remote(source):
            with open_remote(str(source)) as file:
                return _of_file(file, file.size)
        path = local_path(source)
        return {} if path is None and is_address(source) else _of_path(Path(path or source))
    except VideoError:
        if required:
            raise
        return {}
    except OSError as error:
        if not required:
            raise
        if isinstance(error, (FileNotFoundError, PermissionError)):
            raise MissingVideoError(f"{source}: cannot be read ({error.strerror})") from error
        raise UnreachableError(f"{source}: cannot be read ({error.strerror or error})") from error


def is_address(source: object) -> bool:
    """Is it a URL, not a path?"""
    return isinstance(source, str) and "://" in source


def _of_path(path: Path) -> dict[str, Any]:
    if path.is_dir():
        names = sorted(f"{file.name}:{file.stat().st_size}" for file in path.iterdir() if file.is_file())
        return {"size_bytes": None, "fingerprint": hashlib.sha256("\n".join(names).encode()).hexdigest()[:32]}
    if not path.is_file():
        raise MissingVideoError(f"{path}: no such file")
    with path.open("rb") as file:
        return _of_file(file, path.stat().st_size)


def _of_file(file: Any, size: int) -> dict[str, Any]:
    digest = hashlib.sha256(str(size).encode())
    digest.update(file.read(END_BYTES))
    file.seek(max(size - END_BYTES, 0))
    digest.update(file.read(END_BYTES))
    return {"size_bytes": size, "fingerprint": digest.hexdigest()[:32]}
