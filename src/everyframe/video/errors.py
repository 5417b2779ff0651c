"""What goes wrong with a video file, said in one sentence that names the file."""

from __future__ import annotations


class VideoError(ValueError):
    """A video cannot be read, or not all of it; the message names the file and says what to do."""


class NoVideosError(VideoError):
    """The given places exist but hold no video."""


class MissingVideoError(VideoError):
    """There is no such file or object, or it may not be read: trying again changes nothing."""


class UnreachableError(VideoError):
    """A remote file, or a stream, did not come, or not all of it, for a reason that may pass: try again."""
