"""Videos inside WebDataset shards: an index of each tar, and files that read their byte range of it.

Shards are read at random, not streamed through the webdataset package: a clip is then a number, so that every epoch
is a true permutation of all clips, whole videos can be held out, and a resumed run continues exactly where it stopped.
The price is one pass over the headers of every tar at the start (its videos are skipped, not read) and storage that
can seek.
"""

from __future__ import annotations

import glob
import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from everyframe.features.sources import expand_braces
from everyframe.video import VideoError
from everyframe.video.find import VIDEO_SUFFIXES, natural_key
from everyframe.video.seekable import Seekable

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")
_MAGIC = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}
_LONGEST_TEXT = 1 << 20  # bytes; a longer .txt or .json is not a caption

Member = tuple[str, int, int, str]
"""Name inside the tar, offset of its bytes, their number, caption ("" where there is none)."""


class MemberFile(Seekable):
    """A byte range of a larger file as a file of its own: read-only, seekable, and it can be pickled.

    Opens the file at the first read. `name` is what messages call it.
    """

    def __init__(self, path: str | Path, offset: int, size: int, name: str):
        super().__init__(name, size)
        self._path, self._start = os.fspath(path), offset
        self._file: Any = None

    def readinto(self, buffer: Any) -> int:
        count = min(len(buffer), self.size - self._position)
        if count <= 0:
            return 0
        if self._file is None:
            self._file = io.FileIO(self._path)
        self._file.seek(self._start + self._position)
        read: int = self._file.readinto(memoryview(buffer)[:count])
        self._position += read
        return read

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        super().close()

    def __reduce__(self) -> tuple[Any, ...]:
        return MemberFile, (self._path, self._start, self.size, self.name)


def find_shards(paths: Iterable[str | Path], failures: list[VideoError] | None) -> tuple[list[Path], list[str | Path]]:
    """Which of the paths are shards, in order and without duplicates, and the paths that are not.

    A shard is a `.tar`; a folder that holds some, at any depth, stands for them, as does a pattern with `*` or
    with braces, `{000000..000012}.tar` or `{train,test}.tar`. Compressed tars, and numbers of a brace range
    that are missing, are VideoErrors: collected in `failures`, or raised without it. ValueError where a folder
    holds both tars and videos, since nobody can tell which are meant, and where a range counts backwards.
    """
    shards: dict[str, Path] = {}
    others: list[str | Path] = []
    for path in paths:
        for text in expand_braces(os.fspath(path)):
            try:
                found = _shards_of(Path(text).expanduser(), expanded=text != os.fspath(path))
            except VideoError as error:
                if failures is None:
                    raise
                failures.append(error)
                continue
            if found is None:
                others.append(text)
            else:
                shards.update((os.path.realpath(shard), shard) for shard in found)
    return list(shards.values()), others


def index_shard(path: Path) -> tuple[list[Member], VideoError | None]:
    """The videos of one tar with their captions, in the order of the tar.

    A caption is `key.txt`, else the field "caption" or "text" of `key.json`. The key is the name without its suffix;
    webdataset cuts it at the first dot, which is followed only where it leaves no doubt: `clip_12.5.mp4` and
    `clip_12.7.mp4` are two clips. The second value says where the tar is cut short or damaged; what stands before
    that place is listed.

    Raises VideoError for a file that is no tar, is compressed, or holds no whole video.
    """
    videos: list[tuple[str, int, int]] = []
    texts: dict[str, str] = {}
    damage: VideoError | None = None
    try:
        with tarfile.open(path, "r:") as tar:
            size = path.stat().st_size
            try:
                for member in tar:
                    if member.isreg() and member.offset_data + member.size > size:
                        raise tarfile.ReadError("unexpected end of data")
                    _note(tar, member, videos, texts)
            except tarfile.TarError as error:
                damage = VideoError(
                    f"{path}: this tar is cut short or damaged after {len(videos)} videos ({error}); fetch it again"
                )
    except tarfile.TarError as error:
        with path.open("rb") as file:
            kind = _MAGIC.get(file.read(2))
        if kind:
            raise _compressed(path, kind) from error
        raise VideoError(f"{path}: not a tar file ({error}); shards are made with tar or webdataset") from error
    except OSError as error:
        raise VideoError(f"{path}: cannot be read ({error.strerror or error})") from error
    if not videos:
        raise damage or VideoError(f"{path}: this tar holds no video; expected members such as key.mp4 and key.txt")
    return [(*video, caption) for video, caption in zip(videos, _captions(videos, texts), strict=True)], damage


def _captions(videos: list[tuple[str, int, int]], texts: dict[str, str]) -> Iterator[str]:
    """The caption of each video: of its stem, else of its first-dot key where one video and one text have that."""
    videos_of = Counter(_first_dot(name) for name, *_ in videos)
    texts_of = Counter(_first_dot(stem) for stem in texts)
    last = {_first_dot(stem): caption for stem, caption in texts.items()}
    for name, *_ in videos:
        caption, key = texts.get(_stem(name), ""), _first_dot(name)
        if not caption and videos_of[key] == texts_of[key] == 1:
            caption = last[key]
        yield caption


def _note(
    tar: tarfile.TarFile, member: tarfile.TarInfo, videos: list[tuple[str, int, int]], texts: dict[str, str]
) -> None:
    name = PurePosixPath(member.name)
    if not member.isreg() or member.issparse() or name.name.startswith("."):
        return
    suffix = name.suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        videos.append((member.name, member.offset_data, member.size))
    elif suffix in (".txt", ".json") and member.size <= _LONGEST_TEXT:
        file = tar.extractfile(member)
        caption = _caption(file.read() if file is not None else b"", suffix)
        if caption and suffix == ".txt":
            texts[_stem(member.name)] = caption
        elif caption:
            texts.setdefault(_stem(member.name), caption)


def _caption(data: bytes, suffix: str) -> str:
    text = data.decode("utf-8-sig", errors="replace")
    if suffix == ".json":
        try:
            fields = json.loads(text)
        except ValueError:
            return ""
        fields = fields if isinstance(fields, dict) else {}
        text = next((fields[key] for key in ("caption", "text") if isinstance(fields.get(key), str)), "")
    return " ".join(text.split())


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _first_dot(name: str) -> str:
    """The key as webdataset cuts it: clips/a.video.mp4 belongs to clips/a."""
    path = PurePosixPath(name)
    return str(path.with_name(path.name.partition(".")[0]))


def _shards_of(where: Path, *, expanded: bool) -> list[Path] | None:
    if where.is_dir():
        return _shards_in(where)
    if where.name.lower().endswith(_COMPRESSED):
        raise _compressed(where, "a packer")
    if where.suffix.lower() == ".tar" and where.is_file():
        return [where]
    if glob.has_magic(str(where)) and not where.exists():
        matches = sorted((Path(match) for match in glob.glob(str(where), recursive=True)), key=natural_key)
        packed = next((match for match in matches if match.name.lower().endswith(_COMPRESSED)), None)
        tars = [match for match in matches if match.suffix.lower() == ".tar"]
        if packed is not None and not tars:
            raise _compressed(packed, "a packer")
        return tars or None
    if where.suffix.lower() == ".tar":
        why = "of the range in braces, there is no such file" if expanded else "no such file"
        raise VideoError(f"{where}: {why}")
    return None


def _shards_in(folder: Path) -> list[Path] | None:
    files = [Path(place, name) for place, _, names in os.walk(folder) for name in names if not name.startswith(".")]
    tars = sorted((file for file in files if file.suffix.lower() == ".tar"), key=natural_key)
    video = next((file for file in files if file.suffix.lower() in VIDEO_SUFFIXES), None)
    packed = next((file for file in files if file.name.lower().endswith(_COMPRESSED)), None)
    if tars and video is not None:
        raise ValueError(f"{folder}: holds both tar files and videos ({video.name}); name the ones that are meant")
    if packed is not None and not tars and video is None:
        raise _compressed(packed, "a packer")
    return tars or None


def _compressed(path: Path, kind: str) -> VideoError:
    return VideoError(
        f"{path}: is compressed with {kind}, so single videos in it cannot be reached; unpack it to a plain .tar "
        "(videos do not get smaller by compressing them again)"
    )
