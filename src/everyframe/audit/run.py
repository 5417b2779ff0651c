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
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from everyframe.audit.advice import Inputs, advise
from everyframe.audit.pictures import draw_worst
from everyframe.audit.queries import PER_VIDEO, Queries, Query, compare
from everyframe.audit.result import Answer, Audit, Setting, Tally, VideoAudit, WindowSpan, WorstFrame, next_to_default
from everyframe.audit.windows import distinct_sources, video_windows
from everyframe.backbone import Model
from everyframe.cost import flops
from everyframe.encoders import DenseEncoder, Encoder, Plan, ResidualViT, ReuseEncoder
from everyframe.encoders.baselines import copy_features, fidelity, interpolate_features
from everyframe.encoders.plan import fixed_roles
from everyframe.encoders.tokenizer import shipped_tokenizer
from everyframe.features import VideoFeatures
from everyframe.pipeline import Sampling, Window, read_window
from everyframe.tokens.drop import SELECTIONS
from everyframe.video import VideoError

if TYPE_CHECKING:
    from everyframe.encoders import ResidualTokenizer

DENSE = Setting("dense")
WITH_PICTURES = 10  # videos whose worst frames are kept, for each setting: those with the lowest fidelity
_WORST = 3
_REPEAT_BELOW = 0.3  # seconds: when dense encoding of a window takes less, all are timed twice
_SETTINGS_OF_OTHERS = 2  # the N at which the strategies other than motion are tried, unless all are wanted
_SETTINGS_OF_REUSE = 5  # the same for reuse with a fixed plan
_WARM_UP = 24  # frames at most: the groups of an adaptive plan may be as long as a window


def audit_videos(
    paths: str | Path | Iterable[str | Path],
    model: Model,
    *,
    fps: float = 3.0,
    queries: Sequence[str] | None = None,
    interleaves: Sequence[int] = (1, 2, 3, 5),
    selects: Sequence[str] = ("motion", "residual", "center", "uniform", "random"),
    tolerances: Sequence[float] = (0.3, 1.0, 3.0),
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
    tolerances: of the adaptive plans of `ReuseEncoder`; its fixed plan is tried at the N nearest to 5, with `full_grid`
        at every N. None at all: reuse is left out.
    residual: as for `ResidualViT`; "auto" goes without, silently, where the model comes with none.
    target: the mean fidelity over all frames that the recommended setting must reach.
    sample_seconds: of each video, in windows spread over it; a shorter video is read whole.
    keep_partial: of a damaged file use the frames that can be read.
    progress: gets a line per video.

    A video that cannot be read, or is damaged where it is read, becomes a sentence in `Audit.failures`. Raises
    VideoError when none can be read, ValueError or TypeError for bad arguments, ModelError for queries and a model
    without text tower.
    """
    _check(fps, target, sample_seconds, queries)
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    if not given:
        raise VideoError("no video given: name files, folders, a pattern or a .txt list")
    encoders = _encoders(model, interleaves, selects, tolerances, drop, residual, full_grid, batch_size)
    asked = Queries(model, queries)
    missing: list[VideoError] = []
    sources = distinct_sources(given, missing)
    failures = [str(error) for error in missing]
    for failure in failures:
        progress(f"failed: {failure}")
    work = _Work(model, encoders, asked, fps, sample_seconds, keep_partial)
    videos, totals = work.videos(sources, failures, progress)
    rows = [tally.row(setting, totals[DENSE]) for setting, tally in totals.items()]
    has_token = any(setting.token for setting in encoders)
    dtype = model.precision
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


def _check(fps: float, target: float, sample_seconds: float, queries: Sequence[str] | None) -> None:
    Sampling(fps=fps)  # its own sentences for what is wrong with fps
    if not (math.isfinite(target) and 0 < target <= 1):
        raise ValueError(f"the target fidelity must be in (0, 1], got {target:g}")
    if not (math.isfinite(sample_seconds) and sample_seconds > 0):
        raise ValueError(f"the seconds to sample of each video must be > 0, got {sample_seconds:g}")
    if isinstance(queries, str) or (queries is not None and not all(query.strip() for query in queries)):
        raise ValueError("queries must be a list of texts, none of them empty")


# --- what is compared ------------------------------------------------------------------------------------


def _encoders(
    model: Model,
    interleaves: Sequence[int],
    selects: Sequence[str],
    tolerances: Sequence[float],
    drop: float,
    residual: str | Path | ResidualTokenizer | None,
    full_grid: bool,
    batch_size: int,
) -> dict[Setting, Encoder]:
    """Dense and one `ResidualViT` or `ReuseEncoder` per setting, in the order of the table."""
    if not interleaves or not selects:
        raise ValueError("at least one interleave and one way to select patches are needed")
    for select in selects:
        if select not in SELECTIONS:
            raise ValueError(f"select must be one of {', '.join(SELECTIONS)}, got {select!r}")
    if residual == "auto":
        residual = shipped_tokenizer(model)  # that there is none is said once, in the notes
    tokenizer = ResidualViT(model, drop=drop, residual=residual).tokenizer
    tokenizers = [None] if tokenizer is None else [None, tokenizer]
    encoders: dict[Setting, Encoder] = {DENSE: DenseEncoder(model, batch_size=batch_size)}
    # Checked before sorting, which would complain about a string in its own words.
    for interleave in interleaves:
        ResidualViT(model, interleave, residual=None)
    steps = sorted(set(interleaves))
    of_others = min(steps, key=lambda step: (abs(step - _SETTINGS_OF_OTHERS), step))
    with warnings.catch_warnings():  # that it was fitted for another share has just been said
        warnings.filterwarnings("ignore", message=".*was fitted for drop=", category=UserWarning)
        for interleave in steps:
            for select in dict.fromkeys(selects):
                if select != selects[0] and interleave != of_others and not full_grid:
                    continue
                for token in tokenizers:
                    setting = Setting("interleaved", interleave, select, token is not None)
                    encoders[setting] = ResidualViT(model, interleave, drop, select, token, batch_size=batch_size)
    if not tolerances:
        return encoders
    of_reuse = min(steps, key=lambda step: (abs(step - _SETTINGS_OF_REUSE), step))
    for interleave in steps if full_grid else [of_reuse]:
        encoders[Setting("reuse", interleave)] = ReuseEncoder(model, interleave, drop, batch_size=batch_size)
    adaptive = [
        ReuseEncoder(model, drop=drop, plan="adaptive", tolerance=tolerance, batch_size=batch_size)
        for tolerance in tolerances
    ]
    for reuse in sorted(adaptive, key=lambda encoder: encoder.policy.tolerance):
        encoders[Setting("reuse", tolerance=reuse.policy.tolerance)] = reuse
    return encoders


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


@dataclass
class _Seen:
    """What the windows of one video have shown so far."""

    tallies: dict[Setting, Tally]
    worst: dict[Setting, list[WorstFrame]] = field(default_factory=dict)
    answers: list[Answer] = field(default_factory=list)
    spans: list[WindowSpan] = field(default_factory=list)
    times: list[np.ndarray] = field(default_factory=list)
    motion_source: str | None = None


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
        self._readings = sorted({encoder.needs_motion for encoder in encoders.values()})  # with motion? dense: False
        self._baselines = [
            Setting(kind, interleave)  # type: ignore[arg-type]
            for interleave in sorted({setting.interleave for setting in encoders if setting.has_interleave})
            for kind in ("copy", "interpolate")
        ]

    def videos(
        self, sources: Sequence[str], failures: list[str], progress: Callable[[str], None]
    ) -> tuple[list[VideoAudit], dict[Setting, Tally]]:
        """All that can be read, and what they say together. Raises VideoError when none can be."""
        videos: list[VideoAudit] = []
        totals: dict[Setting, Tally] = {}
        for number, source in enumerate(sources):
            try:
                video, tallies = self._video(source)
            except VideoError as error:
                failures.append(str(error))
                progress(f"failed: {error}")
                continue
            for setting, tally in tallies.items():
                totals.setdefault(setting, Tally(tally.reads_motion)).add(tally)
            videos.append(video)
            _keep_pictures_of_worst(videos)
            progress(f"{number + 1}/{len(sources)} {Path(source).name}: {_in_short(video)}")
        if not videos:
            more = f" (and {len(failures) - 1} more could not be read)" if len(failures) > 1 else ""
            raise VideoError(f"{failures[0]}{more}")
        return videos, totals

    def _video(self, source: str) -> tuple[VideoAudit, dict[Setting, Tally]]:
        """Read and compare one video. Raises VideoError."""
        seen = _Seen({setting: Tally(self._reads_motion(setting)) for setting in self._in_table_order()})
        parts = video_windows(source, self._sample_seconds, self._fps)
        for start, end in parts:
            self._read(source, start, end, seen, max(PER_VIDEO // len(parts), 1))
        tallies = seen.tallies
        video = VideoAudit(
            path=source,
            times=np.concatenate(seen.times),
            windows=seen.spans,
            motion_source=seen.motion_source,
            rows=[tally.row(setting, tallies[DENSE]) for setting, tally in tallies.items()],
            cosines={setting: np.concatenate(tally.cosines) for setting, tally in tallies.items()},
            reduced={setting: np.concatenate(tally.reduced) for setting, tally in tallies.items()},
            answers=seen.answers,
            worst=seen.worst,
        )
        return video, tallies

    def _read(self, source: str, start: float | None, end: float | None, seen: _Seen, queries: int) -> None:
        """Read a window in every way that a setting needs, and look at it once."""
        read = partial(
            read_window, source, self._model, fps=self._fps, start=start, end=end, keep_partial=self._keep_partial
        )
        if self._turn == 0:  # nobody should pay for what only the first one does
            read(motion=False)
        took: dict[bool, float] = {}
        # Whoever is first may wait for the disk, so they take turns.
        for motion in self._readings[:: 1 if self._turn % 2 else -1]:
            clock = time.perf_counter()
            window = read(motion=motion)
            took[motion] = time.perf_counter() - clock
            if motion == self._readings[-1]:
                self._look_at(window, seen, queries)
            del window  # the pixels of one are held at a time
        for tally in seen.tallies.values():
            tally.reading += took[tally.reads_motion]

    def _look_at(self, window: Window, seen: _Seen, count: int) -> None:
        """Encode a window in every setting and compare; ask at most `count` generated queries."""
        features, plans = self._encode(window, seen.tallies)
        for setting, tally in seen.tallies.items():
            tally.cosines.append(fidelity(features[setting], features[DENSE]).astype(np.float32))
            known = setting in plans
            roles = plans[setting].roles if known else fixed_roles(len(window.times), setting.interleave)
            tally.reduced.append(np.array([role != "I" for role in roles], bool))
        self._find_worst(seen.worst, window, plans, seen.tallies)
        dense, others = self._as_videos(window, features)
        seen.answers += self._ask(self._asked.of_window(dense, count), dense, others, seen.tallies)
        first = sum(map(len, seen.times))
        seen.spans.append(
            WindowSpan(first, first + len(window.times), float(window.times[0]), float(dense.frame_ends[-1]))
        )
        seen.times.append(window.times)
        seen.motion_source = seen.motion_source or window.motion_source

    def _reads_motion(self, setting: Setting) -> bool:
        return setting in self._encoders and self._encoders[setting].needs_motion

    def _in_table_order(self) -> list[Setting]:
        """Dense, then by N: encoders as they were made, baselines last. Adaptive plans, which have no N, at the end."""
        return sorted([*self._encoders, *self._baselines], key=lambda setting: (setting.adaptive, setting.interleave))

    def _encode(
        self, window: Window, tallies: dict[Setting, Tally]
    ) -> tuple[dict[Setting, np.ndarray], dict[Setting, Plan]]:
        """Features of every setting, float32 [T, D], and the plans of the encoders; what they cost is added up.

        Encoders take turns at being first. Planning is part of the time.
        """
        order = list(self._encoders)
        order = order[self._turn % len(order) :] + order[: self._turn % len(order)]
        if self._turn == 0:  # the first pass allocates and compiles; nobody should pay for that
            for encoder in self._encoders.values():
                few = min(2 * encoder.group_size, _WARM_UP)
                encoder.encode(window.pixels[:few], None if window.motion is None else window.motion[:few])
        self._turn += 1
        features: dict[Setting, np.ndarray] = {}
        plans: dict[Setting, Plan] = {}
        took: dict[Setting, float] = {}
        for repeat in range(2):
            if repeat and took[DENSE] >= _REPEAT_BELOW:
                break
            for setting in order:
                encoder = self._encoders[setting]
                clock = time.perf_counter()
                planner = encoder.planner()
                plan = planner.add(window.pixels, window.motion) + planner.finish()
                features[setting] = encoder.encode_planned(window.pixels, plan).cpu().numpy()
                seconds = time.perf_counter() - clock
                took[setting] = min(seconds, took.get(setting, math.inf))
                plans[setting] = plan
        frames = len(window.times)
        for setting, encoder in self._encoders.items():
            tallies[setting].macs += _macs(encoder, plans[setting])
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
        return features, plans

    def _find_worst(
        self,
        worst: dict[Setting, list[WorstFrame]],
        window: Window,
        plans: dict[Setting, Plan],
        tallies: dict[Setting, Tally],
    ) -> None:
        """Update the worst P-frames of every encoder, at most one per group: its neighbours look the same."""
        for setting, plan in plans.items():
            if setting == DENSE:
                continue
            groups = np.cumsum([role == "I" for role in plan.roles])
            cosines, reduced = tallies[setting].cosines[-1], tallies[setting].reduced[-1]
            known = worst.setdefault(setting, [])
            bar = known[-1].cosine if len(known) == _WORST else math.inf
            rows: dict[int, int] = {}
            for row in np.argsort(cosines, kind="stable"):
                if reduced[row] and cosines[row] < bar and len(rows) < _WORST:
                    rows.setdefault(int(groups[row]), int(row))
            if rows:
                known += draw_worst(self._model, plan, window, list(rows.values()), cosines)
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
            end_seconds=window.end_seconds,
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


def _macs(encoder: Encoder, plan: Plan) -> float:
    """As `flops` counts; for a plan that depends on the video, what it comes to."""
    if encoder.plan == "fixed":
        return flops(encoder, len(plan.roles)).total
    return sum(encoder.plan_macs(plan, "paper").values())


def _keep_pictures_of_worst(videos: list[VideoAudit]) -> None:
    """Where too many have pictures with a setting, let go of those of the video that needs them least with it.

    Setting by setting, as nobody knows yet which one will be recommended. The last video is new.
    """
    for setting in list(videos[-1].worst):
        pictured = [video for video in videos if setting in video.worst]
        if len(pictured) > WITH_PICTURES:
            best = max(pictured, key=lambda video: video.row(setting).fidelity_mean)
            del best.worst[setting]


def _in_short(video: VideoAudit) -> str:
    default = next_to_default(row.setting for row in video.rows)
    frames = f"{len(video.times)} frame{'s' if len(video.times) != 1 else ''}"
    if default is None:
        return frames
    return f"{frames}, fidelity {video.row(default).fidelity_mean:.3f} with {default.title}"
