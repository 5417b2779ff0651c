"""Motion between sampled frames: from the codec's own vectors, or from luma where a codec exports none.

Maps live on a grid of 8x8 coded pixels while they are accumulated and on a grid over the whole upright
picture when they are handed out. With vectors, a cell holds the distance in source pixels that its content
travelled since the previous sample: each picture adds |vector| x (time since the previous picture) / (time to
the picture the vector points at). Cells without a vector in a predicted picture are new content and add
`INTRA_PIXELS`. A picture without any vectors (an I picture) adds what the luma change to the picture before it
suggests, so a key frame in a still scene adds nothing.
"""

from __future__ import annotations

import math

import numpy as np
from av.video.reformatter import VideoReformatter

from everyframe.video.opening import Geometry, side_data
from everyframe.video.shown import Picture

CELL_PIXELS = 8
INTRA_PIXELS = 16.0
"""What a block coded without prediction counts as, in pixels: content that was not there before."""
LUMA_LEVELS_IGNORED = 2.0
PIXELS_PER_LUMA_LEVEL = 0.25
"""An I picture adds (mean |luma change| - 2 levels) x 0.25 px, at most INTRA_PIXELS (from 66 levels on)."""

_SAMPLES_PER_CELL = 4


class MotionMeter:
    """Accumulates motion over every decoded picture; `take()` hands out the map since the last `take()`."""

    def __init__(self, geometry: Geometry, codec: str):
        self._geometry = geometry
        # MPEG-4's B pictures mostly inherit their motion and then export zeros, so its P pictures, whose
        # vectors span the B pictures before them, speak for those too.
        self._skip_b_pictures = codec == "mpeg4"
        self._rows = math.ceil(geometry.coded_height / CELL_PIXELS)
        self._columns = math.ceil(geometry.coded_width / CELL_PIXELS)
        width, height = geometry.upright_before_turn
        self._to_shown_rows = _overlap(self._rows, geometry.coded_height, math.ceil(height / CELL_PIXELS))
        self._to_shown_columns = _overlap(self._columns, geometry.coded_width, math.ceil(width / CELL_PIXELS))
        self._total = np.zeros((self._rows, self._columns))
        self._vector_pictures = 0
        self._previous: Picture | None = None
        self._sampled_luma: np.ndarray | None = None
        self._fresh = True  # nothing was handed out yet
        self._reformatter = VideoReformatter()
        self.source: str | None = None

    def add(self, picture: Picture) -> None:
        """Account for the motion from the previously decoded picture to this one."""
        previous = self._previous
        if previous is not None and self._skip_b_pictures and picture.picture_type == "B":
            return
        self._previous = picture
        if previous is None or self.source == "luma":
            return
        vectors = side_data(picture.frame).get("MOTION_VECTORS")
        if vectors is not None:
            self._vector_pictures += 1
            self._total += self._from_vectors(vectors.to_ndarray(), picture, previous)
        elif self.source == "codec" or self._vector_pictures:
            # An I picture, a predicted picture of only new content, or the last one of an MPEG-2 stream, whose
            # vectors FFmpeg forgets. Where no picture has vectors, nothing is accumulated: it will be luma.
            self._total += self._from_luma(picture, previous)

    def take(self, picture: Picture) -> tuple[np.ndarray, str | None]:
        """Upright map float32 [h, w] since the last call, and its source; `picture` is the sampled one."""
        if self._fresh:
            total, source = np.zeros_like(self._total), None
            self._sampled_luma = self._luma(picture)
            self._fresh = False
        else:
            if self.source is None:
                self.source = "codec" if self._vector_pictures else "luma"
            source = self.source
            if source == "codec":
                total = self._total
                self._sampled_luma = None
            else:
                luma = self._luma(picture)
                total = self._difference(luma, self._sampled_luma)
                self._sampled_luma = luma
        self._total = np.zeros_like(self._total)
        shown = self._to_shown_rows @ total @ self._to_shown_columns.T
        return self._geometry.orient(shown.astype(np.float32)), source

    def restart(self) -> None:
        """Go on elsewhere in the video: the next map is that of a first sample, but the source stays."""
        self._total = np.zeros_like(self._total)
        self._previous = self._sampled_luma = None
        self._fresh = True

    def _from_vectors(self, vectors: np.ndarray, picture: Picture, previous: Picture) -> np.ndarray:
        elapsed = picture.time - previous.time
        length = np.hypot(vectors["motion_x"], vectors["motion_y"]) / np.maximum(vectors["motion_scale"], 1)
        back = elapsed / (picture.past or elapsed)
        ahead = elapsed / (picture.future or elapsed)
        length = length * np.where(vectors["source"] < 0, back, ahead)
        rows = math.ceil(picture.frame.height / CELL_PIXELS)
        columns = math.ceil(picture.frame.width / CELL_PIXELS)
        moved = _spread(vectors, length, rows, columns)
        if (rows, columns) != (self._rows, self._columns):  # the stream changed its size on the way
            down = _overlap(rows, picture.frame.height, self._rows)
            across = _overlap(columns, picture.frame.width, self._columns)
            moved = down @ moved @ across.T
        return moved

    def _from_luma(self, picture: Picture, previous: Picture) -> np.ndarray:
        change = self._difference(self._luma(picture), self._luma(previous))
        return np.clip((change - LUMA_LEVELS_IGNORED) * PIXELS_PER_LUMA_LEVEL, 0.0, INTRA_PIXELS)

    def _luma(self, picture: Picture) -> np.ndarray:
        small = self._reformatter.reformat(
            picture.frame,
            width=self._columns * _SAMPLES_PER_CELL,
            height=self._rows * _SAMPLES_PER_CELL,
            format="gray",
            interpolation="AREA",
        )
        return small.to_ndarray()

    def _difference(self, luma: np.ndarray, before: np.ndarray | None) -> np.ndarray:
        if before is None:
            return np.zeros_like(self._total)
        change = np.abs(luma.astype(np.int16) - before)
        cells = change.reshape(self._rows, _SAMPLES_PER_CELL, self._columns, _SAMPLES_PER_CELL)
        return cells.mean(axis=(1, 3))


def _spread(vectors: np.ndarray, length: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Mean length of the vectors that cover each cell [rows, columns]; INTRA_PIXELS where none does."""
    width, height = vectors["w"].astype(np.int32), vectors["h"].astype(np.int32)
    left, top = vectors["dst_x"] - width // 2, vectors["dst_y"] - height // 2
    cells, lengths = [], []
    for down in range(0, int(height.max(initial=CELL_PIXELS)), CELL_PIXELS):
        for across in range(0, int(width.max(initial=CELL_PIXELS)), CELL_PIXELS):
            row, column = (top + down) // CELL_PIXELS, (left + across) // CELL_PIXELS
            inside = (
                ((down < height) | (down == 0))
                & ((across < width) | (across == 0))
                & (row >= 0)
                & (row < rows)
                & (column >= 0)
                & (column < columns)
            )
            cells.append((row * columns + column)[inside])
            lengths.append(length[inside])
    index = np.concatenate(cells)
    total = np.bincount(index, weights=np.concatenate(lengths), minlength=rows * columns)
    count = np.bincount(index, minlength=rows * columns)
    moved = np.where(count > 0, total / np.maximum(count, 1), INTRA_PIXELS)
    return moved.reshape(rows, columns)


def _overlap(cells: int, pixels: int, shown_cells: int) -> np.ndarray:
    """Weights [shown_cells, cells] that average cells of 8 pixels into equal parts of `pixels` pixels.

    10 pixels are one cell and a quarter: as two shown cells of 5 pixels, the first is all cell 0, the second
    3/5 cell 0 and 2/5 cell 1.
    """
    edges = np.minimum(np.arange(cells + 1) * CELL_PIXELS, pixels).astype(float)
    bounds = np.linspace(0.0, pixels, shown_cells + 1)
    begin = np.maximum(edges[None, :-1], bounds[:-1, None])
    finish = np.minimum(edges[None, 1:], bounds[1:, None])
    shared = np.clip(finish - begin, 0.0, None)
    return shared / shared.sum(axis=1, keepdims=True)
