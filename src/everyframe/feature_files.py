"""The four file formats of features: bytes to header, times and embeddings and back, whole or not at all.

    .npz           embeddings, times and a JSON text; read with NumPy alone, no pickle (the default)
    .npy           the bare array for other tools; times and provenance lie beside it in NAME.npy.json
    .h5, .hdf5     datasets embeddings, times, metadata (extra "h5")
    .parquet       one row per frame: time, role, embedding; provenance in the schema (extra "parquet")

Each file carries a format version and a SHA-256 over all of its content, so damage never loads as features.
"""

import hashlib
import io
import json
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from everyframe.extras import require

FORMAT = "everyframe-features"
FORMAT_VERSION = 1
RECIPE_SUFFIX = ".recipe.npz"  # what `pipeline.recipe` writes: no features, though it ends like them
_MAGIC = {".npz": b"PK", ".npy": b"\x93NUMPY", ".h5": b"\x89HDF", ".hdf5": b"\x89HDF", ".parquet": b"PAR1"}
SUFFIXES = (".npz", ".npy", ".h5", ".hdf5", ".parquet")


class FeaturesError(ValueError):
    """Features that are inconsistent, unreadable, unwritable, or do not belong together."""


class ForeignFileError(FeaturesError):
    """A sound file that everyframe did not write, or that a later everyframe did: not to be overwritten."""


class Content(NamedTuple):
    """What a file holds, whatever its format."""

    header: dict[str, Any]
    times: NDArray[np.float64]
    embeddings: NDArray[Any]


def write_content(path: Path, header: dict[str, Any], times: NDArray[np.float64], embeddings: NDArray[Any]) -> None:
    """Write one file (or pair) in the format of the suffix; `header` is JSON-able and gets format and checksum."""
    encode, _ = _format_of(path)
    write_whole(encode(path, Content(sealed(header, times, embeddings), times, embeddings)), path)


def sealed(header: Mapping[str, Any], times: NDArray[np.float64], embeddings: NDArray[Any]) -> dict[str, Any]:
    """The header with format, version and the checksum of all content; the same whatever file it goes into."""
    complete = {"format": FORMAT, "version": FORMAT_VERSION, **header}
    return {**complete, "sha256": _digest(complete, times, embeddings)}


def read_content(path: Path) -> Content:
    """Read what `write_content` wrote, its format, version and checksum verified."""
    _, decode = _format_of(path)
    try:
        content = decode(path)
    except FeaturesError:
        raise
    except Exception as error:  # whatever a parser raises on arbitrary bytes means the same
        if _is_no_part_of_ours(path):
            raise _foreign(path) from error
        raise FeaturesError(
            f"{path} is damaged or not an everyframe features file ({type(error).__name__}: {error}); "
            "delete it and encode the video again"
        ) from error
    return checked(path, content)


def _is_no_part_of_ours(path: Path) -> bool:
    """Does an unreadable file begin as none of that format does? Then it is no file of ours that was cut short."""
    with path.open("rb") as file:
        begin = file.read(8)
    magic = _MAGIC[path.suffix.lower()]
    zeros = not begin.strip(b"\0")  # what a file system may leave of a file after a power cut
    return not zeros and begin[: len(magic)] != magic[: len(begin)]


def checked(path: Path | str, content: Content) -> Content:
    """The content, with format, version and checksum verified. path: what messages call it. Raises FeaturesError."""
    header = content.header
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise _foreign(path)
    if header.get("version") != FORMAT_VERSION:
        raise ForeignFileError(
            f"{path} has format version {header.get('version')}, this everyframe reads {FORMAT_VERSION}; "
            "upgrade everyframe or encode the video again"
        )
    if header.get("sha256") != _digest(header, content.times, content.embeddings):
        raise FeaturesError(f"{path} does not match its checksum; delete it and encode the video again")
    return content


def _digest(header: Mapping[str, Any], times: NDArray[Any], embeddings: NDArray[Any]) -> str:
    """SHA-256 over all content: header (without the checksum itself), times, shape, dtype and embeddings."""
    named = {key: value for key, value in header.items() if key != "sha256"}
    named["array"] = [list(embeddings.shape), embeddings.dtype.name, times.dtype.name]
    digest = hashlib.sha256(json.dumps(named, sort_keys=True).encode())
    digest.update(np.ascontiguousarray(times).data)
    digest.update(np.ascontiguousarray(embeddings).data)
    return digest.hexdigest()


WholeFile = tuple[Path, bytes | memoryview]
_Encode = Callable[[Path, Content], list[WholeFile]]
_Decode = Callable[[Path], Content]


def check_package(suffix: str) -> None:
    """Raise ImportError where the package of a format is missing, FeaturesError where there is no such format."""
    _format_of(Path(f"features{suffix}"))


def _format_of(path: Path) -> tuple[_Encode, _Decode]:
    """Writer and reader for the suffix, with the format's package checked to be there."""
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return _encode_npz, _decode_npz
    if suffix == ".npy":
        return _encode_npy, _decode_npy
    if suffix in (".h5", ".hdf5"):
        require("h5py", extra="h5")
        return _encode_h5, _decode_h5
    if suffix == ".parquet":
        require("pyarrow.parquet", extra="parquet")
        return _encode_parquet, _decode_parquet
    raise FeaturesError(f"{path} has no known format; name it with one of {', '.join(SUFFIXES)}")


def _foreign(path: Path | str) -> ForeignFileError:
    return ForeignFileError(f"{path} is not an everyframe features file")


def read_whole(path: Path) -> bytes:
    """All bytes of a file. Raises FeaturesError."""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise FeaturesError(f"{path} does not exist; check the path, or encode the video first") from error
    except OSError as error:
        raise FeaturesError(f"{path} cannot be read: {error.strerror or error}") from error


def write_whole(files: list[WholeFile], path: Path) -> None:
    """Write all files beside their final names, then move them in place in order; undo on any failure."""
    token = f"{os.getpid()}-{secrets.token_hex(4)}"
    parts = [(final.with_name(f".{final.name}.{token}.part"), final, data) for final, data in files]
    fresh = [final for final, _ in files if not final.exists()]
    moved: list[Path] = []
    try:
        for part, _, data in parts:
            with open(part, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())  # content before name: a power cut leaves old or new, never half
        for part, final, _ in parts:
            os.replace(part, final)
            moved.append(final)
    except BaseException as error:  # Ctrl-C too must not leave half a file
        for part, final, _ in parts:
            if part.exists():
                part.unlink()
            if final in moved and final in fresh:
                final.unlink(missing_ok=True)
        if isinstance(error, OSError):
            reason = error.strerror or error
            raise FeaturesError(f"{path} cannot be written ({reason}); nothing partial is left") from error
        raise


def _encode_npz(path: Path, content: Content) -> list[WholeFile]:
    buffer = io.BytesIO()
    metadata = np.array(json.dumps(content.header))
    np.savez(buffer, embeddings=content.embeddings, times=content.times, metadata=metadata)
    return [(path, buffer.getbuffer())]


def _decode_npz(path: Path) -> Content:
    with np.load(io.BytesIO(read_whole(path)), allow_pickle=False) as arrays:
        if "metadata" not in arrays:
            raise _foreign(path)
        if "i_features" in arrays:
            raise ForeignFileError(f"{path} is a recipe, not features; everyframe restore makes them from it")
        return Content(json.loads(str(arrays["metadata"])), arrays["times"], arrays["embeddings"])


def _sidecar(path: Path) -> Path:
    # NAME.npy.json and not NAME.json: downloaders leave a NAME.json of their own beside a video.
    return path.with_name(path.name + ".json")


def _encode_npy(path: Path, content: Content) -> list[WholeFile]:
    buffer = io.BytesIO()
    np.save(buffer, content.embeddings, allow_pickle=False)
    text = json.dumps({**content.header, "times": content.times.tolist()})
    return [(_sidecar(path), text.encode()), (path, buffer.getbuffer())]


def _decode_npy(path: Path) -> Content:
    embeddings = np.load(io.BytesIO(read_whole(path)), allow_pickle=False)
    side = _sidecar(path)
    if not side.exists():  # `save` writes it first: the array came from elsewhere, or was moved without it
        raise ForeignFileError(f"{side} does not exist; it holds the times of {path.name}: copy it along")
    header = json.loads(read_whole(side))
    return Content(header, np.asarray(header.pop("times"), dtype=np.float64), embeddings)


def _encode_h5(path: Path, content: Content) -> list[WholeFile]:
    h5py = require("h5py", extra="h5")
    # In memory first, so that a full disk is met in `write_whole` and not inside the HDF5 library.
    with h5py.File(path.name, "w", driver="core", backing_store=False, libver="latest") as file:
        file["embeddings"] = content.embeddings
        file["times"] = content.times
        file["metadata"] = json.dumps(content.header)
        file.flush()
        return [(path, file.id.get_file_image())]


def _decode_h5(path: Path) -> Content:
    h5py = require("h5py", extra="h5")
    with h5py.File(io.BytesIO(read_whole(path)), "r") as file:
        if "metadata" not in file:
            raise _foreign(path)
        header = json.loads(file["metadata"][()])
        return Content(header, file["times"][()], file["embeddings"][()])


def _encode_parquet(path: Path, content: Content) -> list[WholeFile]:
    pa, parquet = require("pyarrow", extra="parquet"), require("pyarrow.parquet", extra="parquet")
    values = pa.array(content.embeddings.reshape(-1))
    columns = {
        "time": pa.array(content.times),
        "role": pa.array(list(content.header["roles"]), pa.string()),
        "embedding": pa.FixedSizeListArray.from_arrays(values, content.embeddings.shape[1]),
    }
    table = pa.table(columns).replace_schema_metadata({"everyframe": json.dumps(content.header)})
    sink = pa.BufferOutputStream()
    # Embeddings neither compress nor repeat: dictionary and compression would only cost time.
    parquet.write_table(table, sink, use_dictionary=False, compression="none")
    return [(path, memoryview(sink.getvalue()))]


def _decode_parquet(path: Path) -> Content:
    pa, parquet = require("pyarrow", extra="parquet"), require("pyarrow.parquet", extra="parquet")
    table = parquet.read_table(pa.BufferReader(read_whole(path)))
    if b"everyframe" not in (table.schema.metadata or {}):
        raise _foreign(path)
    header = json.loads(table.schema.metadata[b"everyframe"])
    if "".join(table["role"].to_pylist()) != header["roles"]:
        raise FeaturesError(f"{path} is inconsistent: its role column differs from its header; encode again")
    dim = table.schema.field("embedding").type.list_size
    rows = np.concatenate(
        [np.empty(0, table.schema.field("embedding").type.value_type.to_pandas_dtype())]
        + [chunk.flatten().to_numpy() for chunk in table["embedding"].chunks]
    )
    return Content(header, table["time"].to_numpy().copy(), rows.reshape(-1, dim))
