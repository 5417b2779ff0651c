"""From videos to features: decode ahead, encode in batches, resume, report what failed."""

from everyframe.pipeline.batch import Outcome, default_decoders, encode_each, encode_videos
from everyframe.pipeline.clips import frames_of
from everyframe.pipeline.encode import encode_recipe, encode_video, provenance_of
from everyframe.pipeline.plan import Forecast, forecast
from everyframe.pipeline.recipe import RECIPE_SUFFIX, Recipe
from everyframe.pipeline.remake import remake
from everyframe.pipeline.restore import restore
from everyframe.pipeline.resume import JOURNAL, is_address, output_paths
from everyframe.pipeline.sampling import ClipSampling, Sampling
from everyframe.pipeline.window import Window, read_window

__all__ = [
    "JOURNAL",
    "RECIPE_SUFFIX",
    "ClipSampling",
    "Forecast",
    "Outcome",
    "Recipe",
    "Sampling",
    "Window",
    "default_decoders",
    "encode_each",
    "encode_recipe",
    "encode_video",
    "encode_videos",
    "forecast",
    "frames_of",
    "is_address",
    "output_paths",
    "provenance_of",
    "read_window",
    "remake",
    "restore",
]
