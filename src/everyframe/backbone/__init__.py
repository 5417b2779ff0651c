"""Pretrained image and text towers behind one interface: `load` a `Model`, then encode, preprocess, or take
it apart.
"""

from everyframe.backbone.hub import ModelError
from everyframe.backbone.model import Model, load
from everyframe.backbone.preprocess import Preprocess
from everyframe.backbone.presets import ARCHITECTURES, skeleton
from everyframe.backbone.text import TextConfig, TextTransformer
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
    "Block",
    "BlockConfig",
    "Model",
    "ModelError",
    "Preprocess",
    "TextConfig",
    "TextTransformer",
    "VisionConfig",
    "VisionTransformer",
    "load",
    "resize_positions",
    "skeleton",
    "unfold_patches",
]
