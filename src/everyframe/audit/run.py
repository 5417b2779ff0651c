"""The audit itself: videos one after the other, windows one after the other, every setting on the same pixels.

Pixels are held for one window at a time; of a video only features and a few small pictures stay until it is done, and
of all videos only cosines and the pictures of the worst ones. So memory grows neither with a video's length nor, but
for a few numbers per frame, with how many there are.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from everyframe.audit.advice import Inputs, advise
from everyframe.audit.pictures import draw_worst
from everyframe.audit.queries import PER_VIDEO, Queries, Query, compare
from everyframe.audit.result import Answer, Audit, Setting, Tally, VideoAudit, WindowSpan, WorstFrame, next_to_default
from everyframe.audit.windows import Window, read_window, video_windows
from everyframe.backbone import Model
from everyframe.cost import flops
from everyframe.encoders import DenseEncoder, Encoder, ResidualViT
from everyframe.encoders.baselines import copy_features, interpolate_features
from everyframe.encoders.plan import fixed_roles
from everyframe.features import VideoFeatures
from everyframe.pipeline import Sampling, is_address
from everyframe.tokens.drop import SELECTIONS
from everyframe.video import VideoError, find_videos

if TYPE_CHECKING:
    from everyframe.encoders import ResidualTokenizer

DENSE = Setting("dense")
WITH_PICTURES = 10  # videos whose worst frames are kept: those with the lowest fidelity
_WORST = 3
_REPEAT_BELOW = 0.3  # seconds: when dense encoding of a window takes less, all are timed twice
_SETTINGS_OF_OTHERS = 2  # the N at which the strategies other than motion are tried, unless all are wanted


def audit_videos(
    paths: str | Path | Iterable[str | Path],
    model: Model,
    *,
    fps: float = 3.0,
    queries: Sequence[str] | None = None,
    interleaves: Sequence[int] = (1, 2, 3, 5),
    selects: Sequence[str] = ("motion", "residual", "center", "uniform", "random"),
    drop: float = 0.85,
    residual: str | Path | ResidualTokenizer | None = "auto",
    target: float = 0.97,
    sample_seconds: float = 60.0,
    full_grid: bool = False,
    keep_partial: bool = False,
    batch_size: int = 32,
    progress: Callable[[str], None] = lambda line: None,
) -> Audit:
    """What interleaved encoding would lose on these videos, measured on a sample of each.

    paths: files, folders, patterns, lists of paths or addresses, as for `everyframe encode`.
    queries: texts to ground in every window; by default a few are generated per video.
    interleaves, selects: the first of `selects` is tried at every N, the others only at the N nearest to 2 unless
        `full_grid`. All are tried without and, where `residual` gives a tokenizer, with the residual token.
    residual: as for `ResidualViT`; "auto" goes without, silently, where the model comes with none.
    target: the mean fidelity over all frames that the recommended setting must reach.
    sample_seconds: of each video, in windows spread over it; a shorter video is read whole.
    keep_partial: of a damaged file use the frames that can be read.
    progress: gets a line per video.

    A video that cannot be read, or is damaged where it is read, becomes a sentence in `Audit.failures`. Raises
    VideoError when none can be read, ValueError or TypeError for bad arguments, ModelError for queries and a model
    without text tower.
    """
    Sampling(fps=fps)  # its own sentences for what is wrong with fps
    if not (math.isfinite(target) and 0 < target <= 1):
        raise ValueError(f"the target fidelity must be in (0, 1], got {target:g}")
    if not (math.isfinite(sample_seconds) and sample_seconds > 0):
        raise ValueError(f"the seconds to sample of each video must be > 0, got {sample_seconds:g}")
    if isinstance(queries, str) or (queries is not None and not all(query.strip() for query in queries)):
        raise ValueError("queries must be a list of texts, none of them empty")
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    if not given:
        raise VideoError("no video given: name files, folders, a pattern or a .txt list")
    encoders = _encoders(model, interleaves, selects, drop, residual, full_grid, batch_size)
    asked = Queries(model, queries)
    missing: list[VideoError] = []
    sources = _sources(given, missing)
    failures = [str(error) for error in missing]
    for failure in failures:
        progress(f"failed: {failure}")
    work = _Work(model, encoders, asked, fps, sample_seconds, keep_partial)
    videos: list[VideoAudit] = []
    totals: dict[Setting, Tally] = {}
    for number, source in enumerate(sources):
        try:
            video, tallies = work.video(source)
        except VideoError as error:
            failures.append(str(error))
            progress(f"failed: {error}")
            continue
        for setting, tally in tallies.items():
            totals.setdefault(setting, Tally()).add(tally)
        videos = _keep_pictures_of_worst([*videos, video])
        progress(f"{number + 1}/{len(sources)} {Path(source).name}: {_in_short(video)}")
    if not videos:
        more = f" (and {len(failures) - 1} more could not be read)" if len(failures) > 1 else ""
        raise VideoError(f"{failures[0]}{more}")
    reading = sum(video.reading_seconds for video in videos)
    rows = [tally.row(setting, totals[DENSE].seconds, reading) for setting, tally in totals.items()]
    has_token = any(setting.token for setting in encoders)
    dtype = str(model.dtype).removeprefix("torch.")
    name = residual if isinstance(residual, str | Path) else "TOKENIZER.safetensors"
    inputs = Inputs(
        paths=[str(path) for path in given],
        example=videos[0].path,
        model=model.name,
        dtype=dtype,
        fps=fps,
        drop=drop,
        residual=str(name),
    )
    return Audit(
        model=model.name,
        dtype=dtype,
        fps=fps,
        drop=drop,
        target=target,
        rows=rows,
        videos=videos,
        failures=failures,
        advice=advise(rows, videos, target, inputs),
        notes=_notes(model, asked, has_token, residual),
    )


# --- what is compared ------------------------------------------------------------------------------------


def _encoders(
    model: Model,
    interleaves: Sequence[int],
    selects: Sequence[str],
    drop: float,
    residual: str | Path | ResidualTokenizer | None,
    full_grid: bool,
    batch_size: int,
) -> dict[Setting, Encoder]:
    """Dense and one `ResidualViT` per setting, in the order of the table."""
    if not interleaves or not selects:
        raise ValueError("at least one interleave and one way to select patches are needed")
    for select in selects:
        if select not in SELECTIONS:
            raise ValueError(f"select must be one of {', '.join(SELECTIONS)}, got {select!r}")
    with warnings.catch_warnings():  # that "auto" found nothing is said once, in the notes
        warnings.simplefilter("ignore", UserWarning)
        trial = ResidualViT(model, drop=drop, residual=residual)
        tokens = [False] if trial.tokenizer is None else [False, True]
    encoders: dict[Setting, Encoder] = {DENSE: DenseEncoder(model, batch_size=batch_size)}
    # Checked before sorting, which would complain about a string in its own words.
    for interleave in interleaves:
        ResidualViT(model, interleave, residual=None)
    steps = sorted(set(interleaves))
    of_others = min(steps, key=lambda step: (abs(step - _SETTINGS_OF_OTHERS), step))
    for interleave in steps:
        for select in dict.fromkeys(selects):
            if select != selects[0] and interleave != of_others and not full_grid:
                continue
            for token in tokens:
                setting = Setting("interleaved", interleave, select, token)
                encoders[setting] = ResidualViT(
                    model, interleave, drop, select, residual if token else None, batch_size=batch_size
                )
    return encoders


def _sources(given: Sequence[str | Path], missing: list[VideoError]) -> list[str]:
    """Every video once."""
    found: list[str] = []
    for path in given:
        if is_address(path):
            found.append(str(path))
        else:
            found += [str(video) for video in find_videos([path], failures=missing)]
    return list(dict.fromkeys(found))


def _notes(model: Model, asked: Queries, has_token: bool, residual: str | Path | ResidualTokenizer | None) -> list[str]:
    notes = []
    if model.name == "bundled":
        notes.append(
            "The bundled model knows only everyframe's synthetic world: on other footage its features mean nothing, "
            "and neither do these figures; speed and GFLOPs are those of a very small model."
        )
    if not has_token:
        why = "No residual token was asked for" if residual is None else "No residual tokenizer comes with this model"
        notes.append(f"{why}: all rows are training-free. A tokenizer trained for it (everyframe distill) adds rows.")
    if asked.given is not None:
        notes.append("Moments: each query is grounded in every window, whether or not the window shows it.")
    elif asked.by_example:
        notes.append(
            "Moments: no queries were given and the model cannot read the prompt bank, so the features of a few frames "
            "of each window are the queries. This says whether the curves agree, not whether a text would be found."
        )
    else:
        notes.append(
            "Moments: no queries were given, so the prompts that stand out most in each video are asked. They are "
            "chosen for clear answers; pass --query with what you will ask."
        )
    return notes


# --- one video -------------------------------------------------------------------------------------------


class _Work:
    """What is done with every video; keeps the order of turns and whether the encoders are warm."""

    def __init__(
        self,
        model: Model,
        encoders: dict[Setting, Encoder],
        asked: Queries,
        fps: float,
        sample_seconds: float,
        keep_partial: bool,
    ) -> None:
        self._model = model
        self._encoders = encoders
        self._asked = asked
        self._fps = fps
        self._sample_seconds = sample_seconds
        self._keep_partial = keep_partial
        self._turn = 0
        self._baselines = [
            Setting(kind, interleave)  # type: ignore[arg-type]
            for interleave in sorted({setting.interleave for setting in encoders if setting != DENSE})
            for kind in ("copy", "interpolate")
        ]

    def video(self, source: str) -> tuple[VideoAudit, dict[Setting, Tally]]:
        """Read and compare one video. Raises VideoError."""
        tallies = {setting: Tally() for setting in self._in_table_order()}
        worst: dict[Setting, list[WorstFrame]] = {}
        answers: list[Answer] = []
        spans: list[WindowSpan] = []
        times: list[np.ndarray] = []
        reading = 0.0
        motion_source = None
        parts = video_windows(source, self._sample_seconds, self._fps)
        for start, end in parts:
            window = read_window(source, start, end, self._fps, self._model, keep_partial=self._keep_partial)
            reading += window.reading_seconds
            motion_source = motion_source or window.motion_source
            features = self._encode(window, tallies)
            for setting, tally in tallies.items():
                self._compare(setting, tally, features, len(window.times))
            self._find_worst(worst, window, tallies)
            dense, others = self._as_videos(window, features)
            queries = self._asked.of_window(dense, max(PER_VIDEO // len(parts), 1))
            answers += self._ask(queries, dense, others, tallies)
            first = sum(map(len, times))
            spans.append(
                WindowSpan(first, first + len(window.times), float(window.times[0]), float(dense.frame_ends[-1]))
            )
            times.append(window.times)
        video = VideoAudit(
            path=source,
            times=np.concatenate(times),
            windows=spans,
            motion_source=motion_source,
            reading_seconds=reading,
            rows=[tally.row(setting, tallies[DENSE].seconds, reading) for setting, tally in tallies.items()],
            cosines={setting: np.concatenate(tally.cosines) for setting, tally in tallies.items()},
            reduced={setting: np.concatenate(tally.reduced) for setting, tally in tallies.items()},
            answers=answers,
            worst=worst,
        )
        return video, tallies

    def _in_table_order(self) -> list[Setting]:
        """Dense, then by N: encoders as they were made, baselines last."""
        return sorted([*self._encoders, *self._baselines], key=lambda setting: setting.interleave)

    def _encode(self, window: Window, tallies: dict[Setting, Tally]) -> dict[Setting, np.ndarray]:
        """Features of every setting, float32 [T, D], and what they cost. Encoders take turns at being first."""
        order = list(self._encoders)
        order = order[self._turn % len(order) :] + order[: self._turn % len(order)]
        if self._turn == 0:  # the first pass allocates and compiles; nobody should pay for that
            for encoder in self._encoders.values():
                few = 2 * encoder.group_size
                encoder.encode(window.pixels[:few], None if window.motion is None else window.motion[:few])
        self._turn += 1
        features: dict[Setting, np.ndarray] = {}
        took: dict[Setting, float] = {}
        for repeat in range(2):
            if repeat and took[DENSE] >= _REPEAT_BELOW:
                break
            for setting in order:
                clock = time.perf_counter()
                features[setting] = self._encoders[setting].encode(window.pixels, window.motion).cpu().numpy()
                seconds = time.perf_counter() - clock
                took[setting] = min(seconds, took.get(setting, math.inf))
        frames = len(window.times)
        for setting, encoder in self._encoders.items():
            tallies[setting].macs += flops(encoder, frames).total
            tallies[setting].seconds += took[setting]
        dense_macs = flops(self._encoders[DENSE], frames).per_frame
        for setting in self._baselines:
            of_full = fixed_roles(frames, setting.interleave).count("I")
            tallies[setting].macs += dense_macs * of_full
            tallies[setting].seconds += took[DENSE] * of_full / frames
            if setting.kind == "copy":
                features[setting] = copy_features(features[DENSE], setting.interleave)
            else:
                features[setting] = interpolate_features(features[DENSE], window.times, setting.interleave)
        return features

    @staticmethod
    def _compare(setting: Setting, tally: Tally, features: dict[Setting, np.ndarray], frames: int) -> None:
        dense, own = features[DENSE].astype(np.float64), features[setting].astype(np.float64)
        lengths = np.linalg.norm(dense, axis=1) * np.linalg.norm(own, axis=1)
        cosines = (dense * own).sum(1) / np.maximum(lengths, 1e-12)
        tally.cosines.append(np.clip(cosines, -1.0, 1.0).astype(np.float32))
        tally.reduced.append(np.array([role == "P" for role in fixed_roles(frames, setting.interleave)], bool))

    def _find_worst(
        self, worst: dict[Setting, list[WorstFrame]], window: Window, tallies: dict[Setting, Tally]
    ) -> None:
        """Update the worst P-frames of every encoder, at most one per group: its neighbours look the same."""
        for setting, encoder in self._encoders.items():
            if not isinstance(encoder, ResidualViT):
                continue
            cosines, reduced = tallies[setting].cosines[-1], tallies[setting].reduced[-1]
            known = worst.setdefault(setting, [])
            bar = known[-1].cosine if len(known) == _WORST else math.inf
            rows: dict[int, int] = {}
            for row in np.argsort(cosines, kind="stable"):
                if reduced[row] and cosines[row] < bar and len(rows) < _WORST:
                    rows.setdefault(int(row) // encoder.group_size, int(row))
            if rows:
                known += draw_worst(encoder, window, list(rows.values()), cosines)
                known.sort(key=lambda frame: frame.cosine)
                del known[_WORST:]

    def _as_videos(
        self, window: Window, features: dict[Setting, np.ndarray]
    ) -> tuple[VideoFeatures, dict[Setting, VideoFeatures]]:
        """The window as a video of its own, for grounding."""
        dense = VideoFeatures(
            times=window.times,
            embeddings=features[DENSE],
            roles="I" * len(window.times),
            settings={"fps": self._fps},
            end_seconds=window.end,
        )
        return dense, {setting: replace(dense, embeddings=rows) for setting, rows in features.items()}

    @staticmethod
    def _ask(
        queries: Sequence[Query],
        dense: VideoFeatures,
        others: dict[Setting, VideoFeatures],
        tallies: dict[Setting, Tally],
    ) -> list[Answer]:
        answers = compare(queries, dense, others)
        for answer in answers:
            for setting, iou in answer.ious.items():
                tallies[setting].ious.append(iou)
        return answers


def _keep_pictures_of_worst(videos: list[VideoAudit]) -> list[VideoAudit]:
    """Let the pictures go of the video that least needs them, once there are too many with pictures."""
    default = next_to_default(row.setting for row in videos[0].rows)
    pictured = [index for index, video in enumerate(videos) if video.worst]
    if default is not None and len(pictured) > WITH_PICTURES:
        best = max(pictured, key=lambda index: videos[index].row(default).fidelity_mean)
        videos[best] = replace(videos[best], worst={})
    return videos


def _in_short(video: VideoAudit) -> str:
    default = next_to_default(row.setting for row in video.rows)
    frames = f"{len(video.times)} frame{'s' if len(video.times) != 1 else ''}"
    if default is None:
        return frames
    return f"{frames}, fidelity {video.row(default).fidelity_mean:.3f} with {default.title}"
