"""Pretrained image, text and video towers: `load` a `Model` or `load_video` a `VideoModel`, then encode,
preprocess, or take it apart.
"""

from everyframe.backbone.hub import ModelError
from everyframe.backbone.model import Model, load
from everyframe.backbone.preprocess import Preprocess
from everyframe.backbone.presets import ARCHITECTURES, skeleton
from everyframe.backbone.text import TextConfig, TextTransformer
from everyframe.backbone.video import VIDEO_ARCHITECTURES, VideoConfig, VideoTransformer
from everyframe.backbone.video_model import VideoModel, load_video, video_skeleton
from everyframe.backbone.vit import (
    Block,
    BlockConfig,
    VisionConfig,
    VisionTransformer,
    resize_positions,
    unfold_patches,
)

__all__ = [
    "ARCHITECTURES",
    "VIDEO_ARCHITECTURES",
    "Block",
    "BlockConfig",
    "Model",
    "ModelError",
    "Preprocess",
    "TextConfig",
    "TextTransformer",
    "VideoConfig",
    "VideoModel",
    "VideoTransformer",
    "VisionConfig",
    "VisionTransformer",
    "load",
    "load_video",
    "resize_positions",
    "skeleton",
    "unfold_patches",
    "video_skeleton",
]
