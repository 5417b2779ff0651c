"""`Recipe`: the I-features of a video and the plan, from which and the video its P-features are computed when needed.

A file NAME.recipe.npz: arrays and a JSON text, read with NumPy alone, no pickle. As with features, a SHA-256 over all
of it is inside, and the file appears whole or not at all.

T frames, of which G are I-frames, D width of the joint space.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from everyframe.encoders import Plan
from everyframe.feature_files import RECIPE_SUFFIX, FeaturesError, ForeignFileError, read_whole, write_whole
from everyframe.features import VideoFeatures

_FORMAT = "everyframe-recipe"
_VERSION = 1
_ARRAYS = ("times", "counts", "indices", "chunks", "i_features")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Recipe:
    """What `restore` needs besides the video and the model. Checks itself; FeaturesError says what does not fit.

    times float64 [T] seconds; plan: of all frames; i_features float32 or float16 [G, D], as the encoder gave them
        (float32 where P-features are computed from them, whatever is restored).
    chunks: int64, first frame of every chunk that was encoded in one call. The same calls give the same bits.
    encoder: the encoder's settings and its batch_size. video, model, settings, end_seconds: what the features carry;
        settings["stored_dtype"] is what is restored.
    """

    times: NDArray[np.float64]
    plan: Plan
    i_features: NDArray[Any]
    chunks: NDArray[np.int64]
    encoder: dict[str, Any]
    video: dict[str, Any]
    model: dict[str, Any]
    settings: dict[str, Any]
    end_seconds: float | None = None

    def __post_init__(self) -> None:
        outline = self._outline()  # raises where times, roles or the end make no features
        roles = self.plan.roles
        for name in ("video", "model", "settings"):
            object.__setattr__(self, name, getattr(outline, name))
        object.__setattr__(self, "encoder", json.loads(json.dumps(self.encoder)))
        if self.i_features.ndim != 2 or len(self.i_features) != roles.count("I"):
            raise FeaturesError(
                f"i_features must be one row per I-frame ({roles.count('I')}), got shape {list(self.i_features.shape)}"
            )
        starts = self.chunks.tolist()
        whole = starts == sorted(set(starts)) and starts[:1] == [0] and starts[-1] < len(roles)
        if not whole or any(roles[start] != "I" for start in starts):
            raise FeaturesError(f"chunks must begin with the frames 0 and then other I-frames in order, got {starts}")

    def __repr__(self) -> str:
        return (
            f"Recipe({Path(str(self.video.get('path', '?'))).name}: {self.num_frames} frames, {len(self.i_features)} "
            f"of them kept, encoder {self.encoder.get('encoder')}, model {self.model.get('id', '?')})"
        )

    @property
    def num_frames(self) -> int:
        """T, the number of frames."""
        return len(self.times)

    @property
    def roles(self) -> str:
        """One letter per frame: I (kept here), P (to be computed) or C (a copy of the frame before)."""
        return self.plan.roles

    @property
    def frame_ends(self) -> NDArray[np.float64]:
        """float64 [T], seconds, as `VideoFeatures.frame_ends`."""
        return self._outline().frame_ends

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the file, whole or not at all, and return the path. Raises FeaturesError where that fails."""
        path = Path(path)
        if not path.name.endswith(RECIPE_SUFFIX):
            raise FeaturesError(f"{path} must be named NAME{RECIPE_SUFFIX}, to be told from features")
        arrays: dict[str, Any] = {
            "times": self.times,
            "counts": _smallest(self.plan.counts.numpy()),
            "indices": _smallest(self.plan.indices.numpy()),
            "chunks": _smallest(self.chunks),
            "i_features": self.i_features,
        }
        header: dict[str, Any] = {"format": _FORMAT, "version": _VERSION, "roles": self.roles}
        header.update({name: getattr(self, name) for name in ("encoder", "video", "model", "settings", "end_seconds")})
        header["sha256"] = _digest(header, arrays)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, metadata=np.array(json.dumps(header)), **arrays)
        write_whole([(path, buffer.getbuffer())], path)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Recipe:
        """Read and check a file that `save` wrote.

        Raises FeaturesError where it is missing, not a recipe, cut short, altered, or of another format version.
        """
        path = Path(path)
        header, arrays = _read(path)
        try:
            counts, indices = (torch.from_numpy(arrays[name].astype(np.int64)) for name in ("counts", "indices"))
            return cls(
                times=arrays["times"],
                plan=Plan(header["roles"], counts, indices),
                i_features=arrays["i_features"],
                chunks=arrays["chunks"].astype(np.int64),
                **{name: header[name] for name in ("encoder", "video", "model", "settings", "end_seconds")},
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FeaturesError(f"{path} is inconsistent: {error}; encode the video again") from error

    def _outline(self) -> VideoFeatures:
        """The features without their values: they check times, roles and provenance, and know where frames end."""
        return VideoFeatures(
            times=self.times,
            embeddings=np.ones((len(self.times), 1), np.float16),
            roles=self.plan.roles,
            video=self.video,
            model=self.model,
            settings=self.settings,
            end_seconds=self.end_seconds,
        )


def _read(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Header and arrays with format, version and checksum verified."""
    data = read_whole(path)
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as stored:
            header = json.loads(str(stored["metadata"])) if "metadata" in stored else {}
            arrays = {name: stored[name] for name in _ARRAYS if name in stored}
    except Exception as error:  # whatever a parser raises on arbitrary bytes means the same
        raise FeaturesError(
            f"{path} is damaged or not a recipe ({type(error).__name__}: {error}); delete it and encode the video again"
        ) from error
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise ForeignFileError(f"{path} is not a recipe that everyframe wrote")
    if header.get("version") != _VERSION:
        raise ForeignFileError(
            f"{path} has recipe version {header.get('version')}, this everyframe reads {_VERSION}; "
            "upgrade everyframe or encode the video again"
        )
    if header.get("sha256") != _digest(header, arrays):
        raise FeaturesError(f"{path} does not match its checksum; delete it and encode the video again")
    return header, arrays


def _digest(header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 over all content: header (without the checksum itself), and names, shapes, dtypes, values of arrays."""
    named = {key: value for key, value in header.items() if key != "sha256"}
    named["arrays"] = {name: [list(array.shape), array.dtype.name] for name, array in arrays.items()}
    digest = hashlib.sha256(json.dumps(named, sort_keys=True).encode())
    for name in sorted(arrays):
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()


def _smallest(values: NDArray[Any]) -> NDArray[Any]:
    """The same whole numbers from 0 on in the narrowest type."""
    return values.astype(np.min_scalar_type(int(values.max(initial=0))))
