"""Sentences about the events of a synthetic video, as a narrator would say them: what comes, to what, and what follows.

They are made from captions and times alone, so that the annotations of any rendered video are enough.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

Occurrence = tuple[str, float, float]
"""A caption such as "a red circle" and the span in which it is true: [start, end) in seconds."""

_FIRST = ("The scene opens on {it}{with_others}.", "At first there is {it}{with_others}.")
_ALONE = ("{It} comes into the empty picture.", "Nothing is there, then {it} appears.", "{It} appears, all alone.")
_JOINS = ("{It} joins {others}.", "Beside {others}, {it} comes into view.", "{Others} can be seen when {it} appears.")
_ENDS = {
    "follows": ("Then {other} follows.", "After it comes {other}.", "Soon {other} is there too."),
    "leaves": ("Then {other} leaves.", "Soon {other} is gone.", "{Other} goes away first."),
}


def narrate(events: Sequence[Occurrence], *, video: str) -> list[str]:
    """One or two sentences per event, in the order of `events`.

    They say what is new, beside what it comes, and what happens first while it is there: another object that comes or
    goes. How that is put is drawn from the name of the video and the event's place, so the same events always give the
    same text. Raises ValueError for an event without a caption or that ends before it starts.
    """
    for caption, start, end in events:
        if not caption.strip() or not start < end:
            raise ValueError(f"an event needs a caption and must end after it starts, got {caption!r}, {start}, {end}")
    return [_sentences(events, place, video) for place in range(len(events))]


def _sentences(events: Sequence[Occurrence], place: int, video: str) -> str:
    rng = np.random.default_rng([zlib.crc32(video.encode()), place])
    caption, start, end = events[place]
    around = [event for number, event in enumerate(events) if number != place]
    present = [name for name, first, last in around if first <= start < last]
    if start <= 0:
        line = _choose(rng, _FIRST)
    else:
        line = _choose(rng, _JOINS if present else _ALONE)
    others = " and ".join(present)
    said = line.format(
        it=caption,
        It=_upper(caption),
        others=others,
        Others=_upper(others),
        with_others=f" with {others}" if others else "",
    )
    changes = [(first, "follows", name) for name, first, _ in around if start < first < end]
    changes += [(last, "leaves", name) for name, first, last in around if first <= start < last < end]
    if not changes:
        return said
    _, what, name = min(changes)
    return f"{said} {_choose(rng, _ENDS[what]).format(other=name, Other=_upper(name))}"


def _choose(rng: np.random.Generator, lines: tuple[str, ...]) -> str:
    return lines[int(rng.integers(len(lines)))]


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
