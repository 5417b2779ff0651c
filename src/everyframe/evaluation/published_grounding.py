"""What the ResidualViT paper reports on zero-shot grounding, to print beside what is measured here.

All of ViT-L/14, dropping 85 % of the patches by motion, one I-frame and N=2 P-frames after it; Charades-STA at 3,
ActivityNet Captions at 1 and MAD at 5 frames per second. Source: Soldan et al., "ResidualViT for Efficient Temporally
Dense Video Encoding" (ICCV 2025): Table 1, rows a, c and d, and its comparison with CLIP on ActivityNet Captions and
MAD. Nothing here is a claim of ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from everyframe.backbone import Model
from everyframe.encoders import DenseEncoder, Encoder, ResidualViT

_RULE = {"method": "watershed", "smooth": 5.0, "threshold": 1.0}

COST = "GFLOPs/s"
"""Key of the cost: 10^9 multiply-accumulates per second of video."""

_TABLE: dict[tuple[str, str], dict[str, float]] = {
    ("charades", "clip"): {"R1@0.5": 42.9, "R1@0.7": 24.1, COST: 233.4},
    ("charades", "interleaved"): {"R1@0.5": 38.9, "R1@0.7": 22.8, COST: 102.0},
    ("charades", "residualvit"): {"R1@0.5": 41.5, "R1@0.7": 23.8, COST: 102.6},
    ("activitynet", "clip"): {"R1@0.5": 29.1},
    ("activitynet", "residualvit"): {"R1@0.5": 28.3},
    ("mad", "clip"): {"R1@0.3": 8.6, "R1@0.5": 5.0},
    ("mad", "residualvit"): {"R1@0.3": 7.3, "R1@0.5": 4.3},
}


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a dataset is evaluated: features per second, and the K of R@K."""

    fps: float = 3.0
    tops: tuple[int, ...] = (1, 5, 10)


PROTOCOLS = {
    "charades": Protocol(),
    "activitynet": Protocol(fps=1.0),
    "qvhighlights": Protocol(),
    "mad": Protocol(fps=5.0, tops=(1, 5, 10, 50, 100)),
    "tacos": Protocol(),
}
"""The paper has no QVHighlights and no TACoS: for these, its rate for short videos."""


def published(dataset: str | None, encoder: Encoder, fps: float, options: Mapping[str, object]) -> dict[str, float]:
    """The paper's numbers by metric for this dataset, model, encoder and rate; empty where it has none.

    options: of `ground`; others than the paper's have no published numbers either.
    """
    row = _row(encoder)
    if dataset not in PROTOCOLS or row is None or not _is_large_clip(encoder.model):
        return {}
    if PROTOCOLS[dataset].fps != fps or any(options[name] != value for name, value in _RULE.items()):
        return {}
    return dict(_TABLE.get((dataset, row), {}))


def _row(encoder: Encoder) -> str | None:
    """The line of the paper's tables that an encoder stands for."""
    if isinstance(encoder, DenseEncoder):
        return "clip"
    if not isinstance(encoder, ResidualViT) or encoder.plan != "fixed":
        return None
    chosen = (encoder.interleave, encoder.drop, encoder.select, encoder.reduction)
    if chosen != (2, 0.85, "motion", "drop") or encoder.merge is not None:
        return None
    return "interleaved" if encoder.tokenizer is None else "residualvit"


def _is_large_clip(model: Model) -> bool:
    config = model.vision.config
    size = (config.width, config.depth, config.patch_size, config.image_size, config.dim)
    return model.family == "clip" and size == (1024, 24, 14, 224, 768)
