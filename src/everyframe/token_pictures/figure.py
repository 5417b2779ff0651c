"""Pictures of frames in bands, with letters around them. matplotlib writes the letters and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from everyframe.extras import require
from everyframe.token_pictures.patches import tint

_COLUMNS = 6  # frames beside each other, at most
_LEFT, _RIGHT, _TOP = 36, 16, 64  # margins
_GAP, _CAPTION, _BAND = 4, 24, 14  # between pictures, above a band's first row, between bands
_WIDTH = 740  # of a figure, at least, so that its letters find room
_BAR = (220, 14)  # width and height of the scale
_SCALE, _NOTE = 24, 17  # heights of the lines below the pictures
_PAPER, _INK, _SOFT = 255, "#1f2328", "#59636e"


@dataclass(frozen=True)
class Layout:
    """Where the pictures of a figure are. count: frames; rows: pictures of each frame, one above the other; side:
    pixels along their sides; columns: frames beside each other; foot: pixels below them, for the scale and notes."""

    count: int
    rows: int
    side: int
    columns: int
    foot: int = 0

    @property
    def band(self) -> int:
        """Pixels from the top of one band of frames to that of the next."""
        return _CAPTION + self.rows * (self.side + _GAP) - _GAP + _BAND

    @property
    def bands(self) -> int:
        return -(-self.count // self.columns)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the figure."""
        width = _LEFT + self.columns * (self.side + _GAP) - _GAP + _RIGHT
        return _TOP + self.bands * self.band - _BAND + self.foot, max(width, _WIDTH)

    def corner(self, frame: int, row: int) -> tuple[int, int]:
        """Top and left of one picture."""
        band, column = divmod(frame, self.columns)
        top = _TOP + band * self.band + _CAPTION + row * (self.side + _GAP)
        return top, _LEFT + column * (self.side + _GAP)


def lay_out(count: int, rows: int, side: int, foot: int = 0) -> Layout:
    """Frames in as few bands as there must be, of about the same length."""
    bands = -(-count // _COLUMNS)
    return Layout(count, rows, side, columns=-(-count // bands), foot=foot)


def compose(rows: Sequence[np.ndarray], layout: Layout) -> np.ndarray:
    """Rows of pictures, each uint8 [F, side, side, 3], on white: uint8 [H, W, 3]."""
    canvas = np.full((*layout.size, 3), _PAPER, np.uint8)
    for row, pictures in enumerate(rows):
        for frame, picture in enumerate(pictures):
            top, left = layout.corner(frame, row)
            canvas[top : top + layout.side, left : left + layout.side] = picture
    return canvas


@dataclass(frozen=True)
class Words:
    """What is written into a figure. scale: what the colours of the heat mean, low end, high end."""

    title: str
    subtitle: str
    rows: Sequence[str]
    captions: Sequence[str]
    notes: Sequence[str]
    scale: tuple[str, str, str] | None = None


def draw_figure(rows: Sequence[np.ndarray], words: Words) -> np.ndarray:
    """Rows of pictures, each uint8 [F, side, side, 3], with their words: uint8 [H, W, 3]."""
    foot = 26 + _NOTE * len(words.notes) + (_SCALE if words.scale is not None else 0)
    layout = lay_out(len(rows[0]), len(rows), rows[0].shape[1], foot)
    canvas = compose(rows, layout)
    height, width = layout.size
    bar = (height - foot + 14, _LEFT + 14)  # top and left of the scale; its ends are written beside it
    if words.scale is not None:  # over a medium grey, as the heat lies over the frames
        strip = tint(np.linspace(0, 1, _BAR[0]), 128)
        canvas[bar[0] : bar[0] + _BAR[1], bar[1] : bar[1] + _BAR[0]] = strip
    require("matplotlib", extra="plot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=((width + 1e-3) / 100, (height + 1e-3) / 100), dpi=100)
    agg = FigureCanvasAgg(figure)
    figure.figimage(canvas)

    def write(x: float, y: float, text: str, points: float = 9.5, colour: str = _INK, **how: Any) -> None:
        figure.text(x / width, 1 - y / height, text, fontsize=points, color=colour, parse_math=False, **how)

    write(_LEFT, 26, words.title, 13, weight="bold", va="baseline")
    write(_LEFT, 48, words.subtitle, 9.5, _SOFT, va="baseline")
    for frame, caption in enumerate(words.captions):
        top, left = layout.corner(frame, 0)
        write(left + layout.side / 2, top - 8, caption, ha="center", va="baseline")
    for band in range(layout.bands):
        for row, name in enumerate(words.rows):
            top, left = layout.corner(band * layout.columns, row)
            write(left - 16, top + layout.side / 2, name, 9.5, _SOFT, rotation=90, ha="center", va="center")
    beside = bar[0] + _BAR[1] - 2
    if words.scale is not None:
        name, low, high = words.scale
        write(_LEFT, beside, low, 9, va="baseline")
        write(bar[1] + _BAR[0] + 5, beside, f"{high}    {name}", 9, va="baseline")
    first = beside + (_SCALE if words.scale is not None else 0)
    for line, note in enumerate(words.notes):
        write(_LEFT, first + _NOTE * line, note, 9, _SOFT, va="baseline")
    agg.draw()
    return np.asarray(agg.buffer_rgba())[..., :3].copy()
