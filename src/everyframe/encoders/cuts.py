"""Where shots begin, told from the sampled frames alone and without looking ahead.

T frames, S side of a frame in pixels, g cells along a side of the small picture each frame is reduced to.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

THRESHOLD = 0.3

_CELLS = 14  # cells along a side at most
_BINS = 8  # of each of three colour histograms, over two standard deviations to both sides
_SPAN = 2.0
_ROWS = 4  # rows of a cell that are read, at most
_SHIFT = 3  # cells: the camera may move by 3/14 of a frame between two samples
_FLOOR = 0.1  # contrasts below this, in normalised units, are noise
_PAST = 3
_UNKNOWN = 0.3  # the unrest that is assumed while there is no past: two frames cannot tell a pan from a cut
_SLOPE = 0.66  # of a change of this size just before, this share is added to the threshold


class CutDetector:
    """Tells for each sampled frame whether a shot began after the sampled frame before it.

    Two frames differ by the geometric mean of two numbers from 0 to 1: how far their colour histograms lie apart,
    and how badly the better of their small shifts correlate. A moving camera keeps the colours, a flash or a fade
    keeps the layout, a cut rarely keeps either. The difference is a cut when it is above `threshold` plus a share
    of the mean of the three differences before it, so that unrest raises the bar. Both numbers are relative to the
    contrast of the two frames and so do not depend on how a model normalises its pixels.

    threshold: lower finds more cuts and raises more false alarms.
    Frames go in in order, in calls of any size; a new video needs a new detector.
    """

    def __init__(self, threshold: float = THRESHOLD) -> None:
        if isinstance(threshold, bool) or not isinstance(threshold, (int, float)):
            raise TypeError(f"threshold must be a number, got {threshold!r}")
        if not 0 < threshold < 1:
            raise ValueError(f"threshold must be between 0 and 1, got {threshold}")
        self.threshold = float(threshold)
        self._last: Tensor | None = None  # small picture [1, 3, g, g] of the last frame
        self._side = 0
        self._past: list[float] = []  # differences before the next frame, at most _PAST

    @torch.no_grad()
    def add(self, pixels: Tensor) -> np.ndarray:
        """The next preprocessed frames, float [T, 3, S, S] -> bool [T]; the first of a video is False.

        Raises TypeError or ValueError for anything else, or another S than before.
        """
        self._check(pixels)
        cuts = np.zeros(len(pixels), bool)
        if not len(pixels):
            return cuts
        small = _reduce(pixels)
        first = self._last is None
        pictures = small if self._last is None else torch.cat((self._last, small))
        self._last, self._side = small[-1:].clone(), pixels.shape[-1]
        for frame, change in enumerate(changes(pictures), start=int(first)):
            past = self._past or [_UNKNOWN]
            bar = self.threshold + _SLOPE * sum(past) / len(past)
            cuts[frame] = change > bar
            self._past = [*self._past, change][-_PAST:]
        return cuts

    def _check(self, pixels: Tensor) -> None:
        if not isinstance(pixels, Tensor):
            raise TypeError(
                f"pixels must be a tensor, got {type(pixels).__name__}; model.preprocess(frames) makes them"
            )
        square = pixels.ndim == 4 and pixels.shape[1] == 3 and pixels.shape[2] == pixels.shape[3] > 1
        if not square:
            raise ValueError(f"pixels must be [T, 3, S, S], got {list(pixels.shape)}; use model.preprocess(frames)")
        if not pixels.is_floating_point():
            raise ValueError(f"pixels must be floating point, got {pixels.dtype}; use model.preprocess(frames)")
        if self._last is not None and pixels.shape[-1] != self._side:
            raise ValueError(
                f"pixels must keep their side of {self._side}, got {pixels.shape[-1]}; a new video needs a new detector"
            )


def changes(pictures: Tensor) -> list[float]:
    """How much each small picture differs from the one before: float [T, 3, g, g] -> T - 1 numbers in [0, 1]."""
    if len(pictures) < 2:
        return []
    return (_colours_apart(pictures) * _layouts_apart(pictures)).sqrt().tolist()


def _reduce(pixels: Tensor) -> Tensor:
    """Means over cells of a few pixels: [T, 3, S, S] -> float32 [T, 3, g, g] on the CPU.

    Of the rows of a cell a few are read: neighbours say the same, and reading is most of the cost.
    """
    side = pixels.shape[-1]
    cell = math.ceil(side / _CELLS)
    grid = side // cell
    rows = pixels[:, :, : grid * cell, : grid * cell].unflatten(2, (grid, cell))[:, :, :, :: math.ceil(cell / _ROWS)]
    # One addition after the other: their order, and so the result, is the same for every number of frames.
    total = rows[:, :, :, 0].float()
    for row in range(1, rows.shape[3]):
        total = total + rows[:, :, :, row]
    return (total.unflatten(3, (grid, cell)).sum(4) / (cell * rows.shape[3])).cpu()


def _colours_apart(pictures: Tensor) -> Tensor:
    """Share of the cells that would have to change their colour bin, [T - 1]: brightness and two opponent colours.

    Bins lie around the mean of both frames and are measured in their common standard deviation of brightness.
    """
    red, green, blue = pictures.flatten(2).unbind(1)
    values = torch.stack(((red + green + blue) / 3, red - green, (red + green) / 2 - blue), dim=1)
    mean, variance = values.mean(2), values.var(2, correction=0)
    centre = (mean[1:] + mean[:-1]) / 2
    spread = (variance[1:, 0] + variance[:-1, 0]) / 2 + ((mean[1:, 0] - mean[:-1, 0]) / 2) ** 2
    scale = (_BINS - 1) / (2 * _SPAN) / (spread.sqrt() + _FLOOR)
    before = _histograms(values[:-1], centre, scale)
    return (_histograms(values[1:], centre, scale) - before).abs().sum((1, 2)) / 6


def _histograms(values: Tensor, centre: Tensor, scale: Tensor) -> Tensor:
    """Soft histograms, each value shared between the two nearest bins: [n, 3, cells] -> [n, 3, bins]."""
    place = ((values - centre[..., None]) * scale[:, None, None] + (_BINS - 1) / 2).clamp(0, _BINS - 1)
    # The mean of min(max(place - k, 0), 1) over the cells is the share above bin k, softly; bins are its differences.
    above = [torch.ones_like(centre)] + [(place - k).clamp(0, 1).mean(2) for k in range(_BINS - 1)]
    above.append(torch.zeros_like(centre))
    steps = torch.stack(above, dim=2)
    return steps[..., :-1] - steps[..., 1:]


def _layouts_apart(small: Tensor) -> Tensor:
    """1 - the best correlation of two frames over small shifts, where they overlap; at least 0: [T - 1]."""
    side = small.shape[-1]
    reach = min(_SHIFT, side // 4)
    size = side + reach
    spectrum = torch.fft.rfft2(small, s=(size, size))
    products = torch.fft.irfft2((spectrum[1:] * spectrum[:-1].conj()).sum(1), s=(size, size))
    shifts = torch.arange(-reach, reach + 1)
    products = products[:, shifts % size][:, :, shifts % size]
    # Frame t at place p against frame t - 1 at p - shift: the rows (and columns) of each that the other has.
    place = torch.arange(side)
    later = ((place - shifts[:, None] >= 0) & (place - shifts[:, None] < side)).to(small)
    earlier = later.flip(0)
    count = later.sum(1)[:, None] * later.sum(1)

    def sums(values: Tensor, keep: Tensor) -> Tensor:
        return keep @ values @ keep.T

    sums_later, sums_earlier = sums(small[1:], later), sums(small[:-1], earlier)
    squares = small * small
    common = products - (sums_later * sums_earlier / count).sum(1)
    energy_later = (sums(squares[1:], later) - sums_later**2 / count).sum(1).clamp(min=0)
    energy_earlier = (sums(squares[:-1], earlier) - sums_earlier**2 / count).sum(1).clamp(min=0)
    floor = 3 * count * (_FLOOR / 4) ** 2
    best = (common / ((energy_later + floor) * (energy_earlier + floor)).sqrt()).amax((1, 2))
    return (1 - best).clamp(0, 1)
