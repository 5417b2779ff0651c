"""`VideoFeatures`: one embedding per sampled frame, its true time, and where it came from.

Four file formats hold the same content and are chosen by suffix:

    .npz           embeddings, times and a JSON text; read with NumPy alone, no pickle (the default)
    .npy           the bare array for other tools; times and provenance lie beside it in NAME.npy.json
    .h5, .hdf5     datasets embeddings, times, metadata (extra "h5")
    .parquet       one row per frame: time, role, embedding; provenance in the schema (extra "parquet")

Each file carries a format version and a SHA-256 over all of its content, so damage never loads as features.
"""

import hashlib
import io
import json
import math
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from everyframe.extras import require

FORMAT = "everyframe-features"
FORMAT_VERSION = 1
ROLES = "IPC"  # full frame, reduced frame, copied from another frame
SUFFIXES = (".npz", ".npy", ".h5", ".hdf5", ".parquet")
# Two times closer than this are one: presentation times are rationals stored in float64.
_TIME_EPSILON = 1e-6


class FeaturesError(ValueError):
    """Features that are inconsistent, unreadable, unwritable, or do not belong together."""


class ForeignFileError(FeaturesError):
    """A sound file that everyframe did not write, or that a later everyframe did: not to be overwritten."""


def as_array(values: Any) -> NDArray[Any]:
    """A NumPy array from an array, a sequence or a torch tensor (any device; bfloat16 becomes float32)."""
    if hasattr(values, "detach"):  # a tensor, recognised without importing torch
        values = values.detach().cpu()
        values = (values.float() if str(values.dtype) == "torch.bfloat16" else values).numpy()
    return np.asarray(values)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class VideoFeatures:
    """Frame embeddings of one video. Checks itself; FeaturesError says in one sentence what does not fit.

    times: float64 [T], seconds, strictly increasing: the frames' true presentation times. T may be 0.
    embeddings: float32 or float16 [T, dim], finite; a torch tensor is taken too.
    roles: one letter per frame, what the encoder did: I (full), P (reduced) or C (copied).
    video, model, settings: provenance, anything JSON can hold. This class reads video["duration_seconds"],
        settings["fps"] and, to compare spaces, the model's id, weights_sha256, projected and preprocess.
    end_seconds: where the last frame stops being shown; None leaves it to `frame_ends`.
    """

    times: NDArray[np.float64]
    embeddings: NDArray[Any]
    roles: str
    video: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    end_seconds: float | None = None

    def __post_init__(self) -> None:
        embeddings = as_array(self.embeddings)
        embeddings = embeddings.astype(embeddings.dtype.newbyteorder("="), copy=False)
        if embeddings.ndim != 2 or embeddings.shape[1] == 0:
            raise FeaturesError(f"embeddings must have shape [frames, dim], got {list(embeddings.shape)}")
        if embeddings.dtype not in (np.float32, np.float16):
            raise FeaturesError(f"embeddings must be float32 or float16, got {embeddings.dtype}")
        for first in range(0, len(embeddings), 8192):  # blocks: no mask as long as the video
            finite = np.isfinite(embeddings[first : first + 8192]).all(axis=1)
            if not finite.all():
                row = first + int(np.argmin(finite))
                raise FeaturesError(f"embeddings must be finite, but frame {row} holds a NaN or an infinity")
        times = as_array(self.times).astype(np.float64)
        if times.ndim != 1 or len(times) != len(embeddings):
            raise FeaturesError(
                f"times must be one number per frame ({len(embeddings)}), got shape {list(times.shape)}"
            )
        if not np.isfinite(times).all():
            raise FeaturesError("times must be finite seconds, got a NaN or an infinity")
        if (np.diff(times) <= 0).any():
            row = int(np.argmax(np.diff(times) <= 0))
            raise FeaturesError(
                f"times must increase, but frame {row + 1} at {times[row + 1]} s follows {times[row]} s"
            )
        if not isinstance(self.roles, str) or len(self.roles) != len(times):
            raise FeaturesError(f"roles must be one letter per frame, got {len(self.roles)} for {len(times)}")
        if foreign := sorted(set(self.roles) - set(ROLES)):
            raise FeaturesError(f"roles may hold only the letters {ROLES}, got {''.join(foreign)!r}")
        if self.end_seconds is not None and not (
            math.isfinite(self.end_seconds) and (not len(times) or self.end_seconds >= times[-1])
        ):
            raise FeaturesError(f"end_seconds must not lie before the last frame, got {self.end_seconds}")
        object.__setattr__(self, "embeddings", np.ascontiguousarray(embeddings))
        object.__setattr__(self, "times", np.ascontiguousarray(times))
        for name in ("video", "model", "settings"):
            object.__setattr__(self, name, _plain(getattr(self, name), name))

    def __repr__(self) -> str:
        shown = self.roles if len(self.roles) <= 12 else f"{self.roles[:12]}..."
        span = f"{self.times[0]:.2f} to {self.times[-1]:.2f} s" if self.num_frames else "no frames"
        return (
            f"VideoFeatures({Path(str(self.video.get('path', '?'))).name}: {self.num_frames} x {self.dim} "
            f"{self.embeddings.dtype}, {span}, roles {shown!r}, model {self.model.get('id', '?')})"
        )

    @property
    def num_frames(self) -> int:
        """T, the number of frames."""
        return len(self.times)

    @property
    def dim(self) -> int:
        """Width of an embedding."""
        return int(self.embeddings.shape[1])

    @property
    def frame_ends(self) -> NDArray[np.float64]:
        """float64 [T], seconds: frame k is shown in [times[k], frame_ends[k]).

        A frame ends where the next begins. The last ends at `end_seconds`, or else at the video's duration
        where that is known and lies behind it, or else one median step (a lone frame: 1/fps) after it began.
        """
        ends = np.append(self.times[1:], 0.0)[: self.num_frames]
        if not self.num_frames:
            return ends
        last = float(self.times[-1])
        duration = _number(self.video, "duration_seconds", "video")
        if self.end_seconds is not None:
            ends[-1] = self.end_seconds
        elif duration is not None and duration > last:
            ends[-1] = duration
        elif self.num_frames > 1:
            ends[-1] = last + float(np.median(np.diff(self.times)))
        else:
            fps = _number(self.settings, "fps", "settings")
            ends[-1] = last + (1.0 / fps if fps else 0.0)
        return ends

    @cached_property
    def norms(self) -> NDArray[np.float32]:
        """float32 [T], the length of every row. Raises FeaturesError for a row of zeros."""
        norms = np.empty(self.num_frames, dtype=np.float32)
        for first in range(0, self.num_frames, 8192):  # blocks: float16 widens without a second copy
            block = self.embeddings[first : first + 8192].astype(np.float32, copy=False)
            norms[first : first + 8192] = np.sqrt(np.einsum("td,td->t", block, block))
        if not norms.all():
            row = int(np.argmin(norms))
            raise FeaturesError(f"frame {row} ({self.times[row]} s) is all zeros and cannot be normalised")
        return norms

    def normalised(self) -> NDArray[np.float32]:
        """float32 [T, dim], rows of length one. Raises FeaturesError for a row of zeros."""
        return self.embeddings.astype(np.float32) / self.norms[:, None]

    def slice(self, start: float, end: float) -> "VideoFeatures":
        """The frames whose time lies in [start, end) seconds; times stay those of the whole video."""
        if not (math.isfinite(start) and math.isfinite(end) and end >= start):
            raise FeaturesError(f"a slice needs finite seconds with end >= start, got {start} and {end}")
        first, past = np.searchsorted(self.times, [start, end])
        return replace(
            self,
            times=self.times[first:past],
            embeddings=self.embeddings[first:past],
            roles=self.roles[first:past],
            settings={**self.settings, "slice_seconds": [float(start), float(end)]},
            end_seconds=min(float(self.frame_ends[past - 1]), float(end)) if past > first else None,
        )

    def resample(self, fps: float, *, how: Literal["mean", "nearest"] = "mean") -> "VideoFeatures":
        """The same span on the regular times k / fps, without encoding anything again.

        "mean" averages the frames that begin in [k / fps, (k + 1) / fps), or takes the nearest where none
        does; "nearest" takes the frame closest in time (the earlier of two). Roles are those of the nearest
        frame. Where model["normalised"] is true the rows are unit vectors again. settings get the new fps
        and a record of the change.
        """
        if not (math.isfinite(fps) and fps > 0):
            raise FeaturesError(f"fps must be a positive number, got {fps}")
        if how not in ("mean", "nearest"):
            raise FeaturesError(f'how must be "mean" or "nearest", got {how!r}')
        record = {"fps": fps, "resampled": {"from_fps": self.settings.get("fps"), "how": how}}
        settings = {**self.settings, **record}
        if not self.num_frames:
            return replace(self, settings=settings)
        end = float(self.frame_ends[-1])
        first = math.floor((self.times[0] + _TIME_EPSILON) * fps)
        last = max(first, math.ceil((end - _TIME_EPSILON) * fps) - 1)
        times = np.arange(first, last + 1) / fps
        nearest = _nearest(self.times, times)
        rows = self.embeddings[nearest].astype(np.float32)
        if how == "mean":
            bounds = np.searchsorted(self.times, np.arange(first, last + 2) / fps - _TIME_EPSILON)
            filled = np.flatnonzero(np.diff(bounds))
            sums = np.add.reduceat(self.embeddings, bounds[filled], axis=0, dtype=np.float32)
            rows[filled] = sums / np.diff(bounds)[filled, None]
        resampled = replace(
            self,
            times=times,
            embeddings=rows,
            roles="".join(self.roles[index] for index in nearest),
            settings=settings,
            end_seconds=max(end, float(times[-1])),
        )
        if how == "mean" and self.model.get("normalised"):
            rows = resampled.normalised()
        return replace(resampled, embeddings=rows.astype(self.embeddings.dtype))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the features in the format of the suffix, whole or not at all, and return the path.

        Raises FeaturesError where the suffix is unknown or the file cannot be written (full disk, missing or
        read-only folder), ImportError where a format's package is missing. No failure, not even Ctrl-C,
        leaves a partial file. Of the .npy pair the array comes last: where it exists, the save was complete.
        """
        path = Path(path)
        encode, _ = _format_of(path)
        header = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "roles": self.roles,
            "video": self.video,
            "model": self.model,
            "settings": self.settings,
            "end_seconds": self.end_seconds,
        }
        header["sha256"] = _digest(header, self.times, self.embeddings)
        _write_whole(encode(path, _Content(header, self.times, self.embeddings)), path)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "VideoFeatures":
        """Read and check a file that `save` wrote.

        Raises FeaturesError where it is missing, not a features file, cut short, altered, or of another
        format version; ImportError where the format's package is missing.
        """
        path = Path(path)
        _, decode = _format_of(path)
        try:
            header, times, embeddings = decode(path)
        except FeaturesError:
            raise
        except Exception as error:  # whatever a parser raises on arbitrary bytes means the same
            raise FeaturesError(
                f"{path} is damaged or not an everyframe features file ({type(error).__name__}: {error}); "
                "delete it and encode the video again"
            ) from error
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise _foreign(path)
        if header.get("version") != FORMAT_VERSION:
            raise ForeignFileError(
                f"{path} has format version {header.get('version')}, this everyframe reads {FORMAT_VERSION}; "
                "upgrade everyframe or encode the video again"
            )
        if header.get("sha256") != _digest(header, times, embeddings):
            raise FeaturesError(f"{path} does not match its checksum; delete it and encode the video again")
        try:
            content = {name: header[name] for name in ("roles", "video", "model", "settings", "end_seconds")}
            return cls(times=times, embeddings=embeddings, **content)
        except (KeyError, TypeError, FeaturesError) as error:
            raise FeaturesError(f"{path} is inconsistent: {error}; encode the video again") from error


def space_of(features: VideoFeatures) -> dict[str, Any]:
    """What `check_same_space` compares: a small dict that stays when the embeddings are let go."""
    return {
        "video": features.video.get("path", "the first video"),
        "model id": features.model.get("id"),  # first: where several fields differ, this one says why
        "dim": features.dim,
        "model weights_sha256": features.model.get("weights_sha256"),
        "model projected": features.model.get("projected"),
        "model preprocess": features.model.get("preprocess"),
    }


def check_same_space(space: Mapping[str, Any], features: VideoFeatures) -> None:
    """Raise FeaturesError, naming the field, where `features` do not lie in the space `space_of` gave."""
    other = space_of(features)
    # The same weights may be known by a hub id here and by a folder there.
    same_weights = None is not space["model weights_sha256"] == other["model weights_sha256"]
    for name in space:
        if name == "video" or (name == "model id" and same_weights):
            continue
        if space[name] != other[name]:
            raise FeaturesError(
                f"features of different origin cannot be mixed: {name} is {space[name]!r} for "
                f"{space['video']} but {other[name]!r} for {other['video']}; encode all videos with one model"
            )


class _Content(NamedTuple):
    """What a file holds, whatever its format."""

    header: dict[str, Any]
    times: NDArray[np.float64]
    embeddings: NDArray[Any]


def _plain(value: Any, name: str) -> dict[str, Any]:
    """A copy as JSON would give it back (tuples become lists), so a saved file equals what was saved."""
    if not isinstance(value, Mapping):
        raise FeaturesError(f"{name} must be a dict, got {type(value).__name__}")
    try:
        return json.loads(json.dumps(dict(value), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise FeaturesError(f"{name} must hold only what JSON can: {error}") from error


def _number(values: Mapping[str, Any], key: str, owner: str) -> float | None:
    value = values.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise FeaturesError(f'{owner}["{key}"] must be a number or None, got {value!r}')
    return float(value)


def _nearest(times: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.intp]:
    """Index of the time closest to each wanted one; the earlier of two that are equally close."""
    after = np.clip(np.searchsorted(times, wanted), 0, len(times) - 1)
    before = np.maximum(after - 1, 0)
    return np.where(wanted - times[before] <= times[after] - wanted + _TIME_EPSILON, before, after)


def _digest(header: Mapping[str, Any], times: NDArray[Any], embeddings: NDArray[Any]) -> str:
    """SHA-256 over all content: header (without the checksum itself), times, shape, dtype and embeddings."""
    named = {key: value for key, value in header.items() if key != "sha256"}
    named["array"] = [list(embeddings.shape), embeddings.dtype.name, times.dtype.name]
    digest = hashlib.sha256(json.dumps(named, sort_keys=True).encode())
    digest.update(np.ascontiguousarray(times).data)
    digest.update(np.ascontiguousarray(embeddings).data)
    return digest.hexdigest()


_File = tuple[Path, bytes | memoryview]
_Encode = Callable[[Path, _Content], list[_File]]
_Decode = Callable[[Path], _Content]


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


def _foreign(path: Path) -> ForeignFileError:
    return ForeignFileError(f"{path} is not an everyframe features file")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise FeaturesError(f"{path} does not exist; check the path, or encode the video first") from error
    except OSError as error:
        raise FeaturesError(f"{path} cannot be read: {error.strerror or error}") from error


def _write_whole(files: list[_File], path: Path) -> None:
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


def _encode_npz(path: Path, content: _Content) -> list[_File]:
    buffer = io.BytesIO()
    metadata = np.array(json.dumps(content.header))
    np.savez(buffer, embeddings=content.embeddings, times=content.times, metadata=metadata)
    return [(path, buffer.getbuffer())]


def _decode_npz(path: Path) -> _Content:
    with np.load(io.BytesIO(_read(path)), allow_pickle=False) as arrays:
        if "metadata" not in arrays:
            raise _foreign(path)
        return _Content(json.loads(str(arrays["metadata"])), arrays["times"], arrays["embeddings"])


def _sidecar(path: Path) -> Path:
    # NAME.npy.json and not NAME.json: downloaders leave a NAME.json of their own beside a video.
    return path.with_name(path.name + ".json")


def _encode_npy(path: Path, content: _Content) -> list[_File]:
    buffer = io.BytesIO()
    np.save(buffer, content.embeddings, allow_pickle=False)
    text = json.dumps({**content.header, "times": content.times.tolist()})
    return [(_sidecar(path), text.encode()), (path, buffer.getbuffer())]


def _decode_npy(path: Path) -> _Content:
    embeddings = np.load(io.BytesIO(_read(path)), allow_pickle=False)
    side = _sidecar(path)
    if not side.exists():  # `save` writes it first: the array came from elsewhere, or was moved without it
        raise ForeignFileError(f"{side} does not exist; it holds the times of {path.name}: copy it along")
    header = json.loads(_read(side))
    return _Content(header, np.asarray(header.pop("times"), dtype=np.float64), embeddings)


def _encode_h5(path: Path, content: _Content) -> list[_File]:
    h5py = require("h5py", extra="h5")
    # In memory first, so that a full disk is met in `_write_whole` and not inside the HDF5 library.
    with h5py.File(path.name, "w", driver="core", backing_store=False, libver="latest") as file:
        file["embeddings"] = content.embeddings
        file["times"] = content.times
        file["metadata"] = json.dumps(content.header)
        file.flush()
        return [(path, file.id.get_file_image())]


def _decode_h5(path: Path) -> _Content:
    h5py = require("h5py", extra="h5")
    with h5py.File(io.BytesIO(_read(path)), "r") as file:
        if "metadata" not in file:
            raise _foreign(path)
        header = json.loads(file["metadata"][()])
        return _Content(header, file["times"][()], file["embeddings"][()])


def _encode_parquet(path: Path, content: _Content) -> list[_File]:
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


def _decode_parquet(path: Path) -> _Content:
    pa, parquet = require("pyarrow", extra="parquet"), require("pyarrow.parquet", extra="parquet")
    table = parquet.read_table(pa.BufferReader(_read(path)))
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
    return _Content(header, table["time"].to_numpy().copy(), rows.reshape(-1, dim))
