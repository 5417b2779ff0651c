"""Operations and bytes of each stage between a file and its features, and the limit that binds it (the roofline).

Operations are floating point ones (of int8 models: integer ones), 2 for a multiply-accumulate. Those of the model are
`everyframe.flops` with rule="all": products of matrices and of attention, without norms, activations and softmax.

Bytes are those that must move if every operation reads its inputs and writes its output once and nothing is kept
between operations: a convention, not a measurement. What fits into a cache moves fewer, what is copied on the way more.

A stage takes at least as long as its operations at the machine's highest rate, and at least as long as its bytes at
the rate of a copy in memory. The longer of the two binds; its share is that time over the measured one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

FLOP_PER_MAC = 2
_RADIUS = {"bilinear": 1, "bicubic": 2}


@dataclass(frozen=True)
class Work:
    """operations: FLOP. bytes: read and written."""

    operations: float
    bytes: float

    def __add__(self, other: Work) -> Work:
        return Work(self.operations + other.operations, self.bytes + other.bytes)

    def times(self, count: float) -> Work:
        return Work(self.operations * count, self.bytes * count)


def bound(work: Work, *, operations_per_second: float, bytes_per_second: float) -> tuple[str, float]:
    """What binds, "compute" or "bandwidth", and the seconds that the work takes at that limit."""
    compute, moving = work.operations / operations_per_second, work.bytes / bytes_per_second
    return ("compute", compute) if compute >= moving else ("bandwidth", moving)


def rgb_work(width: int, height: int) -> Work:
    """One decoded frame, yuv420p, to RGB: nine multiply-accumulates per pixel; 1.5 bytes read, 3 written."""
    pixels = width * height
    return Work(9 * FLOP_PER_MAC * pixels, 4.5 * pixels)


def resize_work(width: int, height: int, preprocess: dict[str, Any]) -> Work:
    """One RGB frame to normalised pixels: two passes of an antialiased filter over what the crop keeps, then a scale.

    Columns first: every row that is needed shrinks to S values of 3 channels, each of as many multiply-accumulates as
    the filter is wide; then the rows. preprocess: `Preprocess.settings()`.
    """
    side = preprocess["size"]
    if preprocess["stretch"] is not None:
        down, across = height / preprocess["stretch"], width / preprocess["stretch"]
    else:
        down = across = min(width, height) / (preprocess["shorter_side"] or min(width, height))
    radius = _RADIUS[preprocess["resample"]]
    taps_across, taps_down = (math.ceil(2 * radius * max(1.0, factor)) for factor in (across, down))
    rows, columns = min(height, side * down), min(width, side * across)
    between, out = 3 * rows * side, 3 * side * side
    macs = between * taps_across + out * taps_down + out
    # Source read; the passes write and read bytes; the last step reads bytes and writes float32.
    return Work(FLOP_PER_MAC * macs, 3 * rows * columns + 2 * between + out + out + 4 * out)


def change_work(side: int, patch_size: int, cell: int) -> Work:
    """Planning one frame by "change": means of cells of all channels, and their squared differences."""
    values, cells = 3 * side * side, 3 * (side // patch_size * (patch_size // cell)) ** 2
    return Work(values + 3 * cells, 4 * values + 12 * cells)


def motion_work(side: int) -> Work:
    """Choosing one P-frame's patches by motion: every value of its map is added to its patch's sum."""
    return Work(side * side, 4 * side * side)


def tower_bytes(
    config: Any,
    *,
    patches: float,
    tokens: float,
    keys: float,
    features: float,
    passes: float,
    weight_bytes: int,
    value_bytes: int,
) -> float:
    """Bytes that frames move in the vision tower.

    patches: embedded; tokens: through the blocks; keys: read by attention (of frames that are read in full: tokens);
    features: that come out; all summed over the frames. passes: how often the weights are read.
    weight_bytes, value_bytes: of one weight and of one activation; pixels are float32.

    Per token and block, W wide with H hidden: norm 2 W; q, k, v from W to 3 W; attention reads q and writes W; its
    output from W to W; sum 3 W; norm 2 W; MLP from W to H, activation 2 H, from H to W; sum 3 W: 20 W + 4 H. Each key
    and value is read once more: 2 W per key.
    """
    width, hidden, depth = config.width, config.mlp_width, config.depth
    hidden_in = hidden * (2 if config.gated_mlp else 1)
    weights = depth * (4 * width**2 + width * hidden_in + hidden * width) + 3 * config.patch_size**2 * width
    if config.projection:
        weights += width * config.dim
    values = depth * (tokens * (20 * width + 4 * hidden) + keys * 2 * width) + patches * width + features * config.dim
    return passes * weights * weight_bytes + values * value_bytes + patches * 3 * config.patch_size**2 * 4
