"""A plan over time, as a line of text and as an SVG picture. Plain data in, text out.

T frames; their roles are I (computed in full), P (in part) or C (copied).
"""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

MOST_BARS = 1100  # one pixel each; longer videos share bars
THUMBNAILS = 12  # in a picture, at most

_LETTERS = {"I": "I", "P": "p", "C": "·"}
_BLOCKS, _ASCII_BLOCKS = "▁▂▃▄▅▆▇█", "_.-:=+*#"
_TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400)

_WIDTH, _LEFT, _RIGHT = 1200, 74, 1168
_THUMBS, _SIDE = 70, 86  # top of the thumbnails, and their side
_BARS, _DEBT = (204, 344), (376, 456)  # top and bottom of the two panels
_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #57606a } .title { font-size: 19px; font-weight: 600; fill: #1b1f24 }
.end { text-anchor: end } .mid { text-anchor: middle } .grid { stroke: #d8dee4 } .lead { stroke: #b6bec7; fill: none }
.I { fill: #0550ae } .P { fill: #54aeff } .C { fill: #8c959f } .cut { fill: #cf222e } .cutline { stroke: #cf222e;
stroke-dasharray: 3 3; opacity: .6 } .debt { fill: none; stroke: #bc4c00; stroke-width: 1.5; stroke-linejoin: round }
.tolerance { stroke: #bc4c00; stroke-dasharray: 6 4 }
"""


def plan_line(roles: str, shares: Sequence[float], width: int, *, ascii_only: bool = False) -> tuple[str, str]:
    """The plan in at most `width` characters, and what they mean.

    A letter per frame where they fit; else blocks whose height is the mean share of patches computed.
    """
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    copied = "." if ascii_only else _LETTERS["C"]
    if len(roles) <= width:
        line = "".join(copied if role == "C" else _LETTERS[role] for role in roles)
        return line, f"a frame each: I in full, p in part, {copied} copied"
    per = -(-len(roles) // width)
    means = [float(np.mean(shares[first : first + per])) for first in range(0, len(roles), per)]
    blocks = _ASCII_BLOCKS if ascii_only else _BLOCKS
    line = "".join(blocks[min(int(mean * len(blocks)), len(blocks) - 1)] for mean in means)
    return line, f"{per} frames each: share of patches computed, {blocks[0]} few, {blocks[-1]} all"


def spread_out(seconds: Sequence[float], start: float, end: float, most: int = THUMBNAILS) -> list[int | None]:
    """For each of `most` equal parts of [start, end) the entry nearest to its middle, if one lies in it."""
    edges = np.linspace(start, end, most + 1)
    chosen: list[int | None] = []
    for low, high in pairwise(edges):
        inside = [index for index, time in enumerate(seconds) if low <= time < high]
        chosen.append(min(inside, key=lambda index: abs(seconds[index] - (low + high) / 2), default=None))
    return chosen


def plan_picture(
    times: Sequence[float],
    end: float,
    roles: str,
    shares: Sequence[float],
    *,
    title: str,
    note: str = "",
    debt: Sequence[float] | None = None,
    tolerance: float | None = None,
    cuts: Sequence[float] = (),
    thumbnails: Sequence[tuple[float, bytes]] = (),
) -> str:
    """An SVG of a plan over the real timeline: pictures, share of patches computed per frame, debt, cuts.

    times, roles, shares: [T], when each frame is shown, what becomes of it, and the share of its patches that is
        computed. Of more than 1100 frames several make one bar: as much dark blue as frames are I, light blue above.
    end: when the last frame stops being shown.
    debt, tolerance: what was left out since the last I-frame, [T], and what an adaptive plan allows.
    cuts: seconds. thumbnails: (seconds, JPEG) of I-frames; about 12 of them are shown.
    """
    if not (len(times) == len(roles) == len(shares)) or not len(times):
        raise ValueError(
            f"times, roles and shares must be one per frame, got {len(times)}, {len(roles)}, {len(shares)}"
        )
    start, end = times[0], max(end, times[-1] + 1e-3)

    def x(seconds: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * (seconds - start) / (end - start)

    base = _DEBT[1] if debt is not None else _BARS[1]
    per = -(-len(times) // MOST_BARS)
    edges = [*(x(time) for time in times[::per]), x(end)]
    parts = [
        *_pictures(thumbnails, start, end, x),
        *_level(_BARS[0], "100 %"),
        *_level((_BARS[0] + _BARS[1]) / 2, "50 %"),
        *_level(_BARS[1], "0"),
        f'<text class="mid" transform="translate(14 {sum(_BARS) / 2}) rotate(-90)">patches computed</text>',
        '<g class="bars">',
        *_bars(edges, roles, shares, per),
        "</g>",
    ]
    if debt is not None:
        parts += _curve(edges, debt, tolerance, per)
    for cut in cuts:
        parts.append(f'<path class="cut" d="M{x(cut):.1f},{_BARS[0]}l-4.5,-9h9z"/>')
        parts.append(f'<path class="cutline" d="M{x(cut):.1f},{_BARS[0]}V{base}"/>')
    parts += _axis(start, end, base, x)
    shown = {"I": "I: computed in full", "P": "P: in part", "C": "C: copied"}
    entries = [(role, text) for role, text in shown.items() if role in roles]
    entries += [("cut", "a shot begins")] if cuts else []
    entries += [("debt", "change left out since the last I-frame")] if debt is not None else []
    entries += [("tolerance", "tolerance")] if debt is not None and tolerance is not None else []
    parts += _legend(base + 52, entries, f"a bar is {per} frames" if per > 1 else "")
    up = 0 if thumbnails else _BARS[0] - _THUMBS - 14
    height = base + 66 - up
    heading = (
        f'<text class="title" x="{_LEFT}" y="28">{html.escape(title)}</text>'
        f'<text x="{_LEFT}" y="50">{html.escape(note)}</text>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}">'
        f'<style>{_STYLE}</style><rect width="{_WIDTH}" height="{height}" fill="#fff"/>{heading}'
        f'<g transform="translate(0 {-up})">{"".join(parts)}</g></svg>\n'
    )


def _pictures(
    thumbnails: Sequence[tuple[float, bytes]], start: float, end: float, x: Callable[[float], float]
) -> list[str]:
    slot = (_RIGHT - _LEFT) / THUMBNAILS
    parts = []
    for number, chosen in enumerate(spread_out([time for time, _ in thumbnails], start, end)):
        if chosen is None:
            continue
        time, data = thumbnails[chosen]
        left, foot = _LEFT + slot * number + (slot - _SIDE) / 2, _THUMBS + _SIDE
        parts.append(
            f'<image x="{left:.1f}" y="{_THUMBS}" width="{_SIDE}" height="{_SIDE}" '
            f'href="data:image/jpeg;base64,{base64.b64encode(data).decode()}"/>'
            f'<path class="lead" d="M{left + _SIDE / 2:.1f},{foot + 2}v8L{x(time):.1f},{_BARS[0] - 14}v12"/>'
        )
    return parts


def _level(y: float, label: str) -> list[str]:
    return [
        f'<path class="grid" d="M{_LEFT},{y:g}H{_RIGHT}"/>',
        f'<text class="end" x="{_LEFT - 8}" y="{y + 4:g}">{label}</text>',
    ]


def _bars(edges: Sequence[float], roles: str, shares: Sequence[float], per: int) -> list[str]:
    """Per bar a dark part for I-frames, a light one for P-frames on it, and a dot where nothing is computed."""
    tall = _BARS[1] - _BARS[0]
    parts = []
    for number, (left, right) in enumerate(pairwise(edges)):
        some = slice(number * per, (number + 1) * per)
        count = len(roles[some])
        full = roles[some].count("I") / count
        part = sum(share for role, share in zip(roles[some], shares[some], strict=True) if role == "P") / count
        wide = max((right - left) * 0.85, 0.8)
        foot = float(_BARS[1])
        for role, share in (("I", full), ("P", part)):
            if share:
                high = max(share * tall, 1.0)
                foot -= high
                parts.append(
                    f'<rect class="{role}" x="{left:.1f}" y="{foot:.1f}" width="{wide:.1f}" height="{high:.1f}"/>'
                )
        if not full and not part:
            parts.append(
                f'<circle class="C" cx="{left + wide / 2:.1f}" cy="{_BARS[1] - 4}" r="{min(wide / 2, 1.8):.1f}"/>'
            )
    return parts


def _curve(edges: Sequence[float], debt: Sequence[float], tolerance: float | None, per: int) -> list[str]:
    top, foot = _DEBT
    most = 1.15 * max(*debt, tolerance or 0.0, 1e-6)
    highest = [max(debt[first : first + per]) for first in range(0, len(debt), per)]
    line = "".join(
        f"{'L' if number else 'M'}{left:.1f},{foot - (foot - top) * value / most:.1f}H{right:.1f}"
        for number, ((left, right), value) in enumerate(zip(pairwise(edges), highest, strict=True))
    )
    parts = [
        *_level(foot, "0"),
        f'<text class="mid" transform="translate(14 {(top + foot) / 2}) rotate(-90)">change left out</text>',
        f'<path class="debt" d="{line}"/>',
    ]
    if tolerance is not None:
        y = foot - (foot - top) * tolerance / most
        parts.append(f'<path class="tolerance" d="M{_LEFT},{y:.1f}H{_RIGHT}"/>')
        parts.append(f'<text class="end" x="{_LEFT - 8}" y="{y + 4:.1f}">{tolerance:.3g}</text>')
    return parts


def _axis(start: float, end: float, y: float, x: Callable[[float], float]) -> list[str]:
    step = next((step for step in _TICKS if (end - start) / step <= 14), _TICKS[-1])
    ticks = np.arange(np.ceil(start / step), np.floor(end / step) + 1) * step
    return [
        f'<path class="lead" d="M{x(float(tick)):.1f},{y}v5"/><text class="mid" x="{x(float(tick)):.1f}" y="{y + 20}">'
        f"{_clock(float(tick), step, end)}</text>"
        for tick in ticks
    ]


def _clock(seconds: float, step: float, end: float) -> str:
    if end <= 120 or step < 1:
        return f"{seconds:g} s" if step >= 1 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if end >= 3600 else f"{minutes}:{rest:02d}"


_SYMBOLS = {
    "I": '<rect class="I" width="11" height="11" y="-10"/>',
    "P": '<rect class="P" width="11" height="11" y="-10"/>',
    "C": '<circle class="C" cx="6" cy="-4" r="2"/>',
    "cut": '<path class="cut" d="M1.5,-9h9l-4.5,9z"/>',
    "debt": '<path class="debt" d="M0,-4h13"/>',
    "tolerance": '<path class="tolerance" d="M-4,-4h17"/>',
}


def _legend(y: float, entries: Sequence[tuple[str, str]], right: str) -> list[str]:
    parts, left = [], float(_LEFT)
    for name, label in entries:
        parts.append(f'<g transform="translate({left:g} {y:g})">{_SYMBOLS[name]}<text x="18">{label}</text></g>')
        left += 44 + 6.7 * len(label)
    parts.append(f'<text class="end" x="{_RIGHT}" y="{y:g}">{right}</text>')
    return parts
