"""Which picture a motion vector points at, worked out from the order of packets and pictures.

FFmpeg says of each vector only whether it points back or ahead. A vector of 12 px may be one frame's motion
or that of four, so the distance is needed. Pictures are decoded after the ones they refer to, and a picture
decoded before its turn was decoded early because others need it: that tells the nearest reference in all
common structures (plain P pictures, B pictures, pyramids of B pictures). An encoder may point further back
than the nearest reference; such vectors count for more than they should.
"""

from __future__ import annotations

from collections import deque

_KEEP = 64


class References:
    """Follows packets as they are sent and pictures as they are shown; times are integers in one unit."""

    def __init__(self) -> None:
        self._order: dict[int, int] = {}
        self._count = 0
        self._latest_shown = -1
        self._past: deque[tuple[int, int]] = deque(maxlen=_KEEP)

    def sent(self, time: int) -> None:
        """A packet whose picture will be shown at `time` goes to the decoder."""
        self._order[time] = self._count
        self._count += 1
        if len(self._order) > 4 * _KEEP:
            for old in list(self._order)[:_KEEP]:
                del self._order[old]

    def shown(self, time: int, picture_type: str) -> tuple[int | None, int | None]:
        """Distance in time to the nearest reference before, and after, the picture shown now."""
        order = self._order.get(time)
        if order is None:
            return None, None
        past = next((time - when for when, decoded in reversed(self._past) if decoded < order), None)
        future: int | None = None
        if picture_type == "B":
            ahead = [when for when, decoded in self._order.items() if when > time and decoded < order]
            future = min(ahead) - time if ahead else None
        if picture_type != "B" or self._latest_shown > order:
            self._past.append((time, order))
        self._latest_shown = max(self._latest_shown, order)
        return past, future
