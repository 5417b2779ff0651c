"""A picture of a video at its time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Picture:
    """One picture that is shown; times are integers in the decoder's `unit`, 0 = the video's time zero."""

    frame: Any
    """None where it was not decoded, because nobody looks at it."""
    time: int
    duration: int
    picture_type: str
    past: int | None = None
    """Distance to the picture its backward vectors point at; None when unknown."""
    future: int | None = None
    position: int | None = None
    """Byte of the file at which its packet begins, or one shortly before it; None when unknown."""
