"""What goes wrong with a video file, said in one sentence that names the file."""

from __future__ import annotations


class VideoError(ValueError):
    """A video cannot be read, or not all of it; the message names the file and says what to do."""


class NoVideosError(VideoError):
    """The given places exist but hold no video."""
