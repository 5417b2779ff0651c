"""Files on object stores (s3://, gs://, abfs://, ...) as seekable binary files, through fsspec."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, TypeVar

from everyframe.extras import require
from everyframe.video.errors import MissingVideoError, UnreachableError, VideoError
from everyframe.video.seekable import Seekable

_FIRST_BYTES = 1 << 18  # of a piece, wherever reading starts
_MOST_AT_ONCE = 8 << 20
_MOST_KEPT = 16 << 20

_FOR_FFMPEG = frozenset({"http", "https", "ftp", "data"})  # fsspec knows these too; FFmpeg reads them as they stream
_OBJECT_STORES = {
    "s3": ("s3fs", "s3"),
    "s3a": ("s3fs", "s3"),
    "gs": ("gcsfs", "gcs"),
    "gcs": ("gcsfs", "gcs"),
}
_AZURE = frozenset({"abfs", "abfss", "az", "adl"})
_USUAL = ("s3://", "gs://", "abfs://", "az://", "memory://")
_NO_CREDENTIALS = frozenset(
    [
        "NoCredentialsError",
        "PartialCredentialsError",
        "CredentialRetrievalError",
        "ProfileNotFound",
        "TokenRetrievalError",
        "SSOTokenLoadError",
        "UnauthorizedSSOTokenError",
        "DefaultCredentialsError",
        "RefreshError",
        "ClientAuthenticationError",
    ]
)

Result = TypeVar("Result")


def is_remote(source: object) -> bool:
    """Is it an address that fsspec opens? Those of FFmpeg's own (http, rtsp, ...) and file:// are not."""
    if not isinstance(source, str) or "://" not in source:
        return False
    if source.startswith(_USUAL):  # lists have millions of these
        return True
    scheme = _scheme(source)
    if scheme in _FOR_FFMPEG or local_path(source) is not None:
        return False
    if scheme in _OBJECT_STORES or scheme in _AZURE or "::" in source.partition("://")[0]:
        return True
    registry = require("fsspec.registry", extra="scale")
    return scheme in registry.known_implementations or scheme in registry.registry


def local_path(source: object) -> str | None:
    """The path that a file:// address names; None for anything else."""
    if isinstance(source, str) and source.lower().startswith("file://"):
        return source[len("file://") :]
    return None


def filesystem(address: str) -> tuple[Any, str]:
    """The fsspec file system of an address, and the path in it. Configured as fsspec is: environment, files.

    Nothing is asked of the server yet. Listings are never cached: what others write is seen.
    Raises ImportError, naming the extra, where the package for this kind of address is missing.
    """
    fsspec = require("fsspec.core", extra="scale")
    scheme = _scheme(address)
    options = {}
    if scheme in _OBJECT_STORES:
        module, extra = _OBJECT_STORES[scheme]
        require(module, extra=extra)
        options["use_listings_cache"] = False
    elif scheme in _AZURE:
        options["use_listings_cache"] = False
    try:
        system, path = reading(address, lambda: fsspec.url_to_fs(address, **options))
    except ImportError as error:
        raise ImportError(f"{address}: {error}") from error
    return system, path


def open_remote(address: str) -> RemoteFile:
    """A remote file, open for reading at its beginning. Raises as `RemoteFile` does."""
    return RemoteFile(address)


class RemoteFile(Seekable):
    """A remote file that is read in pieces: small ones where reading jumps, growing ones where it goes straight on.

    An index at the end of an MP4 file thus costs one small request, not the file. At most 16 MiB are kept, the
    pieces that were used last.

    Raises, here and while reading, MissingVideoError where there is no such object or no access, UnreachableError for
    what may pass (network, server, an object that was replaced meanwhile), VideoError for a folder. Time outs and
    retries are fsspec's.
    """

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.bytes_fetched = 0
        """What was asked of the server so far."""
        self._pieces: dict[int, bytes] = {}  # by where they start; the one used last is the last
        self._file: Any = None
        system, path = filesystem(address)
        if _scheme(address) in _OBJECT_STORES and "/" not in path.strip("/"):
            raise VideoError(f"{address}: is a bucket; name the video files in it")
        self._file, self.size = reading(address, lambda: _opened(system, path))

    def readinto(self, buffer: Any) -> int:
        """Fills the buffer, but at the end of the file."""
        view = memoryview(buffer).cast("B")
        done = 0
        while done < len(view) and self._position < self.size:
            start, piece = self._piece(self._position)
            part = memoryview(piece)[self._position - start :][: len(view) - done]
            view[done : done + len(part)] = part
            done += len(part)
            self._position += len(part)
        return done

    def read_at(self, start: int, count: int) -> bytes:
        """These bytes, fewer at the end of the file, in one request for no more than them; nothing is kept."""
        end = min(start + count, self.size)
        return reading(self.name, lambda: self._fetch(start, end)) if start < end else b""

    def readall(self) -> bytes:
        return self.read(max(self.size - self._position, 0)) or b""

    def close(self) -> None:
        if not self.closed:
            self._pieces.clear()
            if self._file is not None:
                self._file.close()
        super().close()

    def _piece(self, position: int) -> tuple[int, bytes]:
        """Where the piece that holds a position starts, and its bytes."""
        size = _FIRST_BYTES
        for start, piece in self._pieces.items():
            if start <= position < start + len(piece):
                self._pieces[start] = self._pieces.pop(start)
                return start, piece
            if position == start + len(piece):
                size = min(2 * len(piece), _MOST_AT_ONCE)
        # What is kept already is not fetched again.
        after = min((start for start in self._pieces if start > position), default=self.size)
        end = min(position + size, after, self.size)
        piece = reading(self.name, lambda: self._fetch(position, end))
        while self._pieces and len(piece) + sum(map(len, self._pieces.values())) > _MOST_KEPT:
            del self._pieces[next(iter(self._pieces))]
        self._pieces[position] = piece
        return position, piece

    def _fetch(self, start: int, end: int) -> bytes:
        self._file.seek(start)
        data = bytes(self._file.read(end - start))
        self.bytes_fetched += len(data)
        if len(data) != end - start:
            raise OSError(f"{len(data)} of the {end - start} bytes from {start} on came")
        return data


def reading(address: str, step: Callable[[], Result]) -> Result:
    """What a step that talks to a server gives; what goes wrong is said as `explain` says it."""
    try:
        return step()
    except (VideoError, ImportError):
        raise
    except Exception as error:  # every store brings exceptions of its own
        raise explain(address, error) from error


def explain(address: str, error: BaseException) -> VideoError:
    """One sentence for what fsspec or a store's own package raised: what is wrong, and what to do."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    scheme = _scheme(address)
    if isinstance(error, FileNotFoundError):
        bucket = "bucket" in str(error).lower() and "exist" in str(error).lower()
        return MissingVideoError(f"{address}: no such {'bucket' if bucket else 'file'}; check the address")
    if kinds & _NO_CREDENTIALS:
        return MissingVideoError(f"{address}: no credentials ({_line(error)}); {_credentials(scheme)}")
    if isinstance(error, PermissionError):
        return MissingVideoError(
            f"{address}: access denied ({_line(error)}); check the address and what the credentials may read"
        )
    if isinstance(error, IsADirectoryError):
        return VideoError(f"{address}: is a folder; name the video files in it")
    if "FileExpired" in kinds:
        return UnreachableError(f"{address}: was replaced while it was read; read it again")
    return UnreachableError(f"{address}: cannot be read ({_line(error)}); check the address, its endpoint, the network")


def _credentials(scheme: str) -> str:
    if scheme in ("s3", "s3a"):
        return (
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE (for a public bucket FSSPEC_S3_ANON=true)"
        )
    if scheme in ("gs", "gcs"):
        return "set GOOGLE_APPLICATION_CREDENTIALS (for a public bucket FSSPEC_GS_TOKEN=anon)"
    if scheme in _AZURE:
        return "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY"
    return f"see fsspec's configuration for {scheme}"


def _line(error: BaseException) -> str:
    """What an exception says, as one line of bearable length."""
    said = " ".join(str(error).split()) or type(error).__name__
    return said if len(said) <= 200 else said[:200] + "..."


def _opened(system: Any, path: str) -> tuple[Any, int]:
    # Pieces are cut here; a second cache below would only read more.
    file = system.open(path, "rb", cache_type="none")
    if (getattr(file, "details", None) or {}).get("type") == "directory":
        file.close()
        raise IsADirectoryError(path)
    size = getattr(file, "size", None)
    if not isinstance(size, int):
        size = file.seek(0, io.SEEK_END)
    return file, size


def _scheme(address: str) -> str:
    """ "s3" of "s3://bucket/x" and of "simplecache::s3://bucket/x"."""
    return address.partition("://")[0].rpartition("::")[2].lower()
