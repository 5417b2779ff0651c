"""What an audit finds, as plain values: a row of figures per setting, per video and over all of them.

T sampled frames of a video, over all of its windows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from everyframe.encoders.reuse import TOLERANCE
from everyframe.spans import Moment

SHARE_IOU = 0.5  # a moment counts as the same from this temporal IoU on, as in R@1 at IoU 0.5


@dataclass(frozen=True)
class Setting:
    """One way to get a feature for every frame.

    kind: "dense" is what the others are compared with; "interleaved" is `ResidualViT`; "reuse" is `ReuseEncoder`;
    "copy" and "interpolate" use the I-features alone (`everyframe.encoders.baselines`). token: with the residual token.
    tolerance: of an adaptive plan, which has no N; None is a fixed plan.
    """

    kind: Literal["dense", "interleaved", "reuse", "copy", "interpolate"]
    interleave: int = 0
    select: str | None = None
    token: bool = False
    tolerance: float | None = None

    @property
    def adaptive(self) -> bool:
        return self.tolerance is not None

    @property
    def has_interleave(self) -> bool:
        """Is there an N?"""
        return self.kind != "dense" and not self.adaptive

    @property
    def label(self) -> str:
        """A few words for a table beside N: "motion", "motion + token", "reuse, tol 0.3", "copy", ..."""
        if self.adaptive:
            return f"{self.kind}, tol {self.tolerance:g}"
        return f"{self.select or self.kind}{' + token' if self.token else ''}"

    @property
    def title(self) -> str:
        """The same with N or in full, for sentences."""
        if self.adaptive:
            return f"adaptive {self.kind} at tolerance {self.tolerance:g}"
        return f"N={self.interleave} {self.label}" if self.has_interleave else self.label


@dataclass(frozen=True, kw_only=True)
class Row:
    """Figures of one setting. Fidelity is the cosine of a frame's feature to the dense feature of the same frame.

    fidelity_*: over all frames, I-frames included (they are exact). p_*: over all others, P-frames and the copies of
    an adaptive plan; None without any.
    moment_*: temporal IoU with the moment found in dense features, mean and share of at least `SHARE_IOU`; None
    where `moments`, the number of comparisons, is 0. GFLOPs count multiply-accumulates of linear layers.
    encode_*: the model alone. reading_ms_per_frame: decoding and resizing, with motion where the setting needs it
    (`reads_motion`). total_speed_up: model and reading, one after the other.
    """

    setting: Setting
    frames: int
    p_frames: int
    fidelity_mean: float
    fidelity_p5: float
    fidelity_min: float
    p_mean: float | None
    p_p5: float | None
    p_min: float | None
    moments: int
    moment_iou: float | None
    moment_share: float | None
    gflops_per_frame: float
    encode_ms_per_frame: float
    encode_speed_up: float
    reads_motion: bool
    reading_ms_per_frame: float
    total_speed_up: float

    HEADER = (
        "N",
        "P-frames from",
        "fidelity",
        "P-frames: 5th pct",
        "worst",
        "moments IoU",
        f"IoU ≥ {SHARE_IOU:g}",
        "GFLOPs per frame",
        "model faster",
        "with reading",
    )

    SHORT = ("N", "P-frames from", "fidelity", "P 5th", "worst", "IoU", f"≥ {SHARE_IOU:g}", "GFLOPs", "model", "total")

    def cells(self) -> list[str]:
        """One text per column of `HEADER`."""
        return [
            str(self.setting.interleave) if self.setting.has_interleave else "-",
            self.setting.label,
            _three(self.fidelity_mean),
            _three(self.p_p5),
            _three(self.p_min),
            "-" if self.moment_iou is None else f"{self.moment_iou:.2f}",
            "-" if self.moment_share is None else f"{100 * self.moment_share:.0f} %",
            f"{self.gflops_per_frame:.3g}",
            f"{self.encode_speed_up:.2f}x",
            f"{self.total_speed_up:.2f}x",
        ]

    def as_dict(self) -> dict[str, Any]:
        """Flat, ready for JSON."""
        figures = asdict(self)
        return {**figures.pop("setting"), **figures}


@dataclass
class Tally:
    """What has been measured of one setting so far: over windows, then over videos. Seconds of encoding, reading."""

    reads_motion: bool = False
    cosines: list[np.ndarray] = field(default_factory=list)
    reduced: list[np.ndarray] = field(default_factory=list)  # bool [T]: is it no I-frame?
    ious: list[float] = field(default_factory=list)
    macs: float = 0.0
    seconds: float = 0.0
    reading: float = 0.0

    def add(self, other: Tally) -> None:
        self.cosines += other.cosines
        self.reduced += other.reduced
        self.ious += other.ious
        self.macs += other.macs
        self.seconds += other.seconds
        self.reading += other.reading

    def row(self, setting: Setting, dense: Tally) -> Row:
        """The figures; `dense` is the tally of dense encoding over the same frames."""
        cosines, reduced = np.concatenate(self.cosines), np.concatenate(self.reduced)
        of_p, frames = cosines[reduced], len(cosines)
        return Row(
            setting=setting,
            frames=frames,
            p_frames=len(of_p),
            fidelity_mean=float(cosines.mean(dtype=np.float64)),
            fidelity_p5=float(np.percentile(cosines, 5)),
            fidelity_min=float(cosines.min()),
            p_mean=float(of_p.mean(dtype=np.float64)) if len(of_p) else None,
            p_p5=float(np.percentile(of_p, 5)) if len(of_p) else None,
            p_min=float(of_p.min()) if len(of_p) else None,
            moments=len(self.ious),
            moment_iou=float(np.mean(self.ious)) if self.ious else None,
            moment_share=float(np.mean(np.array(self.ious) >= SHARE_IOU)) if self.ious else None,
            gflops_per_frame=self.macs / frames / 1e9,
            encode_ms_per_frame=1000 * self.seconds / frames,
            encode_speed_up=dense.seconds / self.seconds,
            reads_motion=self.reads_motion,
            reading_ms_per_frame=1000 * self.reading / frames,
            total_speed_up=(dense.seconds + dense.reading) / (self.seconds + self.reading),
        )


@dataclass(frozen=True)
class WindowSpan:
    """A part of a video that was read: frames [first, past) of T, [start, end) in seconds."""

    first: int
    past: int
    start: float
    end: float


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One query in one window: the moment in dense features and in those of every setting."""

    query: str
    dense: Moment
    found: dict[Setting, Moment]
    ious: dict[Setting, float]


@dataclass(frozen=True, kw_only=True)
class WorstFrame:
    """A P-frame that came out badly. Pictures are JPEG, as the model sees them; what was left out is washed out."""

    time: float
    i_time: float
    cosine: float
    picture: bytes
    i_picture: bytes


@dataclass(frozen=True, kw_only=True)
class VideoAudit:
    """One video. times float64 [T] seconds; cosines: per setting float32 [T]; reduced: per setting bool [T].

    worst: pictures, for those settings with which this is one of the videos that come out worst.
    """

    path: str
    times: np.ndarray
    windows: list[WindowSpan]
    motion_source: str | None
    rows: list[Row]
    cosines: dict[Setting, np.ndarray]
    reduced: dict[Setting, np.ndarray]
    answers: list[Answer]
    worst: dict[Setting, list[WorstFrame]]

    def row(self, setting: Setting) -> Row:
        return next(row for row in self.rows if row.setting == setting)

    def as_dict(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "frames": len(self.times),
            "windows": [[window.start, window.end] for window in self.windows],
            "motion_source": self.motion_source,
            "reading_ms_per_frame": self.rows[0].reading_ms_per_frame,
            "rows": [row.as_dict() for row in self.rows],
            "queries": [
                {
                    "query": answer.query,
                    "dense": [answer.dense.start, answer.dense.end],
                    "moments": [
                        {**asdict(setting), "start": moment.start, "end": moment.end, "iou": answer.ious[setting]}
                        for setting, moment in answer.found.items()
                    ],
                }
                for answer in self.answers
            ],
            "worst": [
                {**asdict(setting), "time": frame.time, "i_frame": frame.i_time, "cosine": frame.cosine}
                for setting, frames in self.worst.items()
                for frame in frames
            ],
        }


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What to use. `setting` is None where nothing cheaper than dense reaches the target; `reached` says so too.

    command, code: how to encode with it, on the command line and in Python. remark, remark_code: a zero-cost baseline
    that reaches the target for less, if one does.
    """

    setting: Setting | None
    sentence: str
    command: str | None = None
    code: str | None = None
    remark: str | None = None
    remark_code: str | None = None

    @property
    def reached(self) -> bool:
        return self.setting is not None

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "reached": self.reached}


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Everything an audit found. rows: over the frames of all videos, dense first; failures: one sentence each."""

    model: str
    dtype: str
    fps: float
    drop: float
    target: float
    rows: list[Row]
    videos: list[VideoAudit]
    failures: list[str]
    advice: Advice
    notes: list[str]

    HEADER = Row.HEADER

    @property
    def shown(self) -> Setting | None:
        """The setting that the report draws: what is advised, else the default or what comes next to that."""
        if self.advice.setting is not None:
            return self.advice.setting
        return next_to_default([row.setting for row in self.rows])

    @property
    def frames(self) -> int:
        return self.rows[0].frames

    @property
    def reading_ms_per_frame(self) -> float:
        """Decoding and resizing, without motion."""
        return self.rows[0].reading_ms_per_frame

    def cells(self) -> list[list[str]]:
        """The table, one list per row, columns as in `HEADER`."""
        return [row.cells() for row in self.rows]

    def summary(self) -> str:
        """What was looked at, in one sentence."""
        seconds = sum(window.end - window.start for video in self.videos for window in video.windows)
        counts = ((len(self.videos), "video"), (self.frames, "frame"))
        videos, frames = (f"{count} {what}{'s' if count != 1 else ''}" for count, what in counts)
        with_motion = next((row.reading_ms_per_frame for row in self.rows if row.reads_motion), None)
        motion = "" if with_motion is None else f" ({with_motion:.1f} with motion)"
        name = Path(self.model).name if Path(self.model).is_absolute() else self.model
        return (
            f"{videos}, {frames} at {self.fps:g} per second from {seconds:.0f} s; {name}, {self.dtype}; "
            f"P-frames drop {100 * self.drop:g} % of their patches. Reading a frame took "
            f"{self.reading_ms_per_frame:.1f} ms{motion}, dense encoding {self.rows[0].encode_ms_per_frame:.1f} ms."
        )

    def as_dict(self) -> dict[str, Any]:
        """Everything but the pictures, ready for JSON."""
        return {
            "model": self.model,
            "dtype": self.dtype,
            "fps": self.fps,
            "drop": self.drop,
            "target": self.target,
            "frames": self.frames,
            "reading_ms_per_frame": self.reading_ms_per_frame,
            "rows": [row.as_dict() for row in self.rows],
            "advice": self.advice.as_dict(),
            "notes": self.notes,
            "videos": [video.as_dict() for video in self.videos],
            "failures": self.failures,
        }


def next_to_default(settings: Iterable[Setting]) -> Setting | None:
    """What `everyframe encode` does unasked among these, or the one most like it.

    Adaptive reuse with a tolerance near 1; without, of ResidualViT N near 2, motion, with the token.
    """
    settings = list(settings)
    adaptive = [setting for setting in settings if setting.tolerance is not None]
    if adaptive:
        return min(adaptive, key=lambda s: abs((s.tolerance or 0.0) - TOLERANCE))
    candidates: Sequence[Setting] = [setting for setting in settings if setting.kind == "interleaved"]
    return min(candidates, key=lambda s: (abs(s.interleave - 2), s.select != "motion", not s.token), default=None)


def _three(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
