"""Open, probe and sample videos, with true times and the motion the codec already measured.

The only part of everyframe that talks to FFmpeg (through PyAV).
"""

from everyframe.video.ahead import decode_ahead
from everyframe.video.clip import (
    Clip,
    alternate_views,
    middle_frames,
    sample_clip,
    second_frames,
    spread_frames,
    strided_views,
)
from everyframe.video.errors import NoVideosError, VideoError
from everyframe.video.find import find_videos
from everyframe.video.info import VideoInfo
from everyframe.video.opening import Source
from everyframe.video.probe import probe
from everyframe.video.sample import Sample, SampledVideo, Seam, sample_frames
from everyframe.video.targets import TargetRange
from everyframe.video.write import write_image, write_video

__all__ = [
    "Clip",
    "NoVideosError",
    "Sample",
    "SampledVideo",
    "Seam",
    "Source",
    "TargetRange",
    "VideoError",
    "VideoInfo",
    "alternate_views",
    "decode_ahead",
    "find_videos",
    "middle_frames",
    "probe",
    "sample_clip",
    "sample_frames",
    "second_frames",
    "spread_frames",
    "strided_views",
    "write_image",
    "write_video",
]
