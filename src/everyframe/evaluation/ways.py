"""The ways to encode a video that the results page compares: dense, interleaved, reuse, and two that cost nothing more.

T frames, D width of the joint space.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from everyframe.backbone import Model
from everyframe.encoders import DenseEncoder, Encoder, ResidualTokenizer, ResidualViT, ReuseEncoder
from everyframe.encoders.baselines import copy_features, interpolate_features
from everyframe.encoders.plan import fixed_roles
from everyframe.encoders.tokenizer import shipped_tokenizer
from everyframe.pipeline import Window

INTERLEAVES = (1, 2, 3)
"""N of ResidualViT, as in the paper's figure 4."""
SHORTCUTS = (2, 5)
"""N of copying, interpolating and fixed reuse: that of the paper, and that of `ReuseEncoder`."""
DENSE = "dense"


@dataclass(frozen=True)
class Encoded:
    """features float32 [T, D]; macs: multiply-accumulates of all frames, attention included; roles: "IPC...", T."""

    features: np.ndarray
    macs: float
    roles: str


@dataclass(frozen=True, kw_only=True)
class Way:
    """One row of the results. run: (a window, its dense features) -> Encoded. kind: what its rows share in a plot.

    settings: what decides the features.
    """

    name: str
    label: str
    kind: str
    settings: dict[str, Any]
    run: Callable[[Window, np.ndarray], Encoded]


def ways(model: Model, *, residual: str = "auto") -> list[Way]:
    """Every way, dense first.

    residual: ResidualViT's tokenizer: "auto" (what ships with the model), "none", or a file. Where none ships the
    P-frames go without it, and the labels do not say "+ token". Raises what `ResidualTokenizer.load` does.
    """
    tokenizer: ResidualTokenizer | None = None
    file = shipped_tokenizer(model) if residual == "auto" else None if residual == "none" else residual
    if file is not None:
        tokenizer = ResidualTokenizer.load(file, model)
    token = " + token" if tokenizer is not None else ""
    dense = DenseEncoder(model)
    frame = sum(dense.macs(1, "all").values())
    label = "dense (every frame in full)"
    found = [Way(name=DENSE, label=label, kind=DENSE, settings=dense.settings, run=partial(_dense, frame))]

    def put(name: str, label: str, kind: str, encoder: Encoder) -> None:
        run = partial(_planned, encoder)
        found.append(Way(name=name, label=label, kind=kind, settings=encoder.settings, run=run))

    for n in INTERLEAVES:
        put(
            f"residual-{n}",
            f"ResidualViT N={n}{token}",
            f"ResidualViT{token}",
            ResidualViT(model, n, residual=tokenizer),
        )
    for n in SHORTCUTS:
        put(f"reuse-{n}", f"reuse N={n}", "reuse", ReuseEncoder(model, n))
    put("reuse-adaptive", "reuse, adaptive", "reuse, adaptive", ReuseEncoder(model, plan="adaptive"))
    for kind in ("copy", "interpolate"):
        for n in SHORTCUTS:
            run = partial(_shortcut, kind, n, frame)
            settings = {"encoder": kind, "interleave": n}
            found.append(Way(name=f"{kind}-{n}", label=f"{kind} N={n}", kind=kind, settings=settings, run=run))
    return found


def _dense(frame_macs: float, window: Window, dense: np.ndarray) -> Encoded:
    return Encoded(dense, frame_macs * len(dense), "I" * len(dense))


def _planned(encoder: Encoder, window: Window, dense: np.ndarray) -> Encoded:
    """As `encode_video` does it: the plan from the pixels, then one pass."""
    planner = encoder.planner()
    plan = planner.add(window.pixels, window.motion) + planner.finish()
    features = encoder.encode_planned(window.pixels, plan).float().cpu().numpy()
    return Encoded(features, sum(encoder.plan_macs(plan, "all").values()), plan.roles)


def _shortcut(kind: str, interleave: int, frame_macs: float, window: Window, dense: np.ndarray) -> Encoded:
    roles = fixed_roles(len(dense), interleave).replace("P", "C")
    if kind == "copy":
        features = copy_features(dense, interleave)
    else:
        features = interpolate_features(dense, window.times, interleave)
    return Encoded(features, frame_macs * roles.count("I"), roles)
