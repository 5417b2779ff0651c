"""Features of many videos in one tar, as webdataset reads it: `KEY.npy`, `KEY.times.npy`, `KEY.json` per video.

The array and its times are plain NumPy files; the JSON is the header of every other feature file, with the same SHA-256
over all content. The first member of a tar, `__index__`, tells what is in it; webdataset passes over it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import secrets
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from everyframe.feature_files import Content, FeaturesError, ForeignFileError, checked, sealed
from everyframe.features.sources import open_source
from everyframe.features.video_features import VideoFeatures, from_content

INDEX = "__index__"  # webdataset takes names like this for its own, and passes over them
_FORMAT = "everyframe-shard"
_VERSION = 1
_SUFFIXES = ("npy", "times.npy", "json")
_READ_AT_ONCE = 1 << 20
_LONGEST_KEY = 170  # bytes

Failed = Callable[[FeaturesError], None]
"""Told of a video, or of the rest of a tar, that cannot be read."""


def key_of(name: str) -> str:
    """The key of a sample in a shard, from a video's name (folders stay): different names have different keys.

    webdataset cuts a file's name at its first dot, and some tools trip over odd characters: where anything had to go,
    a hash of the name takes its place. It depends on the name alone, so shards can be made apart.
    """
    parts = [re.sub(r"[^\w\-]", "_", part) for part in name.split("/") if part not in ("", ".", "..")]
    key = "/".join(parts)
    if key == name and len(key.encode()) <= _LONGEST_KEY:
        return key
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:10]
    while len(key.encode(errors="replace")) > _LONGEST_KEY - 1 - len(digest):  # so that a key is its own key
        key = key[1:].lstrip("/")
    return f"{key or 'video'}-{digest}"


def shard_name(number: int) -> str:
    """The file name of a shard."""
    return f"features-{number:06d}.tar"


@dataclass(frozen=True, kw_only=True)
class Indexed:
    """A video in the index of a shard. note: what its writer wanted to find again, anything JSON can hold."""

    key: str
    name: str
    frames: int
    dim: int
    sha256: str
    note: dict[str, Any] = field(default_factory=dict)


class Shard:
    """A tar being made. It grows in an unnamed temporary file: a killed process leaves nothing of it.

    spool_folder: where that file lies; by default where temporary files do. The same videos in the same order give
    the same bytes. Use as a context manager, or `close` it.
    """

    def __init__(self, spool_folder: str | os.PathLike[str] | None = None) -> None:
        # Without a buffer, so that a full disk is met where it can be undone.
        self._spool: Any = tempfile.TemporaryFile(buffering=0, dir=spool_folder)  # noqa: SIM115 (closed by close)
        self.videos: list[Indexed] = []
        self._keys: set[str] = set()

    def __enter__(self) -> Shard:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def size(self) -> int:
        """Bytes of the tar so far, without its index."""
        return int(self._spool.tell())

    def add(self, name: str, features: VideoFeatures, *, note: Mapping[str, Any] | None = None) -> str:
        """Add a video and return its key. Raises FeaturesError for a name that is in it already, and a full disk."""
        key = key_of(name)
        if key in self._keys:
            raise FeaturesError(f"{name} is in this shard already; give the videos different names")
        header = sealed(features.header(), features.times, features.embeddings)
        members = (
            (f"{key}.npy", _npy(features.embeddings)),
            (f"{key}.times.npy", _npy(features.times)),
            (f"{key}.json", memoryview(json.dumps(header).encode())),
        )
        before = self.size
        try:
            for member, data in members:
                _write_member(self._spool, member, data)
        except OSError as error:
            with suppress(OSError):  # as if it had not been tried
                self._spool.seek(before)
                self._spool.truncate()
            raise FeaturesError(f"{name} cannot be added to the shard ({error.strerror or error})") from error
        self._keys.add(key)
        self.videos.append(
            Indexed(
                key=key,
                name=name,
                frames=features.num_frames,
                dim=features.dim,
                sha256=header["sha256"],
                note=dict(note or {}),
            )
        )
        return key

    def write(self, file: BinaryIO) -> None:
        """Write the whole tar into a file that is open for writing; its position is all that is asked of it."""
        videos = [asdict(video) for video in self.videos]
        index = {"format": _FORMAT, "version": _VERSION, "videos": videos, "sha256": _digest(videos)}
        end = self.size
        self._spool.seek(0)
        try:
            written = _write_member(file, INDEX, memoryview(json.dumps(index).encode()))
            shutil.copyfileobj(self._spool, file, _READ_AT_ONCE)
        finally:
            self._spool.seek(end)
        written += end + 2 * tarfile.BLOCKSIZE
        file.write(bytes(2 * tarfile.BLOCKSIZE + -written % tarfile.RECORDSIZE))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the tar under this name, whole or not at all. Raises FeaturesError where that cannot be done."""
        path = Path(path)
        part = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
        try:
            with open(part, "xb") as file:
                self.write(file)
                file.flush()
                os.fsync(file.fileno())  # content before name: a power cut leaves old or new, never half
            os.replace(part, path)
        except BaseException as error:  # Ctrl-C too must not leave half a file
            part.unlink(missing_ok=True)
            if isinstance(error, OSError):
                reason = error.strerror or error
                raise FeaturesError(f"{path} cannot be written ({reason}); nothing partial is left") from error
            raise
        return path

    def close(self) -> None:
        """Let go of the temporary file."""
        self._spool.close()


def _digest(videos: list[dict[str, Any]]) -> str:
    return hashlib.sha256(json.dumps(videos, sort_keys=True).encode()).hexdigest()


def _npy(array: NDArray[Any]) -> memoryview:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getbuffer()


def _write_member(file: Any, name: str, data: memoryview) -> int:
    """Append one member and return the bytes it takes. No time and no owner: equal content is equal bytes."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    head = info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
    padding = bytes(-len(data) % tarfile.BLOCKSIZE)
    for piece in (head, data, padding):
        left = memoryview(piece)
        while left:  # a file without a buffer may take a part
            left = left[file.write(left) :]
    return len(head) + len(data) + len(padding)


def read_index(source: str | os.PathLike[str]) -> list[Indexed]:
    """What is in a shard that everyframe wrote, from its first bytes. source: a path, or an address (s3://...).

    Raises FeaturesError where it is missing or damaged, ForeignFileError for a tar without such an index.
    """
    with _Tar(source) as tar:
        if tar.index is None:
            raise ForeignFileError(
                f"{source} has no index of everyframe: it holds no features, or another tool made it"
            )
        return tar.index


def read_shard(
    source: str | os.PathLike[str], *, share: tuple[int, int] = (0, 1), failed: Failed | None = None
) -> Iterator[tuple[str, VideoFeatures]]:
    """(key, features) of each video in a tar, in its order, read as a stream; checksums are verified.

    source: a path, or an address (s3://...). Tars that other tools packed from such samples can be read, too.
    share: (k, n) gives every n-th video from the k-th on; the others are passed over.
    failed: told of each video that cannot be read, and where the tar is cut short; without it such a FeaturesError is
        raised (ForeignFileError where a sample was never features).
    """

    def fail(error: FeaturesError) -> None:
        if failed is None:
            raise error
        failed(error)

    try:
        tar = _Tar(source)
    except FeaturesError as error:
        fail(error)
        return
    with tar:
        while True:
            try:
                sample = tar.next_sample(share)
            except FeaturesError as error:  # what follows cannot be found
                fail(error)
                return
            if sample is None:
                return
            if sample.members is None:
                continue
            try:
                features = _features(f"{source}#{sample.key}", sample.members)
            except FeaturesError as error:
                fail(error)
            else:
                yield sample.key, features


class _Sample(NamedTuple):
    key: str
    members: dict[str, bytes] | None
    """By suffix, those that features have; None where the sample is not of the share."""


class _Tar:
    """A tar read as a stream: its index, and then sample by sample. Raises FeaturesError for what is wrong with it."""

    def __init__(self, source: str | os.PathLike[str]) -> None:
        self._source = os.fspath(source)
        self._file = open_source(source)
        self._count = 0
        self._next: tarfile.TarInfo | None = None
        try:
            with self._damage():
                self._tar = tarfile.open(fileobj=self._file, mode="r|", bufsize=_READ_AT_ONCE)  # noqa: SIM115
                self._next = self._tar.next()
            self.index = self._read_index()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> _Tar:
        return self

    def __exit__(self, *_: object) -> None:
        self._tar.close()
        self._file.close()

    def next_sample(self, share: tuple[int, int]) -> _Sample | None:
        """The next key with its members; None at the end."""
        which, of = share
        while self._next is not None and _split(self._next) is None:
            self._advance()  # folders, and what is no part of a sample
        if self._next is None:
            self._check_end()
            return None
        key = _split(self._next)[0]  # type: ignore[index]
        wanted = self._count % of == which
        members: dict[str, bytes] = {}
        while self._next is not None and (split := _split(self._next)) is not None and split[0] == key:
            if wanted and split[1] in _SUFFIXES:  # what else others packed (videos, say) may be of any size
                members[split[1]] = self._read()
            self._advance()
        if self._next is None and self.index is not None and wanted and not members.keys() >= set(_SUFFIXES):
            self._check_end()  # the tar ends within the sample
        self._count += 1
        return _Sample(key, members if wanted else None)

    def _check_end(self) -> None:
        # The tar format itself does not tell: what stops between two members looks like the end.
        if self.index is not None and self._count != len(self.index):
            raise FeaturesError(
                f"{self._source} is cut short: it holds {self._count} of {len(self.index)} videos; "
                "fetch or make it again"
            )
        if not self._count:
            raise _foreign(self._source)

    def _read_index(self) -> list[Indexed] | None:
        if self._next is None or self._next.name != INDEX:
            return None
        try:
            index = json.loads(self._read())
            if index["format"] != _FORMAT or index["version"] != _VERSION:
                raise ForeignFileError(
                    f"{self._source} is a shard of another version; upgrade everyframe or export again"
                )
            videos = [Indexed(**video) for video in index["videos"]]
        except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise FeaturesError(
                f"{self._source} is damaged: its index cannot be read; fetch or make it again"
            ) from error
        self._advance()
        return videos

    def _read(self) -> bytes:
        if self._next is not None and self._next.issparse():
            # Its holes would be read as zeros: terabytes of them, from a tar of a few KB.
            raise ForeignFileError(
                f"{self._source}: {self._next.name} is stored as a sparse file, as no shard of features has any; "
                "pack it again without (tar: leave --sparse out)"
            )
        with self._damage():
            file = self._tar.extractfile(self._next) if self._next is not None else None
            return file.read() if file is not None else b""

    def _advance(self) -> None:
        with self._damage():
            self._tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps them all
            self._next = self._tar.next()

    @contextmanager
    def _damage(self) -> Iterator[None]:
        from everyframe.video.errors import VideoError  # level 0; what a remote file raises

        try:
            yield
        except VideoError as error:  # has the address
            raise FeaturesError(str(error)) from error
        except (tarfile.TarError, EOFError, OSError) as error:
            if self._count or self._next is not None:
                raise FeaturesError(
                    f"{self._source} is cut short or damaged after {self._count} videos ({error}); "
                    "fetch or make it again"
                ) from error
            raise FeaturesError(f"{self._source} is damaged or no tar file ({error})") from error


def _split(member: tarfile.TarInfo) -> tuple[str, str] | None:
    """(key, suffix), cut at the first dot of the name as webdataset does; None for what is not part of a sample."""
    folder, slash, name = member.name.rpartition("/")
    stem, dot, suffix = name.partition(".")
    return (f"{folder}{slash}{stem}", suffix.lower()) if member.isreg() and stem and dot else None


def _features(where: str, members: Mapping[str, bytes]) -> VideoFeatures:
    """Raises FeaturesError, ForeignFileError where these never were features."""
    if missing := [suffix for suffix in _SUFFIXES if suffix not in members]:
        raise ForeignFileError(f"{where} has no .{missing[0]}, which features in a shard have; is it one of features?")
    try:
        embeddings, times = (np.load(io.BytesIO(members[name]), allow_pickle=False) for name in _SUFFIXES[:2])
        content = Content(json.loads(members["json"]), times, embeddings)
    except Exception as error:  # whatever a parser raises on arbitrary bytes means the same
        raise FeaturesError(
            f"{where} is damaged ({type(error).__name__}: {error}); fetch or make the shard again"
        ) from error
    return from_content(where, checked(where, content))


def _foreign(source: str) -> ForeignFileError:
    return ForeignFileError(
        f"{source} holds no features; a shard has KEY.npy, KEY.times.npy and KEY.json of each video"
    )
