"""Turn what a user types (files, folders, globs, a text list) into a list of videos."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from everyframe.video.errors import NoVideosError, VideoError
from everyframe.video.remote import filesystem, reading

_MAGIC = "*?["
_SAME_STORE = {"s3a": "s3", "gcs": "gs"}
_ALIASES = tuple(f"{scheme}://" for scheme in _SAME_STORE)
VIDEO_SUFFIXES = frozenset(
    [
        ".3g2",
        ".3gp",
        ".asf",
        ".avi",
        ".divx",
        ".dv",
        ".f4v",
        ".flv",
        ".gif",
        ".h264",
        ".hevc",
        ".ivf",
        ".m1v",
        ".m2ts",
        ".m2v",
        ".m4v",
        ".mjpeg",
        ".mjpg",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpeg",
        ".mpg",
        ".mts",
        ".mxf",
        ".ogm",
        ".ogv",
        ".qt",
        ".rm",
        ".rmvb",
        ".ts",
        ".vob",
        ".webm",
        ".wmv",
        ".y4m",
    ]
)
IMAGE_SUFFIXES = frozenset([".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"])


def find_videos(paths: Iterable[str | Path], *, failures: list[VideoError] | None = None) -> list[Path]:
    """Videos named by files, folders, glob patterns or `.txt` lists, in a stable order without duplicates.

    - a file is taken as it is, whatever its extension (a `.txt` file is a list: one path per line, `#` starts
      a comment; relative lines are looked up from here, then from the list's own folder);
    - a folder is searched recursively for video extensions, in natural order (clip2 before clip10), leaving
      out hidden files; a folder that holds no video but at least two numbered images (frame_001.jpg, ...) is
      itself one video;
    - a pattern (`clips/**/*.mp4`) takes what it matches.

    Raises VideoError for a path that does not exist or a URL (pass those straight to the functions that open
    videos) and NoVideosError for a folder, pattern or list without videos. With a list as `failures` these are
    collected there instead, and the other paths, or lines of a list, still count.
    """
    if isinstance(paths, str | Path):
        paths = [paths]
    found: dict[str, Path] = {}
    for video in _expand_all(paths, None, failures):
        found.setdefault(os.path.realpath(video), video)
    if not found and not failures:
        raise NoVideosError("no video given: name files, folders, a pattern or a .txt list")
    return list(found.values())


def natural_key(path: str | Path) -> list[tuple[int, int, str]]:
    """Sort key under which frame2 comes before frame10."""
    parts = re.split(r"(\d+)", str(path).lower())
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts]


def list_images(folder: Path) -> list[Path]:
    """Numbered images of one folder (not its subfolders), in natural order, of the most common extension."""
    by_suffix: dict[str, list[Path]] = {}
    for path in folder.iterdir():
        numbered = path.stem[-1:].isdecimal() and not path.name.startswith(".")
        if numbered and path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
            by_suffix.setdefault(path.suffix.lower(), []).append(path)
    largest = max(by_suffix.values(), key=len, default=[])
    return sorted(largest, key=natural_key)


def _expand_all(paths: Iterable[str | Path], from_list: Path | None, failures: list[VideoError] | None) -> list[Path]:
    videos: list[Path] = []
    for path in paths:
        try:
            videos += _expand(path, from_list, failures)
        except VideoError as error:
            if failures is None:
                raise
            failures.append(error)
    return videos


def _expand(path: str | Path, from_list: Path | None, failures: list[VideoError] | None) -> list[Path]:
    text = os.fspath(path)
    if "://" in text:
        raise VideoError(f"{text}: is a URL, not a file to look for; download it or open it directly")
    where = Path(text).expanduser()
    if from_list is not None and not where.exists() and not where.is_absolute():
        where = from_list.parent / where
    if where.is_dir():
        return _videos_in(where)
    if where.is_file():
        is_list = where.suffix.lower() == ".txt" and from_list is None
        return _read_list(where, failures) if is_list else [where]
    if glob.has_magic(str(where)):
        return _match(str(where))
    origin = f" (named in {from_list})" if from_list is not None else ""
    raise VideoError(f"{text}: no such file or folder{origin}")


def walk_videos(folder: Path, refuse: Callable[[OSError], None]) -> Iterator[Path]:
    """Videos below a folder, and folders that are one video, folder by folder in natural order; see `find_videos`.

    refuse: is told of each folder that cannot be read.
    """
    for place, names, files in os.walk(folder, onerror=refuse):
        names[:] = sorted((name for name in names if not name.startswith(".")), key=lambda n: natural_key(Path(n)))
        here = [Path(place, name) for name in files if _is_video(name)]
        if not here and len(list_images(Path(place))) >= 2:
            here = [Path(place)]
        yield from sorted(here, key=natural_key)


def find_remote(address: str) -> list[str]:
    """Videos at an address that `is_remote`: itself, all below a folder or bucket, or what a pattern matches.

    An address that ends like a video is taken as it is; nothing is asked of the server. Hidden files are left out.
    Raises MissingVideoError and UnreachableError as `open_remote` does, NoVideosError where there is no video.
    """
    if _is_video(address) and not any(letter in address for letter in _MAGIC):
        filesystem(address)  # which tells of a missing package
        return [address]
    files = remote_files(address)
    if [each for each, _ in files] == [address]:
        return [address]  # a file after all, whatever it is called
    videos = [each for each, inside in files if _is_video(inside)]
    if not videos:
        raise NoVideosError(f"{address}: no video there; check the address")
    return sorted(videos, key=natural_key)


def remote_files(address: str) -> list[tuple[str, str]]:
    """Files below an address that `is_remote`, or that a pattern matches: each one's address, and its path from there.

    "There" is the folder given, or the one before a pattern's first wildcard; for a file it is its name. Addresses
    begin as the given one does (s3a://, az://container@account). Hidden files are left out.
    Raises MissingVideoError and UnreachableError as `open_remote` does.
    """
    system, path = filesystem(address)
    if any(letter in address for letter in _MAGIC) and not reading(address, lambda: system.exists(path)):
        folder = re.split(r"[*?\[]", address, maxsplit=1)[0].rpartition("/")[0] + "/"
        found = reading(address, lambda: system.glob(path))
    else:
        folder = address.rstrip("/") + "/"
        found = reading(address, lambda: system.find(path))
        if found == [path]:
            return [(address, path.rpartition("/")[2])]
    # What comes back lacks what is left of the address before the path: the scheme, an account.
    start = len(filesystem(folder)[1].rstrip("/")) + 1
    inside = [each[start:] for each in found if each[start:]]  # stores keep empty objects in place of folders
    return [(folder + each, each) for each in inside if not any(part[:1] == "." for part in each.split("/"))]


def canonical(address: str) -> str:
    """One spelling of the addresses of an object: s3:// for s3a://, gs:// for gcs://."""
    if not address.startswith(_ALIASES):
        return address
    scheme, _, rest = address.partition("://")
    return f"{_SAME_STORE[scheme]}://{rest}"


def _is_video(name: str) -> bool:
    name = name.rpartition("/")[2]
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES


def _videos_in(folder: Path) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise VideoError(f"{error.filename}: cannot be searched for videos ({error.strerror})") from error

    videos = sorted(walk_videos(folder, refuse), key=natural_key)
    if not videos:
        raise NoVideosError(f"{folder}: no video in this folder, nor in the folders inside it")
    return videos


def _match(pattern: str) -> list[Path]:
    matches = sorted((Path(match) for match in glob.glob(pattern, recursive=True)), key=natural_key)
    videos: list[Path] = []
    for match in matches:
        if (match.is_file() and match.suffix.lower() in VIDEO_SUFFIXES) or (
            match.is_dir() and len(list_images(match)) >= 2
        ):
            videos.append(match)
    if not videos:
        raise NoVideosError(f"{pattern}: the pattern matches no video")
    return videos


def _read_list(path: Path, failures: list[VideoError] | None) -> list[Path]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise VideoError(f"{path}: is not a list of paths in UTF-8 ({error.reason})") from error
    entries = [line.strip() for line in text.splitlines()]
    entries = [entry for entry in entries if entry and not entry.startswith("#")]
    if not entries:
        raise NoVideosError(f"{path}: the list names no video")
    return _expand_all(entries, path, failures)
