"""Open, probe and sample videos, with true times and the motion the codec already measured.

The only part of everyframe that talks to FFmpeg (through PyAV).
"""

from everyframe.video.ahead import decode_ahead
from everyframe.video.errors import NoVideosError, VideoError
from everyframe.video.find import find_videos
from everyframe.video.info import VideoInfo
from everyframe.video.opening import Source
from everyframe.video.probe import probe
from everyframe.video.sample import Sample, SampledVideo, sample_frames
from everyframe.video.write import write_image, write_video

__all__ = [
    "NoVideosError",
    "Sample",
    "SampledVideo",
    "Source",
    "VideoError",
    "VideoInfo",
    "decode_ahead",
    "find_videos",
    "probe",
    "sample_frames",
    "write_image",
    "write_video",
]
