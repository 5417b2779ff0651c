"""A procedural video world: seeded, captioned, and encoded with a real codec.

It exists because a test, a demo or an ablation needs videos whose content and event times are known
exactly. Objects (shape, colour, pattern, size) come and go in front of a textured background filmed by a
camera that pans, zooms and shakes, under changing light, with occlusion, scene cuts and sensor noise.
It says nothing about real footage except in one respect, which is measured per video: `moving_share`,
how much of the picture changes between two samples. `SequenceVideo` is of the same world: short videos that differ from
their partner in the order of their frames alone.

    H, W pixels; t seconds; lengths of objects and camera paths are in frame heights.
"""

from everyframe.synthetic.files import synthesize
from everyframe.synthetic.scene import (
    BACKGROUNDS,
    COLOURS,
    PATTERNS,
    SHAPES,
    SIZES,
    SPLITS,
    STYLES,
    Camera,
    Combinations,
    Entity,
    Event,
    Style,
)
from everyframe.synthetic.sequences import CHANGES, SequenceVideo, synthesize_sequences
from everyframe.synthetic.video import SyntheticVideo, moving_share

__all__ = [
    "BACKGROUNDS",
    "CHANGES",
    "COLOURS",
    "PATTERNS",
    "SHAPES",
    "SIZES",
    "SPLITS",
    "STYLES",
    "Camera",
    "Combinations",
    "Entity",
    "Event",
    "SequenceVideo",
    "Style",
    "SyntheticVideo",
    "moving_share",
    "synthesize",
    "synthesize_sequences",
]
