"""The trainers features can be written for: what each expects of a row, a file and a name."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

Phase = Literal["start", "middle"]
How = Literal["nearest", "mean"]


@dataclass(frozen=True, kw_only=True)
class Query:
    """One annotated text or action: `windows` are (start, end) in seconds of `video`, whose length is `duration`."""

    id: str
    video: str
    text: str | None = None
    windows: tuple[tuple[float, float], ...] = ()
    duration: float | None = None


@dataclass(frozen=True, kw_only=True)
class Target:
    """A trainer's layout. rate: rows per second, None for that of the features.

    layout: one "npy" or "npz" per video, or one "h5" for all. key: of the array in an npz.
    folder: where the videos go, below the output folder.
    phase: row k stands for k/rate ("start") or (k + 0.5)/rate ("middle") seconds.
    spread: the trainer gives no rate; it spreads the rows over the duration in its annotations.
    bare_ids: annotations name videos without the prefix that the files have.
    texts: the layout of text features, None where the trainer makes its own.
    """

    name: str
    layout: Literal["npy", "npz", "h5"]
    key: str = "features"
    folder: str = ""
    rate: float | None = None
    phase: Phase = "start"
    dtype: str = "float32"
    prefix: str = ""
    spread: bool = False
    bare_ids: bool = False
    texts: Literal["npz", "h5"] | None = None

    @property
    def suffix(self) -> str:
        """Of a video's file."""
        return f".{self.layout}"


TARGETS = {
    target.name: target
    for target in (
        Target(name="moment-detr", layout="npz", folder="clip", rate=0.5, phase="middle", texts="npz"),
        Target(name="lighthouse", layout="npz", folder="clip", rate=0.5, phase="middle", texts="npz"),
        Target(name="opentad", layout="npy", prefix="v_", bare_ids=True),
        Target(name="actionformer", layout="npy", prefix="v_", bare_ids=True),
        Target(name="mad", layout="h5", rate=5.0, texts="h5"),
        Target(name="vslnet", layout="npy", spread=True),
        Target(name="tfvtg", layout="npy", rate=3.0, dtype="float16", spread=True),
    )
}


def find_target(name: str) -> Target:
    """The target of that name. Raises ValueError."""
    if name not in TARGETS:
        raise ValueError(f"the target must be one of {', '.join(TARGETS)}, got {name!r}")
    return TARGETS[name]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides the content of an export; recorded in its folder, so that two are never mixed.

    rate: rows per second; it and phase are None until the first features decide them. strip, prefix: taken off and
    put before the name of a video's file. normalise: rows of length 1, whatever the features are. max_rows: rows after
    these are cut.
    """

    target: str
    rate: float | None
    phase: Phase | None
    how: How
    dtype: str
    prefix: str
    strip: str
    normalise: bool
    max_rows: int | None

    def __post_init__(self) -> None:
        if self.rate is not None and not (math.isfinite(self.rate) and self.rate > 0):
            raise ValueError(f"rate must be a positive number of rows per second, got {self.rate}")
        for name, value, allowed in (
            ("phase", self.phase or "start", ("start", "middle")),
            ("how", self.how, ("nearest", "mean")),
            ("dtype", self.dtype, ("float32", "float16")),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be {' or '.join(allowed)}, got {value!r}")
        if self.max_rows is not None and self.max_rows < 1:
            raise ValueError(f"max_rows must be at least 1, got {self.max_rows}")
        if "/" in self.prefix or "\\" in self.prefix:
            raise ValueError(f"prefix is a part of file names and must hold no slash, got {self.prefix!r}")

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def settings_of(target: Target, **asked: Any) -> Settings:
    """The target's own settings but for what was asked for; None asks for nothing."""
    usual: dict[str, Any] = {
        "rate": target.rate,
        "phase": None if target.rate is None else target.phase,
        "how": "nearest",
        "dtype": target.dtype,
        "prefix": target.prefix,
        "strip": "",
        "normalise": False,
        "max_rows": None,
    }
    usual.update((name, value) for name, value in asked.items() if value is not None)
    return Settings(target=target.name, **usual)
