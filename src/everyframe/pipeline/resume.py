"""What is already done: which file is which video, where its features go, and what failed before."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from everyframe.features import FeaturesError, ForeignFileError, VideoFeatures
from everyframe.video import Source
from everyframe.video.identity import identity, is_address

JOURNAL = "everyframe.jsonl"
UNUSUAL = (
    "plan",
    "reduction",
    "two_sided",
    "slice_seconds",
    "resampled",
    "metric",
    "temporal",
    "proportional",
    "positions",
)


class Journal:
    """One JSON line per video that was worked on, appended as it happens: who failed, and why.

    A plain file that is only ever appended to survives a killed run and any file system; a last line that was
    cut short is passed over.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._last: dict[str, dict[str, Any]] = {}
        if path is not None and path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                    self._last[entry["source"]] = entry
                except (ValueError, KeyError, TypeError):
                    continue

    def failed_before(self, source: str | Path, settings: dict[str, Any]) -> str | None:
        """Why reading this very file with these sampling settings failed the last time, if it did."""
        entry = self._last.get(source_name(source))
        if entry is None or entry.get("status") != "failed" or entry.get("settings") != settings:
            return None
        same = identity(source)
        unchanged = bool(same) and entry.get("fingerprint") == same["fingerprint"]
        return str(entry.get("error")) if unchanged else None

    def add(self, source: str | Path, settings: dict[str, Any], status: str, error: str | None) -> None:
        """Append what became of a video. Raises OSError where the file cannot be written."""
        if self.path is None:
            return
        entry = {
            "source": source_name(source),
            "fingerprint": identity(source).get("fingerprint"),
            "settings": settings,
            "status": status,
            "error": error,
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


class Encoded(Protocol):
    """What is asked of features or a recipe."""

    @property
    def num_frames(self) -> int: ...
    @property
    def video(self) -> dict[str, Any]: ...
    @property
    def model(self) -> dict[str, Any]: ...
    @property
    def settings(self) -> dict[str, Any]: ...


def is_done(
    source: str | Path,
    output: Path,
    wanted: dict[str, dict[str, Any]],
    *,
    keep_partial: bool,
    load: Callable[[Path], Encoded] = VideoFeatures.load,
) -> int | None:
    """Frames in `output` where it already holds this video with these settings, None where there is work to do.

    wanted: "model" and "settings", the provenance that must agree. load: reads what `output` holds.
    Raises FeaturesError where the file is somebody else's: not made by everyframe, or the features of another video.
    """
    if not output.exists():
        return None
    try:
        feats = load(output)
    except ForeignFileError as error:  # somebody's own work under that name
        raise FeaturesError(
            f"{error}; it is not overwritten: move it away, or choose another --out for {source}"
        ) from error
    except FeaturesError:
        return None  # cut short: it is made anew
    same = identity(source)
    same_video = bool(same) and all(feats.video.get(key) == value for key, value in same.items())
    other = feats.video.get("path")
    if not same_video and other != source_name(source):
        raise FeaturesError(f"{output} holds the features of {other}; choose another --out for {source}")
    agrees = all(
        getattr(feats, part).get(key) == value for part, facts in wanted.items() for key, value in facts.items()
    )
    # Settings that are left out where they are the usual ones must be missing in both.
    agrees = agrees and all(key in wanted["settings"] or key not in feats.settings for key in UNUSUAL)
    complete = keep_partial or not feats.settings.get("damage")
    return feats.num_frames if same_video and agrees and complete else None


def output_paths(
    roots: Iterable[tuple[Path | str | None, Sequence[str | Path]]], out: Path, suffix: str
) -> list[tuple[str | Path, Path]]:
    """Where each video's features go: the folders below a root are kept, and no two videos share a file.

    roots: (folder or address that was asked for or None, videos found in it). "a/x.mp4" below a root becomes "a/x.npz";
    where another video would take the same file, the video's own suffix stays ("a/x.mp4.npz"), and where that
    is not enough, a short hash of its folder is added.
    """
    entries = [(video, _below(root, video)) for root, videos in roots for video in videos]
    plain = [relative.with_suffix(suffix) for _, relative in entries]
    full = [relative.with_name(relative.name + suffix) for _, relative in entries]
    short_count, long_count = Counter(plain), Counter(full)
    paths: list[tuple[str | Path, Path]] = []
    for (video, relative), short, long in zip(entries, plain, full, strict=True):
        # "x.mp4.mkv" leaves "x.mp4.npz" to "x.mp4".
        chosen = long if short_count[short] > 1 or long_count[short] else short
        if long_count[long] > 1:
            digest = hashlib.sha256(str(Path(video).absolute().parent).encode()).hexdigest()[:8]
            chosen = relative.with_name(f"{relative.name}-{digest}{suffix}")
        paths.append((video, out / chosen))
    return paths


def _below(root: Path | str | None, video: str | Path) -> Path:
    """A video's path below a root, or its name where it is not there."""
    if is_address(video):
        whole = str(video).rstrip("/")
        inside = whole.removeprefix(f"{str(root).rstrip('/')}/") if is_address(root) else whole
        # A key may hold "..", which leads out of a folder of outputs.
        kept = inside != whole and ".." not in inside.split("/")
        return Path(inside) if kept else Path(whole.rpartition("/")[2])
    path = Path(video)
    if root is not None and path.is_relative_to(root) and path != root:
        return path.relative_to(root)
    return Path(os.path.basename(os.path.abspath(path)))  # the folder "." has no name as it stands


def source_name(source: Source) -> str:
    if isinstance(source, (str, Path)):
        return str(source) if is_address(source) else os.path.abspath(source)
    name = getattr(source, "name", None)
    return os.path.abspath(name) if isinstance(name, str) else "<bytes>"
