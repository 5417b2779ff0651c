"""Which file is which video, wherever it lies."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from everyframe.video.errors import MissingVideoError, UnreachableError, VideoError
from everyframe.video.find import list_images
from everyframe.video.opening import Source
from everyframe.video.remote import is_remote, local_path, open_remote

_ENDS, _PIECES, _PIECE = 1 << 18, 4, 1 << 16  # of a file: both ends, and pieces between them
_IMAGES, _IMAGE_PIECE = 32, 1 << 10  # of a folder: so many images, and of each both ends and one piece


def identity(source: Source, *, required: bool = False) -> dict[str, Any]:
    """Size of a file and a hash of pieces of it: tells videos apart, cheap on any disk or store.

    {"size_bytes", "fingerprint"}, the same for a file here and its copy on an object store. The hash is of the size,
    both ends (256 KiB) and four pieces (64 KiB) at even distances between them; of all of a file up to 768 KiB. Files
    of one size that differ nowhere else than between these pieces are taken for one. Of a folder of images names and
    sizes count, and three pieces (1 KiB) of each of up to 32 images.

    {} for what is no file: addresses that FFmpeg streams, a file that is not there, one on a store that cannot be read
    (opening it says why). Raises OSError for a file here that cannot be read.

    required: what is not there or cannot be read raises MissingVideoError or UnreachableError.
    """
    if isinstance(source, bytes):
        return {"size_bytes": len(source), "fingerprint": hashlib.sha256(source).hexdigest()[:32]}
    if not isinstance(source, (str, Path)):
        return {}
    try:
        if is_remote(source):
            with open_remote(str(source)) as file:
                return {"size_bytes": file.size, "fingerprint": fingerprint_of(file.size, file.read_at)}
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


def fingerprint_of(size: int, read: Callable[[int, int], bytes]) -> str:
    """What `identity` says of a file of so many bytes. read: (start, count) -> bytes, fewer at the end of the file."""
    digest = hashlib.sha256(str(size).encode())
    for start, count in _spans(size, _ENDS, _PIECES, _PIECE):
        _add(digest, start, count, read)
    return digest.hexdigest()[:32]


def _spans(size: int, ends: int, pieces: int, piece: int) -> list[tuple[int, int]]:
    """What is hashed of so many bytes: (start, count), in order, none twice."""
    between = size - 2 * ends
    if between <= pieces * piece:
        return [(0, size)]
    middle = [(ends + between * (2 * index + 1) // (2 * pieces) - piece // 2, piece) for index in range(pieces)]
    return [(0, ends), *middle, (size - ends, ends)]


def _add(digest: Any, start: int, count: int, read: Callable[[int, int], bytes]) -> None:
    end = start + count
    while start < end and (data := read(start, end - start)):
        digest.update(data)
        start += len(data)


def _of_path(path: Path) -> dict[str, Any]:
    if path.is_dir():
        return {"size_bytes": None, "fingerprint": _of_folder(path)}
    if not path.is_file():
        raise MissingVideoError(f"{path}: no such file")
    size = path.stat().st_size
    with path.open("rb") as file:
        return {"size_bytes": size, "fingerprint": fingerprint_of(size, _reader(file))}


def _of_folder(folder: Path) -> str:
    sizes = {file.name: file.stat().st_size for file in folder.iterdir() if file.is_file()}
    names = sorted(f"{name}:{size}" for name, size in sizes.items())
    digest = hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape"))
    images = list_images(folder)
    if len(images) > _IMAGES:
        images = [images[index * (len(images) - 1) // (_IMAGES - 1)] for index in range(_IMAGES)]
    for image in images:
        # Pictures that are not compressed have one size, and often borders of one colour.
        spans = _spans(sizes.get(image.name, 0), _IMAGE_PIECE, 1, _IMAGE_PIECE)
        with suppress(PermissionError), image.open("rb", buffering=0) as file:  # reading it says so, or skips it
            for start, count in spans:
                _add(digest, start, count, _reader(file))
    return digest.hexdigest()[:32]


def _reader(file: Any) -> Callable[[int, int], bytes]:
    def read(start: int, count: int) -> bytes:
        file.seek(start)
        return bytes(file.read(count))

    return read
