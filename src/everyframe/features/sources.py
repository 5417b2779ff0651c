"""Where features are read from: files, folders, patterns and shards, on disk or in an object store."""

from __future__ import annotations

import glob
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from everyframe.feature_files import RECIPE_SUFFIX, SUFFIXES, FeaturesError
from everyframe.features.video_features import VideoFeatures

SHARD_SUFFIX = ".tar"
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")


def find_sources(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[str]:
    """Feature files and shards, each once, in the order given; those of a folder or a pattern are sorted.

    paths: feature files, `.tar` shards, folders of either (at any depth; hidden ones are passed over), patterns with
        `*`, `?`, `[...]`, braces as `features-{000000..000012}.tar`; or addresses of such (s3://...), as far as fsspec
        has a package for them.

    Raises FeaturesError for what is not there, holds no features, or cannot be meant (compressed tars, folders that
    hold both shards and single files); ImportError where the package for an address is missing.
    """
    given = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    if not given:
        raise FeaturesError("no paths of features were given")
    return [source for source, _ in _found(given)]


def find_named(path: str | os.PathLike[str]) -> list[tuple[str, str]]:
    """What `find_sources` finds at one path, and the path of each from there on: "kitchen/a.npz" below a folder.

    However the folder is spelled. "There" is the folder before a pattern's first wildcard; a file has its own name.
    Raises as `find_sources` does.
    """
    return _found([path])


def is_address(source: str) -> bool:
    """Is it an address (s3://...), not a path?"""
    return re.match(r"[A-Za-z][A-Za-z0-9+.:-]*://", source) is not None


def is_shard(source: str) -> bool:
    """Is it a tar of features?"""
    return source.lower().endswith(SHARD_SUFFIX)


def load_source(source: str) -> VideoFeatures:
    """The features of one file, at a path or an address. Raises FeaturesError."""
    if not is_address(source):
        return VideoFeatures.load(source)
    with tempfile.TemporaryDirectory(prefix="everyframe-") as folder:
        name = PurePosixPath(source).name
        local = Path(folder, name)
        local.write_bytes(_fetch(source))
        if name.lower().endswith(".npy"):
            local.with_name(f"{name}.json").write_bytes(_fetch(f"{source}.json"))
        try:
            return VideoFeatures.load(local)
        except FeaturesError as error:
            raise type(error)(str(error).replace(str(local), source)) from error


def open_source(source: str | os.PathLike[str]) -> BinaryIO:
    """A file to be read from its beginning on. Raises FeaturesError, ImportError for a missing package."""
    text = os.fspath(source)
    if is_address(text):
        from everyframe.video.errors import VideoError
        from everyframe.video.remote import local_path, open_remote

        local = local_path(text)
        if local is None:
            try:
                return open_remote(text)  # type: ignore[return-value]
            except VideoError as error:
                raise FeaturesError(str(error)) from error
        text = local
    try:
        return open(text, "rb")
    except FileNotFoundError as error:
        raise FeaturesError(f"{text} does not exist; check the path") from error
    except OSError as error:
        raise FeaturesError(f"{text} cannot be read: {error.strerror or error}") from error


def _fetch(address: str) -> bytes:
    from everyframe.video.errors import VideoError

    with open_source(address) as file:
        try:
            return file.read()
        except VideoError as error:
            raise FeaturesError(str(error)) from error


def _found(paths: Iterable[str | os.PathLike[str]]) -> list[tuple[str, str]]:
    """(source, path from the folder given on), each source once."""
    from everyframe.video.find import canonical

    found: dict[str, tuple[str, str]] = {}
    for path in paths:
        for text in expand_braces(os.fspath(path)):
            pairs = _remote_sources(text) if is_address(text) else _local_sources(Path(text).expanduser())
            for source, inside in pairs:
                key = canonical(source) if is_address(source) else os.path.realpath(source)
                found.setdefault(key, (source, inside))
    return list(found.values())


def _local_sources(path: Path) -> list[tuple[str, str]]:
    text = str(path)
    if path.is_dir():
        return _below(text, _usable(text, list(_files_below(path))))
    if path.exists():
        return [(_named(text), path.name)]
    if glob.has_magic(text):
        matches = glob.glob(text, recursive=True)
        folder = re.split(r"[*?\[]", text, maxsplit=1)[0].rpartition("/")[0]
        return _below(folder, _usable(text, [match for match in matches if os.path.isfile(match)]))
    raise FeaturesError(f"{path} does not exist; check the path, or encode the videos first")


def _below(folder: str, files: list[str]) -> list[tuple[str, str]]:
    return [(file, file[len(folder) :].lstrip("/")) for file in files]


def _files_below(folder: Path) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        raise FeaturesError(f"{error.filename} cannot be read: {error.strerror}") from error

    for place, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (os.path.join(place, name) for name in files if not name.startswith("."))


def _remote_sources(address: str) -> list[tuple[str, str]]:
    last = PurePosixPath(address).name.lower()
    if last.endswith((*SUFFIXES, SHARD_SUFFIX, *_COMPRESSED)) and not glob.has_magic(address):
        return [(_named(address), PurePosixPath(address).name)]
    from everyframe.video.errors import VideoError
    from everyframe.video.find import remote_files
    from everyframe.video.remote import local_path

    if (local := local_path(address)) is not None:
        return _local_sources(Path(local))
    try:
        inside = dict(remote_files(address))
    except VideoError as error:
        raise FeaturesError(str(error)) from error
    return [(source, inside[source]) for source in _usable(address, list(inside))]


def _usable(where: str, files: list[str]) -> list[str]:
    """Shards, or single feature files, of all files that a folder or a pattern stands for."""
    shards = [file for file in files if is_shard(file)]
    single = [file for file in files if file.lower().endswith(SUFFIXES) and not file.endswith(RECIPE_SUFFIX)]
    if shards and single:
        raise FeaturesError(
            f"{where} holds both shards ({os.path.basename(min(shards))}) and single feature files "
            f"({os.path.basename(min(single))}), maybe of the same videos; name those that are meant"
        )
    if not shards and not single:
        raise FeaturesError(
            f"{where} holds no features ({', '.join((*SUFFIXES, SHARD_SUFFIX))}); encode some videos first"
        )
    return sorted(shards or single)


def _named(source: str) -> str:
    """One that was named itself. What is wrong within it is said when it is read."""
    if source.lower().endswith(_COMPRESSED):
        raise FeaturesError(f"{source} is compressed; unpack it to a plain .tar (features hardly get smaller)")
    if not source.lower().endswith((*SUFFIXES, SHARD_SUFFIX)):
        raise FeaturesError(f"{source} is not a file of features; give {', '.join(SUFFIXES)} or {SHARD_SUFFIX}")
    return source


def expand_braces(text: str) -> list[str]:
    """a-{08..10}.tar -> a-08.tar, a-09.tar, a-10.tar; {a,b} likewise; other braces stay, and so does what exists.

    Raises FeaturesError, a ValueError, for numbers that count backwards.
    """
    found = re.search(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}", text)
    if found is None or os.path.exists(text):
        return [text]
    first, last, names = found.groups()
    if names is not None:
        middles = names.split(",")
    elif int(last) < int(first):
        raise FeaturesError(f"{text} counts backwards in its braces; give {{first..last}}")
    else:
        middles = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    before, after = text[: found.start()], text[found.end() :]
    return [whole for middle in middles for whole in expand_braces(before + middle + after)]
