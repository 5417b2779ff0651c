"""Features of the videos that annotations name: found and encoded by the pipeline, or read from feature files.

Every frame encoder is asked in the same way, so what is evaluated is what `everyframe encode` writes.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from everyframe.backbone import Model
from everyframe.encoders import Encoder, ResidualViT, ReuseEncoder
from everyframe.evaluation.clips import Failure, Progress, VideoFolder
from everyframe.evaluation.reading import AnnotationError, spellings, stem
from everyframe.feature_files import RECIPE_SUFFIX, SUFFIXES
from everyframe.features import FeaturesError, VideoFeatures, check_same_space, space_of
from everyframe.pipeline import Sampling, encode_videos, output_paths

Read = tuple[int, VideoFeatures | Failure]
_SETTINGS = (
    *("encoder", "fps", "interleave", "drop", "select", "plan", "tolerance", "residual", "reduce"),
    *("clip_seconds", "frames", "r", "clips", "remove_cross", "remove_intra", "positions"),
)
"""What features that are evaluated together were all made with; an encoder has those that decide its own."""


@dataclass(frozen=True, kw_only=True)
class EncodedVideos:
    """Videos below `folder`, read with an encoder.

    cache: a folder where the feature files stay, so that a killed run goes on and other commands can use them; each
    encoder, rate and model has a folder of its own in it. Without one a file is deleted once it was read.
    """

    encoder: Encoder
    folder: str | os.PathLike[str]
    sampling: Sampling
    cache: str | os.PathLike[str] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the features, for provenance."""
        model = self.encoder.model
        return {
            "model": model.name,
            "weights_sha256": model.weights_sha256,
            "dtype": model.precision,
            "encoder": self.encoder.settings,
            "sampling": self.sampling.settings,
            "keep_partial": self.sampling.keep_partial,
        }

    def read(self, videos: Sequence[str], progress: Progress | None = None) -> Iterator[Read]:
        """(number, features or why there are none) for every name in `videos`, in the order of the files.

        Two names may mean one file, which is then encoded once. Raises AnnotationError where a name fits several files
        or `folder` is none.
        """
        with nullcontext(self._own_folder()) if self.cache is not None else tempfile.TemporaryDirectory() as place:
            for number, found in self._encode(videos, Path(place), progress):
                yield number, found if isinstance(found, Failure) else VideoFeatures.load(found)

    def files(self, videos: Sequence[str], progress: Progress | None = None) -> Iterator[tuple[int, Path | Failure]]:
        """As `read`, with the feature file, which stays in `cache`, in place of the features."""
        if self.cache is None:
            raise ValueError("feature files stay only in a cache; give a folder for it")
        yield from self._encode(videos, self._own_folder(), progress)

    def _encode(
        self, videos: Sequence[str], out: Path, progress: Progress | None
    ) -> Iterator[tuple[int, Path | Failure]]:
        root = VideoFolder(self.folder)
        numbers: dict[Path, list[int]] = {}
        done = 0
        for number, video in enumerate(videos):
            path = root.find(video)
            if path is not None:
                numbers.setdefault(path, []).append(number)
                continue
            done += 1
            yield number, Failure(video, "missing", f"{video}: is not in {root.folder}")
        sources = output_paths([(root.folder, list(numbers))], out, ".npz")
        outcomes = encode_videos(sources, self.encoder, sampling=self.sampling)
        for outcome, path in zip(outcomes, numbers, strict=True):
            for number in numbers[path]:
                done += 1
                if outcome.status == "failed" or outcome.output is None:
                    yield number, Failure(videos[number], "unreadable", str(outcome.error))
                else:
                    yield number, outcome.output
                if progress is not None:
                    progress("videos", done, len(videos))
            if self.cache is None and outcome.output is not None:
                outcome.output.unlink(missing_ok=True)

    def _own_folder(self) -> Path:
        text = json.dumps(self.settings, sort_keys=True, default=str)
        name = f"{self.encoder.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        folder = Path(self.cache or "") / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"cannot write to {folder}: {error.strerror or error}; choose another cache") from error
        return folder


@dataclass(frozen=True, kw_only=True)
class StoredFeatures:
    """Feature files below `folder`, made before by `model`; named like their videos. fps: the rate they must have."""

    folder: str | os.PathLike[str]
    model: Model
    fps: float | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the features, as far as it is known before they are read."""
        return {"model": self.model.name, "weights_sha256": self.model.weights_sha256, "features": str(self.folder)}

    def read(self, videos: Sequence[str], progress: Progress | None = None) -> Iterator[Read]:
        """(number, features or why there are none) for every name in `videos`, in order.

        Features of another model, made with other settings than those before them, or with a row of zeros, count as
        unreadable. Raises AnnotationError where a name fits several files or `folder` is none.
        """
        folder = StoredFiles(self.folder)
        first: VideoFeatures | None = None
        for number, video in enumerate(videos):
            file = folder.find(video)
            try:
                feats = None if file is None else VideoFeatures.load(file)
                if feats is not None and file is not None:
                    self._check(feats, first, file)
            except FeaturesError as error:
                yield number, Failure(video, "unreadable", str(error))
            else:
                if feats is None:
                    yield number, folder.missing(video)
                else:
                    first = first or feats
                    yield number, feats
            if progress is not None:
                progress("feature files", number + 1, len(videos))

    def _check(self, feats: VideoFeatures, first: VideoFeatures | None, file: Path) -> None:
        made_by = feats.model.get("weights_sha256")
        if feats.dim != self.model.dim or made_by not in (None, self.model.weights_sha256):
            raise FeaturesError(
                f"{file} was made by other weights than those of {self.model.name} (recorded model: "
                f"{feats.model.get('id')}); pass the model that made it (--model)"
            )
        rate = feats.settings.get("fps")
        if self.fps is not None and rate is not None and rate != self.fps:
            raise FeaturesError(f"{file} has {rate:g} features per second, not {self.fps:g}; encode the video again")
        try:
            _ = feats.norms  # here, where one file is left out, and not in the middle of what is done with all of them
        except FeaturesError as error:
            raise FeaturesError(f"{file}: {error}") from error
        if first is not None:
            check_made_alike(first, feats, file)


class StoredFiles:
    """The feature files below a folder, to be found by the names that annotations have for their videos.

    Raises AnnotationError where the folder is none.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise AnnotationError(f"{self.folder} is not a folder; give the one that holds feature files (--features)")
        self._files = files_by_video(self.folder)

    def find(self, video: str) -> Path | None:
        """The file of a video, or None. Raises AnnotationError where several are of it."""
        names = spellings(stem(os.path.basename(video)))
        found = next(filter(None, map(self._files.get, names)), [])
        if len(found) > 1:
            raise AnnotationError(f"{video} could be {found[0]} or {found[1]}; give a folder that holds it once")
        return found[0] if found else None

    def missing(self, video: str) -> Failure:
        """What to say of a video that has no file."""
        return Failure(video, "missing", f"{video}: has no features in {self.folder}")


class Costs:
    """What encoding took, as feature files record it, over all features that were added.

    Both figures are None where nothing was added or any of them does not tell.
    """

    def __init__(self) -> None:
        self._seconds = self._gflops = self._dense = 0.0
        self._all_tell = True

    def add(self, feats: VideoFeatures) -> None:
        """Count one video."""
        if not feats.num_frames:
            return
        own, share = feats.settings.get("gflops_per_frame"), feats.settings.get("gflops_share")
        if not (own and share):
            self._all_tell = False
            return
        self._seconds += float(feats.frame_ends[-1] - feats.times[0])
        self._gflops += own * feats.num_frames
        self._dense += own / share * feats.num_frames

    @property
    def gflops_per_second(self) -> float | None:
        """Billions of multiply-accumulates, attention included, that a second of video took."""
        return self._gflops / self._seconds if self._all_tell and self._seconds else None

    @property
    def gflops_share(self) -> float | None:
        """The same as a share of dense."""
        return self._gflops / self._dense if self._all_tell and self._dense else None

    def as_dict(self) -> dict[str, float | None]:
        """Both by name, as every table has them."""
        return {"gflops_per_second": self.gflops_per_second, "gflops_share": self.gflops_share}


def label(encoder: Encoder) -> str:
    """An encoder in the words of a table."""
    if isinstance(encoder, ResidualViT):
        return f"ResidualViT N={encoder.interleave}" + ("" if encoder.tokenizer is None else " + residual token")
    if isinstance(encoder, ReuseEncoder):
        return f"reuse N={encoder.interleave}" if encoder.plan == "fixed" else f"reuse {encoder.plan}"
    return encoder.name


def check_made_alike(first: VideoFeatures, feats: VideoFeatures, file: Path) -> None:
    """Raises FeaturesError where two files are of different models, encoders or rates."""
    check_same_space(space_of(first), feats)
    for key in _SETTINGS:
        if first.settings.get(key) != feats.settings.get(key):
            raise FeaturesError(
                f"{file} was made with {key}={feats.settings.get(key)!r}, but others with "
                f"{first.settings.get(key)!r}; evaluate one encoder and rate at a time"
            )


def files_by_video(folder: Path) -> dict[str, list[Path]]:
    """Feature files by the name of their video: "a/x.npz" and "a/x.mp4.npz" are of x."""
    found: dict[str, list[Path]] = {}
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in SUFFIXES and not file.name.endswith(RECIPE_SUFFIX) and file.is_file():
            found.setdefault(stem(file.name[: -len(file.suffix)]), []).append(file)
    return found
