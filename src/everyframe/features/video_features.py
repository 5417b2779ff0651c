"""`VideoFeatures`: one embedding per sampled frame, its true time, and where it came from."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from everyframe.feature_files import Content, FeaturesError, read_content, write_content

ROLES = "IPC"  # full frame, reduced frame, copied from another frame
# Two times closer than this are one: presentation times are rationals stored in float64.
_TIME_EPSILON = 1e-6
_HEADER = ("roles", "video", "model", "settings", "end_seconds")


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
        nearest = nearest_rows(self.times, times)
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
        write_content(path, self.header(), self.times, self.embeddings)
        return path

    def header(self) -> dict[str, Any]:
        """All but the arrays, as files store it."""
        return {name: getattr(self, name) for name in _HEADER}

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "VideoFeatures":
        """Read and check a file that `save` wrote.

        Raises FeaturesError where it is missing, not a features file, cut short, altered, or of another
        format version; ImportError where the format's package is missing.
        """
        return from_content(path, read_content(Path(path)))


def from_content(path: str | os.PathLike[str], content: Content) -> VideoFeatures:
    """Features from what a file holds. path: what messages call it. Raises FeaturesError."""
    try:
        named = {name: content.header[name] for name in _HEADER}
        return VideoFeatures(times=content.times, embeddings=content.embeddings, **named)
    except (KeyError, TypeError, FeaturesError) as error:
        raise FeaturesError(f"{path} is inconsistent: {error}; encode the video again") from error


def is_of_clips(features: VideoFeatures) -> bool:
    """Is every row of them that of a clip (TempMe), not of a frame?"""
    return "clip_seconds" in features.settings


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


def nearest_rows(times: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.intp]:
    """Index of the time closest to each wanted one; the earlier of two that are equally close."""
    after = np.clip(np.searchsorted(times, wanted), 0, len(times) - 1)
    before = np.maximum(after - 1, 0)
    return np.where(wanted - times[before] <= times[after] - wanted + _TIME_EPSILON, before, after)
