"""The tables of a library, and how features become their rows.

about         key, value: the format and its version
collections   one model and one way of encoding each
videos        a row per video and collection; its `state` alone decides whether the video exists
frames_ID     of one collection: video, time, kind, embedding; a video's rows are appended at once, in time order
thumbnails    video, time, jpeg
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from everyframe.extras import require
from everyframe.features import FeaturesError, VideoFeatures, space_of
from everyframe.library.errors import UnusableVideoError
from everyframe.library.moments import video_means
from everyframe.library.records import Thumbnail

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = "everyframe-library"
VERSION = 1
ABOUT, COLLECTIONS, VIDEOS, THUMBNAILS, FRAMES = "about", "collections", "videos", "thumbnails", "frames_"
ADDING, READY, REMOVED = "adding", "ready", "removed"
# Settings that say nothing about how features were made, or that differ from video to video.
_OWN_SETTINGS = (
    "damage",
    "motion_source",
    "gflops_per_frame",
    "gflops_share",
    "version",
    "stored_dtype",
    "start",
    "end",
    "slice_seconds",
    "segments",
)


def table_schema(name: str, dim: int = 0) -> pa.Schema:
    """The Arrow schema of a table; dim: of the embeddings of a frames table."""
    pa = require("pyarrow", extra="library")
    text, number, real, moment = pa.string(), pa.int64(), pa.float64(), pa.timestamp("us", "UTC")
    if name.startswith(FRAMES):
        columns = {"video": number, "time": real, "kind": text, "embedding": pa.list_(pa.float16(), dim)}
    elif name == THUMBNAILS:
        columns = {"video": number, "time": real, "jpeg": pa.binary()}
    elif name == ABOUT:
        columns = {"key": text, "value": text}
    elif name == COLLECTIONS:
        columns = {"id": text, "label": text, "model": text, "settings": text, "dim": pa.int32(), "created": moment}
    else:
        columns = {
            "id": number,
            "collection": text,
            "state": text,
            "path": text,
            "name": text,
            "fingerprint": text,
            "size_bytes": number,
            "duration": real,
            "start": real,
            "last": real,
            "end": real,
            "codec": text,
            "container": text,
            "width": pa.int32(),
            "height": pa.int32(),
            "fps": real,
            "num_frames": number,
            "added": moment,
            "date": moment,
            "mean": pa.binary(),  # float32 [dim]
            "smoothed_mean": pa.binary(),
            "content": text,  # hash of times, roles and embeddings
            "roles": text,
            "provenance": text,
        }
    return pa.schema([pa.field(key, kind) for key, kind in columns.items()])


@dataclass(frozen=True)
class CollectionKey:
    """Which collection features belong to. label: the model, the encoder and the rate, for people."""

    id: str
    label: str
    model: dict[str, Any]
    settings: dict[str, Any]
    dim: int


def collection_key(model: dict[str, Any], settings: dict[str, Any], dim: int) -> CollectionKey:
    """The collection of features with this `VideoFeatures.model` and `.settings`, which may be those of none yet."""
    one = np.zeros((1, dim), np.float32)
    probe = VideoFeatures(times=np.zeros(1), embeddings=one, roles="I", model=model, settings=settings)
    space = {name: value for name, value in space_of(probe).items() if name != "video"}
    if space["model weights_sha256"] is not None:  # the same weights may be known by a hub id here and a folder there
        del space["model id"]
    shared = {name: value for name, value in probe.settings.items() if name not in _OWN_SETTINGS}
    text = json.dumps(_plain_numbers({"space": space, "settings": shared}), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return CollectionKey(digest, _label(probe.model, shared), probe.model, shared, dim)


def _plain_numbers(value: Any) -> Any:
    """3.0 and 3 are one rate."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: _plain_numbers(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain_numbers(each) for each in value]
    return value


def _label(model: dict[str, Any], settings: dict[str, Any]) -> str:
    """ "bundled · reuse adaptive · 3 fps" """
    name = str(model.get("id") or "unknown model")
    parts = [os.path.basename(name.rstrip("/")) if os.path.isabs(name) else name]
    encoder = str(settings.get("encoder") or "")
    if settings.get("plan") == "adaptive":
        encoder += " adaptive"
    elif "interleave" in settings:
        encoder += f" N={settings['interleave']}"
    if settings.get("residual"):
        encoder += " + token"
    if encoder.strip():
        parts.append(encoder.strip())
    for key, unit in (("clip_seconds", "s clips"), ("fps", "fps")):
        if isinstance(settings.get(key), (int, float)):
            parts.append(f"{settings[key]:g} {unit}")
            break
    return " · ".join(parts)


@dataclass(frozen=True)
class Prepared:
    """Features of one video as rows: checked, in float16, and with their hash. `row` lacks id and state."""

    key: CollectionKey
    features: VideoFeatures
    thumbnails: tuple[Thumbnail, ...]
    row: dict[str, Any]

    @property
    def path(self) -> str:
        return str(self.row["path"])

    @property
    def names(self) -> set[tuple[str, str]]:
        """What tells this video from others; two that share one of these are the same."""
        fingerprint = self.row["fingerprint"]
        return {("path", self.path)} | ({("fingerprint", fingerprint)} if fingerprint else set())


def prepare(feats: VideoFeatures, thumbnails: Sequence[Thumbnail] = ()) -> Prepared:
    """Raises UnusableVideoError for features that lack a path or frames, or have rows that float16 cannot hold."""
    if not isinstance(feats, VideoFeatures):
        raise TypeError(f"features are added, not {type(feats).__name__}; see encode_video, VideoFeatures.load")
    path = feats.video.get("path")
    if not isinstance(path, str) or not path:
        raise UnusableVideoError('features do not say which video they are of: video["path"] is missing')
    if not feats.num_frames:
        raise UnusableVideoError(f"{path} has no frames to search; leave it out, or encode more of it")
    with np.errstate(over="ignore"):
        rows = feats.embeddings.astype(np.float16)
    try:
        settings = {**feats.settings}
        if "stored_dtype" in settings:
            settings["stored_dtype"] = "float16"
        half = replace(feats, embeddings=rows, settings=settings)
        half.norms  # noqa: B018, checks that no row is zero
        mean, smoothed_mean = video_means(half)
        key = collection_key(half.model, half.settings, half.dim)
    except FeaturesError as error:
        hint = " in float16; normalise the rows, or encode the video again"
        raise UnusableVideoError(f"{path}: {error}{hint}") from error
    row = _facts(half, path) | {
        "collection": key.id,
        "mean": mean.astype("<f4").tobytes(),
        "smoothed_mean": smoothed_mean.astype("<f4").tobytes(),
        "content": content_hash(half),
        "roles": half.roles,
        "provenance": _own_provenance(half),
    }
    return Prepared(key, half, tuple(thumbnails), row)


def _facts(feats: VideoFeatures, path: str) -> dict[str, Any]:
    video = feats.video
    size = _of_type(video.get("size_bytes"), int)
    now = datetime.now(timezone.utc)
    duration, fps = (_of_type(video.get(key), (int, float)) for key in ("duration_seconds", "fps"))
    return {
        "path": path,
        "name": path if "://" in path else os.path.basename(path.rstrip("/")) or path,
        "fingerprint": _of_type(video.get("fingerprint"), str),
        "size_bytes": size,
        "duration": None if duration is None else float(duration),
        "start": float(feats.times[0]),
        "last": float(feats.times[-1]),
        "end": float(feats.frame_ends[-1]),
        "codec": _of_type(video.get("codec"), str),
        "container": _of_type(video.get("container"), str),
        "width": _of_type(video.get("width"), int),
        "height": _of_type(video.get("height"), int),
        "fps": None if fps is None else float(fps),
        "num_frames": feats.num_frames,
        "added": now,
        "date": _changed(path, size) or now,
    }


def _of_type(value: Any, kinds: Any) -> Any:
    """Provenance may hold anything; columns hold one type."""
    return value if isinstance(value, kinds) and not isinstance(value, bool) else None


def _changed(path: str, size: int | None) -> datetime | None:
    """When the file was last changed, if it is still the one that was read."""
    if "://" in path:
        return None
    try:
        facts = os.stat(path)
    except OSError:
        return None
    if size is not None and facts.st_size != size:
        return None
    return datetime.fromtimestamp(facts.st_mtime, timezone.utc)


def _own_provenance(feats: VideoFeatures) -> str:
    own = {name: value for name, value in feats.settings.items() if name in _OWN_SETTINGS}
    facts = {"video": feats.video, "settings": own, "model": feats.model, "end_seconds": feats.end_seconds}
    return json.dumps(facts, separators=(",", ":"))


def without_shared_model(own: str, model: dict[str, Any]) -> str:
    """The same provenance, leaving out a model that is exactly the collection's: nearly always."""
    facts = json.loads(own)
    if facts["model"] == model:
        facts["model"] = None
    return json.dumps(facts, separators=(",", ":"))


def content_hash(feats: VideoFeatures) -> str:
    """Over times, roles and float16 embeddings: equal where nothing that is searched differs, and a checksum."""
    digest = hashlib.sha256(f"{list(feats.embeddings.shape)} {feats.end_seconds} {feats.roles}".encode())
    digest.update(np.ascontiguousarray(feats.times).data)
    digest.update(np.ascontiguousarray(feats.embeddings).data)
    return digest.hexdigest()[:32]


def frame_rows(video: int, feats: VideoFeatures) -> pa.Table:
    """Rows of a frames table. feats: with float16 embeddings."""
    pa = require("pyarrow", extra="library")
    columns = [
        pa.array(np.full(feats.num_frames, video, np.int64)),
        pa.array(feats.times),
        pa.array(np.frombuffer(feats.roles.encode("ascii"), "S1").astype("U1")),
        pa.FixedSizeListArray.from_arrays(pa.array(feats.embeddings.reshape(-1)), feats.dim),
    ]
    return pa.Table.from_arrays(columns, schema=table_schema(FRAMES, feats.dim))


def thumbnail_rows(video: int, thumbnails: Sequence[Thumbnail]) -> pa.Table:
    """Rows of the thumbnails table."""
    pa = require("pyarrow", extra="library")
    columns = [
        pa.array([video] * len(thumbnails), pa.int64()),
        pa.array([float(each.time) for each in thumbnails], pa.float64()),
        pa.array([bytes(each.jpeg) for each in thumbnails], pa.binary()),
    ]
    return pa.Table.from_arrays(columns, schema=table_schema(THUMBNAILS))


def is_library(path: str | os.PathLike[str]) -> bool:
    """Does it look like a library: a folder that holds one, or the address of an object store? Opens nothing."""
    text = os.fspath(path)
    if "://" in text and not text.startswith("file://"):
        return True
    return (Path(text.removeprefix("file://")) / f"{ABOUT}.lance").is_dir()
