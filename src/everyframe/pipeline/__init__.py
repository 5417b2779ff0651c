"""From videos to features: decode ahead, encode in batches, resume, report what failed."""

from everyframe.pipeline.encode import Outcome, Sampling, encode_video, encode_videos
from everyframe.pipeline.plan import Forecast, forecast
from everyframe.pipeline.resume import JOURNAL, is_address, output_paths
from everyframe.pipeline.window import Window, read_window

__all__ = [
    "JOURNAL",
    "Forecast",
    "Outcome",
    "Sampling",
    "Window",
    "encode_video",
    "encode_videos",
    "forecast",
    "is_address",
    "output_paths",
    "read_window",
]
