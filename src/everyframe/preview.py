"""What an encoder would do with a video, found out without running the model.

T sampled frames, P patches of a frame.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from everyframe.backbone import Model
from everyframe.cost import Rule
from everyframe.encoders import DenseEncoder, Encoder, Plan
from everyframe.encoders.calibration import Calibration
from everyframe.encoders.cuts import CutDetector
from everyframe.encoders.planner import debts
from everyframe.pipeline.window import last_end, preprocessed
from everyframe.timeline import plan_picture
from everyframe.video import Source, sample_frames, write_image

_THUMBNAIL = 112  # pixels along a side
_PICTURES = 256  # kept at most


@dataclass(frozen=True, kw_only=True)
class Preview:
    """A plan and what follows from it.

    times: float64 [T] seconds, and when the last frame ends. left_out: float [T], what each frame leaves out in the
    unit of the tolerance; None where the plan does not look at change. cuts: frames with which a shot begins, whether
    the plan heeds them or not. pictures: (seconds, JPEG) of I-frames as the model sees them, if asked for.
    planning_seconds, reading_seconds: what planning took, and decoding and preprocessing.
    """

    encoder: Encoder
    times: np.ndarray
    end_seconds: float
    plan: Plan
    left_out: list[float] | None
    cuts: list[int]
    pictures: list[tuple[float, bytes]]
    planning_seconds: float
    reading_seconds: float

    @cached_property
    def shares(self) -> np.ndarray:
        """Share of the patches of each frame that is computed: float64 [T]."""
        shares = self.plan.counts.numpy() / self.encoder.model.vision.num_patches
        return np.where([role == "I" for role in self.plan.roles], 1.0, shares)

    def gflops_per_frame(self, rule: Rule) -> float:
        """Multiply-accumulates per frame, in billions."""
        return sum(self.encoder.plan_macs(self.plan, rule).values()) / len(self.times) / 1e9

    def share_of_dense(self, rule: Rule) -> float:
        """The same as a share of what encoding every frame in full costs."""
        full = DenseEncoder(self.encoder.model).macs(1, rule)
        return self.gflops_per_frame(rule) * 1e9 / sum(full.values())

    def predict(self, calibration: Calibration) -> float:
        """Mean fidelity to be expected. Raises ValueError for a plan that no calibration is measured for."""
        if self.encoder.looks_ahead:
            raise ValueError("calibrations are measured without two_sided, so nothing can be predicted with it")
        if self.left_out is None:
            raise ValueError(f"fidelity is predicted from change, which {self.encoder.settings} does not look at")
        return calibration.predict(self.plan.roles, self.left_out)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as `everyframe plan --json` prints them."""
        roles, frames = self.plan.roles, len(self.times)
        rules: tuple[Rule, Rule] = ("paper", "all")
        partial = self.shares[self.plan.counts.numpy() > 0]
        return {
            "model": self.encoder.model.name,
            "settings": self.encoder.settings,
            "frames": frames,
            "start_seconds": float(self.times[0]),
            "end_seconds": self.end_seconds,
            "roles": {role: roles.count(role) for role in "IPC"},
            "cuts": [float(self.times[cut]) for cut in self.cuts],
            "share_computed": float(self.shares.mean()),
            "share_computed_of_p": float(partial.mean()) if len(partial) else None,
            "gflops_per_frame": {rule: self.gflops_per_frame(rule) for rule in rules},
            "gflops_share": {rule: self.share_of_dense(rule) for rule in rules},
            "planning_ms_per_frame": 1000 * self.planning_seconds / frames,
            "reading_ms_per_frame": 1000 * self.reading_seconds / frames,
            "plan": roles,
        }

    def picture(self, title: str, note: str = "") -> str:
        """An SVG, see `timeline.plan_picture`."""
        return plan_picture(
            self.times.tolist(),
            self.end_seconds,
            self.plan.roles,
            self.shares.tolist(),
            title=title,
            note=note,
            debt=None if self.left_out is None else debts(self.plan.roles, self.left_out),
            tolerance=self.encoder.settings.get("tolerance"),
            cuts=[float(self.times[cut]) for cut in self.cuts],
            thumbnails=self.pictures,
        )


def preview_video(
    source: Source,
    encoder: Encoder,
    *,
    fps: float = 3.0,
    start: float | None = None,
    end: float | None = None,
    keep_partial: bool = False,
    pictures: bool = False,
) -> Preview:
    """Read a video as `encode_video` does and plan it, streaming; the model may be a `skeleton`.

    pictures: keep small pictures of I-frames. Raises VideoError for damage (unless `keep_partial`), or no frame in
    there.
    """
    planner, detector = encoder.planner(), CutDetector()
    times: list[float] = []
    cuts: list[int] = []
    waiting: list[tuple[float, np.ndarray]] = []  # pictures of frames that are not decided yet
    kept: list[tuple[float, bytes]] = []
    plans: list[Plan] = []
    planning = 0.0
    started = time.perf_counter()
    beside = 0.0  # spent on what encoding would not do
    motion = encoder.needs_motion
    sampled = sample_frames(
        source, fps, start=start, end=end, motion=motion, on_damage="skip" if keep_partial else "raise"
    )
    with sampled:
        for part in preprocessed(sampled, encoder.model, motion=motion):
            before = time.perf_counter()
            piece = planner.add(part.pixels, part.motion)
            after = time.perf_counter()
            planning += after - before
            plans.append(piece)
            cuts += (np.flatnonzero(detector.add(part.pixels)) + len(times)).tolist()
            if pictures:
                waiting += zip(part.times, _small(encoder.model, part.pixels), strict=True)
                kept += _pictures(waiting, piece.roles)
                if len(kept) > _PICTURES:
                    kept = kept[::2]  # a dozen will be drawn, from all over the video
            times += part.times
            beside += time.perf_counter() - after
    plans.append(planner.finish())
    kept += _pictures(waiting, plans[-1].roles)
    left_out: list[float] = getattr(planner, "left_out", [])
    stop = last_end(times[-1], sampled.last_end_seconds, end)
    return Preview(
        encoder=encoder,
        times=np.array(times, np.float64),
        end_seconds=times[-1] + 1 / fps if stop is None else stop,
        plan=Plan.joined(plans),
        left_out=left_out or None,
        cuts=cuts,
        pictures=kept,
        planning_seconds=planning,
        reading_seconds=time.perf_counter() - started - planning - beside,
    )


def _small(model: Model, pixels: Tensor) -> np.ndarray:
    """Frames as the model sees them, shrunk: uint8 [T, H, W, 3]."""
    frames = model.pack(pixels).float()
    if frames.shape[-1] > _THUMBNAIL:
        frames = F.interpolate(frames, size=(_THUMBNAIL, _THUMBNAIL), mode="bilinear", antialias=True)
    return frames.round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()


def _pictures(waiting: list[tuple[float, np.ndarray]], roles: str) -> list[tuple[float, bytes]]:
    """JPEGs of the I-frames among the first frames, which wait no longer."""
    decided = waiting[: len(roles)]
    del waiting[: len(roles)]
    return [
        (time, write_image(None, frame, quality=80))
        for role, (time, frame) in zip(roles, decided, strict=False)
        if role == "I"
    ]
