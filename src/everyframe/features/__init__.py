"""`VideoFeatures`: one embedding per sampled frame, its true time, and where it came from.

`shards` packs many of them into webdataset tars; `stream` feeds any number of files and shards to a PyTorch DataLoader.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from everyframe.feature_files import SUFFIXES, FeaturesError, ForeignFileError
from everyframe.features.video_features import (
    VideoFeatures,
    as_array,
    check_same_space,
    is_of_clips,
    nearest_rows,
    space_of,
)

if TYPE_CHECKING:
    from everyframe.features.streaming import FeatureStream, collate, stream

__all__ = [
    "SUFFIXES",
    "FeatureStream",
    "FeaturesError",
    "ForeignFileError",
    "VideoFeatures",
    "as_array",
    "check_same_space",
    "collate",
    "is_of_clips",
    "nearest_rows",
    "space_of",
    "stream",
]

_OF_STREAMING = ("FeatureStream", "collate", "stream")  # they load torch, which features alone do not need


def __getattr__(name: str) -> Any:
    if name not in _OF_STREAMING:
        raise AttributeError(f"module 'everyframe.features' has no attribute {name!r}")
    return getattr(import_module("everyframe.features.streaming"), name)
