"""everyframe: understand every frame of a video for the price of a few.

The names below are the public API; each is imported when first used, so that `import everyframe` stays fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from everyframe.backbone import Model, ModelError, VideoModel, load, load_video
    from everyframe.cost import Cost, flops
    from everyframe.encoders import DenseEncoder, ResidualTokenizer, ResidualViT, ReuseEncoder, TempMe, ToMe, VidTLDR
    from everyframe.feature_files import FeaturesError
    from everyframe.features import VideoFeatures
    from everyframe.library import Library, LibraryError
    from everyframe.pipeline import encode_video
    from everyframe.spans import Moment
    from everyframe.tasks.grounding import ground
    from everyframe.tasks.retrieval import Hit, search
    from everyframe.video import VideoError, probe

_HOMES = {
    "Cost": "cost",
    "DenseEncoder": "encoders",
    "FeaturesError": "feature_files",
    "Hit": "tasks.retrieval",
    "Library": "library",
    "LibraryError": "library",
    "Model": "backbone",
    "ModelError": "backbone",
    "Moment": "spans",
    "ResidualTokenizer": "encoders",
    "ResidualViT": "encoders",
    "ReuseEncoder": "encoders",
    "TempMe": "encoders",
    "ToMe": "encoders",
    "VidTLDR": "encoders",
    "VideoError": "video",
    "VideoFeatures": "features",
    "VideoModel": "backbone",
    "encode_video": "pipeline",
    "flops": "cost",
    "ground": "tasks.grounding",
    "load": "backbone",
    "load_video": "backbone",
    "probe": "video",
    "search": "tasks.retrieval",
}

__all__ = [
    "Cost",
    "DenseEncoder",
    "FeaturesError",
    "Hit",
    "Library",
    "LibraryError",
    "Model",
    "ModelError",
    "Moment",
    "ResidualTokenizer",
    "ResidualViT",
    "ReuseEncoder",
    "TempMe",
    "ToMe",
    "VidTLDR",
    "VideoError",
    "VideoFeatures",
    "VideoModel",
    "encode_video",
    "flops",
    "ground",
    "load",
    "load_video",
    "probe",
    "search",
]


_MODULES = ("features", "scale")  # ef.features.stream, ef.scale.encode


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"everyframe.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'everyframe' has no attribute {name!r}")
    value = getattr(import_module(f"everyframe.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
